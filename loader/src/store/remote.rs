//! A place in an object store: requests whose answers are checked, and whose errors say what to do.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::list::PaginatedListStore;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::store::content_type;
use crate::store::entry::Entry;
use crate::store::failure::{read_error, write_error};
use crate::store::key;
use crate::store::listing::{self, Listing};
use crate::{Error, Result};

/// Bytes of one GET at most.
const GET: u64 = 16 << 20;
/// GETs of one range at the same time (only row groups without known pieces need several).
const GETS: usize = 4;

/// A folder or an object. Messages call it by the `url` that its methods are given.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(crate) client: Arc<dyn ObjectStore>,
    pub(crate) key: Key,
    pub(crate) lists: Lists,
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

impl Remote {
    /// The same store's place of another key.
    fn at(&self, key: Key) -> Self {
        Remote { client: self.client.clone(), key, lists: self.lists.clone() }
    }

    /// The place of a key below this folder; a folder may be named with the `/` behind it.
    pub(crate) fn below(&self, text: &str, url: impl FnOnce() -> String) -> Result<Self> {
        Ok(self.at(key::below(&self.key, text.strip_suffix('/').unwrap_or(text), url)?))
    }

    /// The folder that this lies in, and its name there.
    pub(crate) fn split(&self) -> Option<(Self, String)> {
        Some((self.at(self.key.parent()?), self.key.filename()?.to_string()))
    }

    /// Whether what is below it can be listed.
    pub(crate) fn lists(&self) -> bool {
        !matches!(self.lists, Lists::No)
    }

    /// What all URLs of it have in common, unless it is on a web server: those are all one kind of store, by whose name they cannot be told
    /// apart.
    pub(crate) fn name(&self) -> Option<String> {
        self.lists().then(|| format!("{}/{}", self.client, self.key))
    }

    /// Whether there is an object by this name, or a folder with something in it.
    pub(crate) async fn exists(self, url: String) -> Result<bool> {
        let told = |e| read_error(&url, e);
        match self.client.head(&self.key).await.map_err(told) {
            Ok(_) => return Ok(true),
            Err(Error::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
        match self.lists {
            Lists::Pages(pages) => Ok(!listing::is_empty(&*pages, &self.key).await.map_err(told)?),
            Lists::Whole => Ok(self.client.list(Some(&self.key)).try_next().await.map_err(told)?.is_some()),
            Lists::No => Ok(false),
        }
    }

    /// Stores an object; false if it exists and the mode is to create it.
    pub(crate) async fn put(self, bytes: Bytes, mode: PutMode, url: String) -> Result<bool> {
        let options = PutOptions { mode, attributes: content_type::attributes(&self.key), ..PutOptions::default() };
        match self.client.put_opts(&self.key, PutPayload::from_bytes(bytes), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(e) => Err(write_error(&url, e)),
        }
    }

    /// The whole object.
    pub(crate) async fn get(self, url: String) -> Result<Bytes> {
        let result = self.client.get(&self.key).await.map_err(|e| read_error(&url, e))?;
        let size = result.meta.size;
        let bytes = result.bytes().await.map_err(|e| read_error(&url, e))?;
        assert_length(&url, bytes.len() as u64, size)?;
        Ok(bytes)
    }

    /// A range of the object, in one GET.
    pub(crate) async fn get_range(self, range: Range<u64>, url: String) -> Result<Bytes> {
        self.get_exact(range, None, &url).await
    }

    /// A range of the object, in several GETs if it is long. Refused when the object has another tag than this.
    pub(crate) async fn fetch(self, range: Range<u64>, etag: Option<String>, url: String) -> Result<Bytes> {
        let etag = etag.as_deref();
        if range.end - range.start <= GET {
            return self.get_exact(range, etag, &url).await;
        }
        let starts: Vec<u64> = (range.start..range.end).step_by(GET as usize).collect();
        let parts: Vec<Bytes> = futures::stream::iter(starts)
            .map(|start| self.get_exact(start..(start + GET).min(range.end), etag, &url))
            .buffered(GETS)
            .try_collect()
            .await?;
        let mut all = Vec::with_capacity((range.end - range.start) as usize);
        parts.iter().for_each(|part| all.extend_from_slice(part));
        Ok(all.into())
    }

    /// A ranged GET whose length is asserted: stores' clients accept short bodies. A short or broken one is asked for again, three
    /// times; a request that fails was already retried by the client, within its budget.
    async fn get_exact(&self, range: Range<u64>, etag: Option<&str>, url: &str) -> Result<Bytes> {
        let asked = range.end - range.start;
        let mut attempt = 0u32;
        loop {
            let options = object_store::GetOptions { range: Some(range.clone().into()), ..Default::default() };
            let result = self.client.get_opts(&self.key, options).await.map_err(|e| read_error(url, e))?;
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

    /// What the store says of the object, by the key that it is to be called; nothing if it is absent.
    pub(crate) async fn head(self, key: String, url: String) -> Result<Option<Entry>> {
        match self.client.head(&self.key).await.map_err(|e| read_error(&url, e)) {
            Ok(m) => Ok(Some(Entry { key, size: m.size, etag: m.e_tag })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// All objects below this folder, sorted, with keys relative to `root`; and the keys that cannot be named.
    pub(crate) async fn list(self, root: Key, url: String, most: usize) -> Result<(Vec<Entry>, Vec<String>)> {
        let listing = match &self.lists {
            Lists::Pages(pages) => listing::list(&**pages, &self.key, most).await,
            Lists::Whole | Lists::No => {
                let objects = self.client.list(Some(&self.key)).take(most).try_collect().await;
                objects.map(|objects| Listing { objects, ..Listing::default() })
            }
        };
        let listing = match listing.map_err(|e| read_error(&url, e)) {
            Err(Error::NotFound { .. }) => Listing::default(),
            other => other?,
        };
        let entry =
            |m: ObjectMeta| Some(Entry { key: key::relative(&root, &m.location)?, size: m.size, etag: m.e_tag });
        let mut entries: Vec<Entry> = listing.objects.into_iter().filter_map(entry).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((entries, listing.unnamed))
    }

    /// Removes the object; one that is absent is fine.
    pub(crate) async fn delete(self, url: String) -> Result<()> {
        match self.client.delete(&self.key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(write_error(&url, e)),
        }
    }
}

fn assert_length(url: &str, got: u64, asked: u64) -> Result<()> {
    if got == asked {
        Ok(())
    } else {
        let problem = format!("{got} bytes came where {asked} were asked");
        Err(Error::Unreachable { location: url.into(), problem, source: None })
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

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::io;

    #[test]
    fn ranges_longer_than_a_request_are_whole() {
        let bytes: Vec<u8> = (0..5 * GET as usize + 8).map(|i| (i / 7 + i / (1 << 20)) as u8).collect();
        let object = Remote { client: Arc::new(InMemory::new()), key: Key::from("x"), lists: Lists::Whole };
        assert!(io::wait(object.clone().put(bytes.clone().into(), PutMode::Create, "x".into())).unwrap());
        for (start, length) in
            [(3, 1), (3, GET - 1), (3, GET), (3, GET + 1), (3, 2 * GET), (0, 4 * GET + 1), (7, 5 * GET + 1)]
        {
            let got = io::wait(object.clone().fetch(start..start + length, None, "x".into())).unwrap();
            assert!(got == bytes[start as usize..(start + length) as usize], "{length} bytes from {start}");
        }
    }
}
