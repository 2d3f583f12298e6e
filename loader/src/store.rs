//! A folder in any store, with the few blocking operations that shards, checkpoints and run directories need.
//!
//! Local writes go to a temporary file, are synced and renamed, and the folder is synced; remote puts are atomic by nature.

pub(crate) mod address;
pub(crate) mod backend;
pub(crate) mod entry;
pub(crate) mod environment;
pub(crate) mod io;
pub(crate) mod key;
pub(crate) mod listing;
pub(crate) mod local;
pub(crate) mod location;
pub(crate) mod outage;
pub mod patience;
pub(crate) mod redact;
pub(crate) mod upload;
pub(crate) mod variable;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use crate::store::backend::{Backend, Lists};
use crate::store::environment::no_credentials;
use crate::store::listing::Listing;
use crate::store::redact::Redacted;
use crate::{Entry, Error, Result};

/// A folder in a store. Cheap to clone. Keys are relative, with `/` between parts.
#[derive(Clone)]
pub struct Store {
    pub(crate) backend: Backend,
    url: String,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    pub(crate) fn new(backend: Backend, url: String) -> Self {
        Store { backend, url }
    }

    /// The folder as the user wrote it; never holds credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A folder below this one.
    pub fn join(&self, folder: &str) -> Result<Store> {
        let mut backend = self.backend.clone();
        match &mut backend {
            Backend::Local(root) => *root = root.join(folder),
            Backend::Remote { prefix, .. } => *prefix = self.key(prefix, folder)?,
        }
        Ok(Store { backend, url: self.url_of(folder) })
    }

    /// What a key is called in messages: as it would be typed.
    pub fn url_of(&self, key: &str) -> String {
        if key.is_empty() { self.url.clone() } else { format!("{}/{}", self.url, key::typed(&self.url, key)) }
    }

    /// The folder's path, if it is local.
    pub fn local_path(&self) -> Option<&Path> {
        match &self.backend {
            Backend::Local(root) => Some(root),
            Backend::Remote { .. } => None,
        }
    }

    pub(crate) fn target(&self, key: &str) -> Result<Target> {
        Ok(match &self.backend {
            Backend::Local(root) => Target::Local(root.join(key)),
            Backend::Remote { store, prefix, .. } => Target::Remote(store.clone(), self.key(prefix, key)?),
        })
    }

    /// A folder may be named with the `/` behind it.
    fn key(&self, prefix: &Key, key: &str) -> Result<Key> {
        key::below(prefix, key.strip_suffix('/').unwrap_or(key), || self.url_of(key))
    }

    /// Whether what is in it can be listed: not on a server that has no such thing.
    pub fn lists(&self) -> bool {
        !matches!(self.backend, Backend::Remote { lists: Lists::No, .. })
    }

    /// Whether something is there by the name of this folder: the folder, with something in it where folders are no more than that, or
    /// a file.
    pub(crate) fn exists(&self) -> Result<bool> {
        let (store, prefix, lists) = match &self.backend {
            Backend::Local(root) => return Ok(root.symlink_metadata().is_ok()),
            Backend::Remote { store, prefix, lists } => (store.clone(), prefix.clone(), lists.clone()),
        };
        let url = self.url.clone();
        io::wait(async move {
            let told = |e| read_error(&url, e);
            match store.head(&prefix).await.map_err(told) {
                Ok(_) => return Ok(true),
                Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
            match lists {
                Lists::Pages(pages) => Ok(!listing::is_empty(&*pages, &prefix).await.map_err(told)?),
                Lists::Whole => Ok(store.list(Some(&prefix)).try_next().await.map_err(told)?.is_some()),
                Lists::No => Ok(false),
            }
        })
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
        match &self.backend {
            Backend::Local(root) => local::put(root, key, &bytes, mode == PutMode::Create),
            Backend::Remote { store, prefix, .. } => {
                let (store, path, url) = (store.clone(), self.key(prefix, key)?, self.url_of(key));
                io::wait(async move {
                    match store.put_opts(&path, PutPayload::from_bytes(bytes), mode.into()).await {
                        Ok(_) => Ok(true),
                        Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                            Ok(false)
                        }
                        Err(e) => Err(write_error(&url, e)),
                    }
                })
            }
        }
    }

    /// The whole object.
    pub fn get(&self, key: &str) -> Result<Bytes> {
        match self.target(key)? {
            Target::Local(path) => std::fs::read(&path).map(Bytes::from).map_err(|e| local::read_error(&path, e)),
            Target::Remote(store, path) => {
                let url = self.url_of(key);
                io::wait(async move {
                    let result = store.get(&path).await.map_err(|e| read_error(&url, e))?;
                    let size = result.meta.size;
                    let bytes = result.bytes().await.map_err(|e| read_error(&url, e))?;
                    assert_length(&url, bytes.len() as u64, size)?;
                    Ok(bytes)
                })
            }
        }
    }

    /// A part of an object, of exactly the asked length.
    pub fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        match self.target(key)? {
            Target::Local(path) => {
                let file = local::open(&path)?;
                let size = file.metadata().map_err(|e| local::read_error(&path, e))?.len();
                if range.end > size || range.start > range.end {
                    let problem = format!("bytes {}..{} asked of a file of {size}", range.start, range.end);
                    return Err(Error::changed(path.display().to_string(), problem));
                }
                let mut out = vec![0; (range.end - range.start) as usize];
                local::read_at(&file, &path, range.start, &mut out)?;
                Ok(out.into())
            }
            Target::Remote(store, path) => {
                let url = self.url_of(key);
                io::wait(async move { get_exact(&*store, &path, range, None, &url).await })
            }
        }
    }

    /// Size and tag of an object, or nothing.
    pub fn head(&self, key: &str) -> Result<Option<Entry>> {
        match self.target(key)? {
            Target::Local(path) => {
                Ok(local::stat(&path)?.map(|(size, etag)| Entry { key: key.into(), size, etag: Some(etag) }))
            }
            Target::Remote(store, path) => {
                let (url, key) = (self.url_of(key), key.to_string());
                io::wait(async move {
                    match store.head(&path).await {
                        Ok(m) => Ok(Some(Entry { key, size: m.size, etag: m.e_tag })),
                        Err(e) => match read_error(&url, e) {
                            Error::NotFound { .. } => Ok(None),
                            other => Err(other),
                        },
                    }
                })
            }
        }
    }

    /// All objects below a folder of this one (`""` for all), sorted by key. An absent folder is empty. Objects whose keys cannot be
    /// named are left out, with one warning that names them.
    pub fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        let (store, root, lists) = match &self.backend {
            Backend::Local(root) => {
                let mut entries = Vec::new();
                local::list(root, &root.join(folder), &mut entries)?;
                return Ok(entries);
            }
            Backend::Remote { store, prefix, lists } => (store.clone(), prefix.clone(), lists.clone()),
        };
        let (from, url) = (self.key(&root, folder)?, self.url_of(folder));
        let listing = io::wait(async move {
            let listing = match lists {
                Lists::Pages(pages) => listing::list(&*pages, &from).await,
                _ => {
                    store.list(Some(&from)).try_collect().await.map(|objects| Listing { objects, ..Listing::default() })
                }
            };
            match listing.map_err(|e| read_error(&url, e)) {
                Err(Error::NotFound { .. }) => Ok(Listing::default()),
                other => other,
            }
        })?;
        self.warn_of(listing.unnamed);
        let entry =
            |m: ObjectMeta| Some(Entry { key: key::relative(&root, &m.location)?, size: m.size, etag: m.e_tag });
        let mut entries: Vec<Entry> = listing.objects.into_iter().filter_map(entry).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
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
        match self.target(key)? {
            Target::Local(path) => match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(local::write_error(&path, e)),
                _ => {
                    let inside = |folder: &&Path| self.local_path().is_some_and(|root| *folder != root);
                    // A folder that is not empty cannot be removed, and ends the walk.
                    let _ = path.ancestors().skip(1).take_while(inside).try_for_each(std::fs::remove_dir);
                    Ok(())
                }
            },
            Target::Remote(store, path) => {
                let url = self.url_of(key);
                io::wait(async move {
                    match store.delete(&path).await {
                        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                        Err(e) => Err(write_error(&url, e)),
                    }
                })
            }
        }
    }
}

/// Where a key's bytes are.
pub(crate) enum Target {
    Local(PathBuf),
    Remote(Arc<dyn ObjectStore>, Key),
}

fn assert_length(url: &str, got: u64, asked: u64) -> Result<()> {
    if got == asked {
        Ok(())
    } else {
        let problem = format!("{got} bytes came where {asked} were asked");
        Err(Error::Unreachable { location: url.into(), problem, source: None })
    }
}

/// A ranged GET whose length is asserted: stores' clients accept short bodies. A short or broken one is asked for again, three
/// times; a request that fails was already retried by the client, within its budget.
pub(crate) async fn get_exact(
    store: &dyn ObjectStore,
    path: &Key,
    range: Range<u64>,
    etag: Option<&str>,
    url: &str,
) -> Result<Bytes> {
    let asked = range.end - range.start;
    let mut attempt = 0u32;
    loop {
        let options = object_store::GetOptions { range: Some(range.clone().into()), ..Default::default() };
        let result = store.get_opts(path, options).await.map_err(|e| read_error(url, e))?;
        check_tag(url, etag, result.meta.e_tag.as_deref())?;
        let body = collect(result, asked as usize).await.map_err(|e| read_error(url, e));
        let exact = body.and_then(|bytes| assert_length(url, bytes.len() as u64, asked).map(|()| bytes));
        match exact {
            Err(Error::Unreachable { .. }) if attempt < 3 => {
                attempt += 1;
                tokio::time::sleep(std::time::Duration::from_millis(50 << (2 * attempt))).await;
            }
            other => return other,
        }
    }
}

/// The body in one piece, without trusting its length for the allocation.
async fn collect(result: object_store::GetResult, asked: usize) -> object_store::Result<Bytes> {
    let mut body = result.into_stream();
    let Some(first) = body.next().await.transpose()? else { return Ok(Bytes::new()) };
    if first.len() >= asked {
        return Ok(first);
    }
    let mut all = Vec::with_capacity(asked);
    all.extend_from_slice(&first);
    while let Some(part) = body.next().await.transpose()? {
        if all.len() + part.len() > asked {
            break;
        }
        all.extend_from_slice(&part);
    }
    Ok(all.into())
}

fn check_tag(url: &str, known: Option<&str>, now: Option<&str>) -> Result<()> {
    match (known, now) {
        (Some(known), Some(now)) if known != now => {
            Err(Error::changed(url, "its ETag differs: the object was replaced"))
        }
        _ => Ok(()),
    }
}

/// A store's error while reading.
pub(crate) fn read_error(url: &str, e: object_store::Error) -> Error {
    use object_store::Error as E;
    let given_up = patience::given_up(&e);
    let e = Redacted::from(e);
    let (location, text) = (url.to_string(), e.to_string());
    let address = |problem: String, e: Redacted| Error::address(url, problem, e);
    match e.get() {
        _ if text.contains("NoSuchBucket") => {
            address("the bucket does not exist (or lies at another endpoint or region)".into(), e)
        }
        // The machine is no cloud instance, or one without a role.
        _ if ["169.254.169.254", "metadata.google.internal"].iter().any(|service| text.contains(service)) => {
            let problem = no_credentials(&location);
            Error::Denied { location, problem, source: Some(e.into()) }
        }
        _ if e.is_expired() => {
            let problem = "the credentials in the environment have expired: put new ones there".into();
            Error::Denied { location, problem, source: Some(e.into()) }
        }
        E::NotFound { .. } => Error::NotFound { location, hint: String::new(), source: Some(e.into()) },
        // Listings report a refusal without its type.
        refusal if matches!(refusal, E::PermissionDenied { .. } | E::Unauthenticated { .. }) || is_refusal(&text) => {
            let problem = format!(
                "check the credentials in the environment and the bucket's policy; the store says: {}",
                brief(&text)
            );
            Error::Denied { location, problem, source: Some(e.into()) }
        }
        E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. } => address(text, e),
        _ if text.contains("redirect without LOCATION") => {
            address("the bucket lies in another region: set AWS_REGION".into(), e)
        }
        _ if text.contains("URL scheme is not allowed") => {
            address("the endpoint is plain http: set AWS_ALLOW_HTTP=true if that is meant".into(), e)
        }
        _ => {
            let problem = given_up.unwrap_or_else(|| brief(&text));
            Error::Unreachable { location, problem, source: Some(e.into()) }
        }
    }
}

fn is_refusal(text: &str) -> bool {
    ["status code: 403", "status code: 401"].iter().any(|code| text.contains(code))
}

/// A store's error while writing: refusals mean that writing is impossible there.
pub(crate) fn write_error(url: &str, e: object_store::Error) -> Error {
    match read_error(url, e) {
        Error::Denied { location, problem, source } => Error::CannotWrite { location, problem, source },
        Error::NotFound { location, source, .. } => {
            Error::CannotWrite { location, problem: "the target does not exist".into(), source }
        }
        other => other,
    }
}

/// The first line, of bounded length: servers answer with whole XML documents.
fn brief(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > 400 { format!("{}…", line.chars().take(400).collect::<String>()) } else { line }
}
