//! The training loop.

mod check;
mod clocks;
mod close;
mod closing;
mod evaluation;
mod flight;
mod held_out;
mod line;
mod retire;
mod run;
mod save;
mod saver;
mod start;

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kernels::{AdamUpdate, Device, Path};

use crate::Error;
use crate::buffers::{Buffers, Seen};
use crate::data::{Data, row_dtype};
use crate::estimate::plan::{self, DataSize};
use crate::ranks::note::Note;
use crate::ranks::roll_call::Answer;
use crate::ranks::together::{once_all, together};
use crate::recipe::Recipe;
use crate::report::account;
use crate::report::account::Account;
use crate::report::summary::Summary;
use crate::run_dir::{self, RunDir};
use crate::schedule::is_due;
use crate::step::{StepInput, step};

pub use check::{Beginning, check, check_before_synthesis, warn_of_few_steps};
pub use run::{Event, Start};

use flight::Batch;
use run::Run;

/// Trains `recipe` on `device` to its end and writes everything into its folder.
///
/// # Errors
/// Every variant of [`Error`]; its text says what to do, and [`Error::exit`] what a launcher should do.
pub fn train<D: Device>(device: &D, recipe: &Recipe, start: Start<'_>) -> Result<Summary, Error> {
    recipe.validate()?;
    // Work outside the device's operations would else spread over all cores, whatever the recipe says.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(recipe.train.threads.unwrap_or(0)).build();
    let pool = pool.map_err(|error| kernels::Error::threads(io::Error::other(error)))?;
    pool.install(|| claim_and_run(device, recipe, start))
}

fn claim_and_run<D: Device>(device: &D, recipe: &Recipe, start: Start<'_>) -> Result<Summary, Error> {
    let began = Instant::now();
    let ranks = &device.axes().all;
    let Start { store, words, .. } = start;
    let mut on_its_way = None;
    let result = claim(device, recipe, &start).and_then(|(data, run_dir)| {
        let (mut step, mut operation) = (0, "starting");
        let result = Run::start(device, recipe, &data, run_dir.as_ref(), start, began).and_then(|mut run| {
            let result = run.finish();
            on_its_way = run.saver.take_on_its_way();
            (step, operation) = (run.state.step, run.failed_during.unwrap_or("training"));
            result
        });
        if let Err(error) = &result
            && !matches!(error, Error::Interrupted { .. })
            && run_dir.as_ref().is_none_or(RunDir::is_ours)
        {
            Note { error: words(error), ..Note::new(ranks.index(), step, operation, error) }.leave(store);
        }
        result
    });
    if let Err(error) = &result
        && !matches!(error, Error::Interrupted { .. })
    {
        // The others wait for this rank: they hear why it is gone. All stop together when one was asked to.
        ranks.abort(error.failure(ranks.index()));
    }
    if let Some(Err(error)) = on_its_way.map(|saving| saving.keep(device.axes())) {
        tracing::warn!("saving failed too: {error}");
    }
    result
}

/// The run's data, and for the first rank the claim on its folder: made last, so that a start that fails leaves it free.
fn claim(device: &impl Device, recipe: &Recipe, start: &Start<'_>) -> Result<(Data, Option<RunDir>), Error> {
    let ranks = &device.axes().all;
    let first = ranks.index() == 0;
    let Start { store, resume, host_ranks, .. } = *start;
    let free = if first { run_dir::check(store, recipe, resume) } else { Ok(()) };
    together(ranks, "looking at the run's folder", free)?;
    let data = Data::open_by_all(recipe, resume.then_some(store), ranks)?;
    // All look before any takes memory, which ranks of one machine share.
    let fits = DataSize::of(recipe, &data)
        .and_then(|rows| plan::check_fits(device, recipe, &rows, device.axes().place, host_ranks));
    together(ranks, "looking at memory", fits)?;
    let claimed = first.then(|| RunDir::claim(store, recipe, resume)).transpose();
    let run_dir = once_all(ranks, "claiming the run's folder", claimed)?;
    Ok((data, run_dir))
}

impl<D: Device> Run<'_, D> {
    /// Trains to the end, evaluates, and writes the summary.
    fn finish(&mut self) -> Result<Summary, Error> {
        if self.saver.has_saved() {
            // The checkpoint that is resumed may have been made just before an evaluation that was stopped.
            self.evaluate_if_due()?;
            self.save_if_due()?;
        }
        while !self.is_done() {
            let started = Instant::now();
            let batch = self.read()?;
            self.enqueue(batch)?;
            self.retire(if self.is_looked_at(self.enqueued()) { 0 } else { D::AHEAD })?;
            self.state.step_s += started.elapsed().as_secs_f64();
            // While steps are in flight nothing waits for them: the device goes on while the next batch is read.
            if self.flight.is_empty() {
                self.log_line()?;
                self.evaluate_if_due()?;
                self.save_if_due()?;
            }
        }
        self.close()
    }

    /// Reads a batch. A rank that was asked to stop ends the run here, for all, with a checkpoint.
    fn read(&mut self) -> Result<Batch<D>, Error> {
        let answer = Answer {
            stop: self.start.stop.load(Ordering::Relaxed),
            save: self.saver.is_due_by_clock(),
            saved: self.saver.has_done_its_part(),
            ..Answer::default()
        };
        let read = self.during("reading a batch", |run| run.flight.read(run.device, answer));
        if let Err(error) = &read {
            self.catch_up()?;
            self.save_what_is_done(error);
        }
        let batch = read?.ok_or_else(|| {
            Error::Internal(format!("the data ended at step {} of {}", self.enqueued(), self.schedule.steps()).into())
        })?;
        let call = &batch.seen.call;
        if call.saved {
            self.go_on_saving()?;
        }
        if call.stop {
            if self.scribe.is_some() {
                tracing::info!("asked to stop: saving");
            }
            self.catch_up()?;
            let checkpoint = self.save()?;
            return Err(Error::Interrupted { step: self.state.step, checkpoint });
        }
        if call.save {
            self.saver.call();
        }
        Ok(batch)
    }

    /// Enqueues a step with a batch. One without rows is passed by, when the steps before it are retired.
    fn enqueue(&mut self, mut batch: Batch<D>) -> Result<(), Error> {
        let Batch { seen, buffers: Buffers { staging, x, .. } } = &mut batch;
        if seen.call.rows() == 0 {
            self.catch_up()?;
            self.pass(seen);
            self.flight.give_back(batch.buffers);
            return Ok(());
        }
        let (dtype, scale) = (row_dtype(self.data.train.dtype()), self.state.scale);
        self.device.normalize(staging, dtype, seen.call.rows_here(), seen.call.rows(), scale, x);
        let input = self.input(seen, x)?;
        step(&mut self.sae, x, &mut self.tally, &input);
        self.flight.push(batch, input);
        Ok(())
    }

    fn input(&mut self, seen: &Seen, x: &D::Rows) -> Result<StepInput, Error> {
        let counted = self.open_closing(seen, x)?..seen.call.rows_here();
        Ok(StepInput {
            path: self.path(),
            lambda: self.schedule.lambda(seen.own.step),
            update: self.update(seen.own.step, self.state.tokens + (self.flight.rows() + seen.call.rows()) as u64),
            counted,
        })
    }

    /// Moves the device's sums to the host, where metrics lines and the closing evaluation are made of them.
    fn drain(&mut self) -> Result<(), Error> {
        let sums = self.device.take_sums(&mut self.tally)?;
        if self.state.closing_open {
            self.state.closing.add(&sums);
        }
        self.state.window.add(&sums);
        Ok(())
    }

    /// Chosen by the density of the batch that is [`Device::AHEAD`] before the last: that of the last may not be known yet, and
    /// a run that was resumed has to choose as one that was not.
    fn path(&self) -> Path {
        const { assert!(D::AHEAD < 2, "a checkpoint keeps the densities of two batches") };
        let (active, pairs) = self.state.density[D::AHEAD - self.flight.len()];
        if active as f64 > self.device.dense_above() * pairs as f64 { Path::Dense } else { Path::Sparse }
    }

    fn update(&self, step: u64, tokens: u64) -> AdamUpdate {
        let train = &self.recipe.train;
        AdamUpdate { step, lr: self.schedule.lr(), clip: train.clip as f32, tokens, seed: train.seed }
    }

    /// Steps made or in flight.
    fn enqueued(&self) -> u64 {
        self.state.step + self.flight.len() as u64
    }

    /// Whether the run is looked at, or ends, when `step` steps are made.
    fn is_looked_at(&self, step: u64) -> bool {
        step == self.schedule.steps()
            || is_due(self.recipe.log.every, step)
            || self.evaluation_is_due(step)
            || self.saver.is_due(step)
    }

    /// Does a part of the run's work; the first that fails is remembered.
    fn during<T>(
        &mut self,
        operation: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let result = work(self);
        if result.is_err() {
            self.failed_during.get_or_insert(operation);
        }
        result
    }

    /// What the run has taken so far.
    fn account(&self, lambda: f64, lr: f64) -> Account {
        let (width, features) = (self.data.train.width(), self.recipe.sae.features);
        let flops = |active| account::flops(width, features, self.state.tokens, active);
        Account {
            width,
            features,
            batch: self.recipe.train.batch,
            seed: self.recipe.train.seed,
            lambda,
            lr,
            step_s: self.state.step_s,
            wall_s: self.clocks.wall_s(),
            flops: self.state.active.map(flops),
            commit: self.start.commit.to_owned(),
        }
    }

    fn is_done(&self) -> bool {
        self.state.step == self.schedule.steps()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use kernels::cpu::Cpu;
    use loader::Store;
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
        train(
            &Cpu::new(Some(1)).expect("threads"),
            &recipe,
            Start {
                store: &Store::open(&recipe.run.dir).expect("a folder"),
                resume: false,
                commit: "unknown",
                stop: &stop,
                host_ranks: 1,
                words: ToString::to_string,
                watch,
            },
        )
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
                Event::Evaluated(line) => lines.push(line.metrics.clone()),
                _ => {}
            });
            let recipe = recipe(name);
            let store = &Store::open(&recipe.run.dir).expect("a folder");
            let result = train(
                &device,
                &recipe,
                Start {
                    store,
                    resume,
                    commit: "unknown",
                    stop: &stop,
                    host_ranks: 1,
                    words: ToString::to_string,
                    watch,
                },
            );
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
