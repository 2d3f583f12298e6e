//! Reading ahead: which windows are in memory, which come next, and the threads that load their units.
//!
//! Windows are admitted in the order in which the stream will need them, while the bytes held stay under the budget; the ones
//! that the current step needs are always admitted. Units are shared: a row group that several windows touch is read once
//! while any of them is alive.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::make::writer::ROW_GROUP_BYTES;
use crate::parquet::decode::Buffer;
use crate::store::io;
use crate::stream::load::{Loader, Source, extents, fetch};
use crate::stream::order::{Order, Plan, STREAMS, Window};
use crate::stream::unit::{Extent, Unit};
use crate::{Dataset, Error, Result, memory};

/// Requests in flight to a remote store, over all units.
const REQUESTS: usize = 32;

/// Bytes read ahead by default: hides the latency of a remote store at 1 GB/s and 200 ms, and the pauses of a disk.
const AHEAD: u64 = 256 << 20;

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

/// Bytes of a unit of reading.
fn unit_bytes(plan: &Plan) -> u64 {
    if plan.window_bytes() >= 16 << 20 { 8 << 20 } else { 4 << 20 }
}

/// The bytes that may be held for so many streams: what was asked for, or what the order needs and some ahead.
pub(crate) fn budget(dataset: &Dataset, plan: &Plan, streams: u64, asked: u64) -> Result<u64> {
    budget_within(dataset, plan, streams, asked, memory::available())
}

/// The same where so much memory is available. What the order needs is refused when it is more than was asked for or, if
/// nothing was, more than half of that: weights, moments and the page cache need the rest.
fn budget_within(dataset: &Dataset, plan: &Plan, streams: u64, asked: u64, available: Option<u64>) -> Result<u64> {
    let raw = dataset.shards().iter().all(|s| s.raw || s.rows == 0);
    let group = |g: &crate::RowGroup| (g.rows * dataset.row_bytes() as u64).max(g.length);
    let whole = |g: &crate::RowGroup| if raw && g.pieces.len() > 1 { 2 * unit_bytes(plan) } else { group(g) };
    let groups = dataset.shards().iter().flat_map(|s| &s.row_groups);
    let largest = groups.clone().map(whole).max().unwrap_or(0);
    let all: u64 = groups.map(group).sum();
    let window = if plan.is_permuted() { plan.window_bytes() } else { 0 };
    let needed = (streams * (window + largest)).min(all);
    let (most, but) = match (asked, available) {
        (0, None) => (u64::MAX, String::new()),
        (0, Some(there)) => {
            (there / 2, format!("more than half of the {} that this machine has available", size(there)))
        }
        (asked, _) => (asked, format!("{} are allowed", size(asked))),
    };
    if needed > most {
        let problem = format!(
            "the order needs {} in memory ({streams} windows of {} and a unit of reading of {} for each), {but}",
            size(needed),
            size(window),
            size(largest),
        );
        return Err(Error::Memory { problem, needed });
    }
    Ok(if asked == 0 { needed + AHEAD } else { asked })
}

/// The same of shards of so many bytes that [`crate::ShardWriter`] has yet to write in its recommended layout, at most.
pub(crate) fn budget_of_unwritten(bytes: u64, order: Order, asked: u64) -> u64 {
    let (streams, windows) = match order {
        Order::Sequential => (1, 0),
        Order::Striped => (STREAMS, 0),
        Order::Direct { window_bytes } => (STREAMS, window_bytes),
    };
    let needed = windows.saturating_add(streams * ROW_GROUP_BYTES as u64).min(bytes);
    if asked == 0 { needed + AHEAD } else { asked }
}

/// Bytes in the largest unit that does not round them to nothing.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// The windows of one rank's slice, read ahead.
pub(crate) struct Feed {
    plan: Arc<Plan>,
    partition: (u64, u64),
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// (step that needs it first, stream, window).
    next: BinaryHeap<Reverse<(u64, u64, u64)>>,
    pub(crate) windows: BTreeMap<u64, Windows>,
    live: HashMap<(u32, u32, u64), Weak<Unit>>,
    held: Arc<AtomicU64>,
    budget: u64,
    unit_bytes: u64,
    first_step: u64,
}

impl Feed {
    pub(crate) fn start(plan: Arc<Plan>, loader: Arc<Loader>, options: &FeedOptions, step: u64) -> Result<Self> {
        let unit_bytes = unit_bytes(&plan);
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            stop: AtomicBool::new(false),
            loader,
            requests: Semaphore::new(REQUESTS),
        });
        let mut feed = Feed {
            plan,
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
        };
        feed.find_first_windows(step);
        feed.budget =
            budget(&feed.shared.loader.dataset, &feed.plan, feed.windows.len() as u64, options.prefetch_bytes)?;
        for i in 0..options.threads.max(1) {
            let shared = feed.shared.clone();
            let thread = std::thread::Builder::new().name(format!("loader-{i}")).spawn(move || shared.serve());
            feed.threads.push(thread.map_err(Error::threads)?);
        }
        feed.top_up(step);
        Ok(feed)
    }

    /// The streams' rows that this rank takes: (first, end) offsets from `step` on.
    fn range(&self, stream: u64, step: u64) -> Option<(u64, u64)> {
        let (plan, full) = (&self.plan, self.plan.rows() / self.plan.batch());
        let takes = |step: u64| {
            let (mine, theirs) = (plan.slots(step, self.partition), plan.stream_slots(stream, plan.batch_rows(step)));
            mine.start.max(theirs.start) < mine.end.min(theirs.end)
        };
        let in_full = step < full && takes(step);
        let in_last = step < plan.steps() && plan.batch_rows(full) > 0 && takes(full);
        let first = if in_full { step } else { full.max(step) };
        let end = if in_last { plan.length(stream) } else { plan.first_offset(stream, full) };
        (in_full || in_last).then(|| (plan.first_offset(stream, first), end))
    }

    fn find_first_windows(&mut self, step: u64) {
        for stream in 0..self.plan.streams() {
            if let Some((first, end)) = self.range(stream, step)
                && first < end
            {
                self.windows.insert(stream, Windows::default());
                let needed = self.plan.step_of(stream, first);
                self.next.push(Reverse((needed, stream, self.plan.window_of(stream, first))));
            }
        }
    }

    /// Bytes held now.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Admits the windows that come next: all that `step` needs, further ones while the budget lasts.
    pub(crate) fn top_up(&mut self, step: u64) {
        while let Some(&Reverse((needed, stream, index))) = self.next.peek() {
            if needed > step && self.held() >= self.budget {
                break;
            }
            let window = self.plan.window(stream, index);
            let added = self.weight_of_new(stream, &window);
            if needed > step && added > 0 && self.held() + added > self.budget {
                break;
            }
            self.next.pop();
            self.admit(stream, window);
            let end = self.range(stream, self.first_step).map_or(0, |(_, end)| end);
            let following = self.plan.window(stream, index + 1);
            if following.offset < end {
                self.next.push(Reverse((self.plan.step_of(stream, following.offset), stream, index + 1)));
            } else if let Some(windows) = self.windows.get_mut(&stream) {
                windows.tail = None;
            }
        }
    }

    /// Bytes that admitting a window would add.
    fn weight_of_new(&self, stream: u64, window: &Window) -> u64 {
        let mut sum = 0;
        self.each_extent(stream, window, |extent, _, _, needed| {
            let known =
                self.live.get(&(extent.shard, extent.group, extent.rows.start)).is_some_and(|u| u.strong_count() > 0);
            sum += if needed && !known { self.weight(&extent) } else { 0 };
        });
        sum
    }

    fn weight(&self, extent: &Extent) -> u64 {
        let decoded = (extent.rows.end - extent.rows.start) * self.shared.loader.dataset.row_bytes() as u64;
        decoded.max(extent.bytes.end - extent.bytes.start)
    }

    /// Calls `visit(extent, first row of the part in the window, rows of the part, needed)` for the units of a window.
    fn each_extent(&self, stream: u64, window: &Window, mut visit: impl FnMut(Extent, u64, u64, bool)) {
        let dataset = &self.shared.loader.dataset;
        let (mut at, end) = (window.start, window.start + window.rows);
        let mut k = self.plan.group_of(at);
        while at < end {
            let g = self.plan.groups()[k];
            let shard = &dataset.shards()[g.shard as usize];
            for extent in extents(g.shard, g.index, &shard.row_groups[g.index as usize], shard.raw, self.unit_bytes) {
                let (first, last) = (g.start + extent.rows.start, g.start + extent.rows.end);
                if first < end && last > at {
                    let (from, to) = (first.max(at), last.min(end));
                    let start = from - window.start;
                    let needed = self.is_needed(stream, window, start, to - from);
                    visit(extent, start, to - from, needed);
                }
            }
            k += 1;
            at = self.plan.groups().get(k).map_or(end, |g| g.start);
        }
    }

    /// Whether this rank takes any of these rows of a window. In a permuted window it may be any row.
    fn is_needed(&self, stream: u64, window: &Window, start: u64, rows: u64) -> bool {
        if !window.is_in_order() {
            return true;
        }
        let (from, to) = (window.offset + start, window.offset + start + rows);
        let (first, last) = (self.plan.step_of(stream, from), self.plan.step_of(stream, to - 1));
        if last < self.first_step {
            return false;
        }
        last > first + 1
            || [first, last].into_iter().any(|step| {
                let mine = self.offsets(stream, step);
                mine.start < to && mine.end > from
            })
    }

    /// The offsets of a stream that this rank takes in a step.
    pub(crate) fn offsets(&self, stream: u64, step: u64) -> std::ops::Range<u64> {
        let mine = self.plan.slots(step, self.partition);
        let theirs = self.plan.stream_slots(stream, self.plan.batch_rows(step));
        let first = self.plan.first_offset(stream, step);
        let clamp = |slot: u64| first + slot.clamp(theirs.start, theirs.end) - theirs.start;
        clamp(mine.start)..clamp(mine.end)
    }

    fn admit(&mut self, stream: u64, window: Window) {
        let mut found = Vec::new();
        let plan = self.plan.clone();
        self.each_extent(stream, &window, |extent, start, rows, needed| found.push((extent, start, rows, needed)));
        let mut parts = Vec::with_capacity(found.len());
        for (extent, start, rows, needed) in found {
            let sequence_row = window.start + start;
            let unit_row = sequence_row - plan.groups()[plan.group_of(sequence_row)].start - extent.rows.start;
            let unit = needed.then(|| self.unit(extent));
            parts.push(Part { start, rows, unit, unit_row });
        }
        let windows = self.windows.entry(stream).or_default();
        windows.tail = parts.last().and_then(|p| p.unit.clone());
        windows.admitted.push_back(Admitted { window, parts, ready: None });
    }

    /// The unit of an extent: the living one, or a new one that is queued.
    fn unit(&mut self, extent: Extent) -> Arc<Unit> {
        let key = (extent.shard, extent.group, extent.rows.start);
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
        let loader = &self.shared.loader;
        let remote = match loader.source(unit.extent.shard) {
            Ok(Source::Remote { store, key, url, etag }) if !loader.is_skipped(&unit.extent) => {
                Some((store, key, url, etag))
            }
            _ => None,
        };
        match (remote, io::runtime()) {
            (Some((store, key, url, etag)), Ok(runtime)) => {
                let shared = self.shared.clone();
                runtime.spawn(async move {
                    let range = unit.extent.bytes.clone();
                    let permit = shared.requests.acquire().await;
                    let stopped = shared.stop.load(Ordering::Relaxed) || permit.is_err();
                    if !stopped {
                        let fetched = fetch(&store, &key, range, etag.as_deref(), &url).await;
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
        let plan = self.plan.clone();
        for (&stream, windows) in &mut self.windows {
            let from = plan.first_offset(stream, step);
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
    pub(crate) partition: (u64, u64),
    pub(crate) prefetch_bytes: u64,
    pub(crate) threads: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Help, OpenOptions, Order, ShardWriter, Store, WriteOptions};

    #[test]
    fn what_the_memory_cannot_hold_is_refused_unless_it_was_asked_for() {
        let url = "memory://feed/budget";
        let mut options = WriteOptions::new(512, Dtype::F16);
        // One piece each, so that a row group is read as a whole.
        options.row_group_bytes = 1 << 20;
        let mut writer = ShardWriter::create(&Store::open(url).unwrap(), options).unwrap();
        (0..8).for_each(|_| writer.write(&vec![0; 1 << 20], None).unwrap());
        writer.finish().unwrap();
        let dataset = Dataset::open(&[url.to_string()], &OpenOptions::default()).unwrap();
        let order = Order::Direct { window_bytes: 1 << 20 };
        let plan = Plan::new(dataset.as_opened(), order, 0, 0, 64, None).unwrap();
        let of = |asked, available| budget_within(&dataset, &plan, 64, asked, available);
        let needed: u64 = dataset.shards()[0].row_groups.iter().map(|g| g.length).sum();
        assert_eq!(of(0, None).unwrap(), needed + AHEAD, "no word of the system, no cap");
        assert_eq!(of(0, Some(2 * needed)).unwrap(), needed + AHEAD);
        let error = of(0, Some(2 * needed - 2)).unwrap_err();
        assert_eq!(error.help(), Some(Help::Prefetch(needed)));
        for says in ["needs 8.0 MiB", "half of the 16.0 MiB"] {
            assert!(error.to_string().contains(says), "{says}: {error}");
        }
        assert_eq!(of(needed, Some(1)).unwrap(), needed, "who asks for it gets it");
        assert!(of(needed - 1, None).unwrap_err().to_string().contains("8.0 MiB are allowed"));
    }
}
