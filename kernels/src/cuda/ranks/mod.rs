//! Between GPUs: NCCL, and what the ranks of a mesh exchange.

pub mod communicator;
pub mod exchange;
pub mod nccl;
pub mod owners;
pub mod slices;
