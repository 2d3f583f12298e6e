//! Memory of a worker during a task.

use super::codes;
use super::memory::{Buffer, HostMemory};
use super::screen::PANEL;
use crate::{Error, Shape};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a task of any operation may write.
pub struct Scratch {
    /// One bit per (feature of a tile of encode, token).
    pub marks: Buffer<u64>,
    /// Where the next marked pair of each feature of the tile goes.
    pub next: Vec<u32>,
    /// Results of a GEMM.
    pub gemm: Buffer<f32>,
    /// Gradient rows of a feature.
    pub enc_d: Buffer<f32>,
    pub dec_d: Buffer<f32>,
}

/// Values that it has room for.
#[derive(Clone, Copy)]
pub struct ScratchSize {
    /// Of a GEMM, at most.
    pub gemm: usize,
    /// Of a padded row.
    pub row: usize,
}

/// The scratch of every worker.
pub struct Workers(Vec<Mutex<Scratch>>);

impl Workers {
    /// For `threads` workers.
    pub fn new(threads: usize, shape: &Shape, size: ScratchSize, memory: &mut HostMemory) -> Result<Self, Error> {
        let what = "scratch of the worker threads";
        let scratch = |_| {
            Ok(Mutex::new(Scratch {
                marks: memory.step(codes::TILE * shape.batch.div_ceil(PANEL), what)?,
                next: Vec::with_capacity(codes::TILE),
                gemm: memory.step(size.gemm, what)?,
                enc_d: memory.step(size.row, what)?,
                dec_d: memory.step(size.row, what)?,
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
