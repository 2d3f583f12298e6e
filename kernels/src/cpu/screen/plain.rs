//! The screen without narrow dtypes: f32 GEMMs of `gemm`, 512 tokens at a time, marked while they are in L2.

use super::bounds::{GEMM_TOKENS as TOKENS, PANEL, Screener};
use crate::cpu::activation::may_be_active;
use crate::cpu::gemm::{Matrix, multiply};
use crate::cpu::ops::normalize::Rows;
use std::ops::Range;

pub fn mark(of: &Screener, features: Range<usize>, w_enc_fd: &[f32], x: &Rows, gemm: &mut [f32], marks: &mut [u64]) {
    let panels = x.n.div_ceil(PANEL);
    for first in (0..x.n).step_by(TOKENS) {
        let tokens = first..(first + TOKENS).min(x.n);
        let w = Matrix::new(&w_enc_fd[features.start * of.stride..], features.len(), of.width, of.stride);
        let xt = Matrix::new(&x.x_bd[first * of.stride..], tokens.len(), of.width, of.stride).t();
        multiply(gemm, TOKENS, false, w, xt);
        for (local, f) in features.clone().enumerate() {
            let bound = of.bounds_f[f];
            for (i, panel) in gemm[local * TOKENS..][..tokens.len()].chunks(PANEL).enumerate() {
                let beta = &of.beta_b[first + i * PANEL..][..panel.len()];
                let mark = panel.iter().zip(beta).enumerate().fold(0, |mark, (lane, (&acc, &beta))| {
                    let sum = acc + bound.p + beta * bound.q;
                    mark | (u64::from(may_be_active(sum)) << lane)
                });
                marks[local * panels + first / PANEL + i] = mark;
            }
        }
    }
}

/// `‖w‖`.
pub fn norm(w_row: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for block in w_row.as_chunks::<16>().0 {
        lanes.iter_mut().zip(block).for_each(|(sum, w)| *sum += w * w);
    }
    lanes.iter().sum::<f32>().sqrt()
}
