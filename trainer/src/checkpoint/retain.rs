//! Removing old checkpoints.

use std::collections::BTreeSet;

use loader::Store;

use super::find::{attempts, read_manifest};
use super::format::{Found, folder};
use crate::Error;
use crate::recipe::Checkpoint;
use crate::report::metrics::Metrics;

/// The checkpoints that a run can go back to, as far as it knows: those up to the one that it continues, and its own. Read
/// once, so that a save need not read the manifests of all others.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Step and folder, oldest first; of each step the last.
    folders: Vec<(u64, String)>,
    /// Least held-out loss, and where; of equals the last.
    best: Option<(f64, String)>,
    /// Every committed folder that was there at the start, damaged ones too, and every one saved since: only these may be
    /// removed. Others are those of another process that goes on with the same run in object storage.
    seen: BTreeSet<String>,
}

impl Known {
    /// Those that a run has which goes on from `found`. Checkpoints of later steps are there when it fell back behind
    /// damaged ones: they do not count.
    ///
    /// # Errors
    /// Those of the store, and [`Error::OtherFormat`]; damaged checkpoints are passed over.
    pub fn until(store: &Store, found: &Found) -> Result<Known, Error> {
        let mut known = Known::default();
        let mut behind = false;
        for (step, attempt, _) in attempts(store)?.into_iter().filter(|(.., committed)| *committed) {
            let folder = folder(step, attempt);
            known.seen.insert(folder.clone());
            if behind {
                continue;
            }
            behind = folder == found.folder;
            match read_manifest(store, folder) {
                Ok(Found { folder, manifest }) => known.add(manifest.step, folder, manifest.held_out.as_ref()),
                Err(Error::Checkpoint(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(known)
    }

    /// One more, just committed.
    pub fn add(&mut self, step: u64, folder: String, held_out: Option<&Metrics>) {
        if let Some(loss) = held_out.map(|metrics| metrics.loss)
            && self.best.as_ref().is_none_or(|(best, _)| loss <= *best)
        {
            self.best = Some((loss, folder.clone()));
        }
        self.seen.insert(folder.clone());
        // A step that is saved again counts once.
        self.folders.retain(|(other, _)| *other != step);
        self.folders.push((step, folder));
    }

    /// The least held-out loss.
    pub fn best_loss(&self) -> f64 {
        self.best.as_ref().map_or(f64::INFINITY, |(loss, _)| *loss)
    }
}

/// Keeps as many of the newest known checkpoints as `rule` says, and if it says so the one with the least held-out loss; removes
/// all others of steps up to the newest that were there at the start or saved since, and what unfinished attempts left behind there. A checkpoint
/// loses its COMMIT first, so an interrupted removal leaves nothing that looks whole. Checkpoints that another process has
/// committed meanwhile stay, and so do files that no checkpoint of ours would hold.
///
/// # Errors
/// Those of the store; what is not yet removed stays for the next time.
pub fn retain(store: &Store, rule: &Checkpoint, known: &mut Known) -> Result<(), Error> {
    let Some(newest) = known.folders.last().cloned() else { return Ok(()) };
    let surplus = known.folders.len().saturating_sub(rule.keep);
    let best = known.best.as_ref().filter(|_| rule.best).map(|(_, folder)| folder);
    let mut index = 0;
    known.folders.retain(|(_, folder)| {
        index += 1;
        index > surplus || Some(folder) == best
    });
    for (step, attempt, committed) in attempts(store)? {
        let folder = folder(step, attempt);
        if (step, &folder) >= (newest.0, &newest.1) {
            break;
        }
        let kept = known.folders.iter().any(|(_, kept)| *kept == folder);
        if !kept && (!committed || known.seen.contains(&folder)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(loss: f64) -> Metrics {
        let zero = Metrics {
            loss,
            mse: 0.0,
            l1_norm: 0.0,
            explained_variance: None,
            explained_variance_rows: None,
            normalized_mse: None,
            l0: 0.0,
        };
        Metrics { mse: loss, ..zero }
    }

    /// The newest, as many as are kept, and the least loss; of equals the last.
    #[test]
    fn the_newest_stay_and_the_best() {
        let losses = [Some(3.0), Some(1.0), None, Some(1.0), Some(2.0), None, Some(4.0)];
        for (keep, best, kept) in [
            (1, true, vec![30, 60]),
            (1, false, vec![60]),
            (2, true, vec![30, 50, 60]),
            (4, true, vec![30, 40, 50, 60]),
            (5, false, vec![20, 30, 40, 50, 60]),
            (7, true, vec![0, 10, 20, 30, 40, 50, 60]),
            (8, true, vec![0, 10, 20, 30, 40, 50, 60]),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let store = Store::open(dir.path().to_str().expect("a plain name")).expect("a folder");
            let (mut known, rule) = (Known::default(), Checkpoint { keep, best, ..Checkpoint::default() });
            for (step, loss) in (0u64..).step_by(10).zip(losses) {
                store.put(&format!("{}/COMMIT", folder(step, 1)), b"x".to_vec()).expect("written");
                known.add(step, folder(step, 1), loss.map(measured).as_ref());
                retain(&store, &rule, &mut known).expect("old ones are removed");
            }
            let there = attempts(&store).expect("listed").into_iter().filter(|(.., committed)| *committed);
            assert_eq!(there.map(|(step, ..)| step).collect::<Vec<_>>(), kept, "keep = {keep}, best = {best}");
            assert_eq!(known.best_loss(), 1.0);
        }
    }

    #[test]
    fn checkpoints_of_another_process_stay() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path().to_str().expect("a plain name")).expect("a folder");
        let put = |folder: &str, name: &str| store.put(&format!("{folder}/{name}"), b"x".to_vec()).expect("written");
        let there = |folder: &str, name: &str| store.head(&format!("{folder}/{name}")).expect("listed").is_some();
        let mut known = Known::default();
        for step in [10, 30] {
            put(&folder(step, 1), "COMMIT");
            known.add(step, folder(step, 1), None);
        }
        put(&folder(20, 1), "COMMIT");
        put(&folder(25, 1), "manifest.json");
        retain(&store, &Checkpoint { keep: 1, ..Checkpoint::default() }, &mut known).expect("old ones are removed");
        assert!(!there(&folder(10, 1), "COMMIT"), "our own old one");
        assert!(there(&folder(20, 1), "COMMIT"), "one of another process");
        assert!(!there(&folder(25, 1), "manifest.json"), "what was never committed");
        assert!(there(&folder(30, 1), "COMMIT"), "the newest");
    }
}
