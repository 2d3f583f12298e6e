//! What each launch of a kernel takes, from an event before and one behind it. Off but for inside [`crate::cuda::Cuda::time_launches`]; then a
//! launch asks one flag and makes no event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaEvent, CudaStream, sys};

use super::gpu::noted;
use crate::first_error::FirstError;

/// The time of one launch on the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The stem of its source, which is the operation that it belongs to.
    pub operation: &'static str,
    /// µs from the first launch on: where it began.
    pub from_us: f64,
    /// µs that it took, with what the GPU needs between two events, a few µs: of kernels as short as that it says little.
    pub us: f64,
}

/// The recorder of an engine.
#[derive(Default)]
pub(crate) struct Launches {
    pub(crate) on: AtomicBool,
    pub(crate) timed: Mutex<Vec<Timed>>,
}

pub(crate) struct Timed {
    pub kernel: &'static str,
    pub from: CudaEvent,
    pub to: CudaEvent,
}

impl Launches {
    /// Enqueues what `launch` enqueues, between two events while times are taken.
    pub(crate) fn around(
        &self,
        stream: &Arc<CudaStream>,
        failure: &FirstError,
        kernel: &'static str,
        launch: impl FnOnce(),
    ) {
        // One thread enqueues and switches this, so no order has to be kept.
        let events = if self.on.load(Ordering::Relaxed) { events(stream, failure) } else { None };
        let Some((from, to)) = events else { return launch() };
        noted(failure, "an event", from.record(stream));
        launch();
        noted(failure, "an event", to.record(stream));
        self.timed.lock().unwrap_or_else(PoisonError::into_inner).push(Timed { kernel, from, to });
    }
}

/// Two that know their time.
fn events(stream: &Arc<CudaStream>, failure: &FirstError) -> Option<(CudaEvent, CudaEvent)> {
    let event = || stream.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
    Some((noted(failure, "cuEventCreate", event())?, noted(failure, "cuEventCreate", event())?))
}
