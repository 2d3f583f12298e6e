//! Adam's moments of the rows that a rank owns, on the GPU.

use std::ops::Range;

use super::array::{Array, MatrixLayout};
use super::runtime::memory::GpuMemory;
use super::runtime::precision::{Format, Precision, stride};
use super::weights::{Parameter, ParameterArgument};
use crate::{Error, Moment, Shape, Tensor};

/// Those of all parameters.
pub struct MomentArrays {
    pub w_enc: RowMoments,
    pub b_enc: RowMoments,
    pub w_dec: RowMoments,
    pub b_dec: RowMoments,
}

/// Those of a parameter's rows, which lie as the parameter's do.
pub struct RowMoments {
    first: Array,
    second: Array,
    /// Rows that have moments.
    owned: Range<usize>,
}

impl MomentArrays {
    /// Zeros for the features `owned` of a dictionary of `shape`, and for b_dec, which all ranks own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Cuda`].
    pub fn new(
        shape: &Shape,
        owned: &Range<usize>,
        precision: Precision,
        memory: &mut GpuMemory,
    ) -> Result<Self, Error> {
        let (width, stride) = (shape.width, stride(shape.width));
        let matrix = MatrixLayout { rows: owned.len(), columns: width, stride };
        let biases = MatrixLayout { rows: owned.len(), columns: 1, stride: 1 };
        let (formats, single) = (precision.moments(), [Format::F32; 2]);
        Ok(MomentArrays {
            w_enc: RowMoments::new(formats, matrix, owned.clone(), memory)?,
            b_enc: RowMoments::new(single, biases, owned.clone(), memory)?,
            w_dec: RowMoments::new(formats, matrix, owned.clone(), memory)?,
            b_dec: RowMoments::new(single, MatrixLayout { rows: 1, ..matrix }, 0..1, memory)?,
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
    fn new(
        [first, second]: [Format; 2],
        layout: MatrixLayout,
        owned: Range<usize>,
        memory: &mut GpuMemory,
    ) -> Result<Self, Error> {
        Ok(RowMoments { first: Array::new(first, layout, memory)?, second: Array::new(second, layout, memory)?, owned })
    }

    /// With the parameter, as kernels take both.
    pub fn argument(&self, of: &Parameter) -> ParameterArgument {
        let first_row = self.owned.start;
        ParameterArgument {
            first: self.first.row_zero(first_row),
            second: self.second.row_zero(first_row),
            first_scale: self.first.scale_zero(first_row),
            second_scale: self.second.scale_zero(first_row),
            ..of.argument()
        }
    }

    /// Waits, and copies `rows` to `out`, without the padding.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn read(&self, moment: Moment, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let rows = self.own(rows);
        match moment {
            Moment::First => self.first.read(rows, out),
            Moment::Second => self.second.read(rows, out),
        }
    }

    /// Sets `rows` to the numbers that are nearest to `values`.
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
