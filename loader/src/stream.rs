//! A stream of batches in a dataset's order.

pub(crate) mod batch;
pub(crate) mod budget;
pub(crate) mod cursor;
pub(crate) mod feed;
pub(crate) mod in_sequence;
pub(crate) mod load;
pub(crate) mod order;
pub(crate) mod permutation;
pub(crate) mod pool;
pub(crate) mod positions;
pub(crate) mod unit;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rayon::prelude::*;

use crate::stream::batch::Batch;
use crate::stream::feed::{Admitted, Feed, FeedOptions, Part};
use crate::stream::load::Loader;
use crate::stream::positions::Positions;
use crate::stream::unit::{Loaded, SKIPPED};
use crate::{Cursor, Dataset, Error, Order, Partition, Result, RowFilter, RowId, RowOrder, SkipList};

/// Batches of fewer bytes are copied by the caller's thread alone.
const PARALLEL_BYTES: usize = 1 << 20;

/// How a dataset is streamed.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// The order of rows.
    pub order: Order,
    /// Seed of the order.
    pub seed: u64,
    /// Epoch of the order.
    pub epoch: u64,
    /// Rows of the global batch.
    pub batch: usize,
    /// Rows in the epoch: the first so many of the order's row sequence.
    pub limit: Option<u64>,
    /// Batches that are wanted: the stream ends with them, and reads nothing ahead for those behind; all when absent.
    pub until: Option<u64>,
    /// This rank's slice of every batch.
    pub partition: Partition,
    /// Bytes held at most, windows included; 0: what the order needs and 256 MiB to read ahead.
    pub prefetch_bytes: u64,
    /// Threads that read, verify and decode.
    pub threads: usize,
    /// Rows left out.
    pub skip: SkipList,
    /// Rows not wanted.
    pub filter: RowFilter,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            order: Order::Direct { window_bytes: 1 << 30 },
            seed: 0,
            epoch: 0,
            batch: 4096,
            limit: None,
            until: None,
            partition: Partition::WHOLE,
            prefetch_bytes: 0,
            threads: 2,
            skip: SkipList::default(),
            filter: RowFilter::default(),
        }
    }
}

/// Batches of rows, in order, read ahead by threads of its own.
///
/// The order is that of the seed, whatever reads it, and a cursor goes on in it where another stream stood:
///
/// ```
/// # use loader::{Cursor, Dataset, OpenOptions, Order, Store, Stream, StreamOptions, synth};
/// # let url = "memory://stream/example".to_string();
/// # let spec = synth::Spec { features: 32, width: 8, rows: 1000, active: 2.0, ..synth::Spec::default() };
/// # synth::write(&spec, &Store::open(&url)?, 1, &mut |_| {})?;
/// let dataset = Dataset::open(&[url], &OpenOptions::default())?;
/// let order = Order::Direct { window_bytes: 4096 };
/// let options = StreamOptions { order, seed: 7, batch: 100, ..StreamOptions::default() };
/// let mut stream = Stream::start(&dataset, options.clone(), Cursor::default())?;
/// let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
/// stream.next(&mut buffer)?;
/// let cursor = stream.cursor();
///
/// let batch = stream.next(&mut buffer)?.expect("ten batches");
/// let mut resumed = Stream::start(&dataset, StreamOptions { threads: 4, ..options }, cursor)?;
/// let again = resumed.next(&mut buffer)?.expect("nine are left");
/// assert_eq!(stream.row_ids(&batch), resumed.row_ids(&again));
/// # Ok::<(), loader::Error>(())
/// ```
pub struct Stream {
    positions: Positions,
    feed: Feed,
    loader: Arc<Loader>,
    step: u64,
    /// Where it ends.
    until: u64,
    row_bytes: usize,
    /// Whether large batches are copied by several threads.
    parallel: bool,
    stall: Duration,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream(step {} of {})", self.step, self.until)
    }
}

/// Contiguous slots of a step that one stream fills.
#[derive(Debug, Clone)]
struct Need {
    stream: u64,
    offsets: Range<u64>,
    first_slot: u64,
}

/// Where rows go, and what was left out.
struct Gather<'a> {
    out: &'a mut [u8],
    at: usize,
    row_bytes: usize,
    slot: u64,
    dropped: Vec<Dropped>,
}

/// A slot whose row is left out.
struct Dropped {
    slot: u64,
    /// [`SKIPPED`] or filtered.
    why: u8,
}

/// What came of waiting for a step's rows.
struct Waited {
    stall: Duration,
    /// Whether no row is left out.
    all_kept: bool,
}

impl Gather<'_> {
    /// Takes one slot's row, or leaves it out.
    fn row(&mut self, loaded: &Loaded, row: usize) {
        match loaded.flag(row) {
            0 => {
                let bytes = loaded.rows(row, 1, self.row_bytes);
                self.out[self.at..self.at + self.row_bytes].copy_from_slice(bytes);
                self.at += self.row_bytes;
            }
            why => self.dropped.push(Dropped { slot: self.slot, why }),
        }
        self.slot += 1;
    }

    /// Takes rows that follow each other, as many as are contiguous; returns their number.
    fn run(&mut self, loaded: &Loaded, row: usize, rows: usize) -> usize {
        if loaded.flags.is_some() {
            self.row(loaded, row);
            return 1;
        }
        let bytes = loaded.rows(row, rows, self.row_bytes);
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        let taken = bytes.len() / self.row_bytes;
        self.slot += taken as u64;
        taken
    }
}

impl Stream {
    /// Starts at a cursor (`Cursor::default()`: the beginning). A cursor of other data or another order is refused.
    pub fn start(dataset: &Dataset, options: StreamOptions, from: Cursor) -> Result<Self> {
        let positions = Stream::positions_from(dataset, &options, &from)?;
        let loader = Arc::new(Loader::new(dataset, options.skip, options.filter)?);
        let (prefetch_bytes, threads) = (options.prefetch_bytes, options.threads);
        let order = &positions.order;
        let until = options.until.unwrap_or(u64::MAX).min(order.steps());
        let reading = FeedOptions { partition: positions.partition, prefetch_bytes, threads, until };
        let step = from.step.min(until);
        let feed = Feed::start(order.clone(), loader.clone(), &reading, step)?;
        let (row_bytes, parallel) = (dataset.row_bytes(), threads > 1);
        Ok(Stream { positions, feed, loader, step, until, row_bytes, parallel, stall: Duration::ZERO })
    }

    /// The positions of a stream of these options that would start at a cursor, which is refused as [`Stream::start`] does; nothing is read.
    pub fn positions_from(dataset: &Dataset, options: &StreamOptions, from: &Cursor) -> Result<Positions> {
        let Partition { index, count } = options.partition;
        if index >= count {
            return Err(Error::Arguments(format!("partition {index} of {count} does not exist")));
        }
        let StreamOptions { order, seed, epoch, batch, limit, .. } = *options;
        let order = RowOrder::new(dataset.as_opened(), order, seed, epoch, batch, limit)?;
        from.check(&order, dataset.if_copied())?;
        Ok(Positions::new(order, options.partition))
    }

    /// The most bytes of rows that a stream of these options holds, before it is started.
    ///
    /// # Errors
    /// [`Error::Arguments`] when `prefetch_bytes` is less than the order needs.
    pub fn bytes_at_most(dataset: &Dataset, options: &StreamOptions) -> Result<u64> {
        let StreamOptions { order, seed, epoch, batch, limit, .. } = *options;
        let order = RowOrder::new(dataset.as_opened(), order, seed, epoch, batch, limit)?;
        budget::budget(dataset, &order, order.streams().min(order.rows()), options.prefetch_bytes)
    }

    /// The same of shards of so many bytes that are yet to be written in the recommended layout.
    pub fn bytes_at_most_of_unwritten(bytes: u64, order: Order, prefetch_bytes: u64) -> u64 {
        budget::budget_of_unwritten(bytes, order, prefetch_bytes)
    }

    /// Writes the rank's slice of the next batch into `out`, in the stored dtype; `None` at the end of the epoch.
    /// `out` needs [`Stream::max_rows`] rows.
    pub fn next(&mut self, out: &mut [u8]) -> Result<Option<Batch>> {
        let Positions { order, partition } = &self.positions;
        let step = self.step;
        if step >= self.until {
            return Ok(None);
        }
        let slots = order.slots(step, *partition);
        let needed = (slots.end - slots.start) as usize * self.row_bytes;
        if out.len() < needed {
            return Err(Error::Arguments(format!("a buffer of {} bytes for a batch of {needed}", out.len())));
        }
        let first_position = step * order.batch() + slots.start;
        let needs = self.needs(step, &slots);
        let Waited { stall, all_kept } = self.wait(&needs)?;
        self.stall += stall;
        let mut batch = Batch { rows: 0, first_position, step, skipped: 0, filtered: 0, stall, dropped: Vec::new() };
        if all_kept && self.parallel && needed >= PARALLEL_BYTES {
            self.gather_parallel(&needs, &mut out[..needed])?;
            batch.rows = (slots.end - slots.start) as usize;
        } else {
            let mut gather = Gather { out, at: 0, row_bytes: self.row_bytes, slot: 0, dropped: Vec::new() };
            for need in &needs {
                gather.slot = need.first_slot;
                self.gather(need, &mut gather)?;
            }
            batch.rows = gather.at / self.row_bytes;
            batch.skipped = gather.dropped.iter().filter(|dropped| dropped.why == SKIPPED).count() as u64;
            batch.filtered = gather.dropped.len() as u64 - batch.skipped;
            batch.dropped = gather.dropped.iter().map(|dropped| dropped.slot).collect();
        }
        self.step += 1;
        self.feed.release(self.step);
        self.feed.top_up(self.step);
        Ok(Some(batch))
    }

    /// What each stream gives to a step, in the order of the slots.
    fn needs(&self, step: u64, slots: &Range<u64>) -> Vec<Need> {
        if slots.is_empty() {
            return Vec::new();
        }
        let order = &self.positions.order;
        let rows = u128::from(order.batch_rows(step));
        let stream_of = |slot: u64| (u128::from(slot) * u128::from(order.streams()) / rows) as u64;
        let mut first_slot = slots.start;
        let mut needs = Vec::new();
        for stream in stream_of(slots.start)..=stream_of(slots.end - 1) {
            let offsets = self.feed.offsets(stream, step);
            let rows = offsets.end - offsets.start;
            needs.push(Need { stream, offsets, first_slot });
            first_slot += rows;
        }
        needs
    }

    /// Waits for everything that a step needs.
    fn wait(&mut self, needs: &[Need]) -> Result<Waited> {
        let (mut stall, mut all_kept) = (Duration::ZERO, true);
        for Need { stream, offsets, .. } in needs.iter().filter(|need| !need.offsets.is_empty()) {
            let Some(windows) = self.feed.windows.get(stream) else { continue };
            let mut ready = Vec::new();
            for (i, w) in windows.admitted.iter().enumerate() {
                let (first, end) = (w.window.offset, w.end());
                if end <= offsets.start || first >= offsets.end {
                    continue;
                }
                if let Some(kept) = w.ready {
                    all_kept &= kept;
                    continue;
                }
                let mut kept = true;
                let touched = |p: &&Part| {
                    let at = first + p.start;
                    !w.window.is_in_order() || (at < offsets.end && at + p.rows > offsets.start)
                };
                for unit in w.parts.iter().filter(touched).filter_map(|p| p.unit.as_ref()) {
                    stall += self.feed.wait(unit);
                    kept &= unit.loaded()?.flags.is_none();
                }
                all_kept &= kept;
                if !w.window.is_in_order() {
                    ready.push((i, kept));
                }
            }
            if let Some(windows) = self.feed.windows.get_mut(stream) {
                ready.into_iter().for_each(|(i, kept)| windows.admitted[i].ready = Some(kept));
            }
        }
        Ok(Waited { stall, all_kept })
    }

    /// Copies with several threads: rows of a window lie all over it, and one core alone waits for memory.
    fn gather_parallel(&self, needs: &[Need], out: &mut [u8]) -> Result<()> {
        let rows = (PARALLEL_BYTES / 4 / self.row_bytes).max(1) as u64;
        let mut tasks = Vec::new();
        let mut rest = out;
        for Need { stream, offsets, .. } in needs {
            let mut start = offsets.start;
            while start < offsets.end {
                let end = (start + rows).min(offsets.end);
                let (part, tail) = rest.split_at_mut((end - start) as usize * self.row_bytes);
                tasks.push((Need { stream: *stream, offsets: start..end, first_slot: 0 }, part));
                (rest, start) = (tail, end);
            }
        }
        tasks.into_par_iter().try_for_each(|(need, out)| {
            let mut gather = Gather { out, at: 0, row_bytes: self.row_bytes, slot: 0, dropped: Vec::new() };
            self.gather(&need, &mut gather)
        })
    }

    /// Copies one stream's rows; everything they need was waited for.
    fn gather(&self, need: &Need, gather: &mut Gather<'_>) -> Result<()> {
        let mut offset = need.offsets.start;
        while offset < need.offsets.end {
            let windows = &self.feed.windows[&need.stream].admitted;
            let admitted = &windows[windows.partition_point(|w| w.end() <= offset)];
            let until = need.offsets.end.min(admitted.end());
            if admitted.window.is_in_order() {
                offset = gather_in_order(admitted, offset, until, gather)?;
                continue;
            }
            for o in offset..until {
                let row = admitted.window.row(o - admitted.window.offset);
                let part = &admitted.parts[admitted.part(row)];
                if let Some(unit) = &part.unit {
                    gather.row(unit.loaded()?, (part.unit_row + row - part.start) as usize);
                }
            }
            offset = until;
        }
        Ok(())
    }

    /// Where the stream stands: the step that `next` delivers next.
    pub fn cursor(&self) -> Cursor {
        self.positions.cursor(self.step)
    }

    /// The most rows that a batch of this rank can have.
    pub fn max_rows(&self) -> usize {
        let Positions { order, partition } = &self.positions;
        [0, order.steps().saturating_sub(1)]
            .map(|step| order.slots(step, *partition))
            .map(|slots| (slots.end - slots.start) as usize)
            .into_iter()
            .max()
            .unwrap_or(0)
    }

    /// Batches in the epoch, or as many as are wanted.
    pub fn steps(&self) -> u64 {
        self.until
    }

    /// The order, to evaluate at any position.
    pub fn order(&self) -> &RowOrder {
        &self.positions.order
    }

    /// Which rows a rank has in each batch, which outlives the stream.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// How long `next` has waited for data so far.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Bytes read from the store so far.
    pub fn bytes_read(&self) -> u64 {
        self.loader.bytes_read.load(Ordering::Relaxed)
    }

    /// Bytes of a stored row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bytes of rows held in memory now.
    pub fn bytes_held(&self) -> u64 {
        self.feed.held()
    }

    /// The rows of a batch, in the order they were written.
    pub fn row_ids(&self, batch: &Batch) -> Vec<RowId> {
        self.positions.row_ids(batch)
    }
}

/// Copies rows of a window that is not permuted, in contiguous runs; returns the offset after them.
fn gather_in_order(admitted: &Admitted, offset: u64, until: u64, gather: &mut Gather<'_>) -> Result<u64> {
    let row = offset - admitted.window.offset;
    let part = &admitted.parts[admitted.part(row)];
    let rows = (until - offset).min(part.start + part.rows - row);
    let Some(unit) = &part.unit else {
        return Err(Error::Arguments("a part that was not to be needed is needed".into()));
    };
    let taken = gather.run(unit.loaded()?, (part.unit_row + row - part.start) as usize, rows as usize);
    Ok(offset + taken as u64)
}
