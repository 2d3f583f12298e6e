//! Killing a run at random moments and resuming it, until it ends or was killed often enough.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use loader::Store;
use serde_json::Value;
use trainer::checkpoint;
use trainer::recipe::{Every, Recipe};

use crate::fixture::{Fixture, Numbers, json_lines, text};
use crate::{checkpoints, sae};

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Processes that SIGKILL ended.
    pub kills: u32,
    /// Of these, how many left a checkpoint to go on from.
    pub with_checkpoint: u32,
    /// Runs that came to their end and were the same as the undisturbed one.
    pub finished: u32,
}

/// A run of 482 steps that saves at every 20th.
pub fn recipe(fixture: &Fixture, run: &str) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.train.batch = 32;
    recipe.checkpoint.every = Every::Steps(20);
    recipe.log.rows = true;
    recipe
}

/// Kills runs `kills` times at moments drawn from `seed`. Between kills the newest checkpoint must load; at the end of a
/// run weights, moments, sums, order of rows and metrics must be those of an undisturbed run.
///
/// # Panics
/// When they are not.
pub fn soak(fixture: &Fixture, kills: u32, seed: u64, progress: &mut dyn FnMut(&Tally)) -> Tally {
    let undisturbed = fixture.path("undisturbed");
    let path = fixture.save("undisturbed", &recipe(fixture, "undisturbed"));
    // Built before the clock starts: kills must fall inside a run.
    sae::binary();
    let started = Instant::now();
    sae::run(&["train", &path]).exits(0);
    let wall = started.elapsed();
    let mut numbers = Numbers::new(seed);
    let mut tally = Tally::default();
    while tally.kills < kills || tally.finished == 0 {
        let name = format!("killed-{}", tally.finished);
        let path = fixture.save(&name, &recipe(fixture, &name));
        let run = fixture.path(&name);
        let mut newest_step = 0;
        loop {
            let enough = tally.kills >= kills;
            let delay = wall.mul_f64(f64::from(numbers.unit().abs()));
            if !start(&path, &run, (!enough).then_some(delay)) {
                break;
            }
            tally.kills += 1;
            newest_step = newest_is_whole(&run, newest_step, &mut tally);
            progress(&tally);
        }
        assert_same_run(&undisturbed, &run);
        std::fs::remove_dir_all(&run).expect("the run is removed");
        tally.finished += 1;
        progress(&tally);
    }
    tally
}

/// Starts or resumes a run and kills it after a delay. False when it came to its end before.
fn start(recipe: &str, run: &Path, kill_after: Option<Duration>) -> bool {
    let mut arguments = vec!["train", recipe];
    if run.join("config.toml").exists() {
        arguments.push("--resume");
    }
    let errors = tempfile::tempfile().expect("a temporary file");
    let mut command: Command = sae::sae(&arguments);
    command.stdout(Stdio::null()).stderr(errors.try_clone().expect("a handle"));
    let mut child = command.spawn().expect("sae starts");
    if let Some(delay) = kill_after {
        std::thread::sleep(delay);
        // To a process that has ended this does nothing.
        let _ = child.kill();
    }
    let status = child.wait().expect("a child can be waited for");
    if status.code().is_none() {
        return true;
    }
    if !status.success() {
        use std::io::{Read, Seek};
        let (mut errors, mut said) = (errors, String::new());
        errors.rewind().and_then(|()| errors.read_to_string(&mut said)).expect("standard error is read");
        panic!("{status}: {said}");
    }
    false
}

/// The newest committed checkpoint loads whole, and is no older than it was. Returns its step.
fn newest_is_whole(run: &Path, before: u64, tally: &mut Tally) -> u64 {
    let store = Store::open(&text(run)).expect("a run");
    let found = checkpoint::newest(&store).expect("what is committed is whole");
    let step = found.as_ref().map_or(0, |found| found.manifest.step);
    assert!(step >= before, "the newest checkpoint was of step {before} and is now of step {step}");
    tally.with_checkpoint += u32::from(found.is_some());
    step
}

/// Two finished runs with the same recipe have the same tensors, rows and metrics.
///
/// # Panics
/// When they do not.
#[track_caller]
pub fn assert_same_run(one: &Path, other: &Path) {
    let differing = checkpoints::differing(&checkpoints::last(one), &checkpoints::last(other));
    assert!(differing.is_empty(), "{} and {} differ in {differing:?}", one.display(), other.display());
    assert_eq!(metrics(one), metrics(other), "lines of metrics.jsonl");
    let rows = rows(other);
    assert_eq!(self::rows(one), rows, "order of rows");
    let distinct: BTreeSet<&String> = rows.iter().collect();
    assert_eq!(distinct.len(), rows.len(), "no row is used twice");
}

/// Lines of metrics.jsonl without what depends on the clock, and on which build made the run.
#[track_caller]
pub fn metrics(run: &Path) -> Vec<Value> {
    let mut lines = json_lines(&run.join("metrics.jsonl"));
    for line in &mut lines {
        let line = line.as_object_mut().expect("a line is an object");
        for key in ["time", "step_s", "wall_s", "tokens_per_s", "tokens_per_s_wall", "commit"] {
            line.remove(key).unwrap_or_else(|| panic!("a line has {key}: {line:?}"));
        }
        line.remove("stall_share");
        // How ranks worked together, where there are several.
        line.remove("ranks");
    }
    lines
}

/// The ids of all rows trained on, in order; nothing when they were not logged.
///
/// # Panics
/// When steps are missing, twice, or out of order.
#[track_caller]
pub fn rows(run: &Path) -> Vec<String> {
    let path = run.join("rows.jsonl");
    if !path.exists() {
        return Vec::new();
    }
    let mut ids = Vec::new();
    for (step, line) in json_lines(&path).into_iter().enumerate() {
        assert_eq!(line["step"].as_u64(), Some(step as u64), "steps of rows.jsonl follow each other");
        let rows = line["rows"].as_array().expect("rows of a step");
        ids.extend(rows.iter().map(|row| row.as_str().expect("an id").to_owned()));
    }
    ids
}
