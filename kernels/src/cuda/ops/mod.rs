//! The operations of a step, one launcher for each .cu file.

pub mod adam;
pub mod backward;
pub mod count;
pub mod decode;
pub mod dense;
pub mod encode;
pub mod normalize;
pub mod residual;
pub mod touched;
pub mod transpose;

/// What an operation must move and do at least: the floor that benchmarks hold it against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes to and from the GPU's memory.
    pub bytes: u64,
    /// Multiplications and additions.
    pub flop: u64,
}
