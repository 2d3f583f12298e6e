//! What the kernels of a step tell each other and the host: `status.cuh`. Kept for the last batches, so that the host may hear of one
//! while the next is under way.
//!
//! **Errors of a GPU are remembered, and told late.** Operations are enqueued and cannot fail; `report`, `read` and `take_sums` can, and
//! tell the first failure. Kernels that change state look at a word that says whether the batch is finite and had room, so a step that
//! should not have been made changes nothing, and one without room for its lists is made again on the dense path.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::engine::{Engine, arguments};
use super::memory::{Buffer, GpuMemory, Readback};
use crate::cuda::ops::normalize::Rows;
use crate::{Error, Report};

/// See [`crate::Device::AHEAD`]. With one step waiting behind the one that runs, a GPU is never idle; more would only take memory.
pub const AHEAD: usize = 1;

/// Bad rows that a report names.
const NAMED: usize = 64;

/// See `Status` in status.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    pub bad_rows: u32,
    pub overflow: u32,
    pub ok: u32,
    pub held: u32,
    pub active: u64,
    pub squared_error: f64,
    pub l1: f64,
    pub gradient_norm: f64,
}

// SAFETY: plain numbers, laid out as in status.cuh.
unsafe impl DeviceRepr for Status {}
// SAFETY: all fields may be 0.
unsafe impl ValidAsZeroBits for Status {}

/// What became of a batch.
pub struct Outcome {
    /// Rows in the batch.
    pub n: usize,
    /// Over all ranks.
    of: usize,
    pub with_gradient: bool,
    pub status: Buffer<Status>,
    readback: Readback<Status>,
    bad_b: Buffer<u32>,
}

/// What became of the last batches.
pub struct Outcomes {
    /// The last batch first.
    ring: [Outcome; AHEAD + 1],
    /// Whether the next batch is not held, whatever became of the one before it.
    released: bool,
}

impl Outcomes {
    pub fn new(batch: usize, memory: &mut GpuMemory) -> Result<Self, Error> {
        let what = "a dictionary's batch";
        let mut outcome = || {
            let (status, readback) = (memory.step(1, what)?, memory.readback(1, what)?);
            let bad_b = memory.step(batch, what)?;
            Ok::<_, Error>(Outcome { n: 0, of: 0, with_gradient: false, status, readback, bad_b })
        };
        Ok(Outcomes { ring: [outcome()?, outcome()?], released: true })
    }

    /// That of the last batch.
    pub fn last(&self) -> &Outcome {
        &self.ring[0]
    }

    /// Begins with the rows `x`.
    pub fn begin(&mut self, engine: &Engine, x: &Rows) {
        // Behind its own batch, so that reading it does not wait for this one.
        self.ring[0].send();
        self.ring.rotate_right(1);
        let [this, before] = &mut self.ring;
        let before_at = if self.released { 0 } else { before.status.at(0) };
        let (status, bad_rows) = (this.status.at(0), x.bad_rows.at(0));
        let arguments = arguments![status, before_at, u32::from(before.with_gradient), bad_rows];
        // SAFETY: each is one value.
        unsafe { engine.enqueue("begin_batch", 1, 0, arguments) };
        this.bad_b.copy(&x.bad_b, x.n);
        (this.n, this.of, this.with_gradient, self.released) = (x.n, x.batch_rows, false, false);
    }

    /// The last batch has a gradient.
    pub fn begin_gradient(&mut self) {
        self.ring[0].with_gradient = true;
    }

    /// The next batch is not held.
    pub fn release(&mut self) {
        self.released = true;
    }

    /// Waits for the batch `back` before the last, and says what became of it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn report(&mut self, engine: &Engine, back: usize) -> Result<Report, Error> {
        assert!(back <= AHEAD, "the batch before the last is the oldest that is known");
        let outcome = &mut self.ring[back];
        if back == 0 {
            outcome.send();
        }
        outcome.report(engine)
    }
}

impl Outcome {
    fn send(&mut self) {
        self.readback.send(&self.status);
    }

    fn report(&self, engine: &Engine) -> Result<Report, Error> {
        let status = self.readback.read(engine)?[0];
        let mut report = Report {
            rows: self.of,
            non_finite_rows: Vec::new(),
            ok: status.bad_rows == 0 && status.overflow == 0 && (status.ok != 0 || !self.with_gradient),
            overflow: status.overflow != 0 && status.held == 0,
            held: status.held != 0,
            squared_error: status.squared_error,
            l1: status.l1,
            active: status.active,
            gradient_norm: status.gradient_norm,
        };
        if status.bad_rows > 0 {
            let mut bad_b = vec![0; self.n];
            self.bad_b.read(0, &mut bad_b)?;
            let bad = bad_b.iter().enumerate().filter(|&(_, &bad)| bad != 0);
            report.non_finite_rows = bad.map(|(row, _)| row).take(NAMED).collect();
        }
        Ok(report)
    }
}
