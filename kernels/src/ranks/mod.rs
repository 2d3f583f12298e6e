//! Ranks: the parts of one job that exchange bytes, and what is made of that: gathers, and sums in a fixed order.
//!
//! [`Ranks`] is the seam. [`threads`] are ranks inside this process, [`tcp`] processes. Nothing here knows what the bytes mean; [`Group`] is what
//! the operations of a mesh are written with.

mod group;
mod mailbox;
pub mod tcp;
mod threads;

pub use group::Group;
pub use mailbox::Failure;
pub use threads::{threads, threads_within};

use std::time::Duration;

use crate::Error;

/// How long an operation waits for another rank, unless told otherwise. Ranks wait for each other while one of them saves or
/// evaluates, so this is long; one that died or was stopped is noticed sooner, where the transport can see it.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// Ranks that exchange bytes. Every rank makes the same calls in the same order, as far as they are among the same ranks.
///
/// The first failure is final: it is sent to all ranks, and every later call on any of them returns it. A rank that is dropped has
/// left; that is a failure only when somebody still waits for it. Dropped while its thread panics, it aborts.
pub trait Ranks: Send + Sync + std::fmt::Debug {
    /// This rank's index.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Sends `messages[i]` to rank `with[i]` and returns what each of them sent here, in the order of `with`. Ranks outside `with` take
    /// no part. A message to oneself is returned as it is. Lengths may differ and may be 0.
    ///
    /// # Errors
    /// [`Error::Peer`] with the first rank that left, broke its connection, aborted, or did not answer within the deadline.
    ///
    /// # Panics
    /// When there is not one message for each rank of `with`, or a rank does not exist.
    fn exchange(&self, with: &[usize], messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, Error>;

    /// Gives up: every rank, this one included, returns `failure` from now on, its own or one that it heard of otherwise. Does
    /// nothing after another failure, which is then the cause.
    fn abort(&self, failure: Failure);

    /// Whether all is well as far as this rank has heard, without waiting for anybody: for one that waits for others elsewhere, as a
    /// GPU does.
    ///
    /// # Errors
    /// [`Error::Peer`] with the first failure.
    fn check(&self) -> Result<(), Error>;

    /// Bytes of messages that this rank has sent to others.
    fn bytes_sent(&self) -> u64;

    /// Time that this rank has spent in exchanges: sending, and waiting for others.
    fn exchanging(&self) -> Duration;
}
