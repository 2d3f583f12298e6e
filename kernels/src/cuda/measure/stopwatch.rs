//! What an operation takes on a GPU, from events before and behind it.
//!
//! What stands between the events is enqueued while the GPU still overwrites its cache, so the time holds no launch from the
//! host, only the gaps between kernels; and every repeat begins with a cache of other data.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, sys};

use crate::Error;
use crate::cuda::device::Cuda;
use crate::cuda::runtime::engine::Engine;
use crate::cuda::runtime::gpu::failed;
use crate::cuda::runtime::memory::{Buffer, GpuMemory};

/// Twice the L2 cache of the largest GPU known (126 MB).
const FLUSH_BYTES: usize = 256 << 20;
/// Where times mean nothing.
const SMALL_FLUSH_BYTES: usize = 1 << 10;

/// Takes times of operations on a GPU.
pub struct Stopwatch {
    engine: Arc<Engine>,
    flush: Buffer<u8>,
    spans: Vec<(CudaEvent, CudaEvent)>,
}

impl Stopwatch {
    /// `small` where times mean nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(device: &Cuda, small: bool) -> Result<Self, Error> {
        let engine = device.engine().clone();
        let bytes = if small { SMALL_FLUSH_BYTES } else { FLUSH_BYTES };
        let flush = GpuMemory::of(&engine).step(bytes, "what flushes a cache")?;
        Ok(Stopwatch { engine, flush, spans: Vec::new() })
    }

    /// The time of what is enqueued inside `operation`, with everything before it done and the cache flushed. Does not wait.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn time(&mut self, operation: impl FnOnce()) -> Result<(), Error> {
        let (from, to) = (self.event()?, self.event()?);
        self.flush.clear();
        self.engine.note("an event", from.record(&self.engine.stream));
        operation();
        self.engine.note("an event", to.record(&self.engine.stream));
        self.spans.push((from, to));
        Ok(())
    }

    /// Waits; ascending µs of the spans since the last call.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn take(&mut self) -> Result<Vec<f64>, Error> {
        self.engine.wait()?;
        let time = |(from, to): (CudaEvent, CudaEvent)| {
            let ms = from.elapsed_ms(&to).map_err(|error| failed("cuEventElapsedTime", error))?;
            Ok(f64::from(ms) * 1e3)
        };
        let mut times: Vec<f64> = self.spans.drain(..).map(time).collect::<Result<_, Error>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    /// One that knows its time.
    fn event(&self) -> Result<CudaEvent, Error> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.engine.stream.context().new_event(flags).map_err(|error| failed("cuEventCreate", error))
    }
}
