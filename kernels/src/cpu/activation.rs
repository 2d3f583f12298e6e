//! The activation function, ReLU: `a = p` where a pre-activation `p` is above 0, else `a = 0`; `∂a/∂p = 1` where a is active, else 0.
//!
//! Everything here that asks whether a pair is active asks it of this file: the sparse path, which keeps active pairs alone, the
//! dense path, which makes all, the gradient of both, and the screens, which must mark whatever may turn out active.

use super::simd::Lanes;

/// Whether a pair is active, by its pre-activation or its activation.
#[inline(always)]
pub fn is_active(pre: f32) -> bool {
    pre > 0.0
}

/// Whether a pair may be active whose pre-activation is at most `bound`, up to a positive factor; NaN bounds nothing. `screen/avx512.rs`
/// asks the same of 16 pairs at once.
#[inline(always)]
pub fn may_be_active(bound: f32) -> bool {
    is_active(bound) || bound.is_nan()
}

/// Activations of pre-activations.
#[inline(always)]
pub fn activate<L: Lanes>(l: L, pre: L::V) -> L::V {
    l.where_positive(pre, pre)
}

/// `v` of active pairs, 0 of the others: the gradient in pre-activations from that in activations.
#[inline(always)]
pub fn where_active<L: Lanes>(l: L, a: L::V, v: L::V) -> L::V {
    l.where_positive(a, v)
}
