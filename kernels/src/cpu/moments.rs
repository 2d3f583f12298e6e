//! Adam's moments of the rows that a rank owns.

use super::memory::{Buffer, HostMemory, SharedRows};
use super::weights::{Parameter, Weights};
use crate::{Error, Moment, Tensor};
use std::ops::Range;

/// Those of all parameters.
pub struct MomentArrays {
    pub w_enc: RowMoments,
    pub b_enc: RowMoments,
    pub w_dec: RowMoments,
    pub b_dec: RowMoments,
}

/// Those of a parameter's rows, which lie as the parameter's do.
pub struct RowMoments {
    columns: usize,
    stride: usize,
    pub first: Buffer<f32>,
    pub second: Buffer<f32>,
    /// Rows that have moments.
    owned: Range<usize>,
}

/// A parameter and its moments, which tasks update feature by feature.
pub struct SharedParameter<'a> {
    pub value: SharedRows<'a, f32>,
    pub first: SharedRows<'a, f32>,
    pub second: SharedRows<'a, f32>,
    /// The row to which the first moments belong.
    pub owned_from: usize,
}

impl MomentArrays {
    /// Zeros for `weights` of which the rank owns the features `owned`, and b_dec as all ranks do.
    pub fn new(weights: &Weights, owned: &Range<usize>, memory: &mut HostMemory) -> Result<Self, Error> {
        Ok(MomentArrays {
            w_enc: RowMoments::new(&weights.w_enc, owned.clone(), memory)?,
            b_enc: RowMoments::new(&weights.b_enc, owned.clone(), memory)?,
            w_dec: RowMoments::new(&weights.w_dec, owned.clone(), memory)?,
            b_dec: RowMoments::new(&weights.b_dec, 0..1, memory)?,
        })
    }

    pub fn of(&self, tensor: Tensor) -> &RowMoments {
        match tensor {
            Tensor::EncoderWeight => &self.w_enc,
            Tensor::EncoderBias => &self.b_enc,
            Tensor::DecoderWeight => &self.w_dec,
            Tensor::DecoderBias => &self.b_dec,
        }
    }

    pub fn of_mut(&mut self, tensor: Tensor) -> &mut RowMoments {
        match tensor {
            Tensor::EncoderWeight => &mut self.w_enc,
            Tensor::EncoderBias => &mut self.b_enc,
            Tensor::DecoderWeight => &mut self.w_dec,
            Tensor::DecoderBias => &mut self.b_dec,
        }
    }
}

impl RowMoments {
    fn new(of: &Parameter, owned: Range<usize>, memory: &mut HostMemory) -> Result<Self, Error> {
        let (columns, stride) = (of.columns, of.stride);
        let len = owned.len() * stride;
        Ok(RowMoments { columns, stride, first: memory.weights(len)?, second: memory.weights(len)?, owned })
    }

    /// Where row `f` lies.
    fn place(&self, f: usize) -> Range<usize> {
        assert!(self.owned.contains(&f), "moments of a row that this rank owns");
        let own = f - self.owned.start;
        own * self.stride..(own + 1) * self.stride
    }

    /// First and second moments of row `f`.
    pub fn row(&self, f: usize) -> (&[f32], &[f32]) {
        let place = self.place(f);
        (&self.first[place.clone()], &self.second[place])
    }

    /// With the parameter, for tasks that update it row by row.
    pub fn share<'a>(&'a mut self, of: &'a mut Parameter) -> SharedParameter<'a> {
        let [value, first, second] =
            [&mut of.value, &mut self.first, &mut self.second].map(|values| SharedRows::new(values, self.stride));
        SharedParameter { value, first, second, owned_from: self.owned.start }
    }

    /// Copies `rows` to `out`, without the padding.
    pub fn read(&self, moment: Moment, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.columns, "room for the rows");
        let values = match moment {
            Moment::First => &self.first,
            Moment::Second => &self.second,
        };
        for (row, out) in rows.zip(out.chunks_exact_mut(self.columns)) {
            out.copy_from_slice(&values[self.place(row)][..self.columns]);
        }
    }

    /// Sets `rows`.
    pub fn write(&mut self, moment: Moment, rows: Range<usize>, values: &[f32]) {
        assert_eq!(values.len(), rows.len() * self.columns, "values for the rows");
        for (row, values) in rows.zip(values.chunks_exact(self.columns)) {
            let place = self.place(row);
            let to = match moment {
                Moment::First => &mut self.first,
                Moment::Second => &mut self.second,
            };
            to[place][..self.columns].copy_from_slice(values);
        }
    }
}
