//! From what a user names to a checkpoint: a run's folder, a step's, an attempt's, or a copy of one.

use loader::Store;

use super::find::{committed, committed_of, newest, read_manifest};
use super::format::Found;
use super::load::verify;
use crate::{Error, Message};

/// Which checkpoint of a run is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// The newest.
    #[default]
    Last,
    /// That with the least held-out loss of those evaluated during training.
    Best,
    /// That of a step.
    Step(u64),
}

/// What a path names.
enum Named {
    /// A folder that holds checkpoints.
    Run(Store),
    /// All attempts of a step in it.
    Step(Store, u64),
    /// A single attempt: its folder below the store's.
    Attempt(Store, String),
}

/// The checkpoint that a path names: an attempt's folder, wherever it was copied, a step's (its highest committed attempt), or a
/// run's (its newest intact checkpoint). Returns it with the store that it lies in.
///
/// # Errors
/// [`Error::Checkpoint`] when there is none or it is damaged.
pub fn open(path: &str) -> Result<(Store, Found), Error> {
    open_which(path, Which::Last)
}

/// As [`open`], with a choice of the checkpoints of a run.
///
/// # Errors
/// As of [`named`]; [`Error::Checkpoint`] when a file is damaged.
pub fn open_which(path: &str, which: Which) -> Result<(Store, Found), Error> {
    if let (Which::Last, Named::Run(store)) = (which, parse(path)?) {
        return match newest(&store)? {
            Some(found) => Ok((store, found)),
            None => Err(nothing(path)),
        };
    }
    let (store, found) = named(path, which)?;
    verify(&store, &found)?;
    Ok((store, found))
}

/// The checkpoint that a path names, `which` of them where that is a run, without a look at the files that its manifest names:
/// a reader compares their hashes.
///
/// # Errors
/// [`Error::Checkpoint`] when there is none or its manifest is damaged; [`Error::Recipe`] when `which` is not there, or the path
/// names a checkpoint and `which` another.
pub fn named(path: &str, which: Which) -> Result<(Store, Found), Error> {
    let parsed = parse(path)?;
    if which != Which::Last && !matches!(parsed, Named::Run(_)) {
        return Err(Error::Recipe(format!(
            "{path} is a checkpoint already: name its run's folder to choose another, or leave the choice out"
        )));
    }
    match parsed {
        Named::Attempt(store, folder) => {
            let found = read_manifest(&store, folder)?;
            Ok((store, found))
        }
        Named::Step(store, step) => {
            let highest = committed_of(&store, Some(step))?.next();
            let found =
                highest.ok_or_else(|| Error::Checkpoint(format!("{path} holds no committed checkpoint").into()))??;
            Ok((store, found))
        }
        Named::Run(store) => {
            let found = chosen(&store, path, which)?;
            Ok((store, found))
        }
    }
}

fn chosen(store: &Store, path: &str, which: Which) -> Result<Found, Error> {
    match which {
        Which::Last => committed(store)?.next().ok_or_else(|| nothing(path))?,
        Which::Step(step) => committed_of(store, Some(step))?.next().unwrap_or_else(|| {
            let mut steps: Vec<String> = committed_steps(store)?.iter().map(u64::to_string).collect();
            steps.dedup();
            Err(Error::Recipe(format!(
                "{path} holds no committed checkpoint of step {step}; it has: {}",
                if steps.is_empty() { "none".to_owned() } else { steps.join(", ") }
            )))
        }),
        Which::Best => {
            let mut best: Option<(f64, Found)> = None;
            // Newest first: of equals the last, as training chooses.
            for found in committed(store)? {
                let found = match found {
                    Err(Error::Checkpoint(message)) => {
                        tracing::warn!("{message}; looking for the best of the others");
                        continue;
                    }
                    other => other?,
                };
                let Some(loss) = found.manifest.held_out.as_ref().map(|metrics| metrics.loss) else { continue };
                if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                    best = Some((loss, found));
                }
            }
            best.map(|(_, found)| found).ok_or_else(|| {
                Error::Recipe(format!(
                    "{path} holds no checkpoint that was evaluated during training, so none is the best: eval.every says \
                     how often that is done; name a step, or take the last"
                ))
            })
        }
    }
}

/// Steps that have a committed checkpoint, ascending; one that was saved again comes twice.
fn committed_steps(store: &Store) -> Result<Vec<u64>, Error> {
    let attempts = super::find::attempts(store)?.into_iter();
    Ok(attempts.filter(|(.., committed)| *committed).map(|(step, ..)| step).collect())
}

fn nothing(path: &str) -> Error {
    Error::Checkpoint(
        format!("{path} holds no committed checkpoint: name a run's folder, or a checkpoints/step-… folder inside it")
            .into(),
    )
}

fn parse(path: &str) -> Result<Named, Error> {
    let trimmed = path.trim_end_matches('/');
    // Inside a run a path need not show that it is in one.
    let inside = ["checkpoints/", "step-", "attempt-"].iter().any(|start| trimmed.starts_with(start));
    let absolute = inside.then(|| std::path::absolute(trimmed).ok()).flatten();
    let whole = absolute.as_ref().and_then(|path| path.to_str()).unwrap_or(trimmed);
    if let Some((run, folder)) = whole.rfind("/checkpoints/step-").map(|at| (&whole[..at], &whole[at + 1..])) {
        let store = Store::open(run)?;
        if folder.contains("/attempt-") {
            return Ok(Named::Attempt(store, folder.to_owned()));
        }
        let step = folder.trim_start_matches("checkpoints/step-").parse().map_err(|error: std::num::ParseIntError| {
            let text = format!(
                "{path} names no checkpoint: name a checkpoints/step-… folder with the number of its step, or the run's \
                 folder for the newest"
            );
            Error::Checkpoint(Message::of(text, error))
        })?;
        return Ok(Named::Step(store, step));
    }
    let store = Store::open(path)?;
    if store.head("COMMIT")?.is_none() {
        return Ok(Named::Run(store));
    }
    // A copy of an attempt under another name.
    let (above, folder) = Store::open_file(trimmed)?;
    Ok(Named::Attempt(above, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_no_number_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = format!("{}/checkpoints/step-abc", folder.path().display());
        let error = open(&path).map(drop).expect_err("it names no step");
        assert!(error.to_string().contains("step-abc names no checkpoint"), "{error}");
    }
}
