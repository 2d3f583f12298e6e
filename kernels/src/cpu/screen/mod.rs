//! Which pairs may be active: a cheap GEMM in a narrow dtype and a margin that bounds its error.
//!
//! With x̂, ŵ the narrow copies: `x·w = x̂·ŵ + (x − x̂)·w + x̂·(w − ŵ)`, so by Cauchy–Schwarz
//! `|x·w − x̂·ŵ| ≤ ‖x − x̂‖·‖w‖ + ‖x̂‖·‖w − ŵ‖`. The four norms are *measured* when a row is packed, not estimated from
//! the dtype: the bound is about half of the textbook one. A pair is marked unless
//!     `x̂·ŵ + b + ‖x − x̂‖·‖w‖ + ‖x̂‖·‖w − ŵ‖ + κ·‖x‖·‖w‖ ≤ 0`
//! where κ covers the roundings of the f32 arithmetic on both sides. With scales `x̂ = s_x·q_x`, `ŵ = s_w·q_w` and divided
//! by `s_x·s_w` this is one sum for every dtype: `acc + α_t·p_f + β_t·q_f + γ_t·r_f`.
//! A NaN in it marks the pair, so values beyond the range of the arithmetic are decided exactly too.
//!
//! Measured peaks of one Zen 4 core at 3.67 GHz, Gop/s: f32 fma 117, vdpbf16ps 236, vpdpbusd 470. The screens reach, with
//! packing, 89–95 % (int8) and 92–96 % (bf16) of theirs. Calculated margins on Gaussian rows of 384, as a share of the
//! spread of x·w: int8 0.29 σ, bf16 0.05 σ. Counted on planted data: int8 lets 1.8–2.8 pairs through for each active one,
//! at an exact dot each, and still wins: encode takes 23.6 core-ms against 40.6 with D = 384, F = 4096, B = 2048 (same run).

#[cfg_attr(not(target_arch = "x86_64"), path = "absent.rs")]
mod avx512;
mod bounds;
mod dtype;
mod plain;

pub use bounds::{GEMM_TOKENS, PANEL, Screener};
pub use dtype::ScreenDtype;

use bounds::{FeatureBound, RANGE, raised};

use super::codes::TILE;
use super::engine::{Engine, stride};
use super::memory::{HostMemory, SharedRows};
use super::ops::normalize::Rows;
use super::simd::dot_error;
use crate::{Error, Shape};
use rayon::prelude::*;
use std::ops::Range;

/// Width up to which the sums of an int8 product stay below 2³¹: `255 · 127 · 65536 < 2³¹`.
const INT8_WIDTH_MAX: usize = 65_536;
/// Share of all pairs marked in vain above which a bf16 screen should be the faster (calculated): the product of a pair costs
/// D/64 cycles more, an exact dot about D/8.
const INT8_WASTE_MAX: f64 = 0.1;

/// A feature's row as Adam rewrites it, from several tasks at once.
pub struct RowWriter<'a> {
    screen: ScreenDtype,
    kappa: f32,
    w_words: SharedRows<'a, u32>,
    bounds_f: SharedRows<'a, FeatureBound>,
}

impl Screener {
    pub fn new(engine: &Engine, shape: &Shape, memory: &mut HostMemory) -> Result<Self, Error> {
        let Shape { width, features, batch, .. } = *shape;
        let what = "the encoder's screen";
        let stride = stride(width);
        let screen = match engine.screen {
            ScreenDtype::Int8 if width > INT8_WIDTH_MAX => ScreenDtype::F32,
            screen => screen,
        };
        // An int8 screen may go over to bf16: both fit.
        let words =
            if screen == ScreenDtype::Int8 && ScreenDtype::Bf16.available() { ScreenDtype::Bf16 } else { screen }
                .words(stride);
        let features = features.next_multiple_of(TILE);
        let batch = batch.next_multiple_of(PANEL);
        Ok(Screener {
            screen,
            width,
            stride,
            w_words: memory.weights(features * words)?,
            bounds_f: memory.weights(features)?,
            x_words: memory.step(batch * words, what)?,
            alpha_b: memory.step(batch, what)?,
            beta_b: memory.step(batch, what)?,
            gamma_b: memory.step(batch, what)?,
        })
    }

    /// Bound of the f32 roundings, relative to `‖x‖·‖w‖`: those of the exact dot, of the product's sums (one rounding a
    /// value) and of the comparison.
    fn kappa(&self) -> f32 {
        dot_error(self.width) + (self.width as f32 + 32.0) * f32::EPSILON
    }

    /// Access for writing rows.
    pub fn writer(&mut self) -> RowWriter<'_> {
        let (kappa, screen) = (self.kappa(), self.screen);
        let words = screen.words(self.stride).max(1);
        let whole = self.w_words.len() / words * words;
        RowWriter {
            screen,
            kappa,
            w_words: SharedRows::new(&mut self.w_words[..whole], words),
            bounds_f: SharedRows::new(&mut self.bounds_f, 1),
        }
    }

    /// Packs the batch.
    pub fn pack(&mut self, engine: &Engine, x: &Rows) {
        let panels = x.n.div_ceil(PANEL);
        let words = self.screen.words(self.stride);
        match self.screen {
            ScreenDtype::F32 => {
                let kappa = self.kappa();
                for t in 0..x.n {
                    let norm = x.norm2_b[t].sqrt();
                    self.beta_b[t] = if RANGE.contains(&norm) { kappa * norm } else { f32::NAN };
                }
            }
            screen => {
                let kappa = self.kappa();
                let x_words = &mut self.x_words[..panels * words * PANEL];
                let alpha = self.alpha_b.par_chunks_exact_mut(PANEL);
                let bounds =
                    alpha.zip(self.beta_b.par_chunks_exact_mut(PANEL)).zip(self.gamma_b.par_chunks_exact_mut(PANEL));
                let pack_panel = |(panel, (words, ((alpha, beta), gamma))): (usize, (&mut [u32], _))| {
                    avx512::pack_panel(screen, x, panel, kappa, words, [alpha, beta, gamma]);
                };
                engine.pool.install(|| {
                    x_words.par_chunks_exact_mut(words * PANEL).zip(bounds).enumerate().for_each(pack_panel);
                });
            }
        }
    }

    /// Marks the pairs of `features` that may be active: bit `t % 64` of word `local · panels + t / 64`.
    pub fn mark(&self, features: Range<usize>, w_enc_fd: &[f32], x: &Rows, gemm: &mut [f32], marks: &mut [u64]) {
        match self.screen {
            ScreenDtype::F32 => plain::mark(self, features, w_enc_fd, x, gemm, marks),
            screen => avx512::mark(self, screen, features, x.n, marks),
        }
        let panels = x.n.div_ceil(PANEL);
        if !x.n.is_multiple_of(PANEL) {
            let last = (1 << (x.n % PANEL)) - 1;
            marks.chunks_exact_mut(panels).for_each(|marks_of_feature| marks_of_feature[panels - 1] &= last);
        }
    }

    /// Goes over to bf16 when int8 marked too much in vain; true if every row must be written again.
    pub fn reconsider(&mut self, pairs: usize, survivors: usize, active: usize) -> bool {
        let wasted = survivors.saturating_sub(active) as f64 > INT8_WASTE_MAX * pairs as f64;
        let change = wasted && self.screen == ScreenDtype::Int8 && ScreenDtype::Bf16.available();
        if change {
            self.screen = ScreenDtype::Bf16;
        }
        change
    }
}

impl RowWriter<'_> {
    /// Follows a change of feature `f`'s encoder row or bias.
    ///
    /// # Safety
    /// No other task writes this feature.
    pub unsafe fn write(&self, f: usize, w_row: &[f32], bias: f32) {
        // SAFETY: the caller's promise.
        let bound = unsafe { &mut self.bounds_f.row(f)[0] };
        match self.screen {
            ScreenDtype::F32 => {
                let norm = plain::norm(w_row);
                let q = if RANGE.contains(&norm) { norm * (1.0 + self.kappa) } else { f32::NAN };
                *bound = FeatureBound { start: 0, p: raised(bias), q, r: 0.0 };
            }
            screen => {
                // SAFETY: the caller's promise.
                let words = unsafe { self.w_words.row(f) };
                *bound = avx512::pack_row(screen, w_row, bias, self.kappa, words);
            }
        }
    }
}

/// Nothing but the products of a narrow screen, for measuring their peak rate.
pub fn busy_products(screen: ScreenDtype, steps: usize) {
    assert!(screen.available() && screen != ScreenDtype::F32, "a narrow screen of this machine");
    avx512::busy_products(screen, steps);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, Options};

    /// The bound on a GEMM in f32 is κ·‖x‖·‖w‖, and κ no less than what two sums of as many products may err: each of its values is rounded
    /// once, to 24 bits.
    #[test]
    fn the_sides_of_the_f32_bound_make_it_up() {
        let options = Options { threads: Some(1), screen: Some(ScreenDtype::F32), isa: None };
        let cpu = Cpu::with(options).expect("threads");
        for width in [20, 3000] {
            let shape = Shape { width, features: 2, batch: 3, dense_bytes: 0 };
            let mut memory = HostMemory::taken();
            let mut screener = Screener::new(&cpu.engine, &shape, &mut memory).expect("memory");
            let mut x = Rows::new(3, width, &mut memory).expect("memory");
            x.n = 3;
            x.norm2_b.copy_from_slice(&[9.0, 0.0, f32::INFINITY]);
            screener.pack(&cpu.engine, &x);
            let mut w = vec![0.0; screener.stride];
            (w[0], w[width - 1]) = (3.0, -4.0);
            let writer = screener.writer();
            // SAFETY: no other task is there.
            unsafe { writer.write(0, &w, -0.5) };
            let (beta, bound) = (&screener.beta_b, &screener.bounds_f[0]);
            let kappa = beta[0] * bound.q / (3.0 * 5.0);
            assert!(kappa >= 2.0 * width as f32 * 2.0_f32.powi(-24), "{kappa} at a width of {width}");
            assert!((1.0..1.0 + 2.0 * kappa + 1e-6).contains(&(kappa / screener.kappa())), "{kappa}");
            assert!(bound.p > -0.5 && bound.p < -0.5 + 1e-6, "{}", bound.p);
            assert!(beta[1].is_nan() && beta[2].is_nan(), "no bound holds for rows out of range");
        }
    }
}
