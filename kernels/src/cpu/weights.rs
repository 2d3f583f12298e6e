//! The parameters of a dictionary, as the operations read them.

use super::adam::SharedParameter;
use super::memory::{Buffer, Memory, SharedRows};
use super::simd::{Isa, Kernel, Lanes, blocks, dot};
use super::stride;
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

/// A parameter and its moments (none in a dictionary that cannot train).
pub struct Parameter {
    pub columns: usize,
    pub stride: usize,
    pub value: Buffer<f32>,
    pub first: Buffer<f32>,
    pub second: Buffer<f32>,
}

impl Parameter {
    fn new(rows: usize, columns: usize, stride: usize, trains: bool, memory: &mut Memory) -> Result<Self, Error> {
        let moments = if trains { rows * stride } else { 0 };
        Ok(Parameter {
            columns,
            stride,
            value: memory.weights(rows * stride)?,
            first: memory.weights(moments)?,
            second: memory.weights(moments)?,
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
        SharedParameter { value, first, second }
    }

    pub fn slot(&self, slot: Slot) -> &[f32] {
        match slot {
            Slot::Value => &self.value,
            Slot::FirstMoment => &self.first,
            Slot::SecondMoment => &self.second,
        }
    }

    pub fn slot_mut(&mut self, slot: Slot) -> &mut [f32] {
        match slot {
            Slot::Value => &mut self.value,
            Slot::FirstMoment => &mut self.first,
            Slot::SecondMoment => &mut self.second,
        }
    }
}

impl Weights {
    /// Zeros for a dictionary of `shape`.
    pub fn new(shape: &Shape, memory: &mut Memory) -> Result<Self, Error> {
        let Shape { width, features, adam, .. } = *shape;
        let (stride, trains) = (stride(width), adam.is_some());
        let padded = features.next_multiple_of(FEATURE_PAD);
        Ok(Weights {
            features,
            stride,
            w_enc: Parameter::new(features, width, stride, trains, memory)?,
            b_enc: Parameter::new(padded, 1, 1, trains, memory)?,
            w_dec: Parameter::new(features, width, stride, trains, memory)?,
            b_dec: Parameter::new(1, width, stride, trains, memory)?,
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
