//! What arrived at a rank and was not taken yet, and the first failure that it heard of. One thread takes; those that receive
//! put.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;

/// The rank that failed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub rank: usize,
    pub reason: String,
}

impl Failure {
    /// The error of an operation that ends with it.
    pub fn during(self, operation: &'static str) -> Error {
        Error::Peer { rank: self.rank, operation, reason: self.reason }
    }
}

/// Messages to one rank, in the order of their sending from each of the others.
#[derive(Debug)]
pub struct Mailbox {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    from: Vec<Sender>,
    /// The first; what follows it is its consequence.
    failure: Option<Failure>,
}

#[derive(Debug, Default)]
struct Sender {
    messages: VecDeque<Vec<u8>>,
    /// Nothing will follow.
    left: bool,
}

impl Mailbox {
    /// For messages from `size` ranks.
    pub fn new(size: usize) -> Self {
        let from = (0..size).map(|_| Sender::default()).collect();
        Mailbox { inner: Mutex::new(Inner { from, failure: None }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message from rank `from` has arrived.
    pub fn put(&self, from: usize, message: Vec<u8>) {
        self.lock().from[from].messages.push_back(message);
        self.changed.notify_all();
    }

    /// Rank `from` will send nothing more.
    pub fn leave(&self, from: usize) {
        self.lock().from[from].left = true;
        self.changed.notify_all();
    }

    /// Remembers a failure; the first one counts.
    pub fn fail(&self, failure: Failure) {
        self.lock().failure.get_or_insert(failure);
        self.changed.notify_all();
    }

    /// The first failure.
    pub fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// The next message of rank `from`, waiting for it until `limit` after `since`.
    ///
    /// # Errors
    /// The first failure; or that of `from`, which is not remembered here: the caller tells all ranks.
    pub fn take(&self, from: usize, since: Instant, limit: Duration) -> Result<Vec<u8>, Failure> {
        let mut inner = self.lock();
        loop {
            if let Some(failure) = &inner.failure {
                return Err(failure.clone());
            }
            let sender = &mut inner.from[from];
            if let Some(message) = sender.messages.pop_front() {
                return Ok(message);
            }
            let failed = |reason| Err(Failure { rank: from, reason });
            if sender.left {
                return failed("left the job while others still waited for it".to_owned());
            }
            let Some(rest) = limit.checked_sub(since.elapsed()) else {
                return failed(format!("has not come to this operation within {limit:.0?}, though it may be alive"));
            };
            inner = self.changed.wait_timeout(inner, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
