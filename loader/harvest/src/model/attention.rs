//! Attention inside of each context, head by head: queries in blocks, so that a causal block stops at its last key.
//!
//! Rows of the input hold queries, keys and values beside each other, head after head, with fewer heads of keys and values where they are
//! shared. Scores of a block are held, [block, keys], and never those of a whole context.

use kernels::cpu::gemm::{Matrix, multiply};

use super::math::softmax;
use super::scratch::sized;

/// Queries of a block: half of a causal block's scores are in vain, whole GEMMs want rows.
const BLOCK: usize = 64;

/// How heads lie in a row.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    /// Heads of keys and of values.
    pub(super) kv_heads: usize,
    pub(super) width: usize,
    pub(super) causal: bool,
}

/// `out = softmax(q·kᵀ/√n)·v`, [N, heads · n], for contexts of these lengths one after the other.
pub(super) fn attention(shape: Heads, input: &[f32], lengths: &[usize], out: &mut [f32], scores: &mut Vec<f32>) {
    let Heads { heads, kv_heads, width, causal } = shape;
    let (row, out_row) = ((heads + 2 * kv_heads) * width, heads * width);
    let scale = 1.0 / (width as f32).sqrt();
    let mut start = 0;
    for &length in lengths {
        let context = &input[start * row..(start + length) * row];
        for head in 0..heads {
            let shared = head / (heads / kv_heads);
            let keys = &context[(heads + shared) * width..];
            let values = &context[(heads + kv_heads + shared) * width..];
            for first in (0..length).step_by(BLOCK) {
                let last = (first + BLOCK).min(length);
                let (count, seen) = (last - first, if causal { last } else { length });
                let block = sized(scores, count * seen);
                let queries = Matrix::new(&context[first * row + head * width..], count, width, row);
                multiply(block, seen, false, queries, Matrix::new(keys, seen, width, row).t());
                for (at, scores) in block.chunks_exact_mut(seen).enumerate() {
                    let (visible, hidden) = scores.split_at_mut(if causal { first + at + 1 } else { seen });
                    visible.iter_mut().for_each(|score| *score *= scale);
                    softmax(visible);
                    hidden.fill(0.0);
                }
                let block = Matrix::new(block, count, seen, seen);
                let to = &mut out[(start + first) * out_row + head * width..];
                multiply(to, out_row, false, block, Matrix::new(values, seen, width, row));
            }
        }
        start += length;
    }
}
