//! A file of another tool, read in ranges that lie inside of it.

use std::ops::Range;

use bytes::Bytes;
use loader::{Entry, Error, Result, Store};

/// A file whose size is known.
#[derive(Debug, Clone)]
pub struct File {
    store: Store,
    key: String,
    size: u64,
}

/// An error of data: what is wrong with them, and where.
pub fn flaw(location: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Data { location: location.into(), problem: problem.into(), source: None, help: None }
}

/// The same with what found it.
pub fn flaw_of(
    location: impl Into<String>,
    problem: impl Into<String>,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::Data { location: location.into(), problem: problem.into(), source: Some(source.into()), help: None }
}

impl File {
    /// A file that was found in a store.
    pub fn new(store: &Store, entry: Entry) -> File {
        File { store: store.clone(), key: entry.key, size: entry.size }
    }

    /// The file of this key; nothing where there is none.
    ///
    /// # Errors
    /// Those of the store.
    pub fn find(store: &Store, key: &str) -> Result<Option<File>> {
        Ok(store.head(key)?.map(|entry| File::new(store, entry)))
    }

    /// Where it lies.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What it is called there.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What it is called in messages.
    pub fn url(&self) -> String {
        self.store.url_of(&self.key)
    }

    /// An error: something is wrong with it.
    pub fn flaw(&self, problem: impl Into<String>) -> Error {
        flaw(self.url(), problem)
    }

    /// Bytes of the file, all of which it must have.
    ///
    /// # Errors
    /// [`Error::Data`] where they lie outside, and those of the store.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.size {
            return Err(self.flaw(format!(
                "cut off or damaged: bytes {} to {} are needed of {}",
                range.start, range.end, self.size
            )));
        }
        if range.is_empty() { Ok(Bytes::new()) } else { self.store.get_range(&self.key, range) }
    }

    /// `length` bytes from `offset`, with sums that cannot overflow.
    ///
    /// # Errors
    /// Those of [`File::read`].
    pub fn read_at(&self, offset: u64, length: u64) -> Result<Bytes> {
        self.read(offset..offset.saturating_add(length))
    }

    /// The first bytes, as many as there are of so many.
    ///
    /// # Errors
    /// Those of the store.
    pub fn head(&self, length: u64) -> Result<Bytes> {
        self.read(0..length.min(self.size))
    }
}
