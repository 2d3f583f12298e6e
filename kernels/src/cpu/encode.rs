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

use super::Engine;
use super::normalize::Rows;
use super::scratch::{Scratch, Workers};
use super::screen::{PANEL, Screener};
use super::simd::{Kernel, Lanes, blocks, dot};
use super::weights::Weights;
use rayon::prelude::*;
use std::ops::Range;

/// Features of a task: a multiple of the screen's 6; with D = 768 their quantised rows take 74 KB, a tenth of L2.
pub const TILE: usize = 96;

/// Bytes that lists take for a pair: token, a, ∂a.
pub const PAIR_BYTES: u64 = 12;

/// Active pairs of a tile of features.
#[derive(Default)]
pub struct TileCodes {
    /// Where the pairs of each feature start, and the end.
    start: Vec<u32>,
    /// Token of each pair, ascending within a feature.
    pub token: Vec<u32>,
    /// Activation of each pair.
    pub a: Vec<f32>,
    /// `∂L/∂a` of each pair, once backward has run.
    pub da: Vec<f32>,
    /// Pairs that the screen let through.
    survivors: usize,
}

impl TileCodes {
    /// Pairs of the tile's feature `local`.
    #[inline(always)]
    pub fn pairs(&self, local: usize) -> Range<usize> {
        self.start[local] as usize..self.start[local + 1] as usize
    }

    /// Closes the gaps that pairs with `a ≤ 0` leave.
    fn drop_silent(&mut self) {
        let mut kept = 0;
        for local in 0..TILE {
            let pairs = self.pairs(local);
            self.start[local] = kept as u32;
            for pair in pairs {
                (self.token[kept], self.a[kept]) = (self.token[pair], self.a[pair]);
                kept += usize::from(self.a[pair] > 0.0);
            }
        }
        self.start[TILE] = kept as u32;
        self.token.truncate(kept);
        self.a.truncate(kept);
    }

    /// Counts the tokens of each feature; `Σ a ‖W_dec‖` over the pairs.
    pub fn sums(&self, norm_f: &[f32], count_f: &mut [u32]) -> f64 {
        self.sums_inside(0..u32::MAX, norm_f, count_f)
    }

    /// As [`TileCodes::sums`], over the tokens of `range`.
    pub fn sums_inside(&self, range: Range<u32>, norm_f: &[f32], count_f: &mut [u32]) -> f64 {
        let mut l1 = 0.0;
        for (local, count) in count_f.iter_mut().enumerate() {
            let pairs = self.pairs(local);
            let tokens = &self.token[pairs.clone()];
            let first = tokens.partition_point(|&t| t < range.start);
            let last = tokens.partition_point(|&t| t < range.end);
            let a = &self.a[pairs][first..last];
            *count = a.len() as u32;
            l1 += a.iter().map(|&a| f64::from(a)).sum::<f64>() * f64::from(norm_f[local]);
        }
        l1
    }
}

/// Features of tile `tile`.
pub fn tile_features(tile: usize, features: usize) -> Range<usize> {
    tile * TILE..((tile + 1) * TILE).min(features)
}

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
            let Scratch { marks, next, product, .. } = &mut *self.workers.scratch();
            let marks = &mut marks[..TILE * panels];
            self.screener.mark(features.clone(), &self.weights.w_enc.value, x, product, marks);
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
