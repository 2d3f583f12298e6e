//! Training of sparse autoencoders: the step, its schedules, the loop around it, checkpoints, metrics, evaluation and
//! export.
//!
//! [`train::train`] is the entry. It takes a [`Recipe`](recipe::Recipe), a device of the `kernels` crate, and rows from
//! the `loader` crate; [`step::step`] is the algorithm.

pub mod account;
pub mod buffers;
pub mod centre;
pub mod checkpoint;
pub mod communication;
pub mod data;
pub mod evaluate;
pub mod export;
pub mod filter;
pub mod forecast;
pub mod init;
pub mod meeting;
pub mod metrics;
pub mod note;
pub mod overhead;
pub mod plan;
pub mod recipe;
pub mod recovery;
pub mod rehearsal;
pub mod roll_call;
pub mod room;
pub mod run_dir;
pub mod schedule;
pub mod step;
pub mod summary;
pub mod survey;
pub mod synthesis;
pub mod train;

mod calibrate;
mod dot;
mod error;
mod events;
mod hparams;
mod journal;
mod together;

pub use error::Error;
pub use journal::{EvalLine, Together, TrainLine};
