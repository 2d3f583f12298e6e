//! A dictionary on the processor: its memory, and the order in which the operations use it.

use super::adam::{Change, Coefficients, Features, GradientRows, Row, Settle, SharedParameter, Skipped, UpdateRow};
use super::backward::{Backward, Gradient, Operands, rows_are_stored};
use super::count::{Active, Count, column_sums};
use super::decode::{Decode, SLICE};
use super::dense::{Dense, Forward};
use super::encode::{Encode, Scratch, TILE, TileCodes};
use super::memory::{Buffer, SharedRows};
use super::residual::Residual;
use super::screen::Screener;
use super::simd::{Kernel, Lanes, blocks, dot};
use super::{Engine, Rows, Tally, stride};
use crate::{AdamMode, AdamUpdate, Clock, Dictionary, Error, Path, Report, Shape, Slot, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Arrays with one value a feature are padded to whole tiles of either path.
const FEATURE_PAD: usize = 384;

/// What backward and Adam are asked of.
const TRAINS: &str = "a dictionary made with an Adam mode";

/// A rank's features on the processor.
pub struct CpuDictionary {
    engine: Arc<Engine>,
    shape: Shape,
    stride: usize,
    w_enc: Parameter,
    b_enc: Parameter,
    w_dec: Parameter,
    b_dec: Parameter,
    /// `‖W_dec[f]‖`.
    norm_f: Buffer<f32>,
    last_update_f: Buffer<u64>,
    last_fired_f: Buffer<u64>,
    screener: Screener,
    workers: Vec<Mutex<Scratch>>,
    batch: Batch,
    /// None in a dictionary that cannot train.
    gradient: Option<GradientBuffers>,
}

/// A parameter and its moments (none in a dictionary that cannot train).
struct Parameter {
    columns: usize,
    stride: usize,
    value: Buffer<f32>,
    first: Buffer<f32>,
    second: Buffer<f32>,
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
    count_f: Vec<u32>,
    report: Report,
}

/// What backward leaves for Adam.
struct GradientBuffers {
    /// Rows of the dense path, and of the sparse path when pairs are many: 8·F·D bytes.
    dec_fd: Buffer<f32>,
    enc_fd: Buffer<f32>,
    bias_f: Buffer<f32>,
    norm2_f: Buffer<f64>,
    b_dec_sums_d: Vec<f64>,
    b_dec_d: Buffer<f32>,
    lambda_over_b: f32,
    /// Whether the rows are stored; otherwise Adam makes them again from the lists.
    stored: bool,
}

impl Parameter {
    fn new(rows: usize, columns: usize, stride: usize, trains: bool) -> Result<Self, Error> {
        let what = "a dictionary's weights and moments";
        let moments = if trains { rows * stride } else { 0 };
        Ok(Parameter {
            columns,
            stride,
            value: Buffer::new(rows * stride, what)?,
            first: Buffer::new(moments, what)?,
            second: Buffer::new(moments, what)?,
        })
    }

    fn share(&mut self) -> SharedParameter<'_> {
        let stride = self.stride;
        let [value, first, second] =
            [&mut self.value, &mut self.first, &mut self.second].map(|values| SharedRows::new(values, stride));
        SharedParameter { value, first, second }
    }

    fn slot(&self, slot: Slot) -> &[f32] {
        match slot {
            Slot::Value => &self.value,
            Slot::FirstMoment => &self.first,
            Slot::SecondMoment => &self.second,
        }
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut [f32] {
        match slot {
            Slot::Value => &mut self.value,
            Slot::FirstMoment => &mut self.first,
            Slot::SecondMoment => &mut self.second,
        }
    }
}

impl GradientBuffers {
    fn new(features: usize, stride: usize) -> Result<Self, Error> {
        let what = "the gradient";
        Ok(GradientBuffers {
            dec_fd: Buffer::new(features * stride, what)?,
            enc_fd: Buffer::new(features * stride, what)?,
            bias_f: Buffer::new(features, what)?,
            norm2_f: Buffer::new(features, what)?,
            b_dec_sums_d: vec![0.0; stride],
            b_dec_d: Buffer::new(stride, what)?,
            lambda_over_b: 0.0,
            stored: false,
        })
    }
}

/// `‖row‖`.
struct Norm<'a>(&'a [f32]);

impl Kernel for Norm<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        dot(l, blocks(self.0), blocks(self.0)).sqrt()
    }
}

impl CpuDictionary {
    pub(super) fn new(engine: Arc<Engine>, shape: Shape) -> Result<Self, Error> {
        let what = "a dictionary's batch";
        let Shape { width, features, batch, adam, .. } = shape;
        assert!(width > 0 && features > 0 && batch > 0, "a dictionary has rows, features and a batch");
        let (stride, trains) = (stride(width), adam.is_some());
        let padded = features.next_multiple_of(FEATURE_PAD);
        let of_feature = || -> Result<Parameter, Error> { Parameter::new(padded, 1, 1, trains) };
        Ok(CpuDictionary {
            stride,
            shape,
            w_enc: Parameter::new(features, width, stride, trains)?,
            b_enc: of_feature()?,
            w_dec: Parameter::new(features, width, stride, trains)?,
            b_dec: Parameter::new(1, width, stride, trains)?,
            norm_f: Buffer::new(padded, what)?,
            last_update_f: Buffer::new(features, what)?,
            last_fired_f: Buffer::new(features, what)?,
            screener: Screener::new(&engine, batch, width, features)?,
            workers: (0..engine.threads()).map(|_| Mutex::new(Scratch::new(stride))).collect(),
            batch: Batch {
                path: Path::Sparse,
                tiles: (0..features.div_ceil(TILE)).map(|_| TileCodes::default()).collect(),
                dense: Dense::new(&shape)?,
                x_hat_slices: Buffer::new(batch * stride.next_multiple_of(SLICE), what)?,
                g_bd: Buffer::new(batch * stride, what)?,
                error_b: Buffer::new(batch, what)?,
                count_f: vec![0; features],
                report: Report::default(),
            },
            gradient: trains.then(|| GradientBuffers::new(features, stride)).transpose()?,
            engine,
        })
    }

    fn parameter(&self, tensor: Tensor) -> &Parameter {
        match tensor {
            Tensor::EncoderWeight => &self.w_enc,
            Tensor::EncoderBias => &self.b_enc,
            Tensor::DecoderWeight => &self.w_dec,
            Tensor::DecoderBias => &self.b_dec,
        }
    }

    fn parameter_mut(&mut self, tensor: Tensor) -> &mut Parameter {
        match tensor {
            Tensor::EncoderWeight => &mut self.w_enc,
            Tensor::EncoderBias => &mut self.b_enc,
            Tensor::DecoderWeight => &mut self.w_dec,
            Tensor::DecoderBias => &mut self.b_dec,
        }
    }

    /// The screen follows the encoder rows of `features`.
    fn narrow(&mut self, features: Range<usize>) {
        let writer = self.screener.writer();
        let (w_enc, b_enc, stride) = (&self.w_enc.value, &self.b_enc.value, self.stride);
        self.engine.pool.install(|| {
            features.into_par_iter().with_min_len(TILE).for_each(|f| {
                // SAFETY: each feature is visited once.
                unsafe { writer.write(f, &w_enc[f * stride..(f + 1) * stride], b_enc[f]) };
            });
        });
    }

    /// The decoder norms of `features` follow their rows.
    fn measure_decoder(&mut self, features: Range<usize>) {
        for f in features {
            self.norm_f[f] = self.engine.isa.run(Norm(&self.w_dec.value[f * self.stride..(f + 1) * self.stride]));
        }
    }

    fn forward_dense(&mut self, x: &Rows) {
        let of = Forward {
            engine: &self.engine,
            workers: &self.workers,
            x,
            w_enc_fd: &self.w_enc.value,
            b_enc_f: &self.b_enc.value,
            w_dec_fd: &self.w_dec.value,
            b_dec_d: &self.b_dec.value,
            norm_f: &self.norm_f,
            features: self.shape.features,
        };
        self.batch.dense.forward(&of, &mut self.batch.g_bd);
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
        let survivors = Encode {
            engine: &self.engine,
            workers: &self.workers,
            screener: &self.screener,
            w_enc_fd: &self.w_enc.value,
            b_enc_f: &self.b_enc.value[..self.shape.features],
        }
        .run(x, &mut self.batch.tiles);
        let active = self.batch.tiles.iter().map(|tile| tile.token.len()).sum();
        if self.screener.reconsider(x.n * self.shape.features, survivors, active) {
            tracing::info!(survivors, active, "the encoder's screen goes over from int8 to bf16");
            self.narrow(0..self.shape.features);
        }
    }

    fn decode(&mut self, x: &Rows) {
        match self.batch.path {
            Path::Dense => self.forward_dense(x),
            Path::Sparse => Decode {
                engine: &self.engine,
                n: x.n,
                batch: self.shape.batch,
                stride: self.stride,
                w_dec_fd: &self.w_dec.value,
                b_dec_d: &self.b_dec.value,
            }
            .run(&self.batch.tiles, &mut self.batch.x_hat_slices),
        }
    }

    fn residual(&mut self, x: &Rows) {
        let Batch { path, tiles, dense, x_hat_slices, g_bd, error_b, count_f, report } = &mut self.batch;
        let slices = (*path == Path::Sparse).then_some((&**x_hat_slices, self.shape.batch));
        Residual { engine: &self.engine, x, x_hat_slices: slices }.run(g_bd, error_b);
        report.squared_error = error_b[..x.n].iter().sum();
        count_f.fill(0);
        match path {
            Path::Sparse => {
                let norm_f = &self.norm_f;
                let sums = self.engine.pool.install(|| {
                    let tiles = tiles.par_iter().zip(count_f.par_chunks_mut(TILE)).enumerate();
                    tiles.map(|(tile, (codes, count))| codes.sums(&norm_f[tile * TILE..], count)).collect::<Vec<_>>()
                });
                report.l1 = sums.iter().sum();
            }
            Path::Dense => {
                dense.count(x.n, 0..x.n, count_f);
                report.l1 = dense.l1_b[..x.n].iter().sum();
            }
        }
        report.active = count_f.iter().map(|&count| u64::from(count)).sum();
        report.ok = report.non_finite_rows.is_empty();
    }

    fn backward(&mut self, x: &Rows, lambda: f32) {
        let Batch { path, tiles, dense, g_bd, report, .. } = &mut self.batch;
        let lambda_over_b = lambda / x.n as f32;
        let gradient = self.gradient.as_mut().expect(TRAINS);
        gradient.lambda_over_b = lambda_over_b;
        let operands = Operands { x_bd: &x.x_bd, stride: self.stride, g_bd, lambda_over_b };
        let to = Gradient {
            dec_fd: &mut gradient.dec_fd,
            enc_fd: &mut gradient.enc_fd,
            bias_f: &mut gradient.bias_f,
            norm2_f: &mut gradient.norm2_f,
        };
        match path {
            Path::Sparse => {
                let (w_dec_fd, norm_f) = (&self.w_dec.value, &self.norm_f);
                let backward = Backward { engine: &self.engine, workers: &self.workers, operands, w_dec_fd, norm_f };
                gradient.stored = rows_are_stored(tiles, self.shape.features);
                backward.run(tiles, to);
            }
            Path::Dense => {
                gradient.stored = true;
                let of = Forward {
                    engine: &self.engine,
                    workers: &self.workers,
                    x,
                    w_enc_fd: &self.w_enc.value,
                    b_enc_f: &self.b_enc.value,
                    w_dec_fd: &self.w_dec.value,
                    b_dec_d: &self.b_dec.value,
                    norm_f: &self.norm_f,
                    features: self.shape.features,
                };
                dense.backward(&of, g_bd, lambda_over_b, to);
            }
        }
        column_sums(&self.engine, g_bd, self.stride, 0..x.n, &mut gradient.b_dec_sums_d);
        gradient.b_dec_d.iter_mut().zip(&gradient.b_dec_sums_d).for_each(|(g, &sum)| *g = sum as f32);
        let b_dec2: f64 = gradient.b_dec_sums_d.iter().map(|sum| sum * sum).sum();
        report.gradient_norm = (gradient.norm2_f.iter().sum::<f64>() + b_dec2).sqrt();
        report.ok = report.ok && report.gradient_norm.is_finite();
    }

    fn count(&mut self, x: &Rows, tally: &mut Tally, counted: Range<usize>) {
        let counted = counted.start..counted.end.min(x.n);
        if !self.batch.report.ok || counted.is_empty() {
            return;
        }
        let Batch { path, tiles, dense, error_b, .. } = &self.batch;
        let active = match path {
            Path::Sparse => Active::Lists(tiles),
            Path::Dense => Active::Dense(dense),
        };
        Count { engine: &self.engine, x, error_b, active, norm_f: &self.norm_f }.run(counted, &mut tally.sums);
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
                let operands = Operands { x_bd: &x.x_bd, stride: self.stride, g_bd, lambda_over_b };
                GradientRows::Lists { operands, tiles: &self.batch.tiles }
            }
            true => GradientRows::Stored { dec_fd: &gradient.dec_fd, enc_fd: &gradient.enc_fd, stride: self.stride },
        };
        let features = Features {
            mode,
            update,
            coefficients,
            rows,
            bias_gradient_f: &gradient.bias_f,
            count_f: &self.batch.count_f,
            w_enc: self.w_enc.share(),
            b_enc: self.b_enc.share(),
            w_dec: self.w_dec.share(),
            norm_f: SharedRows::new(&mut self.norm_f, 1),
            last_update_f: SharedRows::new(&mut self.last_update_f, 1),
            last_fired_f: SharedRows::new(&mut self.last_fired_f, 1),
            screen: self.screener.writer(),
        };
        features.run(&self.engine, &self.workers);
        let Parameter { value, first, second, .. } = &mut self.b_dec;
        let change = Change { skipped: None, gradient: Some(&gradient.b_dec_d), coefficients };
        self.engine.isa.run(UpdateRow { row: Row { value, first, second }, change });
    }

    fn report(&mut self) -> Result<Report, Error> {
        Ok(self.batch.report.clone())
    }

    fn settle_into(&self, next: &AdamUpdate, into: &mut Self) {
        let features = self.shape.features;
        assert_eq!((self.shape.width, features), (into.shape.width, into.shape.features), "dictionaries of one shape");
        for tensor in [Tensor::EncoderWeight, Tensor::EncoderBias, Tensor::DecoderWeight, Tensor::DecoderBias] {
            let (from, to) = (self.parameter(tensor), &mut into.parameter_mut(tensor).value);
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
        into.measure_decoder(0..features);
    }

    fn read(&self, tensor: Tensor, slot: Slot, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let parameter = self.parameter(tensor);
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
        let parameter = self.parameter_mut(tensor);
        let (columns, stride) = (parameter.columns, parameter.stride);
        assert_eq!(values.len(), rows.len() * columns, "values for the rows");
        let to = parameter.slot_mut(slot);
        assert!(!to.is_empty(), "moments of a dictionary that trains");
        for (row, values) in rows.clone().zip(values.chunks_exact(columns)) {
            to[row * stride..][..columns].copy_from_slice(values);
        }
        match (tensor, slot) {
            (Tensor::EncoderWeight | Tensor::EncoderBias, Slot::Value) => self.narrow(rows),
            (Tensor::DecoderWeight, Slot::Value) => self.measure_decoder(rows),
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
