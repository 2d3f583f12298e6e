//! Sums over counted rows: `Σ‖x − x̂‖²`, `Σ‖x‖²`, `Σ x`, `Σ a ‖W_dec‖`, and on how many rows each feature fired.
//!
//! Shapes: errors and norms `[B]`, x `[B, D]`, active pairs → [`Sums`]. Traffic: `4·B·D` bytes of x.
//!
//! Plan: every sum in f64, over rows in order; over features tile by tile.

use super::dense::{Dense, Operands};
use super::normalize::Rows;
use crate::Sums;
use crate::cpu::codes::{TILE, TileCodes};
use crate::cpu::engine::Engine;
use crate::cpu::simd::{LANES, blocks};
use rayon::prelude::*;
use std::ops::Range;

/// Sums over counted rows.
pub struct Tally {
    pub(crate) sums: Sums,
}

/// What a batch has left of its active pairs.
pub enum Active<'a> {
    /// Of the sparse path.
    Lists(&'a [TileCodes]),
    /// Of the dense path.
    Dense(&'a Dense, Operands<'a>),
}

/// The operands.
pub struct Count<'a> {
    pub engine: &'a Engine,
    pub x: &'a Rows,
    /// `‖x_t − x̂_t‖²`.
    pub error_b: &'a [f64],
    pub active: Active<'a>,
    /// `‖W_dec[f]‖`.
    pub norm_f: &'a [f32],
}

impl Count<'_> {
    /// Adds the rows of `counted`, which lies inside the batch.
    pub fn run(&self, counted: Range<usize>, sums: &mut Sums) {
        let mut count_f = vec![0; sums.fired_f.len()];
        sums.l1 += match self.active {
            Active::Lists(tiles) => {
                let range = counted.start as u32..counted.end as u32;
                let tiles = tiles.iter().zip(count_f.chunks_mut(TILE)).zip(self.norm_f.chunks(TILE));
                tiles.map(|((codes, count), norm)| codes.sums_inside(range.clone(), norm, count)).sum::<f64>()
            }
            Active::Dense(dense, of) => {
                dense.count(of, counted.clone(), &mut count_f);
                dense.l1_b[counted.clone()].iter().sum()
            }
        };
        for (sum, &count) in sums.fired_f.iter_mut().zip(&count_f) {
            *sum += u64::from(count);
            sums.active += u64::from(count);
        }
        let mut x_sums = vec![0.0; self.x.stride];
        column_sums(self.engine, &self.x.x_bd, self.x.stride, counted.clone(), &mut x_sums);
        sums.x_d.iter_mut().zip(x_sums).for_each(|(sum, x)| *sum += x);
        sums.rows += counted.len() as u64;
        sums.squared_error += self.error_b[counted.clone()].iter().sum::<f64>();
        sums.squared_norm += self.x.norm2_b[counted].iter().map(|&norm2| f64::from(norm2)).sum::<f64>();
    }
}

/// `Σ_t rows[t]` over the tokens of `range`, in order, in f64: `out [D]`. 16 columns a task.
pub fn column_sums(engine: &Engine, rows: &[f32], stride: usize, range: Range<usize>, out: &mut [f64]) {
    let rows = &rows[range.start * stride..range.end * stride];
    engine.pool.install(|| {
        out.par_chunks_mut(LANES).enumerate().for_each(|(block, out)| {
            let mut sums = [0.0; LANES];
            for row in rows.chunks_exact(stride) {
                sums.iter_mut().zip(&blocks(row)[block]).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            out.copy_from_slice(&sums[..out.len()]);
        });
    });
}
