//! Gradients from lists of active pairs, feature by feature:
//!     `∂a_tf = g_t·W_dec[f] + (λ/b)‖W_dec[f]‖`        `∂W_dec[f] = Σ_t a_tf·g_t + (λ/b)(Σ_t a_tf) W_dec[f]/‖W_dec[f]‖`
//!     `∂W_enc[f] = Σ_t ∂a_tf·x_t`                     `∂b_enc[f] = Σ_t ∂a_tf`        `∂b_dec = Σ_t g_t`
//! A decoder row of zeros has no direction: its norm's subgradient is 0.
//!
//! Shapes: pairs by feature, g, x `[B, D]`, W_dec `[F, D]` → `∂a` `[n]`, squared norms `[F]`.
//! Traffic: rows of g and x gathered once per pair (`8·n·D` bytes, from L3: that bounds it, at about 40 GB/s a core).
//! FLOP: `6·n·D`, and `4·n·D` again when the rows are made twice.
//!
//! Plan: the norm of the whole gradient must be known before the first update (clipping). With few pairs a feature the
//! rows are made here for their norms alone and once more inside Adam, from the same lists and the kept `∂a`; with many
//! they are stored: with D = 384, F = 4096 and 20 pairs a feature, one core, backward and Adam take 9.3 ms stored and
//! 13.0 ms made twice; with 3 pairs a feature storing would move `16·F·D` bytes to save a gather of `8·n·D`.
//!
//! Rejected: asking for rows ahead of their use and eight
//! blocks of columns in registers instead of four (no difference beyond the noise of a machine under load).

use crate::cpu::codes::tile_features;
use crate::cpu::codes::{FeaturePairs, TILE, TileCodes};
use crate::cpu::engine::Engine;
use crate::cpu::memory::SharedRows;
use crate::cpu::scratch::Workers;
use crate::cpu::simd::{Block, Kernel, Lanes, blocks, blocks_mut, dot};
use crate::cpu::weights::Weights;
use rayon::prelude::*;

/// Pairs a feature above which gradient rows are stored.
const STORED_ABOVE: usize = 8;

/// What the gradient of a feature is made from.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub x_bd: &'a [f32],
    pub stride: usize,
    pub g_bd: &'a [f32],
    /// `λ / b`.
    pub lambda_over_b: f32,
}

/// `(λ/b)·(Σ a)/‖W_dec[f]‖`: the multiple of W_dec[f] in its own gradient.
pub fn pull(lambda_over_b: f32, sum_a: f32, norm: f32) -> f32 {
    if norm > 0.0 { lambda_over_b * sum_a / norm } else { 0.0 }
}

/// A row of W_dec and its norm.
#[derive(Clone, Copy)]
pub struct DecoderRow<'a> {
    pub w: &'a [f32],
    pub norm: f32,
}

/// Where the gradient rows of a feature go: W_dec's, W_enc's.
pub struct RowsTo<'a> {
    pub dec_d: &'a mut [f32],
    pub enc_d: &'a mut [f32],
}

/// The same in blocks of columns.
struct BlocksTo<'a> {
    dec_d: &'a mut [Block],
    enc_d: &'a mut [Block],
}

/// What a decoder row adds to its own gradient.
#[derive(Clone, Copy)]
struct Pulled<'a, V> {
    pull: V,
    w: &'a [Block],
}

impl<'a> Operands<'a> {
    /// Row `t` of x or g.
    #[inline(always)]
    fn row(&self, of: &'a [f32], t: u32) -> &'a [Block] {
        blocks(&of[t as usize * self.stride..(t as usize + 1) * self.stride])
    }

    /// The gradient rows of a feature.
    #[inline(always)]
    pub fn rows<L: Lanes>(&self, l: L, pairs: FeaturePairs<'_>, of: DecoderRow<'_>, to: RowsTo<'_>) {
        let w = blocks(of.w);
        let pull = l.splat(pull(self.lambda_over_b, pairs.a.iter().sum(), of.norm));
        let pulled = Pulled { pull, w };
        let mut to = BlocksTo { dec_d: blocks_mut(to.dec_d), enc_d: blocks_mut(to.enc_d) };
        let mut first = 0;
        while first + 4 <= w.len() {
            self.columns::<L, 4>(l, first, pairs, pulled, &mut to);
            first += 4;
        }
        while first < w.len() {
            self.columns::<L, 1>(l, first, pairs, pulled, &mut to);
            first += 1;
        }
    }

    /// `N` blocks of columns of both rows, in registers.
    #[inline(always)]
    fn columns<L: Lanes, const N: usize>(
        &self,
        l: L,
        first: usize,
        FeaturePairs { token, a, da }: FeaturePairs<'_>,
        Pulled { pull, w }: Pulled<'_, L::V>,
        to: &mut BlocksTo<'_>,
    ) {
        let mut dec: [L::V; N] = std::array::from_fn(|i| l.mul(pull, l.load(&w[first + i])));
        let mut enc = [l.splat(0.0); N];
        for ((&t, &a), &da) in token.iter().zip(a).zip(da) {
            let [g, x] = [self.g_bd, self.x_bd].map(|of| &self.row(of, t)[first..first + N]);
            let (a, da) = (l.splat(a), l.splat(da));
            for i in 0..N {
                dec[i] = l.fma(a, l.load(&g[i]), dec[i]);
                enc[i] = l.fma(da, l.load(&x[i]), enc[i]);
            }
        }
        for i in 0..N {
            l.store(&mut to.dec_d[first + i], dec[i]);
            l.store(&mut to.enc_d[first + i], enc[i]);
        }
    }
}

/// Whether the batch has so many pairs that its gradient rows are stored for Adam rather than made twice. The rows are
/// the same bits either way.
pub fn rows_are_stored(tiles: &[TileCodes], features: usize) -> bool {
    tiles.iter().map(|codes| codes.token.len()).sum::<usize>() > STORED_ABOVE * features
}

/// Where a gradient goes: all features, or those of a tile.
pub struct Gradient<'a> {
    pub dec_fd: &'a mut [f32],
    pub enc_fd: &'a mut [f32],
    pub bias_f: &'a mut [f32],
    /// Squared norm of each feature's gradient.
    pub norm2_f: &'a mut [f64],
}

/// Fills `∂a`, `∂b_enc` and the squared norms of each feature's gradient.
pub struct Backward<'a> {
    pub engine: &'a Engine,
    pub workers: &'a Workers,
    pub operands: Operands<'a>,
    pub weights: &'a Weights,
    /// Whether rows are kept, see [`rows_are_stored`].
    pub stored: bool,
}

impl Backward<'_> {
    /// Rows that are kept go to `to.dec_fd` and `to.enc_fd`.
    pub fn run(&self, tiles: &mut [TileCodes], to: Gradient<'_>) {
        let (features, stride) = (to.bias_f.len(), self.operands.stride);
        let stored = self.stored.then(|| [SharedRows::new(to.dec_fd, stride), SharedRows::new(to.enc_fd, stride)]);
        let (bias, norm2) = (SharedRows::new(to.bias_f, 1), SharedRows::new(to.norm2_f, 1));
        let tile_of_features = |(tile, codes): (usize, &mut TileCodes)| {
            let scratch = &mut *self.workers.scratch();
            codes.da.clear();
            codes.da.resize(codes.a.len(), 0.0);
            for f in tile_features(tile, features) {
                // SAFETY: feature `f` belongs to this tile alone.
                let (bias, norm2) = unsafe { (bias.row(f), norm2.row(f)) };
                (bias[0], norm2[0]) = match codes.pairs(f % TILE).is_empty() {
                    true => (0.0, 0.0),
                    false => {
                        // SAFETY: as above.
                        let stored = stored.as_ref().map(|stored| unsafe { stored.each_ref().map(|rows| rows.row(f)) });
                        let rows = stored.unwrap_or([&mut scratch.dec_d, &mut scratch.enc_d]);
                        self.engine.isa.run(Feature { of: self, f, codes, rows })
                    }
                };
            }
        };
        self.engine.pool.install(|| tiles.par_iter_mut().enumerate().for_each(tile_of_features));
    }
}

struct Feature<'a> {
    of: &'a Backward<'a>,
    f: usize,
    codes: &'a mut TileCodes,
    /// Where the gradient rows go: W_dec's, W_enc's.
    rows: [&'a mut [f32]; 2],
}

impl Kernel for Feature<'_> {
    /// `∂b_enc[f]` and the squared norm of the feature's gradient.
    type Out = (f32, f64);
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> (f32, f64) {
        let Feature { of: Backward { operands, weights, .. }, f, codes, rows: [dec_d, enc_d] } = self;
        let (w, norm) = (weights.w_dec.row(f), weights.norm_f[f]);
        let penalty = operands.lambda_over_b * norm;
        let mut bias = 0.0;
        for pair in codes.pairs(f % TILE) {
            let da = dot(l, operands.row(operands.g_bd, codes.token[pair]), blocks(w)) + penalty;
            codes.da[pair] = da;
            bias += da;
        }
        operands.rows(l, codes.feature(f % TILE), DecoderRow { w, norm }, RowsTo { dec_d, enc_d });
        (bias, norm2(l, dec_d) + norm2(l, enc_d) + f64::from(bias) * f64::from(bias))
    }
}

/// `‖row‖²`.
#[inline(always)]
pub fn norm2<L: Lanes>(l: L, row: &[f32]) -> f64 {
    f64::from(dot(l, blocks(row), blocks(row)))
}
