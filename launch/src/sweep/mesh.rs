//! Trains a configuration on all slots together: a run of several ranks, for dictionaries that are too large for one device.
//!
//! `sae launch local` starts the ranks, in processes of their own, and ends with the run's exit code. It is bound to this process, so that
//! nobody trains what others have taken over.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use trainer::Exit;

use super::display::Rate;
use super::group::{Claimed, Outcome, unbegun};
use crate::device::DeviceChoice;
use crate::failure::{Failure, TAKEN};
use crate::world::OF_RANKS;
use crate::{parent, ranks, remedy};

/// How often the process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Trains `member` on so many ranks.
pub fn train_on_mesh(choice: DeviceChoice, ranks: usize, member: &Claimed) -> Outcome {
    match launched(choice, ranks, member) {
        Ok((status, _)) if status.success() => Outcome::Done,
        Ok((_, Said { is_taken: true, .. })) => Outcome::Elsewhere,
        Ok((status, Said { error, .. })) => {
            let exit = status.code().and_then(|code| Exit::of(u8::try_from(code).ok()?)).unwrap_or(Exit::Hardware);
            if exit == Exit::Interrupted {
                return Outcome::Stopped;
            }
            let words = error.unwrap_or_else(|| format!("sae launch local {}", ranks::words(status)));
            unbegun(member, exit, words, "starting ranks")
        }
        Err(failure) => {
            let exit = failure.exit().unwrap_or(Exit::Hardware);
            unbegun(member, exit, failure.message().to_owned(), "starting ranks")
        }
    }
}

/// What the launcher of the ranks and they themselves have told of their failure.
#[derive(Default)]
struct Said {
    /// The last error.
    error: Option<String>,
    /// Whether another process has the run's folder.
    is_taken: bool,
}

/// How the launcher of the ranks ended, and what was told.
fn launched(choice: DeviceChoice, ranks: usize, member: &Claimed) -> Result<(ExitStatus, Said), Failure> {
    let cannot = |error| Failure::hardware(format!("ranks cannot be started: {error}"));
    let mut recipe = tempfile::Builder::new().prefix("sae-").suffix(".toml").tempfile().map_err(cannot)?;
    recipe.write_all(member.recipe.to_toml().as_bytes()).map_err(cannot)?;
    let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
    command
        .args(["launch", "local", "--log", "json", "--restarts", "0", "--resume-or-start"])
        .args(["--device", &choice.to_string(), "--ranks", &ranks.to_string()])
        .arg(recipe.path())
        .env(parent::LAUNCHER, std::process::id().to_string())
        .env(remedy::OF_SWEEP, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A terminal sends Ctrl-C to its whole group, and the ranks are asked to stop by this process.
        .process_group(0);
    // This process may be one of several of a launcher; the ranks are not.
    for name in OF_RANKS {
        command.env_remove(name);
    }
    let mut child = command.spawn().map_err(cannot)?;
    let stderr = child.stderr.take();
    thread::scope(|scope| {
        let reader = stderr.map(|stderr| scope.spawn(|| follow(member, stderr)));
        let status = wait(&mut child, member).map_err(cannot)?;
        Ok((status, reader.and_then(|reader| reader.join().ok()).unwrap_or_default()))
    })
}

/// Waits for its end, and hands on that it shall stop.
fn wait(child: &mut Child, member: &Claimed) -> std::io::Result<ExitStatus> {
    let mut is_asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !is_asked && member.stop.load(Ordering::Relaxed) {
            is_asked = true;
            // It may have ended by itself.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        thread::sleep(POLL);
    }
}

/// What a line of the log says.
#[derive(Deserialize)]
struct Line {
    level: String,
    fields: Fields,
}

#[derive(Default, Deserialize)]
struct Fields {
    message: Option<String>,
    cause: Option<String>,
    rows: Option<u64>,
    total_rows: Option<u64>,
    step: Option<u64>,
    steps: Option<u64>,
    loss: Option<f64>,
    l0: Option<f64>,
}

/// Takes over what the run says of its progress, hands its warnings on, and returns what is said of its failure.
fn follow(member: &Claimed, stderr: ChildStderr) -> Said {
    let (mut said, mut rate) = (Said::default(), None);
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let Ok(Line { level, fields }) = serde_json::from_str(&line) else {
            tracing::warn!("{}: {line}", member.label);
            continue;
        };
        match (level.as_str(), fields.message) {
            ("ERROR", message) => {
                said.is_taken |= fields.cause.as_deref() == Some(TAKEN);
                said.error = message.or(said.error);
            }
            ("WARN", Some(message)) => tracing::warn!("{}: {message}", member.label),
            _ => {}
        }
        let mut progress = member.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(step), Some(steps)) = (fields.step, fields.steps) {
            progress.steps = steps;
            rate = Some(Rate::begin(step.saturating_mul(member.recipe.train.batch as u64)));
        }
        if let (Some(rows), Some(total), Some(loss)) = (fields.rows, fields.total_rows, fields.loss) {
            (progress.tokens, progress.rows) = (rows, total);
            progress.tokens_per_s_wall = rate.and_then(|rate| rate.per_s(rows));
            (progress.loss, progress.l0) = (Some(loss), fields.l0);
            progress.step = fields.step.map_or(progress.step, |step| step + 1);
        }
    }
    said
}
