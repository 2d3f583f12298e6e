//! A GPU as the operations see it: streams, memory, launches, what goes wrong.

pub mod engine;
pub mod gpu;
pub mod launches;
pub mod memory;
pub mod pointer;
pub mod precision;
pub mod staging;
pub mod status;
