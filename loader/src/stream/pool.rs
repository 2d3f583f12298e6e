//! Buffers that are used again: a fresh one costs a page fault every 4 KiB, which is ten times slower than the copy itself.

use std::sync::{Arc, Mutex, PoisonError};

/// Idle buffers kept at most.
const KEPT: usize = 32;

/// A store of idle buffers.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

/// A buffer of `len` bytes that goes back to its pool.
#[derive(Debug)]
pub(crate) struct Pooled {
    data: Vec<u8>,
    len: usize,
    pool: Arc<Pool>,
}

impl Pool {
    /// A buffer with unspecified contents.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Pooled {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |b: &Vec<u8>| b.len() >= len && b.len() / 2 <= len.max(1 << 16);
        let data = match idle.iter().position(fits) {
            Some(i) => idle.swap_remove(i),
            None => {
                // A misfit leaves, so that idle memory does not pile up when sizes change.
                if idle.len() >= KEPT / 2 {
                    idle.swap_remove(0);
                }
                vec![0; len]
            }
        };
        Pooled { data, len, pool: self.clone() }
    }
}

impl std::ops::Deref for Pooled {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

impl std::ops::DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.len]
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut idle = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(std::mem::take(&mut self.data));
        }
    }
}
