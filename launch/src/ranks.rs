//! The processes of one start on this machine: started, signalled, watched, and ended together.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;
use trainer::Exit;

use crate::args::Log;
use crate::failure::Failure;
use crate::progress::AboveBars;
use crate::{parent, signals};

/// How long the others may take to notice that a rank failed and to say so, before they are killed: all are gone within 10 s.
const GRACE: Duration = Duration::from_secs(8);

/// Time between looks at the processes.
const POLL: Duration = Duration::from_millis(20);

/// Signals that end a launcher, and that it passes on: by the first one a rank saves and stops. A launcher that signals all processes of a job
/// signals the ranks too, which then get it twice and save once.
#[derive(Debug)]
pub struct Passed {
    signals: Signals,
    /// The first that came.
    pub first: Option<i32>,
}

impl Passed {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`Exit::Arguments`] when signals cannot be handled.
    pub fn listen() -> Result<Self, Failure> {
        let signals = Signals::new(signals::that_stop())
            .map_err(|error| Failure::arguments(format!("signals cannot be handled: {error}")))?;
        Ok(Passed { signals, first: None })
    }

    /// Sleeps until a signal comes or the time is over; true when one came, now or before.
    pub fn wait(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while self.first.is_none() && Instant::now() < until {
            self.first = self.signals.pending().next();
            std::thread::sleep(POLL);
        }
        self.first.is_some()
    }
}

/// How a rank ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub rank: usize,
    pub status: ExitStatus,
}

impl Ended {
    /// The exit code; a rank that a signal ended counts as hardware that failed, which it mostly is: memory ran out, a node was
    /// taken away.
    pub fn code(&self) -> u8 {
        self.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Hardware.code())
    }

    /// Whether another start may go better.
    pub fn restart_helps(&self) -> bool {
        let code = self.code();
        // Above 128 is how shells, and this program after a second signal, tell of a signal.
        code > 128 || Exit::of(code).is_some_and(Exit::restart_helps)
    }
}

/// The processes of one start, which are killed when this value goes.
#[derive(Debug)]
pub struct Ranks {
    /// The first rank on this machine.
    first: usize,
    /// By rank, from the first on; `None` once it has ended.
    running: Vec<Option<Child>>,
    /// Those that ended, in that order.
    ended: Vec<Ended>,
    readers: Vec<JoinHandle<()>>,
}

impl Ranks {
    /// Starts `sae WORDS` as each of the ranks `local`, of `ranks` altogether.
    ///
    /// # Errors
    /// [`Exit::Hardware`] when the system gives no more processes.
    pub fn start(words: &[&str], local: Range<usize>, ranks: usize, attempt: &str, log: Log) -> Result<Ranks, Failure> {
        let cannot = |error| Failure::hardware(format!("a rank cannot be started: {error}: see ulimit -u"));
        let program = std::env::current_exe().map_err(cannot)?;
        let first = local.start;
        let mut started = Ranks { first, running: Vec::new(), ended: Vec::new(), readers: Vec::new() };
        let place = |rank| {
            [("RANK", rank), ("WORLD_SIZE", ranks), ("LOCAL_RANK", rank - first), ("LOCAL_WORLD_SIZE", local.len())]
        };
        for rank in local.clone() {
            let mut command = Command::new(&program);
            command
                .args(words)
                .envs(place(rank).map(|(name, value)| (name, value.to_string())))
                .envs([("SAE_ATTEMPT", attempt), (parent::LAUNCHER, &std::process::id().to_string())])
                .stdin(Stdio::null())
                // A terminal sends Ctrl-C to its whole group: ranks would get it twice.
                .process_group(0);
            if rank > 0 {
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                if std::env::var_os("RUST_LOG").is_none() {
                    command.env("RUST_LOG", "warn");
                }
            }
            // By the main thread, which lives as long as the launcher: a rank dies with the thread that started it.
            let mut child = command.spawn().map_err(cannot)?;
            if let Some(stderr) = child.stderr.take() {
                started.readers.push(std::thread::spawn(move || hand_on(rank, stderr, log)));
            }
            started.running.push(Some(child));
        }
        Ok(started)
    }

    /// Waits until all have ended, passing on signals. When one fails, the others have some time to end too. Returns those that
    /// failed by themselves, the one that speaks for the failure first.
    ///
    /// # Errors
    /// Exit code 130 when SIGINT comes a second time: everything is ended at once.
    pub fn wait(mut self, passed: &mut Passed) -> Result<Vec<Ended>, Failure> {
        let mut failed_at: Option<Instant> = None;
        while self.running.iter().any(Option::is_some) {
            for signal in passed.signals.pending() {
                // Schedulers send several signals to one that is saving already; only somebody at a keyboard means an end by that.
                if passed.first.replace(signal) == Some(SIGINT) && signal == SIGINT {
                    return Err(Failure::signalled(signal));
                }
                self.signal(signal);
            }
            self.look();
            if failed_at.is_none() && self.ended.iter().any(|ended| !ended.status.success()) {
                failed_at = Some(Instant::now());
            }
            if failed_at.is_some_and(|at| at.elapsed() > GRACE) {
                break;
            }
            std::thread::sleep(POLL);
        }
        let slow: Vec<String> = self.alive().map(|(rank, _)| rank.to_string()).collect();
        if !slow.is_empty() {
            tracing::warn!(ranks = slow.join(", "), after_s = GRACE.as_secs(), "killed: they had not ended");
        }
        self.kill();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(failed(&self.ended))
    }

    fn signal(&self, signal: i32) {
        let Some(signal) = Signal::from_named_raw(signal) else { return };
        for (_, pid) in self.alive() {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }

    fn look(&mut self) {
        for (rank, slot) in (self.first..).zip(&mut self.running) {
            let status = slot.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = status {
                self.ended.push(Ended { rank, status });
                *slot = None;
            }
        }
    }

    /// Ranks that were not seen to end. Their ids are theirs until they are waited for.
    fn alive(&self) -> impl Iterator<Item = (usize, Pid)> {
        let running = (self.first..).zip(&self.running);
        running.filter_map(|(rank, child)| Some((rank, Pid::from_child(child.as_ref()?))))
    }

    /// Ends every process group that is left, and waits for its rank.
    fn kill(&mut self) {
        for (_, pid) in self.alive() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        for child in self.running.iter_mut().filter_map(Option::take) {
            let mut child = child;
            let _ = child.wait();
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The ranks that failed, first those that a restart would not help, then those that could not say why, then in the order in which
/// they ended: the others failed because one of them did, and most say that another rank failed.
fn failed(ended: &[Ended]) -> Vec<Ended> {
    let mut failed: Vec<Ended> = ended.iter().filter(|ended| !ended.status.success()).copied().collect();
    failed.sort_by_key(|ended| (ended.restart_helps(), ended.status.code().is_some()));
    failed
}

/// Writes a rank's warnings and errors line by line, with its number.
fn hand_on(rank: usize, stderr: ChildStderr, log: Log) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let line = match log {
            Log::Pretty => format!("[rank {rank}] {line}\n"),
            Log::Json => with_rank(rank, line),
        };
        // Nobody left to tell.
        let _ = AboveBars.write_all(line.as_bytes());
    }
}

/// A line of JSON with the rank as a field; what is none, such as a panic's text, becomes a message.
fn with_rank(rank: usize, line: String) -> String {
    let mut object = match serde_json::from_str(&line) {
        Ok(serde_json::Value::Object(object)) => object,
        _ => serde_json::Map::from_iter([("message".to_owned(), line.into())]),
    };
    object.insert("rank".to_owned(), rank.into());
    format!("{}\n", serde_json::Value::Object(object))
}

/// How a process ended, in words.
pub fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(codes: &[i32]) -> Vec<Ended> {
        let wait_status = |code: i32| if code < 0 { -code } else { code << 8 };
        let of = |(rank, &code): (usize, &i32)| Ended { rank, status: ExitStatus::from_raw(wait_status(code)) };
        codes.iter().enumerate().map(of).collect()
    }

    #[test]
    fn first_comes_what_a_restart_does_not_help_then_who_was_killed() {
        for (codes, rank, code, helps) in [
            (&[0, 0][..], None, 0, false),
            (&[0, 71, 69], Some(1), 71, true),
            (&[71, 71, 70], Some(2), 70, false),
            (&[75, 75], Some(0), 75, true),
            // A signal, written as its negative number.
            (&[-9, 71], Some(0), 71, true),
            (&[71, -9], Some(1), 71, true),
            (&[143], Some(0), 143, true),
            (&[101, 71], Some(0), 101, false),
        ] {
            let cause = failed(&ended(codes)).first().copied();
            assert_eq!(cause.map(|ended| ended.rank), rank, "{codes:?}");
            if let Some(cause) = cause {
                assert_eq!((cause.code(), cause.restart_helps()), (code, helps), "{codes:?}");
            }
        }
    }

    #[test]
    fn lines_of_json_stay_json() {
        assert_eq!(with_rank(3, "{\"level\":\"WARN\"}".into()), "{\"level\":\"WARN\",\"rank\":3}\n");
        assert_eq!(with_rank(3, "panicked".into()), "{\"message\":\"panicked\",\"rank\":3}\n");
    }
}
