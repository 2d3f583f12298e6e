//! One object written piece by piece: a temporary file that is synced and renamed, or a multipart upload.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::task::JoinHandle;

use crate::store::backend::Backend;
use crate::store::io;
use crate::store::key;
use crate::store::local::Pending;
use crate::store::write_error;
use crate::{Error, Result, Store};

/// Bytes of a part; all but the last are equal, as some stores demand.
const PART: usize = 16 << 20;
/// Parts on their way at the same time.
const PARTS: usize = 4;

/// An object that appears, whole, when it is finished.
pub(crate) enum Upload {
    Local(Pending),
    Remote(Remote),
}

/// A multipart upload; a small object is put at once.
pub(crate) struct Remote {
    store: Arc<dyn ObjectStore>,
    key: Key,
    url: String,
    buffer: Vec<u8>,
    multipart: Option<Box<dyn MultipartUpload>>,
    parts: VecDeque<JoinHandle<object_store::Result<()>>>,
}

impl Upload {
    pub(crate) fn create(store: &Store, key: &str) -> Result<Self> {
        match &store.backend {
            Backend::Local(root) => Pending::create(root, key).map(Upload::Local),
            Backend::Remote { store: remote, prefix, .. } => Ok(Upload::Remote(Remote {
                store: remote.clone(),
                key: key::below(prefix, key, || store.url_of(key))?,
                url: store.url_of(key),
                buffer: Vec::new(),
                multipart: None,
                parts: VecDeque::new(),
            })),
        }
    }

    pub(crate) fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        match self {
            Upload::Local(pending) => pending.write(&bytes),
            Upload::Remote(remote) => remote.write(bytes),
        }
    }

    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Upload::Local(pending) => pending.commit(false).map(|_| ()),
            Upload::Remote(remote) => remote.finish(),
        }
    }
}

impl Remote {
    fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        if self.buffer.is_empty() {
            self.buffer = bytes
        } else {
            self.buffer.extend_from_slice(&bytes)
        }
        while self.buffer.len() > PART {
            let rest = self.buffer.split_off(PART);
            let part = std::mem::replace(&mut self.buffer, rest);
            self.put(part.into())?;
        }
        Ok(())
    }

    fn put(&mut self, part: Bytes) -> Result<()> {
        if self.multipart.is_none() {
            let (store, key, url) = (self.store.clone(), self.key.clone(), self.url.clone());
            self.multipart =
                Some(io::wait(async move { store.put_multipart(&key).await.map_err(|e| write_error(&url, e)) })?);
        }
        if let Some(multipart) = &mut self.multipart {
            let sending = multipart.put_part(PutPayload::from_bytes(part));
            self.parts.push_back(io::runtime()?.spawn(sending));
        }
        self.settle(PARTS - 1)
    }

    /// Waits until at most `left` parts are on their way.
    fn settle(&mut self, left: usize) -> Result<()> {
        while self.parts.len() > left {
            let Some(part) = self.parts.pop_front() else { break };
            let url = self.url.clone();
            io::wait(async move {
                let died = |e: tokio::task::JoinError| Error::Unreachable {
                    location: url.clone(),
                    problem: e.to_string(),
                    source: Some(e.into()),
                };
                part.await.map_err(died)?.map_err(|e| write_error(&url, e))
            })?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let last = Bytes::from(std::mem::take(&mut self.buffer));
        let url = self.url.clone();
        if self.multipart.is_none() {
            let (store, key) = (self.store.clone(), self.key.clone());
            let put =
                async move { store.put(&key, PutPayload::from_bytes(last)).await.map_err(|e| write_error(&url, e)) };
            return io::wait(put).map(|_| ());
        }
        if !last.is_empty() {
            self.put(last)?;
        }
        self.settle(0)?;
        match self.multipart.take() {
            Some(mut multipart) => {
                io::wait(async move { multipart.complete().await.map_err(|e| write_error(&url, e)) }).map(|_| ())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let (Some(mut multipart), Ok(runtime)) = (self.multipart.take(), io::runtime()) {
            // Best effort: parts without an object cost money until the bucket's policy removes them.
            runtime.spawn(async move { multipart.abort().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As one object or in parts: as many bytes as a part, one more or less, more parts than are on their way at once.
    #[test]
    fn an_object_is_what_was_written_whatever_its_parts() {
        let bytes: Vec<u8> = (0..5 * PART + 1).map(|i| (i / 3 + i / PART) as u8).collect();
        let store = Store::open("memory://upload").unwrap();
        for size in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 4 * PART, 5 * PART + 1] {
            for written_at_once in [PART + 5, 7 << 20] {
                let mut upload = Upload::create(&store, "x").unwrap();
                bytes[..size].chunks(written_at_once).for_each(|some| upload.write(some.to_vec()).unwrap());
                upload.finish().unwrap();
                assert!(store.get("x").unwrap() == bytes[..size], "{size} bytes, {written_at_once} at once");
            }
        }
    }
}
