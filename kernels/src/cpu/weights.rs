//! The parameters of a dictionary, as the operations read them.

use super::engine::stride;
use super::memory::{Buffer, HostMemory};
use super::simd::{Isa, Kernel, Lanes, blocks, dot};
use crate::{Error, Shape, Tensor};
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

/// A parameter, or a moment of it: `[rows, columns]`, its rows `stride` apart.
pub struct Parameter {
    pub columns: usize,
    pub stride: usize,
    pub value: Buffer<f32>,
}

impl Parameter {
    pub(super) fn new(rows: usize, columns: usize, stride: usize, memory: &mut HostMemory) -> Result<Self, Error> {
        Ok(Parameter { columns, stride, value: memory.weights(rows * stride)? })
    }

    /// Row `f`, padded.
    #[inline(always)]
    pub fn row(&self, f: usize) -> &[f32] {
        &self.value[f * self.stride..(f + 1) * self.stride]
    }

    /// Copies `rows` to `out`, without the padding.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.columns, "room for the rows");
        for (row, out) in rows.zip(out.chunks_exact_mut(self.columns)) {
            out.copy_from_slice(&self.value[row * self.stride..][..self.columns]);
        }
    }

    /// Sets `rows`.
    pub fn write(&mut self, rows: Range<usize>, values: &[f32]) {
        assert_eq!(values.len(), rows.len() * self.columns, "values for the rows");
        for (row, values) in rows.zip(values.chunks_exact(self.columns)) {
            self.value[row * self.stride..][..self.columns].copy_from_slice(values);
        }
    }
}

impl Weights {
    /// Zeros for a dictionary of `shape`.
    pub fn new(shape: &Shape, memory: &mut HostMemory) -> Result<Self, Error> {
        let Shape { width, features, .. } = *shape;
        let stride = stride(width);
        let padded = features.next_multiple_of(FEATURE_PAD);
        Ok(Weights {
            features,
            stride,
            w_enc: Parameter::new(features, width, stride, memory)?,
            b_enc: Parameter::new(padded, 1, 1, memory)?,
            w_dec: Parameter::new(features, width, stride, memory)?,
            b_dec: Parameter::new(1, width, stride, memory)?,
            norm_f: memory.weights(padded)?,
        })
    }

    pub fn parameter(&self, tensor: Tensor) -> &Parameter {
        tensor.of([&self.w_enc, &self.b_enc, &self.w_dec, &self.b_dec])
    }

    pub fn parameter_mut(&mut self, tensor: Tensor) -> &mut Parameter {
        tensor.of([&mut self.w_enc, &mut self.b_enc, &mut self.w_dec, &mut self.b_dec])
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
