//! Memory of fixed size, taken once: aligned to cache lines, on huge pages where Linux offers them, zeroed.
//!
//! Huge pages matter because decode and backward gather rows from all over the weights: with 4 KiB pages nearly every
//! row is a TLB miss. `Vec` gives neither the alignment nor the advice.

use crate::Error;
use bytemuck::Pod;
use std::alloc::{Layout, alloc, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// `len` values that stay where they are.
pub struct Buffer<T: Pod> {
    at: NonNull<T>,
    len: usize,
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
        let too_large = |bytes| Error::OutOfMemory { what, bytes };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(too_large(usize::MAX))?;
        let layout = Self::layout(len).ok_or(too_large(bytes))?;
        // SAFETY: `layout` is never of size 0.
        let at = NonNull::new(unsafe { alloc(layout) }).ok_or(too_large(bytes))?;
        advise_huge_pages(at, layout);
        // SAFETY: the allocation has `layout.size()` bytes, and zero bytes are a value of every `Pod` type.
        unsafe { at.write_bytes(0, layout.size()) };
        Ok(Buffer { at: at.cast(), len })
    }

    /// A function of `len` alone: memory is given back with the layout with which it was taken.
    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>())?.max(CACHE_LINE);
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        Layout::from_size_align(bytes, align).ok()
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: `at` came from `alloc` with this layout.
            unsafe { dealloc(self.at.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `at` points to `len` initialised values, aligned to 64 bytes.
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
fn advise_huge_pages(at: NonNull<u8>, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE_PAGE {
        const MADV_HUGEPAGE: i32 = 14;
        unsafe extern "C" {
            fn madvise(at: *mut u8, bytes: usize, advice: i32) -> i32;
        }
        // SAFETY: the range belongs to the allocation, and the advice does not change its contents.
        unsafe { madvise(at.as_ptr(), layout.size(), MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, layout);
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
