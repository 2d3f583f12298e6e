//! The order of rows: a pure function of (shape, seed, epoch, batch, order). This page is the rule.
//!
//! **Shape** = for each shard its path, rows and the rows of its row groups. It is less than the manifest's identity, which
//! cursors are checked against: the same files have one order, with a manifest beside them and without.
//!
//! **Row sequence.** `Sequential` and `Striped`: storage order (shards by path, row groups, rows). `Direct`: the row groups
//! permuted by a key of (shape, seed, epoch), rows inside a group in storage order. An epoch holds the first N rows of the
//! sequence, N = min(rows of the dataset, limit): with `Direct` a limit takes a random set of row groups (one of them cut).
//!
//! **Batches.** B rows each; full = ⌊N/B⌋ of them, then a last short one of r = N − full·B rows: used, never padded or
//! dropped. Position p = step·B + slot.
//!
//! **Streams.** C = [`STREAMS`] (`Sequential`: 1). In a batch of b rows (b = B, or r for the last) slot j belongs to stream
//! c = ⌊j·C/b⌋, that is, stream c owns the slots ⌈c·b/C⌉ .. ⌈(c+1)·b/C⌉. With n_c and t_c of them in a full and in the last
//! batch, stream c *is* the contiguous piece of n_c·full + t_c rows that starts at ⌈c·B/C⌉·full + ⌈c·r/C⌉ in the sequence: it
//! ends exactly with the epoch. This is the tail rule: pieces differ by one row for each batch at most when C divides B, and
//! otherwise are in proportion to their slots.
//!
//! **Windows** (`Direct`). A piece of L rows is cut into windows of w = max(1, window_bytes / (C · bytes of a row)) rows; rows
//! inside a window are permuted by a key of (shape, seed, epoch, stream, window). If L > w the first window of stream c is
//! only max(1, ⌊w·(c+1)/C⌋) rows long, so that streams turn windows over one after the other and not all in the same batch.
//!
//! **Ranks.** Rank i of n takes slots ⌊b·i/n⌋ .. ⌊b·(i+1)/n⌋ of each batch: neither n nor threads nor prefetch depth appears
//! above. Skip lists and filters act after the order: they shorten batches and never move a position.
//!
//! A cursor is just a step number with the identity of what it counts in. Permutations are keyed by the shape of the data and not by its
//! checksums, so writing a manifest beside the data (`sae inspect`) changes no order; a run keeps the manifest that it began with. Skip
//! lists and filters never move positions, so a row that turns out bad at 80 % of a run can be left out on resume without changing what
//! came before.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::stream::permutation::{Permutation, key};
use crate::{Error, Manifest, Result};

/// The number of canonical streams: a constant of the order's version.
pub const STREAMS: u64 = 64;

/// Version of the rule on this page. Cursors of another version are refused.
pub(crate) const VERSION: u32 = 1;

/// In which order rows are delivered. See the head of `order.rs` for the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// 64 streams over permuted row groups, rows permuted inside windows: for data in its natural order.
    Direct {
        /// Bytes of all windows together, at the stored dtype.
        window_bytes: u64,
    },
    /// Storage order in one stream: for small data that is already shuffled, and for evaluation.
    Sequential,
    /// Storage order in 64 streams: for prepared (globally shuffled) data read by many ranks.
    Striped,
}

/// A rank's slice of every batch: one of so many, by its number from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Which slice.
    pub index: u64,
    /// Slices of a batch.
    pub count: u64,
}

impl Partition {
    /// Whole batches, for one rank.
    pub const WHOLE: Partition = Partition { index: 0, count: 1 };
}

/// A row's place in storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowId {
    /// Index of the shard in the manifest.
    pub shard: u32,
    /// Row in the shard.
    pub row: u64,
}

/// One row group in the row sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// Where it begins in the sequence.
    pub(crate) start: u64,
    pub(crate) shard: u32,
    /// Index in the shard.
    pub(crate) index: u32,
    /// Its first row in the shard.
    pub(crate) first_row: u64,
}

/// A contiguous piece of the row sequence whose rows are permuted among themselves.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// First offset of the window in its stream.
    pub(crate) offset: u64,
    /// First row in the sequence.
    pub(crate) start: u64,
    pub(crate) rows: u64,
    permutation: Option<Permutation>,
}

impl Window {
    /// The row (counted from the window's start) that is delivered at `index` of the window.
    pub(crate) fn row(&self, index: u64) -> u64 {
        self.permutation.as_ref().map_or(index, |p| p.apply(index))
    }

    /// Whether rows come out in the order of the sequence.
    pub(crate) fn is_in_order(&self) -> bool {
        self.permutation.is_none()
    }
}

/// The order that a cursor's step counts in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorOrigin {
    /// Identity of the manifest.
    pub identity: String,
    /// Version of the order's rule.
    pub order_version: u32,
    /// The order with its window in rows, as text.
    pub order: String,
    /// Seed of the order.
    pub seed: u64,
    /// Epoch of the order.
    pub epoch: u64,
    /// Rows per global batch.
    pub batch: u64,
    /// Rows in the epoch.
    pub rows: u64,
}

/// The order of one epoch, ready to be evaluated at any position.
#[derive(Debug, Clone)]
pub struct RowOrder {
    origin: CursorOrigin,
    rows: u64,
    batch: u64,
    full: u64,
    rest: u64,
    streams: u64,
    window_rows: u64,
    row_bytes: u64,
    permuted: bool,
    seed_key: u64,
    groups: Vec<Group>,
}

impl RowOrder {
    /// The order over a manifest's rows.
    pub fn new(
        manifest: &Manifest,
        order: Order,
        seed: u64,
        epoch: u64,
        batch: usize,
        limit: Option<u64>,
    ) -> Result<Self> {
        if batch == 0 {
            return Err(Error::Arguments("a batch needs at least one row".into()));
        }
        let rows = limit.unwrap_or(u64::MAX).min(manifest.rows());
        let batch = batch as u64;
        let (full, rest) = (rows / batch, rows % batch);
        let row_bytes = (manifest.width * manifest.dtype.size()).max(1) as u64;
        let seed_key = key(&[manifest.shape_key(), seed, epoch]);
        let (streams, window_rows, permuted) = match order {
            Order::Direct { window_bytes } => (STREAMS, (window_bytes / (STREAMS * row_bytes)).max(1), true),
            // Nothing is permuted, so the window is no part of the order: a step of reading of about 8 MiB.
            Order::Sequential => (1, ((8 << 20) / row_bytes).max(1), false),
            Order::Striped => (STREAMS, ((8 << 20) / row_bytes).max(1), false),
        };
        let name = match order {
            Order::Direct { .. } => format!("direct, windows of {window_rows} rows"),
            Order::Sequential => "sequential".into(),
            Order::Striped => "striped".into(),
        };
        let identity = manifest.identity().to_string();
        let origin = CursorOrigin { identity, order_version: VERSION, order: name, seed, epoch, batch, rows };
        let groups = sequence(manifest, permuted.then_some(seed_key));
        Ok(RowOrder { origin, rows, batch, full, rest, streams, window_rows, row_bytes, permuted, seed_key, groups })
    }

    /// Rows in the epoch.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows of a full batch.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// Batches in the epoch, the short last one included.
    pub fn steps(&self) -> u64 {
        self.full + u64::from(self.rest > 0)
    }

    /// Rows of the batch at `step`.
    pub fn batch_rows(&self, step: u64) -> u64 {
        if step < self.full {
            self.batch
        } else if step == self.full {
            self.rest
        } else {
            0
        }
    }

    /// The slots that a rank takes of the batch at `step`.
    pub fn slots(&self, step: u64, Partition { index, count }: Partition) -> Range<u64> {
        let rows = self.batch_rows(step);
        muldiv(rows, index, count)..muldiv(rows, index + 1, count)
    }

    /// The row delivered in a slot of a step.
    pub fn row_at(&self, step: u64, slot: u64) -> RowId {
        let rows = self.batch_rows(step);
        debug_assert!(slot < rows);
        let stream = muldiv(slot, self.streams, rows);
        let offset = self.first_offset(stream, step) + slot - self.stream_slots(stream, rows).start;
        let window = self.window(stream, self.window_of(stream, offset));
        self.row_id(window.start + window.row(offset - window.offset))
    }

    pub(crate) fn origin(&self) -> &CursorOrigin {
        &self.origin
    }

    pub(crate) fn streams(&self) -> u64 {
        self.streams
    }

    pub(crate) fn is_permuted(&self) -> bool {
        self.permuted
    }

    /// Bytes of one stream's window.
    pub(crate) fn window_bytes(&self) -> u64 {
        self.window_rows * self.row_bytes
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group that holds a row of the sequence.
    pub(crate) fn group_of(&self, sequence_row: u64) -> usize {
        self.groups.partition_point(|g| g.start <= sequence_row) - 1
    }

    fn row_id(&self, sequence_row: u64) -> RowId {
        let g = &self.groups[self.group_of(sequence_row)];
        RowId { shard: g.shard, row: g.first_row + sequence_row - g.start }
    }

    /// Slots of a stream in a batch of so many rows.
    pub(crate) fn stream_slots(&self, stream: u64, rows: u64) -> Range<u64> {
        muldiv_up(stream, rows, self.streams)..muldiv_up(stream + 1, rows, self.streams)
    }

    /// The offset in a stream of its first row in a step.
    pub(crate) fn first_offset(&self, stream: u64, step: u64) -> u64 {
        let slots = self.stream_slots(stream, self.batch);
        if step <= self.full { (slots.end - slots.start) * step } else { self.length(stream) }
    }

    /// The step that delivers an offset of a stream.
    pub(crate) fn step_of(&self, stream: u64, offset: u64) -> u64 {
        let slots = self.stream_slots(stream, self.batch);
        let per_batch = slots.end - slots.start;
        if offset < per_batch * self.full { offset / per_batch } else { self.full }
    }

    /// Rows of a stream.
    pub(crate) fn length(&self, stream: u64) -> u64 {
        let (slots, tail) = (self.stream_slots(stream, self.batch), self.stream_slots(stream, self.rest));
        (slots.end - slots.start) * self.full + (tail.end - tail.start)
    }

    fn start(&self, stream: u64) -> u64 {
        muldiv_up(stream, self.batch, self.streams) * self.full + muldiv_up(stream, self.rest, self.streams)
    }

    /// Rows of a stream's first window.
    fn first_window(&self, stream: u64) -> u64 {
        let length = self.length(stream);
        if length <= self.window_rows || !self.permuted {
            length.min(self.window_rows)
        } else {
            muldiv(self.window_rows, stream + 1, self.streams).max(1)
        }
    }

    /// The window that holds an offset of a stream.
    pub(crate) fn window_of(&self, stream: u64, offset: u64) -> u64 {
        let first = self.first_window(stream);
        if offset < first { 0 } else { 1 + (offset - first) / self.window_rows }
    }

    /// Window `index` of a stream.
    pub(crate) fn window(&self, stream: u64, index: u64) -> Window {
        let (first, length) = (self.first_window(stream), self.length(stream));
        let offset = if index == 0 { 0 } else { first + (index - 1) * self.window_rows };
        let rows = if index == 0 { first } else { self.window_rows.min(length.saturating_sub(offset)) };
        let permutation = self.permuted.then(|| Permutation::new(key(&[self.seed_key, stream, index]), rows));
        Window { offset, start: self.start(stream) + offset, rows, permutation }
    }
}

/// The row groups in the order of the sequence.
fn sequence(manifest: &Manifest, permute: Option<u64>) -> Vec<Group> {
    let mut stored = Vec::new();
    for (shard, s) in manifest.shards.iter().enumerate() {
        let mut first_row = 0;
        for (index, g) in s.row_groups.iter().enumerate() {
            if g.rows > 0 {
                stored.push((Group { start: 0, shard: shard as u32, index: index as u32, first_row }, g.rows));
            }
            first_row += g.rows;
        }
    }
    let count = stored.len() as u64;
    let permutation = permute.map(|seed_key| Permutation::new(key(&[seed_key, u64::MAX]), count));
    let mut start = 0;
    (0..count)
        .map(|k| {
            let (group, rows) = stored[permutation.as_ref().map_or(k, |p| p.apply(k)) as usize];
            let placed = Group { start, ..group };
            start += rows;
            placed
        })
        .collect()
}

/// ⌊a·b/c⌋ without overflow.
fn muldiv(a: u64, b: u64, c: u64) -> u64 {
    (u128::from(a) * u128::from(b) / u128::from(c)) as u64
}

/// ⌈a·b/c⌉ without overflow.
fn muldiv_up(a: u64, b: u64, c: u64) -> u64 {
    (u128::from(a) * u128::from(b)).div_ceil(u128::from(c)) as u64
}
