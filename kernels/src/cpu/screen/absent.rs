//! Stands where `avx512.rs` does on machines without it. [`ScreenDtype::available`] is false for narrow screens there, so
//! none of these is ever called.

use super::bounds::{FeatureBound, Screener};
use super::dtype::ScreenDtype;
use crate::cpu::ops::normalize::Rows;
use std::ops::Range;

const WHY: &str = "narrow screens exist on x86-64 only";

pub fn mark(_: &Screener, _: ScreenDtype, _: Range<usize>, _: usize, _: &mut [u64]) {
    unreachable!("{WHY}")
}

pub fn pack_panel(_: ScreenDtype, _: &Rows, _: usize, _: f32, _: &mut [u32], _: [&mut [f32]; 3]) {
    unreachable!("{WHY}")
}

pub fn pack_row(_: ScreenDtype, _: &[f32], _: f32, _: f32, _: &mut [u32]) -> FeatureBound {
    unreachable!("{WHY}")
}

pub fn busy_products(_: ScreenDtype, _: usize) {
    unreachable!("{WHY}")
}
