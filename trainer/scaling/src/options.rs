//! How runs are fitted.

use crate::laws::Loss;

/// Hours of one GPU for so many features and steps; `None` where it is not known.
pub type GpuHours<'a> = dyn Fn(f64, f64) -> Option<f64> + 'a;

/// How to fit.
pub struct Options<'a> {
    /// What the surface makes least.
    pub loss: Loss,
    /// Replicates of the bootstrap.
    pub replicates: usize,
    /// Of its random numbers.
    pub seed: u64,
    /// A GPU's name and its hours.
    pub gpu: Option<(String, &'a GpuHours<'a>)>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { loss: Loss::LeastSquares, replicates: 1000, seed: 0, gpu: None }
    }
}
