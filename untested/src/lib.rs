//! What a run of the tests left out: each test that cannot run says so by [`skip`], in one of some fifty processes, and the last of them
//! counts all of it (`untested/tests/count.rs`).
//!
//! Notes lie in the target folder, in a file for each run: a run is the `cargo` above a test's process.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Says that a test, or a part of one, did not run, and notes it for the count at the run's end.
#[track_caller]
pub fn skip(reason: &str) {
    let place = Location::caller();
    // Not by `eprintln!`: the test runner would swallow it.
    let mut stderr = io::stderr();
    let _ = writeln!(stderr, "SKIPPED at {}:{}: {reason}", place.file(), place.line());
    // Without a run, a test binary was started by hand, and nobody counts.
    if let Some(error) = Run::of_process().and_then(|run| note(&notes(), &run, reason).err()) {
        let _ = writeln!(stderr, "{}: {error}: this one is not counted", notes().display());
    }
}

/// One line about all that was skipped in the run that this process belongs to. Its notes are used up.
pub fn count() -> String {
    match Run::of_process() {
        Some(run) => line(&take(&notes(), &run)),
        None => "skipped tests are counted where cargo runs them, on Linux".to_owned(),
    }
}

/// A run of cargo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    process: u32,
    /// Tells it from another process that once had the same number.
    started: u64,
}

impl Run {
    /// The nearest cargo above this process; a test may start itself again.
    fn of_process() -> Option<Run> {
        let mut process = std::os::unix::process::parent_id();
        loop {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            // `number (name) state parent … started …`, and a name may hold anything.
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            if name == "cargo" {
                return Some(Run { process, started: fields.get(19)?.parse().ok()? });
            }
            process = fields.get(1)?.parse().ok()?;
        }
    }

    fn file(self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}", self.process, self.started))
    }
}

/// The folder of notes, the same for all test binaries of a target folder.
fn notes() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let target = own.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.map_or_else(std::env::temp_dir, Path::to_owned).join("skipped")
}

/// A line for each time, written at once: others may write too.
fn note(folder: &Path, run: &Run, reason: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = OpenOptions::new().append(true).create(true).open(run.file(folder))?;
    file.write_all(format!("{}\n", reason.replace('\n', " ")).as_bytes())
}

/// How often there was which reason. Takes away what this run has noted, and what runs that are over left behind: one of a single
/// binary has no count.
fn take(folder: &Path, run: &Run) -> BTreeMap<String, usize> {
    let text = fs::read_to_string(run.file(folder)).unwrap_or_default();
    let _ = fs::remove_file(run.file(folder));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            let _ = fs::remove_file(entry.path());
        }
    }
    let mut reasons = BTreeMap::new();
    for reason in text.lines() {
        *reasons.entry(reason.to_owned()).or_default() += 1;
    }
    reasons
}

/// The most frequent reason first.
fn line(reasons: &BTreeMap<String, usize>) -> String {
    let mut sorted: Vec<_> = reasons.iter().collect();
    sorted.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
    let parts: Vec<String> = sorted.iter().map(|(reason, times)| format!("{times} × {reason}")).collect();
    match reasons.values().sum::<usize>() {
        0 => "skipped: nothing".to_owned(),
        all => format!("skipped: {all} in all: {}", parts.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_counted_by_reason_and_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("skipped");
        let own = Run { process: std::process::id(), started: 7 };
        // The same number at another time, and one that no process has.
        let (other, gone) = (Run { started: 8, ..own }, Run { process: u32::MAX, started: 7 });
        assert_eq!(line(&take(&folder, &own)), "skipped: nothing");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        note(&folder, &own, "no server").expect("a note");
                        note(&folder, &other, "no GPU").expect("a note");
                    }
                });
            }
        });
        note(&folder, &own, "no\ncompiler").expect("a note");
        note(&folder, &gone, "no disk").expect("a note");
        assert_eq!(line(&take(&folder, &own)), "skipped: 101 in all: 100 × no server; 1 × no compiler");
        assert!(!gone.file(&folder).exists(), "what a run that is over left behind is gone");
        assert_eq!(line(&take(&folder, &own)), "skipped: nothing", "the notes were used up");
        assert_eq!(line(&take(&folder, &other)), "skipped: 100 in all: 100 × no GPU");
    }
}
