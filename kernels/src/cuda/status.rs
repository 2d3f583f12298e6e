//! What the kernels of a step tell each other and the host: `status.cuh`.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

/// See `Status` in status.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    pub bad_rows: u32,
    pub overflow: u32,
    pub ok: u32,
    unused: u32,
    pub active: u64,
    pub squared_error: f64,
    pub l1: f64,
    pub gradient_norm: f64,
}

// SAFETY: plain numbers, laid out as in status.cuh.
unsafe impl DeviceRepr for Status {}
// SAFETY: all fields may be 0.
unsafe impl ValidAsZeroBits for Status {}
