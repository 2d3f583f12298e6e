//! The rate at which a GPU copies, measured with code that does nothing else. The rate at which it multiplies is that of cuBLAS:
//! see [`super::cublas`].

use std::sync::Arc;
use std::time::Instant;

use crate::Error;
use crate::cuda::device::Cuda;
use crate::cuda::runtime::engine::Engine;
use crate::cuda::runtime::memory::GpuMemory;

const REPEATS: usize = 5;

impl Cuda {
    /// 10⁹ bytes a second, read and written, of a copy on the GPU; `small` where times mean nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn copy_gbs(&self, small: bool) -> Result<f64, Error> {
        let mut memory = GpuMemory::of(self.engine());
        let what = "the measurement of a copy";
        let len = if small { 1 << 10 } else { 1 << 28 };
        let (from, mut to) = (memory.step::<f32>(len, what)?, memory.step::<f32>(len, what)?);
        let copy_s = best(self.engine(), || to.copy(&from, len))?;
        Ok((2 * len * size_of::<f32>()) as f64 / copy_s / 1e9)
    }
}

/// Seconds of the fastest of several times.
fn best(engine: &Arc<Engine>, mut operation: impl FnMut()) -> Result<f64, Error> {
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
