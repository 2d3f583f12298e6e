//! Whole runs inside the test's process: trained, stopped, continued, with everything that they tell.

use std::sync::atomic::{AtomicBool, Ordering};

use kernels::cpu::Cpu;
use loader::Store;
use trainer::recipe::Recipe;
use trainer::summary::Summary;
use trainer::train::{Event, Member, Start, train, train_together};
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

impl Told {
    /// Hears a run, and sets `stop` when step `stop_at` is made.
    fn watch<'a>(&'a mut self, stop: &'a AtomicBool, stop_at: Option<u64>) -> Box<dyn FnMut(Event<'_>) + Send + 'a> {
        Box::new(move |event| match event {
            Event::Step { step, .. } if Some(step) == stop_at => stop.store(true, Ordering::Relaxed),
            Event::Line(line) => self.lines.push(line.clone()),
            Event::Evaluated(line) => self.evaluated.push(line.clone()),
            Event::Saved(folder) => self.saved.push(folder.to_owned()),
            _ => {}
        })
    }
}

/// Trains a recipe on the processor; asked to stop when step `stop_at` is made.
///
/// # Panics
/// When the system gives no threads.
pub fn trained(recipe: &Recipe, resume: bool, stop_at: Option<u64>) -> (Result<Summary, Error>, Told) {
    let (stop, mut told) = (AtomicBool::new(false), Told::default());
    let watch = told.watch(&stop, stop_at);
    let device = Cpu::new(Some(2)).expect("threads");
    let store = &Store::open(&recipe.run.dir).expect("a folder");
    let result = train(
        &device,
        recipe,
        Start { store, resume, commit: "", stop: &stop, host_ranks: 1, words: ToString::to_string, watch },
    );
    (result, told)
}

/// Trains recipes together on the processor, each resumed or not; all are asked to stop when one of them has made step `stop_at`.
///
/// # Panics
/// When the system gives no threads.
pub fn trained_together(recipes: &[(&Recipe, bool)], stop_at: Option<u64>) -> Vec<(Result<Summary, Error>, Told)> {
    trained_among(recipes, stop_at, 1)
}

/// The same on a machine whose memory so many ranks share.
///
/// # Panics
/// When the system gives no threads.
pub fn trained_among(
    recipes: &[(&Recipe, bool)],
    stop_at: Option<u64>,
    host_ranks: usize,
) -> Vec<(Result<Summary, Error>, Told)> {
    let stop = AtomicBool::new(false);
    let mut told: Vec<Told> = recipes.iter().map(|_| Told::default()).collect();
    let stores: Vec<Store> =
        recipes.iter().map(|(recipe, _)| Store::open(&recipe.run.dir).expect("a folder")).collect();
    let members = recipes.iter().zip(&mut told).zip(&stores).map(|((&(recipe, resume), told), store)| {
        let words = ToString::to_string;
        let start =
            Start { store, resume, commit: "", stop: &stop, host_ranks, words, watch: told.watch(&stop, stop_at) };
        Member { recipe, start }
    });
    let results = train_together(&Cpu::new(Some(2)).expect("threads"), members.collect());
    results.into_iter().zip(told).collect()
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
