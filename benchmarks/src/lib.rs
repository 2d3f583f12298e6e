//! What the benchmarks of this folder share.

pub mod asked;
pub mod ceiling;
pub mod floor;
pub mod planted;
