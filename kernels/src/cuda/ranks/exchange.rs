//! What the ranks of a mesh tell each other about a batch: rows, parts of x̂, sums of the report, norms; launches `exchange.cu`.
//!
//! Nothing here waits for the host, and every rank makes the same exchanges whatever became of the batch, a refused one included:
//! it is the words of [`Statuses`] that tell all of them to change nothing.
//!
//! Bytes a rank sends: stored rows to each rank of the feature axis; of x̂ `8·b·D·(f − 1)/f` for b rows and f ranks there, as an
//! all-reduce; 96 to every rank for the report.
//!
//! x̂ is summed as on processors: pieces to the rank that sums them, sums back to all, in the order of the ranks; never by
//! `ncclAllReduce`, whose order is NCCL's choice. An overflow or a NaN on one rank is a word that a kernel combines over all, before
//! anything changes, so all GPUs refuse and hold the same batches; and runs of pairs, the last thing that may lack room, are made before
//! that word goes round.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::communicator::Message;
use crate::Error;
use crate::cuda::ops::backward::Gradient;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::status::Status;
use crate::device::{SUMS_TIMED, rate_of_sums};
use crate::ranks::Group;

/// Where parts of the others lie when values are summed over an axis.
pub struct AxisSum {
    /// `[ranks, pitch]`.
    parts_rp: Buffer<f32>,
    pitch: usize,
}

impl AxisSum {
    /// For parts of at most `pitch` values of `ranks` ranks; `None` where there is one rank, with nothing to sum.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(ranks: usize, pitch: usize, memory: &mut GpuMemory) -> Result<Option<Self>, Error> {
        let new = || Ok(AxisSum { parts_rp: memory.step(ranks * pitch, "sums over ranks")?, pitch });
        (ranks > 1).then(new).transpose()
    }

    /// Sums some values over `axis`. Each member sums a piece of them and gives it to all.
    pub fn sum_pieces(&self, engine: &Engine, axis: &Group, values: &Buffer<f32>, summed: Range<usize>) {
        let (size, own) = (axis.size(), axis.index());
        let edge = |member: usize| summed.start + summed.len() * member / size;
        let piece = |member: usize| edge(member)..edge(member + 1);
        let mine = piece(own);
        assert!(mine.len() <= self.pitch, "room for the parts");
        let of_values = |range: Range<usize>| values.part(range);
        let to_sum = |member| Message {
            member,
            sent: of_values(piece(member)),
            received: self.parts_rp.part(member * self.pitch..member * self.pitch + mine.len()),
        };
        let messages: Vec<Message> = (0..size).map(to_sum).collect();
        // SAFETY: the parts are those of buffers of this engine, and apart from each other.
        unsafe { engine.exchange(axis, &messages) };
        self.sum(engine, axis, values.at(mine.start), mine.len());
        let summed = |member| Message { member, sent: of_values(mine.clone()), received: of_values(piece(member)) };
        let messages: Vec<Message> = (0..size).map(summed).collect();
        // SAFETY: as above.
        unsafe { engine.exchange(axis, &messages) };
    }

    /// Sums few values over `axis`: every member sums all of them.
    pub fn sum_few(&self, engine: &Engine, axis: &Group, values: &Buffer<f32>) {
        let len = values.len();
        assert!(len <= self.pitch, "room for the parts");
        let message = |member| Message {
            member,
            sent: values.part(0..len),
            received: self.parts_rp.part(member * self.pitch..member * self.pitch + len),
        };
        let messages: Vec<Message> = (0..axis.size()).map(message).collect();
        // SAFETY: the parts are those of buffers of this engine, and apart from each other.
        unsafe { engine.exchange(axis, &messages) };
        self.sum(engine, axis, values.at(0), len);
    }

    /// Sums the parts that the others have sent to the `len` values at `place`.
    fn sum(&self, engine: &Engine, axis: &Group, place: Pointer, len: usize) {
        let (parts, pitch) = (self.parts_rp.at(0), self.pitch);
        SumParts { engine, axis, kernel: "sum_parts_f32", own: place, parts, pitch, len }.run(place);
    }
}

/// See [`Device::exchange_rate`](crate::Device::exchange_rate).
///
/// # Errors
/// Those of [`Device::exchange_rate`](crate::Device::exchange_rate).
pub fn rate(engine: &Arc<Engine>, values: usize) -> Result<f64, Error> {
    let all = &engine.axes.all;
    let mut memory = GpuMemory::of(engine);
    let Some(sum) = AxisSum::new(all.size(), values.div_ceil(all.size()), &mut memory)? else { return Ok(0.0) };
    let summed = memory.step(values, "sums over ranks")?;
    let times = |n: usize| {
        (0..n).for_each(|_| sum.sum_pieces(engine, all, &summed, 0..values));
        engine.wait()
    };
    times(1)?;
    let started = Instant::now();
    times(SUMS_TIMED)?;
    Ok(rate_of_sums(values, all.size(), started.elapsed()))
}

/// Parts of the members of an axis that are to be summed, each of `len` values.
pub struct SumParts<'a> {
    pub engine: &'a Engine,
    pub axis: &'a Group,
    pub kernel: &'static str,
    /// This rank's.
    pub own: Pointer,
    /// Those of the members, `pitch` values apart; what stands at this rank's own place is not looked at.
    pub parts: Pointer,
    pub pitch: usize,
    pub len: usize,
}

impl SumParts<'_> {
    /// Sums them to `sum`, in the order of the members.
    pub fn run(&self, sum: Pointer) {
        let SumParts { engine, axis, kernel, own, parts, pitch, len } = *self;
        let (me, ranks) = (axis.index() as u32, axis.size() as u32);
        let arguments = arguments![own, parts, sum, me, ranks, pitch as u32, len as u32];
        // SAFETY: the caller has received `len` values of every other member to `parts`.
        unsafe { engine.enqueue(kernel, len.div_ceil(256), 0, arguments) };
    }
}

/// The status of every rank, so that all come to the same one.
pub struct Statuses {
    statuses_r: Buffer<Status>,
}

impl Statuses {
    /// `None` where there is one rank.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(ranks: usize, memory: &mut GpuMemory) -> Result<Option<Self>, Error> {
        let new = || Ok(Statuses { statuses_r: memory.step(ranks, "sums over ranks")? });
        (ranks > 1).then(new).transpose()
    }

    fn gather(&self, engine: &Engine, status: &Buffer<Status>) {
        let all = &engine.axes.all;
        let message = |member: usize| Message {
            member,
            sent: status.part(0..1),
            received: self.statuses_r.part(member..member + 1),
        };
        let messages: Vec<Message> = (0..all.size()).map(message).collect();
        // SAFETY: the parts are those of buffers of this engine, and apart from each other.
        unsafe { engine.exchange(all, &messages) };
    }

    /// The sums of the report over all ranks, and whether any has to refuse the batch.
    pub fn combine_sums(&self, engine: &Engine, status: &Buffer<Status>) {
        self.gather(engine, status);
        let (all, feature) = (&engine.axes.all, engine.axes.feature.size() as u32);
        let arguments = arguments![self.statuses_r.at(0), status.at(0), all.index() as u32, all.size() as u32, feature];
        // SAFETY: there is a status of every rank.
        unsafe { engine.enqueue("combine_sums", 1, 0, arguments) };
    }

    /// The norm of all gradients: of the features `owned` here, of those of the other ranks, and of `∂b_dec`.
    pub fn combine_norms(&self, engine: &Engine, gradient: &Gradient, owned: &Range<usize>, status: &Buffer<Status>) {
        let (norm2_f, b_dec_s) = (&gradient.norm2_f, &gradient.b_dec_s);
        let arguments = arguments![norm2_f.at(owned.start), status.at(0), owned.len() as u32];
        // SAFETY: there is a value for every owned feature.
        unsafe { engine.enqueue("sum_norms", 1, 0, arguments) };
        self.gather(engine, status);
        let all = &engine.axes.all;
        let (me, ranks, stride) = (all.index() as u32, all.size() as u32, b_dec_s.len() as u32);
        let arguments = arguments![self.statuses_r.at(0), b_dec_s.at(0), status.at(0), me, ranks, stride];
        // SAFETY: there is a status of every rank, and a value a column.
        unsafe { engine.enqueue("combine_norms", 1, 0, arguments) };
    }
}
