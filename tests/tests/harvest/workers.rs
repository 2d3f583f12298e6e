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

/// All of `undisturbed` is there. What was being written when a process died is left beside, under a name of its own.
#[track_caller]
fn assert_whole(bench: &Bench, out: &str, undisturbed: &BTreeMap<String, Vec<u8>>) {
    let left = tree(&bench.path(out));
    for (name, bytes) in undisturbed {
        assert!(left.get(name) == Some(bytes), "{out}/{name}");
    }
    let more: Vec<&String> = left.keys().filter(|name| !undisturbed.contains_key(*name)).collect();
    assert!(more.iter().all(|name| name.rsplit('/').next().is_some_and(|name| name.starts_with('.'))), "{more:?}");
}

#[test]
fn workers_that_are_killed_leave_every_row_once() {
    let bench = Bench::new(true);
    let text = bench.write("text.jsonl", tiny::json_lines(&tiny::documents(1000, 60, 6)));
    let words = |out: &str, worker: &str| {
        bench.words(&text, out, &["--layer", "1,2", "--shard-rows", "600", "--threads", "1", "--worker", worker])
    };
    sae::binary();
    let started = Instant::now();
    sae::run(&words("undisturbed", "0/1")).exits(0);
    let wall = started.elapsed();
    let undisturbed = tree(&bench.path("undisturbed"));
    let (mut numbers, mut kills, mut rounds) = (Numbers::new(1), 0, 0);
    while kills < 20 {
        rounds += 1;
        assert!(rounds < 20, "{kills} kills in {rounds} rounds of {wall:?}");
        let out = format!("killed-{rounds}");
        // Two workers in turn, each killed while it is at work or not yet begun.
        let mut done = [false; 2];
        while done != [true; 2] {
            for (at, worker) in ["0/2", "1/2"].into_iter().enumerate() {
                let delay = wall.mul_f64(0.6 * f64::from(numbers.unit().abs()));
                match ended(&words(&out, worker), "KILL", delay) {
                    None => kills += 1,
                    Some(code) => {
                        assert_eq!(code, 0);
                        done[at] = true;
                    }
                }
            }
        }
        sae::run(&words(&out, "0/2")).exits(0);
        assert_whole(&bench, &out, &undisturbed);
    }
}

/// Two workers at work at once, one of which is killed while the other goes on; and two that were given the same share.
#[test]
fn workers_at_once_leave_every_row_once() {
    let bench = Bench::new(true);
    let text = bench.write("text.jsonl", tiny::json_lines(&tiny::documents(1000, 60, 7)));
    let words = |out: &str, worker: &str| {
        bench.words(&text, out, &["--layer", "1,2", "--shard-rows", "600", "--threads", "1", "--worker", worker])
    };
    sae::binary();
    let started = Instant::now();
    sae::run(&words("undisturbed", "0/1")).exits(0);
    let wall = started.elapsed();
    let undisturbed = tree(&bench.path("undisturbed"));
    let is_whole = |out: &str| assert_whole(&bench, out, &undisturbed);
    let start =
        |words: &[String]| sae::sae(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sae starts");
    let (mut numbers, mut kills) = (Numbers::new(3), 0);
    for round in 0..20 {
        let out = format!("round-{round}");
        let mut other = start(&words(&out, "1/2"));
        let ended = ended(&words(&out, "0/2"), "KILL", wall.mul_f64(0.6 * f64::from(numbers.unit().abs())));
        kills += usize::from(ended.is_none());
        assert_eq!(other.wait().expect("a child").code(), Some(0), "the other goes on: {out}");
        sae::run(&words(&out, "0/2")).exits(0);
        is_whole(&out);
        if kills >= 3 {
            break;
        }
    }
    assert!(kills > 0, "none was killed while at work");
    let twins = ["0/1", "0/1"].map(|worker| start(&words("twins", worker)));
    for mut twin in twins {
        assert_eq!(twin.wait().expect("a child").code(), Some(0));
    }
    is_whole("twins");
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
