//! Some of the ranks, that sum and gather among themselves. Sums are made in the order of the members whatever the transport,
//! so the same group gives the same bits.

use std::ops::{AddAssign, Range};
use std::sync::Arc;
use std::time::Duration;

use bytemuck::Pod;

use super::{Failure, Ranks, threads};
use crate::Error;

/// Some of the ranks, in a fixed order, that sum and gather among themselves. Every member makes the same calls in the same
/// order.
#[derive(Clone, Debug)]
pub struct Group {
    ranks: Arc<dyn Ranks>,
    /// Their indices among all ranks.
    members: Vec<usize>,
    /// Of this rank among them.
    index: usize,
}

impl Group {
    /// One rank, with nothing to exchange.
    pub fn alone() -> Group {
        Group::of(threads(1).remove(0), vec![0])
    }

    /// Those of `ranks` whose indices are `members`, in this order, which is the same on all of them.
    ///
    /// # Panics
    /// When this rank is not among them, or one of them does not exist or stands there twice.
    pub fn of(ranks: Arc<dyn Ranks>, members: Vec<usize>) -> Group {
        let index = members.iter().position(|&member| member == ranks.rank());
        let index = index.expect("a group is made by its members");
        let once = |(at, member): (usize, &usize)| *member < ranks.size() && !members[..at].contains(member);
        assert!(members.iter().enumerate().all(once), "{members:?} are ranks, each once");
        Group { ranks, members, index }
    }

    /// This rank's place among the members.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many members there are.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The members' indices among all ranks.
    pub(crate) fn members(&self) -> &[usize] {
        &self.members
    }

    /// See [`Ranks::check`]: of all ranks, not only the members.
    ///
    /// # Errors
    /// [`Error::Peer`].
    pub fn check(&self) -> Result<(), Error> {
        self.ranks.check()
    }

    /// See [`Ranks::abort`]: all ranks hear of it, not only the members.
    pub fn abort(&self, failure: Failure) {
        self.ranks.abort(failure);
    }

    /// Bytes that this rank has sent to others so far, in this and all other groups of the same ranks.
    pub fn bytes_sent(&self) -> u64 {
        self.ranks.bytes_sent()
    }

    /// Time that this rank has spent in exchanges so far, in this and all other groups of the same ranks.
    pub fn exchanging(&self) -> Duration {
        self.ranks.exchanging()
    }

    /// Sends `messages[i]` to member `i`, and returns what each sent here, in their order.
    ///
    /// # Errors
    /// [`Error::Peer`].
    ///
    /// # Panics
    /// When there is not one message for each member.
    pub fn exchange(&self, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Error> {
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        self.ranks.exchange(&self.members, &messages)
    }

    /// What every member gave, in their order.
    ///
    /// # Errors
    /// [`Error::Peer`].
    pub fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.ranks.exchange(&self.members, &vec![mine; self.size()]).map_err(|error| during("gather", error))
    }

    /// Sums each value over the members, `((v₀ + v₁) + v₂) + …` in their order: the same bits on every member, whatever the transport.
    /// Each member sums one piece of the values and gives it to all, which moves the bytes of an all-reduce, `2·(m − 1)/m` of
    /// the values for `m` members. After an error the values are those from before.
    ///
    /// # Errors
    /// [`Error::Peer`], also when a member gave another number of values.
    pub fn sum_f32(&self, values: &mut [f32]) -> Result<(), Error> {
        self.sum(values).map_err(|error| during("sum", error))
    }

    /// As [`Group::sum_f32`].
    ///
    /// # Errors
    /// Those of [`Group::sum_f32`].
    pub fn sum_f64(&self, values: &mut [f64]) -> Result<(), Error> {
        self.sum(values).map_err(|error| during("sum", error))
    }

    fn sum<T: Pod + AddAssign>(&self, values: &mut [T]) -> Result<(), Error> {
        if self.size() == 1 {
            return Ok(());
        }
        let pieces: Vec<&[u8]> = (0..self.size())
            .map(|member| bytemuck::cast_slice(&values[piece(values.len(), member, self.size())]))
            .collect();
        let received = self.ranks.exchange(&self.members, &pieces)?;
        let mut sum = values[piece(values.len(), self.index, self.size())].to_vec();
        for (member, piece) in received.iter().enumerate() {
            self.expect_len(member, piece.len(), size_of_val(&*sum))?;
            let addends = piece.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>);
            if member == 0 {
                sum.iter_mut().zip(addends).for_each(|(sum, addend)| *sum = addend);
            } else {
                sum.iter_mut().zip(addends).for_each(|(sum, addend)| *sum += addend);
            }
        }
        let sums = self.ranks.exchange(&self.members, &vec![bytemuck::cast_slice(&sum); self.size()])?;
        for (member, sum) in sums.iter().enumerate() {
            let piece = &values[piece(values.len(), member, self.size())];
            self.expect_len(member, sum.len(), size_of_val(piece))?;
        }
        for (member, sum) in sums.iter().enumerate() {
            let piece = piece(values.len(), member, self.size());
            bytemuck::cast_slice_mut(&mut values[piece]).copy_from_slice(sum);
        }
        Ok(())
    }

    /// Members that disagree about lengths run different programs or shapes; going on would sum what does not belong together.
    fn expect_len(&self, member: usize, len: usize, expected: usize) -> Result<(), Error> {
        if len == expected {
            return Ok(());
        }
        let reason = format!("sent {len} bytes where {expected} were expected: all ranks must run the same program");
        let failure = Failure::seen(self.members[member], reason);
        self.ranks.abort(failure.clone());
        Err(failure.during("sum"))
    }
}

/// The values that a member sums.
fn piece(len: usize, member: usize, size: usize) -> Range<usize> {
    len * member / size..len * (member + 1) / size
}

/// The same error, naming the operation that people know.
fn during(operation: &'static str, error: Error) -> Error {
    match error {
        Error::Peer { rank, reason, code, .. } => Error::Peer { rank, operation, reason, code },
        other => other,
    }
}
