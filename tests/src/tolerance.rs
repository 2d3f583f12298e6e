//! How near a device must come to the float64 definition, by the numbers that it computes in.
//!
//! **Sums of tensor cores.** An encoder's sum is Σₖ x w + b over K products of bf16, which are exact, in binary32. How it is added is
//! not specified, and a processor does it in another way: hardware adds 4 to 16 products and the sum so far at once, each
//! shifted to the exponent of the largest and cut off there, and cuts the result off. Cutting off loses less than 2⁻²³ of the
//! largest, which is at most M = Σ|x w| + |b|, for each operand and each result. A step that takes g products has g + 2 of these, so
//! K products have K (1 + 2/g), at most 1.5 K, and with the bias added by itself the sum is off by less than
//!
//! ```text
//! 2⁻²² (K + 1) M
//! ```
//!
//! A pre-activation nearer to 0 than that may have either sign, and both are right: cases move biases until none of theirs is that
//! near, so active features must be the same. What follows from activations that are off by so much is added to the tolerance
//! of the sums of a report. Sums in binary32 are made in one order by one chain of fused multiply-adds, on a
//! processor as on a GPU, and have no such term.
//!
//! The emulator adds once as a processor does and once cut off as hardware does (`EMULATOR_TRUNCATE`), and both must hold.

use kernels::Path;

/// The precision in which a device computes, and hence how near it must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Binary32.
    F32,
    /// Products of bf16 with sums in binary32. Cases then start from numbers that bf16 holds.
    Mixed,
    /// The same, with weights or moments in bf16 as well, rounded stochastically.
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

    /// Most that a sum of `terms` products and a bias, of which the magnitudes sum to `magnitude`, is off: see above.
    pub(crate) fn product(self, terms: usize, magnitude: f64) -> f64 {
        match self {
            Numbers::F32 => 0.0,
            Numbers::Mixed | Numbers::Bf16 | Numbers::Int8 => 2f64.powi(-22) * (terms + 1) as f64 * magnitude,
        }
    }

    /// Relative error of sums, besides what [`Numbers::product`] makes of them; on the dense path activations are rounded.
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

    /// Relative error of a first moment: the gradient's, and that of rounding it stochastically. Codes of 8 bits are about 1/64 apart
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
