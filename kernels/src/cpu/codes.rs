//! What encode leaves to all others: the active pairs of a batch, a tile of features in one piece.

use std::ops::Range;

use super::activation::is_active;
use crate::ActivePairs;

/// Features of a task: a multiple of the screen's 6; with D = 768 their quantised rows take 74 KB, a tenth of L2.
pub const TILE: usize = 96;

/// Bytes that lists take for a pair: token, a, ∂a.
pub const PAIR_BYTES: u64 = 12;

/// Active pairs of a tile of features.
#[derive(Default)]
pub struct TileCodes {
    /// Where the pairs of each feature start, and the end.
    pub(crate) start: Vec<u32>,
    /// Token of each pair, ascending within a feature.
    pub token: Vec<u32>,
    /// Activation of each pair.
    pub a: Vec<f32>,
    /// `∂L/∂a` of each pair, once backward has run.
    pub da: Vec<f32>,
    /// Pairs that the screen let through.
    pub(crate) survivors: usize,
}

/// Active pairs of a feature.
#[derive(Clone, Copy)]
pub struct FeaturePairs<'a> {
    pub token: &'a [u32],
    pub a: &'a [f32],
    pub da: &'a [f32],
}

impl TileCodes {
    /// Pairs of the tile's feature `local`.
    #[inline(always)]
    pub fn pairs(&self, local: usize) -> Range<usize> {
        self.start[local] as usize..self.start[local + 1] as usize
    }

    /// The same, with what belongs to them, once backward has run.
    #[inline(always)]
    pub fn feature(&self, local: usize) -> FeaturePairs<'_> {
        let pairs = self.pairs(local);
        FeaturePairs { token: &self.token[pairs.clone()], a: &self.a[pairs.clone()], da: &self.da[pairs] }
    }

    /// Closes the gaps that pairs leave which are not active.
    pub(crate) fn drop_silent(&mut self) {
        let mut kept = 0;
        for local in 0..TILE {
            let pairs = self.pairs(local);
            self.start[local] = kept as u32;
            for pair in pairs {
                (self.token[kept], self.a[kept]) = (self.token[pair], self.a[pair]);
                kept += usize::from(is_active(self.a[pair]));
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

/// The pairs of the tokens of `rows`.
pub fn active_pairs(tiles: &[TileCodes], rows: Range<usize>) -> ActivePairs {
    let mut pairs_r = vec![Vec::new(); rows.len()];
    let inside = rows.start as u32..rows.end as u32;
    for (tile, codes) in tiles.iter().enumerate() {
        for local in 0..TILE {
            for pair in codes.pairs(local).filter(|&pair| inside.contains(&codes.token[pair])) {
                let row = (codes.token[pair] - inside.start) as usize;
                pairs_r[row].push(((tile * TILE + local) as u32, codes.a[pair]));
            }
        }
    }
    ActivePairs::of_rows(pairs_r)
}

/// Features of tile `tile`.
pub fn tile_features(tile: usize, features: usize) -> Range<usize> {
    tile * TILE..((tile + 1) * TILE).min(features)
}
