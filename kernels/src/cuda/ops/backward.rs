//! Launches `backward.cu`.

use std::ops::Range;

use super::Cost;
use super::touched::{RowsAt, TouchedArgument};
use super::transpose::{Csc, CscArgument};
use crate::Error;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, Memory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::Precision;
use crate::cuda::runtime::status::Status;
use crate::cuda::weights::Weights;

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
    pub fn new(features: usize, stride: usize, memory: &mut Memory) -> Result<Self, Error> {
        let what = "a gradient";
        Ok(Gradient {
            bias_f: memory.step(features, what)?,
            activation_f: memory.step(features, what)?,
            norm2_f: memory.step(features, what)?,
            b_dec_s: memory.step(stride, what)?,
            lambda_over_b: 0.0,
        })
    }

    /// The gradient of every feature that fired, from its run.
    pub fn of_csc(&mut self, engine: &Engine, csc: &Csc, of: CscArgument, weights: &Weights, status: &Buffer<Status>) {
        let features = self.bias_f.len();
        let (w_dec, norm_f, status) = (weights.w_dec.operand(0), weights.norm_f.at(0), status.at(0));
        let lambda_over_b = self.lambda_over_b;
        let (bias_f, activation_f, norm2_f) = (self.bias_f.at(0), self.activation_f.at(0), self.norm2_f.at(0));
        // SAFETY: runs are those of these features; every array has one value a feature.
        unsafe {
            let kernel = engine.precision.pick("backward_chunks_f32", "backward_chunks_bf16");
            let arguments = arguments![of, w_dec, norm_f, csc.feature_c.at(0), status, lambda_over_b, features as u32];
            engine.enqueue(kernel, 16 * engine.multiprocessors as usize, 0, arguments);
            let kernel = engine.precision.pick("backward_f32", "backward_bf16");
            let arguments = arguments![of, w_dec, norm_f, bias_f, activation_f, norm2_f, status, lambda_over_b];
            engine.enqueue(kernel, features, 0, arguments);
        }
    }

    /// Gradient rows of the touched ones of `features`, once [`Gradient::of_runs`] has been enqueued: for other ranks.
    pub fn rows_of_runs(
        &self,
        engine: &Engine,
        (of, weights): (CscArgument, &Weights),
        (features, touched, (dec_ts, enc_ts)): (Range<usize>, TouchedArgument, RowsAt),
        status: &Buffer<Status>,
    ) {
        let (w_dec, norm_f, activation_f) = (weights.w_dec.operand(0), weights.norm_f.at(0), self.activation_f.at(0));
        let (status, lambda_over_b) = (status.at(0), self.lambda_over_b);
        let kernel = engine.precision.pick("gradient_rows_f32", "gradient_rows_bf16");
        let arguments = arguments![of, w_dec, norm_f, activation_f, status, touched, dec_ts, enc_ts, lambda_over_b];
        // SAFETY: runs are those of the dictionary, and there is room for the rows.
        unsafe { engine.enqueue(kernel, features.len(), 0, arguments) };
    }

    /// `∂b_dec` of `n` tokens.
    pub fn of_b_dec(&self, engine: &Engine, g_bs: Pointer, n: usize) {
        let stride = self.b_dec_s.len();
        sum_columns(engine, g_bs, self.b_dec_s.at(0), (n, stride, stride));
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

/// Sums of the columns of a matrix `[n, stride]` in the format of GEMMs.
pub fn sum_columns(engine: &Engine, matrix: Pointer, sums: Pointer, (n, columns, stride): (usize, usize, usize)) {
    let kernel = engine.precision.pick("sum_columns_f32", "sum_columns_bf16");
    let arguments = arguments![matrix, sums, n as u32, columns as u32, stride as u32];
    // SAFETY: the matrix has n rows, and there is a sum for every column.
    unsafe { engine.enqueue(kernel, columns.div_ceil(32), 0, arguments) };
}

/// Rows of g and x a pair, a row of W_dec a touched feature.
pub fn cost(precision: Precision, width: usize, pairs: usize, touched: usize) -> Cost {
    let bytes = (2 * pairs + touched) * width * precision.bytes();
    Cost { bytes: bytes as u64, flop: 8 * (pairs * width) as u64 }
}
