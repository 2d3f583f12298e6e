//! Narrow rows and what bounds their error, as every screen reads them.

use std::ops::Range;

use super::dtype::ScreenDtype;
use crate::cpu::memory::Buffer;

/// Tokens whose marks make one word.
pub const PANEL: usize = 64;
/// Tokens of a GEMM of the f32 screen: with 96 features 192 KiB of results.
pub const GEMM_TOKENS: usize = 512;
/// Norms and largest values for which the bounds hold in f32 arithmetic: no product of two comes near its limits. Rows
/// outside get NaN as a bound.
pub const RANGE: Range<f32> = 1e-15..1e15;

/// A feature's side of the sum.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FeatureBound {
    /// What the accumulator starts with: takes back the offset that makes int8 rows of x unsigned.
    pub(super) start: i32,
    pub(super) p: f32,
    pub(super) q: f32,
    pub(super) r: f32,
}

/// Narrow copies of W_enc and of the batch, with their bounds.
pub struct Screener {
    pub(super) screen: ScreenDtype,
    pub(super) width: usize,
    pub(super) stride: usize,
    /// Narrow rows of W_enc `[F, words]`, F padded to whole groups of the GEMM.
    pub(super) w_words: Buffer<u32>,
    pub(super) bounds_f: Buffer<FeatureBound>,
    /// Narrow rows of x in panels: `[B/64][words][64]`.
    pub(super) x_words: Buffer<u32>,
    pub(super) alpha_b: Buffer<f32>,
    pub(super) beta_b: Buffer<f32>,
    pub(super) gamma_b: Buffer<f32>,
}

/// A bias, moved up by more than the rounding of the sum that it enters, and by more than what flushed denormals can
/// take from a product.
pub fn raised(bias: f32) -> f32 {
    bias + bias.abs() * (8.0 * f32::EPSILON) + 1e-30
}
