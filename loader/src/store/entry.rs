//! What a listing says of an object.

/// One stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the store's folder.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Changes when the object does.
    pub etag: Option<String>,
}
