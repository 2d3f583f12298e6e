//! Footers of many shards, several at a time: a store takes long to answer and answers many at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use crate::{Error, Result};

/// Footers read at the same time.
const THREADS: usize = 16;

/// What `look` finds of each of `shards`, in their order; so many of them have a footer that it reads.
///
/// # Errors
/// The first of `look`'s, in the order of the shards; [`Error::Threads`] when the system gives no threads.
pub(crate) fn look_at<S: Sync, T: Send + Sync>(
    shards: &[S],
    footers: usize,
    look: impl Fn(&S) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let cells: Vec<OnceLock<Result<T>>> = shards.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(shard) = shards.get(i) else { break };
            // Set once: each index is handed out once.
            let _ = cells[i].set(look(shard));
        }
    };
    std::thread::scope(|scope| {
        let start = |_| Builder::new().spawn_scoped(scope, work).map(drop);
        (0..footers.clamp(1, THREADS)).try_for_each(start).map_err(Error::threads)
    })?;
    let died = || Error::Arguments("a thread that reads footers died".into());
    cells.into_iter().map(|cell| cell.into_inner().unwrap_or_else(|| Err(died()))).collect()
}
