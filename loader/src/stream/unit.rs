//! The unit of reading: a run of whole pieces of one row group, or the row group; loaded once and shared by all windows.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::parquet::decode::{Buffer, Outer};
use crate::parquet::pages::Run;
use crate::{Error, Result};

/// Why a row is left out.
pub(crate) const SKIPPED: u8 = 1;
/// Why a row is left out.
pub(crate) const FILTERED: u8 = 2;

/// What a unit is: where its rows and bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) shard: u32,
    /// Row group in the shard.
    pub(crate) group: u32,
    /// Rows in the row group.
    pub(crate) rows: Range<u64>,
    /// Bytes in the file.
    pub(crate) bytes: Range<u64>,
    /// Which pieces of the group it consists of; empty if they are not known yet.
    pub(crate) pieces: Range<usize>,
}

impl Extent {
    /// How many rows it has.
    pub(crate) fn row_count(&self) -> usize {
        (self.rows.end - self.rows.start) as usize
    }
}

/// Rows in memory.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) buffer: Option<Buffer>,
    pub(crate) runs: Vec<Run>,
    /// Lists that the rows lie in.
    pub(crate) outer: Outer,
    /// For each row whether it is left out; `None`: none is.
    pub(crate) flags: Option<Vec<u8>>,
}

/// A unit that is being read or was read.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) extent: Extent,
    pub(crate) cell: OnceLock<Result<Loaded>>,
    /// Bytes accounted for this unit.
    weight: u64,
    held: Arc<AtomicU64>,
}

impl Unit {
    pub(crate) fn new(extent: Extent, weight: u64, held: &Arc<AtomicU64>) -> Self {
        held.fetch_add(weight, Ordering::Relaxed);
        Unit { extent, cell: OnceLock::new(), weight, held: held.clone() }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.cell.get().is_some()
    }

    /// The rows, which must be ready.
    pub(crate) fn loaded(&self) -> Result<&Loaded> {
        match self.cell.get() {
            Some(Ok(loaded)) => Ok(loaded),
            Some(Err(e)) => Err(e.clone()),
            None => Err(Error::Arguments("a unit was used before it was read".into())),
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.held.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

impl Loaded {
    /// Why a row is left out, or 0.
    pub(crate) fn flag(&self, row: usize) -> u8 {
        self.flags.as_ref().map_or(0, |f| f[row])
    }

    /// The bytes from `row` on that are contiguous: at most `rows` rows.
    pub(crate) fn rows(&self, row: usize, rows: usize, row_bytes: usize) -> &[u8] {
        let Some(buffer) = &self.buffer else { return &[] };
        let run = &self.runs[self.runs.partition_point(|r| r.first_row <= row) - 1];
        let inside = row - run.first_row;
        let rows = rows.min(run.rows - inside);
        &buffer[run.at + inside * row_bytes..run.at + (inside + rows) * row_bytes]
    }
}
