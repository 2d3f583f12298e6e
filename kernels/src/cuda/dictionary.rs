//! A dictionary on the card: its memory, and the order in which the operations use it.

use std::ops::Range;
use std::sync::Arc;

use super::adam::{Adam, UpdateArgument, settle};
use super::backward::Gradient;
use super::count::{Counted, Tally};
use super::decode::decode;
use super::dense::{Dense, Forward, Operands};
use super::device::{Precision, stride};
use super::encode::Lists;
use super::engine::Engine;
use super::memory::{Buffer, Memory, Pointer};
use super::normalize::Rows;
use super::residual::Residual;
use super::status::{Outcome, Outcomes};
use super::transpose::{Runs, RunsArgument};
use super::weights::Weights;
use crate::{AdamMode, AdamUpdate, Clock, Dictionary, Error, Path, Report, Shape, Slot, Tensor};

/// A rank's features on a card.
pub struct CudaDictionary {
    engine: Arc<Engine>,
    shape: Shape,
    pub(super) weights: Weights,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
    pub(super) batch: Batch,
    pub(super) outcomes: Outcomes,
    pub(super) lists: Lists,
    runs: Runs,
    dense: Dense,
    pub(super) gradient: Gradient,
}

/// What the operations of a step leave for each other.
pub(super) struct Batch {
    path: Path,
    /// Whether [`Runs`] are those of this batch.
    has_runs: bool,
    pub(super) x_hat_bs: Buffer<f32>,
    /// g in the format of products: kept as bytes because that format is a choice.
    pub(super) g_bs: Buffer<u8>,
    error_b: Buffer<f64>,
    l1_b: Buffer<f64>,
    /// Firings among some tokens.
    some_f: Buffer<u32>,
}

/// The memory of a dictionary.
pub(super) struct Parts {
    weights: Weights,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
    batch: Batch,
    outcomes: Outcomes,
    lists: Lists,
    runs: Runs,
    dense: Dense,
    gradient: Gradient,
}

impl Parts {
    /// Takes it through `memory`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub(super) fn new(shape: Shape, precision: Precision, memory: &mut Memory) -> Result<Self, Error> {
        let Shape { width, features, batch, adam, dense_bytes } = shape;
        assert!(width > 0 && features > 0 && batch > 0, "a dictionary has rows, features and a batch");
        let (stride, trains) = (stride(width), adam.is_some());
        let what = "a dictionary's batch";
        let lists = Lists::new(batch, features, memory)?;
        Ok(Parts {
            weights: Weights::new((width, stride, features), precision, trains, memory)?,
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
            },
            outcomes: Outcomes::new(batch, memory)?,
            runs: Runs::new((batch, features, stride), lists.capacity, trains, memory)?,
            dense: Dense::new((batch, features, stride), dense_bytes, (precision, trains), memory)?,
            gradient: Gradient::new(features, stride, memory)?,
            lists,
        })
    }
}

impl CudaDictionary {
    /// Takes memory on the card of `engine`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub(super) fn new(engine: Arc<Engine>, shape: Shape) -> Result<Self, Error> {
        let parts = Parts::new(shape, engine.precision, &mut Memory::of(&engine))?;
        let Parts { weights, last_update_f, last_fired_f, batch, outcomes, lists, runs, dense, gradient } = parts;
        lists.prepare(&engine);
        runs.prepare(&engine, shape.batch);
        dense.prepare(&engine);
        engine.check()?;
        Ok(CudaDictionary {
            engine,
            shape,
            weights,
            last_update_f,
            last_fired_f,
            batch,
            outcomes,
            lists,
            runs,
            dense,
            gradient,
        })
    }

    fn runs_of(&self, x: &Rows) -> RunsArgument {
        self.runs.argument(self.g_bs(), x.operand())
    }

    fn g_bs(&self) -> Pointer {
        self.batch.g_bs.at(0)
    }

    /// Makes the runs of the batch, once, for whoever needs them first: backward, count, or who wants their time.
    pub fn need_runs(&mut self) {
        if !self.batch.has_runs {
            let outcome = self.outcomes.last();
            self.runs.transpose(&self.engine, &self.lists, outcome.n, &outcome.status);
            self.batch.has_runs = true;
        }
    }
}

impl Dictionary for CudaDictionary {
    type Rows = Rows;
    type Tally = Tally;

    fn shape(&self) -> Shape {
        self.shape
    }

    fn encode(&mut self, x: &Rows, path: Path) {
        assert!(x.width == self.shape.width && x.n <= self.shape.batch, "rows of the dictionary's shape");
        self.outcomes.begin(&self.engine, x);
        if path == Path::Sparse {
            self.lists.encode(&self.engine, x, &self.weights, &self.outcomes.last().status);
        }
        (self.batch.path, self.batch.has_runs) = (path, false);
    }

    fn decode(&mut self, x: &Rows) {
        let Batch { path, x_hat_bs, l1_b, .. } = &mut self.batch;
        let Outcome { n, status, .. } = self.outcomes.last();
        match path {
            Path::Sparse => decode(&self.engine, &self.lists, *n, &self.weights, (x_hat_bs, l1_b), status),
            Path::Dense => {
                let of = Operands { x, weights: &self.weights };
                self.dense.forward(&self.engine, of, Forward { x_hat_bs, l1_b, count_f: &self.lists.count_f });
            }
        }
    }

    fn residual(&mut self, x: &Rows) {
        let Batch { x_hat_bs, error_b, l1_b, .. } = &self.batch;
        let (g_bs, count_f, status) = (self.g_bs(), &self.lists.count_f, &self.outcomes.last().status);
        Residual { x_hat_bs, g_bs, error_b, l1_b, count_f, status }.run(&self.engine, x);
    }

    fn backward(&mut self, x: &Rows, lambda: f32) {
        self.gradient.lambda_over_b = lambda / x.n as f32;
        self.outcomes.begin_gradient();
        let g_bs = self.g_bs();
        match self.batch.path {
            Path::Sparse => {
                self.need_runs();
                let runs = self.runs_of(x);
                let status = &self.outcomes.last().status;
                self.gradient.of_runs(&self.engine, &self.runs, runs, &self.weights, status);
            }
            Path::Dense => {
                let of = Operands { x, weights: &self.weights };
                self.dense.backward(&self.engine, of, g_bs, &self.gradient);
            }
        }
        let Outcome { n, status, .. } = self.outcomes.last();
        self.gradient.finish(&self.engine, g_bs, *n, status);
    }

    fn count(&mut self, x: &Rows, tally: &mut Tally, counted: Range<usize>) {
        let n = self.outcomes.last().n;
        let tokens = counted.start..counted.end.min(n);
        if tokens.is_empty() {
            return;
        }
        let all = tokens == (0..n);
        let (count_f, runs) = match self.batch.path {
            _ if all => (&self.lists.count_f, None),
            Path::Dense => {
                let of = Operands { x, weights: &self.weights };
                self.dense.count(&self.engine, of, tokens.clone(), &self.batch.some_f);
                (&self.batch.some_f, None)
            }
            Path::Sparse => {
                self.need_runs();
                (&self.lists.count_f, Some((self.runs.run_f.at(0), self.runs.token_p.at(0))))
            }
        };
        let Batch { error_b, l1_b, .. } = &self.batch;
        let Outcome { with_gradient, status, .. } = self.outcomes.last();
        let counted =
            Counted { tokens, error_b, l1_b, count_f, runs, status: status.at(0), with_gradient: *with_gradient };
        tally.add(&self.engine, x, &counted);
    }

    fn adam(&mut self, x: &Rows, update: &AdamUpdate) {
        let Some(mode) = self.shape.adam else { panic!("a dictionary made without Adam does not train") };
        let (runs, g_bs) = (self.runs_of(x), self.g_bs());
        let mut adam = Adam {
            weights: &mut self.weights,
            last_update_f: &mut self.last_update_f,
            last_fired_f: &mut self.last_fired_f,
            count_f: &self.lists.count_f,
            gradient: &self.gradient,
            status: &self.outcomes.last().status,
            update: UpdateArgument::new(update, mode),
        };
        match self.batch.path {
            Path::Sparse => adam.of_runs(&self.engine, runs),
            Path::Dense => self.dense.adam(&self.engine, x, g_bs, &mut adam),
        }
        adam.b_dec(&self.engine);
    }

    fn report(&mut self, back: usize) -> Result<Report, Error> {
        self.outcomes.report(&self.engine, back)
    }

    fn release(&mut self) {
        self.outcomes.release();
    }

    fn settle_into(&self, next: &AdamUpdate, into: &mut Self) {
        assert_eq!((self.shape.width, self.shape.features), (into.shape.width, into.shape.features), "one shape");
        let mode = self.shape.adam.unwrap_or(AdamMode::Dense);
        let update = UpdateArgument::new(next, mode);
        settle(&self.engine, &self.weights, &self.last_update_f, self.shape.features, update, &mut into.weights);
    }

    fn read(&self, tensor: Tensor, slot: Slot, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.weights.parameter(tensor).read(slot, rows, out)
    }

    fn write(&mut self, tensor: Tensor, slot: Slot, rows: Range<usize>, values: &[f32]) {
        self.weights.write(&self.engine, tensor, slot, rows, values);
    }

    fn read_clock(&self, clock: Clock, features: Range<usize>, out: &mut [u64]) -> Result<(), Error> {
        assert_eq!(features.len(), out.len(), "room for the clocks");
        match clock {
            Clock::LastUpdate => self.last_update_f.read(features.start, out),
            Clock::LastFired => self.last_fired_f.read(features.start, out),
        }
    }

    fn write_clock(&mut self, clock: Clock, features: Range<usize>, values: &[u64]) {
        assert_eq!(features.len(), values.len(), "a clock for each feature");
        match clock {
            Clock::LastUpdate => self.last_update_f.write(features.start, values),
            Clock::LastFired => self.last_fired_f.write(features.start, values),
        }
    }
}
