//! Launches `count.cu`: sums over counted tokens.

use std::ops::Range;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::Cost;
use super::normalize::Rows;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, Memory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::stride;
use crate::{Error, Sums};

/// `Tally` in count.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    rows: u64,
    active: u64,
    squared_error: f64,
    squared_norm: f64,
    l1: f64,
}
// SAFETY: the same numbers in the same order.
unsafe impl DeviceRepr for Totals {}
// SAFETY: all fields may be 0.
unsafe impl ValidAsZeroBits for Totals {}

/// Sums kept on the GPU.
pub struct Tally {
    width: usize,
    totals: Buffer<Totals>,
    x_s: Buffer<f64>,
    fired_f: Buffer<u64>,
}

/// What is counted of a batch.
pub struct Counted<'a> {
    pub tokens: Range<usize>,
    pub error_b: &'a Buffer<f64>,
    pub l1_b: &'a Buffer<f64>,
    /// Firings: of all tokens, or of those counted when the pairs are not given.
    pub count_f: &'a Buffer<u32>,
    /// `run_f` and `token_p` of the CSC, to find the firings of some tokens.
    pub csc: Option<(Pointer, Pointer)>,
    pub status: Pointer,
    /// Whether the gradient's norm is known.
    pub with_gradient: bool,
}

impl Tally {
    pub(crate) fn new(width: usize, features: usize, memory: &mut Memory) -> Result<Self, Error> {
        let what = "sums over rows";
        let totals = memory.step(1, what)?;
        Ok(Tally { width, totals, x_s: memory.step(stride(width), what)?, fired_f: memory.step(features, what)? })
    }

    pub(crate) fn features(&self) -> usize {
        self.fired_f.len()
    }

    /// Adds tokens of a batch.
    pub(crate) fn add(&mut self, engine: &Engine, x: &Rows, counted: &Counted<'_>) {
        let (from, to) = (counted.tokens.start as u32, counted.tokens.end as u32);
        let (stride, features) = (x.stride as u32, counted.count_f.len());
        let (status, with_gradient) = (counted.status, u32::from(counted.with_gradient));
        let (run_f, token_p) = counted.csc.unwrap_or((0, 0));
        let totals = self.totals.at(0);
        // SAFETY: the tokens are among the batch's; the sums have a value a column and a feature.
        unsafe {
            let (norm2_b, error_b, l1_b) = (x.norm2_b.at(0), counted.error_b.at(0), counted.l1_b.at(0));
            let arguments = arguments![norm2_b, error_b, l1_b, totals, status, from, to, with_gradient];
            engine.enqueue("count_tokens", 1, 0, arguments);
            let arguments = arguments![x.x_bs.at(0), self.x_s.at(0), status, from, to, stride, with_gradient];
            engine.enqueue("count_columns", x.stride.div_ceil(32), 0, arguments);
            let (count_f, fired_f) = (counted.count_f.at(0), self.fired_f.at(0));
            let arguments =
                arguments![count_f, run_f, token_p, fired_f, totals, status, from, to, features as u32, with_gradient];
            engine.enqueue("count_features", features.div_ceil(256), 0, arguments);
        }
    }

    /// Reads the sums and begins again at 0.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub(crate) fn take(&mut self) -> Result<Sums, Error> {
        let mut totals = [Totals::default()];
        self.totals.read(0, &mut totals)?;
        let mut sums = Sums::new(self.width, self.fired_f.len());
        self.x_s.read(0, &mut sums.x_d)?;
        self.fired_f.read(0, &mut sums.fired_f)?;
        let [Totals { rows, active, squared_error, squared_norm, l1 }] = totals;
        self.totals.clear();
        self.x_s.clear();
        self.fired_f.clear();
        Ok(Sums { rows, squared_error, squared_norm, l1, active, ..sums })
    }

    /// Sets the sums.
    pub(crate) fn put(&mut self, sums: &Sums) {
        let Sums { rows, squared_error, squared_norm, l1, active, .. } = *sums;
        self.totals.write(0, &[Totals { rows, active, squared_error, squared_norm, l1 }]);
        self.x_s.clear();
        self.x_s.write(0, &sums.x_d);
        self.fired_f.write(0, &sums.fired_f);
    }
}

/// x read, and a feature's firings read, added and written.
pub fn cost(n: usize, width: usize, features: usize) -> Cost {
    Cost { bytes: (4 * n * width + 20 * features) as u64, flop: (n * width) as u64 }
}
