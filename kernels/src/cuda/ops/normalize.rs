//! Launches `normalize.cu`.

use super::Cost;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::{Precision, stride};
use crate::cuda::runtime::staging::{Staging, Stored};
use crate::{Error, RowDtype};

/// A batch on the GPU, scaled. What `cpu::Rows` is on a processor.
pub struct Rows {
    pub(crate) n: usize,
    /// Rows of the batch over all ranks of the data axis.
    pub(crate) batch_rows: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
    /// `x [B, stride]`.
    pub(crate) x_bs: Buffer<f32>,
    /// The same in bf16, for the tensor cores.
    copy_bs: Option<Buffer<u16>>,
    /// `‖x‖²`.
    pub(crate) norm2_b: Buffer<f64>,
    /// 1 where a value is not finite.
    pub(crate) bad_b: Buffer<u32>,
    /// Rows with such a value.
    pub(crate) bad_rows: Buffer<u32>,
    stored: Stored,
}

impl Rows {
    pub(crate) fn new(precision: Precision, batch: usize, width: usize, memory: &mut GpuMemory) -> Result<Self, Error> {
        let what = "a batch of rows";
        let stride = stride(width);
        let copy = precision != Precision::F32;
        Ok(Rows {
            n: 0,
            batch_rows: 0,
            width,
            stride,
            x_bs: memory.step(batch * stride, what)?,
            copy_bs: copy.then(|| memory.step(batch * stride, what)).transpose()?,
            norm2_b: memory.step(batch, what)?,
            bad_b: memory.step(batch, what)?,
            bad_rows: memory.step(1, what)?,
            stored: Stored::new(batch * width * size_of::<f32>(), what, memory)?,
        })
    }

    /// Rows in the format that GEMMs read.
    pub(crate) fn operand(&self) -> Pointer {
        self.operand_from(0)
    }

    /// The same from a row on.
    pub(crate) fn operand_from(&self, row: usize) -> Pointer {
        let first = row * self.stride;
        self.copy_bs.as_ref().map_or(self.x_bs.at(first), |copy| copy.at(first))
    }
}

/// The operands.
pub struct Normalize<'a> {
    pub engine: &'a Engine,
    /// With the stored rows, one after the other.
    pub staged: &'a Staging,
    pub dtype: RowDtype,
    /// Rows of the batch here, and over all ranks of the data axis.
    pub n: usize,
    pub batch_rows: usize,
    pub scale: f32,
}

impl Normalize<'_> {
    /// `x = scale · rows`.
    pub(crate) fn run(&self, x: &mut Rows) {
        let Normalize { engine, staged, dtype, n, batch_rows, scale } = *self;
        (x.n, x.batch_rows) = (n, batch_rows);
        x.stored.fill(engine, staged, n * x.width * dtype.size());
        x.bad_rows.clear();
        let kernel = match dtype {
            RowDtype::F32 => "normalize_f32",
            RowDtype::F16 => "normalize_f16",
            RowDtype::Bf16 => "normalize_bf16",
        };
        let copy = x.copy_bs.as_ref().map_or(0, |copy| copy.at(0));
        let (norm2_b, bad_b, bad_rows) = (x.norm2_b.at(0), x.bad_b.at(0), x.bad_rows.at(0));
        let (width, stride) = (x.width as u32, x.stride as u32);
        let arguments = arguments![x.stored.at(), x.x_bs.at(0), copy, norm2_b, bad_b, bad_rows, width, stride, scale];
        // SAFETY: n rows of `width` values lie in `stored`; the others have room for n rows.
        unsafe { engine.enqueue(kernel, n, 0, arguments) };
        x.stored.release(engine);
    }
}

/// Stored rows of `stored` bytes a value read, x and its copy for the GEMMs written.
pub fn cost(precision: Precision, n: usize, width: usize, stored: usize) -> Cost {
    let copy = if precision == Precision::F32 { 0 } else { precision.bytes() };
    Cost { bytes: (n * width * (stored + 4 + copy)) as u64, flop: 3 * (n * width) as u64 }
}
