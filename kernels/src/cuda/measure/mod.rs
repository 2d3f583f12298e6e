//! What benchmarks and tests take of a GPU: ceilings, times, naive versions.

pub mod cublas;
pub mod naive;
pub mod peaks;
pub mod profile;
pub mod stopwatch;
