//! Scaling laws of sparse autoencoders: loss as a function of features and steps, fitted to finished runs; what follows from it
//! for a budget; how sure one may be. Knows no device, no recipe and no file: runs come in as rows and laws go out as values.

pub mod laws;
pub mod report;

pub use laws::Laws;
