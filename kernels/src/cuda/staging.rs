//! How stored rows come to the card: over a stream of their own, while the kernels of the step before run.
//!
//! Three events keep the streams and the host apart: rows are not overwritten on the card before `normalize` has read them,
//! `normalize` does not read before they are there, and the host does not write before they were copied.

use cudarc::driver::CudaEvent;
use cudarc::driver::result::memcpy_htod_async;

use super::engine::Engine;
use super::memory::{Buffer, Memory, Pinned, Pointer};
use crate::Error;

/// Host memory for stored rows.
pub struct Staging(Pinned<u8>);

impl Staging {
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(engine: &Engine, bytes: usize) -> Result<Self, Error> {
        Ok(Staging(Pinned::new(engine, bytes, "staging for stored rows")?))
    }
}

/// Stored rows on the card.
pub struct Stored {
    rows: Buffer<u8>,
    /// The card has read what lies here; `None`: only measured.
    was_read: Option<CudaEvent>,
}

impl Stored {
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(bytes: usize, what: &'static str, memory: &mut Memory) -> Result<Self, Error> {
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

    /// Copies the first `bytes` bytes of `from`; whatever is enqueued next finds them here.
    pub fn copy(&mut self, engine: &Engine, from: &Staging, bytes: usize) {
        assert!(bytes <= self.rows.len(), "room for the rows");
        let (stream, copies) = (&engine.stream, &engine.copies);
        engine.note("waiting for memory of the card", copies.wait(self.was_read()));
        // SAFETY: source and target have so many bytes; `as_mut` waits until the copy is done, dropping the source waits for it,
        // and the target is freed behind what waits for it below.
        let copied = unsafe { memcpy_htod_async(self.at(), &from.as_ref()[..bytes], copies.cu_stream()) };
        engine.note("a copy to the card", copied);
        from.0.was_copied_on(engine, copies);
        engine.note("waiting for a copy to the card", stream.wait(from.0.copied()));
    }

    /// Lets others be copied here once everything enqueued so far is done.
    pub fn release(&self, engine: &Engine) {
        engine.note("an event", self.was_read().record(&engine.stream));
    }
}

impl AsRef<[u8]> for Staging {
    fn as_ref(&self) -> &[u8] {
        // A failure of the card is told by the next operation on it.
        self.0.to_send().unwrap_or_default()
    }
}

impl AsMut<[u8]> for Staging {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.settled_mut().unwrap_or_default()
    }
}
