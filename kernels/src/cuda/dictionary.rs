//! A dictionary on the GPU: its memory, the order in which the operations use it, and what ranks exchange between them.

use std::ops::Range;
use std::sync::Arc;

use super::ops::adam::{Adam, UpdateArgument, settle};
use super::ops::backward::Gradient;
use super::ops::count::{Counted, Tally};
use super::ops::decode::decode;
use super::ops::dense::{Dense, Forward, Operands};
use super::ops::encode::Lists;
use super::ops::normalize::Rows;
use super::ops::residual::Residual;
use super::ops::touched::{RowsAt, TouchedArgument};
use super::ops::transpose::{Csc, CscArgument};
use super::ranks::exchange::{AxisSum, Statuses};
use super::ranks::owners::{Owners, Rounds, spread_all};
use super::ranks::slices::Slices;
use super::runtime::engine::Engine;
use super::runtime::memory::{Buffer, Memory};
use super::runtime::pointer::Pointer;
use super::runtime::precision::{Precision, stride};
use super::runtime::status::{Outcome, Outcomes};
use super::weights::Weights;
use crate::mesh::{Axes, Place};
use crate::{AdamMode, AdamUpdate, Clock, Dictionary, Error, Path, Report, Shape, Slot, Tensor};

/// A rank's features on a GPU.
pub struct CudaDictionary {
    engine: Arc<Engine>,
    shape: Shape,
    /// The features that this rank updates.
    owned: Range<usize>,
    /// Where its features begin among those of all ranks.
    first_feature: u32,
    pub(super) buffers: Buffers,
}

/// What ranks need to go through a step together; nothing of it where one has all.
struct BetweenRanks {
    /// What x̂ begins with where another rank adds b_dec.
    zeros_s: Option<Buffer<f32>>,
    /// x̂ over the feature axis.
    x_hat: Option<AxisSum>,
    slices: Slices,
    statuses: Option<Statuses>,
    /// Gradients over the data axis.
    owners: Option<Owners>,
}

impl BetweenRanks {
    fn new(place: Place, shape: &Shape, stride: usize, memory: &mut Memory) -> Result<Self, Error> {
        let Shape { features, batch, adam, dense_bytes, .. } = *shape;
        let ranks = place.mesh.feature;
        let zeros = place.feature() > 0;
        let size = (features, stride);
        let owners = adam.map(|_| Owners::new(place, size, dense_bytes, memory)).transpose()?.flatten();
        Ok(BetweenRanks {
            zeros_s: zeros.then(|| memory.step(stride, "sums over ranks")).transpose()?,
            x_hat: AxisSum::new(ranks, (batch * stride).div_ceil(ranks), memory)?,
            slices: Slices::new(memory)?,
            statuses: Statuses::new(place.mesh.ranks(), memory)?,
            owners,
        })
    }
}

/// What the operations of a step leave for each other.
pub(super) struct Batch {
    path: Path,
    /// Whether [`Csc`] is that of this batch.
    has_runs: bool,
    pub(super) x_hat_bs: Buffer<f32>,
    /// g in the format of GEMMs: kept as bytes because that format is a choice.
    pub(super) g_bs: Buffer<u8>,
    error_b: Buffer<f64>,
    l1_b: Buffer<f64>,
    /// Firings among some tokens.
    some_f: Buffer<u32>,
    /// In which its gradient goes to the owners.
    rounds: Rounds,
}

/// The memory of a dictionary.
pub(super) struct Buffers {
    pub(super) weights: Weights,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
    pub(super) batch: Batch,
    pub(super) outcomes: Outcomes,
    pub(super) lists: Lists,
    csc: Csc,
    dense: Dense,
    pub(super) gradient: Gradient,
    between_ranks: BetweenRanks,
}

impl Buffers {
    /// Takes it through `memory`, for the rank at `place`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub(super) fn new(shape: Shape, precision: Precision, place: Place, memory: &mut Memory) -> Result<Self, Error> {
        let Shape { width, features, batch, adam, dense_bytes } = shape;
        assert!(width > 0 && features > 0 && batch > 0, "a dictionary has rows, features and a batch");
        let (stride, trains) = (stride(width), adam.is_some());
        let what = "a dictionary's batch";
        let lists = Lists::new(batch, features, memory)?;
        let owns_all = place.mesh.data == 1;
        Ok(Buffers {
            weights: Weights::new(
                (width, stride, features),
                &place.owned_by(place.data(), features),
                precision,
                trains,
                memory,
            )?,
            last_update_f: memory.weights(features)?,
            last_fired_f: memory.weights(features)?,
            batch: Batch {
                path: Path::Sparse,
                has_runs: false,
                x_hat_bs: memory.step(batch * stride, what)?,
                g_bs: memory.step(batch * stride * precision.bytes(), what)?,
                error_b: memory.step(batch, what)?,
                l1_b: memory.step(batch, what)?,
                some_f: memory.step(features, what)?,
                rounds: Rounds::default(),
            },
            outcomes: Outcomes::new(batch, memory)?,
            csc: Csc::new((batch, features, stride), lists.capacity, trains, memory)?,
            dense: Dense::new((batch, features, stride), dense_bytes, (precision, trains, owns_all), memory)?,
            gradient: Gradient::new(features, stride, memory)?,
            between_ranks: BetweenRanks::new(place, &shape, stride, memory)?,
            lists,
        })
    }
}

impl CudaDictionary {
    /// Takes memory on the GPU of `engine`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`] and [`Error::Peer`].
    pub(super) fn new(engine: Arc<Engine>, shape: Shape) -> Result<Self, Error> {
        let buffers = Buffers::new(shape, engine.precision, engine.axes.place, &mut Memory::of(&engine))?;
        buffers.lists.prepare(&engine);
        buffers.csc.prepare(&engine, shape.batch);
        buffers.dense.prepare(&engine);
        engine.check()?;
        Ok(CudaDictionary {
            first_feature: first_feature(&engine.axes, shape.features)?,
            owned: engine.axes.owned(shape.features),
            engine,
            shape,
            buffers,
        })
    }

    fn csc_of(&self, x: &Rows) -> CscArgument {
        self.buffers.csc.argument(self.g_bs(), x.operand())
    }

    fn g_bs(&self) -> Pointer {
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

    /// Gradient rows of the touched ones of some features, as this rank's tokens give them.
    fn make_rows(&self, x: &Rows, (features, touched, to): (Range<usize>, TouchedArgument, RowsAt)) {
        let (engine, weights) = (&self.engine, &self.buffers.weights);
        match self.buffers.batch.path {
            Path::Sparse => {
                let status = &self.buffers.outcomes.last().status;
                let of = (self.csc_of(x), weights);
                self.buffers.gradient.rows_of_runs(engine, of, (features, touched, to), status);
            }
            Path::Dense => {
                self.buffers.dense.gradient_rows(
                    engine,
                    Operands { x, weights },
                    self.g_bs(),
                    &self.buffers.gradient,
                    (features, to),
                );
            }
        }
    }

    /// Makes the runs of the batch, once, for the first that needs them: backward, count, or a measurement.
    pub fn need_runs(&mut self) {
        if !self.buffers.batch.has_runs {
            let outcome = self.buffers.outcomes.last();
            self.buffers.csc.transpose(&self.engine, &self.buffers.lists, outcome.n, &outcome.status);
            self.buffers.batch.has_runs = true;
        }
    }
}

/// Where this rank's features begin among those of all ranks of the feature axis. Exchanges their numbers.
fn first_feature(axes: &Axes, features: usize) -> Result<u32, Error> {
    let counts = axes.feature.gather(&(features as u32).to_le_bytes())?;
    let before = counts[..axes.feature.index()].iter();
    Ok(before.filter_map(|count| count.first_chunk()).map(|count| u32::from_le_bytes(*count)).sum())
}

impl Dictionary for CudaDictionary {
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
            between_ranks.slices.encode(engine, x.n, |tokens| lists.encode(engine, (x, tokens), weights, status));
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
                decode(engine, (lists, tokens.clone()), (weights, first_s), (x_hat_bs, l1_b));
                sum(engine, x_hat_bs, tokens);
            }),
            Path::Dense => {
                let to = Forward { x_hat_bs, l1_b, count_f: &lists.count_f, first_s };
                dense.forward(&self.engine, Operands { x, weights }, to);
                sum(&self.engine, x_hat_bs, 0..x.n);
            }
        }
    }

    fn residual(&mut self, x: &Rows) {
        let Batch { x_hat_bs, error_b, l1_b, .. } = &self.buffers.batch;
        let (g_bs, count_f, status) = (self.g_bs(), &self.buffers.lists.count_f, &self.buffers.outcomes.last().status);
        Residual { x_hat_bs, g_bs, error_b, l1_b, count_f, status }.run(&self.engine, x);
        if self.buffers.between_ranks.statuses.is_some() && self.buffers.batch.path == Path::Sparse {
            // The last thing for which there may be no room on one rank, of which all must hear.
            self.need_runs();
        }
        if let Some(statuses) = &self.buffers.between_ranks.statuses {
            statuses.combine_sums(&self.engine, &self.buffers.outcomes.last().status);
        }
    }

    fn backward(&mut self, x: &Rows, lambda: f32) {
        self.buffers.gradient.lambda_over_b = lambda / x.of as f32;
        self.buffers.outcomes.begin_gradient();
        let g_bs = self.g_bs();
        if let Some(owners) = &mut self.buffers.between_ranks.owners {
            let (count_f, status) = (&self.buffers.lists.count_f, &self.buffers.outcomes.last().status);
            owners.tell(&self.engine, count_f, status, self.buffers.batch.path);
        }
        match self.buffers.batch.path {
            Path::Sparse => {
                self.need_runs();
                let csc = self.csc_of(x);
                let status = &self.buffers.outcomes.last().status;
                self.buffers.gradient.of_csc(&self.engine, &self.buffers.csc, csc, &self.buffers.weights, status);
            }
            // Where rows go to their owners they are made for each of them.
            Path::Dense if self.buffers.between_ranks.owners.is_some() => {}
            Path::Dense => {
                let of = Operands { x, weights: &self.buffers.weights };
                self.buffers.dense.backward(&self.engine, of, g_bs, &self.buffers.gradient);
            }
        }
        self.buffers.gradient.of_b_dec(&self.engine, g_bs, self.buffers.outcomes.last().n);
        if let Some(owners) = &self.buffers.between_ranks.owners {
            let rounds = owners.rounds(&self.engine);
            let make = |features, touched, to| self.make_rows(x, (features, touched, to));
            owners.measure(&self.engine, &rounds, (&self.buffers.gradient, &self.buffers.lists.count_f), make);
            self.buffers.batch.rounds = rounds;
        }
        let (gradient, status) = (&self.buffers.gradient, &self.buffers.outcomes.last().status);
        match &self.buffers.between_ranks.statuses {
            Some(statuses) => {
                let of_owned = (&gradient.norm2_f, &self.owned);
                statuses.combine_norms(&self.engine, of_owned, &gradient.b_dec_s, status);
            }
            None => gradient.finish(&self.engine, status),
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
                let of = Operands { x, weights: &self.buffers.weights };
                self.buffers.dense.count(&self.engine, of, tokens.clone(), &self.buffers.batch.some_f);
                (&self.buffers.batch.some_f, None)
            }
            Path::Sparse => {
                self.need_runs();
                (&self.buffers.lists.count_f, Some((self.buffers.csc.run_f.at(0), self.buffers.csc.token_p.at(0))))
            }
        };
        let Batch { error_b, l1_b, .. } = &self.buffers.batch;
        let Outcome { with_gradient, status, .. } = self.buffers.outcomes.last();
        let counted =
            Counted { tokens, error_b, l1_b, count_f, csc, status: status.at(0), with_gradient: *with_gradient };
        tally.add(&self.engine, x, &counted);
    }

    fn adam(&mut self, x: &Rows, update: &AdamUpdate) {
        let Some(mode) = self.shape.adam else { panic!("a dictionary made without Adam does not train") };
        let (csc, g_bs) = (self.csc_of(x), self.g_bs());
        let (engine, owners) = (&self.engine, &self.buffers.between_ranks.owners);
        let over_ranks = owners.as_ref().map(|owners| (&owners.count_f, &owners.bias_f));
        let (count_f, bias_f) = over_ranks.unwrap_or((&self.buffers.lists.count_f, &self.buffers.gradient.bias_f));
        let adam = Adam {
            weights: &self.buffers.weights,
            last_update_f: &self.buffers.last_update_f,
            last_fired_f: &self.buffers.last_fired_f,
            count_f,
            bias_f,
            gradient: &self.buffers.gradient,
            status: &self.buffers.outcomes.last().status,
            update: UpdateArgument::new(update, mode, self.first_feature),
        };
        match (owners, self.buffers.batch.path) {
            (Some(owners), _) => {
                let (rounds, count_f) = (&self.buffers.batch.rounds, &self.buffers.lists.count_f);
                let make = |features, touched, to| self.make_rows(x, (features, touched, to));
                owners.adam(engine, rounds, (&adam, mode != AdamMode::Dense), count_f, make);
            }
            (None, Path::Sparse) => adam.of_csc(engine, csc),
            (None, Path::Dense) => self.buffers.dense.adam(engine, x, g_bs, &adam),
        }
        adam.b_dec(engine);
        if mode == AdamMode::Dense {
            spread_all(engine, &mut self.buffers.weights, self.shape.features);
        }
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

    fn settle_into(&self, next: &AdamUpdate, into: &mut Self) {
        assert_eq!((self.shape.width, self.shape.features), (into.shape.width, into.shape.features), "one shape");
        let mode = self.shape.adam.unwrap_or(AdamMode::Dense);
        let update = UpdateArgument::new(next, mode, self.first_feature);
        settle(
            &self.engine,
            &self.buffers.weights,
            &self.buffers.last_update_f,
            &self.owned,
            update,
            &mut into.buffers.weights,
        );
        // Who has the moments settles.
        spread_all(&self.engine, &mut into.buffers.weights, self.shape.features);
    }

    fn read(&self, tensor: Tensor, slot: Slot, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.buffers.weights.parameter(tensor).read(slot, rows, out)
    }

    fn write(&mut self, tensor: Tensor, slot: Slot, rows: Range<usize>, values: &[f32]) {
        self.buffers.weights.write(&self.engine, tensor, slot, rows, values);
    }

    fn read_clock(&self, clock: Clock, features: Range<usize>, out: &mut [u64]) -> Result<(), Error> {
        assert_eq!(features.len(), out.len(), "room for the clocks");
        match clock {
            Clock::LastUpdate => self.buffers.last_update_f.read(features.start, out),
            Clock::LastFired => self.buffers.last_fired_f.read(features.start, out),
        }
    }

    fn write_clock(&mut self, clock: Clock, features: Range<usize>, values: &[u64]) {
        assert_eq!(features.len(), values.len(), "a clock for each feature");
        match clock {
            Clock::LastUpdate => self.buffers.last_update_f.write(features.start, values),
            Clock::LastFired => self.buffers.last_fired_f.write(features.start, values),
        }
    }
}
