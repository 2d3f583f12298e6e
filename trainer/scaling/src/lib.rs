//! Scaling laws of sparse autoencoders: loss as a function of features and steps, fitted to finished runs; what follows from it
//! for a budget; how sure one may be. Knows no device, no recipe and no file: runs come in as rows and laws go out as values.

mod bootstrap;
mod checks;
mod cross;
mod error;
mod fit;
pub mod laws;
mod next;
mod options;
mod predict;
mod projection;
mod regression;
pub mod report;
pub mod run;
mod surface;
mod warnings;

pub use error::Error;
pub use fit::{FAR, fit, median};
pub use laws::Laws;
pub use next::Candidate;
pub use options::{GpuHours, Options};
pub use predict::{Optimum, flops_dense, flops_sparse};
pub use run::Run;
