//! `x̂ = b_dec + a · W_dec` from lists of active pairs.
//!
//! Shapes: pairs by feature, W_dec `[F, D]`, b_dec `[D]` → x̂ `[D/64][B][64]`, in slices of columns.
//! Traffic: touched rows of W_dec once; `2·4·64·B` bytes of a slice of x̂ stay in L2 (512 KiB with B = 2048).
//! FLOP: `2·n·D` for n pairs.
//!
//! Plan: one task a slice. It walks over all features in order, holds 64 columns of a row of W_dec in registers and adds
//! them to the feature's tokens. A token's features are added in ascending order whatever the number of threads.
//!
//! Rejected: gathering whole rows of W_dec token by token: each row then comes once per active pair, from L3 or memory
//! (calculated: 315 MB instead of 100 MB with D = 768, F = 32768, B = 2048, L0 = 50), and the pairs must first be sorted by token.

use crate::cpu::codes::{TILE, TileCodes};
use crate::cpu::engine::Engine;
use crate::cpu::simd::{Block, Kernel, LANES, Lanes, blocks, blocks_mut};
use crate::cpu::weights::Weights;
use rayon::prelude::*;

/// Columns of a slice.
pub const SLICE: usize = 4 * LANES;

/// Fills the slices of x̂ for `n` tokens; each slice takes `batch` rows of memory.
pub struct Decode<'a> {
    pub engine: &'a Engine,
    /// What x̂ begins with.
    pub first_d: &'a [f32],
    pub n: usize,
    pub batch: usize,
    pub weights: &'a Weights,
}

impl Decode<'_> {
    pub fn run(&self, tiles: &[TileCodes], x_hat_slices: &mut [f32]) {
        let decode_slice = |(slice, x_hat): (usize, &mut [f32])| {
            self.engine.isa.run(Slice { of: self, tiles, first: slice * SLICE, x_hat });
        };
        let slices = x_hat_slices.par_chunks_exact_mut(self.batch * SLICE);
        self.engine.pool.install(|| slices.enumerate().for_each(decode_slice));
    }
}

struct Slice<'a> {
    of: &'a Decode<'a>,
    tiles: &'a [TileCodes],
    /// First column.
    first: usize,
    x_hat: &'a mut [f32],
}

impl Kernel for Slice<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match (self.of.weights.stride - self.first).min(SLICE) / LANES {
            4 => self.columns::<L, 4>(l),
            3 => self.columns::<L, 3>(l),
            2 => self.columns::<L, 2>(l),
            _ => self.columns::<L, 1>(l),
        }
    }
}

impl Slice<'_> {
    /// The slice with `N` blocks of columns; a row of x̂ takes the room of four.
    #[inline(always)]
    fn columns<L: Lanes, const N: usize>(self, l: L) {
        let Decode { n, weights, first_d, .. } = *self.of;
        let x_hat: &mut [[Block; 4]] = blocks_mut(self.x_hat).as_chunks_mut().0;
        let columns_of = |row: &[f32]| -> [L::V; N] {
            let row = blocks(&row[self.first..]);
            std::array::from_fn(|i| l.load(&row[i]))
        };
        let bias = columns_of(first_d);
        for token in &mut x_hat[..n] {
            for i in 0..N {
                l.store(&mut token[i], bias[i]);
            }
        }
        for (f, (codes, local)) in
            self.tiles.iter().flat_map(|codes| (0..TILE).map(move |local| (codes, local))).enumerate()
        {
            let pairs = codes.pairs(local);
            if pairs.is_empty() {
                continue;
            }
            let w = columns_of(weights.w_dec.row(f));
            for (&t, &a) in codes.token[pairs.clone()].iter().zip(&codes.a[pairs]) {
                let (token, a) = (&mut x_hat[t as usize], l.splat(a));
                for i in 0..N {
                    let sum = l.fma(a, w[i], l.load(&token[i]));
                    l.store(&mut token[i], sum);
                }
            }
        }
    }
}
