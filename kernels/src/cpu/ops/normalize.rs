//! `x = scale · rows`: stored rows to f32.
//!
//! Shapes: rows `[n, D]` f32, f16 or bf16 → x `[n, D]` f32 (rows padded to whole blocks), `‖x_t‖` `[n]`.
//! Traffic: `n·D·(size + 4)` bytes, 4 FLOP a value.
//!
//! Plan: 64 rows a task; a row is converted into its place, then scaled, checked and measured there while it is in L1.
//! A row with a NaN or an infinity becomes zeros and is remembered: later operations stay finite, and the batch is
//! refused by its report.

use crate::cpu::engine::Engine;
use crate::cpu::engine::stride;
use crate::cpu::memory::{Buffer, HostMemory, SharedRows};
use crate::cpu::simd::{Kernel, Lanes, blocks_mut};
use crate::{Error, RowDtype};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Rows of a task.
const ROWS: usize = 64;
/// Rows that a report names at most.
const NAMED: usize = 64;

/// A batch, scaled: `x [B, D]`. What `cuda::Rows` is on a GPU.
pub struct Rows {
    pub(crate) width: usize,
    pub(crate) stride: usize,
    /// Rows in the batch; the arrays may hold more.
    pub(crate) n: usize,
    /// Rows of the batch over all ranks of the data axis.
    pub(crate) batch_rows: usize,
    /// Shared with a dictionary between backward and Adam, which makes the gradient rows again from it.
    pub(crate) x_bd: Buffer<f32>,
    /// `‖x_t‖²`.
    pub(crate) norm2_b: Buffer<f32>,
    /// 1 for rows with a value that is not finite.
    bad_b: Buffer<u8>,
    pub(crate) non_finite: Vec<usize>,
}

impl Rows {
    pub(crate) fn new(batch: usize, width: usize, memory: &mut HostMemory) -> Result<Self, Error> {
        let what = "a batch of rows";
        let stride = stride(width);
        Ok(Rows {
            width,
            stride,
            n: 0,
            batch_rows: 0,
            x_bd: memory.step(batch * stride, what)?,
            norm2_b: memory.step(batch, what)?,
            bad_b: memory.step(batch, what)?,
            non_finite: Vec::with_capacity(NAMED),
        })
    }

    /// Row `t`, padded.
    #[inline(always)]
    pub(crate) fn row(&self, t: usize) -> &[f32] {
        &self.x_bd[t * self.stride..(t + 1) * self.stride]
    }
}

/// The operands.
pub struct Normalize<'a> {
    pub engine: &'a Engine,
    /// The stored rows, one after the other.
    pub staged: &'a [u8],
    pub dtype: RowDtype,
    /// Rows of the batch here, and over all ranks of the data axis.
    pub n: usize,
    pub batch_rows: usize,
    pub scale: f32,
}

impl Normalize<'_> {
    /// `x = scale · rows`.
    pub fn run(&self, x: &mut Rows) {
        let Normalize { engine, staged, dtype, n, batch_rows, scale } = *self;
        let row_bytes = x.width * dtype.size();
        assert!(n <= x.norm2_b.len() && n * row_bytes <= staged.len(), "{n} rows fit the batch and are staged");
        (x.n, x.batch_rows) = (n, batch_rows);
        let (width, stride) = (x.width, x.stride);
        let norms = SharedRows::new(&mut x.norm2_b, 1);
        let bad = SharedRows::new(&mut x.bad_b, 1);
        let convert_rows = |(task, rows): (usize, &mut [f32])| {
            for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
                let t = task * ROWS + i;
                convert(&staged[t * row_bytes..][..row_bytes], dtype, &mut row[..width]);
                let norm2 = engine.isa.run(Scale { row, scale });
                // SAFETY: row `t` belongs to this task alone.
                let (norm, bad) = unsafe { (norms.row(t), bad.row(t)) };
                (norm[0], bad[0]) = (norm2.unwrap_or(0.0), u8::from(norm2.is_none()));
                if norm2.is_none() {
                    row.fill(0.0);
                }
            }
        };
        let rows = &mut x.x_bd[..n * stride];
        engine.pool.install(|| rows.par_chunks_mut(ROWS * stride).enumerate().for_each(convert_rows));
        x.non_finite.clear();
        x.non_finite.extend((0..n).filter(|&t| x.bad_b[t] != 0).take(NAMED));
    }
}

/// Little-endian values to f32.
fn convert(from: &[u8], dtype: RowDtype, to: &mut [f32]) {
    match dtype {
        RowDtype::F32 if cfg!(target_endian = "little") => bytemuck::cast_slice_mut(to).copy_from_slice(from),
        RowDtype::F32 => {
            from.as_chunks().0.iter().zip(to).for_each(|(bytes, x)| *x = f32::from_le_bytes(*bytes));
        }
        RowDtype::Bf16 => {
            let values = from.as_chunks().0.iter().zip(to);
            values.for_each(|(bytes, x)| *x = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16));
        }
        RowDtype::F16 => match bytemuck::try_cast_slice::<u8, half::f16>(from) {
            Ok(values) if cfg!(target_endian = "little") => values.convert_to_f32_slice(to),
            _ => {
                let values = from.as_chunks().0.iter().zip(to);
                values.for_each(|(bytes, x)| *x = half::f16::from_le_bytes(*bytes).to_f32());
            }
        },
    }
}

/// Scales a row in place; `‖x‖²`, or `None` when a value is not finite.
struct Scale<'a> {
    row: &'a mut [f32],
    scale: f32,
}

impl Kernel for Scale<'_> {
    type Out = Option<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Option<f32> {
        let (scale, zero) = (l.splat(self.scale), l.splat(0.0));
        let (mut norm2, mut check) = (zero, zero);
        for block in blocks_mut(self.row) {
            let x = l.mul(l.load(block), scale);
            l.store(block, x);
            norm2 = l.fma(x, x, norm2);
            // 0 · x is 0 for finite x and NaN otherwise.
            check = l.fma(x, zero, check);
        }
        (l.sum(check) == 0.0).then(|| l.sum(norm2))
    }
}
