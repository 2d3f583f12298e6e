//! The runtime that all network requests of the process share: two threads, started on first use.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinError;

use crate::store::redact::redact;
use crate::{Cause, Error, Result};

/// The process's I/O runtime.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, Cause>> = OnceLock::new();
    let start = || Builder::new_multi_thread().worker_threads(2).thread_name("loader-io").enable_all().build();
    RUNTIME.get_or_init(|| start().map_err(Cause::from)).as_ref().map_err(|source| Error::Threads(source.clone()))
}

/// Runs a future to its end from blocking code. It is spawned, not blocked on, so that a caller that is itself inside some
/// runtime does not panic.
pub(crate) fn wait<T: Send + 'static>(future: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        let answer = tokio::spawn(future).await.unwrap_or_else(|ended| Err(panicked(ended)));
        // The receiver outlives the task unless the caller's thread is gone, and then nobody needs the answer.
        let _ = sender.send(answer);
    });
    receiver.recv().unwrap_or_else(|_| Err(Error::Arguments("an I/O task ended without an answer".into())))
}

/// What becomes of a panic of a store's client: all that are known come from its settings.
fn panicked(ended: JoinError) -> Error {
    let cause = ended.try_into_panic().ok();
    let text = cause.as_ref().and_then(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| cause.downcast_ref::<&str>().copied())
    });
    let text = text.unwrap_or("it ended without an answer");
    Error::Arguments(format!(
        "the client of a store cannot go on: {}: look at what AWS_*, GOOGLE_* or AZURE_* say in the environment",
        redact(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_client_becomes_an_error() {
        let error = wait::<()>(async { panic!("no such thing as https://key:c4n4ry@host") }).unwrap_err().to_string();
        assert!(error.contains("no such thing as https://host") && !error.contains("c4n4ry"), "{error}");
    }
}
