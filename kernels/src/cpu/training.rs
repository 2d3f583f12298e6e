//! Training on the processor: backward, Adam, and the optimiser's state.

use super::dictionary::{Batch, CpuDictionary};
use super::engine::Engine;
use super::memory::{Buffer, HostMemory, SharedRows};
use super::moments::{MomentArrays, RowMoments};
use super::ops::adam::{Change, Coefficients, Features, GradientSource, Row, Settle, Skipped, UpdateRow};
use super::ops::backward::{Backward, Gradient, Operands, rows_are_stored};
use super::ops::count::column_sums;
use super::ops::normalize::Rows;
use super::ops::{dense, exchange};
use crate::{AdamMode, AdamUpdate, Clock, Error, Moment, Path, Purpose, Shape, Tensor, Training};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// A dictionary on the processor that is trained.
pub type CpuTraining = CpuDictionary<Optimizer>;

/// What training needs besides weights.
pub struct Optimizer {
    mode: AdamMode,
    /// The features that this rank updates.
    owned: Range<usize>,
    moments: MomentArrays,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
    gradient: GradientBuffers,
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

impl GradientBuffers {
    fn new(features: usize, stride: usize, memory: &mut HostMemory) -> Result<Self, Error> {
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

impl CpuTraining {
    /// Takes memory for a dictionary that is trained.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn for_training(
        engine: Arc<Engine>,
        shape: Shape,
        mode: AdamMode,
        memory: &mut HostMemory,
    ) -> Result<Self, Error> {
        let owned = engine.axes.owned(shape.features);
        Self::with(engine, shape, Purpose::Training, memory, |weights, memory| {
            Ok(Optimizer {
                mode,
                moments: MomentArrays::new(weights, &owned, memory)?,
                owned,
                last_update_f: memory.weights(shape.features)?,
                last_fired_f: memory.weights(shape.features)?,
                gradient: GradientBuffers::new(shape.features, weights.stride, memory)?,
            })
        })
    }
}

impl Training for CpuTraining {
    type Settled = CpuDictionary;

    fn backward(&mut self, x: &Rows, lambda: f32) {
        let Self { engine, workers, weights, .. } = self;
        let Batch { path, tiles, dense, g_bd, count_f, report, .. } = &mut self.batch;
        let gradient = &mut self.training.gradient;
        let axes = &engine.axes;
        let lambda_over_b = lambda / x.batch_rows as f32;
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
            rows.measure(engine, &self.training.owned, norm2_f);
        }
        gradient.b_dec_d.iter_mut().zip(gradient.b_dec_sums_d.iter()).for_each(|(g, &sum)| *g = sum as f32);
        let b_dec2: f64 = gradient.b_dec_sums_d.iter().map(|sum| sum * sum).sum();
        let mut norm2 = [gradient.norm2_f[self.training.owned.clone()].iter().sum::<f64>()];
        engine.note(axes.all.sum_f64(&mut norm2));
        report.gradient_norm = (norm2[0] + b_dec2).sqrt();
        report.ok = report.ok && report.gradient_norm.is_finite();
    }

    fn adam(&mut self, x: &Rows, update: &AdamUpdate) {
        if !self.batch.report.ok {
            return;
        }
        let Optimizer { mode, owned, moments, last_update_f, last_fired_f, gradient } = &mut self.training;
        let mode = *mode;
        let coefficients = Coefficients::new(update, self.batch.report.gradient_norm);
        let rows = match gradient.stored {
            false => {
                let (g_bd, lambda_over_b) = (&*self.batch.g_bd, gradient.lambda_over_b);
                let operands = Operands { x_bd: &x.x_bd, stride: x.stride, g_bd, lambda_over_b };
                GradientSource::Lists { operands, tiles: &self.batch.tiles }
            }
            true => GradientSource::Stored { dec_fd: &gradient.dec_fd, enc_fd: &gradient.enc_fd, stride: x.stride },
        };
        let weights = &mut self.weights;
        let features = Features {
            owned: owned.clone(),
            mode,
            update,
            coefficients,
            rows,
            bias_gradient_f: &gradient.bias_f,
            count_f: &self.batch.count_f,
            w_enc: moments.w_enc.share(&mut weights.w_enc),
            b_enc: moments.b_enc.share(&mut weights.b_enc),
            w_dec: moments.w_dec.share(&mut weights.w_dec),
            norm_f: SharedRows::new(&mut weights.norm_f, 1),
            last_update_f: SharedRows::new(last_update_f, 1),
            last_fired_f: SharedRows::new(last_fired_f, 1),
            screen: self.screener.writer(),
        };
        features.run(&self.engine, &self.workers);
        let RowMoments { first, second, .. } = &mut moments.b_dec;
        let (value, first, second) = (&mut self.weights.b_dec.value, &mut first.value, &mut second.value);
        let change = Change { skipped: None, gradient: Some(&gradient.b_dec_d), coefficients };
        self.engine.isa.run(UpdateRow { row: Row { value, first, second }, change });
        let spread = self.spread(|batch, f| mode == AdamMode::Dense || batch.count_f[f] > 0);
        self.engine.note(spread);
    }

    fn settle_into(&self, next: &AdamUpdate, into: &mut CpuDictionary) {
        let features = self.shape.features;
        assert_eq!((self.shape.width, features), (into.shape.width, into.shape.features), "dictionaries of one shape");
        let Optimizer { mode, owned, moments, last_update_f, .. } = &self.training;
        for tensor in [Tensor::EncoderWeight, Tensor::EncoderBias, Tensor::DecoderWeight, Tensor::DecoderBias] {
            let (from, to) = (self.weights.parameter(tensor), &mut into.weights.parameter_mut(tensor).value);
            to.copy_from_slice(&from.value);
            if *mode != AdamMode::Catchup || tensor == Tensor::DecoderBias {
                continue;
            }
            let rows = &mut to[owned.start * from.stride..owned.end * from.stride];
            let rows = rows.par_chunks_exact_mut(from.stride).zip(&last_update_f[owned.clone()]);
            let moments = moments.of(tensor);
            self.engine.pool.install(|| {
                rows.enumerate().for_each(|(own, (value, &last_update))| {
                    let (first, second) = moments.row(owned.start + own);
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

    fn read_moment(&self, tensor: Tensor, moment: Moment, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.training.moments.of(tensor).read(moment, rows, out);
        Ok(())
    }

    fn write_moment(&mut self, tensor: Tensor, moment: Moment, rows: Range<usize>, values: &[f32]) {
        self.training.moments.of_mut(tensor).write(moment, rows, values);
    }

    fn read_clock(&self, clock: Clock, features: Range<usize>, out: &mut [u64]) -> Result<(), Error> {
        let clocks = match clock {
            Clock::LastUpdate => &self.training.last_update_f,
            Clock::LastFired => &self.training.last_fired_f,
        };
        out.copy_from_slice(&clocks[features]);
        Ok(())
    }

    fn write_clock(&mut self, clock: Clock, features: Range<usize>, values: &[u64]) {
        let clocks = match clock {
            Clock::LastUpdate => &mut self.training.last_update_f,
            Clock::LastFired => &mut self.training.last_fired_f,
        };
        clocks[features].copy_from_slice(values);
    }
}
