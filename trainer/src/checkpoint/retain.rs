//! Removing old checkpoints.

use std::collections::HashSet;

use loader::Store;

use super::find::{attempts, committed};
use super::folder;
use crate::Error;

/// Keeps `saved`, which was committed just now, the newest before it up to `keep` in all, and the one with the least
/// held-out loss; removes older ones and what unfinished attempts left behind before it. Checkpoints of later steps are
/// there when the run fell back behind damaged ones: they are not counted. A checkpoint loses its COMMIT first, so an
/// interrupted removal leaves nothing that looks whole. Files that no checkpoint of ours would hold stay.
///
/// # Errors
/// Those of the store; what is not yet removed stays for the next time.
pub fn retain(store: &Store, keep: usize, saved: &str) -> Result<(), Error> {
    let all = committed(store)?.filter_map(Result::ok);
    let mut found: Vec<_> = all.skip_while(|found| found.folder != saved).collect();
    // A step that was saved again, with its evaluation, counts once.
    found.dedup_by_key(|found| found.manifest.step);
    let Some(newest) = found.first() else { return Ok(()) };
    let newest = (newest.manifest.step, newest.manifest.attempt);
    let best = found
        .iter()
        .filter_map(|found| Some((found.manifest.held_out.as_ref()?.loss, &found.folder)))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, folder)| folder.clone());
    let kept: HashSet<String> = found.iter().take(keep).map(|found| found.folder.clone()).chain(best).collect();

    for (step, attempt, _) in attempts(store)? {
        let folder = folder(step, attempt);
        if (step, attempt) < newest && !kept.contains(&folder) {
            remove(store, &folder)?;
        }
    }
    Ok(())
}

/// Removes the files of an attempt that are ours.
pub(super) fn remove(store: &Store, folder: &str) -> Result<(), Error> {
    let prefix = format!("{folder}/");
    let mut ours: Vec<String> = store
        .list(&prefix)?
        .into_iter()
        .map(|entry| entry.key)
        .filter(|key| key.strip_prefix(&prefix).is_some_and(is_ours))
        .collect();
    // COMMIT sorts before the others: it goes first, and no reader takes the rest for a checkpoint.
    ours.sort_unstable();
    ours.iter().try_for_each(|key| store.delete(key)).map_err(Error::from)
}

fn is_ours(name: &str) -> bool {
    let numbered = |stem: &str| {
        name.strip_prefix(stem)
            .and_then(|rest| rest.strip_suffix(".safetensors"))
            .is_some_and(|number| number.len() == 6 && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    ["COMMIT", "manifest.json", "shared.safetensors"].contains(&name) || numbered("weights-") || numbered("optimizer-")
}
