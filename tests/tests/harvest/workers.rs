//! Workers that are killed, stopped and at work at once.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::fixture::Numbers;
use tests::sae;
use tests::tiny::{self, tree};

use super::Bench;

/// Starts a harvest, and ends it by a signal after a delay; how it ended: nothing where the signal did it.
fn ended(words: &[String], signal: &str, delay: Duration) -> Option<i32> {
    let mut command = sae::sae(words);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sae starts");
    let started = Instant::now();
    while started.elapsed() < delay {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    sae::signal(&child, signal);
    child.wait().expect("a child").code()
}

/// Kills processes after delays of its own. How long work takes depends on what else the machine does, so that the longest delay follows what
/// happens: it grows with a process that was killed, and falls with one that was done before.
struct Killer {
    numbers: Numbers,
    longest: Duration,
}

impl Killer {
    fn kill(&mut self, words: &[String]) -> Option<i32> {
        let delay = self.longest.mul_f64(f64::from(self.numbers.unit().abs()));
        let code = ended(words, "KILL", delay);
        self.longest = self.longest.mul_f64(if code.is_none() { 1.1 } else { 0.8 });
        code
    }
}

/// A harvest of two layers for several workers, made once by one of them that nothing disturbs.
struct Shared {
    bench: Bench,
    text: String,
    undisturbed: BTreeMap<String, Vec<u8>>,
    /// What that took.
    wall: Duration,
}

impl Shared {
    fn new(seed: u64) -> Shared {
        let bench = Bench::new(true);
        let text = bench.write("text.jsonl", tiny::json_lines(&tiny::documents(1000, 60, seed)));
        let mut shared = Shared { bench, text, undisturbed: BTreeMap::new(), wall: Duration::ZERO };
        sae::binary();
        let started = Instant::now();
        sae::run(&shared.words("undisturbed", "0/1")).exits(0);
        shared.wall = started.elapsed();
        shared.undisturbed = tree(&shared.bench.path("undisturbed"));
        shared
    }

    fn words(&self, out: &str, worker: &str) -> Vec<String> {
        let more = ["--layer", "1,2", "--shard-rows", "600", "--threads", "1", "--worker", worker];
        self.bench.words(&self.text, out, &more)
    }

    /// All of the undisturbed harvest is there. What was being written when a process died is left beside, under a name of its own.
    #[track_caller]
    fn assert_whole(&self, out: &str) {
        let left = tree(&self.bench.path(out));
        for (name, bytes) in &self.undisturbed {
            assert!(left.get(name) == Some(bytes), "{out}/{name}");
        }
        let more: Vec<&String> = left.keys().filter(|name| !self.undisturbed.contains_key(*name)).collect();
        let is_hidden = |name: &&String| name.rsplit('/').next().is_some_and(|name| name.starts_with('.'));
        assert!(more.iter().all(is_hidden), "{more:?}");
    }
}

#[test]
fn workers_that_are_killed_leave_every_row_once() {
    let shared = Shared::new(6);
    let mut killer = Killer { numbers: Numbers::new(1), longest: shared.wall.mul_f64(0.6) };
    let (mut kills, mut rounds) = (0, 0);
    while kills < 20 {
        rounds += 1;
        assert!(rounds < 20, "{kills} kills in {rounds} rounds");
        let out = format!("killed-{rounds}");
        // Two workers in turn, each killed while it is at work or not yet begun.
        let mut done = [false; 2];
        while done != [true; 2] {
            for (at, worker) in ["0/2", "1/2"].into_iter().enumerate() {
                match killer.kill(&shared.words(&out, worker)) {
                    None => kills += 1,
                    Some(code) => {
                        assert_eq!(code, 0);
                        done[at] = true;
                    }
                }
            }
        }
        sae::run(&shared.words(&out, "0/2")).exits(0);
        shared.assert_whole(&out);
    }
}

/// Two workers at work at once, one of which is killed while the other goes on; and two that were given the same share.
#[test]
fn workers_at_once_leave_every_row_once() {
    let shared = Shared::new(7);
    let start =
        |words: &[String]| sae::sae(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sae starts");
    let mut killer = Killer { numbers: Numbers::new(3), longest: shared.wall.mul_f64(0.6) };
    let mut kills = 0;
    for round in 0..20 {
        let out = format!("round-{round}");
        let mut other = start(&shared.words(&out, "1/2"));
        kills += usize::from(killer.kill(&shared.words(&out, "0/2")).is_none());
        assert_eq!(other.wait().expect("a child").code(), Some(0), "the other goes on: {out}");
        sae::run(&shared.words(&out, "0/2")).exits(0);
        shared.assert_whole(&out);
        if kills >= 3 {
            break;
        }
    }
    assert!(kills > 0, "none was killed while at work");
    let twins = ["0/1", "0/1"].map(|worker| start(&shared.words("twins", worker)));
    for mut twin in twins {
        assert_eq!(twin.wait().expect("a child").code(), Some(0));
    }
    shared.assert_whole("twins");
}

#[test]
fn a_signal_leaves_the_part_and_the_same_command_goes_on() {
    let bench = Bench::new(true);
    let text = bench.write("text.jsonl", tiny::json_lines(&tiny::documents(1000, 60, 8)));
    let words = |out: &str| bench.words(&text, out, &["--layer", "3", "--shard-rows", "600", "--threads", "1"]);
    sae::binary();
    let started = Instant::now();
    sae::run(&words("undisturbed")).exits(0);
    let wall = started.elapsed();
    let (mut numbers, mut stopped) = (Numbers::new(2), 0);
    for attempt in 0.. {
        assert!(attempt < 200, "{stopped} stops");
        match ended(&words("stopped"), "TERM", wall.mul_f64(0.5 * f64::from(numbers.unit().abs()))) {
            Some(75) => stopped += 1,
            // Before the handler is there, the signal ends it as it ends any process.
            None => {}
            code => {
                assert_eq!(code, Some(0));
                break;
            }
        }
    }
    assert!(stopped > 0, "it was stopped while at work");
    assert!(tree(&bench.path("undisturbed")) == tree(&bench.path("stopped")), "{stopped} stops");
}
