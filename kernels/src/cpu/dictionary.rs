//! A dictionary on the processor: its memory, and the order in which the operations use it.

use super::adam::{Change, Coefficients, Features, GradientRows, Row, Settle, Skipped, UpdateRow};
use super::backward::{Backward, Gradient, Operands, rows_are_stored};
use super::count::{Active, Count, column_sums};
use super::decode::{Decode, SLICE};
use super::dense::{self, Dense};
use super::encode::{Encode, TILE, TileCodes};
use super::memory::{Buffer, Memory, SharedRows};
use super::residual::Residual;
use super::scratch::Workers;
use super::screen::Screener;
use super::weights::{Parameter, Weights};
use super::{Engine, Rows, Tally};
use crate::{AdamMode, AdamUpdate, Clock, Dictionary, Error, Path, Report, Shape, Slot, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// What backward and Adam are asked of.
const TRAINS: &str = "a dictionary made with an Adam mode";

/// A rank's features on the processor.
pub struct CpuDictionary {
    engine: Arc<Engine>,
    shape: Shape,
    weights: Weights,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
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
        let weights = Weights::new(&shape, memory)?;
        let stride = weights.stride;
        Ok(CpuDictionary {
            shape,
            weights,
            last_update_f: memory.weights(features)?,
            last_fired_f: memory.weights(features)?,
            screener: Screener::new(&engine, &shape, memory)?,
            workers: Workers::new(engine.threads(), &shape, stride, memory)?,
            batch: Batch::new(&shape, stride, memory)?,
            gradient: adam.is_some().then(|| GradientBuffers::new(features, stride, memory)).transpose()?,
            engine,
        })
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
        self.batch.report = Report { rows: x.n, non_finite_rows: x.non_finite.clone(), ..Report::default() };
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
        let Batch { path, tiles, dense, x_hat_slices, g_bd, .. } = &mut self.batch;
        match path {
            Path::Dense => dense.forward(dense::Operands { engine, workers, weights, x }, g_bd),
            Path::Sparse => Decode { engine, weights, n: x.n, batch: self.shape.batch }.run(tiles, x_hat_slices),
        }
    }

    fn residual(&mut self, x: &Rows) {
        let Batch { path, tiles, dense, x_hat_slices, g_bd, error_b, count_f, report } = &mut self.batch;
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
        report.active = count_f.iter().map(|&count| u64::from(count)).sum();
        report.ok = report.non_finite_rows.is_empty();
    }

    fn backward(&mut self, x: &Rows, lambda: f32) {
        let Self { engine, workers, weights, .. } = self;
        let Batch { path, tiles, dense, g_bd, report, .. } = &mut self.batch;
        let gradient = self.gradient.as_mut().expect(TRAINS);
        let lambda_over_b = lambda / x.n as f32;
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
                gradient.stored = rows_are_stored(tiles, self.shape.features);
                Backward { engine, workers, operands, weights }.run(tiles, to);
            }
            Path::Dense => {
                gradient.stored = true;
                dense.backward(dense::Operands { engine, workers, weights, x }, g_bd, lambda_over_b, to);
            }
        }
        column_sums(engine, g_bd, x.stride, 0..x.n, &mut gradient.b_dec_sums_d);
        gradient.b_dec_d.iter_mut().zip(gradient.b_dec_sums_d.iter()).for_each(|(g, &sum)| *g = sum as f32);
        let b_dec2: f64 = gradient.b_dec_sums_d.iter().map(|sum| sum * sum).sum();
        report.gradient_norm = (gradient.norm2_f.iter().sum::<f64>() + b_dec2).sqrt();
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
    }

    fn report(&mut self, back: usize) -> Result<Report, Error> {
        assert_eq!(back, 0, "a processor runs no steps ahead");
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
            let rows = to.par_chunks_exact_mut(from.stride).zip(&self.last_update_f[..]).enumerate();
            self.engine.pool.install(|| {
                rows.for_each(|(f, (value, &last_update))| {
                    let row = f * from.stride..(f + 1) * from.stride;
                    if let Some(skipped) = Skipped::between(last_update, next) {
                        let (first, second) = (&from.first[row.clone()], &from.second[row]);
                        self.engine.isa.run(Settle { value, first, second, skipped });
                    }
                });
            });
        }
        into.narrow(0..features);
        into.weights.measure_decoder(into.engine.isa, 0..features);
    }

    fn read(&self, tensor: Tensor, slot: Slot, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let parameter = self.weights.parameter(tensor);
        let (columns, stride) = (parameter.columns, parameter.stride);
        assert_eq!(out.len(), rows.len() * columns, "room for the rows");
        let values = parameter.slot(slot);
        if values.is_empty() {
            out.fill(0.0);
            return Ok(());
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            out.copy_from_slice(&values[row * stride..][..columns]);
        }
        Ok(())
    }

    fn write(&mut self, tensor: Tensor, slot: Slot, rows: Range<usize>, values: &[f32]) {
        let parameter = self.weights.parameter_mut(tensor);
        let (columns, stride) = (parameter.columns, parameter.stride);
        assert_eq!(values.len(), rows.len() * columns, "values for the rows");
        let to = parameter.slot_mut(slot);
        assert!(!to.is_empty(), "moments of a dictionary that trains");
        for (row, values) in rows.clone().zip(values.chunks_exact(columns)) {
            to[row * stride..][..columns].copy_from_slice(values);
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
