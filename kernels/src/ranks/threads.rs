//! Ranks that are threads of one process: messages are handed over in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::mailbox::{Failure, Mailbox};
use super::{DEADLINE, Ranks};
use crate::Error;

/// `size` ranks that are threads of this process, in the order of their indices, waiting for each other for [`DEADLINE`].
pub fn threads(size: usize) -> Vec<Arc<dyn Ranks>> {
    threads_within(size, DEADLINE)
}

/// As [`threads`], waiting for each other for at most `deadline` in each operation.
pub fn threads_within(size: usize, deadline: Duration) -> Vec<Arc<dyn Ranks>> {
    let mailboxes: Arc<[Mailbox]> = (0..size).map(|rank| Mailbox::new(rank, size)).collect();
    let rank = |rank| Thread {
        rank,
        mailboxes: mailboxes.clone(),
        deadline,
        sent: AtomicU64::new(0),
        exchanging_ns: AtomicU64::new(0),
    };
    (0..size).map(|index| Arc::new(rank(index)) as Arc<dyn Ranks>).collect()
}

#[derive(Debug)]
struct Thread {
    rank: usize,
    /// Of all ranks.
    mailboxes: Arc<[Mailbox]>,
    deadline: Duration,
    sent: AtomicU64,
    exchanging_ns: AtomicU64,
}

impl Thread {
    fn fail(&self, failure: &Failure) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.fail(failure.clone()));
    }
}

impl Ranks for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.mailboxes.len()
    }

    fn exchange(&self, with: &[usize], messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, Error> {
        assert_eq!(with.len(), messages.len(), "one message for each rank");
        let since = Instant::now();
        for (&to, message) in with.iter().zip(messages) {
            self.mailboxes[to].put(self.rank, message.to_vec());
            if to != self.rank {
                self.sent.fetch_add(message.len() as u64, Ordering::Relaxed);
            }
        }
        let mine = &self.mailboxes[self.rank];
        let awaited_by = |rank: usize| self.mailboxes[rank].awaited();
        let take = |&from| mine.take(from, since, self.deadline, awaited_by);
        let received: Result<_, Failure> = with.iter().map(take).collect();
        self.exchanging_ns.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        received.map_err(|failure| {
            self.fail(&failure);
            failure.during("exchange")
        })
    }

    fn abort(&self, failure: Failure) {
        self.fail(&failure);
    }

    fn check(&self) -> Result<(), Error> {
        self.mailboxes[self.rank].check()
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn exchanging(&self) -> Duration {
        Duration::from_nanos(self.exchanging_ns.load(Ordering::Relaxed))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(Failure::seen(self.rank, "panicked".to_owned()));
        }
        self.mailboxes.iter().for_each(|mailbox| mailbox.leave(self.rank));
    }
}
