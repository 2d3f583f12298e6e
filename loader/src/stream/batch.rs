//! A batch, besides its bytes.

use std::time::Duration;

/// What `next` put into the caller's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Rows written, one after the other from the buffer's start.
    pub rows: usize,
    /// Position (step · batch + slot) of this rank's first slot.
    pub first_position: u64,
    /// Step of the batch.
    pub step: u64,
    /// Rows left out by the skip list.
    pub skipped: u64,
    /// Rows left out by the filter.
    pub filtered: u64,
    /// How long `next` waited for data.
    pub stall: Duration,
    /// Slots of the batch that were left out, ascending.
    pub(crate) dropped: Vec<u64>,
}
