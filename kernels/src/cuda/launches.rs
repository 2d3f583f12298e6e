//! What each launch of a kernel takes, from an event before and one behind it. Off but for inside [`Cuda::time_launches`]; then a
//! launch asks one flag and makes no event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{CudaEvent, Profiler, sys};

use super::card::failed;
use super::device::Cuda;
use super::engine::Engine;
use crate::Error;

/// The time of one launch on the card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The stem of its source, which is the operation that it belongs to.
    pub operation: &'static str,
    /// µs from the first launch on: where it began.
    pub from_us: f64,
    /// µs that it took, with what the card needs between two events, a few µs: of kernels as short as that it says little.
    pub us: f64,
}

/// The recorder of an engine.
#[derive(Default)]
pub(super) struct Launches {
    on: AtomicBool,
    timed: Mutex<Vec<Timed>>,
}

struct Timed {
    kernel: &'static str,
    from: CudaEvent,
    to: CudaEvent,
}

impl Launches {
    /// Enqueues what `launch` enqueues, between two events while times are taken.
    pub(super) fn around(&self, engine: &Engine, kernel: &'static str, launch: impl FnOnce()) {
        // One thread enqueues and switches this, so no order has to be kept.
        let events = if self.on.load(Ordering::Relaxed) { events(engine) } else { None };
        let Some((from, to)) = events else { return launch() };
        engine.note("an event", from.record(&engine.stream));
        launch();
        engine.note("an event", to.record(&engine.stream));
        self.timed.lock().unwrap_or_else(PoisonError::into_inner).push(Timed { kernel, from, to });
    }
}

/// Two that know their time.
fn events(engine: &Engine) -> Option<(CudaEvent, CudaEvent)> {
    let event = || engine.stream.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
    Some((engine.note("cuEventCreate", event())?, engine.note("cuEventCreate", event())?))
}

impl Cuda {
    /// Waits for what was enqueued before, runs `operations`, waits for what they enqueued, and returns the time of each launch
    /// among it, in the order in which they were enqueued. Copies and clearings of memory are no launches: they lie in the time
    /// between two.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the first failure since the card was opened.
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
