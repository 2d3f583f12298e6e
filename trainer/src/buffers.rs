//! Memory for the rows of a batch, and how they get there.

use kernels::Device;
use loader::{Batch, Stream};

use crate::Error;
use crate::checkpoint::LeftOut;
use crate::ranks::roll_call::{Answer, RollCall, most_rows};

/// Memory for the rows of a batch, on host and device.
#[derive(Debug)]
pub struct Buffers<D: Device> {
    /// Rows as stored: those that this rank brings, and in the end all that it sees.
    pub staging: D::Staging,
    /// Rows as used.
    pub x: D::Rows,
    /// Rows that a rank brings at most.
    rank_batch: usize,
}

/// A batch as a rank has it.
#[derive(Debug)]
pub struct Seen {
    /// What it brought itself.
    pub own: Batch,
    /// What all brought.
    pub call: RollCall,
}

impl<D: Device> Buffers<D> {
    /// For batches of `batch` rows over all ranks, of `width` values of `value_bytes` at most.
    ///
    /// # Errors
    /// [`kernels::Error::OutOfMemory`].
    pub fn new(device: &D, batch: usize, width: usize, value_bytes: usize) -> Result<Self, kernels::Error> {
        let place = device.axes().place;
        let rank_batch = most_rows(place, batch);
        let seen = rank_batch * place.mesh.feature;
        Ok(Buffers { staging: device.staging(seen * width * value_bytes)?, x: device.rows(seen, width)?, rank_batch })
    }

    /// Reads this rank's rows of the next batch, calls the roll, and brings the rows of the feature axis together. `None` after the
    /// last batch.
    ///
    /// # Errors
    /// Those of the loader, here or on another rank; [`kernels::Error::Peer`].
    pub fn next(&mut self, device: &D, stream: &mut Stream, answer: Answer) -> Result<Option<Seen>, Error> {
        let seen = self.read(device, stream, answer)?;
        seen.map(|seen| self.bring_together(device, &seen, stream.row_bytes()).map(|()| seen)).transpose()
    }

    /// The first half of [`Buffers::next`]: the rows that this rank brings are read, and the roll is called.
    ///
    /// # Errors
    /// Those of [`Buffers::next`].
    pub fn read(&mut self, device: &D, stream: &mut Stream, answer: Answer) -> Result<Option<Seen>, Error> {
        let axes = device.axes();
        let from = self.first_own(device, stream.row_bytes());
        let next = stream.next(&mut self.staging.as_mut()[from..]);
        // Every rank has a part of every batch, if only of no rows: the last batch is the last of all.
        let (own, answer) = match next {
            Ok(Some(own)) => {
                let left_out = LeftOut { skipped: own.skipped, filtered: own.filtered };
                let answer = Answer { rows: own.rows, left_out, ..answer };
                (Some(own), Ok(answer))
            }
            Ok(None) => return Ok(None),
            Err(error) => (None, Err(error.into())),
        };
        let call = RollCall::hold(axes, answer)?;
        let own = own.expect("without it the roll call has failed");
        Ok(Some(Seen { own, call }))
    }

    /// The rows that this rank brings, as stored, between the halves of [`Buffers::next`]; none on a GPU that has failed, which
    /// the next operation on it tells.
    pub fn own(&self, device: &D, seen: &Seen, row_bytes: usize) -> &[u8] {
        let from = self.first_own(device, row_bytes);
        self.staging.as_ref().get(from..from + seen.own.rows * row_bytes).unwrap_or_default()
    }

    /// The second half of [`Buffers::next`]: all rows that this rank sees lie in `staging` then.
    ///
    /// # Errors
    /// [`kernels::Error::Peer`].
    pub fn bring_together(&mut self, device: &D, seen: &Seen, row_bytes: usize) -> Result<(), Error> {
        Ok(device.gather(&mut self.staging, &seen.call.parts(self.rank_batch, row_bytes))?)
    }

    /// Where the rows begin that this rank brings.
    fn first_own(&self, device: &D, row_bytes: usize) -> usize {
        device.axes().place.feature() * self.rank_batch * row_bytes
    }
}
