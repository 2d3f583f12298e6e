//! Memory on the GPU: taken once, of fixed size, zeroed; or only measured.
//!
//! **A GPU's memory comes from the pool of its stream, or without one where the driver has none** (`cuMemAllocAsync`, then `cuMemAlloc`).
//! Of the codes that an allocation ends with, only that of too little memory is reported as such, and exits with 64: a smaller dictionary
//! would not help against the others.
//!
//! **Copies to a GPU from ordinary memory are waited for.** On hosts whose memory a GPU reads by itself (GH200) such a copy may begin
//! after the call has returned, and what it copies is often a vector on its way out. Only rows come from pinned memory that outlives the
//! copy, and they are what a step waits for. `EMULATOR_COHERENT` makes the emulator such a host.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, PinnedHostSlice, ValidAsZeroBits, result,
};

use super::engine::Engine;
use super::gpu::failed;
use super::pointer::{Part, Pointer};
use crate::{Bytes, Error};

/// Takes memory, or adds up what would be taken.
pub struct GpuMemory<'a> {
    /// `None`: nothing is taken.
    from: Option<&'a Arc<Engine>>,
    pub bytes: Bytes,
}

impl<'a> GpuMemory<'a> {
    pub fn of(engine: &'a Arc<Engine>) -> Self {
        GpuMemory { from: Some(engine), bytes: Bytes::default() }
    }

    pub fn measured() -> Self {
        GpuMemory { from: None, bytes: Bytes::default() }
    }

    /// Whether memory is taken.
    pub fn is_real(&self) -> bool {
        self.from.is_some()
    }

    /// Where memory is taken from, if it is.
    pub fn engine(&self) -> Option<&'a Arc<Engine>> {
        self.from
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
    fn take<T: DeviceRepr + ValidAsZeroBits + Copy>(&self, len: usize, what: &'static str) -> Result<Buffer<T>, Error> {
        let len = len.max(1);
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::out_of_memory(what, usize::MAX))?;
        let Some(engine) = self.from else { return Ok(Buffer { slice: None, outside_pool: false, at: 0, len }) };
        engine.check()?;
        // SAFETY: all values are set below.
        let (call, taken) = match unsafe { engine.stream.alloc::<T>(len) } {
            Err(DriverError(CUresult::CUDA_ERROR_NOT_SUPPORTED)) => ("cuMemAlloc", alloc_outside_pool(engine, len)),
            taken => ("cuMemAllocAsync", taken.map(|slice| (slice, false))),
        };
        let (slice, outside_pool) = taken.map_err(|error| not_given(call, error, what, bytes))?;
        let at = slice.device_ptr(&engine.stream).0;
        let mut buffer = Buffer { slice: Some((engine.clone(), slice)), outside_pool, at, len };
        buffer.clear();
        engine.check()?;
        Ok(buffer)
    }

    /// Host memory for copies of `len` values; they are zeros before the first.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn readback<T: DeviceRepr + ValidAsZeroBits + Copy + Default>(
        &self,
        len: usize,
        what: &'static str,
    ) -> Result<Readback<T>, Error> {
        let pinned = self.from.map(|engine| Pinned::new(engine, len, what)).transpose()?;
        Ok(Readback { pinned })
    }
}

/// Memory for `len` values where the driver has no pool of which a stream could take some, as some virtual GPUs do though they say
/// otherwise.
fn alloc_outside_pool<T>(engine: &Engine, len: usize) -> Result<(CudaSlice<T>, bool), DriverError> {
    engine.stream.context().bind_to_thread()?;
    // SAFETY: the memory has room for so many values, which the caller sets, and nobody else frees it.
    Ok((unsafe { engine.stream.upgrade_device_ptr(result::malloc_sync(len * size_of::<T>())?, len) }, true))
}

/// Why the driver does not give memory: only one of its codes means that there is too little.
fn not_given(call: &'static str, error: DriverError, what: &'static str, bytes: usize) -> Error {
    match failed(call, error) {
        Error::Cuda { reason, .. } if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            Error::OutOfMemory { what, bytes, said: format!(" ({call}: {reason})") }
        }
        Error::Cuda { call, reason } => Error::Cuda { call, reason: format!("{reason}, for {what} of {bytes} bytes") },
        other => other,
    }
}

/// Host memory that the GPU reads and writes at full speed, with the end of the last copy from it or to it.
pub struct Pinned<T> {
    values: PinnedHostSlice<T>,
    copied: CudaEvent,
}

impl<T: DeviceRepr + ValidAsZeroBits + Copy + Default> Pinned<T> {
    /// `len` zeros; at least one value, so that there is an address.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(engine: &Engine, len: usize, what: &'static str) -> Result<Self, Error> {
        let len = len.max(1);
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::out_of_memory(what, usize::MAX))?;
        let copied = engine.event()?;
        // SAFETY: every value is set below. Cached, not write-combined: the host reads in it.
        let values = unsafe { engine.stream.context().alloc_pinned_with_flags::<T>(len, 0) };
        let mut values = values.map_err(|error| not_given("cuMemHostAlloc", error, what, bytes))?;
        values.as_mut_slice().map_err(|error| failed("cuMemHostAlloc", error))?.fill(T::default());
        Ok(Pinned { values, copied })
    }
}

impl<T: ValidAsZeroBits> Pinned<T> {
    /// The copy enqueued last on `stream` was one of these values.
    pub fn was_copied_on(&self, engine: &Engine, stream: &CudaStream) {
        engine.note("an event", self.copied.record(stream));
    }

    /// The end of the last copy.
    pub fn copied(&self) -> &CudaEvent {
        &self.copied
    }

    /// Without waiting: the GPU may be about to read them.
    pub fn to_send(&self) -> Result<&[T], DriverError> {
        self.values.as_slice()
    }

    /// Waits for the last copy.
    pub fn settled(&self) -> Result<&[T], DriverError> {
        self.copied.synchronize()?;
        self.values.as_slice()
    }

    /// As [`Pinned::settled`].
    pub fn settled_mut(&mut self) -> Result<&mut [T], DriverError> {
        self.copied.synchronize()?;
        self.values.as_mut_slice()
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // A GPU that has failed copies nothing any more.
        let _ = self.copied.synchronize();
    }
}

/// `len` values that stay where they are.
pub struct Buffer<T> {
    /// `None`: only measured.
    slice: Option<(Arc<Engine>, CudaSlice<T>)>,
    /// It was taken by [`alloc_outside_pool`], and has to be given back likewise.
    outside_pool: bool,
    at: Pointer,
    len: usize,
}

impl<T: DeviceRepr + ValidAsZeroBits + Copy> Buffer<T> {
    /// Some of its values.
    pub fn part(&self, range: Range<usize>) -> Part {
        assert!(range.end <= self.len, "values inside the buffer");
        Part { at: self.at(range.start), bytes: range.len() * size_of::<T>() }
    }

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

    /// Copies `values` to the places from `first` on, and waits for it: a host whose ordinary memory the GPU reads by itself
    /// (GH200) may begin the copy only after the call has returned, when the values may be gone.
    pub fn write(&mut self, first: usize, values: &[T]) {
        let len = values.len();
        if len == 0 {
            return;
        }
        let (engine, slice) = self.parts();
        let copied = engine.stream.memcpy_htod(values, &mut slice.slice_mut(first..first + len));
        engine.note("a copy to the GPU", copied.and_then(|()| engine.stream.synchronize()));
    }

    /// Waits, and copies the values from `first` on to `out`.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn read(&self, first: usize, out: &mut [T]) -> Result<(), Error> {
        let (engine, slice) = self.slice.as_ref().expect("memory that was taken, not measured");
        let len = out.len();
        engine.check()?;
        if len > 0 {
            engine.note("a copy from the GPU", engine.stream.memcpy_dtoh(&slice.slice(first..first + len), out));
        }
        engine.wait()
    }

    /// Enqueues a copy of the first `len` values of `from`.
    pub fn copy(&mut self, from: &Buffer<T>, len: usize) {
        let (_, source) = from.slice.as_ref().expect("memory that was taken, not measured");
        let (engine, slice) = self.parts();
        engine.note("a copy on the GPU", engine.stream.memcpy_dtod(&source.slice(..len), &mut slice.slice_mut(..len)));
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.outside_pool
            && let Some((engine, slice)) = self.slice.take()
        {
            // A GPU that has failed frees nothing any more.
            let _ = engine.stream.synchronize();
            // SAFETY: it came from `malloc_sync`, and what was enqueued on it is done.
            let _ = unsafe { result::free_sync(slice.leak()) };
        }
    }
}

/// Host memory to which the GPU copies `len` values behind what it does at that moment, while both go on.
pub struct Readback<T> {
    /// `None`: only measured.
    pinned: Option<Pinned<T>>,
}

impl<T: DeviceRepr + ValidAsZeroBits + Copy> Readback<T> {
    /// Enqueues a copy of all values of `from`.
    pub fn send(&mut self, from: &Buffer<T>) {
        let (engine, slice) = from.slice.as_ref().expect("memory that was taken, not measured");
        let pinned = self.pinned.as_mut().expect("memory that was taken, not measured");
        engine.note("a copy from the GPU", engine.stream.memcpy_dtoh(slice, &mut pinned.values));
        pinned.was_copied_on(engine, &engine.stream);
    }

    /// Waits for the last copy, and for nothing that was enqueued after it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn read(&self, engine: &Engine) -> Result<&[T], Error> {
        engine.check()?;
        let pinned = self.pinned.as_ref().expect("memory that was taken, not measured");
        let values = engine.note("the operations before it", pinned.settled());
        engine.check()?;
        Ok(values.expect("a failure was told above"))
    }
}
