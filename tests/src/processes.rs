//! Processes that a test did not start itself: those that a launcher started.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// Seconds after which what is waited for counts as never coming. Nothing here takes a tenth of it.
const NEVER: Duration = Duration::from_secs(120);

/// The processes whose parent is `pid`, by their ids.
pub fn children(pid: u32) -> Vec<u32> {
    let of = |entry: fs::DirEntry| {
        let child = entry.file_name().to_str()?.parse().ok()?;
        (stat(child)?.1 == pid).then_some(child)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of).collect()
}

/// Whether a process runs: one that has ended and was not yet waited for does not.
pub fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !['Z', 'X'].contains(&state))
}

/// State and parent. The name before them may hold anything, even parentheses.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Sends a signal by name, such as `KILL`.
///
/// # Panics
/// When there is no kill(1).
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().expect("kill(1) runs");
}

/// Waits until something is there.
///
/// # Panics
/// When it never comes.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < NEVER, "{what} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}
