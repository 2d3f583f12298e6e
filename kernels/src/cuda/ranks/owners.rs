//! What the ranks of the data axis send each other: gradient rows to the rank that owns the feature, weights back to all. Launches
//! `owners.cu`.
//!
//! Only rows of touched features travel. Every rank tells the others which its tokens have touched, a bit a feature, and the host
//! learns how many, for NCCL wants the lengths of messages from it: it waits for that while the GPU goes on with `backward`. Rows go round by
//! round, so many of every owner's features at a time as there is room for. Sums of a round are not kept beside those of the next, so
//! memory is bounded, but the norm must be known before any update: with several rounds rows are made and sent twice.
//! `train.dense_bytes` says how much a round may take.
//!
//! Bytes a rank sends to d − 1 others, of F features in the shard and U that its tokens have touched: gradients `8·U·D·(d − 1)/d`,
//! twice with several rounds, and `8·F·(d − 1)/d` for `∂b_enc` and firings; bits `F/8·(d − 1)`; weights `8·R·D·(d − 1)/d`, R = F with dense Adam,
//! else what any rank has touched, half of that in bf16.
//!
//! All ranks know all bits, so all cut rounds alike. On the dense path every feature counts as touched. All rows would be 83 times as
//! much gradient with 34M features, 4,096 tokens a rank and 100 active features a token, and 3 times as much with 1M; the weights that
//! dense Adam sends back are all of them anyway.

use std::ops::Range;

use super::communicator::Message;
use super::exchange::{AxisSum, SumParts};
use crate::cuda::ops::adam::Adam;
use crate::cuda::ops::backward::Gradient;
use crate::cuda::ops::touched::{RowsAt, TouchedArgument, WantedRows};
use crate::cuda::runtime::engine::{Argument, Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory, Readback};
use crate::cuda::runtime::pointer::Part;
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::{Precision, stride};
use crate::cuda::runtime::status::Status;
use crate::cuda::weights::{Parameter, Weights};
use crate::mesh::{Place, TILE};
use crate::{Error, Path, Shape};

/// `Parts` in owners.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct PartsArgument {
    touched_rw: Pointer,
    before_rw: Pointer,
    own: RowsAt,
    others: RowsAt,
    pitch: u64,
    words: u32,
    ranks: u32,
    me: u32,
    first: u32,
    stride: u32,
}
// SAFETY: the same fields in the same order.
unsafe impl Argument for PartsArgument {}

/// Touched rows of an owner for which `bytes` have room among so many ranks of the data axis: those to send, and those received.
pub fn rows_in_a_round(ranks: usize, stride: usize, bytes: usize) -> usize {
    (bytes / (2 * ranks * 2 * stride * size_of::<f32>())).max(TILE)
}

/// Features of every member of the axis whose rows travel together.
type Round = Vec<Range<usize>>;

/// What a batch has touched, as the host knows it.
#[derive(Default)]
pub struct Rounds {
    /// Touched features before each tile, and in all: of each rank, then of them all.
    tiles_rt: Vec<u32>,
    tiles: usize,
    of: Vec<Round>,
}

impl Rounds {
    /// As many of each owner's tiles as have at most `room` rows, again and again until all have had their turn.
    fn new(tiles_rt: Vec<u32>, tiles: usize, owned: &[Range<usize>], room: usize) -> Self {
        let any = owned.len();
        let mut rounds = Rounds { tiles_rt, tiles, of: Vec::new() };
        let of_owner = |owned: &Range<usize>| {
            let mut shares = Vec::new();
            let mut share = owned.start..owned.start;
            for start in owned.clone().step_by(TILE) {
                let end = (start + TILE).min(owned.end);
                if rounds.rows(any, &(share.start..end)) > room {
                    shares.push(share);
                    share = start..end;
                }
                share.end = end;
            }
            shares.push(share);
            shares
        };
        let shares: Vec<_> = owned.iter().map(of_owner).collect();
        let most = shares.iter().map(Vec::len).max().unwrap_or(0);
        let in_round = |round: usize| {
            let of_member = |(shares, owned): (&Vec<Range<usize>>, &Range<usize>)| {
                shares.get(round).cloned().unwrap_or(owned.end..owned.end)
            };
            shares.iter().zip(owned).map(of_member).collect()
        };
        rounds.of = (0..most).map(in_round).collect();
        rounds
    }

    /// Rows that `rank` has among `features`, whole tiles of an owner; behind the ranks come all together.
    fn rows(&self, rank: usize, features: &Range<usize>) -> usize {
        let before = |feature: usize| self.tiles_rt[rank * (self.tiles + 1) + feature.div_ceil(TILE)] as usize;
        before(features.end) - before(features.start)
    }
}

/// Rows on their way.
pub struct Owners {
    /// The features of each member of the data axis.
    owned: Vec<Range<usize>>,
    own: usize,
    features: usize,
    /// Rows of a member's share of a round.
    room: usize,
    stride: usize,
    touched_rw: Buffer<u32>,
    before_rw: Buffer<u32>,
    tiles_rt: Buffer<u32>,
    readback: Readback<u32>,
    /// Rows for every owner, `[ranks, 2, room, stride]`; at this rank's own place, in the end, their sums.
    sent: Buffer<f32>,
    /// Those that the others have for this rank.
    received: Buffer<f32>,
    /// Features of the member that owns most.
    most: usize,
    bias_rt: Buffer<f32>,
    count_rt: Buffer<u32>,
    /// `∂b_enc` and firings over all ranks, of the features that this rank owns.
    pub bias_f: Buffer<f32>,
    pub count_f: Buffer<u32>,
    b_dec: Option<AxisSum>,
}

/// A batch's gradient as this rank's own tokens give it.
pub struct Local<'a, M> {
    pub engine: &'a Engine,
    pub gradient: &'a Gradient,
    /// Firings.
    pub count_f: &'a Buffer<u32>,
    /// Makes rows, when `∂b_enc` of their features stands in `gradient`.
    pub make: M,
}

impl Owners {
    /// There is room for as many rows as the `dense_bytes` of `shape` allow, and at least for those of a tile. `None` where one rank owns
    /// all.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(place: Place, shape: &Shape, memory: &mut GpuMemory) -> Result<Option<Self>, Error> {
        let Shape { width, features, dense_bytes, .. } = *shape;
        let (ranks, stride) = (place.mesh.data, stride(width));
        if ranks == 1 {
            return Ok(None);
        }
        let what = "gradient rows between ranks";
        let owned: Vec<_> = (0..ranks).map(|member| place.owned_by(member, features)).collect();
        let most = owned.iter().map(Range::len).max().unwrap_or(0);
        let room = rows_in_a_round(ranks, stride, dense_bytes).min(most);
        let (rows, words) = (ranks * 2 * room * stride, (ranks + 1) * features.div_ceil(32));
        let tiles = (ranks + 1) * (features.div_ceil(TILE) + 1);
        Ok(Some(Owners {
            owned,
            own: place.data(),
            features,
            room,
            stride,
            touched_rw: memory.step(words, what)?,
            before_rw: memory.step(words, what)?,
            tiles_rt: memory.step(tiles, what)?,
            readback: memory.readback(tiles, what)?,
            sent: memory.step(rows, what)?,
            received: memory.step(rows, what)?,
            most,
            bias_rt: memory.step(ranks * most, what)?,
            count_rt: memory.step(ranks * most, what)?,
            bias_f: memory.step(features, what)?,
            count_f: memory.step(features, what)?,
            b_dec: AxisSum::new(ranks, stride, memory)?,
        }))
    }

    fn words(&self) -> usize {
        self.features.div_ceil(32)
    }

    /// All ranks together, behind each of them.
    fn any(&self) -> usize {
        self.owned.len()
    }

    /// The touched features of `rank`, from the first of `features` on.
    fn touched(&self, rank: usize, features: &Range<usize>) -> TouchedArgument {
        let at = rank * self.words();
        TouchedArgument {
            touched_w: self.touched_rw.at(at),
            before_w: self.before_rw.at(at),
            first: features.start as u32,
        }
    }

    /// Where the rows of a member begin in `sent` and `received`.
    fn places(&self, member: usize) -> [usize; 2] {
        [2 * member, 2 * member + 1].map(|half| half * self.room * self.stride)
    }

    /// Where the rows for a member are written; at this rank's own place lie the sums of the last round.
    fn rows_of(&self, member: usize) -> RowsAt {
        let [dec, enc] = self.places(member);
        RowsAt { dec_ts: self.sent.at(dec), enc_ts: self.sent.at(enc) }
    }

    /// Tells all ranks what the batch has touched here, and the host what it has touched everywhere. On the dense path that is all.
    pub fn tell(&mut self, engine: &Engine, count_f: &Buffer<u32>, status: &Buffer<Status>, path: Path) {
        let (axis, words) = (&engine.axes.data, self.words());
        let of_rank = |rank: usize| self.touched_rw.part(rank * words..(rank + 1) * words);
        let (own, all) = (self.touched_rw.at(self.own * words), u32::from(path == Path::Dense));
        let arguments = arguments![count_f.at(0), status.at(0), own, self.features as u32, all];
        // SAFETY: there is a count a feature, and a bit for each.
        unsafe { engine.enqueue("mark_touched", self.features.div_ceil(256), 0, arguments) };
        let message = |member| Message { member, sent: of_rank(self.own), received: of_rank(member) };
        let messages: Vec<Message> = (0..axis.size()).map(message).collect();
        // SAFETY: the parts are those of a buffer of this engine, and apart from each other.
        unsafe { engine.exchange(axis, &messages) };
        let (touched, before, tiles) = (self.touched_rw.at(0), self.before_rw.at(0), self.tiles_rt.at(0));
        let arguments = arguments![touched, before, tiles, axis.size() as u32, words as u32];
        // SAFETY: there are bits of every rank, and places for their sums and numbers.
        unsafe { engine.enqueue("count_touched", self.any() + 1, 0, arguments) };
        self.readback.send(&self.tiles_rt);
    }

    /// Waits for what [`Owners::tell`] has told, and for nothing enqueued after it. A GPU that has failed sends no rows: the others may
    /// wait for them until they hear of its failure, which the next call returns.
    pub fn rounds(&self, engine: &Engine) -> Rounds {
        let Ok(tiles_rt) = self.readback.read(engine) else { return Rounds::default() };
        Rounds::new(tiles_rt.to_vec(), self.features.div_ceil(TILE), &self.owned, self.room)
    }

    /// Sums a round's rows over the data axis, and gives this rank's features of it.
    fn sum(&self, local: &Local<'_, impl Fn(WantedRows)>, rounds: &Rounds, round: &Round) {
        let Local { engine, gradient, count_f, make } = local;
        let axis = &engine.axes.data;
        let own = &round[self.own];
        let mut messages = Vec::new();
        for (member, features) in round.iter().enumerate() {
            let rank = if member == self.own { self.any() } else { self.own };
            let (touched, to) = (self.touched(rank, features), self.rows_of(member));
            make(WantedRows { features: features.clone(), touched, to });
            let rows = [rounds.rows(self.own, features), rounds.rows(member, own)];
            let [values, own_values] = rows.map(|rows| rows * self.stride);
            for place in self.places(member) {
                let (sent, received) = (place..place + values, place..place + own_values);
                messages.push(Message { member, sent: self.sent.part(sent), received: self.received.part(received) });
            }
            let place = member * self.most..member * self.most + own.len();
            let (bias, count) = (gradient.bias_f.part(features.clone()), count_f.part(features.clone()));
            messages.push(Message { member, sent: bias, received: self.bias_rt.part(place.clone()) });
            messages.push(Message { member, sent: count, received: self.count_rt.part(place) });
        }
        // SAFETY: the parts are those of buffers of this engine, and apart from each other.
        unsafe { engine.exchange(axis, &messages) };
        let (bias, count) = (gradient.bias_f.at(own.start), count_f.at(own.start));
        let (pitch, len) = (self.most, own.len());
        let parts = self.bias_rt.at(0);
        SumParts { engine, axis, kernel: "sum_parts_f32", own: bias, parts, pitch, len }.run(self.bias_f.at(own.start));
        let parts = self.count_rt.at(0);
        let sum = self.count_f.at(own.start);
        SumParts { engine, axis, kernel: "sum_parts_u32", own: count, parts, pitch, len }.run(sum);
        let [dec, enc] = self.places(0);
        let parts = PartsArgument {
            touched_rw: self.touched_rw.at(0),
            before_rw: self.before_rw.at(0),
            own: self.rows_of(self.own),
            others: RowsAt { dec_ts: self.received.at(dec), enc_ts: self.received.at(enc) },
            pitch: (2 * self.room * self.stride) as u64,
            words: self.words() as u32,
            ranks: axis.size() as u32,
            me: self.own as u32,
            first: own.start as u32,
            stride: self.stride as u32,
        };
        let arguments = arguments![parts, self.bias_f.at(0), gradient.norm2_f.at(0)];
        // SAFETY: the rows that the bits name were made, or received.
        unsafe { engine.enqueue("sum_rows", own.len(), 0, arguments) };
    }

    /// The squared norms of the gradients of this rank's own features, and `∂b_dec`, over the data axis.
    pub fn measure(&self, local: &Local<'_, impl Fn(WantedRows)>, rounds: &Rounds) {
        for round in &rounds.of {
            self.sum(local, rounds, round);
        }
        if let Some(parts) = &self.b_dec {
            parts.sum_few(local.engine, &local.engine.axes.data, &local.gradient.b_dec_s);
        }
    }

    /// The update of this rank's own features, and where `spreads`, the weights of touched ones to all. With several rounds their
    /// gradients are made again, from weights before the update: those of other features do not enter them.
    pub fn adam(&self, local: &Local<'_, impl Fn(WantedRows)>, rounds: &Rounds, adam: &Adam<'_>, spreads: bool) {
        for round in &rounds.of {
            if rounds.of.len() > 1 {
                self.sum(local, rounds, round);
            }
            let own = &round[self.own];
            adam.of_rows(self.rows_of(self.own), self.touched(self.any(), own), own.len());
            if spreads {
                self.spread(local.engine, rounds, round, adam.weights);
            }
        }
    }

    /// Sends the weights of this rank's own touched features of a round to the others of the data axis, and takes theirs. They lie where
    /// gradient rows have lain, which are of no use any more.
    fn spread(&self, engine: &Engine, rounds: &Rounds, round: &Round, weights: &Weights) {
        let axis = &engine.axes.data;
        let (pack, unpack) = match engine.precision {
            Precision::F32 | Precision::Mixed(_) => ("pack_rows_f32", "unpack_rows_f32"),
            Precision::Bf16Sr(_) => ("pack_rows_bf16", "unpack_rows_bf16"),
        };
        let [w_enc, b_enc, w_dec] = [&weights.w_enc, &weights.b_enc, &weights.w_dec].map(Parameter::argument);
        let stride = self.stride as u32;
        let rows = |member: usize| rounds.rows(self.any(), &round[member]);
        let touched = |member: usize| self.touched(self.any(), &round[member]);
        let parts = |of: &Buffer<f32>, member: usize| {
            let bytes = weights.w_dec.value.part(0..rows(member)).bytes;
            let [dec, enc] = self.places(member).map(|place| Part { at: of.at(place), bytes });
            let bias = self.bias_rt.part(member * self.most..member * self.most + rows(member));
            [dec, enc, bias]
        };
        let own = parts(&self.sent, self.own);
        let [dec, enc, bias] = own.map(|part| part.at);
        let arguments = arguments![w_enc, b_enc, w_dec, touched(self.own), dec, enc, bias, stride];
        // SAFETY: there is room for the rows of a round.
        unsafe { engine.enqueue(pack, round[self.own].len(), 0, arguments) };
        let others = || (0..axis.size()).filter(|&member| member != self.own);
        let messages: Vec<Message> = others()
            .flat_map(|member| {
                let pairs = own.into_iter().zip(parts(&self.received, member));
                pairs.map(move |(sent, received)| Message { member, sent, received })
            })
            .collect();
        // SAFETY: the parts are those of buffers of this engine, and apart from each other.
        unsafe { engine.exchange(axis, &messages) };
        for member in others() {
            let [dec, enc, bias] = parts(&self.received, member).map(|part| part.at);
            let norm_f = weights.norm_f.at(0);
            let arguments = arguments![w_enc, b_enc, w_dec, norm_f, touched(member), dec, enc, bias, stride];
            // SAFETY: the rows were received, each of a feature of the dictionary.
            unsafe { engine.enqueue(unpack, round[member].len(), 0, arguments) };
        }
    }
}

/// Sends the weights of this rank's own features to the others of the data axis, and takes theirs; copies and norms follow.
pub fn spread_all(engine: &Engine, weights: &mut Weights, features: usize) {
    let axis = &engine.axes.data;
    let others = (0..axis.size()).filter(|&member| member != axis.index());
    let parts = |member| {
        let owned = engine.axes.owned_by(member, features);
        let Weights { w_enc, b_enc, w_dec, .. } = &*weights;
        [w_enc, w_dec, b_enc].map(|parameter| parameter.value.part(owned.clone()))
    };
    let sent = parts(axis.index());
    let messages: Vec<Message> = others
        .clone()
        .flat_map(|member| {
            let pairs = sent.into_iter().zip(parts(member));
            pairs.map(move |(sent, received)| Message { member, sent, received })
        })
        .collect();
    if messages.is_empty() {
        return;
    }
    // SAFETY: the parts are those of weights of this engine, and each feature has one owner.
    unsafe { engine.exchange(axis, &messages) };
    for member in others {
        weights.follow(engine, engine.axes.owned_by(member, features));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ranks with four tiles each, the last one short, in a shard of 8 tiles.
    #[test]
    fn rounds_have_room_and_leave_no_feature_out() {
        let owned = [0..512, 512..1000];
        // What the first has touched, the second, and either.
        let of_tiles: [[u32; 8]; 3] =
            [[100, 0, 3, 128, 5, 6, 7, 8], [60, 0, 0, 128, 0, 0, 0, 9], [110, 0, 3, 128, 5, 6, 7, 15]];
        let before = |counts: [u32; 8]| (0..=8).map(move |tile| counts[..tile].iter().sum::<u32>());
        let tiles_rt: Vec<u32> = of_tiles.into_iter().flat_map(before).collect();
        let rounds = |room| Rounds::new(tiles_rt.clone(), 8, &owned, room);
        assert_eq!(rounds(128).of, [[0..384, 512..1000], [384..512, 1000..1000]]);
        assert_eq!(rounds(1000).of, [[0..512, 512..1000]]);
        let (few, last) = (rounds(128), 384..512);
        assert_eq!([0, 1, 2].map(|rank| few.rows(rank, &(0..384))), [103, 60, 113]);
        assert_eq!([0, 1, 2].map(|rank| few.rows(rank, &(512..1000))), [26, 9, 33]);
        assert_eq!(few.rows(1, &last), 128);
        assert_eq!(few.rows(1, &(1000..1000)), 0);
        // Nobody has touched anything: a refused batch.
        let none = Rounds::new(vec![0; 27], 8, &owned, 128);
        assert_eq!(none.of, [[0..512, 512..1000]]);
        assert_eq!(none.rows(2, &owned[0]), 0);
    }

    /// A rank may own nothing.
    #[test]
    fn a_rank_without_features_takes_part_in_every_round() {
        let owned = [0..0, 0..256];
        let tiles_rt = [[0, 128, 256]; 3].concat();
        assert_eq!(Rounds::new(tiles_rt, 2, &owned, 128).of, [[0..0, 0..128], [0..0, 128..256]]);
    }
}
