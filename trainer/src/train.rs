//! The training loop.

mod check;
mod clocks;
mod close;
mod closing;
mod company;
mod evaluation;
mod flight;
mod held_out;
mod line;
mod reader;
mod retire;
mod run;
mod save;
mod saver;
mod shared;
mod start;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::{AdamUpdate, Device, Path};

use crate::Error;
use crate::buffers::Seen;
use crate::recipe::Recipe;
use crate::report::account;
use crate::report::account::Account;
use crate::report::summary::Summary;
use crate::schedule::is_due;
use crate::step::{StepInput, step};
use crate::threads::on_threads;

pub use check::{Beginning, check, check_before_synthesis, warn_of_few_steps};
pub use company::{Member, share_a_stream};
pub use run::{Event, Start};

use reader::Batch;
use run::Run;

/// Trains `recipe` on `device` to its end and writes everything into its folder.
///
/// # Errors
/// Every variant of [`Error`]; its text says what to do, and [`Error::exit`] what a launcher should do.
pub fn train<D: Device>(device: &D, recipe: &Recipe, start: Start<'_>) -> Result<Summary, Error> {
    recipe.validate()?;
    let lost = || Err(Error::Internal("a run has ended without a word".into()));
    train_together(device, vec![Member { recipe, start }]).pop().unwrap_or_else(lost)
}

/// Trains several configurations on one stream, to the bits that each has alone; rows are read once. What came of each stands at its place:
/// one that fails stops no other, unless what failed is needed by all, or only one of several ranks has failed. All work is done on the threads of the device, or where it has none on as
/// many as `train.threads` of the first says.
///
/// Recipes have to [share a stream](share_a_stream). As many of the first are begun as fit into memory [together](crate::plan::how_many_fit); the
/// others, and those whose rows are scaled or filtered otherwise, end with [`Error::NotBegun`], of which [`Event::NotBegun`] tells at once.
pub fn train_together<D: Device>(device: &D, members: Vec<Member<'_>>) -> Vec<Result<Summary, Error>> {
    let threads = members.first().and_then(|member| member.recipe.train.threads);
    let count = members.len();
    on_threads(device, threads, || company::train(device, members)).unwrap_or_else(|error| {
        let error = Arc::new(error);
        (0..count).map(|_| Err(Error::OfAll(Arc::clone(&error)))).collect()
    })
}

impl<D: Device> Run<'_, D> {
    /// Before the first step: the checkpoint that is resumed may have been made just before an evaluation that was stopped.
    fn take_up(&mut self) -> Result<(), Error> {
        if self.saver.has_saved() {
            self.evaluate_if_due()?;
            self.save_if_due()?;
        }
        Ok(())
    }

    /// Makes the step with a batch, as far as the device runs ahead; `reading` is this run's share of the time that it took to read it.
    fn take(&mut self, batch: &Rc<Batch<D>>, reading: Duration) -> Result<(), Error> {
        let started = Instant::now();
        self.enqueue(batch)?;
        self.retire(if self.is_looked_at(self.enqueued()) { 0 } else { D::AHEAD })?;
        self.state.step_s += (started.elapsed() + reading).as_secs_f64();
        Ok(())
    }

    /// Between two steps: while some are in flight nothing waits for them, and the device goes on while the next batch is read.
    fn look(&mut self) -> Result<(), Error> {
        if self.flight.is_empty() {
            self.log_line()?;
            self.evaluate_if_due()?;
            self.save_if_due()?;
        }
        Ok(())
    }

    /// Ends the run with a checkpoint, because somebody was asked to stop.
    fn stop(&mut self) -> Result<(), Error> {
        self.catch_up()?;
        let checkpoint = self.save()?;
        Err(Error::Interrupted { step: self.state.step, checkpoint })
    }

    /// Enqueues a step with a batch. One without rows is passed by, when the steps before it are retired.
    fn enqueue(&mut self, batch: &Rc<Batch<D>>) -> Result<(), Error> {
        if batch.seen.call.rows() == 0 {
            self.catch_up()?;
            self.pass(&batch.seen);
            return Ok(());
        }
        let input = self.input(&batch.seen, batch.x())?;
        step(&mut self.sae, batch.x(), &mut self.tally, &input);
        self.flight.push(Rc::clone(batch), input);
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
    use std::sync::atomic::{AtomicBool, Ordering};

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
            &Cpu::new(recipe.train.threads).expect("threads"),
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
