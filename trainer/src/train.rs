//! The training loop.

mod close;
mod held_out;
mod save;
mod start;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kernels::{AdamUpdate, Clock, Device, Dictionary, Path, Report, Shape, Sums};
use loader::{Batch, Store, Stream};

use crate::data::{Data, row_dtype};
use crate::evaluate::Buffers;
use crate::journal::{Journal, Line};
use crate::metrics::{Metrics, dead_fraction};
use crate::recipe::Recipe;
use crate::recovery::Truth;
use crate::run_dir::{self, RunDir};
use crate::schedule::Schedule;
use crate::step::{StepInput, step};
use crate::summary::Summary;
use crate::{Error, checkpoint};

/// Rows that are not finite which a [`Report`] names at most: of more it says nothing.
const NAMED_ROWS: usize = 64;

/// What a run tells whoever watches it.
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
    /// A line of metrics was written.
    Line(&'a Line),
    /// A checkpoint was committed, in this folder.
    Saved(&'a str),
    /// Rows evaluated so far, of how many.
    Evaluating(u64, u64),
    /// The run was evaluated on held-out rows.
    Evaluated(&'a Metrics),
}

/// How a run is started.
pub struct Start<'a> {
    /// Go on from the newest checkpoint.
    pub resume: bool,
    /// Set from outside to make the run save and return [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
    /// Hears what happens.
    pub watch: Box<dyn FnMut(Event<'_>) + Send + 'a>,
}

/// Trains `recipe` on `device` to its end and writes everything into its folder.
///
/// # Errors
/// Every variant of [`Error`]; its text says what to do, and [`Error::exit_code`] what a launcher should do.
pub fn train<D: Device>(device: &D, recipe: &Recipe, start: Start<'_>) -> Result<Summary, Error> {
    recipe.validate()?;
    // Work outside the device's operations would else spread over all cores, whatever the recipe says.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(recipe.train.threads.unwrap_or(0)).build();
    let pool = pool.map_err(|error| kernels::Error::Threads { reason: error.to_string() })?;
    pool.install(|| claim_and_run(device, recipe, start))
}

fn claim_and_run<D: Device>(device: &D, recipe: &Recipe, start: Start<'_>) -> Result<Summary, Error> {
    let store = Store::open(&recipe.run.dir)?;
    run_dir::check(&store, recipe, start.resume)?;
    let data = Data::open(recipe, start.resume.then_some(&store))?;
    let run_dir = RunDir::claim(recipe, start.resume)?;
    let result = Run::start(device, recipe, &data, &run_dir, start).and_then(|mut run| run.finish());
    if let Err(error) = &result
        && !matches!(error, Error::Interrupted { .. })
        && run_dir.is_ours()
    {
        note_failure(&run_dir.store, error);
    }
    result
}

/// Leaves error-0.json for whoever finds the run: rank, cause, what the exit code was. That it cannot be written must
/// not hide the error itself.
fn note_failure(store: &Store, error: &Error) {
    let note = serde_json::json!({ "rank": 0, "exit_code": error.exit_code(), "error": error.to_string() });
    if let Err(second) = store.put("error-0.json", format!("{note:#}\n").into_bytes()) {
        tracing::warn!("error-0.json could not be written: {second}");
    }
}

struct Run<'a, D: Device> {
    device: &'a D,
    recipe: &'a Recipe,
    data: &'a Data,
    run_dir: &'a RunDir,
    start: Start<'a>,
    schedule: Schedule,
    stream: Stream,
    sae: D::Dictionary,
    /// Where weights settle to be looked at, in a mode that owes updates and when somebody will look.
    settled: Option<D::Dictionary>,
    /// The directions that the data were made of, when they are known and of the data's width.
    truth: Option<Truth>,
    buffers: Buffers<D>,
    state: checkpoint::State,
    journal: Journal,
    /// Position of the first row of the closing evaluation; `None` when `data.eval` serves.
    closing_from: Option<u64>,
    /// What retention and the choice of the best go by.
    known: checkpoint::Known,
    saved_at: Instant,
    /// The last checkpoint: step, held-out metrics, folder. The same state is not saved twice.
    saved: Option<(u64, Option<Metrics>, String)>,
    line_clock: LineClock,
}

/// Time since the last line of metrics.
struct LineClock {
    since: Instant,
    tokens: u64,
    stall: Duration,
}

impl LineClock {
    fn start(tokens: u64) -> Self {
        LineClock { since: Instant::now(), tokens, stall: Duration::ZERO }
    }
}

impl<D: Device> Run<'_, D> {
    /// Trains to the end, evaluates, and writes the summary.
    fn finish(&mut self) -> Result<Summary, Error> {
        if self.saved.is_some() {
            // The checkpoint that is resumed may have been made just before an evaluation that was stopped.
            self.evaluate_if_due()?;
            self.save_if_due()?;
        }
        while !self.is_done() {
            self.next_step()?;
            self.log_line()?;
            self.evaluate_if_due()?;
            if self.start.stop.load(Ordering::Relaxed) && !self.is_done() {
                let checkpoint = self.save()?;
                return Err(Error::Interrupted { step: self.state.step, checkpoint });
            }
            self.save_if_due()?;
        }
        self.close()
    }

    /// Reads a batch and makes a step with it.
    fn next_step(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let next = self.stream.next(self.buffers.staging.as_mut());
        if next.is_err() && self.state.step > 0 {
            // The weights are those after the last whole batch: nothing of it is lost to a shard that cannot be read.
            let saved = self.save();
            saved.map_or_else(|second| tracing::warn!("saving failed too: {second}"), |_| ());
        }
        let batch = next?.ok_or_else(|| {
            Error::Internal(format!("the data ended at step {} of {}", self.state.step, self.schedule.steps()))
        })?;
        if batch.rows > 0 {
            let dtype = row_dtype(self.data.train.dtype());
            let Buffers { staging, x, .. } = &mut self.buffers;
            self.device.normalize(staging, dtype, batch.rows, self.state.scale, x);
            let report = self.step_on(&batch)?;
            if !report.ok {
                return Err(self.refused(&batch, &report));
            }
            self.took(&batch, &report)?;
        }
        self.state.left_out.skipped += batch.skipped;
        self.state.left_out.filtered += batch.filtered;
        self.state.step += 1;
        self.state.held_out = None;
        self.state.wall_s += started.elapsed().as_secs_f64();
        self.state.stall_s += batch.stall.as_secs_f64();
        self.line_clock.stall += batch.stall;
        Ok(())
    }

    fn step_on(&mut self, batch: &Batch) -> Result<Report, Error> {
        let counted = self.open_closing(batch)?..batch.rows;
        let input = StepInput {
            path: self.path(),
            lambda: self.schedule.lambda(self.state.step),
            update: self.update(self.state.tokens + batch.rows as u64),
            counted,
        };
        let Buffers { x, tally, .. } = &mut self.buffers;
        Ok(step(&mut self.sae, x, tally, &input)?)
    }

    /// Moves the device's sums to the host, where lines of metrics and the closing evaluation are made of them.
    fn drain(&mut self) -> Result<(), Error> {
        let sums = self.device.take_sums(&mut self.buffers.tally)?;
        if self.state.closing_open {
            self.state.closing.add(&sums);
        }
        self.state.window.add(&sums);
        Ok(())
    }

    fn path(&self) -> Path {
        let (active, pairs) = self.state.density;
        if active as f64 > self.device.dense_above() * pairs as f64 { Path::Dense } else { Path::Sparse }
    }

    fn update(&self, tokens: u64) -> AdamUpdate {
        let (step, train) = (self.state.step, &self.recipe.train);
        AdamUpdate { step, lr: self.schedule.lr(), clip: train.clip as f32, tokens, seed: train.seed }
    }

    /// Books a step that was made.
    fn took(&mut self, batch: &Batch, report: &Report) -> Result<(), Error> {
        if self.journal.wants_rows() {
            let ids: Vec<String> =
                self.stream.row_ids(batch).into_iter().map(|id| self.data.train.row_name(id)).collect();
            self.journal.rows(self.state.step, &ids)?;
        }
        let rows = report.rows as f64;
        self.state.tokens += report.rows as u64;
        self.state.density = (report.active, (report.rows * self.recipe.sae.features) as u64);
        let loss = (report.squared_error + f64::from(self.schedule.lambda(self.state.step)) * report.l1) / rows;
        (self.start.watch)(Event::Step {
            step: self.state.step + 1,
            tokens: self.state.tokens,
            loss,
            l0: report.active as f64 / rows,
        });
        self.state.gradient_norm = report.gradient_norm;
        Ok(())
    }

    /// A NaN or infinity reached the step. The weights are those before it; they are saved, so that the run can go on
    /// once the rows are left out.
    fn refused(&mut self, batch: &Batch, report: &Report) -> Error {
        let step = self.state.step;
        let saved = match self.save() {
            Ok(folder) => format!("the weights before this step are in {folder}"),
            Err(error) => format!("saving the weights before this step failed: {error}"),
        };
        let ids = self.stream.row_ids(batch);
        let bad = report.non_finite_rows.iter().filter_map(|&row| ids.get(row)).map(|&id| self.data.train.row_name(id));
        // The list may only grow, so what is left out already stands in it too.
        let skip: Vec<String> =
            self.recipe.data.skip.iter().cloned().chain(bad).map(|entry| format!("\"{entry}\"")).collect();
        if report.non_finite_rows.is_empty() {
            return Error::Divergence(format!(
                "step {step}: the gradient is not finite although every row is, so the update was refused; {saved}. \
                 Lower train.lr, and look at metrics.jsonl for where the loss began to rise"
            ));
        }
        Error::Divergence(format!(
            "step {step}: {}{} of its rows hold NaN or infinite values, so the update was refused; {saved}. Leave the rows \
             out and go on: sae train … --resume --set 'data.skip=[{}]'; a new run with data.filter.finite = true leaves out \
             all such rows",
            if report.non_finite_rows.len() < NAMED_ROWS { "" } else { "at least " },
            report.non_finite_rows.len(),
            skip.join(", ")
        ))
    }

    /// Writes a line of metrics when one is due.
    fn log_line(&mut self) -> Result<(), Error> {
        if !is_due(self.recipe.log.every, self.state.step) && !self.is_done() {
            return Ok(());
        }
        self.drain()?;
        let step = self.state.step - 1;
        let lambda = f64::from(self.schedule.lambda(step));
        let Shape { width, features, .. } = self.sae.shape();
        let sums = std::mem::replace(&mut self.state.window, Sums::new(width, features));
        let clock = std::mem::replace(&mut self.line_clock, LineClock::start(self.state.tokens));
        let Some(metrics) = Metrics::of(&sums, lambda) else { return Ok(()) };
        let elapsed = clock.since.elapsed().as_secs_f64();
        let line = Line {
            step,
            tokens: self.state.tokens,
            metrics,
            dead_fraction: self.dead_fraction()?,
            lambda,
            lr: self.schedule.lr().at(step),
            gradient_norm: self.state.gradient_norm,
            tokens_per_s: (self.state.tokens - clock.tokens) as f64 / elapsed,
            stall_share: clock.stall.as_secs_f64() / elapsed,
        };
        self.journal.line(&line)?;
        (self.start.watch)(Event::Line(&line));
        Ok(())
    }

    fn dead_fraction(&self) -> Result<f64, Error> {
        let mut last_fired_f = vec![0; self.sae.shape().features];
        self.sae.read_clock(Clock::LastFired, 0..last_fired_f.len(), &mut last_fired_f)?;
        Ok(dead_fraction(&last_fired_f, self.state.tokens, self.recipe.train.dead_window))
    }

    fn is_done(&self) -> bool {
        self.state.step == self.schedule.steps()
    }
}

/// The update that would come after a checkpoint: what is owed before it can be settled with it.
pub(crate) fn next_update(manifest: &checkpoint::Manifest) -> AdamUpdate {
    let train = &manifest.recipe.train;
    let schedule = Schedule::new(manifest.steps, train.lr, train.l1, train.l1_warmup, train.lr_decay);
    let (step, tokens) = (manifest.step, manifest.tokens);
    AdamUpdate { step, lr: schedule.lr(), clip: train.clip as f32, tokens, seed: train.seed }
}

fn is_due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

#[cfg(test)]
mod tests {
    use kernels::cpu::Cpu;
    use loader::synth::{self, Spec};

    use super::*;

    #[test]
    fn all_work_is_done_on_the_threads_of_the_recipe() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().to_str().expect("a plain name");
        let spec = Spec { features: 16, width: 8, rows: 600, shards: 1, active: 2.0, ..Spec::default() };
        synth::write(&spec, &Store::open(place).expect("a folder"), 1, &mut |_| ()).expect("shards are written");
        let text = format!(
            "[data]\ntrain = '{place}'\n[sae]\nfeatures = 32\n[train]\nbatch = 100\nthreads = 3\n[run]\ndir = '{place}/run'\n"
        );
        let recipe: Recipe = toml::from_str(&text).expect("a recipe");
        let stop = AtomicBool::new(false);
        let mut steps = 0;
        let watch = Box::new(|event: Event<'_>| {
            assert_eq!(rayon::current_num_threads(), 3);
            steps += u64::from(matches!(event, Event::Step { .. }));
        });
        train(&Cpu::new(Some(1)).expect("threads"), &recipe, Start { resume: false, stop: &stop, watch })
            .expect("it trains");
        assert_eq!(steps, 6);
    }

    /// A run that is stopped inside an evaluation leaves at once, comes back to it, and is then the undisturbed run.
    #[test]
    fn an_evaluation_during_training_can_be_stopped() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().to_str().expect("a plain name");
        for (name, set) in [("train", 0), ("eval", 1)] {
            let spec = Spec { features: 16, width: 8, rows: 600, shards: 1, active: 2.0, set, ..Spec::default() };
            let store = Store::open(&format!("{place}/{name}")).expect("a folder");
            synth::write(&spec, &store, 1, &mut |_| ()).expect("shards are written");
        }
        let recipe = |run: &str| -> Recipe {
            let text = format!(
                "[data]\ntrain = '{place}/train'\neval = '{place}/eval'\n[sae]\nfeatures = 32\n[train]\nbatch = 100\n\
                 [eval]\nevery = 2\n[log]\nevery = 1\n[checkpoint]\nevery = 3\nkeep = 100\n[run]\ndir = '{place}/{run}'\n"
            );
            toml::from_str(&text).expect("a recipe")
        };
        let device = Cpu::new(Some(1)).expect("threads");
        let run = |name: &str, resume: bool, stops: bool| {
            let stop = AtomicBool::new(false);
            let mut lines = Vec::new();
            let watch = Box::new(|event: Event<'_>| match event {
                Event::Evaluating(..) if stops => stop.store(true, Ordering::Relaxed),
                Event::Evaluated(metrics) => lines.push(metrics.clone()),
                _ => {}
            });
            let result = train(&device, &recipe(name), Start { resume, stop: &stop, watch });
            (result.map(|summary| summary.metrics), lines)
        };
        let (whole, expected) = run("whole", false, false);
        let whole = whole.expect("it trains");
        let (stopped, none) = run("stopped", false, true);
        assert!(matches!(stopped, Err(Error::Interrupted { step: 2, .. })), "{stopped:?}");
        assert_eq!(none, []);
        let (resumed, evaluated) = run("stopped", true, false);
        assert_eq!(resumed.expect("it goes on"), whole);
        assert_eq!((evaluated.len(), evaluated), (3, expected), "at steps 2, 4 and 6");
    }
}
