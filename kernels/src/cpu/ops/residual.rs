//! `g = 2 (x̂ − x) / b`, b the rows of the batch over all ranks, and the sums of the report.
//!
//! Shapes: x̂, x `[B, D]` → g `[B, D]`, `‖x_t − x̂_t‖²` `[B]`. Traffic: `12·B·D` bytes, 4 FLOP a value.
//!
//! Plan: 64 tokens a task, in one pass; the squared error of a token is summed in f32 lanes, over tokens in f64 in order.

use super::decode::SLICE;
use super::normalize::Rows;
use crate::cpu::engine::Engine;
use crate::cpu::simd::{Kernel, Lanes, blocks, blocks_mut};
use rayon::prelude::*;

/// Tokens of a task.
const TOKENS: usize = 64;

/// Fills g and the squared errors.
pub struct Residual<'a> {
    pub engine: &'a Engine,
    pub x: &'a Rows,
    /// x̂ in slices of `batch` rows; `None` when g already holds x̂.
    pub x_hat_slices: Option<(&'a [f32], usize)>,
}

impl Residual<'_> {
    pub fn run(&self, g_bd: &mut [f32], error_b: &mut [f64]) {
        let (n, stride) = (self.x.n, self.x.stride);
        let g_rows = g_bd[..n * stride].par_chunks_mut(TOKENS * stride);
        let tasks = g_rows.zip(error_b[..n].par_chunks_mut(TOKENS)).enumerate();
        self.engine.pool.install(|| {
            tasks.for_each(|(task, (g, error))| {
                self.engine.isa.run(Tokens { of: self, first: task * TOKENS, g, error });
            });
        });
    }
}

struct Tokens<'a> {
    of: &'a Residual<'a>,
    first: usize,
    g: &'a mut [f32],
    error: &'a mut [f64],
}

impl Kernel for Tokens<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Residual { x, x_hat_slices, .. } = *self.of;
        let two_over_b = l.splat(2.0 / x.batch_rows as f32);
        for (i, (g, error)) in self.g.chunks_exact_mut(x.stride).zip(self.error).enumerate() {
            let t = self.first + i;
            if let Some((slices, batch)) = x_hat_slices {
                for (slice, columns) in g.chunks_mut(SLICE).enumerate() {
                    columns.copy_from_slice(&slices[(slice * batch + t) * SLICE..][..columns.len()]);
                }
            }
            let mut squares = l.splat(0.0);
            for (g, x) in blocks_mut(g).iter_mut().zip(blocks(x.row(t))) {
                let difference = l.sub(l.load(g), l.load(x));
                squares = l.fma(difference, difference, squares);
                l.store(g, l.mul(difference, two_over_b));
            }
            *error = f64::from(l.sum(squares));
        }
    }
}
