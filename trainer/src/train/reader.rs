//! Batches, read once for all runs on one stream, and the memory that they take in turn.

use std::cell::RefCell;
use std::rc::Rc;

use kernels::{Device, RowDtype};
use loader::Stream;

use crate::Error;
use crate::buffers::{Buffers, Seen};
use crate::ranks::roll_call::Answer;

/// Memory for batches that nobody holds at the moment: one more than the device runs ahead, less those in flight.
pub(super) type Pool<D> = Rc<RefCell<Vec<Buffers<D>>>>;

/// Where batches come from.
pub(super) struct Reader<D: Device> {
    stream: Stream,
    pool: Pool<D>,
}

/// A batch that was read.
pub(super) struct Batch<D: Device> {
    pub(super) seen: Seen,
    rows: Held<D>,
}

/// Memory that goes back to its pool when the last step on its rows is retired.
struct Held<D: Device> {
    /// There until it goes back.
    buffers: Option<Buffers<D>>,
    pool: Pool<D>,
}

impl<D: Device> Drop for Held<D> {
    fn drop(&mut self) {
        self.pool.borrow_mut().extend(self.buffers.take());
    }
}

impl<D: Device> Held<D> {
    fn of(pool: &Pool<D>) -> Self {
        let buffers = pool.borrow_mut().pop();
        Held { buffers, pool: Rc::clone(pool) }
    }

    fn buffers_mut(&mut self) -> &mut Buffers<D> {
        self.buffers.as_mut().expect("there is memory for one batch more than are in flight")
    }
}

impl<D: Device> Reader<D> {
    pub(super) fn new(stream: Stream, pool: Pool<D>) -> Self {
        Reader { stream, pool }
    }

    /// Reads the next batch. `None` after the last.
    ///
    /// # Errors
    /// Those of [`Buffers::next`].
    pub(super) fn next(&mut self, device: &D, answer: Answer) -> Result<Option<Batch<D>>, Error> {
        let mut rows = Held::of(&self.pool);
        let seen = rows.buffers_mut().next(device, &mut self.stream, answer)?;
        Ok(seen.map(|seen| Batch { seen, rows }))
    }
}

impl<D: Device> Batch<D> {
    /// Makes `x` of the rows as they were stored.
    pub(super) fn normalize(&mut self, device: &D, dtype: RowDtype, scale: f32) {
        let call = &self.seen.call;
        let Buffers { staging, x, .. } = self.rows.buffers_mut();
        device.normalize(staging, dtype, call.rows_here(), call.rows(), scale, x);
    }

    /// Rows as used, once they are normalized.
    pub(super) fn x(&self) -> &D::Rows {
        &self.rows.buffers.as_ref().expect("it goes back when the batch is dropped").x
    }
}
