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

/// The processes that have `word` as one of the words that they were started with.
pub fn with_word(word: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|&id| words(id).iter().any(|has| has == word)).collect()
}

/// The words that a process was started with; none once it has ended.
pub fn words(pid: u32) -> Vec<String> {
    listed(pid, "cmdline")
}

/// A variable of the environment that a process was started with.
pub fn variable(pid: u32, name: &str) -> Option<String> {
    let of = |variable: String| Some(variable.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    listed(pid, "environ").into_iter().find_map(of)
}

fn listed(pid: u32, what: &str) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    bytes.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
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
