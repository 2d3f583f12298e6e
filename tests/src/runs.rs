//! Whole runs inside the test's process: trained, stopped, continued, with everything that they tell.

use std::sync::atomic::{AtomicBool, Ordering};

use kernels::cpu::Cpu;
use loader::Store;
use trainer::recipe::Recipe;
use trainer::summary::Summary;
use trainer::train::{Event, Start, train};
use trainer::{Error, EvalLine, TrainLine};

/// What a run has told.
#[derive(Debug, Default)]
pub struct Told {
    /// Lines of metrics.
    pub lines: Vec<TrainLine>,
    /// Evaluations, the one at the end too.
    pub evaluated: Vec<EvalLine>,
    /// Folders of checkpoints, as they were committed.
    pub saved: Vec<String>,
}

/// Trains a recipe on the processor; asked to stop when step `stop_at` is made.
///
/// # Panics
/// When the system gives no threads.
pub fn trained(recipe: &Recipe, resume: bool, stop_at: Option<u64>) -> (Result<Summary, Error>, Told) {
    let (stop, mut told) = (AtomicBool::new(false), Told::default());
    let watch = Box::new(|event: Event<'_>| match event {
        Event::Step { step, .. } if Some(step) == stop_at => stop.store(true, Ordering::Relaxed),
        Event::Line(line) => told.lines.push(line.clone()),
        Event::Evaluated(line) => told.evaluated.push(line.clone()),
        Event::Saved(folder) => told.saved.push(folder.to_owned()),
        _ => {}
    });
    let device = Cpu::new(Some(2)).expect("threads");
    let store = &Store::open(&recipe.run.dir).expect("a folder");
    let result = train(
        &device,
        recipe,
        Start { store, resume, commit: "", stop: &stop, host_ranks: 1, words: ToString::to_string, watch },
    );
    (result, told)
}

/// Trains a recipe to its end.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn finish(recipe: &Recipe) -> Summary {
    trained(recipe, false, None).0.unwrap_or_else(|error| panic!("{}: {error}", recipe.run.dir))
}

/// Trains a recipe to step `stop_at`, where it is asked to stop.
///
/// # Panics
/// When it goes on, or fails otherwise.
#[track_caller]
pub fn stop(recipe: &Recipe, resume: bool, stop_at: u64) -> Told {
    let (result, told) = trained(recipe, resume, Some(stop_at));
    assert!(
        matches!(&result, Err(Error::Interrupted { step, .. }) if *step == stop_at),
        "{:?}",
        result.map(|s| s.steps)
    );
    told
}
