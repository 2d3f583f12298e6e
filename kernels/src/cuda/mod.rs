//! NVIDIA cards: finding one, and turning the device sources into kernels for it.
//!
//! Nothing here is needed to build or to start: driver and compiler are opened when a card is asked for.

pub mod cache;
pub mod card;
pub mod cubin;
pub mod embedded;
pub mod kernels;
pub mod nvrtc;
pub mod sources;

mod arch;
mod resources;

pub use arch::{Arch, RELEASED};
pub use resources::Resources;
