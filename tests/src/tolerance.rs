//! How near a device must come to the float64 definition, by the numbers that it computes in.

use kernels::Path;

/// In what numbers a device computes, and hence how near it must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Binary32.
    F32,
    /// Products of bf16 with sums in binary32. Cases then start from numbers that bf16 holds.
    Mixed,
    /// The same, with weights or moments in bf16 as well, rounded by chance.
    Bf16,
    /// The same, with moments in 8 bits.
    Int8,
}

impl Numbers {
    /// The nearest number that products read without rounding.
    pub(crate) fn nearest(self, v: f64) -> f64 {
        match self {
            Numbers::F32 => f64::from(v as f32),
            Numbers::Mixed | Numbers::Bf16 | Numbers::Int8 => half::bf16::from_f64(v).to_f64(),
        }
    }

    /// Relative error of sums; on the dense path activations are rounded.
    pub(crate) fn sum(self, path: Path) -> f64 {
        match (self, path) {
            (Numbers::F32, _) | (_, Path::Sparse) => 1e-5,
            (_, Path::Dense) => 1e-2,
        }
    }

    /// Relative error of a gradient, and of weights after many steps with a little of it.
    pub(crate) fn gradient(self) -> f64 {
        match self {
            Numbers::F32 => 2e-5,
            Numbers::Mixed | Numbers::Bf16 | Numbers::Int8 => 1e-2,
        }
    }

    /// Relative error of a first moment: the gradient's, and that of rounding it by chance. Codes of 8 bits are about 1/64 apart
    /// where most of a block's values lie.
    pub(crate) fn moment(self) -> f64 {
        match self {
            Numbers::F32 | Numbers::Mixed => self.gradient(),
            Numbers::Bf16 => 1.5e-2,
            Numbers::Int8 => 5e-2,
        }
    }

    /// Relative error after 200 steps.
    pub(crate) fn run(self) -> f64 {
        match self {
            Numbers::F32 => 1e-4,
            Numbers::Mixed | Numbers::Bf16 | Numbers::Int8 => 3e-2,
        }
    }
}
