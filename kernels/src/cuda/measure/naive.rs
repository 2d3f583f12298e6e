//! Launches `naive.cu`: what benchmarks hold the operations against, first in what they give, then in time.
//!
//! Stands here because only this crate may hold device code, and outside [`crate::cuda::compile::sources::SOURCES`] because no run uses it: only
//! [`Cuda::beside_naive`] loads it. It works on the lists, runs and weights of a dictionary, in [`Precision::Mixed`] with moments in
//! binary32.

use std::sync::Arc;

use crate::cuda::device::Cuda;
use crate::cuda::ops::normalize::Rows;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::{Moments, Precision, stride};
use crate::cuda::runtime::status::Status;
use crate::cuda::training::CudaTraining;
use crate::cuda::weights::ParameterArgument;
use crate::{AdamUpdate, Error, Shape};

const THREADS: usize = 256;

/// Blocks of the kernels that go through long arrays, in rounds where there are many.
fn blocks(len: usize) -> usize {
    len.div_ceil(THREADS).min(1 << 14)
}

/// What the naive operations leave, beside a dictionary's own.
pub struct Naive {
    engine: Arc<Engine>,
    features: usize,
    stride: usize,
    /// Tokens that [`Naive::encode`] takes: all of a batch would be too many to write.
    tokens: usize,
    a_tf: Buffer<f32>,
    x_hat_bs: Buffer<f32>,
    dec_fs: Buffer<f32>,
    enc_fs: Buffer<f32>,
    bias_f: Buffer<f32>,
    norm2: Buffer<f64>,
}

impl Naive {
    /// For a dictionary of `shape` on a device of [`Cuda::beside_naive`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    ///
    /// # Panics
    /// On a device of another precision than the naive operations have.
    pub fn new(device: &Cuda, shape: Shape, tokens: usize) -> Result<Self, Error> {
        let engine = device.engine().clone();
        assert_eq!(engine.precision, Precision::Mixed(Moments::F32), "the only precision of naive.cu");
        let Shape { width, features, batch, .. } = shape;
        let (what, stride) = ("naive operations", stride(width));
        let mut memory = GpuMemory::of(&engine);
        Ok(Naive {
            features,
            stride,
            tokens,
            a_tf: memory.step(tokens * features, what)?,
            x_hat_bs: memory.step(batch * stride, what)?,
            dec_fs: memory.step(features * stride, what)?,
            enc_fs: memory.step(features * stride, what)?,
            bias_f: memory.step(features, what)?,
            norm2: memory.step(1, what)?,
            engine,
        })
    }

    /// Bytes that [`Naive::new`] takes.
    pub fn bytes(shape: Shape, tokens: usize) -> u64 {
        let Shape { width, features, batch, .. } = shape;
        4 * (tokens * features + (batch + 2 * features) * stride(width) + features) as u64
    }

    /// The activations of the first tokens of `x`, zeros included.
    pub fn encode(&mut self, of: &CudaTraining, x: &Rows) {
        let (w_enc, b_enc) = (of.buffers.weights.w_enc.operand(0), of.buffers.weights.b_enc.value.at(0));
        let arguments =
            arguments![x.operand(), w_enc, b_enc, self.a_tf.at(0), self.features as u32, self.stride as u32];
        let grid = (self.features.div_ceil(THREADS), self.tokens.min(x.n));
        // SAFETY: x has so many rows, and there is an activation for each of their features.
        unsafe { self.engine.enqueue("naive_encode", grid, 0, arguments) };
    }

    /// x̂ of the lists of `x`.
    pub fn decode(&mut self, of: &CudaTraining, x: &Rows) {
        let (pairs_bc, count_b, capacity) =
            (of.buffers.lists.pairs_bc.at(0), of.buffers.lists.count_b.at(0), of.buffers.lists.capacity as u32);
        let (w_dec, b_dec) = (of.buffers.weights.w_dec.operand(0), of.buffers.weights.b_dec.value.at(0));
        let arguments = arguments![pairs_bc, count_b, w_dec, b_dec, self.x_hat_bs.at(0), self.stride as u32, capacity];
        // SAFETY: lists name features of the dictionary; x̂ has room for a batch.
        unsafe { self.engine.enqueue("naive_decode", x.n, 0, arguments) };
    }

    /// The gradient and its norm. That of b_dec is the dictionary's: it is small and made the same way.
    pub fn backward(&mut self, of: &CudaTraining, x: &Rows) {
        [&mut self.dec_fs, &mut self.enc_fs, &mut self.bias_f].into_iter().for_each(Buffer::clear);
        self.norm2.clear();
        let (pairs_bc, count_b, capacity) =
            (of.buffers.lists.pairs_bc.at(0), of.buffers.lists.count_b.at(0), of.buffers.lists.capacity as u32);
        let (w_dec, norm_f, g_bs) =
            (of.buffers.weights.w_dec.operand(0), of.buffers.weights.norm_f.at(0), of.buffers.batch.g_bs.at(0));
        let (dec_fs, enc_fs, bias_f) = (self.dec_fs.at(0), self.enc_fs.at(0), self.bias_f.at(0));
        let (stride, lambda_over_b) = (self.stride as u32, of.training.buffers.gradient.lambda_over_b);
        let pairs = arguments![
            pairs_bc,
            count_b,
            w_dec,
            norm_f,
            g_bs,
            x.operand(),
            dec_fs,
            enc_fs,
            bias_f,
            stride,
            capacity,
            lambda_over_b
        ];
        // SAFETY: lists name features of the dictionary; gradients are as long as its weights.
        unsafe { self.engine.enqueue("naive_backward", x.n, 0, pairs) };
        let b_dec = &of.training.buffers.gradient.b_dec_s;
        for (values, len) in [&self.dec_fs, &self.enc_fs, &self.bias_f, b_dec].map(|of| (of.at(0), of.len())) {
            // SAFETY: `len` values.
            unsafe {
                self.engine.enqueue("naive_norm2", blocks(len), 0, arguments![values, self.norm2.at(0), len as u64])
            };
        }
    }

    /// Dense Adam from these gradients on the dictionary's weights, b_dec aside.
    pub fn adam(&mut self, of: &mut CudaTraining, update: &AdamUpdate) {
        let weights = &of.buffers.weights;
        let moments = &of.training.buffers.moments;
        let tensor = |to: ParameterArgument, gradient: Pointer, len: usize| {
            let (factor, root) = update.factors();
            let arguments = arguments![to, gradient, self.norm2.at(0), len as u64, update.clip, factor, root];
            // SAFETY: the parameter, its moments and its gradient have `len` values.
            unsafe { self.engine.enqueue("naive_adam", blocks(len), 0, arguments) };
        };
        let len = self.features * self.stride;
        tensor(moments.w_enc.argument(&weights.w_enc), self.enc_fs.at(0), len);
        tensor(moments.w_dec.argument(&weights.w_dec), self.dec_fs.at(0), len);
        tensor(moments.b_enc.argument(&weights.b_enc), self.bias_f.at(0), self.features);
        for parameter in [&weights.w_enc, &weights.w_dec] {
            // SAFETY: a copy is as long as its weights.
            unsafe { self.engine.enqueue("naive_copy", blocks(len), 0, arguments![parameter.argument(), len as u64]) };
        }
        let arguments = arguments![weights.w_dec.argument(), weights.norm_f.at(0), self.stride as u32];
        // SAFETY: a norm for each of the features.
        unsafe { self.engine.enqueue("naive_norms", self.features, 0, arguments) };
    }

    /// How far the activations of the first `tokens` tokens are from the dictionary's, as a share of the largest.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn differs_in_encode(&self, of: &CudaTraining, tokens: usize) -> Result<f64, Error> {
        let (features, capacity) = (self.features, of.buffers.lists.capacity);
        let mut count_b = vec![0; tokens];
        of.buffers.lists.count_b.read(0, &mut count_b)?;
        let (mut a_f, mut pairs) = (vec![0.0; features], vec![0; capacity]);
        let (mut own_f, mut difference) = (vec![0.0; features], Difference::default());
        for (token, &count) in count_b.iter().enumerate() {
            self.a_tf.read(token * features, &mut a_f)?;
            of.buffers.lists.pairs_bc.read(token * capacity, &mut pairs)?;
            own_f.fill(0.0);
            for pair in &pairs[..(count as usize).min(capacity)] {
                own_f[(pair >> 32) as usize] = f32::from_bits(*pair as u32);
            }
            difference.add(&a_f, &own_f);
        }
        Ok(difference.relative())
    }

    /// The same of x̂.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn differs_in_decode(&self, of: &CudaTraining, tokens: usize) -> Result<f64, Error> {
        let (mut naive, mut own) = (vec![0.0; tokens * self.stride], vec![0.0; tokens * self.stride]);
        self.x_hat_bs.read(0, &mut naive)?;
        of.buffers.batch.x_hat_bs.read(0, &mut own)?;
        let mut difference = Difference::default();
        difference.add(&naive, &own);
        Ok(difference.relative())
    }

    /// The same of the gradient: the larger of what differs in `∂b_enc` and in the norm.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn differs_in_backward(&self, of: &CudaTraining) -> Result<f64, Error> {
        let (mut naive_f, mut own_f) = (vec![0.0; self.features], vec![0.0; self.features]);
        self.bias_f.read(0, &mut naive_f)?;
        of.training.buffers.gradient.bias_f.read(0, &mut own_f)?;
        let mut difference = Difference::default();
        difference.add(&naive_f, &own_f);
        let (mut norm2, mut status) = ([0.0], [Status::default()]);
        self.norm2.read(0, &mut norm2)?;
        of.buffers.outcomes.last().status.read(0, &mut status)?;
        let norm = status[0].gradient_norm;
        Ok(difference.relative().max((norm2[0].sqrt() - norm).abs() / norm))
    }
}

/// The largest difference of two arrays, and the largest magnitude.
#[derive(Default)]
struct Difference {
    largest: f32,
    magnitude: f32,
}

impl Difference {
    fn add(&mut self, these: &[f32], those: &[f32]) {
        for (this, that) in these.iter().zip(those) {
            let difference = (this - that).abs();
            // What is not a number is as far off as can be.
            self.largest = if difference.is_nan() { f32::INFINITY } else { self.largest.max(difference) };
            self.magnitude = self.magnitude.max(that.abs());
        }
    }

    /// Two arrays of zeros agree.
    fn relative(&self) -> f64 {
        if self.largest == 0.0 { 0.0 } else { f64::from(self.largest) / f64::from(self.magnitude) }
    }
}
