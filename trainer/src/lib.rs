//! Training of sparse autoencoders: the step, its schedules, the loop around it, checkpoints, metrics, evaluation and
//! export.
//!
//! [`train::train`] is the entry. It takes a [`Recipe`](recipe::Recipe), a device of the `kernels` crate, and rows from
//! the `loader` crate; [`step::step`] is the algorithm.

pub mod buffers;
pub mod checkpoint;
pub mod data;
pub mod evaluate;
pub mod export;
pub mod init;
pub mod recipe;
pub mod run_dir;
pub mod schedule;
pub mod step;
pub mod train;

mod error;
mod estimate;
mod exit;
mod message;
mod ranks;
mod remedy;
mod report;

pub use data::{filter, survey, synthesis};
pub use error::{Error, OR_FILTER};
pub use estimate::{forecast, overhead, plan, rehearsal, room};
pub use exit::Exit;
pub use message::Message;
pub use ranks::{communication, meeting, note, roll_call};
pub use report::journal::{EvalLine, Together, TrainLine};
pub use report::{account, centre, metrics, recovery, summary};
