//! A dictionary on the processor: its memory, and the order in which the operations use it.

use super::codes::{TILE, TileCodes, active_pairs};
use super::engine::Engine;
use super::memory::{Buffer, HostMemory};
use super::ops::count::{Active, Count, Tally};
use super::ops::decode::{Decode, SLICE};
use super::ops::dense::{self, Dense};
use super::ops::encode::Encode;
use super::ops::exchange::spread;
use super::ops::normalize::Rows;
use super::ops::residual::Residual;
use super::scratch::{ScratchSize, Workers};
use super::screen::{GEMM_TOKENS, Screener};
use super::weights::Weights;
use crate::{ActivePairs, Dictionary, Error, Path, Purpose, Report, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Values of the largest GEMM of a task: two of the dense path's, or one of the f32 screen's.
const GEMM: usize = {
    let (dense, screen) = (2 * dense::TOKENS_MAX * dense::TILE, TILE * GEMM_TOKENS);
    if dense > screen { dense } else { screen }
};

/// A rank's features on the processor. `T` is what training needs besides (`Optimizer`), and nothing in
/// a dictionary that is evaluated.
pub struct CpuDictionary<T = ()> {
    pub(super) engine: Arc<Engine>,
    pub(super) shape: Shape,
    pub(super) weights: Weights,
    pub(super) screener: Screener,
    pub(super) workers: Workers,
    pub(super) batch: Batch,
    pub(super) training: T,
}

/// What the operations of a step leave for each other.
pub(super) struct Batch {
    pub(super) path: Path,
    /// Pairs of the sparse path.
    pub(super) tiles: Vec<TileCodes>,
    pub(super) dense: Dense,
    /// What x̂ begins with: b_dec on the first rank of the feature axis, zeros on the others.
    pub(super) first_d: Buffer<f32>,
    /// x̂ of the sparse path, see [`super::decode`].
    pub(super) x_hat_slices: Buffer<f32>,
    /// g; before [`Residual`] runs, x̂ of the dense path.
    pub(super) g_bd: Buffer<f32>,
    pub(super) error_b: Buffer<f64>,
    /// Tokens on which each feature fired.
    pub(super) count_f: Buffer<u32>,
    pub(super) report: Report,
}

impl Batch {
    fn new(shape: &Shape, purpose: Purpose, stride: usize, memory: &mut HostMemory) -> Result<Self, Error> {
        let what = "a dictionary's batch";
        let Shape { features, batch, .. } = *shape;
        Ok(Batch {
            path: Path::Sparse,
            tiles: memory.lists(features.div_ceil(TILE)),
            dense: Dense::new(shape, purpose, memory)?,
            first_d: memory.step(stride, what)?,
            x_hat_slices: memory.step(batch * stride.next_multiple_of(SLICE), what)?,
            g_bd: memory.step(batch * stride, what)?,
            error_b: memory.step(batch, what)?,
            count_f: memory.step(features, what)?,
            report: Report::default(),
        })
    }
}

impl CpuDictionary {
    /// Takes memory for a dictionary that is evaluated.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn for_evaluation(engine: Arc<Engine>, shape: Shape, memory: &mut HostMemory) -> Result<Self, Error> {
        Self::with(engine, shape, Purpose::Evaluation, memory, |_, _| Ok(()))
    }
}

impl<T> CpuDictionary<T> {
    /// Takes memory; `training` takes that which only training needs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn with(
        engine: Arc<Engine>,
        shape: Shape,
        purpose: Purpose,
        memory: &mut HostMemory,
        training: impl FnOnce(&Weights, &mut HostMemory) -> Result<T, Error>,
    ) -> Result<Self, Error> {
        let Shape { width, features, batch, .. } = shape;
        assert!(width > 0 && features > 0 && batch > 0, "a dictionary has rows, features and a batch");
        let weights = Weights::new(&shape, memory)?;
        let stride = weights.stride;
        Ok(CpuDictionary {
            shape,
            training: training(&weights, memory)?,
            weights,
            screener: Screener::new(&engine, &shape, memory)?,
            workers: Workers::new(engine.threads(), &shape, ScratchSize { gemm: GEMM, row: stride }, memory)?,
            batch: Batch::new(&shape, purpose, stride, memory)?,
            engine,
        })
    }

    /// Brings rows that were updated here, or all own ones, to the ranks that hold copies of them, and theirs here.
    pub(super) fn spread(&mut self, sends: impl Fn(&Batch, usize) -> bool) -> Result<(), Error> {
        let Self { engine, weights, screener, batch, .. } = self;
        let (writer, isa) = (screener.writer(), engine.isa);
        spread(
            &engine.axes,
            weights,
            |f| sends(batch, f),
            |weights, f| {
                weights.measure_decoder(isa, f..f + 1);
                // SAFETY: one task writes them all.
                unsafe { writer.write(f, weights.w_enc.row(f), weights.b_enc.value[f]) };
            },
        )
    }

    /// The screen follows the encoder rows of `features`.
    pub(super) fn narrow(&mut self, features: Range<usize>) {
        let writer = self.screener.writer();
        let Weights { w_enc, b_enc, .. } = &self.weights;
        self.engine.pool.install(|| {
            features.into_par_iter().with_min_len(TILE).for_each(|f| {
                // SAFETY: each feature is visited once.
                unsafe { writer.write(f, w_enc.row(f), b_enc.value[f]) };
            });
        });
    }
}

impl<T: Send> Dictionary for CpuDictionary<T> {
    type Rows = Rows;
    type Tally = Tally;

    fn shape(&self) -> Shape {
        self.shape
    }

    fn encode(&mut self, x: &Rows, path: Path) {
        assert!(x.width == self.shape.width && x.n <= self.shape.batch, "rows of the dictionary's shape");
        self.batch.path = path;
        self.batch.report = Report { rows: x.batch_rows, non_finite_rows: x.non_finite.clone(), ..Report::default() };
        if path == Path::Dense {
            // A is made in decode, tile by tile, where it is used at once.
            return;
        }
        self.screener.pack(&self.engine, x);
        let Self { engine, workers, screener, weights, .. } = self;
        let survivors = Encode { engine, workers, screener, weights }.run(x, &mut self.batch.tiles);
        let active = self.batch.tiles.iter().map(|tile| tile.token.len()).sum();
        if self.screener.reconsider(x.n * self.shape.features, survivors, active) {
            tracing::info!(survivors, active, "the encoder's screen goes over from int8 to bf16");
            self.narrow(0..self.shape.features);
        }
    }

    fn decode(&mut self, x: &Rows) {
        let Self { engine, workers, weights, .. } = self;
        let Batch { path, tiles, dense, first_d, x_hat_slices, g_bd, .. } = &mut self.batch;
        let axis = &engine.axes.feature;
        if axis.index() == 0 {
            first_d.copy_from_slice(&weights.b_dec.value);
        }
        let x_hat = match path {
            Path::Dense => {
                dense.forward(dense::Operands { engine, workers, weights, x }, first_d, g_bd);
                &mut g_bd[..x.n * x.stride]
            }
            Path::Sparse => {
                let batch = self.shape.batch;
                Decode { engine, weights, first_d, n: x.n, batch }.run(tiles, x_hat_slices);
                &mut x_hat_slices[..]
            }
        };
        engine.note(axis.sum_f32(x_hat));
    }

    fn residual(&mut self, x: &Rows) {
        let Batch { path, tiles, dense, x_hat_slices, g_bd, error_b, count_f, report, .. } = &mut self.batch;
        let slices = (*path == Path::Sparse).then_some((&**x_hat_slices, self.shape.batch));
        Residual { engine: &self.engine, x, x_hat_slices: slices }.run(g_bd, error_b);
        report.squared_error = error_b[..x.n].iter().sum();
        match path {
            Path::Sparse => {
                let norm_f = &self.weights.norm_f;
                let sums = self.engine.pool.install(|| {
                    let tiles = tiles.par_iter().zip(count_f.par_chunks_mut(TILE)).enumerate();
                    tiles.map(|(tile, (codes, count))| codes.sums(&norm_f[tile * TILE..], count)).collect::<Vec<_>>()
                });
                report.l1 = sums.iter().sum();
            }
            Path::Dense => {
                dense.count_all(x.n, count_f);
                report.l1 = dense.l1_b[..x.n].iter().sum();
            }
        }
        let axes = &self.engine.axes;
        let active: u64 = count_f.iter().map(|&count| u64::from(count)).sum();
        // Ranks of the feature axis see the same rows: the first speaks for them.
        let error = if axes.feature.index() == 0 { report.squared_error } else { 0.0 };
        let mut sums = [error, report.l1, active as f64, report.non_finite_rows.len() as f64];
        self.engine.note(axes.all.sum_f64(&mut sums));
        let [squared_error, l1, active, non_finite] = sums;
        (report.squared_error, report.l1, report.active) = (squared_error, l1, active as u64);
        report.ok = non_finite == 0.0;
    }

    fn count(&mut self, x: &Rows, tally: &mut Tally, counted: Range<usize>) {
        let counted = counted.start..counted.end.min(x.n);
        if !self.batch.report.ok || counted.is_empty() {
            return;
        }
        let Self { engine, workers, weights, .. } = self;
        let Batch { path, tiles, dense, error_b, .. } = &self.batch;
        let active = match path {
            Path::Sparse => Active::Lists(tiles),
            Path::Dense => Active::Dense(dense, dense::Operands { engine, workers, weights, x }),
        };
        Count { engine, x, error_b, active, norm_f: &weights.norm_f }.run(counted, &mut tally.sums);
    }

    fn errors(&self, rows: Range<usize>, out: &mut [f64]) -> Result<(), Error> {
        self.engine.check()?;
        out.copy_from_slice(&self.batch.error_b[rows]);
        Ok(())
    }

    fn report(&mut self, back: usize) -> Result<Report, Error> {
        assert_eq!(back, 0, "a processor runs no steps ahead");
        self.engine.check()?;
        Ok(self.batch.report.clone())
    }

    fn release(&mut self) {
        // Nothing is held: a batch is done before the next one begins.
    }

    fn active_pairs(&self, x: &Rows, rows: Range<usize>) -> Result<ActivePairs, Error> {
        self.engine.check()?;
        assert!(rows.end <= x.n, "rows of the batch");
        let Self { engine, workers, weights, .. } = self;
        Ok(match self.batch.path {
            Path::Sparse => active_pairs(&self.batch.tiles, rows),
            Path::Dense => self.batch.dense.active_pairs(dense::Operands { engine, workers, weights, x }, rows),
        })
    }

    fn read(&self, tensor: Tensor, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.weights.parameter(tensor).read(rows, out);
        Ok(())
    }

    fn write(&mut self, tensor: Tensor, rows: Range<usize>, values: &[f32]) {
        self.weights.parameter_mut(tensor).write(rows.clone(), values);
        match tensor {
            Tensor::EncoderWeight | Tensor::EncoderBias => self.narrow(rows),
            Tensor::DecoderWeight => self.weights.measure_decoder(self.engine.isa, rows),
            Tensor::DecoderBias => {}
        }
    }
}
