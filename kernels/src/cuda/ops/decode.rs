//! Launches `decode.cu`.

use std::ops::Range;

use super::Cost;
use super::encode::Lists;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::Buffer;
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::Precision;
use crate::cuda::weights::Weights;

/// `x̂` and Σ a ‖W_dec‖ of some tokens from their lists; sums begin at `first_s`, b_dec or zeros.
pub fn decode(
    engine: &Engine,
    (lists, tokens): (&Lists, Range<usize>),
    (weights, first_s): (&Weights, Pointer),
    (x_hat_bs, l1_b): (&mut Buffer<f32>, &mut Buffer<f64>),
) {
    let kernel = engine.precision.pick("decode_f32", "decode_bf16");
    let (w_dec, norm_f) = (weights.w_dec.operand(0), weights.norm_f.at(0));
    let (first, stride, capacity) = (tokens.start, weights.w_dec.stride, lists.capacity);
    let (pairs_bc, count_b) = (lists.pairs_bc.at(first * capacity), lists.count_b.at(first));
    let (x_hat_bs, l1_b) = (x_hat_bs.at(first * stride), l1_b.at(first));
    let (stride, capacity) = (stride as u32, capacity as u32);
    let arguments = arguments![pairs_bc, count_b, w_dec, first_s, norm_f, x_hat_bs, l1_b, stride, capacity];
    // SAFETY: lists name features of the dictionary; x̂ has room for a row of each of the tokens.
    unsafe { engine.enqueue(kernel, tokens.len(), 0, arguments) };
}

/// A row of W_dec a pair, a row of x̂ a token.
pub fn cost(precision: Precision, n: usize, width: usize, pairs: usize) -> Cost {
    Cost { bytes: (pairs * width * precision.bytes() + 4 * n * width) as u64, flop: 2 * (pairs * width) as u64 }
}
