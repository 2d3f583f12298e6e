//! The parameters of a dictionary on the GPU, and what follows from them.

use std::ops::Range;

use super::array::{Array, MatrixLayout};
use super::runtime::engine::{Argument, Engine, arguments};
use super::runtime::memory::{Buffer, GpuMemory};
use super::runtime::pointer::Pointer;
use super::runtime::precision::{Format, Precision, stride};
use crate::{Error, Shape, Tensor};

/// Biases are read in whole tiles of the encoder; past the last feature they are −∞, and nothing there is ever active.
const BIAS_PAD: usize = 128;

/// A parameter `[rows, columns]`, its rows `stride` apart.
pub struct Parameter {
    pub stride: usize,
    pub value: Array,
    /// What GEMMs read, where it is not `value` itself.
    copy: Option<Buffer<u16>>,
}

/// `Parameter` in parameter.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ParameterArgument {
    pub(super) value: Pointer,
    pub(super) first: Pointer,
    pub(super) second: Pointer,
    pub(super) copy: Pointer,
    pub(super) first_scale: Pointer,
    pub(super) second_scale: Pointer,
}
// SAFETY: six pointers in the same order.
unsafe impl Argument for ParameterArgument {}

impl Parameter {
    fn new(format: Format, layout: MatrixLayout, has_copy: bool, memory: &mut GpuMemory) -> Result<Self, Error> {
        let MatrixLayout { rows, stride, .. } = layout;
        Ok(Parameter {
            stride,
            value: Array::new(format, layout, memory)?,
            copy: has_copy.then(|| memory.weights(rows * stride)).transpose()?,
        })
    }

    /// As kernels take it that look at no moments.
    pub fn argument(&self) -> ParameterArgument {
        ParameterArgument {
            value: self.value.at(0),
            first: 0,
            second: 0,
            copy: self.copy.as_ref().map_or(0, |copy| copy.at(0)),
            first_scale: 0,
            second_scale: 0,
        }
    }

    /// Where row `row` begins in the format that GEMMs read.
    pub fn operand(&self, row: usize) -> Pointer {
        let at = row * self.stride;
        self.copy.as_ref().map_or_else(|| self.value.at(at), |copy| copy.at(at))
    }
}

/// All parameters.
pub struct Weights {
    pub w_enc: Parameter,
    pub b_enc: Parameter,
    pub w_dec: Parameter,
    pub b_dec: Parameter,
    /// `‖W_dec[f]‖`.
    pub norm_f: Buffer<f32>,
    features: usize,
}

impl Weights {
    /// Zeros for a dictionary of `shape`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(shape: &Shape, precision: Precision, memory: &mut GpuMemory) -> Result<Self, Error> {
        let Shape { width, features, .. } = *shape;
        let stride = stride(width);
        let biases = features.next_multiple_of(BIAS_PAD);
        let has_copy = matches!(precision, Precision::Mixed(_));
        let matrix = MatrixLayout { rows: features, columns: width, stride };
        let mut weights = Weights {
            w_enc: Parameter::new(precision.weights(), matrix, has_copy, memory)?,
            b_enc: Parameter::new(Format::F32, MatrixLayout { rows: biases, columns: 1, stride: 1 }, false, memory)?,
            w_dec: Parameter::new(precision.weights(), matrix, has_copy, memory)?,
            b_dec: Parameter::new(Format::F32, MatrixLayout { rows: 1, ..matrix }, false, memory)?,
            norm_f: memory.weights(features)?,
            features,
        };
        if memory.is_real() {
            weights.b_enc.value.write(features..biases, &vec![f32::NEG_INFINITY; biases - features]);
        }
        Ok(weights)
    }

    pub fn parameter(&self, tensor: Tensor) -> &Parameter {
        tensor.of([&self.w_enc, &self.b_enc, &self.w_dec, &self.b_dec])
    }

    fn parameter_mut(&mut self, tensor: Tensor) -> &mut Parameter {
        tensor.of([&mut self.w_enc, &mut self.b_enc, &mut self.w_dec, &mut self.b_dec])
    }

    /// Sets rows; copies and norms follow.
    pub fn write(&mut self, engine: &Engine, tensor: Tensor, rows: Range<usize>, values: &[f32]) {
        self.parameter_mut(tensor).value.write(rows.clone(), values);
        if matches!(tensor, Tensor::EncoderWeight | Tensor::DecoderWeight) {
            self.follow(engine, rows);
        }
    }

    /// Brings copies and norms of `features` up to their weights.
    pub fn follow(&mut self, engine: &Engine, features: Range<usize>) {
        assert!(features.end <= self.features, "features of the dictionary");
        let kernel = match engine.precision {
            Precision::F32 | Precision::Mixed(_) => "follow_f32",
            Precision::Bf16Sr(_) => "follow_bf16_sr",
        };
        let (first, stride) = (features.start as u32, self.w_dec.stride as u32);
        let arguments = arguments![self.w_enc.argument(), self.w_dec.argument(), self.norm_f.at(0), first, stride];
        // SAFETY: the features are the dictionary's own.
        unsafe { engine.enqueue(kernel, features.len(), 0, arguments) };
    }
}
