//! How stored rows come to the GPU: over a stream of their own, while the kernels of the step before run.
//!
//! Three events keep the streams and the host apart: rows are not overwritten on the GPU before `normalize` has read them,
//! `normalize` does not read before they are there, and the host does not write before they were copied.

use std::ops::Range;

use cudarc::driver::CudaEvent;
use cudarc::driver::result::memcpy_htod_async;

use super::engine::Engine;
use super::memory::{Buffer, GpuMemory, Pinned};
use super::pointer::Pointer;
use crate::Error;
use crate::cuda::ranks::communicator::Message;

/// Host memory for stored rows.
pub struct Staging {
    rows: Pinned<u8>,
    /// Where the rows of each rank of the feature axis belong, when only those of this one lie here.
    parts: Option<Vec<Range<usize>>>,
}

impl Staging {
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(engine: &Engine, bytes: usize) -> Result<Self, Error> {
        Ok(Staging { rows: Pinned::new(engine, bytes, "staging for stored rows")?, parts: None })
    }

    /// The rows of the batch lie in `parts` on the ranks of the feature axis: GPUs exchange them when they have been copied.
    pub fn belongs_to(&mut self, parts: &[Range<usize>]) {
        self.parts = Some(parts.to_vec());
    }
}

/// Stored rows on the GPU.
pub struct Stored {
    rows: Buffer<u8>,
    /// The GPU has read what lies here; `None`: only measured.
    was_read: Option<CudaEvent>,
}

impl Stored {
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(bytes: usize, what: &'static str, memory: &mut GpuMemory) -> Result<Self, Error> {
        let rows = memory.step(bytes, what)?;
        let was_read = memory.engine().map(|engine| engine.event()).transpose()?;
        let stored = Stored { rows, was_read };
        if let Some(engine) = memory.engine() {
            // The other stream must not come before the memory is there.
            stored.release(engine);
        }
        Ok(stored)
    }

    /// Where they begin.
    pub fn at(&self) -> Pointer {
        self.rows.at(0)
    }

    fn was_read(&self) -> &CudaEvent {
        self.was_read.as_ref().expect("memory that was taken, not measured")
    }

    /// Copies the first `bytes` bytes of a batch to here; whatever is enqueued next finds them. Of several ranks on the feature
    /// axis each copies its own, and sends them to the others.
    pub fn fill(&mut self, engine: &Engine, from: &Staging, bytes: usize) {
        let Some(parts) = &from.parts else { return self.copy(engine, from, 0..bytes, 0) };
        let axis = &engine.axes.feature;
        let place = |member: usize| {
            let start = parts[..member].iter().map(Range::len).sum();
            start..start + parts[member].len()
        };
        self.copy(engine, from, parts[axis.index()].clone(), place(axis.index()).start);
        let own = self.rows.part(place(axis.index()));
        let message = |member| Message { member, sent: own, received: self.rows.part(place(member)) };
        let messages: Vec<Message> = (0..axis.size()).map(message).collect();
        // SAFETY: places lie behind each other in a buffer of this engine.
        unsafe { engine.exchange(axis, &messages) };
    }

    fn copy(&mut self, engine: &Engine, from: &Staging, bytes: Range<usize>, to: usize) {
        assert!(to + bytes.len() <= self.rows.len(), "room for the rows");
        let (stream, copies) = (&engine.stream, &engine.copies);
        engine.note("waiting for memory of the GPU", copies.wait(self.was_read()));
        // SAFETY: source and target have so many bytes; `as_mut` waits until the copy is done, dropping the source waits for it,
        // and the target is freed behind what waits for it below.
        let copied = unsafe { memcpy_htod_async(self.rows.at(to), &from.as_ref()[bytes], copies.cu_stream()) };
        engine.note("a copy to the GPU", copied);
        from.rows.was_copied_on(engine, copies);
        engine.note("waiting for a copy to the GPU", stream.wait(from.rows.copied()));
    }

    /// Lets others be copied here once everything enqueued so far is done.
    pub fn release(&self, engine: &Engine) {
        engine.note("an event", self.was_read().record(&engine.stream));
    }
}

impl AsRef<[u8]> for Staging {
    fn as_ref(&self) -> &[u8] {
        // The next operation on the GPU returns its failure.
        self.rows.to_send().unwrap_or_default()
    }
}

impl AsMut<[u8]> for Staging {
    fn as_mut(&mut self) -> &mut [u8] {
        // To write is to begin another batch.
        self.parts = None;
        self.rows.settled_mut().unwrap_or_default()
    }
}
