//! What the ranks of the data axis send each other: gradient rows to the rank that owns the feature, weights back to all.
//!
//! Gradients go round by round, a tile of every owner's features at a time: each rank writes the rows that its own tokens give,
//! zeros where none has fired, sends every owner its tile, and sums its own in the order of the ranks. Sums of a round are not kept
//! beside those of the next, so memory is bounded, but the norm must be known before any update: with several rounds all of it is
//! made and sent twice. `train.dense_bytes` says how much a tile may take.
//!
//! Bytes a rank sends to d − 1 others, of F features in the shard: gradients `8·F·D·(d − 1)/d`, twice with several rounds; weights
//! `8·F·D·(d − 1)/d`, half of that in bf16. Rows are sent whether they were touched or not: sending those alone, as the processor
//! does, needs their number, for which the host would have to wait at every step.

use std::ops::Range;

use super::adam::Adam;
use super::backward::Gradient;
use super::communicator::Message;
use super::engine::{Engine, arguments};
use super::exchange::{Parts, part, sum_parts};
use super::memory::{Buffer, Memory, Pointer};
use super::weights::Weights;
use crate::Error;
use crate::mesh::{Axes, TILE};

/// Where the rows of a tile lie: those of W_dec, and those of W_enc.
pub type RowsAt = (Pointer, Pointer);

/// Tiles of gradient rows on their way to their owners.
pub struct Owners {
    /// The features of each member of the data axis.
    owned: Vec<Range<usize>>,
    own: usize,
    /// Features of a tile.
    tile: usize,
    stride: usize,
    /// Rows of every owner's tile, `[ranks, 2, tile, stride]`; at this rank's own place, in the end, their sums.
    sent: Buffer<f32>,
    /// Those of this rank's tile that the others have.
    received: Buffer<f32>,
    bias_rt: Buffer<f32>,
    count_rt: Buffer<u32>,
    /// `∂b_enc` and firings over all ranks, of the features that this rank owns.
    pub bias_f: Buffer<f32>,
    pub count_f: Buffer<u32>,
    b_dec: Option<Parts>,
}

impl Owners {
    /// A tile is as wide as `bytes` allow, and at least [`TILE`]. `None` where one rank owns all.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(
        axes: &Axes,
        (features, stride): (usize, usize),
        bytes: usize,
        memory: &mut Memory,
    ) -> Result<Option<Self>, Error> {
        let ranks = axes.data.size();
        if ranks == 1 {
            return Ok(None);
        }
        let what = "gradient rows between ranks";
        let owned: Vec<_> = (0..ranks).map(|member| axes.owned_by(member, features)).collect();
        let most = owned.iter().map(Range::len).max().unwrap_or(0);
        let of_feature = 2 * ranks * 2 * stride * size_of::<f32>();
        // Kernels count the values of a tile in 32 bits.
        let tile = (bytes / of_feature).min(u32::MAX as usize / (2 * stride)) / TILE * TILE;
        let tile = tile.max(TILE).min(most);
        let rows = ranks * 2 * tile * stride;
        Ok(Some(Owners {
            owned,
            own: axes.data.index(),
            tile,
            stride,
            sent: memory.step(rows, what)?,
            received: memory.step(rows, what)?,
            bias_rt: memory.step(ranks * tile, what)?,
            count_rt: memory.step(ranks * tile, what)?,
            bias_f: memory.step(features, what)?,
            count_f: memory.step(features, what)?,
            b_dec: Parts::new(ranks, stride, memory)?,
        }))
    }

    /// The same on all ranks.
    fn rounds(&self) -> usize {
        self.owned.iter().map(|owned| owned.len().div_ceil(self.tile)).max().unwrap_or(0)
    }

    /// The features of a member in a round; none when it has had all of its own.
    fn features(&self, member: usize, round: usize) -> Range<usize> {
        let owned = &self.owned[member];
        let at = |round: usize| (owned.start + round * self.tile).min(owned.end);
        at(round)..at(round + 1)
    }

    /// Where the rows of a member's tile begin in `sent` and `received`.
    fn places(&self, member: usize) -> [usize; 2] {
        [2 * member, 2 * member + 1].map(|half| half * self.tile * self.stride)
    }

    /// Where the rows of a member's tile are written; at this rank's own place lie the sums of the last round.
    fn rows_of(&self, member: usize) -> RowsAt {
        let [dec, enc] = self.places(member);
        (self.sent.at(dec), self.sent.at(enc))
    }

    /// Sums a round's rows over the data axis, and gives this rank's features of it. `make` writes rows of some features as its own
    /// tokens give them, when `∂b_enc` of those stands in `gradient`.
    fn sum(
        &self,
        engine: &Engine,
        round: usize,
        (gradient, count_f): (&Gradient, &Buffer<u32>),
        mut make: impl FnMut(Range<usize>, RowsAt),
    ) -> Range<usize> {
        let axis = &engine.axes.data;
        let own = self.features(self.own, round);
        let mut messages = Vec::new();
        for member in 0..axis.size() {
            let features = self.features(member, round);
            make(features.clone(), self.rows_of(member));
            let (values, own_values) = (features.len() * self.stride, own.len() * self.stride);
            for place in self.places(member) {
                let (sent, received) = (place..place + values, place..place + own_values);
                messages.push(Message {
                    member,
                    sent: part(&self.sent, sent),
                    received: part(&self.received, received),
                });
            }
            let place = member * self.tile..member * self.tile + own.len();
            let (bias, count) = (part(&gradient.bias_f, features.clone()), part(count_f, features));
            messages.push(Message { member, sent: bias, received: part(&self.bias_rt, place.clone()) });
            messages.push(Message { member, sent: count, received: part(&self.count_rt, place) });
        }
        // SAFETY: the parts are those of buffers of this engine, and apart from each other.
        unsafe { engine.exchange(axis, &messages) };
        let (pitch, values) = (2 * self.tile * self.stride, own.len() * self.stride);
        for (parts, sums) in [0, self.tile * self.stride].into_iter().zip(self.places(self.own)) {
            let (parts, sums) = (self.received.at(parts), self.sent.at(sums));
            sum_parts(engine, axis, "sum_parts_f32", sums, (parts, pitch), sums, values);
        }
        let (bias, count) = (gradient.bias_f.at(own.start), count_f.at(own.start));
        let (parts, sums) = ((self.bias_rt.at(0), self.tile), self.bias_f.at(own.start));
        sum_parts(engine, axis, "sum_parts_f32", bias, parts, sums, own.len());
        let (parts, sums) = ((self.count_rt.at(0), self.tile), self.count_f.at(own.start));
        sum_parts(engine, axis, "sum_parts_u32", count, parts, sums, own.len());
        own
    }

    /// The squared norms of the gradients of this rank's own features, and `∂b_dec`, over the data axis.
    pub fn measure(
        &self,
        engine: &Engine,
        (gradient, count_f): (&Gradient, &Buffer<u32>),
        mut make: impl FnMut(Range<usize>, RowsAt),
    ) {
        for round in 0..self.rounds() {
            let own = self.sum(engine, round, (gradient, count_f), &mut make);
            let (dec_ts, enc_ts) = self.rows_of(self.own);
            let (bias_t, norm2_t) = (self.bias_f.at(own.start), gradient.norm2_f.at(own.start));
            let arguments = arguments![dec_ts, enc_ts, bias_t, norm2_t, self.stride as u32];
            // SAFETY: the own rows were summed above.
            unsafe { engine.enqueue("dense_norms", own.len(), 0, arguments) };
        }
        if let Some(parts) = &self.b_dec {
            parts.sum_few(engine, &engine.axes.data, &gradient.b_dec_s);
        }
    }

    /// The update of this rank's own features. With several rounds their gradients are made again, from weights before the
    /// update: those of other features do not enter them.
    pub fn adam(
        &self,
        engine: &Engine,
        adam: &Adam<'_>,
        count_f: &Buffer<u32>,
        mut make: impl FnMut(Range<usize>, RowsAt),
    ) {
        let rounds = self.rounds();
        for round in 0..rounds {
            let own = match rounds {
                1 => self.features(self.own, round),
                _ => self.sum(engine, round, (adam.gradient, count_f), &mut make),
            };
            adam.of_rows(engine, self.rows_of(self.own), own.start, own.len());
        }
    }
}

/// Sends the weights of this rank's own features to the others of the data axis, and takes theirs; copies and norms follow.
pub fn spread(engine: &Engine, weights: &mut Weights, features: usize) {
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
