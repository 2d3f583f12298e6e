//! The files of a source: found by one rule on names, read in ranges that lie inside them.

use std::ops::Range;

use bytes::Bytes;
use loader::{Entry, Error, Result, Store};
use xxhash_rust::xxh3::Xxh3;

/// A file of the source.
#[derive(Debug, Clone)]
pub(crate) struct File {
    store: Store,
    pub(crate) key: String,
    pub(crate) size: u64,
}

/// What the data say is wrong.
pub(crate) fn flaw(location: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Data { location: location.into(), problem: problem.into(), source: None, help: None }
}

/// The same with what found it.
pub(crate) fn flaw_of(
    location: impl Into<String>,
    problem: impl Into<String>,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::Data { location: location.into(), problem: problem.into(), source: Some(source.into()), help: None }
}

impl File {
    pub(crate) fn new(store: &Store, entry: Entry) -> Self {
        File { store: store.clone(), key: entry.key, size: entry.size }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// What it is called in messages.
    pub(crate) fn url(&self) -> String {
        self.store.url_of(&self.key)
    }

    pub(crate) fn flaw(&self, problem: impl Into<String>) -> Error {
        flaw(self.url(), problem)
    }

    /// The lower-case extension of its name.
    pub(crate) fn extension(&self) -> String {
        let name = self.key.rsplit('/').next().unwrap_or_default();
        name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default()
    }

    /// Bytes of the file, all of which it must have.
    pub(crate) fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.size {
            return Err(self.flaw(format!(
                "cut off or damaged: bytes {} to {} are needed of {}",
                range.start, range.end, self.size
            )));
        }
        if range.is_empty() { Ok(Bytes::new()) } else { self.store.get_range(&self.key, range) }
    }

    /// `length` bytes from `offset`, with sums that cannot overflow.
    pub(crate) fn read_at(&self, offset: u64, length: u64) -> Result<Bytes> {
        self.read(offset..offset.saturating_add(length))
    }

    /// The first bytes, as many as there are of so many.
    pub(crate) fn head(&self, length: u64) -> Result<Bytes> {
        self.read(0..length.min(self.size))
    }

    /// Takes note of what tells it from others: its name, size, beginning and end.
    pub(crate) fn identify(&self, hash: &mut Xxh3) -> Result<()> {
        let (first, last) = self.store.ends(&self.key, self.size)?;
        hash.update(&(self.key.len() as u64).to_le_bytes());
        hash.update(self.key.as_bytes());
        hash.update(&self.size.to_le_bytes());
        hash.update(&first);
        hash.update(&last);
        Ok(())
    }
}

/// What a source consists of.
#[derive(Debug)]
pub(crate) struct Found {
    /// The place, a folder or what the file lies in.
    pub(crate) store: Store,
    /// Sorted by key, those left out whose name or folder begins with `.` or `_`.
    pub(crate) files: Vec<File>,
}

fn is_hidden(key: &str) -> bool {
    key.split('/').any(|part| part.starts_with('.') || (part.starts_with('_') && !part.contains('=')))
}

/// Finds the files of a folder, or one file.
pub(crate) fn find(source: &str) -> Result<Found> {
    let folder = Store::open(source)?;
    let of_file = || -> Result<Option<Found>> {
        // What names no file, a whole bucket for example, may be a folder.
        let Ok((store, key)) = Store::open_file(source) else { return Ok(None) };
        let entry = store.head(&key)?;
        Ok(entry.map(|entry| Found { files: vec![File::new(&store, entry)], store }))
    };
    if folder.local_path().is_none_or(|path| !path.is_dir())
        && let Some(found) = of_file()?
    {
        return Ok(found);
    }
    if !folder.lists() {
        return Err(Error::Arguments(format!("{source}: its store cannot list: name one file")));
    }
    let entries = folder.list("")?;
    if entries.is_empty() {
        return Err(Error::NotFound {
            location: source.into(),
            hint: ": name a file or a folder of files".into(),
            source: None,
        });
    }
    let files = entries.into_iter().filter(|e| !is_hidden(&e.key)).map(|e| File::new(&folder, e)).collect();
    Ok(Found { store: folder, files })
}
