//! NVIDIA GPUs: finding one, and turning the device sources into kernels for it.
//!
//! Nothing here is needed to build or to start: driver, compiler and NCCL are opened when they are asked for.

mod array;
mod compile;
mod device;
mod dictionary;
mod limits;
mod measure;
mod moments;
mod ops;
mod ranks;
mod runtime;
mod training;
mod weights;

/// What each operation must move and do: see [`Cost`].
pub mod cost {
    pub use super::ops::adam::cost as adam;
    pub use super::ops::backward::cost as backward;
    pub use super::ops::count::cost as count;
    pub use super::ops::decode::cost as decode;
    pub use super::ops::dense::cost as dense;
    pub use super::ops::encode::cost as encode;
    pub use super::ops::normalize::cost as normalize;
    pub use super::ops::residual::cost as residual;
    pub use super::ops::transpose::cost as transpose;
}

pub use compile::arch::{Arch, RELEASED};
pub use compile::resources::Resources;
pub use compile::{cache, cubin, embedded, kernels, nvrtc, sources};
pub use device::{Cuda, bytes};
pub use dictionary::CudaDictionary;
pub use measure::stopwatch::Stopwatch;
pub use measure::{cublas, naive};
pub use ops::Cost;
pub use ops::count::Tally;
pub use ops::normalize::Rows;
pub use ranks::nccl;
pub use ranks::owners::rows_in_a_round;
pub use ranks::slices::slices;
pub use runtime::gpu;
pub use runtime::launches::Launch;
pub use runtime::precision::{Moments, Precision};
pub use runtime::staging::Staging;
pub use training::CudaTraining;
