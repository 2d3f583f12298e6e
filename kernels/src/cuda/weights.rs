//! The parameters of a dictionary on the GPU, their moments, and what follows from them.

use std::ops::Range;

use super::array::Array;
use super::runtime::engine::{Argument, Engine, arguments};
use super::runtime::memory::{Buffer, Memory};
use super::runtime::pointer::Pointer;
use super::runtime::precision::{Format, Precision};
use crate::{Error, Slot, Tensor};

/// Biases are read in whole tiles of the encoder; past the last feature they are −∞, and nothing there is ever active.
const BIAS_PAD: usize = 128;

/// A parameter `[rows, columns]`, its rows `stride` apart.
pub struct Parameter {
    pub stride: usize,
    pub value: Array,
    /// Moments of the rows that this rank owns; one value where nothing is trained.
    first: Array,
    second: Array,
    owned: Range<usize>,
    /// What GEMMs read, where it is not `value` itself.
    copy: Option<Buffer<u16>>,
    trains: bool,
}

/// `Parameter` in parameter.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ParameterArgument {
    value: Pointer,
    first: Pointer,
    second: Pointer,
    copy: Pointer,
    first_scale: Pointer,
    second_scale: Pointer,
}
// SAFETY: six pointers in the same order.
unsafe impl Argument for ParameterArgument {}

impl Parameter {
    fn new(
        ((rows, columns, stride), owned): ((usize, usize, usize), Range<usize>),
        (value, [first, second]): (Format, [Format; 2]),
        has_copy: bool,
        trains: bool,
        memory: &mut Memory,
    ) -> Result<Self, Error> {
        let moments = (if trains { owned.len() } else { 0 }, columns, stride);
        Ok(Parameter {
            stride,
            value: Array::new(value, (rows, columns, stride), memory)?,
            first: Array::new(first, moments, memory)?,
            second: Array::new(second, moments, memory)?,
            owned,
            copy: has_copy.then(|| memory.weights(rows * stride)).transpose()?,
            trains,
        })
    }

    /// As kernels take it.
    pub fn argument(&self) -> ParameterArgument {
        ParameterArgument {
            value: self.value.at(0),
            first: self.first.row_zero(self.owned.start),
            second: self.second.row_zero(self.owned.start),
            copy: self.copy.as_ref().map_or(0, |copy| copy.at(0)),
            first_scale: self.first.scale_zero(self.owned.start),
            second_scale: self.second.scale_zero(self.owned.start),
        }
    }

    /// Where row `row` begins in the format that GEMMs read.
    pub fn operand(&self, row: usize) -> Pointer {
        let at = row * self.stride;
        self.copy.as_ref().map_or_else(|| self.value.at(at), |copy| copy.at(at))
    }

    /// Copies `rows` to `out`, without the padding.
    pub fn read(&self, slot: Slot, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        match slot {
            Slot::FirstMoment | Slot::SecondMoment if !self.trains => {
                out.fill(0.0);
                Ok(())
            }
            Slot::Value => self.value.read(rows, out),
            Slot::FirstMoment => self.first.read(self.own(rows), out),
            Slot::SecondMoment => self.second.read(self.own(rows), out),
        }
    }

    fn write(&mut self, slot: Slot, rows: Range<usize>, values: &[f32]) {
        assert!(slot == Slot::Value || self.trains, "moments of a dictionary that trains");
        match slot {
            Slot::Value => self.value.write(rows, values),
            Slot::FirstMoment => self.first.write(self.own(rows), values),
            Slot::SecondMoment => self.second.write(self.own(rows), values),
        }
    }

    /// Rows as moments count them.
    fn own(&self, rows: Range<usize>) -> Range<usize> {
        let Range { start, end } = self.owned;
        assert!(start <= rows.start && rows.end <= end, "moments of features that this rank owns");
        rows.start - start..rows.end - start
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
    /// Moments are those of the features `owned`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(
        (width, stride, features): (usize, usize, usize),
        owned: &Range<usize>,
        precision: Precision,
        trains: bool,
        memory: &mut Memory,
    ) -> Result<Self, Error> {
        let biases = features.next_multiple_of(BIAS_PAD);
        let formats = (precision.weights(), precision.moments());
        let has_copy = matches!(precision, Precision::Mixed(_));
        let single = (Format::F32, [Format::F32; 2]);
        let matrix = || ((features, width, stride), owned.clone());
        let mut weights = Weights {
            w_enc: Parameter::new(matrix(), formats, has_copy, trains, memory)?,
            b_enc: Parameter::new(((biases, 1, 1), owned.clone()), single, false, trains, memory)?,
            w_dec: Parameter::new(matrix(), formats, has_copy, trains, memory)?,
            b_dec: Parameter::new(((1, width, stride), 0..1), single, false, trains, memory)?,
            norm_f: memory.weights(features)?,
            features,
        };
        if memory.is_real() {
            weights.b_enc.value.write(features..biases, &vec![f32::NEG_INFINITY; biases - features]);
        }
        Ok(weights)
    }

    pub fn parameter(&self, tensor: Tensor) -> &Parameter {
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

    /// Sets rows; copies and norms follow.
    pub fn write(&mut self, engine: &Engine, tensor: Tensor, slot: Slot, rows: Range<usize>, values: &[f32]) {
        self.parameter_mut(tensor).write(slot, rows.clone(), values);
        if slot == Slot::Value && matches!(tensor, Tensor::EncoderWeight | Tensor::DecoderWeight) {
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
