//! A GPU as a [`Device`].
//!
//! A batch keeps its active pairs twice: as a list a token for decode, and as a run a feature for backward and Adam, which
//! make a feature's gradient from its run where they use it. Nothing of size `[B, F]` is ever written on the sparse path.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::compile::sources::{KernelSource, NAIVE, SOURCES};
use super::dictionary::{Buffers, CudaDictionary};
use super::limits;
use super::moments::MomentArrays;
use super::ops::count::Tally;
use super::ops::normalize::{Normalize, Rows};
use super::ranks::exchange;
use super::runtime::engine::Engine;
use super::runtime::gpu::Gpu;
use super::runtime::memory::GpuMemory;
use super::runtime::precision::{Moments, Precision};
use super::runtime::staging::Staging;
use super::runtime::status::AHEAD;
use super::training::{CudaTraining, OptimizerBuffers};
use super::weights::Weights;
use crate::mesh::{Axes, Place};
use crate::{AdamMode, Bytes, Device, Error, Formats, Purpose, RowDtype, Shape, Sums};

/// Share of active pairs above which the dense path is the faster one, from the counts of bytes and operations: a pair costs
/// about 16·D bytes on the sparse path, and B·F·D·16 operations more are made on the dense one. Not yet measured on a GPU.
const DENSE_ABOVE: f64 = 0.01;

/// What takes less than [`Precision::Mixed`] with moments in binary32: the weights' format, if it is another, and that of the moments.
const NARROW: [(Formats, Precision); 5] = [
    (Formats { weights: None, moments: Some("bf16") }, Precision::Mixed(Moments::Bf16)),
    (Formats { weights: Some("bf16-sr"), moments: None }, Precision::Bf16Sr(Moments::F32)),
    (Formats { weights: None, moments: Some("int8") }, Precision::Mixed(Moments::Int8)),
    (Formats { weights: Some("bf16-sr"), moments: Some("bf16") }, Precision::Bf16Sr(Moments::Bf16)),
    (Formats { weights: Some("bf16-sr"), moments: Some("int8") }, Precision::Bf16Sr(Moments::Int8)),
];

/// A GPU with its kernels loaded.
pub struct Cuda {
    engine: Arc<Engine>,
    description: String,
}

impl Cuda {
    /// Loads the kernels, compiling those for which there is no cubin.
    ///
    /// # Errors
    /// Those of [`Gpu::load`].
    pub fn new(gpu: &Gpu, precision: Precision) -> Result<Self, Error> {
        Self::among(gpu, precision, Axes::alone())
    }

    /// As [`Cuda::new`], with the kernels of [`super::measure::naive`] besides.
    ///
    /// # Errors
    /// Those of [`Gpu::load`].
    pub fn beside_naive(gpu: &Gpu, precision: Precision) -> Result<Self, Error> {
        Self::with(gpu, precision, &[SOURCES, NAIVE].concat(), Axes::alone())
    }

    /// The GPU of one rank among others, which all call this: they find that no two have the same GPU, and connect theirs.
    ///
    /// # Errors
    /// Those of [`Gpu::load`]; [`Error::SharedGpu`]; [`Error::NoNccl`], [`Error::Nccl`] and [`Error::Peer`].
    pub fn among(gpu: &Gpu, precision: Precision, axes: Axes) -> Result<Self, Error> {
        check_own_gpu(gpu, &axes)?;
        Self::with(gpu, precision, SOURCES, axes)
    }

    fn with(gpu: &Gpu, precision: Precision, sources: &[KernelSource], axes: Axes) -> Result<Self, Error> {
        let description = format!("{}, {}", gpu.describe(), precision.describe());
        Ok(Cuda { engine: Arc::new(Engine::new(gpu, precision, sources, axes)?), description })
    }

    /// The format that GEMMs read: `f32` or `bf16`.
    pub fn gemm_dtype(&self) -> &'static str {
        self.engine.precision.pick("f32", "bf16")
    }

    /// What its operations run on.
    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

/// What the objects of a shape take on the GPU of the rank at `place`: see [`Device::bytes`]. No GPU is needed to know it.
pub fn bytes(shape: Shape, purpose: Purpose, precision: Precision, place: Place) -> Bytes {
    let mut memory = GpuMemory::measured();
    let batches = match purpose {
        Purpose::Evaluation => 1,
        Purpose::Training => 1 + AHEAD,
    };
    let rows = |memory: &mut GpuMemory<'_>| Rows::new(precision, shape.batch, shape.width, memory).map(|_| ());
    let all = Buffers::new(&shape, purpose, precision, place, &mut memory)
        .and_then(|buffers| match purpose {
            Purpose::Evaluation => Ok(()),
            Purpose::Training => OptimizerBuffers::new(&shape, precision, place, &buffers, &mut memory).map(|_| ()),
        })
        .and_then(|()| Tally::new(shape.width, shape.features, &mut memory))
        .and_then(|_| (0..batches).try_for_each(|_| rows(&mut memory)));
    // Measuring takes nothing, so it fails only where a length is beyond what can be counted.
    all.map_or(Bytes { weights: u64::MAX, ..Bytes::default() }, |()| memory.bytes)
}

/// Bytes of weights and moments alone.
fn weight_bytes(shape: &Shape, purpose: Purpose, precision: Precision, place: Place) -> u64 {
    let mut memory = GpuMemory::measured();
    let owned = place.owned_by(place.data(), shape.features);
    let all = Weights::new(shape, precision, &mut memory).and_then(|_| match purpose {
        Purpose::Evaluation => Ok(()),
        Purpose::Training => MomentArrays::new(shape, &owned, precision, &mut memory).map(|_| ()),
    });
    all.map_or(u64::MAX, |()| memory.bytes.weights)
}

/// That no other rank has this GPU: NCCL would wait for ever. Exchanges what GPUs are called.
fn check_own_gpu(gpu: &Gpu, axes: &Axes) -> Result<(), Error> {
    let all = &axes.all;
    if all.size() == 1 {
        return Ok(());
    }
    let ids = all.gather(&gpu.id()?)?;
    let same = (0..ids.len()).find(|&rank| rank != all.index() && ids[rank] == ids[all.index()]);
    same.map_or(Ok(()), |other| Err(Error::SharedGpu { rank: all.index(), other, name: gpu.name().to_owned() }))
}

impl Device for Cuda {
    const AHEAD: usize = AHEAD;

    type Staging = Staging;
    type Rows = Rows;
    type Tally = Tally;
    type Dictionary = CudaDictionary;
    type Training = CudaTraining;

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn precision(&self) -> String {
        self.engine.precision.describe()
    }

    fn axes(&self) -> &Axes {
        &self.engine.axes
    }

    fn dense_above(&self) -> f64 {
        DENSE_ABOVE
    }

    fn bytes(&self, shape: Shape, purpose: Purpose) -> Bytes {
        bytes(shape, purpose, self.engine.precision, self.engine.axes.place)
    }

    fn check(&self, shape: Shape) -> Result<(), Error> {
        limits::check(shape, &self.engine)
    }

    fn lighter(&self, shape: Shape, purpose: Purpose) -> Vec<(Formats, Bytes)> {
        let (own, now) = (self.engine.precision, self.bytes(shape, purpose));
        let weights = |precision| weight_bytes(&shape, purpose, precision, self.engine.axes.place);
        // GEMMs take what they took; those of binary32 were asked for, and stay.
        let narrow = if own == Precision::F32 { &[][..] } else { &NARROW[..] };
        let less = |&(formats, precision): &(Formats, Precision)| {
            let saved = weights(own).checked_sub(weights(precision)).filter(|&saved| saved > 0)?;
            Some((formats, Bytes { weights: now.weights.saturating_sub(saved), ..now }))
        };
        narrow.iter().filter_map(less).collect()
    }

    fn wait(&self) -> Result<(), Error> {
        self.engine.wait()
    }

    fn room(&self) -> Option<u64> {
        let (free, _) = self.engine.stream.context().mem_get_info().ok()?;
        Some(free as u64)
    }

    fn staging(&self, bytes: usize) -> Result<Staging, Error> {
        Staging::new(&self.engine, bytes)
    }

    fn rows(&self, batch: usize, width: usize) -> Result<Rows, Error> {
        Rows::new(self.engine.precision, batch, width, &mut GpuMemory::of(&self.engine))
    }

    fn tally(&self, width: usize, features: usize) -> Result<Tally, Error> {
        Tally::new(width, features, &mut GpuMemory::of(&self.engine))
    }

    fn dictionary(&self, shape: Shape) -> Result<CudaDictionary, Error> {
        self.check(shape)?;
        CudaDictionary::for_evaluation(self.engine.clone(), shape)
    }

    fn training(&self, shape: Shape, mode: AdamMode) -> Result<CudaTraining, Error> {
        self.check(shape)?;
        CudaTraining::for_training(self.engine.clone(), shape, mode)
    }

    fn gather(&self, staged: &mut Staging, parts: &[Range<usize>]) -> Result<(), Error> {
        if self.engine.axes.feature.size() > 1 {
            // Rows go from GPU to GPU: once they have been copied there, in `normalize`.
            staged.belongs_to(parts);
        }
        Ok(())
    }

    fn normalize(&self, staged: &Staging, dtype: RowDtype, n: usize, batch_rows: usize, scale: f32, x: &mut Rows) {
        Normalize { engine: &self.engine, staged, dtype, n, batch_rows, scale }.run(x);
    }

    fn take_sums(&self, tally: &mut Tally) -> Result<Sums, Error> {
        tally.take()?.over(&self.engine.axes)
    }

    fn put_sums(&self, tally: &mut Tally, sums: &Sums) {
        tally.put(&sums.part(&self.engine.axes, tally.features()));
    }

    fn exchange_rate(&self, values: usize) -> Result<f64, Error> {
        exchange::rate(&self.engine, values)
    }

    fn exchanged(&self) -> (u64, Duration) {
        let (sent, time) = self.engine.exchanged();
        (sent + self.engine.axes.all.bytes_sent(), time)
    }
}
