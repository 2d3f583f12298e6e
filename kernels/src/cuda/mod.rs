//! NVIDIA cards: finding one, and turning the device sources into kernels for it.
//!
//! Nothing here is needed to build or to start: driver and compiler are opened when a card is asked for.

pub mod adam;
pub mod backward;
pub mod cache;
pub mod card;
pub mod cubin;
pub mod decode;
pub mod dense;
pub mod embedded;
pub mod encode;
pub mod kernels;
pub mod nvrtc;
pub mod sources;
pub mod transpose;

mod arch;
mod count;
mod device;
mod dictionary;
mod engine;
mod memory;
mod normalize;
mod residual;
mod resources;
mod status;
mod weights;

pub use arch::{Arch, RELEASED};
pub use count::Tally;
pub use device::{Cost, Cuda, Precision};
pub use dictionary::CudaDictionary;
pub use memory::Staging;
pub use normalize::Rows;
pub use resources::Resources;
