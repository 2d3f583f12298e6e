//! Which rows a rank has in each batch: known without reading any.

use std::sync::Arc;

use crate::stream::batch::Batch;
use crate::stream::cursor::Cursor;
use crate::stream::order::{Partition, RowId, RowOrder};

/// Which rows a rank has in each batch of a stream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Positions {
    pub(super) order: Arc<RowOrder>,
    pub(super) partition: Partition,
}

impl Positions {
    pub(super) fn new(order: RowOrder, partition: Partition) -> Self {
        Positions { order: Arc::new(order), partition }
    }

    /// The cursor before `step`.
    pub fn cursor(&self, step: u64) -> Cursor {
        Cursor::at(&self.order, step)
    }

    /// The rows of a batch, in the order they were written.
    pub fn row_ids(&self, batch: &Batch) -> Vec<RowId> {
        let slots = self.order.slots(batch.step, self.partition);
        let kept = slots.filter(|slot| batch.dropped.binary_search(slot).is_err());
        kept.map(|slot| self.order.row_at(batch.step, slot)).collect()
    }

    /// Rows of a batch whose positions lie before `position`.
    pub fn rows_before(&self, batch: &Batch, position: u64) -> usize {
        let first = self.order.slots(batch.step, self.partition).start;
        let slots = position.saturating_sub(batch.first_position);
        let kept = slots - batch.dropped.partition_point(|slot| *slot < first + slots) as u64;
        (kept as usize).min(batch.rows)
    }
}
