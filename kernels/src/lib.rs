//! Every operation of a training step, behind one seam.
//!
//! [`Device`], [`Dictionary`] and [`Training`] are what the trainer sees; [`cpu`] is the implementation that runs everywhere, [`cuda`]
//! finds GPUs and makes kernels for them, [`ranks`] is how the parts of a job reach each other, and [`mesh`] says who does what. The
//! mathematics is written once per operation, in the file that carries its name.
//!
//! Shape letters used throughout: `B` rows (tokens) in a batch, `D` width of a row, `F` features.

pub mod cpu;
pub mod cuda;
mod device;
mod error;
mod first_error;
pub mod mesh;
pub mod ranks;
mod sums;

pub use device::{
    ActivePairs, AdamMode, AdamUpdate, Bytes, Clock, Device, Dictionary, Formats, LearningRate, Moment, Path, Purpose,
    Report, RowDtype, Shape, Tensor, Training,
};
pub use error::{Error, System};
pub use sums::Sums;
