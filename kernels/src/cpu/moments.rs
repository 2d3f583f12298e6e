//! Adam's moments of the rows that a rank owns.

use super::memory::{HostMemory, SharedRows};
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
    pub first: Parameter,
    pub second: Parameter,
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
        tensor.of([&self.w_enc, &self.b_enc, &self.w_dec, &self.b_dec])
    }

    pub fn of_mut(&mut self, tensor: Tensor) -> &mut RowMoments {
        tensor.of([&mut self.w_enc, &mut self.b_enc, &mut self.w_dec, &mut self.b_dec])
    }
}

impl RowMoments {
    fn new(of: &Parameter, owned: Range<usize>, memory: &mut HostMemory) -> Result<Self, Error> {
        let mut zeros = || Parameter::new(owned.len(), of.columns, of.stride, memory);
        Ok(RowMoments { first: zeros()?, second: zeros()?, owned })
    }

    /// First and second moments of row `f`.
    pub fn row(&self, f: usize) -> (&[f32], &[f32]) {
        let own = self.own(f..f + 1).start;
        (self.first.row(own), self.second.row(own))
    }

    /// With the parameter, for tasks that update it row by row.
    pub fn share<'a>(&'a mut self, of: &'a mut Parameter) -> SharedParameter<'a> {
        let [value, first, second] =
            [of, &mut self.first, &mut self.second].map(|array| SharedRows::new(&mut array.value, array.stride));
        SharedParameter { value, first, second, owned_from: self.owned.start }
    }

    /// Copies `rows` to `out`, without the padding.
    pub fn read(&self, moment: Moment, rows: Range<usize>, out: &mut [f32]) {
        let rows = self.own(rows);
        match moment {
            Moment::First => self.first.read(rows, out),
            Moment::Second => self.second.read(rows, out),
        }
    }

    /// Sets `rows`.
    pub fn write(&mut self, moment: Moment, rows: Range<usize>, values: &[f32]) {
        let rows = self.own(rows);
        match moment {
            Moment::First => self.first.write(rows, values),
            Moment::Second => self.second.write(rows, values),
        }
    }

    /// Rows as the arrays count them.
    fn own(&self, rows: Range<usize>) -> Range<usize> {
        let Range { start, end } = self.owned;
        assert!(start <= rows.start && rows.end <= end, "moments of features that this rank owns");
        rows.start - start..rows.end - start
    }
}
