//! A dictionary on the processor: its memory, and the order in which the operations use it.

use super::codes::{TILE, TileCodes};
use super::engine::Engine;
use super::memory::{Buffer, Memory, SharedRows};
use super::ops::adam::{Change, Coefficients, Features, GradientRows, Row, Settle, Skipped, UpdateRow};
use super::ops::backward::{Backward, Gradient, Operands, rows_are_stored};
use super::ops::count::{Active, Count, Tally, column_sums};
use super::ops::decode::{Decode, SLICE};
use super::ops::dense::{self, Dense};
use super::ops::encode::Encode;
use super::ops::exchange::{self, spread};
use super::ops::normalize::Rows;
use super::ops::residual::Residual;
use super::scratch::Workers;
use super::screen::{GEMM_TOKENS, Screener};
use super::weights::{Parameter, Weights};
use crate::{AdamMode, AdamUpdate, Clock, Dictionary, Error, Path, Report, Shape, Slot, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Values of the largest GEMM of a task: two of the dense path's, or one of the f32 screen's.
const GEMM: usize = {
    let (dense, screen) = (2 * dense::TOKENS_MAX * dense::TILE, TILE * GEMM_TOKENS);
    if dense > screen { dense } else { screen }
};

/// What backward and Adam are asked of.
const TRAINS: &str = "a dictionary made with an Adam mode";

/// A rank's features on the processor.
pub struct CpuDictionary {
    engine: Arc<Engine>,
    shape: Shape,
    weights: Weights,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
    /// The features that this rank updates.
    owned: Range<usize>,
    screener: Screener,
    workers: Workers,
    batch: Batch,
    /// None in a dictionary that cannot train.
    gradient: Option<GradientBuffers>,
}

/// What the operations of a step leave for each other.
struct Batch {
    path: Path,
    /// Pairs of the sparse path.
    tiles: Vec<TileCodes>,
    dense: Dense,
    /// What x̂ begins with: b_dec on the first rank of the feature axis, zeros on the others.
    first_d: Buffer<f32>,
    /// x̂ of the sparse path, see [`super::decode`].
    x_hat_slices: Buffer<f32>,
    /// g; before [`Residual`] runs, x̂ of the dense path.
    g_bd: Buffer<f32>,
    error_b: Buffer<f64>,
    /// Tokens on which each feature fired.
    count_f: Buffer<u32>,
    report: Report,
}

/// What backward leaves for Adam.
struct GradientBuffers {
    /// Rows of the dense path, and of the sparse path when pairs are many: 8·F·D bytes.
    dec_fd: Buffer<f32>,
    enc_fd: Buffer<f32>,
    bias_f: Buffer<f32>,
    norm2_f: Buffer<f64>,
    b_dec_sums_d: Buffer<f64>,
    b_dec_d: Buffer<f32>,
    lambda_over_b: f32,
    /// Whether the rows are stored; otherwise Adam makes them again from the lists.
    stored: bool,
}

impl Batch {
    fn new(shape: &Shape, stride: usize, memory: &mut Memory) -> Result<Self, Error> {
        let what = "a dictionary's batch";
        let Shape { features, batch, .. } = *shape;
        Ok(Batch {
            path: Path::Sparse,
            tiles: (0..features.div_ceil(TILE)).map(|_| TileCodes::default()).collect(),
            dense: Dense::new(shape, memory)?,
            first_d: memory.step(stride, what)?,
            x_hat_slices: memory.step(batch * stride.next_multiple_of(SLICE), what)?,
            g_bd: memory.step(batch * stride, what)?,
            error_b: memory.step(batch, what)?,
            count_f: memory.step(features, what)?,
            report: Report::default(),
        })
    }
}

impl GradientBuffers {
    fn new(features: usize, stride: usize, memory: &mut Memory) -> Result<Self, Error> {
        let what = "the gradient";
        Ok(GradientBuffers {
            dec_fd: memory.step(features * stride, what)?,
            enc_fd: memory.step(features * stride, what)?,
            bias_f: memory.step(features, what)?,
            norm2_f: memory.step(features, what)?,
            b_dec_sums_d: memory.step(stride, what)?,
            b_dec_d: memory.step(stride, what)?,
            lambda_over_b: 0.0,
            stored: false,
        })
    }
}

impl CpuDictionary {
    pub(super) fn new(engine: Arc<Engine>, shape: Shape, memory: &mut Memory) -> Result<Self, Error> {
        let Shape { width, features, batch, adam, .. } = shape;
        assert!(width > 0 && features > 0 && batch > 0, "a dictionary has rows, features and a batch");
        let owned = engine.axes.owned(features);
        let weights = Weights::new(&shape, owned.clone(), memory)?;
        let stride = weights.stride;
        Ok(CpuDictionary {
            shape,
            weights,
            last_update_f: memory.weights(features)?,
            last_fired_f: memory.weights(features)?,
            owned,
            screener: Screener::new(&engine, &shape, memory)?,
            workers: Workers::new(engine.threads(), &shape, (GEMM, stride), memory)?,
            batch: Batch::new(&shape, stride, memory)?,
            gradient: adam.is_some().then(|| GradientBuffers::new(features, stride, memory)).transpose()?,
            engine,
        })
    }

    /// Brings rows that were updated here, or all own ones, to the ranks that hold copies of them, and theirs here.
    fn spread(&mut self, sends: impl Fn(&Batch, usize) -> bool) -> Result<(), Error> {
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
    fn narrow(&mut self, features: Range<usize>) {
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

impl Dictionary for CpuDictionary {
    type Rows = Rows;
    type Tally = Tally;

    fn shape(&self) -> Shape {
        self.shape
    }

    fn encode(&mut self, x: &Rows, path: Path) {
        assert!(x.width == self.shape.width && x.n <= self.shape.batch, "rows of the dictionary's shape");
        self.batch.path = path;
        self.batch.report = Report { rows: x.of, non_finite_rows: x.non_finite.clone(), ..Report::default() };
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

    fn backward(&mut self, x: &Rows, lambda: f32) {
        let Self { engine, workers, weights, .. } = self;
        let Batch { path, tiles, dense, g_bd, count_f, report, .. } = &mut self.batch;
        let gradient = self.gradient.as_mut().expect(TRAINS);
        let axes = &engine.axes;
        let lambda_over_b = lambda / x.of as f32;
        gradient.lambda_over_b = lambda_over_b;
        let to = Gradient {
            dec_fd: &mut gradient.dec_fd,
            enc_fd: &mut gradient.enc_fd,
            bias_f: &mut gradient.bias_f,
            norm2_f: &mut gradient.norm2_f,
        };
        match path {
            Path::Sparse => {
                let operands = Operands { x_bd: &x.x_bd, stride: x.stride, g_bd, lambda_over_b };
                // Rows that are summed over ranks must stay.
                gradient.stored = axes.data.size() > 1 || rows_are_stored(tiles, self.shape.features);
                Backward { engine, workers, operands, weights, stored: gradient.stored }.run(tiles, to);
            }
            Path::Dense => {
                gradient.stored = true;
                dense.backward(dense::Operands { engine, workers, weights, x }, g_bd, lambda_over_b, to);
            }
        }
        column_sums(engine, g_bd, x.stride, 0..x.n, &mut gradient.b_dec_sums_d);
        if axes.data.size() > 1 {
            engine.note(axes.data.sum_f64(&mut gradient.b_dec_sums_d));
            let GradientBuffers { dec_fd, enc_fd, bias_f, norm2_f, .. } = gradient;
            let mut rows = exchange::GradientRows { dec_fd, enc_fd, bias_f, count_f, stride: x.stride };
            engine.note(rows.sum(axes));
            rows.measure(engine, &self.owned, norm2_f);
        }
        gradient.b_dec_d.iter_mut().zip(gradient.b_dec_sums_d.iter()).for_each(|(g, &sum)| *g = sum as f32);
        let b_dec2: f64 = gradient.b_dec_sums_d.iter().map(|sum| sum * sum).sum();
        let mut norm2 = [gradient.norm2_f[self.owned.clone()].iter().sum::<f64>()];
        engine.note(axes.all.sum_f64(&mut norm2));
        report.gradient_norm = (norm2[0] + b_dec2).sqrt();
        report.ok = report.ok && report.gradient_norm.is_finite();
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

    fn adam(&mut self, x: &Rows, update: &AdamUpdate) {
        let (mode, gradient) = (self.shape.adam.expect(TRAINS), self.gradient.as_ref().expect(TRAINS));
        if !self.batch.report.ok {
            return;
        }
        let coefficients = Coefficients::new(update, self.batch.report.gradient_norm);
        let rows = match gradient.stored {
            false => {
                let (g_bd, lambda_over_b) = (&*self.batch.g_bd, gradient.lambda_over_b);
                let operands = Operands { x_bd: &x.x_bd, stride: x.stride, g_bd, lambda_over_b };
                GradientRows::Lists { operands, tiles: &self.batch.tiles }
            }
            true => GradientRows::Stored { dec_fd: &gradient.dec_fd, enc_fd: &gradient.enc_fd, stride: x.stride },
        };
        let weights = &mut self.weights;
        let features = Features {
            owned: self.owned.clone(),
            mode,
            update,
            coefficients,
            rows,
            bias_gradient_f: &gradient.bias_f,
            count_f: &self.batch.count_f,
            w_enc: weights.w_enc.share(),
            b_enc: weights.b_enc.share(),
            w_dec: weights.w_dec.share(),
            norm_f: SharedRows::new(&mut weights.norm_f, 1),
            last_update_f: SharedRows::new(&mut self.last_update_f, 1),
            last_fired_f: SharedRows::new(&mut self.last_fired_f, 1),
            screen: self.screener.writer(),
        };
        features.run(&self.engine, &self.workers);
        let Parameter { value, first, second, .. } = &mut self.weights.b_dec;
        let change = Change { skipped: None, gradient: Some(&gradient.b_dec_d), coefficients };
        self.engine.isa.run(UpdateRow { row: Row { value, first, second }, change });
        let spread = self.spread(|batch, f| mode == AdamMode::Dense || batch.count_f[f] > 0);
        self.engine.note(spread);
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

    fn settle_into(&self, next: &AdamUpdate, into: &mut Self) {
        let features = self.shape.features;
        assert_eq!((self.shape.width, features), (into.shape.width, into.shape.features), "dictionaries of one shape");
        for tensor in [Tensor::EncoderWeight, Tensor::EncoderBias, Tensor::DecoderWeight, Tensor::DecoderBias] {
            let (from, to) = (self.weights.parameter(tensor), &mut into.weights.parameter_mut(tensor).value);
            to.copy_from_slice(&from.value);
            if self.shape.adam != Some(AdamMode::Catchup) || tensor == Tensor::DecoderBias {
                continue;
            }
            let owned = self.owned.start * from.stride..self.owned.end * from.stride;
            let rows = to[owned].par_chunks_exact_mut(from.stride).zip(&self.last_update_f[self.owned.clone()]);
            self.engine.pool.install(|| {
                rows.enumerate().for_each(|(own, (value, &last_update))| {
                    let (first, second) = from.moments(self.owned.start + own);
                    if let Some(skipped) = Skipped::between(last_update, next) {
                        self.engine.isa.run(Settle { value, first, second, skipped });
                    }
                });
            });
        }
        // Who has the moments settles.
        let spread = into.spread(|_, _| true);
        self.engine.note(spread);
        into.narrow(0..features);
        into.weights.measure_decoder(into.engine.isa, 0..features);
    }

    fn read(&self, tensor: Tensor, slot: Slot, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let parameter = self.weights.parameter(tensor);
        let (columns, stride) = (parameter.columns, parameter.stride);
        assert_eq!(out.len(), rows.len() * columns, "room for the rows");
        let (from, values) = parameter.slot(slot);
        if self.shape.adam.is_none() && slot != Slot::Value {
            out.fill(0.0);
            return Ok(());
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            out.copy_from_slice(&values[(row - from) * stride..][..columns]);
        }
        Ok(())
    }

    fn write(&mut self, tensor: Tensor, slot: Slot, rows: Range<usize>, values: &[f32]) {
        let parameter = self.weights.parameter_mut(tensor);
        let (columns, stride) = (parameter.columns, parameter.stride);
        assert_eq!(values.len(), rows.len() * columns, "values for the rows");
        let (from, to) = parameter.slot_mut(slot);
        for (row, values) in rows.clone().zip(values.chunks_exact(columns)) {
            to[(row - from) * stride..][..columns].copy_from_slice(values);
        }
        match (tensor, slot) {
            (Tensor::EncoderWeight | Tensor::EncoderBias, Slot::Value) => self.narrow(rows),
            (Tensor::DecoderWeight, Slot::Value) => self.weights.measure_decoder(self.engine.isa, rows),
            _ => {}
        }
    }

    fn read_clock(&self, clock: Clock, features: Range<usize>, out: &mut [u64]) -> Result<(), Error> {
        let clocks = match clock {
            Clock::LastUpdate => &self.last_update_f,
            Clock::LastFired => &self.last_fired_f,
        };
        out.copy_from_slice(&clocks[features]);
        Ok(())
    }

    fn write_clock(&mut self, clock: Clock, features: Range<usize>, values: &[u64]) {
        let clocks = match clock {
            Clock::LastUpdate => &mut self.last_update_f,
            Clock::LastFired => &mut self.last_fired_f,
        };
        clocks[features].copy_from_slice(values);
    }
}
