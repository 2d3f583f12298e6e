//! Launches `count.cu`: sums over counted tokens.

use std::ops::Range;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::Cost;
use super::normalize::Rows;
use super::transpose::Csc;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::precision::stride;
use crate::cuda::runtime::status::Status;
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

/// The operands.
pub struct Count<'a> {
    pub engine: &'a Engine,
    pub x: &'a Rows,
    /// Those that are counted.
    pub tokens: Range<usize>,
    pub error_b: &'a Buffer<f64>,
    pub l1_b: &'a Buffer<f64>,
    /// Firings: of all tokens, or of those counted when the pairs are not given.
    pub count_f: &'a Buffer<u32>,
    /// The pairs, to find the firings of some tokens.
    pub csc: Option<&'a Csc>,
    pub status: &'a Buffer<Status>,
    /// Whether the gradient's norm is known.
    pub with_gradient: bool,
}

impl Tally {
    pub(crate) fn new(width: usize, features: usize, memory: &mut GpuMemory) -> Result<Self, Error> {
        let what = "sums over rows";
        let totals = memory.step(1, what)?;
        Ok(Tally { width, totals, x_s: memory.step(stride(width), what)?, fired_f: memory.step(features, what)? })
    }

    pub(crate) fn features(&self) -> usize {
        self.fired_f.len()
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

impl Count<'_> {
    /// Adds the tokens to `to`.
    pub(crate) fn run(&self, to: &mut Tally) {
        let Count { engine, x, status, .. } = *self;
        let (first, end, with_gradient) =
            (self.tokens.start as u32, self.tokens.end as u32, u32::from(self.with_gradient));
        let (stride, features) = (x.stride as u32, self.count_f.len());
        let (run_f, token_p) = self.csc.map_or((0, 0), |csc| (csc.run_f.at(0), csc.token_p.at(0)));
        let (totals, status) = (to.totals.at(0), status.at(0));
        // SAFETY: the tokens are among the batch's; the sums have a value a column and a feature.
        unsafe {
            let (norm2_b, error_b, l1_b) = (x.norm2_b.at(0), self.error_b.at(0), self.l1_b.at(0));
            let arguments = arguments![norm2_b, error_b, l1_b, totals, status, first, end, with_gradient];
            engine.enqueue("count_tokens", 1, 0, arguments);
            let arguments = arguments![x.x_bs.at(0), to.x_s.at(0), status, first, end, stride, with_gradient];
            engine.enqueue("count_columns", x.stride.div_ceil(32), 0, arguments);
            let (count_f, fired_f, count) = (self.count_f.at(0), to.fired_f.at(0), features as u32);
            let arguments =
                arguments![count_f, run_f, token_p, fired_f, totals, status, first, end, count, with_gradient];
            engine.enqueue("count_features", features.div_ceil(256), 0, arguments);
        }
    }
}

/// x read, and a feature's firings read, added and written.
pub fn cost(n: usize, width: usize, features: usize) -> Cost {
    Cost { bytes: (4 * n * width + 20 * features) as u64, flop: (n * width) as u64 }
}
