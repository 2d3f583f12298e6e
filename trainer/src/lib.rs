//! Training of sparse autoencoders: the step, its schedules, the loop around it, checkpoints, metrics, evaluation and
//! export.
//!
//! [`train::train`] is the entry. It takes a [`Recipe`](recipe::Recipe), a device of the `kernels` crate, and rows from
//! the `loader` crate; [`step::step`] is the algorithm.
//!
//! A recipe of synthetic rows, trained on the processor from nothing to its summary:
//!
//! ```
//! use trainer::recipe::Recipe;
//! use trainer::synthesis;
//! use trainer::train::{Start, train};
//!
//! let folder = tempfile::tempdir()?;
//! let recipe: Recipe = toml::from_str(&format!(
//!     "data.train = '{0}/rows'
//!      data.synth = {{ features = 64, width = 16, rows = 4096, active = 2 }}
//!      sae.features = 128
//!      train = {{ batch = 256, lr = 3e-3, l1 = 1.5, threads = 1 }}
//!      run.dir = '{0}/run'",
//!     folder.path().display()
//! ))?;
//! synthesis::make(&recipe, &synthesis::to_make(&recipe)?, &mut |_key, _rows, _all_rows| {})?;
//!
//! let (cpu, stop) = (kernels::cpu::Cpu::new(Some(1))?, Default::default());
//! let watch = Box::new(|_event: trainer::train::Event<'_>| {});
//! let store = &loader::Store::open(&recipe.run.dir)?;
//! let words = ToString::to_string;
//! let start = Start { store, resume: false, commit: "unknown", stop: &stop, host_ranks: 1, words, watch };
//! let summary = train(&cpu, &recipe, start)?;
//! assert_eq!(summary.tokens, 4096, "every row once");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A recipe is refused by the name of its key, before anything is opened:
//!
//! ```
//! use trainer::recipe::Recipe;
//!
//! let recipe: Recipe = toml::from_str("data.train = 'rows'\nsae.features = 128\ntrain.lr = -1.0\nrun.dir = 'run'")?;
//! assert_eq!(recipe.train.batch, 4096, "what is not written has a default");
//! let error = recipe.validate().expect_err("a step against the gradient");
//! assert_eq!(error.to_string(), "train.lr must be a number above 0, and is -1");
//! assert_eq!(error.exit(), trainer::Exit::Arguments);
//! # Ok::<(), toml::de::Error>(())
//! ```

pub mod buffers;
pub mod checkpoint;
pub mod data;
pub mod encode;
pub mod evaluate;
pub mod export;
pub mod init;
pub mod recipe;
pub mod run_dir;
pub mod schedule;
pub mod step;
pub mod train;
pub mod trained;

mod error;
mod estimate;
mod exit;
mod message;
mod ranks;
mod remedy;
mod report;
mod threads;

/// The version of what decides numbers: raised by a change after which the same recipe on the same rows comes to other weights, by more than
/// a device rounds differently. Runs of two versions are not compared as if they were of one.
pub const NUMBERS: u32 = 1;

pub use data::{filter, survey, synthesis};
pub use error::{Error, OR_FILTER};
pub use estimate::{forecast, overhead, plan, rehearsal, room};
pub use exit::Exit;
pub use message::Message;
pub use ranks::{communication, meeting, note, roll_call};
pub use report::journal::{EvalLine, Together, TrainLine};
pub use report::{account, centre, metrics, recovery, summary};
