//! Finding committed checkpoints. Nothing but the listing says which there are: no pointer file can go stale.

use loader::Store;

use super::format::{FORMAT, Found, Hash, folder};
use super::load::verify;
use crate::{Error, Message};

/// `(step, attempt)` of every attempt that left something, committed or not, ascending, and whether it has a COMMIT.
pub(super) fn attempts(store: &Store) -> Result<Vec<(u64, u32, bool)>, Error> {
    let mut attempts: Vec<(u64, u32, bool)> = Vec::new();
    for entry in store.list("checkpoints/")? {
        let Some((step, attempt, name)) = parse(&entry.key) else { continue };
        match attempts.iter_mut().find(|(s, a, _)| (*s, *a) == (step, attempt)) {
            Some((_, _, committed)) => *committed |= name == "COMMIT",
            None => attempts.push((step, attempt, name == "COMMIT")),
        }
    }
    attempts.sort_unstable();
    Ok(attempts)
}

/// `checkpoints/step-S/attempt-A/NAME` → (S, A, NAME).
fn parse(key: &str) -> Option<(u64, u32, &str)> {
    let mut parts = key.split('/');
    let (checkpoints, step, attempt, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known = checkpoints == "checkpoints" && parts.next().is_none();
    let step = step.strip_prefix("step-")?.parse().ok()?;
    let attempt = attempt.strip_prefix("attempt-")?.parse().ok()?;
    known.then_some((step, attempt, name))
}

/// The highest attempt of a step, 0 when there is none.
pub(super) fn last_attempt(store: &Store, step: u64) -> Result<u32, Error> {
    Ok(attempts(store)?.into_iter().filter(|(s, ..)| *s == step).map(|(_, attempt, _)| attempt).max().unwrap_or(0))
}

/// Every committed checkpoint, newest first; one whose manifest is damaged comes as the error that says so.
pub(super) fn committed(store: &Store) -> Result<impl Iterator<Item = Result<Found, Error>>, Error> {
    committed_of(store, None)
}

/// As [`committed`], of one step.
pub(super) fn committed_of(
    store: &Store,
    of: Option<u64>,
) -> Result<impl Iterator<Item = Result<Found, Error>>, Error> {
    let attempts = attempts(store)?;
    Ok(attempts
        .into_iter()
        .rev()
        .filter(move |(step, _, committed)| *committed && of.is_none_or(|of| of == *step))
        .map(|(step, attempt, _)| read_manifest(store, folder(step, attempt))))
}

/// The newest checkpoint of a run of which every file is there and has the right hash. Damaged ones are passed over
/// with a warning that names the file.
///
/// # Errors
/// Those of [`newest_with`].
pub fn newest(store: &Store) -> Result<Option<Found>, Error> {
    Ok(newest_with(store, |found| verify(store, found))?.map(|(found, ())| found))
}

/// The newest checkpoint that `read` reads, and what it made of it. Where it finds damage the checkpoint before is tried,
/// with a warning.
///
/// # Errors
/// Those of the store, and those of `read` other than damage; [`Error::Checkpoint`] when there are checkpoints and all
/// are damaged; [`Error::OtherFormat`] when one as new was written in a later [`FORMAT`].
pub fn newest_with<T>(
    store: &Store,
    mut read: impl FnMut(&Found) -> Result<T, Error>,
) -> Result<Option<(Found, T)>, Error> {
    let mut damaged = None;
    for found in committed(store)? {
        match found.and_then(|found| read(&found).map(|made| (found, made))) {
            Ok(found) => return Ok(Some(found)),
            Err(Error::Checkpoint(message)) => {
                tracing::warn!("{message}; trying the checkpoint before it");
                damaged = Some(message);
            }
            Err(other) => return Err(other),
        }
    }
    match damaged {
        None => Ok(None),
        Some(message) => Err(Error::Checkpoint(message.said(|text| format!("no intact checkpoint is left: {text}")))),
    }
}

pub(super) fn read_manifest(store: &Store, folder: String) -> Result<Found, Error> {
    let at = |what: String| format!("{}/{folder}: {what}", store.url());
    let damaged = |what: String| Error::Checkpoint(at(what).into());
    let unread = |what: String, error: serde_json::Error| Error::Checkpoint(Message::of(at(what), error));
    let get = |name: &str| match store.get(&format!("{folder}/{name}")) {
        Err(loader::Error::NotFound { .. }) => Err(damaged(format!("{name} is missing"))),
        other => Ok(other?),
    };
    let (seal, json) = (get("COMMIT")?, get("manifest.json")?);
    if String::from_utf8_lossy(&seal).trim_end() != Hash::of(&json).0 {
        return Err(damaged("manifest.json does not have the hash that COMMIT names".into()));
    }
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
        software: String,
    }
    let version: Version =
        serde_json::from_slice(&json).map_err(|e| unread(format!("manifest.json is not a manifest: {e}"), e))?;
    if !(1..=FORMAT).contains(&version.format) {
        return Err(Error::OtherFormat(format!(
            "{}/{folder} was written by {} in checkpoint format {}, and this program reads formats up to {FORMAT}: use the \
             program that wrote it",
            store.url(),
            version.software,
            version.format
        )));
    }
    let manifest = serde_json::from_slice(&json).map_err(|e| unread(format!("manifest.json: {e}"), e))?;
    Ok(Found { folder, manifest })
}
