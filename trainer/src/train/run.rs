//! A run while it trains: what it is started with, what it tells, and what it holds between two steps.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kernels::Device;
use loader::{Store, Stream};

use crate::buffers::{Buffers, Seen};
use crate::checkpoint::{self, Saving};
use crate::data::Data;
use crate::recipe::Recipe;
use crate::report::centre::Centre;
use crate::report::journal::{EvalLine, Journal, TrainLine};
use crate::report::metrics::Metrics;
use crate::report::recovery::Truth;
use crate::run_dir::RunDir;
use crate::schedule::Schedule;
use crate::step::StepInput;

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
}

/// How a run is started.
pub struct Start<'a> {
    /// Go on from the newest checkpoint.
    pub resume: bool,
    /// Commit of the program, which files of the run name.
    pub commit: &'a str,
    /// Set from outside to make the run save and return [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
    /// Ranks that share the memory of this one's host, itself included.
    pub host_ranks: usize,
    /// Hears what happens.
    pub watch: Box<dyn FnMut(Event<'_>) + Send + 'a>,
}

pub(super) struct Run<'a, D: Device> {
    pub(super) device: &'a D,
    pub(super) recipe: &'a Recipe,
    pub(super) data: &'a Data,
    /// The run's folder.
    pub(super) store: &'a Store,
    /// On the first rank.
    pub(super) scribe: Option<Scribe<'a>>,
    pub(super) start: Start<'a>,
    pub(super) schedule: Schedule,
    pub(super) stream: Stream,
    pub(super) sae: D::Training,
    /// Where weights settle to be looked at, in a mode that owes updates and when somebody will look.
    pub(super) settled: Option<D::Dictionary>,
    /// The directions that the data were made of, when they are known and of the data's width.
    pub(super) truth: Option<Truth>,
    /// For the batches to come: with those in flight one more than the device runs ahead.
    pub(super) free: Vec<Buffers<D>>,
    pub(super) tally: D::Tally,
    pub(super) in_flight: VecDeque<InFlight<D>>,
    /// After the last step that was retired.
    pub(super) state: checkpoint::State,
    /// The middle of the held-out rows that were measured last, and how many were asked for.
    pub(super) centre: Option<(u64, Centre)>,
    /// Position of the first row of the closing evaluation; `None` when `data.eval` serves.
    pub(super) closing_from: Option<u64>,
    /// When this start of the run began, and seconds by the clock of the starts before.
    pub(super) began: (Instant, f64),
    /// What retention and the choice of the best go by.
    pub(super) known: checkpoint::Known,
    /// When the last checkpoint was begun.
    pub(super) saved_at: Instant,
    /// Whether the ranks have agreed that a checkpoint is due by the clock.
    pub(super) save_called: bool,
    /// The last checkpoint: step, held-out metrics, folder. The same state is not saved twice.
    pub(super) saved: Option<(u64, Option<Metrics>, String)>,
    /// The last checkpoint, until it is committed.
    pub(super) on_the_way: Option<OnTheWay>,
    pub(super) line_clock: LineClock,
    /// What the first error came from.
    pub(super) failed_during: Option<&'static str>,
}

/// What one rank writes for all, besides checkpoints.
pub(super) struct Scribe<'a> {
    pub(super) run_dir: &'a RunDir,
    pub(super) journal: Journal,
}

/// What a rank knew at the last line of metrics.
pub(super) struct LineClock {
    pub(super) since: Instant,
    pub(super) step: u64,
    pub(super) step_s: f64,
    pub(super) tokens: u64,
    pub(super) stall: Duration,
    pub(super) sent: u64,
    pub(super) exchanging: Duration,
}

/// A step that was enqueued and is not retired.
pub(super) struct InFlight<D: Device> {
    pub(super) seen: Seen,
    pub(super) input: StepInput,
    /// The rows stay: the step may have to be made again.
    pub(super) buffers: Buffers<D>,
}

/// A checkpoint until it is committed.
pub(super) struct OnTheWay {
    pub(super) saving: Saving,
    /// How long training has waited for it.
    pub(super) waited: Duration,
}

/// Before the first step nothing is, also in a run that was stopped there and goes on.
pub(super) fn is_due(every: u64, step: u64) -> bool {
    every > 0 && step > 0 && step.is_multiple_of(every)
}
