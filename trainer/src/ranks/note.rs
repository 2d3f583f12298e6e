//! `error-RANK.json` in a run's folder: why a rank ended, for a person who finds the run, and for a launcher that looks for the first
//! cause.

use std::time::SystemTime;

use loader::Store;
use serde::{Deserialize, Serialize};

use crate::Error;

/// What a rank leaves when it fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Whose it is.
    pub rank: usize,
    /// When, in UTC: `2026-11-22T21:08:03Z`.
    pub time: String,
    /// Steps that were done.
    pub step: u64,
    /// What it was doing.
    pub operation: String,
    /// What its process ended with.
    pub exit_code: u8,
    /// Its words.
    pub error: String,
    /// The rank that failed first, when that was another one.
    pub peer: Option<usize>,
}

impl Note {
    /// Of `rank`, which failed with `error` after `step` steps, now. Of another rank's failure the error knows best what was
    /// being done.
    pub fn new(rank: usize, step: u64, operation: &str, error: &Error) -> Self {
        let (operation, peer) = match error.own() {
            Error::Device(kernels::Error::Peer { rank: peer, operation, .. }) => (*operation, Some(*peer)),
            _ => (operation, None),
        };
        Note {
            rank,
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            step,
            operation: operation.to_owned(),
            exit_code: error.exit().code(),
            error: error.to_string(),
            peer: peer.filter(|peer| *peer != rank),
        }
    }

    /// Leaves it in a run's folder. That it cannot be written must not hide the error itself.
    pub fn leave(&self, run: &Store) {
        let name = name(self.rank);
        let json = serde_json::to_string_pretty(self).map_err(|error| Error::Internal(error.into()));
        let written = json.and_then(|json| Ok(run.put(&name, format!("{json}\n").into_bytes())?));
        if let Err(second) = written {
            tracing::warn!("{name} could not be written: {second}");
        }
    }
}

/// The file of a rank.
pub fn name(rank: usize) -> String {
    format!("error-{rank}.json")
}

/// Whether a file is one.
pub fn is_note(key: &str) -> bool {
    let rank = key.strip_prefix("error-").and_then(|rest| rest.strip_suffix(".json"));
    rank.is_some_and(|rank| rank.parse::<usize>().is_ok())
}

#[cfg(test)]
mod tests {
    use kernels::ranks::Failure;

    use super::*;

    #[test]
    fn a_note_says_whose_failure_it_was() {
        let own = Error::Data("shard-1.parquet: damaged".to_owned());
        let note = Note::new(1, 7, "reading a batch", &own);
        assert_eq!((note.exit_code, note.operation.as_str(), note.peer), (65, "reading a batch", None));
        assert!(is_note(&name(12)) && !is_note("error-x.json"));
        let told = Error::from(own.failure(1).during("a roll call"));
        let note = Note::new(3, 7, "reading a batch", &told);
        assert_eq!((note.exit_code, note.operation.as_str(), note.peer), (65, "a roll call", Some(1)));
        // A rank that hears of it second-hand hears the same.
        assert_eq!(told.failure(3), own.failure(1));
        let gone = Error::from(Failure::seen(2, "it died".to_owned()).during("sum"));
        assert_eq!((Note::new(0, 7, "", &gone).exit_code, Note::new(2, 7, "", &gone).peer), (71, None));
    }
}
