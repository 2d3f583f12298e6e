//! Trains configurations that a worker has claimed, on one device.
//!
//! Those of a group read the same rows in the same batches.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use kernels::Device;
use kernels::mesh::Axes;
use loader::{Store, patience};
use trainer::note::{self, Note};
use trainer::recipe::Recipe;
use trainer::run_dir;
use trainer::summary::Summary;
use trainer::train::{Event, Start, train};
use trainer::{Error, Exit};

use super::claim::Progress;
use super::display::Shown;
use crate::args::COMMIT;
use crate::device::{self, DeviceChoice, Local, Opened};
use crate::failure::Failure;
use crate::remedy;

/// A configuration that this process has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// What distinguishes it from others.
    pub id: String,
    /// For people: what it has of its own.
    pub label: String,
    /// Its recipe.
    pub recipe: Recipe,
    /// Its run folder.
    pub store: Store,
    /// Makes its run save and end.
    pub stop: Arc<AtomicBool>,
    /// How far it is, for the claim to say.
    pub progress: Arc<Mutex<Progress>>,
}

impl Claimed {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a configuration came to.
#[derive(Debug)]
pub enum Outcome {
    /// It has its summary.
    Done(Box<Summary>),
    /// It was asked to stop, and has saved.
    Stopped,
    /// Somebody else uses its folder.
    Elsewhere,
    /// It ended with an error, of which its folder has a note.
    Failed {
        /// Why, for launchers.
        exit: Exit,
        /// Why, for people.
        words: String,
    },
}

/// Whether two configurations may train side by side on the same stream of rows.
pub fn share(one: &Recipe, other: &Recipe) -> bool {
    one.data == other.data && one.train.batch == other.train.batch
}

/// How many of the first of `pending`, which all share, fit on a device together.
pub fn fitting(pending: &[&Recipe]) -> usize {
    pending.len().min(TOGETHER)
}

/// Configurations that train at the same time on one device.
const TOGETHER: usize = 1;

/// Trains configurations of one group. `threads` is what each takes of the processor, where its recipe says nothing.
pub fn train_group(choice: DeviceChoice, slot: Local, threads: usize, members: &[Claimed]) -> Vec<Outcome> {
    let recipes: Vec<Recipe> = members.iter().map(|member| with_threads(&member.recipe, threads)).collect();
    let Some(first) = recipes.first() else { return Vec::new() };
    let work = || match device::open(choice, &first.train, Axes::alone(), slot) {
        Ok(Opened::Cpu(device)) => on(&device, members, &recipes, slot.ranks),
        Ok(Opened::Cuda(device)) => on(&device, members, &recipes, slot.ranks),
        Err(failure) => members.iter().map(|member| refused(member, &failure)).collect(),
    };
    // A bug in one run must not take the others with it.
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let internal = || Error::Internal("a thread of training has panicked, and said why above".into());
        members.iter().map(|member| failed(member, &internal())).collect()
    })
}

/// With its share of the processor where it asks for none.
fn with_threads(recipe: &Recipe, threads: usize) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.train.threads.get_or_insert(threads);
    recipe.data.threads.get_or_insert(threads.min(4));
    recipe
}

fn on<D: Device>(device: &D, members: &[Claimed], recipes: &[Recipe], host_ranks: usize) -> Vec<Outcome> {
    members.iter().zip(recipes).map(|(member, recipe)| one(device, member, recipe, host_ranks)).collect()
}

/// Trains one; as many slots as `host_ranks` share this machine's memory.
fn one<D: Device>(device: &D, member: &Claimed, recipe: &Recipe, host_ranks: usize) -> Outcome {
    let mut shown = Shown::new(member.label.clone(), Arc::clone(&member.progress));
    let watch: Box<dyn FnMut(Event<'_>) + Send> = Box::new(|event| {
        if let Event::Start { .. } = event {
            patience::set(patience::now().max(patience::IN_A_RUN));
        }
        shown.show(event);
    });
    let trained = run_dir::holds_a_run(&member.store).and_then(|resume| {
        let (store, words) = (&member.store, remedy::words as fn(&Error) -> String);
        let start = Start { store, resume, commit: COMMIT, stop: &member.stop, host_ranks, words, watch };
        train(device, recipe, start)
    });
    shown.end();
    match trained {
        Ok(summary) => Outcome::Done(Box::new(summary)),
        Err(Error::Interrupted { .. }) => Outcome::Stopped,
        Err(Error::InUse { .. } | Error::HoldsRun { .. }) => Outcome::Elsewhere,
        Err(error) => failed(member, &error),
    }
}

/// A run that failed. One that failed before it began has left no note.
fn failed(member: &Claimed, error: &Error) -> Outcome {
    let words = remedy::words(error);
    if !member.store.head(&note::name(0)).is_ok_and(|note| note.is_some()) {
        Note { error: words.clone(), ..Note::new(0, 0, "starting", error) }.leave(&member.store);
    }
    Outcome::Failed { exit: error.exit(), words }
}

/// A run whose device could not be opened.
fn refused(member: &Claimed, failure: &Failure) -> Outcome {
    let words = failure.message().to_owned();
    let exit = failure.exit().unwrap_or(Exit::Hardware);
    let mut note = Note::new(0, 0, "opening the device", &Error::Recipe(words.clone()));
    note.exit_code = exit.code();
    note.leave(&member.store);
    Outcome::Failed { exit, words }
}
