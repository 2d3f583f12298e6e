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

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(pool: &Pool) -> usize {
        pool.0.lock().unwrap().len()
    }

    /// A pool to which so many buffers of `len` bytes have come back.
    fn returned(n: usize, len: usize) -> Arc<Pool> {
        let pool = Arc::new(Pool::default());
        let buffers: Vec<Pooled> = (0..n).map(|_| pool.take(len)).collect();
        drop(buffers);
        pool
    }

    #[test]
    fn of_the_buffers_that_come_back_32_stay() {
        for (n, stay) in [(0, 0), (1, 1), (31, 31), (32, 32), (33, 32), (100, 32)] {
            assert_eq!(idle(&returned(n, 8)), stay, "of {n}");
        }
    }

    /// From 16 idle buffers on one leaves for each that has to be made.
    #[test]
    fn a_misfit_leaves_where_there_are_many() {
        for (n, stay) in [(15, 15), (16, 15), (17, 16)] {
            let pool = returned(n, 8);
            let large = pool.take(1 << 20);
            assert_eq!((idle(&pool), large.len()), (stay, 1 << 20), "of {n}");
        }
    }

    /// A buffer serves a request of its own size, and smaller ones down to half of it; any, up to 128 KiB.
    #[test]
    fn a_buffer_serves_what_is_not_much_smaller() {
        for (had, wanted, serves) in [
            (8, 8, true),
            (8, 9, false),
            (1 << 17, 1, true),
            ((1 << 17) + 2, 1, false),
            (1 << 20, 1 << 19, true),
            (1 << 20, (1 << 19) - 1, false),
        ] {
            let pool = returned(1, had);
            let buffer = pool.take(wanted);
            assert_eq!((buffer.len(), buffer.as_ref().len()), (wanted, wanted));
            assert_eq!(idle(&pool), usize::from(!serves), "{wanted} bytes of {had}");
        }
    }
}
