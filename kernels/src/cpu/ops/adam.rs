//! Adam, fused over the rows of a feature, with PyTorch's arithmetic:
//!     `m ← m + (g − m)(1 − β₁)`   `v ← β₂ v + (1 − β₂) g²`   `w ← w − (lr / c₁) · m / (√v / √c₂ + ε)`
//! with `c₁ = 1 − β₁^(s+1)`, `c₂ = 1 − β₂^(s+1)` and `g` the gradient times the clip factor.
//!
//! Catching up `k` skipped steps (steps with g = 0: m decays by β₁, v by β₂) before the gradient is added:
//!     `w ← w − lr · m̂ / (√v̂ + ε) · Σ_{j=1..k} r^j`,   `r = β₁ / √β₂`,   `m ← β₁^k m`,   `v ← β₂^k v`
//! with lr of the first skipped step and the bias corrections of the row's last update: exact up to ε, and to how both
//! moved since (r^j falls below 1e-3 within 66 steps).
//!
//! Shapes: W_enc, W_dec and their moments `[F, D]`. Traffic: 24 bytes a parameter of an updated row, and a narrow copy.
//!
//! Plan: a task is a tile of 96 features; for each feature both gradient rows are made or read, both rows are updated,
//! and while they are in L1 the screen's copy, its bounds and the decoder norm follow.

use super::backward::{DecoderRow, Operands, RowsTo};
use crate::cpu::codes::{TILE, TileCodes, tile_features};
use crate::cpu::engine::Engine;
use crate::cpu::memory::SharedRows;
use crate::cpu::moments::SharedParameter;
use crate::cpu::scratch::{Scratch, Workers};
use crate::cpu::screen::RowWriter;
use crate::cpu::simd::{Block, Kernel, LANES, Lanes, blocks, blocks_mut, dot};
use crate::device::{BETA1, BETA2, EPSILON, corrections};
use crate::{AdamMode, AdamUpdate};
use rayon::prelude::*;
use std::ops::Range;

/// What one step multiplies by.
#[derive(Clone, Copy)]
pub struct Coefficients {
    clip: f32,
    /// `lr / c₁`.
    step: f32,
    /// `1 / √c₂`.
    root: f32,
}

impl Coefficients {
    pub fn new(update: &AdamUpdate, gradient_norm: f64) -> Self {
        let clip = (f64::from(update.clip) / (gradient_norm + 1e-6)).min(1.0);
        let (step, root) = update.factors();
        Coefficients { clip: clip as f32, step, root }
    }
}

/// The skipped steps of a row.
#[derive(Clone, Copy)]
pub struct Skipped {
    /// `lr / c₁ · Σ r^j`.
    step: f32,
    root: f32,
    decay1: f32,
    decay2: f32,
}

impl Skipped {
    /// Those between the row's last update (see [`crate::Clock::LastUpdate`]) and the step of `update`.
    pub fn between(last_update: u64, update: &AdamUpdate) -> Option<Self> {
        let k = update.step.saturating_sub(last_update);
        if last_update == 0 || k == 0 {
            return None;
        }
        let (c1, c2) = corrections(last_update);
        let r = BETA1 / BETA2.sqrt();
        let sum = r * (1.0 - r.powf(k as f64)) / (1.0 - r);
        Some(Skipped {
            step: (update.lr.at(last_update) / c1 * sum) as f32,
            root: (1.0 / c2.sqrt()) as f32,
            decay1: BETA1.powf(k as f64) as f32,
            decay2: BETA2.powf(k as f64) as f32,
        })
    }
}

/// A row and its moments.
pub struct Row<'a> {
    pub value: &'a mut [f32],
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
}

/// What happens to a row.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    pub skipped: Option<Skipped>,
    /// The gradient; `None` is a gradient of zeros.
    pub gradient: Option<&'a [f32]>,
    pub coefficients: Coefficients,
}

impl Row<'_> {
    /// Updates the row.
    #[inline(always)]
    pub fn update<L: Lanes>(&mut self, l: L, change: Change<'_>) {
        if let Some(skipped) = change.skipped {
            self.catch_up(l, skipped);
        }
        match change.gradient {
            Some(gradient) => self.step(l, change.coefficients, blocks(gradient).iter()),
            None => self.step(l, change.coefficients, std::iter::repeat(&[0.0; LANES])),
        }
    }

    #[inline(always)]
    fn step<'g, L: Lanes>(&mut self, l: L, of: Coefficients, gradient: impl Iterator<Item = &'g Block>) {
        let [clip, step, root] = [of.clip, -of.step, of.root].map(|value| l.splat(value));
        let [rest1, beta2, rest2] = [1.0 - BETA1, BETA2, 1.0 - BETA2].map(|value| l.splat(value as f32));
        let epsilon = l.splat(EPSILON);
        let rows = blocks_mut(self.value).iter_mut().zip(blocks_mut(self.first)).zip(blocks_mut(self.second));
        for (((value, first), second), gradient) in rows.zip(gradient) {
            let g = l.mul(l.load(gradient), clip);
            let m = l.load(first);
            let m = l.fma(l.sub(g, m), rest1, m);
            let v = l.fma(l.mul(g, rest2), g, l.mul(l.load(second), beta2));
            let divisor = l.fma(l.sqrt(v), root, epsilon);
            l.store(value, l.fma(step, l.div(m, divisor), l.load(value)));
            l.store(first, m);
            l.store(second, v);
        }
    }

    #[inline(always)]
    fn catch_up<L: Lanes>(&mut self, l: L, of: Skipped) {
        let [step, root, decay1, decay2] = [-of.step, of.root, of.decay1, of.decay2].map(|value| l.splat(value));
        let epsilon = l.splat(EPSILON);
        let rows = blocks_mut(self.value).iter_mut().zip(blocks_mut(self.first)).zip(blocks_mut(self.second));
        for ((value, first), second) in rows {
            let (m, v) = (l.load(first), l.load(second));
            let divisor = l.fma(l.sqrt(v), root, epsilon);
            l.store(value, l.fma(step, l.div(m, divisor), l.load(value)));
            l.store(first, l.mul(m, decay1));
            l.store(second, l.mul(v, decay2));
        }
    }
}

/// Updates one value: the row arithmetic in one lane, so that it is written once.
#[inline(always)]
pub fn update_value<L: Lanes>(l: L, [value, first, second]: [&mut f32; 3], gradient: f32, change: Change<'_>) {
    let one_lane = |v: f32| {
        let mut block = [0.0; LANES];
        block[0] = v;
        block
    };
    let (mut w, mut m, mut v) = (one_lane(*value), one_lane(*first), one_lane(*second));
    let gradient = one_lane(gradient);
    let mut row = Row { value: &mut w, first: &mut m, second: &mut v };
    row.update(l, Change { gradient: Some(&gradient), ..change });
    (*value, *first, *second) = (w[0], m[0], v[0]);
}

/// [`Row::update`] for a caller outside the instruction set.
pub struct UpdateRow<'a> {
    pub row: Row<'a>,
    pub change: Change<'a>,
}

impl Kernel for UpdateRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        self.row.update(l, self.change);
    }
}

impl SharedParameter<'_> {
    /// # Safety
    /// While the references live, nobody else asks for row `f`.
    unsafe fn row(&self, f: usize) -> Row<'_> {
        let own = f - self.owned_from;
        // SAFETY: the caller's promise.
        unsafe { Row { value: self.value.row(f), first: self.first.row(own), second: self.second.row(own) } }
    }
}

/// Where the gradient rows come from.
#[derive(Clone, Copy)]
pub enum GradientSource<'a> {
    /// Made again from the lists.
    Lists { operands: Operands<'a>, tiles: &'a [TileCodes] },
    /// Those that the dense path has stored.
    Stored { dec_fd: &'a [f32], enc_fd: &'a [f32], stride: usize },
}

/// The update of the features that this rank owns.
pub struct Features<'a> {
    pub owned: Range<usize>,
    pub mode: AdamMode,
    pub update: &'a AdamUpdate,
    pub coefficients: Coefficients,
    pub rows: GradientSource<'a>,
    pub bias_gradient_f: &'a [f32],
    /// Tokens on which each feature fired.
    pub count_f: &'a [u32],
    pub w_enc: SharedParameter<'a>,
    pub b_enc: SharedParameter<'a>,
    pub w_dec: SharedParameter<'a>,
    pub norm_f: SharedRows<'a, f32>,
    pub last_update_f: SharedRows<'a, u64>,
    pub last_fired_f: SharedRows<'a, u64>,
    pub screen: RowWriter<'a>,
}

impl Features<'_> {
    /// Updates every one of them that the mode asks for.
    pub fn run(&self, engine: &Engine, workers: &Workers) {
        let Range { start, end } = self.owned;
        engine.pool.install(|| {
            (start / TILE..end.div_ceil(TILE)).into_par_iter().for_each(|tile| {
                let scratch = &mut *workers.scratch();
                let tile = tile_features(tile, end);
                let features = tile.start.max(start)..tile.end;
                engine.isa.run(UpdateTile { of: self, features, scratch });
            });
        });
    }
}

struct UpdateTile<'a> {
    of: &'a Features<'a>,
    features: Range<usize>,
    scratch: &'a mut Scratch,
}

impl Kernel for UpdateTile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let of = self.of;
        for f in self.features {
            let fired = of.count_f[f] > 0;
            if fired || of.mode == AdamMode::Dense {
                of.update_feature(l, f, fired, self.scratch);
            }
        }
    }
}

impl Features<'_> {
    #[inline(always)]
    fn update_feature<L: Lanes>(&self, l: L, f: usize, fired: bool, scratch: &mut Scratch) {
        // SAFETY: feature `f` belongs to one tile, and a tile to one task.
        let (mut w_enc, b_enc, mut w_dec, norm, last_update, last_fired) = unsafe {
            let clocks = (self.last_update_f.row(f), self.last_fired_f.row(f));
            (self.w_enc.row(f), self.b_enc.row(f), self.w_dec.row(f), self.norm_f.row(f), clocks.0, clocks.1)
        };
        let Scratch { dec_d, enc_d, .. } = scratch;
        let gradient = fired.then(|| match self.rows {
            GradientSource::Lists { operands, tiles } => {
                let (pairs, of) = (tiles[f / TILE].feature(f % TILE), DecoderRow { w: w_dec.value, norm: norm[0] });
                operands.rows(l, pairs, of, RowsTo { dec_d, enc_d });
                (&dec_d[..], &enc_d[..])
            }
            GradientSource::Stored { dec_fd, enc_fd, stride } => {
                let row = f * stride..(f + 1) * stride;
                (&dec_fd[row.clone()], &enc_fd[row])
            }
        });
        let skipped = (self.mode == AdamMode::Catchup).then(|| Skipped::between(last_update[0], self.update)).flatten();
        let change = Change { skipped, gradient: None, coefficients: self.coefficients };
        w_dec.update(l, Change { gradient: gradient.map(|(dec, _)| dec), ..change });
        w_enc.update(l, Change { gradient: gradient.map(|(_, enc)| enc), ..change });
        let bias_gradient = if fired { self.bias_gradient_f[f] } else { 0.0 };
        update_value(l, [&mut b_enc.value[0], &mut b_enc.first[0], &mut b_enc.second[0]], bias_gradient, change);
        norm[0] = dot(l, blocks(w_dec.value), blocks(w_dec.value)).sqrt();
        last_update[0] = self.update.step + 1;
        if fired {
            last_fired[0] = self.update.tokens;
        }
        // SAFETY: as above.
        unsafe { self.screen.write(f, w_enc.value, b_enc.value[0]) };
    }
}

/// A row as it will be once it has caught up, with moments that stay as they are. A bias is a row of one value.
pub struct Settle<'a> {
    pub value: &'a mut [f32],
    pub first: &'a [f32],
    pub second: &'a [f32],
    pub skipped: Skipped,
}

impl Kernel for Settle<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let padded = |part: &[f32]| {
            let mut block = [0.0; LANES];
            block[..part.len()].copy_from_slice(part);
            block
        };
        let moments = self.first.chunks(LANES).zip(self.second.chunks(LANES));
        for (value, (first, second)) in self.value.chunks_mut(LANES).zip(moments) {
            let (mut w, mut m, mut v) = (padded(value), padded(first), padded(second));
            Row { value: &mut w, first: &mut m, second: &mut v }.catch_up(l, self.skipped);
            value.copy_from_slice(&w[..value.len()]);
        }
    }
}
