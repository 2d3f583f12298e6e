//! What a card can do, measured with code that does nothing else.

use std::sync::Arc;
use std::time::Instant;

use super::device::Tile;
use super::engine::{Engine, arguments};
use super::memory::Memory;
use crate::Error;

/// Rates of a card.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// 10⁹ bytes a second, read and written, of a copy on the card.
    pub copy_gbs: f64,
    /// 10⁹ multiplications and additions a second of a product by `tile.cuh` in the device's precision.
    pub product_gflops: f64,
}

const REPEATS: usize = 5;

/// Measures; `small` keeps it short where times mean nothing.
pub(super) fn measure(engine: &Arc<Engine>, small: bool) -> Result<Peaks, Error> {
    let mut memory = Memory::of(engine);
    let what = "the measurement of peaks";
    let len = if small { 1 << 10 } else { 1 << 28 };
    let (from, mut to) = (memory.step::<f32>(len, what)?, memory.step::<f32>(len, what)?);
    let copy_s = best(engine, || to.copy(&from, len))?;
    // A square product, its operands in the memory of the copy.
    let side = if small { 128 } else { 8192 };
    let Tile { side: tile, shared } = engine.precision.tile();
    let kernel = engine.precision.pick("dense_encode_f32", "dense_encode_bf16");
    engine.allow_shared(kernel, shared);
    let operands = memory.step::<u8>(3 * side * side * engine.precision.bytes(), what)?;
    let bias = memory.step::<f32>(side, what)?;
    let matrix = |index: usize| operands.at(index * side * side * engine.precision.bytes());
    let product_s = best(engine, || {
        let n = side as u32;
        let arguments = arguments![matrix(0), matrix(1), bias.at(0), matrix(2), n, n, n, n];
        // SAFETY: three matrices of side × side values, and a bias for each column.
        unsafe { engine.enqueue(kernel, (side / tile, side / tile), shared, arguments) };
    })?;
    Ok(Peaks {
        copy_gbs: (2 * len * size_of::<f32>()) as f64 / copy_s / 1e9,
        product_gflops: 2.0 * (side as f64).powi(3) / product_s / 1e9,
    })
}

/// Seconds of the fastest of several times.
fn best(engine: &Engine, mut operation: impl FnMut()) -> Result<f64, Error> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        engine.wait()?;
        let started = Instant::now();
        operation();
        engine.wait()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}
