//! The dense path: encode, decode and backward as products over tiles of features, for phases in which a large share of
//! the features is active (half of them, at a start with zero biases).
//!     `A = ReLU(x W_encᵀ + b_enc)`     `x̂ = b_dec + A W_dec`     `∂A = [A > 0] (g W_decᵀ + (λ/b)‖W_dec‖)`
//!     `∂W_dec = Aᵀ g + …`              `∂W_enc = ∂Aᵀ x`          (… as in [`super::backward`])
//!
//! Shapes: as on the sparse path; A `[B, F]` is kept when `4·B·F ≤ dense_bytes`, else made again tile by tile in backward.
//! FLOP: `10·B·D·F` (12 when A is made twice), all in `gemm`: 97 GFLOP/s a core measured, of 110 for `gemm` alone.
//!
//! Plan: a block of tokens × a tile of 128 features is the unit; its part of A takes 128 KiB and is meant to stay in L2 between
//! its products. Decode runs over blocks of tokens (x̂ sums its tiles in order), backward over tiles of features (the
//! gradient rows sum their blocks of tokens in order). Each product is single-threaded and of a size that depends on the
//! shape alone, so bits do not depend on the number of threads.

use super::Engine;
use super::backward::{Gradient, norm2, pull};
use super::encode::{Scratch, scratch};
use super::memory::{Buffer, SharedRows};
use super::normalize::Rows;
use super::product::{Matrix, multiply};
use super::simd::{Kernel, LANES, Lanes, blocks, blocks_mut};
use crate::{Error, Shape};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Share of active pairs above which this path is the faster one. Measured with D = 384, F = 4096, B = 2048 on Zen 4,
/// core-ms a step: this path 340 at any density; the sparse one 84 at 0.05, 123 at 0.1, 230 at 0.2, 314 at 0.3, 445 at
/// 0.4, 515 at 0.5.
pub const FASTER_ABOVE: f64 = 0.3;

/// Features of a product.
const TILE: usize = 128;

/// What the dense path knows of a batch.
pub struct Dense {
    /// Tokens of a product.
    tokens: usize,
    tiles: usize,
    /// A, by block of tokens, then tile: `[B/tokens][F/128][tokens][128]`.
    kept: Option<Buffer<f32>>,
    /// Bit `f % 16` of word `[t][f / 16]`: feature f fired on token t.
    fired_bf: Buffer<u16>,
    /// Tokens of a block on which a feature fired `[B/tokens][F]`.
    counts: Buffer<f32>,
    /// `Σ_f a_tf ‖W_dec[f]‖`.
    pub l1_b: Buffer<f64>,
}

/// The operands of encode and decode.
pub struct Forward<'a> {
    pub engine: &'a Engine,
    pub workers: &'a [Mutex<Scratch>],
    pub x: &'a Rows,
    pub w_enc_fd: &'a [f32],
    /// Padded to whole tiles.
    pub b_enc_f: &'a [f32],
    pub w_dec_fd: &'a [f32],
    pub b_dec_d: &'a [f32],
    /// Padded to whole tiles.
    pub norm_f: &'a [f32],
    pub features: usize,
}

/// x̂, fired bits and counts of a block of tokens.
type Outputs<'a> = ((&'a mut [f32], &'a mut [u16]), &'a mut [f32]);

impl Dense {
    pub fn new(shape: &Shape) -> Result<Self, Error> {
        let what = "the dense path";
        let tokens = shape.batch.div_ceil(8).next_multiple_of(64).clamp(64, 256);
        let tiles = shape.features.div_ceil(TILE);
        let token_blocks = shape.batch.div_ceil(tokens);
        let pairs = token_blocks * tokens * tiles * TILE;
        // Only backward looks at A again.
        let keep = shape.adam.is_some() && 4 * shape.batch * shape.features <= shape.dense_bytes;
        Ok(Dense {
            tokens,
            tiles,
            kept: keep.then(|| Buffer::new(pairs, what)).transpose()?,
            fired_bf: Buffer::new(pairs / LANES, what)?,
            counts: Buffer::new(token_blocks * tiles * TILE, what)?,
            l1_b: Buffer::new(token_blocks * tokens, what)?,
        })
    }

    /// Encodes and decodes; `x_hat` has rows of the stride of x.
    pub fn forward(&mut self, of: &Forward<'_>, x_hat: &mut [f32]) {
        let (tokens, tiles) = (self.tokens, self.tiles);
        let (n, stride) = (of.x.n, of.x.stride);
        let pairs = tokens * tiles * TILE;
        let kept = self.kept.as_mut().map(|kept| SharedRows::new(kept, pairs));
        let x_hat = x_hat[..n * stride].par_chunks_mut(tokens * stride);
        let fired = self.fired_bf.par_chunks_exact_mut(pairs / LANES);
        let counts = self.counts.par_chunks_exact_mut(tiles * TILE);
        let l1 = self.l1_b.par_chunks_exact_mut(tokens);
        let tasks = x_hat.zip(fired).zip(counts).zip(l1).enumerate();
        let block_of_tokens = |(block, (((x_hat, fired), counts), l1)): (usize, (Outputs<'_>, &mut [f64]))| {
            let range = block * tokens..((block + 1) * tokens).min(n);
            x_hat.chunks_exact_mut(stride).for_each(|row| row.copy_from_slice(of.b_dec_d));
            l1.fill(0.0);
            counts.fill(0.0);
            let scratch = &mut *scratch(of.workers);
            for tile in 0..tiles {
                // SAFETY: this block of A belongs to this task alone.
                let kept =
                    kept.as_ref().map(|kept| unsafe { &mut kept.row(block)[tile * tokens * TILE..][..tokens * TILE] });
                let a = kept.unwrap_or_else(|| {
                    scratch.product.resize(tokens * TILE, 0.0);
                    &mut scratch.product[..]
                });
                of.activations(range.clone(), tile, a);
                let count = &mut counts[tile * TILE..][..TILE];
                let fired = FiredOfTile { words: fired, of_row: tiles * TILE / LANES, first: tile * TILE / LANES };
                of.engine.isa.run(Count {
                    a,
                    tokens: range.len(),
                    norm: &of.norm_f[tile * TILE..][..TILE],
                    fired,
                    count,
                    l1,
                });
                let features = of.features_of(tile);
                let w_dec = Matrix::new(&of.w_dec_fd[features.start * stride..], features.len(), stride, stride);
                multiply(x_hat, stride, true, Matrix::new(a, range.len(), features.len(), TILE), w_dec);
            }
        };
        of.engine.pool.install(|| tasks.for_each(block_of_tokens));
    }

    /// Adds to `count_f` the tokens of `range` on which each feature fired.
    pub fn count(&self, n: usize, range: Range<usize>, count_f: &mut [u32]) {
        let row = self.tiles * TILE;
        for (block, counts) in self.counts.chunks_exact(row).enumerate() {
            let tokens = block * self.tokens..((block + 1) * self.tokens).min(n);
            let inside = tokens.start.max(range.start)..tokens.end.min(range.end);
            if inside.len() == tokens.len() {
                count_f.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count as u32);
                continue;
            }
            for t in inside {
                let fired = &self.fired_bf[t * row / LANES..(t + 1) * row / LANES];
                let bits = fired.iter().flat_map(|word| (0..LANES).map(move |bit| u32::from((word >> bit) & 1)));
                count_f.iter_mut().zip(bits).for_each(|(sum, bit)| *sum += bit);
            }
        }
    }

    /// Fills the gradient rows, `∂b_enc` and the squared norms of each feature's gradient.
    pub fn backward(&self, of: &Forward<'_>, g_bd: &[f32], lambda_over_b: f32, to: Gradient<'_>) {
        let stride = of.x.stride;
        let dec = to.dec_fd.par_chunks_mut(TILE * stride);
        let enc = to.enc_fd.par_chunks_mut(TILE * stride);
        let tiles = dec.zip(enc).zip(to.bias_f.par_chunks_mut(TILE)).zip(to.norm2_f.par_chunks_mut(TILE)).enumerate();
        of.engine.pool.install(|| {
            tiles.for_each(|(tile, (((dec, enc), bias), norm2))| {
                let gradient = Gradient { dec_fd: dec, enc_fd: enc, bias_f: bias, norm2_f: norm2 };
                self.backward_tile(of, g_bd, lambda_over_b, tile, gradient);
            });
        });
    }

    fn backward_tile(&self, of: &Forward<'_>, g_bd: &[f32], lambda_over_b: f32, tile: usize, to: Gradient<'_>) {
        let (tokens, n, stride) = (self.tokens, of.x.n, of.x.stride);
        let features = of.features_of(tile);
        let scratch = &mut *scratch(of.workers);
        scratch.product.resize(2 * tokens * TILE, 0.0);
        let (made_again, da) = scratch.product.split_at_mut(tokens * TILE);
        let (mut sum_a, mut sum_da) = ([0.0; TILE], [0.0; TILE]);
        let w_dec = Matrix::new(&of.w_dec_fd[features.start * stride..], features.len(), stride, stride);
        for block in 0..n.div_ceil(tokens) {
            let range = block * tokens..((block + 1) * tokens).min(n);
            let a = match &self.kept {
                Some(kept) => &kept[(block * self.tiles + tile) * tokens * TILE..][..tokens * TILE],
                None => {
                    of.activations(range.clone(), tile, made_again);
                    &*made_again
                }
            };
            let x = Matrix::new(&of.x.x_bd[range.start * stride..], range.len(), stride, stride);
            let g = Matrix::new(&g_bd[range.start * stride..], range.len(), stride, stride);
            multiply(da, TILE, false, g, w_dec.t());
            let norm = &of.norm_f[tile * TILE..][..TILE];
            of.engine.isa.run(Mask {
                a,
                da,
                tokens: range.len(),
                norm,
                lambda_over_b,
                sum_a: &mut sum_a,
                sum_da: &mut sum_da,
            });
            multiply(to.dec_fd, stride, block > 0, Matrix::new(a, range.len(), features.len(), TILE).t(), g);
            multiply(to.enc_fd, stride, block > 0, Matrix::new(da, range.len(), features.len(), TILE).t(), x);
        }
        for (local, f) in features.enumerate() {
            let row = local * stride..(local + 1) * stride;
            let w = &of.w_dec_fd[f * stride..(f + 1) * stride];
            let pull = pull(lambda_over_b, sum_a[local], of.norm_f[f]);
            let (dec, enc) = (&mut to.dec_fd[row.clone()], &to.enc_fd[row]);
            let norm2 = of.engine.isa.run(Finish { dec, enc, w, pull });
            to.bias_f[local] = sum_da[local];
            to.norm2_f[local] = norm2 + f64::from(sum_da[local]) * f64::from(sum_da[local]);
        }
    }
}

impl Forward<'_> {
    fn features_of(&self, tile: usize) -> Range<usize> {
        tile * TILE..((tile + 1) * TILE).min(self.features)
    }

    /// A for the tokens of `range` and the features of `tile`; features beyond the last stay 0.
    fn activations(&self, range: Range<usize>, tile: usize, a: &mut [f32]) {
        let stride = self.x.stride;
        let features = self.features_of(tile);
        if features.len() < TILE {
            a.fill(0.0);
        }
        let x = Matrix::new(&self.x.x_bd[range.start * stride..], range.len(), stride, stride);
        let w_enc = Matrix::new(&self.w_enc_fd[features.start * stride..], features.len(), stride, stride);
        multiply(a, TILE, false, x, w_enc.t());
        self.engine.isa.run(BiasRelu { a: &mut a[..range.len() * TILE], bias: &self.b_enc_f[tile * TILE..][..TILE] });
    }
}

struct BiasRelu<'a> {
    a: &'a mut [f32],
    bias: &'a [f32],
}

impl Kernel for BiasRelu<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for row in self.a.chunks_exact_mut(TILE) {
            for (a, bias) in blocks_mut(row).iter_mut().zip(blocks(self.bias)) {
                let pre = l.add(l.load(a), l.load(bias));
                l.store(a, l.where_positive(pre, pre));
            }
        }
    }
}

/// The bits of a tile in the rows of a block of tokens.
struct FiredOfTile<'a> {
    words: &'a mut [u16],
    of_row: usize,
    first: usize,
}

struct Count<'a> {
    a: &'a [f32],
    tokens: usize,
    norm: &'a [f32],
    fired: FiredOfTile<'a>,
    count: &'a mut [f32],
    l1: &'a mut [f64],
}

impl Kernel for Count<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Count { a, tokens, norm, fired, count, l1 } = self;
        let one = l.splat(1.0);
        for (t, row) in a.chunks_exact(TILE).take(tokens).enumerate() {
            let words = &mut fired.words[t * fired.of_row + fired.first..][..TILE / LANES];
            let mut sum = l.splat(0.0);
            let blocks_of_row = blocks(row).iter().zip(blocks(norm)).zip(blocks_mut(count)).zip(words);
            for (((a, norm), count), word) in blocks_of_row {
                let a = l.load(a);
                sum = l.fma(a, l.load(norm), sum);
                l.store(count, l.add(l.load(count), l.where_positive(a, one)));
                *word = l.positive(a);
            }
            l1[t] += f64::from(l.sum(sum));
        }
    }
}

/// `∂A` where A > 0, and the sums of both over tokens.
struct Mask<'a> {
    a: &'a [f32],
    da: &'a mut [f32],
    tokens: usize,
    norm: &'a [f32],
    lambda_over_b: f32,
    sum_a: &'a mut [f32; TILE],
    sum_da: &'a mut [f32; TILE],
}

impl Kernel for Mask<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let lambda_over_b = l.splat(self.lambda_over_b);
        for (row, da_row) in self.a.chunks_exact(TILE).zip(self.da.chunks_exact_mut(TILE)).take(self.tokens) {
            let rows = blocks(row).iter().zip(blocks_mut(da_row)).zip(blocks(self.norm));
            let sums = blocks_mut(self.sum_a).iter_mut().zip(blocks_mut(self.sum_da));
            for (((a, da), norm), (sum_a, sum_da)) in rows.zip(sums) {
                let a = l.load(a);
                let masked = l.where_positive(a, l.fma(lambda_over_b, l.load(norm), l.load(da)));
                l.store(da, masked);
                l.store(sum_a, l.add(l.load(sum_a), a));
                l.store(sum_da, l.add(l.load(sum_da), masked));
            }
        }
    }
}

/// Adds the penalty's part to a decoder row; the squared norm of both rows.
struct Finish<'a> {
    dec: &'a mut [f32],
    enc: &'a [f32],
    w: &'a [f32],
    pull: f32,
}

impl Kernel for Finish<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f64 {
        let pull = l.splat(self.pull);
        for (dec, w) in blocks_mut(self.dec).iter_mut().zip(blocks(self.w)) {
            l.store(dec, l.fma(pull, l.load(w), l.load(dec)));
        }
        norm2(l, self.dec) + norm2(l, self.enc)
    }
}
