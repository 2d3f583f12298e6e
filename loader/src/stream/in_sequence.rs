//! Rows in the order of their shards, with what lies beside them: for what is made of rows once, and not of batches in an order.
//!
//! The unit is a part of a row group, as a stream reads it; a thread reads ahead. So nothing is read twice, and what is held is a few
//! units, or row groups where no manifest says how to read less.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use arrow::array::BooleanArray;

use crate::dataset::scalars::{Scalar, Values};
use crate::stream::load::{Loader, extents};
use crate::stream::unit::{Loaded, SKIPPED};
use crate::{Dataset, Error, Result, RowFilter, RowId, SkipList};

/// Bytes of rows read at a time, about.
const UNIT_BYTES: u64 = 8 << 20;

/// Units that are read ahead.
const AHEAD: usize = 2;

/// A row group, and where its rows stand among those of the dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOfRows {
    /// Shard of the dataset.
    pub shard: u32,
    /// Row group in the shard.
    pub group: u32,
    /// Its rows, counted over all shards in their order.
    pub rows: Range<u64>,
}

impl Dataset {
    /// The row groups that have rows, in order. Rows are counted from 0 over the shards in the order of their paths, so that row
    /// `r` of a shard has the number of rows of all shards before it, plus `r`.
    pub fn row_groups(&self) -> Vec<GroupOfRows> {
        let (mut all, mut first) = (Vec::new(), 0);
        for (s, shard) in self.shards().iter().enumerate() {
            for (g, group) in shard.row_groups.iter().enumerate().filter(|(_, group)| group.rows > 0) {
                all.push(GroupOfRows { shard: s as u32, group: g as u32, rows: first..first + group.rows });
                first += group.rows;
            }
        }
        all
    }

    /// The row with a number, as [`Dataset::row_groups`] counts.
    pub fn row_of(&self, number: u64) -> Option<RowId> {
        let mut left = number;
        for (shard, of) in self.shards().iter().enumerate() {
            if left < of.rows {
                return Some(RowId { shard: shard as u32, row: left });
            }
            left -= of.rows;
        }
        None
    }
}

/// What is read of a dataset, besides which row groups.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Rows left out.
    pub skip: SkipList,
    /// Rows not wanted.
    pub filter: RowFilter,
    /// Columns beside the rows.
    pub scalars: Vec<Scalar>,
}

/// Rows that follow each other in a shard, without those that are left out.
#[derive(Debug)]
pub struct RowPiece {
    /// The number of each row that is kept.
    pub numbers: Vec<u64>,
    /// Their columns, as [`Wanted::scalars`] names them.
    pub scalars: Vec<Values>,
    /// Rows that the skip list leaves out.
    pub skipped: u64,
    /// Rows that the filter leaves out.
    pub filtered: u64,
    loaded: Loaded,
    first: u64,
    row_bytes: usize,
}

impl RowPiece {
    /// The bytes of a kept row, by its place in [`RowPiece::numbers`].
    pub fn row(&self, kept: usize) -> &[u8] {
        self.loaded.rows((self.numbers[kept] - self.first) as usize, 1, self.row_bytes)
    }
}

/// Reads the rows of some row groups in their order, ahead of who takes them.
///
/// ```
/// # use loader::{Dataset, InSequence, OpenOptions, Store, Wanted, synth};
/// # let url = "memory://sequence/example".to_string();
/// # let spec = synth::Spec { features: 32, width: 8, rows: 1000, active: 2.0, ..synth::Spec::default() };
/// # synth::write(&spec, &Store::open(&url)?, 1, &mut |_| {})?;
/// let dataset = Dataset::open(&[url], &OpenOptions::default())?;
/// let mut rows = InSequence::start(&dataset, dataset.row_groups(), Wanted::default())?;
/// let mut next = 0;
/// while let Some(piece) = rows.read()? {
///     for (kept, number) in piece.numbers.iter().enumerate() {
///         assert_eq!((piece.row(kept).len(), *number), (dataset.row_bytes(), next));
///         next += 1;
///     }
/// }
/// assert_eq!(next, 1000);
/// # Ok::<(), loader::Error>(())
/// ```
pub struct InSequence {
    pieces: Option<Receiver<Result<RowPiece>>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for InSequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InSequence")
    }
}

impl InSequence {
    /// Starts to read.
    ///
    /// # Errors
    /// [`Error::Data`] when the filter needs a column that a shard lacks; [`Error::Threads`].
    pub fn start(dataset: &Dataset, groups: Vec<GroupOfRows>, wanted: Wanted) -> Result<Self> {
        let Wanted { skip, filter, scalars } = wanted;
        let loader = Loader::new(dataset, skip, filter)?;
        let (sender, pieces) = sync_channel(AHEAD);
        let read = move || {
            for group in groups {
                let mut failed = false;
                let done = read_group(&loader, &group, &scalars, &mut |piece| {
                    failed |= sender.send(Ok(piece)).is_err();
                    !failed
                });
                match done {
                    Ok(()) if failed => return,
                    Ok(()) => {}
                    Err(error) => {
                        // Nobody is there who could hear of it.
                        let _ = sender.send(Err(error));
                        return;
                    }
                }
            }
        };
        let thread = Builder::new().name("rows".into()).spawn(read).map_err(Error::threads)?;
        Ok(InSequence { pieces: Some(pieces), thread: Some(thread) })
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Those of the store, and [`Error::Data`] for what is damaged.
    pub fn read(&mut self) -> Result<Option<RowPiece>> {
        let Some(pieces) = &self.pieces else { return Ok(None) };
        match pieces.recv() {
            Ok(piece) => piece.map(Some),
            Err(_) => {
                self.pieces = None;
                match self.thread.take().map(JoinHandle::join) {
                    Some(Err(_)) => Err(Error::Arguments("a thread that reads rows died".into())),
                    _ => Ok(None),
                }
            }
        }
    }
}

impl Drop for InSequence {
    fn drop(&mut self) {
        // With it the thread's next piece has nowhere to go, and it ends.
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Hands the pieces of a row group to `take` until it says no.
fn read_group(
    loader: &Loader,
    group: &GroupOfRows,
    scalars: &[Scalar],
    take: &mut impl FnMut(RowPiece) -> bool,
) -> Result<()> {
    let dataset = &loader.dataset;
    let shard = &dataset.shards()[group.shard as usize];
    let of = &shard.row_groups[group.group as usize];
    let is_skipped = loader.skip.has_row_group(group.shard, group.group);
    let mut columns: Option<Vec<Values>> = None;
    for extent in extents(group.shard, group.group, of, shard.raw, UNIT_BYTES) {
        let loaded = loader.load(&extent)?;
        let rows = extent.row_count();
        let is_kept: Vec<bool> = (0..rows).map(|row| loaded.flag(row) == 0).collect();
        let skipped = (0..rows).filter(|&row| loaded.flag(row) == SKIPPED).count() as u64;
        let first = group.rows.start + extent.rows.start;
        let numbers: Vec<u64> = (0..rows).filter(|&row| is_kept[row]).map(|row| first + row as u64).collect();
        let filtered = rows as u64 - skipped - numbers.len() as u64;
        if columns.is_none() && !is_skipped {
            let read = |scalar| dataset.scalar_values(scalar, group.shard, group.group);
            columns = Some(scalars.iter().map(read).collect::<Result<_>>()?);
        }
        let of_unit = |values: &Values| {
            let values = values.slice(extent.rows.start as usize, rows);
            let fail = |flaw| Error::data(dataset.group_name(group.shard, group.group), flaw);
            values.kept(&BooleanArray::from(is_kept.clone())).map_err(fail)
        };
        // The columns of a row group that is left out are not read either.
        let scalars = match &columns {
            Some(columns) => columns.iter().map(of_unit).collect::<Result<_>>()?,
            None => scalars.iter().map(Values::none).collect(),
        };
        let row_bytes = dataset.row_bytes();
        let piece = RowPiece { numbers, scalars, skipped, filtered, loaded, first, row_bytes };
        if !take(piece) {
            return Ok(());
        }
    }
    Ok(())
}
