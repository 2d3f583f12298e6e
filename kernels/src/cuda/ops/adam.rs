//! Launches `adam.cu`.

use std::ops::Range;

use super::Cost;
use super::backward::Gradient;
use super::touched::{RowsAt, TouchedArgument};
use super::transpose::CscArgument;
use crate::cuda::moments::MomentArrays;
use crate::cuda::runtime::engine::{Argument, Engine, arguments};
use crate::cuda::runtime::memory::Buffer;
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::{Moments, Precision};
use crate::cuda::runtime::status::Status;
use crate::cuda::weights::{ParameterArgument, Weights};
use crate::{AdamMode, AdamUpdate};

/// `Update` in adam.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UpdateArgument {
    learning_rate: f64,
    decay_from: f64,
    steps: f64,
    step: u64,
    tokens: u64,
    seed: u64,
    clip: f32,
    factor: f32,
    root: f32,
    mode: u32,
    first_feature: u32,
}
// SAFETY: the same numbers in the same order.
unsafe impl Argument for UpdateArgument {}

impl UpdateArgument {
    /// `first_feature` is where this rank's features begin among all ranks'.
    pub fn new(update: &AdamUpdate, mode: AdamMode, first_feature: u32) -> Self {
        let (factor, root) = update.factors();
        UpdateArgument {
            learning_rate: update.lr.base,
            decay_from: update.lr.decay_from,
            steps: update.lr.steps,
            step: update.step,
            tokens: update.tokens,
            seed: update.seed,
            clip: update.clip,
            factor,
            root,
            mode: match mode {
                AdamMode::Dense => 0,
                AdamMode::Catchup => 1,
                AdamMode::Touched => 2,
            },
            first_feature,
        }
    }
}

/// The kernels of a precision: the update from runs, the update from rows, and settling.
struct Kernels {
    csc: &'static str,
    rows: &'static str,
    settle: &'static str,
}

impl Kernels {
    #[rustfmt::skip] // A table.
    fn of(precision: Precision) -> Self {
        let (csc, rows, settle) = match precision {
            Precision::F32 => ("adam_f32", "adam_rows_f32", "settle_f32"),
            Precision::Mixed(Moments::F32) => ("adam_mixed", "adam_rows_f32", "settle_f32"),
            Precision::Mixed(Moments::Bf16) => ("adam_mixed_bf16", "adam_rows_mixed_bf16", "settle_mixed_bf16"),
            Precision::Mixed(Moments::Int8) => ("adam_mixed_int8", "adam_rows_mixed_int8", "settle_mixed_int8"),
            Precision::Bf16Sr(Moments::F32) => ("adam_bf16_sr", "adam_rows_bf16_sr", "settle_bf16_sr"),
            Precision::Bf16Sr(Moments::Bf16) => ("adam_bf16_sr_bf16", "adam_rows_bf16_sr_bf16", "settle_bf16_sr_bf16"),
            Precision::Bf16Sr(Moments::Int8) => ("adam_bf16_sr_int8", "adam_rows_bf16_sr_int8", "settle_bf16_sr_int8"),
        };
        Kernels { csc, rows, settle }
    }
}

/// `Dictionary` in adam.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DictionaryArgument {
    w_enc: ParameterArgument,
    b_enc: ParameterArgument,
    w_dec: ParameterArgument,
    norm_f: Pointer,
    last_update_f: Pointer,
    last_fired_f: Pointer,
    count_f: Pointer,
}
// SAFETY: pointers in the same order.
unsafe impl Argument for DictionaryArgument {}

/// The update of what a rank owns.
pub struct Adam<'a> {
    pub engine: &'a Engine,
    pub weights: &'a Weights,
    pub moments: &'a MomentArrays,
    pub last_update_f: &'a Buffer<u64>,
    pub last_fired_f: &'a Buffer<u64>,
    /// Firings and `∂b_enc`, over all ranks.
    pub count_f: &'a Buffer<u32>,
    pub bias_f: &'a Buffer<f32>,
    pub gradient: &'a Gradient,
    pub status: &'a Buffer<Status>,
    pub update: UpdateArgument,
}

impl Adam<'_> {
    fn dictionary(&self) -> DictionaryArgument {
        DictionaryArgument {
            w_enc: self.moments.w_enc.argument(&self.weights.w_enc),
            b_enc: self.moments.b_enc.argument(&self.weights.b_enc),
            w_dec: self.moments.w_dec.argument(&self.weights.w_dec),
            norm_f: self.weights.norm_f.at(0),
            last_update_f: self.last_update_f.at(0),
            last_fired_f: self.last_fired_f.at(0),
            count_f: self.count_f.at(0),
        }
    }

    /// Every feature, its gradient from its run.
    pub fn of_csc(&self, csc: CscArgument) {
        let kernel = Kernels::of(self.engine.precision).csc;
        let (w_dec, gradient) = (self.weights.w_dec.operand(0), self.gradient);
        let (bias_f, activation_f) = (self.bias_f.at(0), gradient.activation_f.at(0));
        let (status, lambda_over_b) = (self.status.at(0), gradient.lambda_over_b);
        let arguments =
            arguments![self.dictionary(), self.update, csc, w_dec, bias_f, activation_f, status, lambda_over_b];
        // SAFETY: runs and arrays are those of the dictionary.
        unsafe { self.engine.enqueue(kernel, self.count_f.len(), 0, arguments) };
    }

    /// `count` features from the first of `touched` on, their gradient from rows of those that are.
    pub fn of_rows(&self, rows: RowsAt, touched: TouchedArgument, count: usize) {
        let RowsAt { dec_ts, enc_ts } = rows;
        let (bias_f, status, stride) = (self.bias_f.at(0), self.status.at(0), self.weights.w_dec.stride as u32);
        let arguments = arguments![self.dictionary(), self.update, dec_ts, enc_ts, bias_f, status, touched, stride];
        // SAFETY: the touched features have rows, and there are `count` from the first on.
        unsafe { self.engine.enqueue(Kernels::of(self.engine.precision).rows, count, 0, arguments) };
    }

    /// b_dec.
    pub fn b_dec(&self) {
        let stride = self.weights.b_dec.stride;
        let (b_dec, status) = (self.moments.b_dec.argument(&self.weights.b_dec), self.status.at(0));
        let arguments = arguments![b_dec, self.update, self.gradient.b_dec_s.at(0), status, stride as u32];
        // SAFETY: all have one value a column.
        unsafe { self.engine.enqueue("adam_b_dec", stride.div_ceil(512), 0, arguments) };
    }
}

/// What weights settle from: with every update made that is owed before `update`.
pub struct Settle<'a> {
    pub engine: &'a Engine,
    pub weights: &'a Weights,
    pub moments: &'a MomentArrays,
    pub last_update_f: &'a Buffer<u64>,
    /// The features that this rank owns.
    pub owned: &'a Range<usize>,
    pub update: UpdateArgument,
}

impl Settle<'_> {
    /// Copies the settled weights of the owned features, and b_dec, to `into`.
    pub fn run(&self, into: &mut Weights) {
        let Settle { engine, weights, moments, update, .. } = *self;
        let (first, features) = (self.owned.start as u32, self.owned.len());
        let (last_update_f, stride) = (self.last_update_f.at(0), weights.w_dec.stride as u32);
        let kernel = Kernels::of(engine.precision).settle;
        for (parameter, to) in [
            (moments.w_enc.argument(&weights.w_enc), &into.w_enc),
            (moments.w_dec.argument(&weights.w_dec), &into.w_dec),
        ] {
            let arguments = arguments![parameter, update, last_update_f, to.value.at(0), first, stride];
            // SAFETY: both have the rows of `stride` values, in the engine's format, and these their moments.
            unsafe { engine.enqueue(kernel, features, 0, arguments) };
        }
        let (b_enc, b_dec) = (moments.b_enc.argument(&weights.b_enc), weights.b_dec.value.at(0));
        let (to_b_enc, to_b_dec) = (into.b_enc.value.at(0), into.b_dec.value.at(0));
        let count = features as u32;
        let arguments = arguments![b_enc, update, last_update_f, to_b_enc, first, count, b_dec, to_b_dec, stride];
        // SAFETY: both have one value a feature and a column.
        unsafe { engine.enqueue("settle_biases", (features + stride as usize).div_ceil(128), 0, arguments) };
        into.follow(engine, self.owned.clone());
    }
}

/// Weights, moments and copies of two rows a touched feature: what is kept is read and written, a copy only written.
pub fn cost(precision: Precision, width: usize, touched: usize) -> Cost {
    let of_moments = |moments| match moments {
        Moments::F32 => 16,
        Moments::Bf16 => 8,
        Moments::Int8 => 4,
    };
    let of_parameter = match precision {
        Precision::F32 => 8 + of_moments(Moments::F32),
        Precision::Mixed(moments) => 8 + 2 + of_moments(moments),
        Precision::Bf16Sr(moments) => 4 + of_moments(moments),
    };
    Cost { bytes: (2 * touched * width * of_parameter) as u64, flop: 28 * (touched * width) as u64 }
}
