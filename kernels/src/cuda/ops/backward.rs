//! Launches `backward.cu`.

use super::Cost;
use super::touched::{RowsAt, WantedRows};
use super::transpose::{Csc, CscArgument};
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::{Precision, stride};
use crate::cuda::runtime::status::Status;
use crate::cuda::weights::Weights;
use crate::{Error, Shape};

/// What backward leaves for Adam besides the runs.
pub struct Gradient {
    /// `∂b_enc`, `Σ a`, and the squared norm of all that belongs to a feature.
    pub bias_f: Buffer<f32>,
    pub activation_f: Buffer<f32>,
    pub norm2_f: Buffer<f32>,
    /// `∂b_dec`.
    pub b_dec_s: Buffer<f32>,
    pub lambda_over_b: f32,
}

impl Gradient {
    pub fn new(shape: &Shape, memory: &mut GpuMemory) -> Result<Self, Error> {
        let (what, features) = ("a gradient", shape.features);
        Ok(Gradient {
            bias_f: memory.step(features, what)?,
            activation_f: memory.step(features, what)?,
            norm2_f: memory.step(features, what)?,
            b_dec_s: memory.step(stride(shape.width), what)?,
            lambda_over_b: 0.0,
        })
    }

    /// `∂b_dec` of `n` tokens.
    pub fn of_b_dec(&self, engine: &Engine, g_bs: Pointer, n: usize) {
        let stride = self.b_dec_s.len();
        SumColumns { engine, matrix: g_bs, n, columns: stride, stride }.run(self.b_dec_s.at(0));
    }

    /// The norm of all gradients, where one rank has them all.
    pub fn finish(&self, engine: &Engine, status: &Buffer<Status>) {
        let stride = self.b_dec_s.len();
        let arguments =
            arguments![self.norm2_f.at(0), self.b_dec_s.at(0), status.at(0), self.norm2_f.len() as u32, stride as u32];
        // SAFETY: one value a feature and a column.
        unsafe { engine.enqueue("finish_gradient", 1, 0, arguments) };
    }
}

/// The operands of what is made from runs.
pub struct Backward<'a> {
    pub engine: &'a Engine,
    pub csc: &'a Csc,
    /// The same as kernels take it.
    pub csc_argument: CscArgument,
    pub weights: &'a Weights,
    pub status: &'a Buffer<Status>,
}

impl Backward<'_> {
    /// The gradient of every feature that fired, from its run.
    pub fn run(&self, to: &Gradient) {
        let Backward { engine, csc, csc_argument, weights, status } = *self;
        let features = to.bias_f.len();
        let (w_dec, norm_f, feature_c) = (weights.w_dec.operand(0), weights.norm_f.at(0), csc.feature_c.at(0));
        let (status, lambda_over_b, count) = (status.at(0), to.lambda_over_b, features as u32);
        let (bias_f, activation_f, norm2_f) = (to.bias_f.at(0), to.activation_f.at(0), to.norm2_f.at(0));
        // SAFETY: runs are those of these features; every array has one value a feature.
        unsafe {
            let kernel = engine.precision.pick("backward_chunks_f32", "backward_chunks_bf16");
            let arguments = arguments![csc_argument, w_dec, norm_f, feature_c, status, lambda_over_b, count];
            engine.enqueue(kernel, 16 * engine.multiprocessors as usize, 0, arguments);
            let kernel = engine.precision.pick("backward_f32", "backward_bf16");
            let arguments =
                arguments![csc_argument, w_dec, norm_f, bias_f, activation_f, norm2_f, status, lambda_over_b];
            engine.enqueue(kernel, features, 0, arguments);
        }
    }

    /// The gradient rows that are `wanted`, once [`Backward::run`] has been enqueued: for other ranks.
    pub fn rows(&self, gradient: &Gradient, wanted: &WantedRows) {
        let Backward { engine, csc_argument, weights, status, .. } = *self;
        let WantedRows { features, touched, to: RowsAt { dec_ts, enc_ts } } = wanted;
        let (w_dec, norm_f, status) = (weights.w_dec.operand(0), weights.norm_f.at(0), status.at(0));
        let (activation_f, lambda_over_b) = (gradient.activation_f.at(0), gradient.lambda_over_b);
        let kernel = engine.precision.pick("gradient_rows_f32", "gradient_rows_bf16");
        let arguments =
            arguments![csc_argument, w_dec, norm_f, activation_f, status, *touched, *dec_ts, *enc_ts, lambda_over_b];
        // SAFETY: runs are those of the dictionary, and there is room for the rows.
        unsafe { engine.enqueue(kernel, features.len(), 0, arguments) };
    }
}

/// Sums of the columns of a matrix `[n, columns]` in the format of GEMMs, its rows `stride` apart.
pub struct SumColumns<'a> {
    pub engine: &'a Engine,
    pub matrix: Pointer,
    pub n: usize,
    pub columns: usize,
    pub stride: usize,
}

impl SumColumns<'_> {
    /// Writes them to `sums`.
    pub fn run(&self, sums: Pointer) {
        let SumColumns { engine, matrix, n, columns, stride } = *self;
        let kernel = engine.precision.pick("sum_columns_f32", "sum_columns_bf16");
        let arguments = arguments![matrix, sums, n as u32, columns as u32, stride as u32];
        // SAFETY: the matrix has n rows, and there is a sum for every column.
        unsafe { engine.enqueue(kernel, columns.div_ceil(32), 0, arguments) };
    }
}

/// Rows of g and x a pair, a row of W_dec a touched feature.
pub fn cost(precision: Precision, width: usize, pairs: usize, touched: usize) -> Cost {
    let bytes = (2 * pairs + touched) * width * precision.bytes();
    Cost { bytes: bytes as u64, flop: 8 * (pairs * width) as u64 }
}
