//! What arrived at a rank and was not taken yet, and the first failure that it heard of. One thread takes; those that receive
//! put.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;

/// The rank that failed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its index.
    pub rank: usize,
    /// The exit code that it will end with, where it could still say so. Nothing here knows what codes mean.
    pub code: Option<u8>,
    /// How it failed, in the words of the rank that saw it first.
    pub reason: String,
}

impl Failure {
    /// Of a rank that could not say itself what it will end with.
    pub fn seen(rank: usize, reason: String) -> Self {
        Failure { rank, code: None, reason }
    }

    /// The error of an operation that ends with it.
    pub fn during(self, operation: &'static str) -> Error {
        Error::Peer { rank: self.rank, operation, reason: self.reason, code: self.code }
    }
}

/// Messages to one rank, in the order of their sending from each of the others.
#[derive(Debug)]
pub struct Mailbox {
    /// Whose it is.
    rank: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    from: Vec<Sender>,
    /// The first; what follows it is its consequence.
    failure: Option<Failure>,
    /// Whose message is waited for, or was when the wait ended in an error.
    awaited: Option<usize>,
}

#[derive(Debug, Default)]
struct Sender {
    messages: VecDeque<Vec<u8>>,
    /// Nothing will follow.
    left: bool,
}

impl Mailbox {
    /// For messages to `rank` from each of `size` ranks.
    pub fn new(rank: usize, size: usize) -> Self {
        let from = (0..size).map(|_| Sender::default()).collect();
        let inner = Inner { from, failure: None, awaited: None };
        Mailbox { rank, inner: Mutex::new(inner), changed: Condvar::new() }
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

    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<(), Error> {
        self.failure().map_or(Ok(()), |failure| Err(failure.during("exchange")))
    }

    /// The rank that this one waits for.
    pub fn awaited(&self) -> Option<usize> {
        self.lock().awaited
    }

    /// The next message of rank `from`, waiting for it until `limit` after `since`. `awaited_by` knows whom other ranks wait
    /// for: one that waits itself is not the one that is late.
    ///
    /// # Errors
    /// The first failure; or that of the rank that is missed, which is not remembered here: the caller tells all ranks.
    pub fn take(
        &self,
        from: usize,
        since: Instant,
        limit: Duration,
        awaited_by: impl Fn(usize) -> Option<usize>,
    ) -> Result<Vec<u8>, Failure> {
        let mut inner = self.lock();
        inner.awaited = Some(from);
        let size = inner.from.len();
        loop {
            if let Some(failure) = &inner.failure {
                return Err(failure.clone());
            }
            let sender = &mut inner.from[from];
            if let Some(message) = sender.messages.pop_front() {
                inner.awaited = None;
                return Ok(message);
            }
            if sender.left {
                let reason = "left the job while others still waited for it".to_owned();
                return Err(Failure::seen(from, reason));
            }
            let Some(rest) = limit.checked_sub(since.elapsed()) else { break };
            inner = self.changed.wait_timeout(inner, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        // Looking at other ranks may take their locks.
        drop(inner);
        let others = |rank: &usize| awaited_by(*rank).filter(|awaited| *awaited != self.rank);
        let late = std::iter::successors(Some(from), others).take(size).last().unwrap_or(from);
        let reason = format!("has not come to this operation within {limit:.0?}, though it may be alive");
        Err(Failure::seen(late, reason))
    }
}
