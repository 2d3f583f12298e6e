//! Launches `decode.cu`.

use std::ops::Range;

use super::Cost;
use super::encode::Lists;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::Buffer;
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::Precision;
use crate::cuda::weights::Weights;

/// The operands.
pub struct Decode<'a> {
    pub engine: &'a Engine,
    pub lists: &'a Lists,
    pub weights: &'a Weights,
    /// What x̂ begins with: b_dec or zeros.
    pub first_s: Pointer,
    /// Those whose x̂ is made.
    pub tokens: Range<usize>,
}

impl Decode<'_> {
    /// `x̂` and Σ a ‖W_dec‖ from lists, each to its token's place.
    pub fn run(&self, x_hat_bs: &Buffer<f32>, l1_b: &Buffer<f64>) {
        let Decode { engine, lists, weights, first_s, .. } = *self;
        let kernel = engine.precision.pick("decode_f32", "decode_bf16");
        let (w_dec, norm_f) = (weights.w_dec.operand(0), weights.norm_f.at(0));
        let (first, stride, capacity) = (self.tokens.start, weights.w_dec.stride, lists.capacity);
        let (pairs_bc, count_b) = (lists.pairs_bc.at(first * capacity), lists.count_b.at(first));
        let (x_hat_bs, l1_b) = (x_hat_bs.at(first * stride), l1_b.at(first));
        let (stride, capacity) = (stride as u32, capacity as u32);
        let arguments = arguments![pairs_bc, count_b, w_dec, first_s, norm_f, x_hat_bs, l1_b, stride, capacity];
        // SAFETY: lists name features of the dictionary; x̂ has room for a row of each of the tokens.
        unsafe { engine.enqueue(kernel, self.tokens.len(), 0, arguments) };
    }
}

/// A row of W_dec a pair, a row of x̂ a token.
pub fn cost(precision: Precision, n: usize, width: usize, pairs: usize) -> Cost {
    Cost { bytes: (pairs * width * precision.bytes() + 4 * n * width) as u64, flop: 2 * (pairs * width) as u64 }
}
