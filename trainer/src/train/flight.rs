//! The stream of batches and the steps in flight: enqueued, and not retired.

use std::collections::VecDeque;

use kernels::Device;
use loader::{Cursor, Stream};

use crate::Error;
use crate::buffers::{Buffers, Seen};
use crate::ranks::roll_call::Answer;
use crate::step::StepInput;

/// A batch that was read.
pub(super) struct Batch<D: Device> {
    pub(super) seen: Seen,
    pub(super) buffers: Buffers<D>,
}

/// A step that was enqueued and is not retired.
pub(super) struct InFlight<D: Device> {
    /// Its rows stay: it may have to be made again.
    pub(super) batch: Batch<D>,
    pub(super) input: StepInput,
}

/// Where batches come from, the memory that they take in turn, and the steps that still need theirs.
pub(super) struct Flight<D: Device> {
    stream: Stream,
    /// For the batches to come: with those in flight one more than the device runs ahead.
    free: Vec<Buffers<D>>,
    /// The oldest first.
    steps: VecDeque<InFlight<D>>,
}

impl<D: Device> Flight<D> {
    pub(super) fn new(stream: Stream, free: Vec<Buffers<D>>) -> Self {
        Flight { stream, free, steps: VecDeque::new() }
    }

    /// Reads the next batch. `None` after the last.
    ///
    /// # Errors
    /// Those of [`Buffers::next`].
    pub(super) fn read(&mut self, device: &D, answer: Answer) -> Result<Option<Batch<D>>, Error> {
        let mut buffers = self.free.pop().expect("buffers are one more than the steps in flight at most");
        let seen = buffers.next(device, &mut self.stream, answer)?;
        Ok(seen.map(|seen| Batch { seen, buffers }))
    }

    /// The step with this batch was enqueued.
    pub(super) fn push(&mut self, batch: Batch<D>, input: StepInput) {
        self.steps.push_back(InFlight { batch, input });
    }

    /// Takes the oldest step out.
    pub(super) fn pop(&mut self) -> Option<InFlight<D>> {
        self.steps.pop_front()
    }

    /// The memory of a batch that nothing needs any more.
    pub(super) fn give_back(&mut self, buffers: Buffers<D>) {
        self.free.push(buffers);
    }

    /// Memory for rows of other streams, when no step is in flight.
    pub(super) fn spare(&mut self) -> &mut Buffers<D> {
        self.free.last_mut().expect("buffers are one more than the steps in flight")
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Where the stream stands behind `step`: after a refused step it is ahead of the weights.
    pub(super) fn cursor(&self, step: u64) -> Cursor {
        Cursor { step, ..self.stream.cursor() }
    }

    /// Steps in flight.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Rows of the steps in flight, over all ranks.
    pub(super) fn rows(&self) -> usize {
        self.steps.iter().map(|step| step.batch.seen.call.rows()).sum()
    }

    pub(super) fn oldest_mut(&mut self) -> Option<&mut InFlight<D>> {
        self.steps.front_mut()
    }

    /// The oldest first.
    pub(super) fn steps(&self) -> impl Iterator<Item = &InFlight<D>> {
        self.steps.iter()
    }
}
