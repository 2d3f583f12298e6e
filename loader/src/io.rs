//! The runtime that all network requests of the process share: two threads, started on first use.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Result};

/// The process's I/O runtime.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| Builder::new_multi_thread().worker_threads(2).thread_name("loader-io").enable_all().build())
        .as_ref()
        .map_err(|e| Error::Threads(e.to_string()))
}

/// Runs a future to its end from blocking code. It is spawned, not blocked on, so that a caller that is itself inside some
/// runtime does not panic.
pub(crate) fn wait<T: Send + 'static>(future: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        // The receiver outlives the task unless the caller's thread is gone, and then nobody needs the answer.
        let _ = sender.send(future.await);
    });
    receiver.recv().unwrap_or_else(|_| Err(Error::Arguments("an I/O task ended without an answer".into())))
}
