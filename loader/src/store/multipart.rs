//! One object of an object store, written piece by piece: a multipart upload, or one put where it is small.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, PutPayload};
use tokio::task::JoinHandle;

use crate::store::content_type;
use crate::store::failure::write_error;
use crate::store::io;
use crate::{Error, Result};

/// Bytes of a part; all but the last are equal, as some stores demand.
const PART: usize = 16 << 20;
/// Parts on their way at the same time.
const PARTS: usize = 4;

/// An object that appears, whole, when it is finished.
pub(crate) struct Multipart {
    client: Arc<dyn ObjectStore>,
    key: Key,
    url: String,
    buffer: Vec<u8>,
    upload: Option<Box<dyn MultipartUpload>>,
    parts: VecDeque<JoinHandle<object_store::Result<()>>>,
}

impl Multipart {
    /// Begins an object, which messages call `url`. Nothing is sent before there is a whole part.
    pub(crate) fn create(client: Arc<dyn ObjectStore>, key: Key, url: String) -> Self {
        Multipart { client, key, url, buffer: Vec::new(), upload: None, parts: VecDeque::new() }
    }

    /// Appends bytes, and sends what makes a whole part; waits while four are on their way.
    pub(crate) fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
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
        if self.upload.is_none() {
            let (client, key, url) = (self.client.clone(), self.key.clone(), self.url.clone());
            let attributes = content_type::attributes(&key);
            self.upload = Some(io::wait(async move {
                client.put_multipart_opts(&key, attributes.into()).await.map_err(|e| write_error(&url, e))
            })?);
        }
        if let Some(upload) = &mut self.upload {
            let sending = upload.put_part(PutPayload::from_bytes(part));
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

    /// Sends the rest and makes the object visible.
    pub(crate) fn finish(mut self) -> Result<()> {
        let last = Bytes::from(std::mem::take(&mut self.buffer));
        let url = self.url.clone();
        if self.upload.is_none() {
            let (client, key) = (self.client.clone(), self.key.clone());
            let options = content_type::attributes(&key).into();
            let put = async move {
                client.put_opts(&key, PutPayload::from_bytes(last), options).await.map_err(|e| write_error(&url, e))
            };
            return io::wait(put).map(|_| ());
        }
        if !last.is_empty() {
            self.put(last)?;
        }
        self.settle(0)?;
        match self.upload.take() {
            Some(mut upload) => {
                io::wait(async move { upload.complete().await.map_err(|e| write_error(&url, e)) }).map(|_| ())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) = (self.upload.take(), io::runtime()) {
            // Best effort: parts without an object cost money until the bucket's policy removes them.
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    /// As one object or in parts: as many bytes as a part, one more or less, more parts than are on their way at once.
    #[test]
    fn an_object_is_what_was_written_whatever_its_parts() {
        let bytes: Vec<u8> = (0..5 * PART + 1).map(|i| (i / 3 + i / PART) as u8).collect();
        let store = Store::open("memory://upload").unwrap();
        for size in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 4 * PART, 5 * PART + 1] {
            for written_at_once in [PART + 5, 7 << 20] {
                let mut upload = store.upload("x").unwrap();
                bytes[..size].chunks(written_at_once).for_each(|some| upload.write(some.to_vec()).unwrap());
                upload.finish().unwrap();
                assert!(store.get("x").unwrap() == bytes[..size], "{size} bytes, {written_at_once} at once");
            }
        }
    }
}
