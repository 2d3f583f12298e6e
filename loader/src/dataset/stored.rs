//! Where a shard lies, and by what it is known again.

use crate::Store;

/// Where a shard is.
#[derive(Debug)]
pub(super) struct StoredShard {
    pub(super) store: Store,
    pub(super) key: String,
    /// The same for all paths that lead to one file.
    pub(super) place: String,
    /// The same for all shards of the same rows, as far as its manifest said so from the start: what is learned while reading must not
    /// end a run.
    pub(super) sums: Option<u128>,
}

impl StoredShard {
    pub(super) fn url(&self) -> String {
        self.store.url_of(&self.key)
    }
}
