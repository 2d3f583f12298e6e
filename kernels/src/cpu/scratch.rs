//! Memory of a worker during a task.

use super::encode;
use super::memory::{Buffer, Memory};
use super::{dense, screen};
use crate::{Error, Shape};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Values of the largest product of a task: two of the dense path's, or one of the f32 screen's.
const PRODUCT: usize = {
    let (dense, screen) = (2 * dense::TOKENS_MAX * dense::TILE, encode::TILE * screen::PRODUCT_TOKENS);
    if dense > screen { dense } else { screen }
};

/// What a task of any operation may write.
pub struct Scratch {
    /// One bit per (feature of a tile of encode, token).
    pub marks: Buffer<u64>,
    /// Where the next marked pair of each feature of the tile goes.
    pub next: Vec<u32>,
    /// Results of a product.
    pub product: Buffer<f32>,
    /// Gradient rows of a feature.
    pub enc_d: Buffer<f32>,
    pub dec_d: Buffer<f32>,
}

/// The scratch of every worker.
pub struct Workers(Vec<Mutex<Scratch>>);

impl Workers {
    /// For `threads` workers, and padded rows of `stride` values.
    pub fn new(threads: usize, shape: &Shape, stride: usize, memory: &mut Memory) -> Result<Self, Error> {
        let what = "scratch of the worker threads";
        let scratch = |_| {
            Ok(Mutex::new(Scratch {
                marks: memory.step(encode::TILE * shape.batch.div_ceil(screen::PANEL), what)?,
                next: Vec::with_capacity(encode::TILE),
                product: memory.step(PRODUCT, what)?,
                enc_d: memory.step(stride, what)?,
                dec_d: memory.step(stride, what)?,
            }))
        };
        Ok(Workers((0..threads).map(scratch).collect::<Result<_, Error>>()?))
    }

    /// Scratch of the worker that asks.
    pub fn scratch(&self) -> MutexGuard<'_, Scratch> {
        let worker = rayon::current_thread_index().unwrap_or(0);
        self.0[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
