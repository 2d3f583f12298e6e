//! A dictionary on the GPU: its memory, the order in which the operations use it, and what ranks exchange between them.

use std::ops::Range;
use std::sync::Arc;

use super::ops::count::{Count, Tally};
use super::ops::decode::Decode;
use super::ops::dense::{Dense, Forward, Operands};
use super::ops::encode::{Encode, Lists};
use super::ops::normalize::Rows;
use super::ops::residual::Residual;
use super::ops::transpose::{Csc, Transpose};
use super::ranks::exchange::{AxisSum, Statuses};
use super::ranks::slices::Slices;
use super::runtime::engine::Engine;
use super::runtime::memory::{Buffer, GpuMemory};
use super::runtime::pointer::Pointer;
use super::runtime::precision::{Precision, stride};
use super::runtime::status::{Outcome, Outcomes};
use super::weights::Weights;
use crate::mesh::Place;
use crate::{ActivePairs, Dictionary, Error, Path, Purpose, Report, Shape, Tensor};

/// A rank's features on a GPU. `T` is what training needs besides (`Optimizer`), and nothing in a
/// dictionary that is evaluated.
pub struct CudaDictionary<T = ()> {
    pub(super) engine: Arc<Engine>,
    pub(super) shape: Shape,
    pub(super) buffers: Buffers,
    pub(super) training: T,
}

/// What ranks need to go through a step together; nothing of it where one has all.
pub(super) struct BetweenRanks {
    /// What x̂ begins with where another rank adds b_dec.
    zeros_s: Option<Buffer<f32>>,
    /// x̂ over the feature axis.
    x_hat: Option<AxisSum>,
    slices: Slices,
    pub(super) statuses: Option<Statuses>,
}

impl BetweenRanks {
    fn new(place: Place, shape: &Shape, memory: &mut GpuMemory) -> Result<Self, Error> {
        let (ranks, stride) = (place.mesh.feature, stride(shape.width));
        let zeros = place.feature() > 0;
        Ok(BetweenRanks {
            zeros_s: zeros.then(|| memory.step(stride, "sums over ranks")).transpose()?,
            x_hat: AxisSum::new(ranks, (shape.batch * stride).div_ceil(ranks), memory)?,
            slices: Slices::new(memory)?,
            statuses: Statuses::new(place.mesh.ranks(), memory)?,
        })
    }
}

/// What the operations of a step leave for each other.
pub(super) struct Batch {
    pub(super) path: Path,
    /// Whether [`Csc`] is that of this batch.
    has_runs: bool,
    pub(super) x_hat_bs: Buffer<f32>,
    /// g in the format of GEMMs: kept as bytes because that format is a choice.
    pub(super) g_bs: Buffer<u8>,
    error_b: Buffer<f64>,
    l1_b: Buffer<f64>,
    /// Firings among some tokens.
    some_f: Buffer<u32>,
}

/// The memory of a dictionary, but for that which only training needs.
pub(super) struct Buffers {
    pub(super) weights: Weights,
    pub(super) batch: Batch,
    pub(super) outcomes: Outcomes,
    pub(super) lists: Lists,
    pub(super) csc: Csc,
    pub(super) dense: Dense,
    pub(super) between_ranks: BetweenRanks,
}

impl Buffers {
    /// Takes it through `memory`, for the rank at `place`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub(super) fn new(
        shape: &Shape,
        purpose: Purpose,
        precision: Precision,
        place: Place,
        memory: &mut GpuMemory,
    ) -> Result<Self, Error> {
        let Shape { width, features, batch, .. } = *shape;
        assert!(width > 0 && features > 0 && batch > 0, "a dictionary has rows, features and a batch");
        let (what, stride) = ("a dictionary's batch", stride(width));
        let lists = Lists::new(batch, features, memory)?;
        Ok(Buffers {
            weights: Weights::new(shape, precision, memory)?,
            batch: Batch {
                path: Path::Sparse,
                has_runs: false,
                x_hat_bs: memory.step(batch * stride, what)?,
                g_bs: memory.step(batch * stride * precision.bytes(), what)?,
                error_b: memory.step(batch, what)?,
                l1_b: memory.step(batch, what)?,
                some_f: memory.step(features, what)?,
            },
            outcomes: Outcomes::new(batch, memory)?,
            csc: Csc::new(shape, lists.capacity, memory)?,
            dense: Dense::new(shape, purpose, precision, place, memory)?,
            between_ranks: BetweenRanks::new(place, shape, memory)?,
            lists,
        })
    }
}

impl CudaDictionary {
    /// Takes memory on the GPU of `engine` for a dictionary that is evaluated.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`] and [`Error::Peer`].
    pub(super) fn for_evaluation(engine: Arc<Engine>, shape: Shape) -> Result<Self, Error> {
        Self::with(engine, shape, Purpose::Evaluation, |_, _| Ok(()))
    }
}

impl<T> CudaDictionary<T> {
    /// Takes memory on the GPU of `engine`; `training` takes that which only training needs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`] and [`Error::Peer`].
    pub(super) fn with(
        engine: Arc<Engine>,
        shape: Shape,
        purpose: Purpose,
        training: impl FnOnce(&Buffers, &mut GpuMemory) -> Result<T, Error>,
    ) -> Result<Self, Error> {
        let memory = &mut GpuMemory::of(&engine);
        let buffers = Buffers::new(&shape, purpose, engine.precision, engine.axes.place, memory)?;
        let training = training(&buffers, memory)?;
        buffers.lists.prepare(&engine);
        buffers.csc.prepare(&engine, shape.batch);
        buffers.dense.prepare(&engine);
        engine.check()?;
        Ok(CudaDictionary { engine, shape, buffers, training })
    }

    pub(super) fn g_bs(&self) -> Pointer {
        self.buffers.batch.g_bs.at(0)
    }

    /// What x̂ begins with: one rank of the feature axis adds b_dec.
    fn first_s(&self) -> Pointer {
        self.buffers
            .between_ranks
            .zeros_s
            .as_ref()
            .map_or_else(|| self.buffers.weights.b_dec.value.at(0), |zeros| zeros.at(0))
    }

    /// Makes the runs of the batch, once, for the first that needs them: backward, count, or a measurement.
    pub fn need_runs(&mut self) {
        if !self.buffers.batch.has_runs {
            let Buffers { lists, csc, outcomes, batch, .. } = &mut self.buffers;
            let Outcome { n, status, .. } = outcomes.last();
            Transpose { engine: &self.engine, lists, n: *n, status }.run(csc);
            batch.has_runs = true;
        }
    }
}

impl<T: Send> Dictionary for CudaDictionary<T> {
    type Rows = Rows;
    type Tally = Tally;

    fn shape(&self) -> Shape {
        self.shape
    }

    fn encode(&mut self, x: &Rows, path: Path) {
        assert!(x.width == self.shape.width && x.n <= self.shape.batch, "rows of the dictionary's shape");
        self.buffers.outcomes.begin(&self.engine, x);
        if path == Path::Sparse {
            let (engine, Buffers { lists, weights, outcomes, between_ranks, .. }) = (&self.engine, &mut self.buffers);
            lists.clear();
            let status = &outcomes.last().status;
            between_ranks.slices.encode(engine, x.n, |tokens| Encode { engine, x, tokens, weights, status }.run(lists));
        }
        (self.buffers.batch.path, self.buffers.batch.has_runs) = (path, false);
    }

    fn decode(&mut self, x: &Rows) {
        let first_s = self.first_s();
        let Buffers { batch, lists, weights, dense, between_ranks, .. } = &mut self.buffers;
        let (parts, slices) = (between_ranks.x_hat.as_ref(), &mut between_ranks.slices);
        let Batch { path, x_hat_bs, l1_b, .. } = batch;
        let sum = |engine: &Engine, x_hat_bs: &Buffer<f32>, tokens: Range<usize>| {
            if let Some(parts) = parts {
                let values = tokens.start * x.stride..tokens.end * x.stride;
                parts.sum_pieces(engine, &engine.axes.feature, x_hat_bs, values);
            }
        };
        match path {
            Path::Sparse => slices.decode(&self.engine, x.n, |engine, tokens| {
                Decode { engine, lists, weights, first_s, tokens: tokens.clone() }.run(x_hat_bs, l1_b);
                sum(engine, x_hat_bs, tokens);
            }),
            Path::Dense => {
                let to = Forward { x_hat_bs, l1_b, count_f: &lists.count_f, first_s };
                dense.forward(Operands { engine: &self.engine, x, weights }, to);
                sum(&self.engine, x_hat_bs, 0..x.n);
            }
        }
    }

    fn residual(&mut self, x: &Rows) {
        let Batch { x_hat_bs, error_b, l1_b, .. } = &self.buffers.batch;
        let (g_bs, count_f, status) = (self.g_bs(), &self.buffers.lists.count_f, &self.buffers.outcomes.last().status);
        Residual { engine: &self.engine, x, x_hat_bs, g_bs, error_b, l1_b, count_f, status }.run();
        if self.buffers.between_ranks.statuses.is_some() && self.buffers.batch.path == Path::Sparse {
            // The last thing for which there may be no room on one rank, of which all must hear.
            self.need_runs();
        }
        if let Some(statuses) = &self.buffers.between_ranks.statuses {
            statuses.combine_sums(&self.engine, &self.buffers.outcomes.last().status);
        }
    }

    fn count(&mut self, x: &Rows, tally: &mut Tally, counted: Range<usize>) {
        let n = self.buffers.outcomes.last().n;
        let tokens = counted.start..counted.end.min(n);
        if tokens.is_empty() {
            return;
        }
        let all = tokens == (0..n);
        let (count_f, csc) = match self.buffers.batch.path {
            _ if all => (&self.buffers.lists.count_f, None),
            Path::Dense => {
                let of = Operands { engine: &self.engine, x, weights: &self.buffers.weights };
                self.buffers.dense.count(of, tokens.clone(), &self.buffers.batch.some_f);
                (&self.buffers.batch.some_f, None)
            }
            Path::Sparse => {
                self.need_runs();
                (&self.buffers.lists.count_f, Some(&self.buffers.csc))
            }
        };
        let Batch { error_b, l1_b, .. } = &self.buffers.batch;
        let Outcome { with_gradient, status, .. } = self.buffers.outcomes.last();
        let (engine, with_gradient) = (&self.engine, *with_gradient);
        Count { engine, x, tokens, error_b, l1_b, count_f, csc, status, with_gradient }.run(tally);
    }

    fn errors(&self, rows: Range<usize>, out: &mut [f64]) -> Result<(), Error> {
        assert_eq!(rows.len(), out.len(), "room for the errors");
        self.buffers.batch.error_b.read(rows.start, out)
    }

    fn report(&mut self, back: usize) -> Result<Report, Error> {
        self.buffers.outcomes.report(&self.engine, back)
    }

    fn release(&mut self) {
        self.buffers.outcomes.release();
    }

    fn active_pairs(&self, x: &Rows, rows: Range<usize>) -> Result<ActivePairs, Error> {
        assert!(rows.end <= x.n, "rows of the batch");
        let Buffers { weights, batch, lists, dense, .. } = &self.buffers;
        match batch.path {
            Path::Sparse => lists.active_pairs(rows),
            Path::Dense => dense.active_pairs(Operands { engine: &self.engine, x, weights }, self.shape.features, rows),
        }
    }

    fn read(&self, tensor: Tensor, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.buffers.weights.parameter(tensor).value.read(rows, out)
    }

    fn write(&mut self, tensor: Tensor, rows: Range<usize>, values: &[f32]) {
        self.buffers.weights.write(&self.engine, tensor, rows, values);
    }
}
