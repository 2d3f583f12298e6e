//! The parameters of a dictionary, as the operations read them.

use super::engine::stride;
use super::memory::{Buffer, Memory, SharedRows};
use super::simd::{Isa, Kernel, Lanes, blocks, dot};
use crate::{Error, Shape, Slot, Tensor};
use std::ops::Range;

/// Arrays with one value a feature are padded to whole tiles of either path.
const FEATURE_PAD: usize = 384;

/// The parameters and what is derived from the decoder.
pub struct Weights {
    pub features: usize,
    /// Values from one row of W_enc or W_dec to the next.
    pub stride: usize,
    pub w_enc: Parameter,
    pub b_enc: Parameter,
    pub w_dec: Parameter,
    pub b_dec: Parameter,
    /// `‖W_dec[f]‖`.
    pub norm_f: Buffer<f32>,
}

/// A parameter that tasks update feature by feature.
pub struct SharedParameter<'a> {
    pub value: SharedRows<'a, f32>,
    pub first: SharedRows<'a, f32>,
    pub second: SharedRows<'a, f32>,
    /// The row to which the first moments belong.
    pub owned_from: usize,
}

/// A parameter, and the moments of the rows that this rank owns (none in a dictionary that cannot train).
pub struct Parameter {
    pub columns: usize,
    pub stride: usize,
    pub value: Buffer<f32>,
    pub first: Buffer<f32>,
    pub second: Buffer<f32>,
    /// Rows that have moments.
    owned: Range<usize>,
}

impl Parameter {
    fn new(
        rows: usize,
        columns: usize,
        stride: usize,
        owned: Range<usize>,
        memory: &mut Memory,
    ) -> Result<Self, Error> {
        let moments = owned.len() * stride;
        Ok(Parameter {
            columns,
            stride,
            value: memory.weights(rows * stride)?,
            first: memory.weights(moments)?,
            second: memory.weights(moments)?,
            owned,
        })
    }

    /// Row `f` of the parameter itself, padded.
    #[inline(always)]
    pub fn row(&self, f: usize) -> &[f32] {
        &self.value[f * self.stride..(f + 1) * self.stride]
    }

    /// For tasks that update it row by row.
    pub fn share(&mut self) -> SharedParameter<'_> {
        let stride = self.stride;
        let [value, first, second] =
            [&mut self.value, &mut self.first, &mut self.second].map(|values| SharedRows::new(values, stride));
        SharedParameter { value, first, second, owned_from: self.owned.start }
    }

    /// Moments of row `f`.
    pub fn moments(&self, f: usize) -> (&[f32], &[f32]) {
        let row = (f - self.owned.start) * self.stride..(f - self.owned.start + 1) * self.stride;
        (&self.first[row.clone()], &self.second[row])
    }

    /// The first row of an array, and the array.
    pub fn slot(&self, slot: Slot) -> (usize, &[f32]) {
        match slot {
            Slot::Value => (0, &self.value),
            Slot::FirstMoment => (self.owned.start, &self.first),
            Slot::SecondMoment => (self.owned.start, &self.second),
        }
    }

    /// As [`Parameter::slot`].
    pub fn slot_mut(&mut self, slot: Slot) -> (usize, &mut [f32]) {
        match slot {
            Slot::Value => (0, &mut self.value),
            Slot::FirstMoment => (self.owned.start, &mut self.first),
            Slot::SecondMoment => (self.owned.start, &mut self.second),
        }
    }
}

impl Weights {
    /// Zeros for a dictionary of `shape` on a rank that owns the features `owned`.
    pub fn new(shape: &Shape, owned: Range<usize>, memory: &mut Memory) -> Result<Self, Error> {
        let Shape { width, features, adam, .. } = *shape;
        let (stride, trains) = (stride(width), adam.is_some());
        let padded = features.next_multiple_of(FEATURE_PAD);
        let (owned, shared) = if trains { (owned, 0..1) } else { (0..0, 0..0) };
        Ok(Weights {
            features,
            stride,
            w_enc: Parameter::new(features, width, stride, owned.clone(), memory)?,
            b_enc: Parameter::new(padded, 1, 1, owned.clone(), memory)?,
            w_dec: Parameter::new(features, width, stride, owned, memory)?,
            b_dec: Parameter::new(1, width, stride, shared, memory)?,
            norm_f: memory.weights(padded)?,
        })
    }

    pub fn parameter(&self, tensor: Tensor) -> &Parameter {
        match tensor {
            Tensor::EncoderWeight => &self.w_enc,
            Tensor::EncoderBias => &self.b_enc,
            Tensor::DecoderWeight => &self.w_dec,
            Tensor::DecoderBias => &self.b_dec,
        }
    }

    pub fn parameter_mut(&mut self, tensor: Tensor) -> &mut Parameter {
        match tensor {
            Tensor::EncoderWeight => &mut self.w_enc,
            Tensor::EncoderBias => &mut self.b_enc,
            Tensor::DecoderWeight => &mut self.w_dec,
            Tensor::DecoderBias => &mut self.b_dec,
        }
    }

    /// The decoder norms of `features` follow their rows.
    pub fn measure_decoder(&mut self, isa: Isa, features: Range<usize>) {
        for f in features {
            self.norm_f[f] = isa.run(Norm(self.w_dec.row(f)));
        }
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
