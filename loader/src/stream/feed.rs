//! Reading ahead: which windows are in memory, which come next, and the threads that load their units.
//!
//! Windows are admitted in the order in which the stream will need them, while the bytes held stay under the budget; the ones
//! that the current step needs are always admitted. Units are shared: a row group that several windows touch is read once
//! while any of them is alive.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::parquet::decode::Buffer;
use crate::store::io;
use crate::stream::budget::{budget, unit_bytes};
use crate::stream::load::{Loader, extents};
use crate::stream::order::{Partition, RowOrder, Window};
use crate::stream::unit::{Extent, Unit};
use crate::{Error, Result};

/// Requests in flight to a remote store, over all units.
const REQUESTS: usize = 32;

/// A part of a window that lies in one unit.
#[derive(Debug)]
pub(crate) struct Part {
    /// First row, counted in the window.
    pub(crate) start: u64,
    pub(crate) rows: u64,
    /// `None`: this rank needs nothing of it.
    pub(crate) unit: Option<Arc<Unit>>,
    /// The unit's row where the part begins.
    pub(crate) unit_row: u64,
}

/// A window that was admitted.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) window: Window,
    pub(crate) parts: Vec<Part>,
    /// Once all units were read: whether every row is kept.
    pub(crate) ready: Option<bool>,
}

impl Admitted {
    pub(crate) fn end(&self) -> u64 {
        self.window.offset + self.window.rows
    }

    pub(crate) fn part(&self, row: u64) -> usize {
        self.parts.partition_point(|p| p.start <= row) - 1
    }
}

/// The windows of one canonical stream.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    pub(crate) admitted: VecDeque<Admitted>,
    /// The unit where the last admitted window ends and the next one begins.
    tail: Option<Arc<Unit>>,
}

/// A window that is not admitted yet. The least comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Next {
    /// The step that needs it first.
    step: u64,
    stream: u64,
    /// Its number in the stream.
    window: u64,
}

/// Which unit: two extents of one data set that begin at the same row are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct UnitKey {
    shard: u32,
    group: u32,
    first_row: u64,
}

impl UnitKey {
    fn of(extent: &Extent) -> Self {
        UnitKey { shard: extent.shard, group: extent.group, first_row: extent.rows.start }
    }
}

/// What a window has of a unit.
struct Share {
    extent: Extent,
    /// First row, counted in the window.
    start: u64,
    rows: u64,
    /// Whether this rank takes any of them.
    needed: bool,
}

/// A unit to load; with its bytes if they were fetched already.
struct Job {
    unit: Arc<Unit>,
    fetched: Option<Result<Bytes>>,
}

/// What the threads share.
struct Shared {
    jobs: Mutex<VecDeque<Job>>,
    work: Condvar,
    done: Condvar,
    stop: AtomicBool,
    loader: Arc<Loader>,
    requests: Semaphore,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.lock().push_back(job);
        self.work.notify_one();
    }

    /// Loads units until it is asked to stop.
    fn serve(&self) {
        loop {
            let mut jobs = self.lock();
            let job = loop {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                match jobs.pop_front() {
                    Some(job) => break job,
                    None => jobs = self.work.wait(jobs).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(jobs);
            let extent = &job.unit.extent;
            let load = || match job.fetched {
                Some(Ok(bytes)) => self.loader.finish(extent, Buffer::Shared(bytes), false),
                Some(Err(e)) => Err(e),
                None => self.loader.load(extent),
            };
            let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| {
                let place = self.loader.dataset.group_name(extent.shard, extent.group);
                Err(Error::data(place, "damaged: reading it failed inside the loader"))
            });
            // Each unit is queued once, so the cell is empty.
            let _ = job.unit.cell.set(loaded);
            drop(self.lock());
            self.done.notify_all();
        }
    }
}

/// The windows of one rank's slice, read ahead.
pub(crate) struct Feed {
    order: Arc<RowOrder>,
    partition: Partition,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    next: BinaryHeap<Reverse<Next>>,
    pub(crate) windows: BTreeMap<u64, Windows>,
    live: HashMap<UnitKey, Weak<Unit>>,
    held: Arc<AtomicU64>,
    budget: u64,
    unit_bytes: u64,
    first_step: u64,
    until: u64,
}

impl Feed {
    pub(crate) fn start(order: Arc<RowOrder>, loader: Arc<Loader>, options: &FeedOptions, step: u64) -> Result<Self> {
        let unit_bytes = unit_bytes(&order);
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            stop: AtomicBool::new(false),
            loader,
            requests: Semaphore::new(REQUESTS),
        });
        let mut feed = Feed {
            order,
            partition: options.partition,
            shared,
            threads: Vec::new(),
            next: BinaryHeap::new(),
            windows: BTreeMap::new(),
            live: HashMap::new(),
            held: Arc::default(),
            budget: 0,
            unit_bytes,
            first_step: step,
            until: options.until,
        };
        feed.find_first_windows(step);
        feed.budget =
            budget(&feed.shared.loader.dataset, &feed.order, feed.windows.len() as u64, options.prefetch_bytes)?;
        for i in 0..options.threads.max(1) {
            let shared = feed.shared.clone();
            let thread = std::thread::Builder::new().name(format!("loader-{i}")).spawn(move || shared.serve());
            feed.threads.push(thread.map_err(Error::threads)?);
        }
        feed.top_up(step);
        Ok(feed)
    }

    /// The offsets of a stream among which are all that this rank takes from `step` on; `None`: it takes nothing.
    fn range(&self, stream: u64, step: u64) -> Option<Range<u64>> {
        let (order, full) = (&self.order, self.order.rows() / self.order.batch());
        let takes = |step: u64| {
            let (mine, theirs) =
                (order.slots(step, self.partition), order.stream_slots(stream, order.batch_rows(step)));
            mine.start.max(theirs.start) < mine.end.min(theirs.end)
        };
        let in_full = step < full && takes(step);
        let in_last = step < order.steps() && order.batch_rows(full) > 0 && takes(full);
        let first = if in_full { step } else { full.max(step) };
        let end = if in_last { order.length(stream) } else { order.first_offset(stream, full) };
        (in_full || in_last).then(|| order.first_offset(stream, first)..end)
    }

    fn find_first_windows(&mut self, step: u64) {
        for stream in 0..self.order.streams() {
            if let Some(offsets) = self.range(stream, step).filter(|offsets| !offsets.is_empty()) {
                self.windows.insert(stream, Windows::default());
                let window = self.order.window_of(stream, offsets.start);
                let step = self.order.step_of(stream, offsets.start);
                self.next.push(Reverse(Next { step, stream, window }));
            }
        }
    }

    /// Bytes held now.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Admits the windows that come next: all that `step` needs, further ones while the budget lasts.
    pub(crate) fn top_up(&mut self, step: u64) {
        while let Some(&Reverse(Next { step: needed, stream, window: index })) = self.next.peek() {
            if needed >= self.until || (needed > step && self.held() >= self.budget) {
                break;
            }
            let window = self.order.window(stream, index);
            let added = self.weight_of_new(stream, &window);
            if needed > step && added > 0 && self.held() + added > self.budget {
                break;
            }
            self.next.pop();
            self.admit(stream, window);
            let end = self.range(stream, self.first_step).map_or(0, |offsets| offsets.end);
            let following = self.order.window(stream, index + 1);
            if following.offset < end {
                let step = self.order.step_of(stream, following.offset);
                self.next.push(Reverse(Next { step, stream, window: index + 1 }));
            } else if let Some(windows) = self.windows.get_mut(&stream) {
                windows.tail = None;
            }
        }
    }

    /// Bytes that admitting a window would add.
    fn weight_of_new(&self, stream: u64, window: &Window) -> u64 {
        let mut sum = 0;
        self.each_share(stream, window, |share| {
            let known = self.live.get(&UnitKey::of(&share.extent)).is_some_and(|unit| unit.strong_count() > 0);
            sum += if share.needed && !known { self.weight(&share.extent) } else { 0 };
        });
        sum
    }

    fn weight(&self, extent: &Extent) -> u64 {
        let decoded = (extent.rows.end - extent.rows.start) * self.shared.loader.dataset.row_bytes() as u64;
        decoded.max(extent.bytes.end - extent.bytes.start)
    }

    /// Calls `visit` with what a window has of each of its units, in the order of the sequence.
    fn each_share(&self, stream: u64, window: &Window, mut visit: impl FnMut(Share)) {
        let dataset = &self.shared.loader.dataset;
        let (mut at, end) = (window.start, window.start + window.rows);
        let mut k = self.order.group_of(at);
        while at < end {
            let g = self.order.groups()[k];
            let shard = &dataset.shards()[g.shard as usize];
            for extent in extents(g.shard, g.index, &shard.row_groups[g.index as usize], shard.raw, self.unit_bytes) {
                let (first, last) = (g.start + extent.rows.start, g.start + extent.rows.end);
                if first < end && last > at {
                    let (from, to) = (first.max(at), last.min(end));
                    let (start, rows) = (from - window.start, to - from);
                    let needed = self.is_needed(stream, window, start, rows);
                    visit(Share { extent, start, rows, needed });
                }
            }
            k += 1;
            at = self.order.groups().get(k).map_or(end, |g| g.start);
        }
    }

    /// Whether this rank takes any of these rows of a window. In a permuted window it may be any row.
    fn is_needed(&self, stream: u64, window: &Window, start: u64, rows: u64) -> bool {
        if !window.is_in_order() {
            return true;
        }
        let (from, to) = (window.offset + start, window.offset + start + rows);
        let (first, last) = (self.order.step_of(stream, from), self.order.step_of(stream, to - 1));
        if last < self.first_step || first >= self.until {
            return false;
        }
        last > first + 1
            || [first, last].into_iter().any(|step| {
                let mine = self.offsets(stream, step);
                mine.start < to && mine.end > from
            })
    }

    /// The offsets of a stream that this rank takes in a step.
    pub(crate) fn offsets(&self, stream: u64, step: u64) -> Range<u64> {
        let mine = self.order.slots(step, self.partition);
        let theirs = self.order.stream_slots(stream, self.order.batch_rows(step));
        let first = self.order.first_offset(stream, step);
        let clamp = |slot: u64| first + slot.clamp(theirs.start, theirs.end) - theirs.start;
        clamp(mine.start)..clamp(mine.end)
    }

    fn admit(&mut self, stream: u64, window: Window) {
        let mut shares = Vec::new();
        let order = self.order.clone();
        self.each_share(stream, &window, |share| shares.push(share));
        let mut parts = Vec::with_capacity(shares.len());
        for Share { extent, start, rows, needed } in shares {
            let sequence_row = window.start + start;
            let unit_row = sequence_row - order.groups()[order.group_of(sequence_row)].start - extent.rows.start;
            let unit = needed.then(|| self.unit(extent));
            parts.push(Part { start, rows, unit, unit_row });
        }
        let windows = self.windows.entry(stream).or_default();
        windows.tail = parts.last().and_then(|p| p.unit.clone());
        windows.admitted.push_back(Admitted { window, parts, ready: None });
    }

    /// The unit of an extent: the living one, or a new one that is queued.
    fn unit(&mut self, extent: Extent) -> Arc<Unit> {
        let key = UnitKey::of(&extent);
        if let Some(unit) = self.live.get(&key).and_then(Weak::upgrade) {
            return unit;
        }
        let unit = Arc::new(Unit::new(extent.clone(), self.weight(&extent), &self.held));
        if self.live.len() > 4096 {
            self.live.retain(|_, u| u.strong_count() > 0);
        }
        self.live.insert(key, Arc::downgrade(&unit));
        self.request(unit.clone());
        unit
    }

    fn request(&self, unit: Arc<Unit>) {
        match (self.shared.loader.request(&unit.extent), io::runtime()) {
            (Some(fetching), Ok(runtime)) => {
                let shared = self.shared.clone();
                runtime.spawn(async move {
                    let permit = shared.requests.acquire().await;
                    let stopped = shared.stop.load(Ordering::Relaxed) || permit.is_err();
                    if !stopped {
                        let fetched = fetching.await;
                        drop(permit);
                        shared.push(Job { unit, fetched: Some(fetched) });
                    }
                });
            }
            _ => self.shared.push(Job { unit, fetched: None }),
        }
    }

    /// Waits until a unit was read; says how long.
    pub(crate) fn wait(&self, unit: &Unit) -> Duration {
        if unit.is_ready() {
            return Duration::ZERO;
        }
        let began = Instant::now();
        let mut jobs = self.shared.lock();
        while !unit.is_ready() {
            jobs = self.shared.done.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        began.elapsed()
    }

    /// Lets go of windows that no step from `step` on needs.
    pub(crate) fn release(&mut self, step: u64) {
        let order = self.order.clone();
        for (&stream, windows) in &mut self.windows {
            let from = order.first_offset(stream, step);
            while windows.admitted.front().is_some_and(|w| w.end() <= from) {
                windows.admitted.pop_front();
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.lock().clear();
        self.shared.requests.close();
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to say here.
            let _ = thread.join();
        }
    }
}

/// The part of a stream's options that concerns reading ahead.
pub(crate) struct FeedOptions {
    pub(crate) partition: Partition,
    pub(crate) prefetch_bytes: u64,
    pub(crate) threads: usize,
    /// The step before which the stream ends.
    pub(crate) until: u64,
}
