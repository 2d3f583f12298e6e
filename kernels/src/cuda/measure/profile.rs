//! What each launch among some operations takes, and a profiler's look at them alone.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use cudarc::driver::{CudaEvent, Profiler};

use crate::Error;
use crate::cuda::device::Cuda;
use crate::cuda::runtime::gpu::failed;
use crate::cuda::runtime::launches::{Launch, Timed};

impl Cuda {
    /// Waits for what was enqueued before, runs `operations`, waits for what they enqueued, and returns the time of each launch
    /// among it, in the order in which they were enqueued. Copies and clearings of memory are no launches: they lie in the time
    /// between two.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the first failure since the GPU was opened.
    pub fn time_launches(&self, operations: impl FnOnce()) -> Result<Vec<Launch>, Error> {
        let engine = self.engine();
        engine.wait()?;
        engine.launches.on.store(true, Ordering::Relaxed);
        operations();
        engine.launches.on.store(false, Ordering::Relaxed);
        let timed = std::mem::take(&mut *engine.launches.timed.lock().unwrap_or_else(PoisonError::into_inner));
        engine.wait()?;
        let us = |from: &CudaEvent, to: &CudaEvent| {
            let ms = from.elapsed_ms(to).map_err(|error| failed("cuEventElapsedTime", error))?;
            Ok::<f64, Error>(f64::from(ms) * 1e3)
        };
        let launch = |Timed { kernel, from, to }: &Timed| {
            let operation = engine.source_of(kernel);
            Ok(Launch { kernel, operation, from_us: us(&timed[0].from, from)?, us: us(from, to)? })
        };
        timed.iter().map(launch).collect()
    }

    /// Runs `operations` and waits for them, and tells a profiler that was started with its collection off (`ncu
    /// --profile-from-start off`) to look at these alone.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn profile(&self, operations: impl FnOnce()) -> Result<(), Error> {
        let engine = self.engine();
        engine.wait()?;
        let collecting = Profiler::new().map_err(|error| failed("cuProfilerStart", error))?;
        operations();
        engine.wait()?;
        drop(collecting);
        Ok(())
    }
}
