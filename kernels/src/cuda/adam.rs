//! Launches `adam.cu`.

use super::backward::Gradient;
use super::device::{Cost, Precision};
use super::engine::{Argument, Engine, arguments};
use super::memory::{Buffer, Pointer};
use super::status::Status;
use super::transpose::RunsArgument;
use super::weights::{ParameterArgument, Weights};
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
    clip: f32,
    factor: f32,
    root: f32,
    mode: u32,
}
// SAFETY: the same numbers in the same order.
unsafe impl Argument for UpdateArgument {}

impl UpdateArgument {
    pub fn new(update: &AdamUpdate, mode: AdamMode) -> Self {
        let (factor, root) = update.factors();
        UpdateArgument {
            learning_rate: update.lr.base,
            decay_from: update.lr.decay_from,
            steps: update.lr.steps,
            step: update.step,
            tokens: update.tokens,
            clip: update.clip,
            factor,
            root,
            mode: match mode {
                AdamMode::Dense => 0,
                AdamMode::Catchup => 1,
                AdamMode::Touched => 2,
            },
        }
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

/// What Adam changes.
pub struct Adam<'a> {
    pub weights: &'a mut Weights,
    pub last_update_f: &'a mut Buffer<u64>,
    pub last_fired_f: &'a mut Buffer<u64>,
    pub count_f: &'a Buffer<u32>,
    pub gradient: &'a Gradient,
    pub status: &'a Buffer<Status>,
    pub update: UpdateArgument,
}

impl Adam<'_> {
    fn dictionary(&self) -> DictionaryArgument {
        DictionaryArgument {
            w_enc: self.weights.w_enc.argument(),
            b_enc: self.weights.b_enc.argument(),
            w_dec: self.weights.w_dec.argument(),
            norm_f: self.weights.norm_f.at(0),
            last_update_f: self.last_update_f.at(0),
            last_fired_f: self.last_fired_f.at(0),
            count_f: self.count_f.at(0),
        }
    }

    /// Every feature, its gradient from its run.
    pub fn of_runs(&mut self, engine: &Engine, runs: RunsArgument) {
        let kernel = engine.precision.pick("adam_f32", "adam_bf16");
        let (w_dec, gradient) = (self.weights.w_dec.operand(0), self.gradient);
        let (bias_f, activation_f) = (gradient.bias_f.at(0), gradient.activation_f.at(0));
        let (status, lambda_over_b) = (self.status.at(0), gradient.lambda_over_b);
        let arguments =
            arguments![self.dictionary(), self.update, runs, w_dec, bias_f, activation_f, status, lambda_over_b];
        // SAFETY: runs and arrays are those of the dictionary.
        unsafe { engine.enqueue(kernel, self.count_f.len(), 0, arguments) };
    }

    /// `count` features from `first` on, their gradient from rows.
    pub fn of_rows(&mut self, engine: &Engine, (dec_ts, enc_ts): (Pointer, Pointer), first: usize, count: usize) {
        let (bias_f, status, stride) =
            (self.gradient.bias_f.at(0), self.status.at(0), self.weights.w_dec.stride as u32);
        let arguments =
            arguments![self.dictionary(), self.update, dec_ts, enc_ts, bias_f, status, first as u32, stride];
        // SAFETY: there are `count` rows, and so many features from `first` on.
        unsafe { engine.enqueue("adam_rows", count, 0, arguments) };
    }

    /// b_dec.
    pub fn b_dec(&mut self, engine: &Engine) {
        let stride = self.weights.b_dec.stride;
        let (b_dec, status) = (self.weights.b_dec.argument(), self.status.at(0));
        let arguments = arguments![b_dec, self.update, self.gradient.b_dec_s.at(0), status, stride as u32];
        // SAFETY: all have one value a column.
        unsafe { engine.enqueue("adam_b_dec", stride.div_ceil(512), 0, arguments) };
    }
}

/// Copies the weights of `from` to `into` with every update made that is owed before `update`.
pub fn settle(
    engine: &Engine,
    from: &Weights,
    last_update_f: &Buffer<u64>,
    features: usize,
    update: UpdateArgument,
    into: &mut Weights,
) {
    let pairs = [(&from.w_enc, &into.w_enc), (&from.b_enc, &into.b_enc), (&from.w_dec, &into.w_dec)];
    for (parameter, value) in pairs {
        let (parameter, columns) = (parameter.argument(), parameter.stride as u32);
        let arguments = arguments![parameter, update, last_update_f.at(0), value.value.at(0), columns];
        // SAFETY: both have `features` rows of `columns` values.
        unsafe { engine.enqueue("settle", features, 0, arguments) };
    }
    into.b_dec.value.copy(&from.b_dec.value, from.b_dec.stride);
    into.follow(engine, 0..features);
}

/// Weights, moments and copies of two rows a touched feature.
pub fn cost(precision: Precision, width: usize, touched: usize) -> Cost {
    let copy = if precision == Precision::Mixed { 2 } else { 0 };
    Cost { bytes: (2 * touched * width * (24 + copy)) as u64, flop: 28 * (touched * width) as u64 }
}
