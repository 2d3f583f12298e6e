//! Trains configurations that a worker has claimed, on one device.
//!
//! Those of a group share a stream: rows are read, decoded and normalized once for all of them.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kernels::Device;
use kernels::mesh::Axes;
use loader::{Store, patience};
use trainer::note::{self, Note};
use trainer::recipe::Recipe;
use trainer::run_dir;
use trainer::train::{Event, Member, Start, train_together};
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
    Done,
    /// It was asked to stop, and has saved.
    Stopped,
    /// Somebody else uses its folder.
    Elsewhere,
    /// It has no place beside the others of its group, and was not begun.
    NotBegun,
    /// It ended with an error, of which its folder has a note.
    Failed {
        /// Why, for launchers.
        exit: Exit,
        /// Why, for people.
        words: String,
    },
}

/// Trains configurations that share a stream, as many of the first as fit into memory together, and tells what each comes to as soon as that is
/// known. `threads` are what they take of the processor, where their recipe says nothing.
pub fn train_group(choice: DeviceChoice, slot: Local, threads: usize, members: &[Claimed], tell: &Tell<'_>) {
    let recipes: Vec<Recipe> = members.iter().map(|member| with_threads(&member.recipe, threads)).collect();
    let Some(first) = recipes.first() else { return };
    let group = Group { members, told: members.iter().map(|_| AtomicBool::new(false)).collect(), tell };
    let work = || match device::open(choice, &first.train, Axes::alone(), slot) {
        Ok(Opened::Cpu(device)) => group.train(&device, &recipes, slot.ranks),
        Ok(Opened::Cuda(device)) => group.train(&device, &recipes, slot.ranks),
        Err(failure) => (0..members.len()).for_each(|at| group.tell(at, || refused(&members[at], &failure))),
    };
    // A bug in one group must not take the others with it.
    if let Err(panicked) = panic::catch_unwind(AssertUnwindSafe(work)) {
        let bug = bug(panicked.as_ref(), members.len());
        let (exit, words) = (bug.exit(), remedy::words_in_sweep(&bug));
        (0..members.len()).for_each(|at| group.tell(at, || unbegun(&members[at], exit, words.clone(), "training")));
    }
}

/// What ended a group of so many, by what a thread has panicked with.
fn bug(panicked: &(dyn Any + Send), members: usize) -> Error {
    let said =
        panicked.downcast_ref::<String>().map(String::as_str).or_else(|| panicked.downcast_ref::<&str>().copied());
    let together =
        if members > 1 { format!(", while {members} configurations trained together") } else { String::new() };
    Error::Internal(format!("a thread has panicked{together}: {}", said.unwrap_or("without a word")).into())
}

/// Hears what a configuration has come to.
pub type Tell<'a> = dyn Fn(&Claimed, Outcome) + Sync + 'a;

/// With its share of the processor where it asks for none.
fn with_threads(recipe: &Recipe, threads: usize) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.train.threads.get_or_insert(threads);
    recipe.data.threads.get_or_insert(threads.min(4));
    recipe
}

/// Configurations that train together.
struct Group<'a> {
    members: &'a [Claimed],
    /// Of which it was told what they have come to.
    told: Vec<AtomicBool>,
    tell: &'a Tell<'a>,
}

impl Group<'_> {
    /// Tells what came of the member at a place, unless it was told before.
    fn tell(&self, at: usize, outcome: impl FnOnce() -> Outcome) {
        if !self.told[at].swap(true, Ordering::Relaxed) {
            (self.tell)(&self.members[at], outcome());
        }
    }

    /// On a device; as many slots as `host_ranks` share this machine's memory.
    fn train<D: Device>(&self, device: &D, recipes: &[Recipe], host_ranks: usize) {
        let members = self.members;
        let mut shown: Vec<Shown> =
            members.iter().map(|member| Shown::new(member.label.clone(), Arc::clone(&member.progress))).collect();
        let mut resumes = Vec::new();
        for member in members {
            match run_dir::holds_a_run(&member.store) {
                Ok(resume) => resumes.push(resume),
                Err(error) => return (0..members.len()).for_each(|at| self.tell(at, || failed(&members[at], &error))),
            }
        }
        let runs = members.iter().zip(recipes).zip(&mut shown).zip(resumes).enumerate();
        let runs = runs.map(|(at, (((member, recipe), shown), resume))| {
            let watch: Box<dyn FnMut(Event<'_>) + Send> = Box::new(move |event| {
                match event {
                    Event::Start { .. } => patience::set(patience::now().max(patience::IN_A_RUN)),
                    // Others of the group may train for hours yet.
                    Event::Done => self.tell(at, || Outcome::Done),
                    Event::NotBegun => self.tell(at, || Outcome::NotBegun),
                    _ => {}
                }
                shown.show(event);
            });
            let (store, words) = (&member.store, remedy::words_in_sweep as fn(&Error) -> String);
            let start = Start { store, resume, commit: COMMIT, stop: &member.stop, host_ranks, words, watch };
            Member { recipe, start }
        });
        let trained = train_together(device, runs.collect());
        shown.iter().for_each(Shown::end);
        for (at, trained) in trained.into_iter().enumerate() {
            self.tell(at, || match trained {
                Ok(_) => Outcome::Done,
                Err(Error::NotBegun(_)) => Outcome::NotBegun,
                Err(Error::Interrupted { .. }) => Outcome::Stopped,
                Err(Error::InUse { .. } | Error::HoldsRun { .. }) => Outcome::Elsewhere,
                Err(error) => failed(&members[at], &error),
            });
        }
    }
}

/// A run that failed. One that failed before it began has left no note.
fn failed(member: &Claimed, error: &Error) -> Outcome {
    unbegun(member, error.exit(), remedy::words_in_sweep(error), "starting")
}

/// A run whose device could not be opened.
fn refused(member: &Claimed, failure: &Failure) -> Outcome {
    let exit = failure.exit().unwrap_or(Exit::Hardware);
    unbegun(member, exit, failure.message().to_owned(), "opening the device")
}

/// A run that failed, mostly before it began, or of a panic: then it has left no note, and gets one.
pub fn unbegun(member: &Claimed, exit: Exit, words: String, operation: &str) -> Outcome {
    if !member.store.head(&note::name(0)).is_ok_and(|note| note.is_some()) {
        let note = Note::new(0, member.progress().step, operation, &Error::Recipe(words.clone()));
        Note { exit_code: exit.code(), ..note }.leave(&member.store);
    }
    Outcome::Failed { exit, words }
}

#[cfg(test)]
mod tests {
    use loader::synth::{self, Spec};

    use super::*;

    /// One that panics is a bug of this program and no divergence: its folder, and those of the runs that it has ended, say what it panicked with.
    #[test]
    fn a_panic_fails_with_its_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().to_str().expect("a plain name");
        let spec = Spec { features: 16, width: 8, rows: 600, shards: 1, active: 2.0, ..Spec::default() };
        synth::write(&spec, &Store::open(place).expect("a folder"), 1, &mut |_| ()).expect("shards are written");
        let member = |id: &str, tokens: u64| {
            let dir = format!("{place}/{id}");
            let text = format!(
                "data = {{ train = '{place}', order_rows = 600 }}\nsae.features = 32\ntrain = {{ batch = 100, tokens = {tokens} }}\n\
                 run.dir = '{dir}'\n"
            );
            Claimed {
                id: id.to_owned(),
                label: id.to_owned(),
                recipe: toml::from_str(&text).expect("a recipe"),
                store: Store::open(&dir).expect("a folder"),
                stop: Arc::default(),
                progress: Arc::default(),
            }
        };
        let members = [member("short", 200), member("long", 600)];
        let told = Mutex::new(Vec::new());
        let tell = |member: &Claimed, outcome: Outcome| {
            assert!(!matches!(outcome, Outcome::Done), "{} was told of", member.id);
            told.lock().expect("no panic").push((member.id.clone(), outcome));
        };
        train_group(DeviceChoice::Cpu, Local::ALONE, 1, &members, &tell);
        let told = told.into_inner().expect("no panic");
        let [(id, Outcome::Failed { exit: Exit::Internal, words })] = &told[..] else { panic!("{told:?}") };
        assert!(
            id == "long" && words.contains("while 2 configurations trained together: short was told of"),
            "{words}"
        );
        let note = members[1].store.get(&note::name(0)).expect("a note");
        let note: Note = serde_json::from_slice(&note).expect("a note");
        assert_eq!((note.exit_code, &note.error, note.operation.as_str()), (101, words, "training"));
        assert_eq!(crate::sweep::folder::state_of(&note), crate::sweep::folder::State::Failed);
    }
}
