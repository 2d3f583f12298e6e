//! A place that somebody named, and the shards there.

use super::rule::Why;
use crate::{Entry, Manifest, Store};

/// One shard as found by listing.
pub(super) struct FoundShard {
    pub(super) store: Store,
    pub(super) key: String,
    /// Its path in the manifest.
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) etag: Option<String>,
}

/// What lies at one place.
pub(super) struct Place {
    pub(super) store: Store,
    pub(super) shards: Vec<Entry>,
    /// Keys, those of folders with a `/` behind them, in order.
    pub(super) left_out: Vec<(String, Why)>,
    /// Of these shards and column.
    pub(super) manifest: Option<Manifest>,
    /// Whether it is a folder with all that belongs to it, and not a file or what a glob finds.
    pub(super) is_whole: bool,
}

impl Place {
    /// Why a file that lies there is not read, by itself or with the folder around it.
    pub(super) fn why_not(&self, key: &str) -> Option<Why> {
        let is_left_out = |path: &str| {
            let at = self.left_out.binary_search_by(|(left_out, _)| left_out.as_str().cmp(path)).ok()?;
            Some(self.left_out[at].1)
        };
        let folders = key.match_indices('/').map(|(end, _)| &key[..=end]);
        folders.chain([key]).find_map(is_left_out)
    }

    /// The table format whose log lies there: it may have removed files that are still there.
    pub(super) fn table_format(&self) -> Option<&'static str> {
        let holds = |log: &str| self.left_out.iter().any(|(path, _)| path == log || path.ends_with(&format!("/{log}")));
        [("_delta_log/", "Delta"), (".hoodie/", "Hudi")].into_iter().find(|(log, _)| holds(log)).map(|(_, name)| name)
    }
}
