//! A run while it trains: what it is started with, what it tells, and the parts of which it is made.

use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use kernels::Device;
use loader::{Positions, RowFilter, Store};

use super::clocks::Clocks;
use super::closing::Closing;
use super::evaluation::Evaluation;
use super::flight::Flight;
use super::saver::Saver;
use super::shared::Shared;
use crate::data::Data;
use crate::recipe::Recipe;
use crate::report::journal::{EvalLine, Journal, TrainLine};
use crate::run_dir::RunDir;
use crate::schedule::Schedule;
use crate::{Error, checkpoint};

/// What a run tells its observer.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The run is about to make step `step` of `steps`.
    Start {
        /// The next step.
        step: u64,
        /// All steps.
        steps: u64,
        /// Rows trained on.
        tokens: u64,
        /// Rows of the run.
        rows: u64,
        /// Folder of the checkpoint that it continues.
        from: Option<&'a str>,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Rows trained on.
        tokens: u64,
        /// Loss on its batch.
        loss: f64,
        /// L0 on its batch.
        l0: f64,
    },
    /// A metrics line was written.
    Line(&'a TrainLine),
    /// A checkpoint was committed, in this folder.
    Saved(&'a str),
    /// Rows evaluated so far, of how many.
    Evaluating(u64, u64),
    /// The run was evaluated on held-out rows.
    Evaluated(&'a EvalLine),
    /// It has come to its end, and left its summary; others that train with it go on.
    Done,
    /// It is not begun together with the others.
    NotBegun,
}

/// How a run is started.
pub struct Start<'a> {
    /// The run's folder.
    pub store: &'a Store,
    /// Go on from the newest checkpoint.
    pub resume: bool,
    /// Commit of the program, which files of the run name.
    pub commit: &'a str,
    /// Set from outside to make the run save and return [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
    /// Ranks that share the memory of this one's host, itself included.
    pub host_ranks: usize,
    /// How `error-RANK.json` says an error: the caller may know more that helps than its own text ([`ToString::to_string`]) does.
    pub words: fn(&Error) -> String,
    /// Hears what happens.
    pub watch: Box<dyn FnMut(Event<'_>) + Send + 'a>,
}

/// A run between two steps. Its parts own what they are made of; what several of them read stands here.
pub(super) struct Run<'a, D: Device> {
    pub(super) device: &'a D,
    pub(super) recipe: &'a Recipe,
    pub(super) data: &'a Data,
    pub(super) start: Start<'a>,
    pub(super) schedule: Schedule,
    pub(super) sae: D::Training,
    pub(super) tally: D::Tally,
    /// After the last step that was retired.
    pub(super) state: checkpoint::State,
    /// On the first rank.
    pub(super) scribe: Option<Scribe<'a>>,
    pub(super) shared: Rc<Shared<D>>,
    /// Which rows each batch has.
    pub(super) positions: Positions,
    pub(super) flight: Flight<D>,
    pub(super) saver: Saver,
    pub(super) evaluation: Evaluation<D>,
    pub(super) closing: Closing,
    pub(super) clocks: Clocks,
    /// What the first error came from.
    pub(super) failed_during: Option<&'static str>,
}

impl<D: Device> Run<'_, D> {
    /// The filter in norms.
    ///
    /// # Errors
    /// [`Error::Internal`] when a checkpoint lacks the median that it goes by.
    pub(super) fn filter(&self) -> Result<RowFilter, Error> {
        self.recipe.data.filter.resolve(self.state.norm_median)
    }
}

/// What one rank writes for all, besides checkpoints.
pub(super) struct Scribe<'a> {
    pub(super) run_dir: &'a RunDir,
    pub(super) journal: Journal,
}
