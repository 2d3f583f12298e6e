//! Numbers of a parameter as the GPU keeps them, and the way in and out for the host: `parameter.cuh`.
//!
//! What was read and is written again reads the same, to the bit: a checkpoint holds binary32, whatever the GPU does.

use std::ops::Range;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::bf16;

use super::runtime::memory::{Buffer, GpuMemory};
use super::runtime::pointer::{Part, Pointer};
use super::runtime::precision::{Code, Format, SCALE_BLOCK};
use crate::Error;

/// `SMALLEST_SCALE` in parameter.cuh: 2⁻¹⁰⁰.
const SMALLEST_SCALE: f32 = f32::from_bits((127 - 100) << 23);

impl Code {
    fn decode(self, byte: u8, scale: f32) -> f32 {
        match self {
            Code::First => {
                let t = f32::from(byte & 0x7f) * (1.0 / 127.0);
                let magnitude = scale * (t * t);
                if byte & 0x80 == 0 { magnitude } else { -magnitude }
            }
            Code::Second => {
                let t = f32::from(byte) * (1.0 / 255.0);
                let t2 = t * t;
                scale * (t2 * t2)
            }
        }
    }

    /// The nearest code: of a number that was decoded, the one that it came from.
    fn encode(self, value: f32, scale: f32) -> u8 {
        let share = if scale == 0.0 { 0.0 } else { (value.abs() / scale).min(1.0) };
        match self {
            Code::First => (127.0 * share.sqrt()).round() as u8 | u8::from(value.is_sign_negative()) << 7,
            Code::Second => {
                let least = u8::from(value > 0.0 && scale > 0.0);
                ((255.0 * share.sqrt().sqrt()).round() as u8).max(least)
            }
        }
    }
}

/// The largest magnitude of a block; what is not finite is above all others.
fn scale_of(block: &[f32]) -> f32 {
    let largest = block.iter().map(|value| value.abs().to_bits()).max().unwrap_or(0);
    let scale = f32::from_bits(largest);
    if scale < SMALLEST_SCALE { 0.0 } else { scale }
}

/// How an array `[rows, columns]` lies: its rows are `stride` values apart.
#[derive(Clone, Copy)]
pub struct MatrixLayout {
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

/// An array in a format.
pub struct Array {
    columns: usize,
    stride: usize,
    values: Values,
}

enum Values {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
    Int8 { code: Code, bytes: Buffer<u8>, scales: Buffer<f32> },
}

impl Array {
    pub fn new(format: Format, layout: MatrixLayout, memory: &mut GpuMemory) -> Result<Self, Error> {
        let MatrixLayout { rows, columns, stride } = layout;
        let values = match format {
            Format::F32 => Values::F32(memory.weights(rows * stride)?),
            Format::Bf16 => Values::Bf16(memory.weights(rows * stride)?),
            Format::Int8(code) => Values::Int8 {
                code,
                bytes: memory.weights(rows * stride)?,
                scales: memory.weights(rows * stride.div_ceil(SCALE_BLOCK))?,
            },
        };
        Ok(Array { columns, stride, values })
    }

    /// Where value `index` lies.
    pub fn at(&self, index: usize) -> Pointer {
        match &self.values {
            Values::F32(values) => values.at(index),
            Values::Bf16(values) => values.at(index),
            Values::Int8 { bytes, .. } => bytes.at(index),
        }
    }

    /// Where row 0 would lie when the first that is kept is `first`: kernels reach no row before it.
    pub fn row_zero(&self, first: usize) -> Pointer {
        self.at(0).wrapping_sub((first * self.row_bytes()) as u64)
    }

    /// The same of the scales; null without them.
    pub fn scale_zero(&self, first: usize) -> Pointer {
        let Values::Int8 { scales, .. } = &self.values else { return 0 };
        scales.at(0).wrapping_sub((first * self.stride.div_ceil(SCALE_BLOCK) * size_of::<f32>()) as u64)
    }

    /// Some rows, scales aside.
    pub fn part(&self, rows: Range<usize>) -> Part {
        Part { at: self.at(rows.start * self.stride), bytes: rows.len() * self.row_bytes() }
    }

    fn row_bytes(&self) -> usize {
        let value = match &self.values {
            Values::F32(_) => size_of::<f32>(),
            Values::Bf16(_) => size_of::<u16>(),
            Values::Int8 { .. } => size_of::<u8>(),
        };
        self.stride * value
    }

    /// Waits, and copies `rows` to `out`, without the padding.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        assert_eq!(out.len(), rows.len() * self.columns, "room for the rows");
        let (columns, stride) = (self.columns, self.stride);
        match &self.values {
            Values::F32(values) if stride == columns => values.read(rows.start * stride, out)?,
            Values::F32(values) => {
                let padded = read_rows(values, rows, stride)?;
                let padded = padded.chunks_exact(stride);
                padded.zip(out.chunks_exact_mut(columns)).for_each(|(from, to)| to.copy_from_slice(&from[..columns]));
            }
            Values::Bf16(values) => {
                let padded = read_rows(values, rows, stride)?;
                for (from, to) in padded.chunks_exact(stride).zip(out.chunks_exact_mut(columns)) {
                    to.iter_mut().zip(from).for_each(|(to, &bits)| *to = bf16::from_bits(bits).to_f32());
                }
            }
            Values::Int8 { code, bytes, scales } => {
                let blocks = stride.div_ceil(SCALE_BLOCK);
                let (padded, scales) = (read_rows(bytes, rows.clone(), stride)?, read_rows(scales, rows, blocks)?);
                let padded = padded.chunks_exact(stride).zip(scales.chunks_exact(blocks));
                for ((from, scales), to) in padded.zip(out.chunks_exact_mut(columns)) {
                    for (d, (to, &byte)) in to.iter_mut().zip(from).enumerate() {
                        *to = code.decode(byte, scales[d / SCALE_BLOCK]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets `rows` to the numbers that are nearest to `values`.
    pub fn write(&mut self, rows: Range<usize>, values: &[f32]) {
        assert_eq!(values.len(), rows.len() * self.columns, "values for the rows");
        let (columns, stride) = (self.columns, self.stride);
        let first = rows.start * stride;
        match &mut self.values {
            Values::F32(to) if stride == columns => to.write(first, values),
            Values::F32(to) => to.write(first, &padded(values, columns, stride, |value| value)),
            Values::Bf16(to) => {
                to.write(first, &padded(values, columns, stride, |value| bf16::from_f32(value).to_bits()));
            }
            Values::Int8 { code, bytes, scales } => {
                let blocks = stride.div_ceil(SCALE_BLOCK);
                let mut scales_rk = vec![0.0; rows.len() * blocks];
                let mut bytes_rs = vec![0; rows.len() * stride];
                let to = bytes_rs.chunks_exact_mut(stride).zip(scales_rk.chunks_exact_mut(blocks));
                for (row, (bytes, scales)) in values.chunks_exact(columns).zip(to) {
                    let to = bytes.chunks_mut(SCALE_BLOCK).zip(scales);
                    for (block, (bytes, scale)) in row.chunks(SCALE_BLOCK).zip(to) {
                        *scale = scale_of(block);
                        bytes.iter_mut().zip(block).for_each(|(byte, &value)| *byte = code.encode(value, *scale));
                    }
                }
                bytes.write(first, &bytes_rs);
                scales.write(rows.start * blocks, &scales_rk);
            }
        }
    }
}

fn read_rows<T>(from: &Buffer<T>, rows: Range<usize>, stride: usize) -> Result<Vec<T>, Error>
where
    T: DeviceRepr + ValidAsZeroBits + Copy + Default,
{
    let mut padded = vec![T::default(); rows.len() * stride];
    from.read(rows.start * stride, &mut padded)?;
    Ok(padded)
}

/// Rows of `columns` values, converted and `stride` apart.
fn padded<T: Copy + Default>(values: &[f32], columns: usize, stride: usize, convert: impl Fn(f32) -> T) -> Vec<T> {
    let mut padded = vec![T::default(); values.len() / columns * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(values.chunks_exact(columns)) {
        to.iter_mut().zip(from).for_each(|(to, &value)| *to = convert(value));
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code of both moments, beside the largest one, at scales from the smallest to the largest.
    #[test]
    fn what_was_decoded_and_is_encoded_again_decodes_the_same() {
        let mut scales: Vec<f32> =
            (-99..=127).flat_map(|e| [1.0, 1.234_567_9, 1.999].map(|m| m * 2f32.powi(e))).collect();
        scales.extend([0.0, SMALLEST_SCALE]);
        for code in [Code::First, Code::Second] {
            for &scale in &scales {
                let values: Vec<f32> = (0..=255).map(|byte| code.decode(byte, scale)).collect();
                assert_eq!(scale_of(&values), scale, "{code:?}");
                for (byte, value) in values.iter().enumerate() {
                    let again = code.encode(*value, scale);
                    assert_eq!(code.decode(again, scale).to_bits(), value.to_bits(), "{code:?} {byte} {scale}");
                }
            }
        }
    }

    #[test]
    fn a_small_second_moment_does_not_become_zero_and_what_is_not_finite_stays_so() {
        assert!(Code::Second.decode(Code::Second.encode(1e-30, 1.0), 1.0) > 0.0);
        assert_eq!(scale_of(&[1e-35, -1e-32]), 0.0);
        for code in [Code::First, Code::Second] {
            for bad in [f32::NAN, f32::INFINITY] {
                let scale = scale_of(&[1.0, bad]);
                assert!(!code.decode(code.encode(bad, scale), scale).is_finite());
            }
        }
    }
}
