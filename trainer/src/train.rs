//! The training loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kernels::{AdamUpdate, Clock, Device, Dictionary, Path, Report, Shape, Sums};
use loader::{Batch, Cursor, Store, Stream};

use crate::checkpoint::LeftOut;
use crate::data::{self, Data, row_dtype};
use crate::evaluate::{self, Buffers};
use crate::journal::{Journal, Line};
use crate::metrics::{DensityHistogram, Metrics, dead_fraction};
use crate::recipe::{BiasInit, Every, Recipe};
use crate::recovery::{Truth, recovery};
use crate::run_dir::RunDir;
use crate::schedule::Schedule;
use crate::step::{StepInput, step};
use crate::summary::{EvaluatedOn, Summary};
use crate::{Error, calibrate, checkpoint, init, plan};

/// Rows at the end of the training data on which a run without held-out data is measured.
const CLOSING_ROWS: u64 = 65_536;

/// The manifest of the training data as the run first saw it, with the checksums of what it has read since.
const MANIFEST: &str = "manifest-train.json";

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
    pub watch: Box<dyn FnMut(Event<'_>) + 'a>,
}

/// Trains `recipe` on `device` to its end and writes everything into its folder.
///
/// # Errors
/// Every variant of [`Error`]; its text says what to do, and [`Error::exit_code`] what a launcher should do.
pub fn train<D: Device>(device: &D, recipe: &Recipe, start: Start<'_>) -> Result<Summary, Error> {
    recipe.validate()?;
    let manifest =
        start.resume.then(|| Store::open(&recipe.run.dir).map(|store| store.url_of(MANIFEST))).transpose()?;
    let data = Data::open(recipe, manifest)?;
    let run_dir = RunDir::claim(recipe, start.resume)?;
    let result = Run::start(device, recipe, &data, &run_dir, start).and_then(|mut run| run.finish());
    if let Err(error) = &result
        && !matches!(error, Error::Interrupted { .. })
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
    /// Least held-out loss so far.
    best: f64,
    /// Norm of the last gradient.
    gradient_norm: f64,
    /// Whether the data has no manifest of its own, or had none when the run began.
    keeps_manifest: bool,
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

impl<'a, D: Device> Run<'a, D> {
    /// Takes memory and makes or loads the weights.
    fn start(
        device: &'a D,
        recipe: &'a Recipe,
        data: &'a Data,
        run_dir: &'a RunDir,
        mut start: Start<'a>,
    ) -> Result<Self, Error> {
        let (width, features) = (data.train.width(), recipe.sae.features);
        let schedule = data.schedule(recipe);
        let shape = plan::shape(recipe, data);
        let mut sae = device.dictionary(shape)?;
        let truth = Truth::beside(&recipe.data.train)?.filter(|truth| truth.width == width);
        let settled = plan::settled(shape, data, truth.as_ref()).map(|shape| device.dictionary(shape)).transpose()?;
        let value_bytes = data.eval.iter().chain([&data.train]).map(|set| set.dtype().size()).max().unwrap_or(4);
        let mut buffers = Buffers::new(device, shape.batch, width, value_bytes, features)?;
        let found = if start.resume { checkpoint::newest(&run_dir.store)? } else { None };
        let (state, cursor) = match &found {
            Some(found) => {
                // config.toml is the recipe of the first start; rows skipped since then stand in the checkpoint.
                recipe.check_resumes(&found.manifest.recipe)?;
                checkpoint::load_weights(&run_dir.store, found, &mut sae, true)?;
                (checkpoint::load_state(&run_dir.store, found)?, found.manifest.cursor.clone())
            }
            None => {
                if start.resume {
                    tracing::warn!("the run has no committed checkpoint: it starts again at step 0");
                }
                (first_state(recipe, data, &mut sae)?, Cursor::default())
            }
        };
        device.put_sums(&mut buffers.tally, &state.tally);
        let stream = data.train_stream(recipe, cursor)?;
        if let Some(eval) = &data.eval {
            // What the evaluation at the end would be refused for is better known now.
            drop(data::eval_stream(eval, recipe, Some(1))?);
        }
        run_dir.begin(recipe)?;
        let journal = Journal::open(run_dir.local(), state.step, recipe.log.rows)?;
        let closing_from = data.eval.is_none().then(|| data.rows.saturating_sub(CLOSING_ROWS));
        let saved =
            found.as_ref().map(|found| (found.manifest.step, found.manifest.held_out.clone(), found.folder.clone()));
        let from = found.as_ref().map(|found| found.folder.as_str());
        let (step, steps, rows) = (state.step, schedule.steps(), data.rows);
        tracing::info!(step, steps, rows, from, device = device.describe(), "training");
        (start.watch)(Event::Start { step, steps, tokens: state.tokens, rows, from });
        Ok(Run {
            device,
            recipe,
            data,
            run_dir,
            schedule,
            stream,
            sae,
            settled,
            truth,
            buffers,
            journal,
            closing_from,
            best: checkpoint::best_loss(&run_dir.store)?.unwrap_or(f64::INFINITY),
            gradient_norm: 0.0,
            keeps_manifest: !data.train.has_manifest() || run_dir.store.head(MANIFEST)?.is_some(),
            saved_at: Instant::now(),
            saved,
            line_clock: LineClock::start(state.tokens),
            state,
            start,
        })
    }

    /// Trains to the end, evaluates, and writes the summary.
    fn finish(&mut self) -> Result<Summary, Error> {
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
            let report = self.step_on(&batch);
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

    fn step_on(&mut self, batch: &Batch) -> Report {
        let counted = self.open_closing(batch)..batch.rows;
        let input = StepInput {
            path: self.path(),
            lambda: self.schedule.lambda(self.state.step),
            update: self.update(self.state.tokens + batch.rows as u64),
            counted,
        };
        let Buffers { x, tally, .. } = &mut self.buffers;
        step(&mut self.sae, x, tally, input)
    }

    /// When the closing evaluation begins in this batch, the rows before it are measured by themselves and the tally is
    /// emptied, so that it then holds closing rows only. Returns the index of the first row not yet counted.
    fn open_closing(&mut self, batch: &Batch) -> usize {
        let Some(from) = self.closing_from.filter(|_| !self.state.closing_open) else { return 0 };
        if from >= (batch.step + 1) * self.recipe.train.batch as u64 {
            return 0;
        }
        let before = self.stream.rows_before(batch, from);
        if before > 0 {
            let (path, lambda) = (self.path(), self.schedule.lambda(self.state.step));
            let Buffers { x, tally, .. } = &mut self.buffers;
            self.sae.encode(x, path);
            self.sae.decode(x);
            self.sae.residual(x);
            self.sae.backward(x, lambda);
            self.sae.count(x, tally, 0..before);
            if !self.sae.report().ok {
                // The step will be refused too, and the batch come again: nothing has begun.
                return before;
            }
        }
        self.drain();
        self.state.closing_open = true;
        before
    }

    /// Moves the device's sums to the host, where lines of metrics and the closing evaluation are made of them.
    fn drain(&mut self) {
        let sums = self.device.take_sums(&mut self.buffers.tally);
        if self.state.closing_open {
            self.state.closing.add(&sums);
        }
        self.state.window.add(&sums);
    }

    fn path(&self) -> Path {
        let (active, pairs) = self.state.density;
        if active as f64 > self.device.dense_above() * pairs as f64 { Path::Dense } else { Path::Sparse }
    }

    fn update(&self, tokens: u64) -> AdamUpdate {
        let step = self.state.step;
        AdamUpdate { step, lr: self.schedule.lr(), clip: self.recipe.train.clip as f32, tokens }
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
        self.gradient_norm = report.gradient_norm;
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
            "step {step}: {} of its rows hold NaN or infinite values, so the update was refused; {saved}. Leave the rows \
             out and go on: sae train … --resume --set 'data.skip=[{}]'; a new run with data.filter.finite = true leaves out \
             all such rows",
            report.non_finite_rows.len(),
            skip.join(", ")
        ))
    }

    /// Writes a line of metrics when one is due.
    fn log_line(&mut self) -> Result<(), Error> {
        if !is_due(self.recipe.log.every, self.state.step) && !self.is_done() {
            return Ok(());
        }
        self.drain();
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
            dead_fraction: self.dead_fraction(),
            lambda,
            lr: self.schedule.lr().at(step),
            gradient_norm: self.gradient_norm,
            tokens_per_s: (self.state.tokens - clock.tokens) as f64 / elapsed,
            stall_share: clock.stall.as_secs_f64() / elapsed,
        };
        self.journal.line(&line)?;
        (self.start.watch)(Event::Line(&line));
        Ok(())
    }

    fn dead_fraction(&self) -> f64 {
        let mut last_fired_f = vec![0; self.sae.shape().features];
        self.sae.read_clock(Clock::LastFired, 0..last_fired_f.len(), &mut last_fired_f);
        dead_fraction(&last_fired_f, self.state.tokens, self.recipe.train.dead_window)
    }

    /// Brings the dictionary that is looked at up to date, where it is another than the one that trains.
    fn settle(&mut self) {
        let next = self.update(self.state.tokens);
        if let Some(settled) = &mut self.settled {
            self.sae.settle_into(&next, settled);
        }
    }

    /// Measures the held-out rows, at most `limit` of them, and saves the weights when none were better.
    fn evaluate(&mut self, limit: Option<u64>) -> Result<Option<(Metrics, DensityHistogram)>, Error> {
        let Some(dataset) = &self.data.eval else { return Ok(None) };
        let rows = limit.unwrap_or(u64::MAX).min(dataset.rows());
        let mut stream = data::eval_stream(dataset, self.recipe, Some(rows))?;
        self.settle();
        // The tally of training is put aside: it goes on afterwards to the same bits.
        let training = self.device.take_sums(&mut self.buffers.tally);
        let sums = evaluate::sums(
            self.device,
            self.settled.as_mut().unwrap_or(&mut self.sae),
            &mut self.buffers,
            dataset,
            &mut stream,
            self.state.scale,
            |done| (self.start.watch)(Event::Evaluating(done, rows)),
        );
        self.device.put_sums(&mut self.buffers.tally, &training);
        let sums = sums?;
        let Some(metrics) = Metrics::of(&sums, self.schedule.final_lambda()) else { return Ok(None) };
        let density = DensityHistogram::of(&sums);
        self.journal.held_out(self.state.step, &metrics, &density)?;
        (self.start.watch)(Event::Evaluated(&metrics));
        self.state.held_out = Some(metrics.clone());
        Ok(Some((metrics, density)))
    }

    /// Evaluates during training; the best weights so far are saved.
    fn evaluate_if_due(&mut self) -> Result<(), Error> {
        if !is_due(self.recipe.eval.every, self.state.step) || self.is_done() {
            return Ok(());
        }
        if let Some((metrics, _)) = self.evaluate(Some(self.recipe.eval.rows))?
            && metrics.loss < self.best
        {
            self.best = metrics.loss;
            self.save()?;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.state.step == self.schedule.steps()
    }

    fn save_if_due(&mut self) -> Result<(), Error> {
        let due = match self.recipe.checkpoint.every {
            Every::Steps(steps) => is_due(steps, self.state.step),
            Every::Minutes(minutes) => self.saved_at.elapsed().as_secs_f64() >= 60.0 * minutes,
        };
        if due && !self.is_done() {
            self.save()?;
        }
        Ok(())
    }

    /// Commits a checkpoint of this moment and removes those that are no longer kept. Returns its folder.
    fn save(&mut self) -> Result<String, Error> {
        if let Some((step, held_out, folder)) = &self.saved
            && (*step, held_out) == (self.state.step, &self.state.held_out)
        {
            return Ok(folder.clone());
        }
        let started = Instant::now();
        self.journal.flush()?;
        self.run_dir.publish()?;
        self.keep_manifest()?;
        self.state.tally = self.device.take_sums(&mut self.buffers.tally);
        self.device.put_sums(&mut self.buffers.tally, &self.state.tally);
        // After a refused step the stream is one batch ahead of the weights.
        let cursor = Cursor { step: self.state.step, ..self.stream.cursor() };
        let folder = checkpoint::save(&self.run_dir.store, &self.sae, &self.state, &cursor, self.recipe)?;
        checkpoint::retain(&self.run_dir.store, self.recipe.checkpoint.keep, &folder)?;
        self.saved_at = Instant::now();
        self.saved = Some((self.state.step, self.state.held_out.clone(), folder.clone()));
        tracing::info!(folder, seconds = started.elapsed().as_secs_f64(), "checkpoint committed");
        (self.start.watch)(Event::Saved(&folder));
        Ok(folder)
    }

    /// Data without a manifest of its own has the run's: checksums of what was read so far fill in.
    fn keep_manifest(&self) -> Result<(), Error> {
        if !self.keeps_manifest {
            return Ok(());
        }
        let json =
            serde_json::to_vec(&self.data.train.manifest()).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(self.run_dir.store.put(MANIFEST, json)?)
    }

    /// The end of a run: held-out or closing metrics, last checkpoint, summary.
    fn close(&mut self) -> Result<Summary, Error> {
        if self.state.tokens == 0 {
            let LeftOut { skipped, filtered } = self.state.left_out;
            return Err(Error::Data(format!(
                "no row was trained on: data.skip left out {skipped} and data.filter {filtered} of {}",
                self.data.rows
            )));
        }
        // Whatever comes of the evaluation, the training is done and kept.
        self.save()?;
        let held_out = self.evaluate(None)?;
        let (metrics, density, evaluated_on) = match held_out {
            Some((metrics, density)) => (Some(metrics), density, EvaluatedOn::Eval),
            None => {
                let closing = &self.state.closing;
                let metrics = Metrics::of(closing, self.schedule.final_lambda());
                (metrics, DensityHistogram::of(closing), EvaluatedOn::LastTrainingRows)
            }
        };
        let checkpoint = self.save()?;
        self.settle();
        let seen = self.state.tokens as f64 / self.data.train.rows() as f64;
        let recovery =
            self.truth.as_ref().and_then(|truth| recovery(truth, seen, self.settled.as_ref().unwrap_or(&self.sae)));
        let summary = Summary {
            metrics,
            evaluated_on,
            dead_fraction: self.dead_fraction(),
            dead_window: self.recipe.train.dead_window.min(self.state.tokens),
            density,
            tokens: self.state.tokens,
            skipped: self.state.left_out.skipped,
            filtered: self.state.left_out.filtered,
            steps: self.state.step,
            tokens_per_s: self.state.tokens as f64 / self.state.wall_s,
            wall_s: self.state.wall_s,
            stall_s: self.state.stall_s,
            recovered: recovery.map(|recovery| recovery.recovered),
            mmcs: recovery.map(|recovery| recovery.mmcs),
            scale: self.state.scale,
            checkpoint,
        };
        self.journal.flush()?;
        self.run_dir.publish()?;
        self.run_dir.store.put("summary.json", summary.to_json()?)?;
        Ok(summary)
    }
}

/// The state before the first step: weights made or read, scale found.
fn first_state(recipe: &Recipe, data: &Data, sae: &mut impl Dictionary) -> Result<checkpoint::State, Error> {
    let (width, features) = (data.train.width(), recipe.sae.features);
    let scale = data.scale(recipe)?;
    // Without biases about half of the features fire, and what a file brings is not known: both start dense.
    let mut density = (1, 1);
    match &recipe.train.init_from {
        Some(url) => init::from_file(sae, &data::read_file(url)?, url)?,
        None => init::random(sae, 0..features, recipe.train.seed, recipe.sae.decoder_norm),
    }
    if recipe.sae.bias_init == BiasInit::Calibrated {
        calibrate::calibrate(sae, data, scale, recipe)?;
        density = (recipe.sae.bias_init_l0.round() as u64, features as u64);
    }
    let sums = Sums::new(width, features);
    Ok(checkpoint::State {
        step: 0,
        steps: data.schedule(recipe).steps(),
        tokens: 0,
        left_out: LeftOut::default(),
        scale,
        density,
        tally: sums.clone(),
        window: sums.clone(),
        closing: sums,
        closing_open: false,
        held_out: None,
        wall_s: 0.0,
        stall_s: 0.0,
    })
}

/// The update that would come after a checkpoint: what is owed before it can be settled with it.
pub(crate) fn next_update(manifest: &checkpoint::Manifest) -> AdamUpdate {
    let train = &manifest.recipe.train;
    let schedule = Schedule::new(manifest.steps, train.lr, train.l1, train.l1_warmup, train.lr_decay);
    AdamUpdate { step: manifest.step, lr: schedule.lr(), clip: train.clip as f32, tokens: manifest.tokens }
}

fn is_due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
