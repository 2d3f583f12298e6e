//! What kind of store there is behind an address.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path as Key;

/// Who answers requests.
#[derive(Clone)]
pub(crate) enum Backend {
    /// Plain files: read and written by this crate, for speed and for fsync.
    Local(PathBuf),
    /// Anything else.
    Remote { store: Arc<dyn ObjectStore>, prefix: Key, lists: Lists },
}

/// How a store says what it holds.
#[derive(Clone)]
pub(crate) enum Lists {
    /// Page by page.
    Pages(Arc<dyn PaginatedListStore>),
    /// All at once: memory.
    Whole,
    /// Not at all: plain HTTP servers.
    No,
}
