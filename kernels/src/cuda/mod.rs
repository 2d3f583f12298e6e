//! NVIDIA cards: finding one, and turning the device sources into kernels for it.
//!
//! Nothing here is needed to build or to start: driver, compiler and NCCL are opened when they are asked for.

pub mod cache;
pub mod card;
pub mod cubin;
pub mod cublas;
pub mod embedded;
pub mod kernels;
pub mod naive;
pub mod nccl;
pub mod nvrtc;
pub mod sources;

mod adam;
mod arch;
mod array;
mod backward;
mod communicator;
mod count;
mod decode;
mod dense;
mod device;
mod dictionary;
mod encode;
mod engine;
mod exchange;
mod launches;
mod limits;
mod memory;
mod normalize;
mod owners;
mod peaks;
mod residual;
mod resources;
mod slices;
mod staging;
mod status;
mod stopwatch;
mod transpose;
mod weights;

/// What each operation must move and do: see [`Cost`].
pub mod cost {
    pub use super::adam::cost as adam;
    pub use super::backward::cost as backward;
    pub use super::count::cost as count;
    pub use super::decode::cost as decode;
    pub use super::dense::cost as dense;
    pub use super::encode::cost as encode;
    pub use super::normalize::cost as normalize;
    pub use super::residual::cost as residual;
    pub use super::transpose::cost as transpose;
}

pub use arch::{Arch, RELEASED};
pub use count::Tally;
pub use device::{Cost, Cuda, Moments, Precision, bytes};
pub use dictionary::CudaDictionary;
pub use launches::Launch;
pub use normalize::Rows;
pub use owners::rows_in_a_round;
pub use resources::Resources;
pub use slices::slices;
pub use staging::Staging;
pub use stopwatch::Stopwatch;
