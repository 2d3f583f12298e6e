//! Every operation of a training step, behind one seam.
//!
//! [`Device`] and [`Dictionary`] are what the trainer sees; [`cpu`] is the implementation that runs everywhere, [`cuda`]
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

pub use device::{
    AdamMode, AdamUpdate, Bytes, Clock, Device, Dictionary, Formats, LearningRate, Path, Report, RowDtype, Shape, Slot,
    Sums, Tensor,
};
pub use error::{Error, System};
