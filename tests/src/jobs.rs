//! Jobs of several ranks: killing and stopping ranks at random moments under `sae launch local`, which starts them again, until the
//! runs have come to their end; and ranks that are started by hand.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use kernels::mesh::Mesh;
use loader::Dtype;
use safetensors::SafeTensors;
use serde_json::Value;
use trainer::recipe::Recipe;

use crate::fixture::{Fixture, Numbers, json, plain_rows, write_shards};
use crate::kills;
use crate::launcher::Launcher;
use crate::processes::{self, wait_for};
use crate::{checkpoints, sae};

/// Restarts that a launcher is given, and disturbances of one run: the pauses between starts grow.
const RESTARTS: u32 = 2;

/// After a kill all ranks of that start are gone within this.
const GONE_AFTER_KILL: Duration = Duration::from_secs(10);

/// After a stop the others are: the time for signs of life, and 5 s.
const GONE_AFTER_STOP: Duration = Duration::from_secs(15);

/// What is done to a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL at any moment, also before the ranks have met.
    Kill,
    /// SIGSTOP, some time after the ranks began to train.
    Stop,
}

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Starts that ended because a rank was killed.
    pub kills: u32,
    /// Starts that ended because a rank was stopped.
    pub stops: u32,
    /// Runs that came to their end and were the same as the undisturbed one.
    pub finished: u32,
    /// The longest that survivors of a kill took to be gone.
    pub slowest_kill: Duration,
    /// The longest that those of a stop took.
    pub slowest_stop: Duration,
}

/// A run of 482 steps that saves at every 20th, with four tiles of features and one thread a rank.
pub fn recipe(fixture: &Fixture, run: &str) -> Recipe {
    let mut recipe = kills::recipe(fixture, run);
    recipe.sae.features = 512;
    recipe.train.threads = Some(1);
    recipe
}

/// The words after `sae launch local` for a recipe on a mesh.
pub fn words<'a>(ranks: &'a str, recipe: &'a str, mesh: &'a str) -> [&'a str; 7] {
    ["--ranks", ranks, recipe, "--restarts", "2", "--mesh", mesh]
}

/// The words after `sae` for rank `rank` of `ranks` that is started by hand, on a machine of its own if not `local`.
pub fn by_hand(rank: usize, ranks: usize, local: bool, attempt: &str, recipe: &str) -> Vec<String> {
    let words = ["train", recipe].map(str::to_owned);
    words.into_iter().chain(as_rank(rank, ranks, local, attempt)).collect()
}

/// The options of `sae` for such a rank.
pub fn as_rank(rank: usize, ranks: usize, local: bool, attempt: &str) -> Vec<String> {
    let (local_rank, local_ranks) = if local { (rank, ranks) } else { (0, 1) };
    let numbers = [("--rank", rank), ("--ranks", ranks), ("--local-rank", local_rank), ("--local-ranks", local_ranks)];
    let numbers = numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]);
    ["--attempt", attempt].map(str::to_owned).into_iter().chain(numbers).collect()
}

/// Writes 64 shards of which one is damaged; its name. Each lies among the rows of few ranks: others could go on without it.
///
/// # Panics
/// When they cannot be written.
pub fn shards_with_a_damaged_one(folder: &Path) -> &'static str {
    write_shards(folder, 32, &plain_rows(16_000, 32, 5), Dtype::F16, 250);
    let name = "shard-00040.parquet";
    damage(&folder.join(name));
    name
}

/// Flips a bit among the rows of a shard: the footer comes after them.
///
/// # Panics
/// When there is none.
pub fn damage(shard: &Path) {
    let mut bytes = std::fs::read(shard).expect("a shard");
    bytes[1000] ^= 1;
    std::fs::write(shard, bytes).expect("written");
}

/// Deals blows to ranks of runs on `mesh`, drawn from `seed`: so many `kills`, then so many `stops`. After each the survivors are gone
/// in time and the launcher names the rank; at the end of a run no process is left, and weights, moments, order of rows and
/// metrics are those of an undisturbed run.
///
/// # Panics
/// When they are not.
pub fn soak(
    fixture: &Fixture,
    mesh: Mesh,
    (kills, stops): (u32, u32),
    seed: u64,
    progress: &mut dyn FnMut(&Tally),
) -> Tally {
    let (ranks, shape) = (mesh.ranks().to_string(), mesh.to_string());
    let path = fixture.save("undisturbed", &recipe(fixture, "undisturbed"));
    // Built before the clock starts.
    sae::binary();
    let started = Instant::now();
    let undisturbed = Launcher::local(fixture, &words(&ranks, &path, &shape)).ends();
    assert_eq!(undisturbed.0, Some(0), "{}", undisturbed.1);
    let wall = started.elapsed();
    let mut numbers = Numbers::new(seed);
    let mut tally = Tally::default();
    while tally.kills < kills || tally.stops < stops {
        let (blow, missing) =
            if tally.kills < kills { (Blow::Kill, kills - tally.kills) } else { (Blow::Stop, stops - tally.stops) };
        let name = format!("run-{}", tally.finished);
        let path = fixture.save(&name, &recipe(fixture, &name));
        let run = fixture.path(&name);
        let mut launcher = Launcher::local(fixture, &words(&ranks, &path, &shape));
        let mut struck = Vec::new();
        for _ in 0..missing.min(RESTARTS) {
            let Some((rank, gone_after)) = strike(&mut launcher, &run, mesh.ranks(), blow, wall, &mut numbers) else {
                break;
            };
            struck.push(rank);
            let slowest = if blow == Blow::Kill { &mut tally.slowest_kill } else { &mut tally.slowest_stop };
            *slowest = gone_after.max(*slowest);
        }
        let (code, said) = launcher.ends();
        assert_eq!(code, Some(0), "{said}");
        let effective = named(&said, blow, &struck);
        *(if blow == Blow::Kill { &mut tally.kills } else { &mut tally.stops }) += effective;
        let left = processes::with_word(&path);
        assert!(left.is_empty(), "processes {left:?} outlived their launcher");
        assert_same_run(&fixture.path("undisturbed"), &run);
        std::fs::remove_dir_all(&run).expect("the run is removed");
        tally.finished += 1;
        progress(&tally);
    }
    tally
}

/// Deals one blow to a random rank, and waits until all ranks of that start are gone. The rank, and how long the survivors took;
/// `None` when the run came to its end before.
fn strike(
    launcher: &mut Launcher,
    run: &Path,
    size: usize,
    blow: Blow,
    wall: Duration,
    numbers: &mut Numbers,
) -> Option<(usize, Duration)> {
    let before = newest(run);
    let ranks = wait_for("ranks, or the end", || {
        let ended = launcher.has_ended();
        launcher.ranks_now(size).map(Some).or(ended.then_some(None))
    })?;
    let mut delay = wall.mul_f64(f64::from(numbers.unit().abs()));
    if blow == Blow::Stop {
        wait_for("a checkpoint of this start", || (newest(run) != before || launcher.has_ended()).then_some(()));
        // Early in what is left: a rank that is stopped when all others are done is missed by nobody.
        delay /= 16;
    }
    std::thread::sleep(delay);
    let victim = numbers.below(size);
    if launcher.ranks_now(size).as_ref() != Some(&ranks) {
        return None;
    }
    processes::signal(ranks[victim], if blow == Blow::Kill { "KILL" } else { "STOP" });
    let struck = Instant::now();
    let survivors: Vec<u32> = (0..size).filter(|rank| *rank != victim).map(|rank| ranks[rank]).collect();
    let gone = |pids: &[u32]| (!pids.iter().any(|&pid| processes::runs(pid))).then_some(());
    wait_for("the end of the survivors", || gone(&survivors));
    let gone_after = struck.elapsed();
    let limit = if blow == Blow::Kill { GONE_AFTER_KILL } else { GONE_AFTER_STOP };
    assert!(gone_after < limit, "survivors of a {blow:?} of rank {victim} were gone after {gone_after:?}");
    wait_for("the end of the rank", || gone(&ranks));
    Some((victim, gone_after))
}

/// The newest committed checkpoint.
fn newest(run: &Path) -> Option<std::path::PathBuf> {
    checkpoints::committed(run).pop()
}

/// How many starts ended by the blows to the ranks `struck`, each of which the launcher has named as the cause. The last one may have
/// come when that rank had nothing left to do.
#[track_caller]
fn named(said: &str, blow: Blow, struck: &[usize]) -> u32 {
    let restarts: Vec<&str> = said.lines().filter(|line| line.contains("; restart ")).collect();
    assert!(restarts.len() == struck.len() || restarts.len() + 1 == struck.len(), "{struck:?} were struck: {said}");
    for (line, rank) in restarts.iter().zip(struck) {
        let cause = match blow {
            Blow::Kill => format!("rank {rank} was ended by signal 9"),
            Blow::Stop => format!("rank {rank}: has given no sign of life"),
        };
        assert!(line.contains(&cause), "rank {rank} was struck by {blow:?}: {said}");
    }
    restarts.len() as u32
}

/// Two finished runs of a recipe on one mesh have the same weights, moments and order of rows, and metrics that agree to 1e-9: a resumed
/// rank 0 goes on from sums over all ranks, which rounds them differently.
///
/// # Panics
/// When they do not.
#[track_caller]
pub fn assert_same_run(one: &Path, other: &Path) {
    let (a, b) = (learned(one), learned(other));
    let differing: Vec<_> = a.keys().filter(|name| a.get(*name) != b.get(*name)).collect();
    assert!(differing.is_empty() && a.len() == b.len(), "{} and {}: {differing:?}", one.display(), other.display());
    assert!(kills::rows(one) == kills::rows(other), "order of rows");
    let (a, b) = (kills::metrics(one), kills::metrics(other));
    assert_eq!(a.len(), b.len(), "lines of metrics.jsonl");
    a.iter().zip(&b).for_each(|(a, b)| assert_near(a, b));
    let summary = |run: &Path| {
        let mut summary = json(&run.join("summary.json"));
        let object = summary.as_object_mut().expect("a summary is an object");
        let clocks = ["step_s", "wall_s", "stall_s", "tokens_per_s", "tokens_per_s_wall"];
        clocks.iter().chain(&["commit", "checkpoint"]).for_each(|key| drop(object.remove(*key)));
        summary
    };
    assert_near(&summary(one), &summary(other));
}

/// Everything in the last checkpoint that training goes by, by file and name: all but the sums of the metrics.
fn learned(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut learned = BTreeMap::new();
    for (file, bytes) in checkpoints::last(run) {
        let tensors = SafeTensors::deserialize(&bytes).expect("a file of tensors");
        for (name, tensor) in tensors.iter() {
            let is_sum = file.starts_with("shared") && !name.starts_with("b_dec");
            if !is_sum {
                learned.insert(format!("{file}: {name}"), tensor.data().to_vec());
            }
        }
    }
    learned
}

#[track_caller]
fn assert_near(a: &Value, b: &Value) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{a:?} and {b:?}");
            a.iter().for_each(|(key, a)| assert_near(a, &b[key]));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| assert_near(a, b));
        }
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().expect("a float"), y.as_f64().expect("a float"));
            assert!((x - y).abs() <= 1e-9 * x.abs(), "{a} and {b}");
        }
        _ => assert_eq!(a, b),
    }
}
