//! Training on a GPU: backward, Adam, and the optimiser's state.

use std::ops::Range;
use std::sync::Arc;

use super::dictionary::{Buffers, CudaDictionary};
use super::moments::MomentArrays;
use super::ops::adam::{Adam, Settle, UpdateArgument};
use super::ops::backward::{Backward, Gradient};
use super::ops::dense::{DenseGradient, GradientOperands, Operands};
use super::ops::normalize::Rows;
use super::ops::touched::WantedRows;
use super::ops::transpose::{CscArgument, CscGradient};
use super::ranks::owners::{Local, Owners, Rounds, spread_all};
use super::runtime::engine::Engine;
use super::runtime::memory::{Buffer, GpuMemory};
use super::runtime::precision::Precision;
use crate::mesh::{Axes, Place};
use crate::{AdamMode, AdamUpdate, Clock, Error, Moment, Path, Purpose, Shape, Tensor, Training};

/// A dictionary on a GPU that is trained.
pub type CudaTraining = CudaDictionary<Optimizer>;

/// What training needs besides weights.
pub struct Optimizer {
    mode: AdamMode,
    /// The features that this rank updates.
    owned: Range<usize>,
    /// Where its features begin among those of all ranks.
    first_feature: u32,
    pub(super) buffers: OptimizerBuffers,
    /// In which the batch's gradient goes to the owners.
    rounds: Rounds,
}

/// The memory of an optimiser.
pub(super) struct OptimizerBuffers {
    pub(super) moments: MomentArrays,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
    csc: CscGradient,
    dense: DenseGradient,
    pub(super) gradient: Gradient,
    /// Gradients over the data axis; `None` where one rank has all.
    owners: Option<Owners>,
}

impl OptimizerBuffers {
    /// Takes it through `memory`, for a dictionary of `shape` with `buffers` on the rank at `place`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub(super) fn new(
        shape: &Shape,
        precision: Precision,
        place: Place,
        buffers: &Buffers,
        memory: &mut GpuMemory,
    ) -> Result<Self, Error> {
        let owned = place.owned_by(place.data(), shape.features);
        Ok(OptimizerBuffers {
            moments: MomentArrays::new(shape, &owned, precision, memory)?,
            last_update_f: memory.weights(shape.features)?,
            last_fired_f: memory.weights(shape.features)?,
            csc: CscGradient::new(&buffers.csc, memory)?,
            dense: DenseGradient::new(&buffers.dense, shape, precision, place, memory)?,
            gradient: Gradient::new(shape, memory)?,
            owners: Owners::new(place, shape, memory)?,
        })
    }
}

impl CudaTraining {
    /// Takes memory on the GPU of `engine` for a dictionary that is trained.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`] and [`Error::Peer`].
    pub(super) fn for_training(engine: Arc<Engine>, shape: Shape, mode: AdamMode) -> Result<Self, Error> {
        let (precision, axes) = (engine.precision, engine.axes.clone());
        Self::with(engine, shape, Purpose::Training, |buffers, memory| {
            Ok(Optimizer {
                mode,
                owned: axes.owned(shape.features),
                buffers: OptimizerBuffers::new(&shape, precision, axes.place, buffers, memory)?,
                first_feature: first_feature(&axes, shape.features)?,
                rounds: Rounds::default(),
            })
        })
    }

    fn csc_of(&self, x: &Rows) -> CscArgument {
        self.buffers.csc.argument(&self.training.buffers.csc, self.g_bs(), x.operand())
    }

    /// What backward makes of runs.
    fn of_runs(&self, x: &Rows) -> Backward<'_> {
        let Buffers { weights, csc, outcomes, .. } = &self.buffers;
        let (csc_argument, status) = (self.csc_of(x), &outcomes.last().status);
        Backward { engine: &self.engine, csc, csc_argument, weights, status }
    }

    /// What backward makes of tiles of the dense path.
    fn of_tiles<'a>(&'a self, x: &'a Rows) -> GradientOperands<'a> {
        let Buffers { weights, dense, .. } = &self.buffers;
        let of = Operands { engine: &self.engine, x, weights };
        GradientOperands { dense, of, g_bs: self.g_bs(), gradient: &self.training.buffers.gradient }
    }

    /// Gradient rows as this rank's tokens give them.
    fn make_rows(&self, x: &Rows, wanted: &WantedRows) {
        let OptimizerBuffers { gradient, dense, .. } = &self.training.buffers;
        match self.buffers.batch.path {
            Path::Sparse => self.of_runs(x).rows(gradient, wanted),
            Path::Dense => dense.gradient_rows(self.of_tiles(x), wanted),
        }
    }

    /// The gradient of this rank's tokens, for the owners of its rows.
    fn local<'a>(&'a self, x: &'a Rows) -> Local<'a, impl Fn(WantedRows)> {
        let (gradient, count_f) = (&self.training.buffers.gradient, &self.buffers.lists.count_f);
        Local { engine: &self.engine, gradient, count_f, make: move |wanted| self.make_rows(x, &wanted) }
    }
}

/// Where this rank's features begin among those of all ranks of the feature axis. Exchanges their numbers.
fn first_feature(axes: &Axes, features: usize) -> Result<u32, Error> {
    let counts = axes.feature.gather(&(features as u32).to_le_bytes())?;
    let before = counts[..axes.feature.index()].iter();
    Ok(before.filter_map(|count| count.first_chunk()).map(|count| u32::from_le_bytes(*count)).sum())
}

impl Training for CudaTraining {
    type Settled = CudaDictionary;

    fn backward(&mut self, x: &Rows, lambda: f32) {
        self.training.buffers.gradient.lambda_over_b = lambda / x.batch_rows as f32;
        self.buffers.outcomes.begin_gradient();
        if let Some(owners) = &mut self.training.buffers.owners {
            let (count_f, status) = (&self.buffers.lists.count_f, &self.buffers.outcomes.last().status);
            owners.tell(&self.engine, count_f, status, self.buffers.batch.path);
        }
        match self.buffers.batch.path {
            Path::Sparse => {
                self.need_runs();
                self.of_runs(x).run(&self.training.buffers.gradient);
            }
            // Where rows go to their owners they are made for each of them.
            Path::Dense if self.training.buffers.owners.is_some() => {}
            Path::Dense => self.training.buffers.dense.backward(self.of_tiles(x)),
        }
        self.training.buffers.gradient.of_b_dec(&self.engine, self.g_bs(), self.buffers.outcomes.last().n);
        if let Some(owners) = &self.training.buffers.owners {
            let rounds = owners.rounds(&self.engine);
            owners.measure(&self.local(x), &rounds);
            self.training.rounds = rounds;
        }
        let (gradient, status) = (&self.training.buffers.gradient, &self.buffers.outcomes.last().status);
        match &self.buffers.between_ranks.statuses {
            Some(statuses) => statuses.combine_norms(&self.engine, gradient, &self.training.owned, status),
            None => gradient.finish(&self.engine, status),
        }
    }

    fn adam(&mut self, x: &Rows, update: &AdamUpdate) {
        let Optimizer { mode, first_feature, buffers, rounds, .. } = &self.training;
        let OptimizerBuffers { moments, last_update_f, last_fired_f, gradient, owners, dense, .. } = buffers;
        let over_ranks = owners.as_ref().map(|owners| (&owners.count_f, &owners.bias_f));
        let (count_f, bias_f) = over_ranks.unwrap_or((&self.buffers.lists.count_f, &gradient.bias_f));
        let adam = Adam {
            engine: &self.engine,
            weights: &self.buffers.weights,
            moments,
            last_update_f,
            last_fired_f,
            count_f,
            bias_f,
            gradient,
            status: &self.buffers.outcomes.last().status,
            update: UpdateArgument::new(update, *mode, *first_feature),
        };
        let is_dense = *mode == AdamMode::Dense;
        match (owners, self.buffers.batch.path) {
            (Some(owners), _) => owners.adam(&self.local(x), rounds, &adam, !is_dense),
            (None, Path::Sparse) => adam.of_csc(self.csc_of(x)),
            (None, Path::Dense) => dense.adam(self.of_tiles(x), &adam),
        }
        adam.b_dec();
        if is_dense {
            spread_all(&self.engine, &mut self.buffers.weights, self.shape.features);
        }
    }

    fn settle_into(&self, next: &AdamUpdate, into: &mut CudaDictionary) {
        assert_eq!((self.shape.width, self.shape.features), (into.shape.width, into.shape.features), "one shape");
        let Optimizer { mode, owned, first_feature, buffers, .. } = &self.training;
        let settle = Settle {
            engine: &self.engine,
            weights: &self.buffers.weights,
            moments: &buffers.moments,
            last_update_f: &buffers.last_update_f,
            owned,
            update: UpdateArgument::new(next, *mode, *first_feature),
        };
        settle.run(&mut into.buffers.weights);
        // Who has the moments settles.
        spread_all(&self.engine, &mut into.buffers.weights, self.shape.features);
    }

    fn read_moment(&self, tensor: Tensor, moment: Moment, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.training.buffers.moments.of(tensor).read(moment, rows, out)
    }

    fn write_moment(&mut self, tensor: Tensor, moment: Moment, rows: Range<usize>, values: &[f32]) {
        self.training.buffers.moments.of_mut(tensor).write(moment, rows, values);
    }

    fn read_clock(&self, clock: Clock, features: Range<usize>, out: &mut [u64]) -> Result<(), Error> {
        assert_eq!(features.len(), out.len(), "room for the clocks");
        match clock {
            Clock::LastUpdate => self.training.buffers.last_update_f.read(features.start, out),
            Clock::LastFired => self.training.buffers.last_fired_f.read(features.start, out),
        }
    }

    fn write_clock(&mut self, clock: Clock, features: Range<usize>, values: &[u64]) {
        assert_eq!(features.len(), values.len(), "a clock for each feature");
        match clock {
            Clock::LastUpdate => self.training.buffers.last_update_f.write(features.start, values),
            Clock::LastFired => self.training.buffers.last_fired_f.write(features.start, values),
        }
    }
}
