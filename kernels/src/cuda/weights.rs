//! The parameters of a dictionary on the card, their moments, and what follows from them.

use std::ops::Range;

use super::device::Precision;
use super::engine::{Argument, Engine, arguments};
use super::memory::{Buffer, Memory, Pointer};
use crate::{Error, Slot, Tensor};

/// Biases are read in whole tiles of the encoder; past the last feature they are −∞, and nothing there is ever active.
const BIAS_PAD: usize = 128;

/// A parameter `[rows, columns]`, its rows `stride` apart.
pub struct Parameter {
    pub columns: usize,
    pub stride: usize,
    pub value: Buffer<f32>,
    /// Moments; one value where nothing is trained.
    first: Buffer<f32>,
    second: Buffer<f32>,
    copy: Option<Buffer<u16>>,
    trains: bool,
}

/// `Parameter` in adam.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ParameterArgument {
    value: Pointer,
    first: Pointer,
    second: Pointer,
    copy: Pointer,
}
// SAFETY: four pointers in the same order.
unsafe impl Argument for ParameterArgument {}

impl Parameter {
    fn new(
        (rows, columns, stride): (usize, usize, usize),
        has_copy: bool,
        trains: bool,
        memory: &mut Memory,
    ) -> Result<Self, Error> {
        let moments = if trains { rows * stride } else { 0 };
        Ok(Parameter {
            columns,
            stride,
            value: memory.weights(rows * stride)?,
            first: memory.weights(moments)?,
            second: memory.weights(moments)?,
            copy: has_copy.then(|| memory.weights(rows * stride)).transpose()?,
            trains,
        })
    }

    /// As kernels take it.
    pub fn argument(&self) -> ParameterArgument {
        let copy = self.copy.as_ref().map_or(0, |copy| copy.at(0));
        ParameterArgument { value: self.value.at(0), first: self.first.at(0), second: self.second.at(0), copy }
    }

    /// Where row `row` begins in the format that products read.
    pub fn operand(&self, row: usize) -> Pointer {
        let at = row * self.stride;
        self.copy.as_ref().map_or_else(|| self.value.at(at), |copy| copy.at(at))
    }

    fn slot(&self, slot: Slot) -> &Buffer<f32> {
        match slot {
            Slot::Value => &self.value,
            Slot::FirstMoment => &self.first,
            Slot::SecondMoment => &self.second,
        }
    }

    /// Copies `rows` to `out`, without the padding.
    pub fn read(&self, slot: Slot, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        assert_eq!(out.len(), rows.len() * self.columns, "room for the rows");
        if slot != Slot::Value && !self.trains {
            out.fill(0.0);
            return Ok(());
        }
        if self.stride == self.columns {
            return self.slot(slot).read(rows.start * self.stride, out);
        }
        let mut padded = vec![0.0; rows.len() * self.stride];
        self.slot(slot).read(rows.start * self.stride, &mut padded)?;
        let padded = padded.chunks_exact(self.stride);
        padded.zip(out.chunks_exact_mut(self.columns)).for_each(|(from, to)| to.copy_from_slice(&from[..self.columns]));
        Ok(())
    }

    fn write(&mut self, slot: Slot, rows: Range<usize>, values: &[f32]) {
        assert_eq!(values.len(), rows.len() * self.columns, "values for the rows");
        assert!(slot == Slot::Value || self.trains, "moments of a dictionary that trains");
        let (columns, stride) = (self.columns, self.stride);
        let to = match slot {
            Slot::Value => &mut self.value,
            Slot::FirstMoment => &mut self.first,
            Slot::SecondMoment => &mut self.second,
        };
        if stride == columns {
            return to.write(rows.start * stride, values);
        }
        let mut padded = vec![0.0; rows.len() * stride];
        let from = values.chunks_exact(columns);
        padded.chunks_exact_mut(stride).zip(from).for_each(|(to, from)| to[..columns].copy_from_slice(from));
        to.write(rows.start * stride, &padded);
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
    pub fn new(
        (width, stride, features): (usize, usize, usize),
        precision: Precision,
        trains: bool,
        memory: &mut Memory,
    ) -> Result<Self, Error> {
        let mixed = precision == Precision::Mixed;
        let biases = features.next_multiple_of(BIAS_PAD);
        let mut weights = Weights {
            w_enc: Parameter::new((features, width, stride), mixed, trains, memory)?,
            b_enc: Parameter::new((biases, 1, 1), false, trains, memory)?,
            w_dec: Parameter::new((features, width, stride), mixed, trains, memory)?,
            b_dec: Parameter::new((1, width, stride), false, trains, memory)?,
            norm_f: memory.weights(features)?,
            features,
        };
        if memory.is_real() {
            weights.b_enc.value.write(features, &vec![f32::NEG_INFINITY; biases - features]);
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
        let (first, stride) = (features.start as u32, self.w_dec.stride as u32);
        let arguments = arguments![self.w_enc.argument(), self.w_dec.argument(), self.norm_f.at(0), first, stride];
        // SAFETY: the features are the dictionary's own.
        unsafe { engine.enqueue("follow", features.len(), 0, arguments) };
    }
}
