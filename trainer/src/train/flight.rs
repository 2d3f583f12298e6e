//! The steps of a run that are in flight: enqueued, and not retired.

use std::collections::VecDeque;
use std::rc::Rc;

use kernels::Device;

use super::reader::Batch;
use crate::step::StepInput;

/// A step that was enqueued and is not retired.
pub(super) struct InFlight<D: Device> {
    /// Its rows stay: it may have to be made again.
    pub(super) batch: Rc<Batch<D>>,
    pub(super) input: StepInput,
}

/// The steps in flight, the oldest first.
pub(super) struct Flight<D: Device> {
    steps: VecDeque<InFlight<D>>,
}

impl<D: Device> Flight<D> {
    pub(super) fn new() -> Self {
        Flight { steps: VecDeque::new() }
    }

    /// The step with this batch was enqueued.
    pub(super) fn push(&mut self, batch: Rc<Batch<D>>, input: StepInput) {
        self.steps.push_back(InFlight { batch, input });
    }

    /// Takes the oldest step out.
    pub(super) fn pop(&mut self) -> Option<InFlight<D>> {
        self.steps.pop_front()
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
