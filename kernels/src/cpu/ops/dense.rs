//! The dense path: encode, decode and backward as GEMMs over tiles of features, for phases in which a large share of
//! the features is active (half of them, at a start with zero biases).
//!     `A = ReLU(x W_encᵀ + b_enc)`     `x̂ = b_dec + A W_dec`     `∂A = [A > 0] (g W_decᵀ + (λ/b)‖W_dec‖)`
//!     `∂W_dec = Aᵀ g + …`              `∂W_enc = ∂Aᵀ x`          (… as in [`super::backward`])
//!
//! Shapes: as on the sparse path; A `[B, F]` is kept when `4·B·F ≤ dense_bytes`, else made again tile by tile in backward.
//! FLOP: `10·B·D·F` (12 when A is made twice), all in `gemm`: 97 GFLOP/s a core measured, of 110 for `gemm` alone.
//!
//! Plan: a block of tokens × a tile of 128 features is the unit; its part of A takes 128 KiB and is meant to stay in L2 between
//! its GEMMs. Decode runs over blocks of tokens (x̂ sums its tiles in order), backward over tiles of features (the
//! gradient rows sum their blocks of tokens in order). Each GEMM is single-threaded and of a size that depends on the
//! shape alone, so bits do not depend on the number of threads.

use super::backward::{Gradient, norm2, pull};
use super::normalize::Rows;
use crate::cpu::activation::{activate, is_active, where_active};
use crate::cpu::engine::Engine;
use crate::cpu::gemm::{Matrix, multiply};
use crate::cpu::memory::{Buffer, HostMemory, SharedRows};
use crate::cpu::scratch::Workers;
use crate::cpu::simd::{Kernel, Lanes, blocks, blocks_mut};
use crate::cpu::weights::Weights;
use crate::{ActivePairs, Error, Purpose, Shape};
use rayon::prelude::*;
use std::ops::Range;

/// Share of active pairs above which this path is the faster one. Measured with D = 384, F = 4096, B = 2048 on Zen 4,
/// core-ms a step: this path 340 at any density; the sparse one 84 at 0.05, 123 at 0.1, 230 at 0.2, 314 at 0.3, 445 at
/// 0.4, 515 at 0.5.
pub const FASTER_ABOVE: f64 = 0.3;

/// Features of a GEMM.
pub const TILE: usize = 128;
/// Tokens of a GEMM, at most.
pub const TOKENS_MAX: usize = 256;

/// What the dense path knows of a batch.
pub struct Dense {
    /// Tokens of a GEMM.
    tokens: usize,
    tiles: usize,
    /// A, by block of tokens, then tile: `[B/tokens][F/128][tokens][128]`.
    kept: Option<Buffer<f32>>,
    /// Tokens of a block on which a feature fired `[B/tokens][F]`.
    counts: Buffer<f32>,
    /// `Σ_f a_tf ‖W_dec[f]‖`.
    pub l1_b: Buffer<f64>,
}

/// What the GEMMs are made of.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub engine: &'a Engine,
    pub workers: &'a Workers,
    pub weights: &'a Weights,
    pub x: &'a Rows,
}

/// x̂, counts and l1 of a block of tokens.
type Outputs<'a> = ((&'a mut [f32], &'a mut [f32]), &'a mut [f64]);

impl Dense {
    /// For batches of `shape`; only a dictionary that is trained keeps A.
    pub fn new(shape: &Shape, purpose: Purpose, memory: &mut HostMemory) -> Result<Self, Error> {
        let what = "the dense path";
        let tokens = shape.batch.div_ceil(8).next_multiple_of(64).clamp(64, TOKENS_MAX);
        let tiles = shape.features.div_ceil(TILE);
        let token_blocks = shape.batch.div_ceil(tokens);
        // Only backward looks at A again.
        let keep = purpose == Purpose::Training && 4 * shape.batch * shape.features <= shape.dense_bytes;
        Ok(Dense {
            tokens,
            tiles,
            kept: keep.then(|| memory.step(token_blocks * tokens * tiles * TILE, what)).transpose()?,
            counts: memory.step(token_blocks * tiles * TILE, what)?,
            l1_b: memory.step(token_blocks * tokens, what)?,
        })
    }

    /// Encodes and decodes; `x_hat` has rows of the stride of x and begins with `first_d`.
    pub fn forward(&mut self, of: Operands<'_>, first_d: &[f32], x_hat: &mut [f32]) {
        let (tokens, tiles) = (self.tokens, self.tiles);
        let (n, stride) = (of.x.n, of.x.stride);
        let pairs = tokens * tiles * TILE;
        let kept = self.kept.as_mut().map(|kept| SharedRows::new(kept, pairs));
        let x_hat = x_hat[..n * stride].par_chunks_mut(tokens * stride);
        let counts = self.counts.par_chunks_exact_mut(tiles * TILE);
        let l1 = self.l1_b.par_chunks_exact_mut(tokens);
        let tasks = x_hat.zip(counts).zip(l1).enumerate();
        let block_of_tokens = |(block, ((x_hat, counts), l1)): (usize, Outputs<'_>)| {
            let range = block * tokens..((block + 1) * tokens).min(n);
            x_hat.chunks_exact_mut(stride).for_each(|row| row.copy_from_slice(first_d));
            l1.fill(0.0);
            counts.fill(0.0);
            let scratch = &mut *of.workers.scratch();
            for tile in 0..tiles {
                // SAFETY: this block of A belongs to this task alone.
                let kept =
                    kept.as_ref().map(|kept| unsafe { &mut kept.row(block)[tile * tokens * TILE..][..tokens * TILE] });
                let a = kept.unwrap_or_else(|| &mut scratch.gemm[..tokens * TILE]);
                of.activations(range.clone(), tile, a);
                let count = &mut counts[tile * TILE..][..TILE];
                of.engine.isa.run(CountTile { a, tokens: range.len(), norm: of.norms(tile), count, l1 });
                let features = of.features_of(tile);
                let w_dec =
                    Matrix::new(&of.weights.w_dec.value[features.start * stride..], features.len(), stride, stride);
                multiply(x_hat, stride, true, Matrix::new(a, range.len(), features.len(), TILE), w_dec);
            }
        };
        of.engine.pool.install(|| tasks.for_each(block_of_tokens));
    }

    /// Tokens of the batch on which each feature fired.
    pub fn count_all(&self, n: usize, count_f: &mut [u32]) {
        count_f.fill(0);
        for counts in self.counts.chunks_exact(self.tiles * TILE).take(n.div_ceil(self.tokens)) {
            count_f.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count as u32);
        }
    }

    /// Tokens of `range` on which each feature fired. A block of tokens that lies in it only in part is looked at again,
    /// and made again where A is not kept: a run asks for one once, so A is not kept for that.
    pub fn count(&self, of: Operands<'_>, range: Range<usize>, count_f: &mut [u32]) {
        let count_tile = |(tile, count_f): (usize, &mut [u32])| {
            let scratch = &mut *of.workers.scratch();
            count_f.fill(0);
            for block in range.start / self.tokens..range.end.div_ceil(self.tokens) {
                let tokens = block * self.tokens..((block + 1) * self.tokens).min(of.x.n);
                let inside = tokens.start.max(range.start)..tokens.end.min(range.end);
                if inside == tokens {
                    let counts = &self.counts[(block * self.tiles + tile) * TILE..];
                    count_f.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count as u32);
                    continue;
                }
                let a = self.activations(of, block, tile, &mut scratch.gemm);
                for t in inside {
                    let a = &a[(t - tokens.start) * TILE..];
                    count_f.iter_mut().zip(a).for_each(|(sum, &a)| *sum += u32::from(is_active(a)));
                }
            }
        };
        of.engine.pool.install(|| count_f.par_chunks_mut(TILE).enumerate().for_each(count_tile));
    }

    /// The active pairs of the tokens of `rows`, of a batch that was decoded.
    pub fn active_pairs(&self, of: Operands<'_>, rows: Range<usize>) -> ActivePairs {
        let pairs_of_block = |block: usize| {
            let first = block * self.tokens;
            let inside = rows.start.max(first)..rows.end.min(first + self.tokens);
            let mut pairs_r = vec![Vec::new(); inside.len()];
            let scratch = &mut *of.workers.scratch();
            for tile in 0..self.tiles {
                let a = self.activations(of, block, tile, &mut scratch.gemm);
                for (t, pairs) in inside.clone().zip(&mut pairs_r) {
                    let a = a[(t - first) * TILE..][..TILE].iter().enumerate();
                    let active = a.filter(|&(_, &a)| is_active(a));
                    pairs.extend(active.map(|(local, &a)| ((tile * TILE + local) as u32, a)));
                }
            }
            pairs_r
        };
        let blocks = rows.start / self.tokens..rows.end.div_ceil(self.tokens);
        let pairs_r = of.engine.pool.install(|| blocks.into_par_iter().flat_map(pairs_of_block).collect::<Vec<_>>());
        ActivePairs::of_rows(pairs_r)
    }

    /// A of a block of tokens and a tile of features, as kept or made again.
    fn activations<'a>(&'a self, of: Operands<'_>, block: usize, tile: usize, made: &'a mut [f32]) -> &'a [f32] {
        let pairs = self.tokens * TILE;
        match &self.kept {
            Some(kept) => &kept[(block * self.tiles + tile) * pairs..][..pairs],
            None => {
                let range = block * self.tokens..((block + 1) * self.tokens).min(of.x.n);
                of.activations(range, tile, &mut made[..pairs]);
                &made[..pairs]
            }
        }
    }

    /// Fills the gradient rows, `∂b_enc` and the squared norms of each feature's gradient.
    pub fn backward(&self, of: Operands<'_>, g_bd: &[f32], lambda_over_b: f32, to: Gradient<'_>) {
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

    fn backward_tile(&self, of: Operands<'_>, g_bd: &[f32], lambda_over_b: f32, tile: usize, to: Gradient<'_>) {
        let (tokens, n, stride) = (self.tokens, of.x.n, of.x.stride);
        let features = of.features_of(tile);
        let scratch = &mut *of.workers.scratch();
        let (made_again, da) = scratch.gemm[..2 * tokens * TILE].split_at_mut(tokens * TILE);
        let (mut sum_a, mut sum_da) = ([0.0; TILE], [0.0; TILE]);
        let w_dec = Matrix::new(&of.weights.w_dec.value[features.start * stride..], features.len(), stride, stride);
        for block in 0..n.div_ceil(tokens) {
            let range = block * tokens..((block + 1) * tokens).min(n);
            let a = self.activations(of, block, tile, made_again);
            let x = Matrix::new(&of.x.x_bd[range.start * stride..], range.len(), stride, stride);
            let g = Matrix::new(&g_bd[range.start * stride..], range.len(), stride, stride);
            multiply(da, TILE, false, g, w_dec.t());
            let norm = of.norms(tile);
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
            let w = of.weights.w_dec.row(f);
            let pull = pull(lambda_over_b, sum_a[local], of.weights.norm_f[f]);
            let (dec, enc) = (&mut to.dec_fd[row.clone()], &to.enc_fd[row]);
            let norm2 = of.engine.isa.run(Finish { dec, enc, w, pull });
            to.bias_f[local] = sum_da[local];
            to.norm2_f[local] = norm2 + f64::from(sum_da[local]) * f64::from(sum_da[local]);
        }
    }
}

impl<'a> Operands<'a> {
    fn features_of(&self, tile: usize) -> Range<usize> {
        tile * TILE..((tile + 1) * TILE).min(self.weights.features)
    }

    /// `‖W_dec[f]‖` of a tile, padded.
    fn norms(&self, tile: usize) -> &'a [f32] {
        &self.weights.norm_f[tile * TILE..][..TILE]
    }

    /// A for the tokens of `range` and the features of `tile`; features beyond the last stay 0.
    fn activations(&self, range: Range<usize>, tile: usize, a: &mut [f32]) {
        let stride = self.x.stride;
        let features = self.features_of(tile);
        if features.len() < TILE {
            a.fill(0.0);
        }
        let x = Matrix::new(&self.x.x_bd[range.start * stride..], range.len(), stride, stride);
        let w_enc = Matrix::new(&self.weights.w_enc.value[features.start * stride..], features.len(), stride, stride);
        multiply(a, TILE, false, x, w_enc.t());
        let bias = &self.weights.b_enc.value[tile * TILE..][..TILE];
        self.engine.isa.run(Activate { a: &mut a[..range.len() * TILE], bias });
    }
}

/// A from products: the bias, and the activation function.
struct Activate<'a> {
    a: &'a mut [f32],
    bias: &'a [f32],
}

impl Kernel for Activate<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for row in self.a.chunks_exact_mut(TILE) {
            for (a, bias) in blocks_mut(row).iter_mut().zip(blocks(self.bias)) {
                let pre = l.add(l.load(a), l.load(bias));
                l.store(a, activate(l, pre));
            }
        }
    }
}

struct CountTile<'a> {
    a: &'a [f32],
    tokens: usize,
    norm: &'a [f32],
    count: &'a mut [f32],
    l1: &'a mut [f64],
}

impl Kernel for CountTile<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let CountTile { a, tokens, norm, count, l1 } = self;
        let one = l.splat(1.0);
        for (t, row) in a.chunks_exact(TILE).take(tokens).enumerate() {
            let mut sum = l.splat(0.0);
            for ((a, norm), count) in blocks(row).iter().zip(blocks(norm)).zip(blocks_mut(count)) {
                let a = l.load(a);
                sum = l.fma(a, l.load(norm), sum);
                l.store(count, l.add(l.load(count), where_active(l, a, one)));
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
                let masked = where_active(l, a, l.fma(lambda_over_b, l.load(norm), l.load(da)));
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
