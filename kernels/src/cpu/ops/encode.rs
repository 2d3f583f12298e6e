//! `a = ReLU(x · W_encᵀ + b_enc)`, kept as lists of active tokens, feature by feature.
//!
//! Shapes: x `[B, D]`, W_enc `[F, D]`, b_enc `[F]` → for each feature its active tokens in ascending order and their a.
//! FLOP: `2·B·D·F` in the screen (a narrow dtype) and `2·D` for each pair that passes it. Nothing of size `B×F` is kept:
//! a task has one bit per (token, feature of its tile).
//!
//! Plan: tiles of 96 features, one task each. The [`Screener`] marks every pair that may be active, with an error margin
//! that is a proven bound. Each marked pair gets one f32 [`dot`] of fixed order, which alone decides: the result is the
//! same for every screen, instruction set and thread count.
//!
//! Tokens lie in the lanes and features in the broadcasts of the screen, so marks come out feature by feature: no sort,
//! no transposition, and the rows of W_enc stay row-major, which keeps Adam's rewriting of them sequential.
//! Rejected: survivors collected by token and transposed later (two more passes over the lists; W_enc rows gathered).

use super::normalize::Rows;
use crate::cpu::codes::{TILE, TileCodes, tile_features};
use crate::cpu::engine::Engine;
use crate::cpu::scratch::{Scratch, Workers};
use crate::cpu::screen::{PANEL, Screener};
use crate::cpu::simd::{Kernel, Lanes, blocks, dot};
use crate::cpu::weights::Weights;
use rayon::prelude::*;
use std::ops::Range;

/// The operands.
pub struct Encode<'a> {
    pub engine: &'a Engine,
    pub workers: &'a Workers,
    pub screener: &'a Screener,
    pub weights: &'a Weights,
}

impl Encode<'_> {
    /// Fills the tiles; returns how many pairs the screen let through. The screener has packed `x`.
    pub fn run(&self, x: &Rows, tiles: &mut [TileCodes]) -> usize {
        let panels = x.n.div_ceil(PANEL);
        let encode_tile = |(tile, codes): (usize, &mut TileCodes)| {
            let features = tile_features(tile, self.weights.features);
            let Scratch { marks, next, gemm, .. } = &mut *self.workers.scratch();
            let marks = &mut marks[..TILE * panels];
            self.screener.mark(features.clone(), &self.weights.w_enc.value, x, gemm, marks);
            self.engine.isa.run(Exact { of: self, x, features, marks, panels, next, codes });
            codes.survivors
        };
        self.engine.pool.install(|| tiles.par_iter_mut().enumerate().map(encode_tile).sum())
    }
}

/// Decides the marked pairs of a tile, 64 tokens at a time: their rows of x and the tile's rows of W_enc stay in L2.
struct Exact<'a> {
    of: &'a Encode<'a>,
    x: &'a Rows,
    features: Range<usize>,
    /// Marks of each feature, `panels` words.
    marks: &'a [u64],
    panels: usize,
    /// Where the next marked pair of each feature goes.
    next: &'a mut Vec<u32>,
    codes: &'a mut TileCodes,
}

impl Kernel for Exact<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        self.make_room();
        let Exact { of, x, features, marks, panels, next, codes } = self;
        for panel in 0..panels {
            for (local, next) in next.iter_mut().enumerate() {
                let mut left = marks[local * panels + panel];
                let f = features.start + local;
                let (w, bias) = (blocks(of.weights.w_enc.row(f)), of.weights.b_enc.value[f]);
                while left != 0 {
                    let t = panel * PANEL + left.trailing_zeros() as usize;
                    left &= left - 1;
                    codes.token[*next as usize] = t as u32;
                    codes.a[*next as usize] = dot(l, blocks(x.row(t)), w) + bias;
                    *next += 1;
                }
            }
        }
        codes.drop_silent();
    }
}

impl Exact<'_> {
    /// One place for each marked pair, feature by feature.
    fn make_room(&mut self) {
        let codes = &mut *self.codes;
        let mut marked = 0;
        codes.start.clear();
        for local in 0..TILE {
            codes.start.push(marked);
            let marks =
                if local < self.features.len() { &self.marks[local * self.panels..][..self.panels] } else { &[] };
            marked += marks.iter().map(|mark| mark.count_ones()).sum::<u32>();
        }
        codes.start.push(marked);
        codes.survivors = marked as usize;
        codes.token.resize(marked as usize, 0);
        codes.a.resize(marked as usize, 0.0);
        self.next.clear();
        self.next.extend(&codes.start[..self.features.len()]);
    }
}
