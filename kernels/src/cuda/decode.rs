//! Launches `decode.cu`.

use super::device::{Cost, Precision};
use super::encode::Lists;
use super::engine::{Engine, arguments};
use super::memory::{Buffer, Pointer};
use super::status::Status;
use super::weights::Weights;

/// `x̂` and Σ a ‖W_dec‖ of `n` tokens from their lists; sums begin at `first_s`, b_dec or zeros.
pub fn decode(
    engine: &Engine,
    lists: &Lists,
    n: usize,
    (weights, first_s): (&Weights, Pointer),
    (x_hat_bs, l1_b): (&mut Buffer<f32>, &mut Buffer<f64>),
    status: &Buffer<Status>,
) {
    let kernel = engine.precision.pick("decode_f32", "decode_bf16");
    let (w_dec, norm_f) = (weights.w_dec.operand(0), weights.norm_f.at(0));
    let (stride, capacity) = (weights.w_dec.stride as u32, lists.capacity as u32);
    let (pairs_bc, count_b) = (lists.pairs_bc.at(0), lists.count_b.at(0));
    let arguments = arguments![
        pairs_bc,
        count_b,
        w_dec,
        first_s,
        norm_f,
        x_hat_bs.at(0),
        l1_b.at(0),
        status.at(0),
        stride,
        capacity
    ];
    // SAFETY: lists name features of the dictionary; x̂ has room for n rows.
    unsafe { engine.enqueue(kernel, n, 0, arguments) };
}

/// A row of W_dec a pair, a row of x̂ a token.
pub fn cost(precision: Precision, n: usize, width: usize, pairs: usize) -> Cost {
    Cost { bytes: (pairs * width * precision.bytes() + 4 * n * width) as u64, flop: 2 * (pairs * width) as u64 }
}
