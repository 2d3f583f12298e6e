//! Which features of a batch have a gradient row, and where it lies: `touched.cuh`.

use std::ops::Range;

use crate::cuda::runtime::engine::Argument;
use crate::cuda::runtime::pointer::Pointer;

/// Where gradient rows lie: those of W_dec, and those of W_enc.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RowsAt {
    pub dec_ts: Pointer,
    pub enc_ts: Pointer,
}

/// Gradient rows to be made: those of the touched ones among some features.
pub struct WantedRows {
    pub features: Range<usize>,
    pub touched: TouchedArgument,
    pub to: RowsAt,
}

/// `Touched` in touched.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TouchedArgument {
    pub(crate) touched_w: Pointer,
    pub(crate) before_w: Pointer,
    pub(crate) first: u32,
}
// SAFETY: the same fields in the same order.
unsafe impl Argument for TouchedArgument {}

impl TouchedArgument {
    /// All features have a row, from that of `first` on.
    pub fn all(first: usize) -> Self {
        TouchedArgument { touched_w: 0, before_w: 0, first: first as u32 }
    }
}
