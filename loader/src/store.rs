//! A folder in any store, with the few blocking operations that shards, checkpoints and run directories need.
//!
//! Local files are read and written by this crate, for speed and for fsync: a write goes to a temporary file, is synced and renamed, and
//! the folder is synced. Anything else is an object store, whose puts are atomic by nature. Which of the two it is
//! is matched in this file alone.

pub(crate) mod address;
pub(crate) mod content_type;
pub(crate) mod entry;
pub(crate) mod environment;
pub(crate) mod failure;
pub(crate) mod io;
pub(crate) mod key;
pub(crate) mod listing;
pub(crate) mod local;
pub(crate) mod location;
pub(crate) mod multipart;
pub(crate) mod outage;
pub mod patience;
pub(crate) mod redact;
pub(crate) mod remote;
pub(crate) mod variable;

use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use object_store::PutMode;

use crate::store::local::{OpenFile, Pending};
use crate::store::multipart::Multipart;
use crate::store::remote::Remote;
use crate::{Entry, Result};

/// A folder in a store. Cheap to clone. Keys are relative, with `/` between parts.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
    url: String,
}

/// Where a folder or an object is.
#[derive(Clone)]
enum Backend {
    Local(PathBuf),
    Remote(Remote),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    /// A folder of local files.
    pub(crate) fn local(path: PathBuf, url: String) -> Self {
        Store { backend: Backend::Local(path), url }
    }

    /// A folder in an object store.
    pub(crate) fn remote(folder: Remote, url: String) -> Self {
        Store { backend: Backend::Remote(folder), url }
    }

    /// The folder as the user wrote it; never holds credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A folder below this one.
    pub fn join(&self, folder: &str) -> Result<Store> {
        Ok(Store { backend: self.at(folder)?, url: self.url_of(folder) })
    }

    /// The folder that this lies in, which is called `url`, and the name of this there.
    pub(crate) fn split(&self, url: &str) -> Option<(Store, String)> {
        let url = url.to_string();
        match &self.backend {
            Backend::Local(path) => {
                Some((Store::local(path.parent()?.to_path_buf(), url), path.file_name()?.to_str()?.to_string()))
            }
            Backend::Remote(remote) => remote.split().map(|(folder, name)| (Store::remote(folder, url), name)),
        }
    }

    /// What a key is called in messages: as it would be typed.
    pub fn url_of(&self, key: &str) -> String {
        if key.is_empty() { self.url.clone() } else { format!("{}/{}", self.url, key::typed(&self.url, key)) }
    }

    /// The folder's path, if it is local.
    pub fn local_path(&self) -> Option<&Path> {
        match &self.backend {
            Backend::Local(root) => Some(root),
            Backend::Remote(_) => None,
        }
    }

    /// Where an object or a folder below this one is.
    fn at(&self, key: &str) -> Result<Backend> {
        match &self.backend {
            Backend::Local(root) => Ok(Backend::Local(root.join(key))),
            Backend::Remote(folder) => folder.below(key, || self.url_of(key)).map(Backend::Remote),
        }
    }

    /// Whether this folder is another one or lies below it, links resolved as far as there are such folders.
    pub fn lies_in(&self, folder: &Store) -> bool {
        match (self.local_path(), folder.local_path()) {
            (Some(inner), Some(outer)) => local::resolved(inner).starts_with(local::resolved(outer)),
            (None, None) => {
                let below = self.url().strip_prefix(folder.url().trim_end_matches('/'));
                below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
            }
            _ => false,
        }
    }

    /// What all URLs of an object have in common, where its store can say so; its URL otherwise.
    pub(crate) fn name_of(&self, key: &str) -> String {
        match self.at(key) {
            Ok(Backend::Remote(object)) => object.name().unwrap_or_else(|| self.url_of(key)),
            // Where it is no key, reading tells.
            Ok(Backend::Local(_)) | Err(_) => self.url_of(key),
        }
    }

    /// Whether what is in it can be listed: not on a server that has no such thing.
    pub fn lists(&self) -> bool {
        match &self.backend {
            Backend::Local(_) => true,
            Backend::Remote(folder) => folder.lists(),
        }
    }

    /// Whether something is there by the name of this folder: the folder, with something in it where folders are no more than that, or
    /// a file.
    pub(crate) fn exists(&self) -> Result<bool> {
        match &self.backend {
            Backend::Local(root) => Ok(root.symlink_metadata().is_ok()),
            Backend::Remote(folder) => io::wait(folder.clone().exists(self.url.clone())),
        }
    }

    /// Stores an object, all or nothing, replacing an earlier one.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        self.put_with(key, bytes.into(), PutMode::Overwrite).map(|_| ())
    }

    /// Stores an object unless the key exists; says whether it did. Some S3 servers silently ignore the condition: use keys
    /// of your own, and take this as a second lock.
    pub fn put_new(&self, key: &str, bytes: impl Into<Bytes>) -> Result<bool> {
        self.put_with(key, bytes.into(), PutMode::Create)
    }

    fn put_with(&self, key: &str, bytes: Bytes, mode: PutMode) -> Result<bool> {
        let url = self.url_of(key);
        match &self.backend {
            Backend::Local(root) => local::put(root, key, &bytes, mode == PutMode::Create),
            Backend::Remote(folder) => io::wait(folder.below(key, || url.clone())?.put(bytes, mode, url)),
        }
    }

    /// Begins an object that is written piece by piece.
    pub(crate) fn upload(&self, key: &str) -> Result<Upload> {
        let url = self.url_of(key);
        match &self.backend {
            Backend::Local(root) => Pending::create(root, key).map(Upload::File),
            Backend::Remote(folder) => {
                let object = folder.below(key, || url.clone())?;
                Ok(Upload::Object(Multipart::create(object.client, object.key, url)))
            }
        }
    }

    /// The whole object.
    pub fn get(&self, key: &str) -> Result<Bytes> {
        match self.at(key)? {
            Backend::Local(path) => local::read(&path),
            Backend::Remote(object) => io::wait(object.get(self.url_of(key))),
        }
    }

    /// The first and the last bytes of an object of `size` bytes, up to 32 KiB of each: with its size they tell it from others.
    ///
    /// # Errors
    /// Those of the store.
    pub fn ends(&self, key: &str, size: u64) -> Result<(Bytes, Bytes)> {
        /// Bytes that are looked at from each end.
        const LOOKED_AT: u64 = 32 << 10;
        let read = |range: Range<u64>| if range.is_empty() { Ok(Bytes::new()) } else { self.get_range(key, range) };
        Ok((read(0..size.min(LOOKED_AT))?, read(size - size.min(LOOKED_AT)..size)?))
    }

    /// A part of an object, of exactly the asked length.
    pub fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        match self.at(key)? {
            Backend::Local(path) => local::read_range(path, range),
            Backend::Remote(object) => io::wait(object.get_range(range, self.url_of(key))),
        }
    }

    /// The same without blocking, if the object still has the tag that it is given. Of local files only the length is looked at, and
    /// reading them blocks: threads that wait for nothing else read them by [`Store::open_unchanged`].
    pub(crate) fn fetch(
        &self,
        key: &str,
        range: Range<u64>,
        etag: Option<String>,
    ) -> Result<impl Future<Output = Result<Bytes>> + Send + use<>> {
        let (at, url) = (self.at(key)?, self.url_of(key));
        Ok(async move {
            match at {
                Backend::Local(path) => local::read_range(path, range),
                Backend::Remote(object) => object.fetch(range, etag, url).await,
            }
        })
    }

    /// The file of an object, open for threads that read it themselves, if the store is local. One that has another size or tag by now
    /// is refused.
    pub(crate) fn open_unchanged(&self, key: &str, size: u64, etag: Option<&str>) -> Result<Option<OpenFile>> {
        match &self.backend {
            Backend::Local(root) => {
                let file = OpenFile::open(root.join(key))?;
                file.check_unchanged(size, etag)?;
                Ok(Some(file))
            }
            Backend::Remote(_) => Ok(None),
        }
    }

    /// Size and tag of an object, or nothing.
    pub fn head(&self, key: &str) -> Result<Option<Entry>> {
        match self.at(key)? {
            Backend::Local(path) => local::entry_of(&path, key.to_string()),
            Backend::Remote(object) => io::wait(object.head(key.to_string(), self.url_of(key))),
        }
    }

    /// All objects below a folder of this one (`""` for all), sorted by key. An absent folder is empty. Objects whose keys cannot be
    /// named are left out, with one warning that names them.
    pub fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        self.list_some(folder, usize::MAX)
    }

    /// The same of a place that may hold anything: some of them where there are more than about `most`.
    pub fn list_some(&self, folder: &str, most: usize) -> Result<Vec<Entry>> {
        match &self.backend {
            Backend::Local(root) => local::list(root, folder, most),
            Backend::Remote(root) => {
                let url = self.url_of(folder);
                let below = root.below(folder, || url.clone())?;
                let (entries, unnamed) = io::wait(below.list(root.key.clone(), url, most))?;
                self.warn_of(unnamed);
                Ok(entries)
            }
        }
    }

    /// Names whole keys that a listing has left out, each once in the life of the process.
    fn warn_of(&self, unnamed: Vec<String>) {
        /// Keys that one message names.
        const NAMED: usize = 10;
        static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let bucket = self.url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
        let urls = unnamed.into_iter().map(|name| format!("{bucket}/{}", name.escape_debug()));
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<String> = urls.filter(|url| told.insert(url.clone())).collect();
        if !new.is_empty() {
            let (named, more) =
                (new.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", "), new.len().saturating_sub(NAMED));
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            tracing::warn!("left out: {named}{more}: {}", key::CANNOT_BE_NAMED);
        }
    }

    /// Removes the half-written files that killed writers have left in a local folder, young ones too: only for a folder that nobody else
    /// writes to.
    pub fn forget_unfinished(&self) -> Result<()> {
        self.local_path().map_or(Ok(()), local::remove_unfinished)
    }

    /// Removes an object; one that is absent is fine. Local folders that this leaves empty go too, as they would in an
    /// object store.
    pub fn delete(&self, key: &str) -> Result<()> {
        match &self.backend {
            Backend::Local(root) => local::delete(root, key),
            Backend::Remote(folder) => {
                let url = self.url_of(key);
                io::wait(folder.below(key, || url.clone())?.delete(url))
            }
        }
    }
}

/// An object on its way, which appears, whole, when it is finished.
pub(crate) enum Upload {
    File(Pending),
    Object(Multipart),
}

impl Upload {
    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        match self {
            Upload::File(pending) => pending.write(&bytes),
            Upload::Object(multipart) => multipart.write(bytes),
        }
    }

    /// Makes the object visible under its key.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Upload::File(pending) => pending.commit(false).map(|_| ()),
            Upload::Object(multipart) => multipart.finish(),
        }
    }
}
