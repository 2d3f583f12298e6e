//! The processor as a [`Device`].

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::codes::PAIR_BYTES;
use super::dictionary::CpuDictionary;
use super::engine::Engine;
use super::memory::{Buffer, HostMemory};
use super::ops::count::Tally;
use super::ops::dense;
use super::ops::normalize::{Normalize, Rows};
use super::screen::ScreenDtype;
use super::simd::Isa;
use super::training::CpuTraining;
use crate::device::{SUMS_TIMED, rate_of_sums};
use crate::first_error::FirstError;
use crate::mesh::Axes;
use crate::{AdamMode, Bytes, Device, Error, Purpose, RowDtype, Shape, Sums};

/// The processor.
pub struct Cpu {
    pub(super) engine: Arc<Engine>,
}

/// Choices that change speed and never results. `None` takes what is best here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Worker threads; by default one per core that this process may use.
    pub threads: Option<usize>,
    /// How the encoder finds pairs that may be active.
    pub screen: Option<ScreenDtype>,
    /// Instruction set of all other operations.
    pub isa: Option<Isa>,
}

impl Cpu {
    /// The processor with `threads` workers, by default one per core that this process may use.
    ///
    /// # Errors
    /// [`Error::Threads`].
    pub fn new(threads: Option<usize>) -> Result<Self, Error> {
        Self::with(Options { threads, ..Options::default() })
    }

    /// As [`Cpu::new`], with choices for tests and benchmarks.
    ///
    /// # Errors
    /// [`Error::Threads`].
    ///
    /// # Panics
    /// When this machine lacks the screen or the instruction set.
    pub fn with(options: Options) -> Result<Self, Error> {
        Self::among(options, Axes::alone())
    }

    /// The processor of one rank among others.
    ///
    /// # Errors
    /// [`Error::Threads`].
    ///
    /// # Panics
    /// As [`Cpu::with`].
    pub fn among(options: Options, axes: Axes) -> Result<Self, Error> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let screen = options.screen.unwrap_or_else(ScreenDtype::detect);
        assert!(isa.available() && screen.available(), "{isa:?} and {screen:?} exist on this machine");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .thread_name(|index| format!("kernels-{index}"))
            .build()
            .map_err(|error| Error::threads(std::io::Error::other(error)))?;
        Ok(Cpu { engine: Arc::new(Engine { pool, isa, screen, axes, failure: FirstError::default() }) })
    }
}

impl Device for Cpu {
    const AHEAD: usize = 0;

    type Staging = Staging;
    type Rows = Rows;
    type Tally = Tally;
    type Dictionary = CpuDictionary;
    type Training = CpuTraining;

    fn describe(&self) -> String {
        let Engine { isa, screen, .. } = &*self.engine;
        format!("cpu, {} threads, {}, {} screen", self.engine.threads(), isa.name(), screen.name())
    }

    fn precision(&self) -> String {
        "f32".to_owned()
    }

    fn axes(&self) -> &Axes {
        &self.engine.axes
    }

    fn dense_above(&self) -> f64 {
        dense::FASTER_ABOVE
    }

    fn bytes(&self, shape: Shape, purpose: Purpose) -> Bytes {
        let Shape { width, features, batch, .. } = shape;
        let engine = || self.engine.clone();
        let mut bytes = HostMemory::measure(|memory| {
            match purpose {
                Purpose::Evaluation => drop(CpuDictionary::for_evaluation(engine(), shape, memory)?),
                // All modes take the same.
                Purpose::Training => drop(CpuTraining::for_training(engine(), shape, AdamMode::Dense, memory)?),
            }
            Rows::new(batch, width, memory).map(|_| ())
        });
        bytes.step += (size_of::<u64>() * (width + features)) as u64;
        bytes.lists = (self.dense_above() * batch as f64 * features as f64) as u64 * PAIR_BYTES;
        bytes
    }

    fn pool(&self) -> Option<&rayon::ThreadPool> {
        Some(&self.engine.pool)
    }

    fn wait(&self) -> Result<(), Error> {
        self.engine.check()
    }

    fn room(&self) -> Option<u64> {
        None
    }

    fn staging(&self, bytes: usize) -> Result<Staging, Error> {
        Ok(Staging(Buffer::new(bytes, "staging for stored rows")?))
    }

    fn rows(&self, batch: usize, width: usize) -> Result<Rows, Error> {
        Rows::new(batch, width, &mut HostMemory::taken())
    }

    fn tally(&self, width: usize, features: usize) -> Result<Tally, Error> {
        Ok(Tally { sums: Sums::new(width, features) })
    }

    fn dictionary(&self, shape: Shape) -> Result<CpuDictionary, Error> {
        CpuDictionary::for_evaluation(self.engine.clone(), shape, &mut HostMemory::taken())
    }

    fn training(&self, shape: Shape, mode: AdamMode) -> Result<CpuTraining, Error> {
        CpuTraining::for_training(self.engine.clone(), shape, mode, &mut HostMemory::taken())
    }

    fn gather(&self, staged: &mut Staging, parts: &[Range<usize>]) -> Result<(), Error> {
        let feature = &self.engine.axes.feature;
        if feature.size() == 1 {
            return Ok(());
        }
        let mut at = 0;
        for part in feature.gather(&staged.0[parts[feature.index()].clone()])? {
            staged.0[at..at + part.len()].copy_from_slice(&part);
            at += part.len();
        }
        Ok(())
    }

    fn normalize(&self, staged: &Staging, dtype: RowDtype, n: usize, batch_rows: usize, scale: f32, x: &mut Rows) {
        Normalize { engine: &self.engine, staged: &staged.0, dtype, n, batch_rows, scale }.run(x);
    }

    fn take_sums(&self, tally: &mut Tally) -> Result<Sums, Error> {
        let empty = Sums::new(tally.sums.x_d.len(), tally.sums.fired_f.len());
        std::mem::replace(&mut tally.sums, empty).over(&self.engine.axes)
    }

    fn put_sums(&self, tally: &mut Tally, sums: &Sums) {
        tally.sums = sums.part(&self.engine.axes, tally.sums.fired_f.len());
    }

    fn exchange_rate(&self, values: usize) -> Result<f64, Error> {
        let all = &self.engine.axes.all;
        let mut summed = vec![0.0; values];
        all.sum_f32(&mut summed)?;
        let started = Instant::now();
        (0..SUMS_TIMED).try_for_each(|_| all.sum_f32(&mut summed))?;
        Ok(rate_of_sums(values, all.size(), started.elapsed()))
    }

    fn exchanged(&self) -> (u64, Duration) {
        let all = &self.engine.axes.all;
        (all.bytes_sent(), all.exchanging())
    }
}

/// Bytes of stored rows.
pub struct Staging(Buffer<u8>);

impl AsRef<[u8]> for Staging {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Staging {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
