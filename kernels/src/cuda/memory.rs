//! Memory on the card: taken once, of fixed size, zeroed; or only measured.

use std::sync::Arc;

use cudarc::driver::result::memcpy_htod_async;
use cudarc::driver::{CudaEvent, CudaSlice, DevicePtr, DeviceRepr, DriverError, PinnedHostSlice, ValidAsZeroBits};

use super::engine::Engine;
use crate::{Bytes, Error};

/// A place in the card's memory, as kernels take it.
pub type Pointer = u64;

/// Takes memory, or adds up what would be taken.
pub struct Memory<'a> {
    /// `None`: nothing is taken.
    from: Option<&'a Arc<Engine>>,
    pub bytes: Bytes,
}

impl<'a> Memory<'a> {
    pub fn of(engine: &'a Arc<Engine>) -> Self {
        Memory { from: Some(engine), bytes: Bytes::default() }
    }

    pub fn measured() -> Self {
        Memory { from: None, bytes: Bytes::default() }
    }

    /// Whether memory is taken.
    pub fn is_real(&self) -> bool {
        self.from.is_some()
    }

    /// Room for `len` zeros that belong to a dictionary as long as it lives.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn weights<T: DeviceRepr + ValidAsZeroBits + Copy>(&mut self, len: usize) -> Result<Buffer<T>, Error> {
        let buffer = self.take(len, "a dictionary's weights and moments")?;
        self.bytes.weights += buffer.bytes();
        Ok(buffer)
    }

    /// Room for `len` zeros that the operations of a step leave for each other; `what` names the object in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn step<T: DeviceRepr + ValidAsZeroBits + Copy>(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<Buffer<T>, Error> {
        let buffer = self.take(len, what)?;
        self.bytes.step += buffer.bytes();
        Ok(buffer)
    }

    /// At least one value, so that there is an address.
    fn take<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize, what: &'static str) -> Result<Buffer<T>, Error> {
        let len = len.max(1);
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Error::OutOfMemory { what, bytes: usize::MAX })?;
        let Some(engine) = self.from else { return Ok(Buffer { slice: None, at: 0, len }) };
        engine.check()?;
        let slice = engine.stream.alloc_zeros::<T>(len).map_err(|_| Error::OutOfMemory { what, bytes })?;
        let at = slice.device_ptr(&engine.stream).0;
        Ok(Buffer { slice: Some((engine.clone(), slice)), at, len })
    }
}

/// `len` values that stay where they are.
pub struct Buffer<T> {
    slice: Option<(Arc<Engine>, CudaSlice<T>)>,
    at: Pointer,
    len: usize,
}

impl<T: DeviceRepr + ValidAsZeroBits + Copy> Buffer<T> {
    /// Where value `index` lies.
    pub fn at(&self, index: usize) -> Pointer {
        assert!(index <= self.len, "a place inside the buffer");
        self.at + (index * size_of::<T>()) as u64
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    fn parts(&mut self) -> (&Arc<Engine>, &mut CudaSlice<T>) {
        let (engine, slice) = self.slice.as_mut().expect("memory that was taken, not measured");
        (engine, slice)
    }

    /// Sets all values to 0.
    pub fn clear(&mut self) {
        let (engine, slice) = self.parts();
        engine.note("memset", engine.stream.memset_zeros(slice));
    }

    /// Copies `values` to the places from `first` on.
    pub fn write(&mut self, first: usize, values: &[T]) {
        let len = values.len();
        if len == 0 {
            return;
        }
        let (engine, slice) = self.parts();
        engine.note("a copy to the card", engine.stream.memcpy_htod(values, &mut slice.slice_mut(first..first + len)));
    }

    /// Waits, and copies the values from `first` on to `out`.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn read(&self, first: usize, out: &mut [T]) -> Result<(), Error> {
        let (engine, slice) = self.slice.as_ref().expect("memory that was taken, not measured");
        let len = out.len();
        engine.check()?;
        engine.note("a copy from the card", engine.stream.memcpy_dtoh(&slice.slice(first..first + len), out));
        engine.wait()
    }

    /// Enqueues a copy of the first `len` values of `from`.
    pub fn copy(&mut self, from: &Buffer<T>, len: usize) {
        let (_, source) = from.slice.as_ref().expect("memory that was taken, not measured");
        let (engine, slice) = self.parts();
        engine.note("a copy on the card", engine.stream.memcpy_dtod(&source.slice(..len), &mut slice.slice_mut(..len)));
    }
}

/// Host memory that the card reads at full speed.
pub struct Staging {
    pinned: PinnedHostSlice<u8>,
    /// The card has read what lies here.
    was_read: CudaEvent,
}

impl Staging {
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(engine: &Engine, bytes: usize) -> Result<Self, Error> {
        let bytes = bytes.max(1);
        let failed = |error: DriverError| Error::Cuda { call: "making an event", reason: error.to_string() };
        let context = engine.stream.context();
        let was_read = context.new_event(None).map_err(failed)?;
        // SAFETY: every byte is set below. Cached, not write-combined: names of rows are looked up in it.
        let pinned = unsafe { context.alloc_pinned_with_flags::<u8>(bytes, 0) };
        let mut pinned = pinned.map_err(|_| Error::OutOfMemory { what: "staging for stored rows", bytes })?;
        pinned.as_mut_slice().map_err(failed)?.fill(0);
        Ok(Staging { pinned, was_read })
    }

    /// Enqueues a copy of the first `bytes` bytes to `to`. Whoever writes here next waits for it.
    pub fn send(&self, engine: &Engine, to: &mut Buffer<u8>, bytes: usize) {
        assert!(bytes <= to.len, "room for the rows");
        let stream = &engine.stream;
        // SAFETY: source and target have so many bytes; `as_mut` waits until the copy is done, and dropping the pinned memory
        // waits for the card.
        let copied = unsafe { memcpy_htod_async(to.at, &self.as_ref()[..bytes], stream.cu_stream()) };
        engine.note("a copy to the card", copied);
        engine.note("an event", self.was_read.record(stream));
    }
}

impl AsRef<[u8]> for Staging {
    fn as_ref(&self) -> &[u8] {
        // A failure of the card is told by the next operation on it.
        self.pinned.as_slice().unwrap_or_default()
    }
}

impl AsMut<[u8]> for Staging {
    fn as_mut(&mut self) -> &mut [u8] {
        match self.was_read.synchronize() {
            Ok(()) => self.pinned.as_mut_slice().unwrap_or_default(),
            Err(_) => &mut [],
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A card that has failed reads nothing any more.
        let _ = self.was_read.synchronize();
    }
}
