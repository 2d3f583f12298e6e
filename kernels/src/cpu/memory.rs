//! Memory of fixed size, reserved once: aligned to cache lines, on huge pages where Linux offers them, zeroed.
//!
//! Huge pages matter because decode and backward gather rows from all over the weights: with 4 KiB pages nearly every
//! row is a TLB miss. `Vec` gives neither the alignment nor the advice.
//!
//! Nothing is written when memory is taken: fresh pages of the system are zeros, and cost addresses only until they are
//! first used. So what only the dense path needs costs nothing in a run that never takes it.

use crate::{Bytes, Error};
use bytemuck::Pod;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// Where the buffers of an object come from: adds up what they take.
pub struct HostMemory {
    /// Takes nothing: buffers are empty.
    measures: bool,
    bytes: Bytes,
}

impl HostMemory {
    /// Buffers are what was asked for.
    pub fn taken() -> Self {
        HostMemory { measures: false, bytes: Bytes::default() }
    }

    /// What the objects take that `make` makes; they are empty, and only fit to be dropped.
    pub fn measure(make: impl FnOnce(&mut HostMemory) -> Result<(), Error>) -> Bytes {
        let mut memory = HostMemory { measures: true, bytes: Bytes::default() };
        make(&mut memory).expect("nothing is taken");
        memory.bytes
    }

    /// `len` zeros that belong to a dictionary as long as it lives.
    pub fn weights<T: Pod>(&mut self, len: usize) -> Result<Buffer<T>, Error> {
        self.bytes.weights += (len * size_of::<T>()) as u64;
        self.buffer(len, "a dictionary's weights and moments")
    }

    /// `len` zeros that the operations of a step leave for each other; `what` names the object in the error.
    pub fn step<T: Pod>(&mut self, len: usize, what: &'static str) -> Result<Buffer<T>, Error> {
        self.bytes.step += (len * size_of::<T>()) as u64;
        self.buffer(len, what)
    }

    /// `count` lists, which take their memory as they grow.
    pub fn lists<T: Default>(&self, count: usize) -> Vec<T> {
        std::iter::repeat_with(T::default).take(if self.measures { 0 } else { count }).collect()
    }

    fn buffer<T: Pod>(&self, len: usize, what: &'static str) -> Result<Buffer<T>, Error> {
        Buffer::new(if self.measures { 0 } else { len }, what)
    }
}

/// `len` values that stay where they are.
pub struct Buffer<T: Pod> {
    at: NonNull<T>,
    len: usize,
    /// What the allocator gave: `at` is the first aligned address in it.
    allocation: NonNull<u8>,
}

// SAFETY: a buffer owns its memory as `Box<[T]>` does, and `Pod` values may be sent and shared.
unsafe impl<T: Pod> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Pod> Sync for Buffer<T> {}

impl<T: Pod> Buffer<T> {
    /// Takes memory for `len` zeros; `what` names the object in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(len: usize, what: &'static str) -> Result<Self, Error> {
        let too_large = |bytes| Error::out_of_memory(what, bytes);
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| too_large(usize::MAX))?;
        let (layout, align) = Self::layout(len).ok_or_else(|| too_large(bytes))?;
        // SAFETY: `layout` is never of size 0.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| too_large(bytes))?;
        // SAFETY: the layout has room for `align` bytes more than the values take.
        let at = unsafe { allocation.add(allocation.align_offset(align)) };
        if align == HUGE_PAGE {
            advise_huge_pages(at, bytes);
        }
        Ok(Buffer { at: at.cast(), len, allocation })
    }

    /// What is asked of the allocator, and the alignment that is found in it. A function of `len` alone: memory is given
    /// back with the layout with which it was taken. Asked for more than its usual alignment, the allocator would write
    /// the zeros itself.
    fn layout(len: usize) -> Option<(Layout, usize)> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        Some((Layout::from_size_align(bytes.checked_add(align)?, 1).ok()?, align))
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some((layout, _)) = Self::layout(self.len) {
            // SAFETY: `allocation` came from `alloc_zeroed` with this layout.
            unsafe { dealloc(self.allocation.as_ptr(), layout) };
        }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `at` points to `len` values, aligned to 64 bytes, and zero bytes are a value of every `Pod` type.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

/// Advice only: what the kernel makes of it changes speed, not results.
fn advise_huge_pages(at: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        const MADV_HUGEPAGE: i32 = 14;
        unsafe extern "C" {
            fn madvise(at: *mut u8, bytes: usize, advice: i32) -> i32;
        }
        // SAFETY: the range belongs to the allocation, and the advice does not change its contents.
        unsafe { madvise(at.as_ptr(), bytes, MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, bytes);
}

/// Rows of a slice that several tasks write at once, each its own rows.
pub struct SharedRows<'a, T> {
    at: *mut T,
    rows: usize,
    width: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `row`, whose caller promises that no row is used by two tasks.
unsafe impl<T: Send> Sync for SharedRows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedRows<'_, T> {}

impl<'a, T> SharedRows<'a, T> {
    /// Rows of `width` values.
    pub fn new(values: &'a mut [T], width: usize) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "whole rows");
        SharedRows { at: values.as_mut_ptr(), rows: values.len() / width, width, of: PhantomData }
    }

    /// Row `index`.
    ///
    /// # Safety
    /// While the reference lives, nobody else asks for this row.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, index: usize) -> &mut [T] {
        assert!(index < self.rows);
        // SAFETY: the row lies inside the slice by the assertion; the caller promises that it is not aliased.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(index * self.width), self.width) }
    }
}
