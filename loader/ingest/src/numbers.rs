//! What becomes of numbers in a shard.

use std::borrow::Cow;

use half::{bf16, f16};
use loader::{ColumnType, ColumnValues, Dtype};
use tensors::Number;

/// What activations of such numbers are kept as: f64 is narrowed. Integers are no activations.
pub(crate) fn kept_as(number: Number) -> Option<Dtype> {
    if number == Number::F64 { Some(Dtype::F32) } else { number.dtype() }
}

/// The type of a column of such numbers.
pub(crate) fn column_type(number: Number) -> ColumnType {
    match number {
        Number::I8 | Number::I16 | Number::I32 => ColumnType::I32,
        Number::I64 => ColumnType::I64,
        Number::Bool | Number::U8 | Number::U16 | Number::U32 => ColumnType::U32,
        Number::U64 => ColumnType::U64,
        Number::F16 | Number::Bf16 | Number::F32 => ColumnType::F32,
        Number::F64 => ColumnType::F64,
    }
}

fn each<const N: usize, T>(bytes: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&bytes| of(bytes)).collect()
}

/// The values of a column.
pub(crate) fn values(number: Number, bytes: &[u8]) -> ColumnValues<'static> {
    match number {
        Number::I8 => each(bytes, |b: [u8; 1]| i32::from(i8::from_le_bytes(b))).into(),
        Number::I16 => each(bytes, |b| i32::from(i16::from_le_bytes(b))).into(),
        Number::I32 => each(bytes, i32::from_le_bytes).into(),
        Number::I64 => each(bytes, i64::from_le_bytes).into(),
        Number::Bool => each(bytes, |b: [u8; 1]| u32::from(b[0] != 0)).into(),
        Number::U8 => each(bytes, |b: [u8; 1]| u32::from(b[0])).into(),
        Number::U16 => each(bytes, |b| u32::from(u16::from_le_bytes(b))).into(),
        Number::U32 => each(bytes, u32::from_le_bytes).into(),
        Number::U64 => each(bytes, u64::from_le_bytes).into(),
        Number::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()).into(),
        Number::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()).into(),
        Number::F32 => each(bytes, f32::from_le_bytes).into(),
        Number::F64 => each(bytes, f64::from_le_bytes).into(),
    }
}

/// A finite number that would become infinite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Beyond {
    /// Which of the numbers.
    pub(crate) at: usize,
    pub(crate) number: f64,
}

/// Activations in the format of a shard: the same bits where it is their own, to the nearest otherwise.
pub(crate) fn converted(number: Number, bytes: &[u8], dtype: Dtype) -> Result<Cow<'_, [u8]>, Beyond> {
    if number == Number::from(dtype) {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut out = vec![0; bytes.len() / number.size() as usize * dtype.size()];
    // f64 goes to 16 bits at once: by way of f32 it would be rounded twice.
    if number == Number::F64 {
        let numbers = each(bytes, f64::from_le_bytes);
        match dtype {
            Dtype::F32 => put(&numbers, &mut out, |x| (x as f32).to_le_bytes()),
            Dtype::F16 => put(&numbers, &mut out, |x| f16::from_f64(x).to_le_bytes()),
            Dtype::Bf16 => put(&numbers, &mut out, |x| bf16::from_f64(x).to_le_bytes()),
        }
        return check(&numbers, out, dtype);
    }
    let numbers: Vec<f32> = match number {
        Number::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Number::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        _ => each(bytes, f32::from_le_bytes),
    };
    dtype.from_f32(&numbers, &mut out);
    check(&numbers, out, dtype)
}

fn put<const N: usize>(numbers: &[f64], out: &mut [u8], of: impl Fn(f64) -> [u8; N]) {
    out.as_chunks_mut::<N>().0.iter_mut().zip(numbers).for_each(|(bytes, &x)| *bytes = of(x));
}

/// Finds the first number that was finite and is no longer.
fn check<'a, T: Copy + Into<f64>>(numbers: &[T], out: Vec<u8>, dtype: Dtype) -> Result<Cow<'a, [u8]>, Beyond> {
    let infinite = |bytes: &[u8]| match dtype {
        Dtype::F32 => bytes[3] & 0x7f == 0x7f && bytes[2] == 0x80 && bytes[0] == 0 && bytes[1] == 0,
        Dtype::F16 => bytes[1] & 0x7f == 0x7c && bytes[0] == 0,
        Dtype::Bf16 => bytes[1] & 0x7f == 0x7f && bytes[0] == 0x80,
    };
    let grown = |(bytes, &number): (&[u8], &T)| infinite(bytes) && number.into().is_finite();
    match out.chunks_exact(dtype.size()).zip(numbers).position(grown) {
        Some(at) => Err(Beyond { at, number: numbers[at].into() }),
        None => Ok(Cow::Owned(out)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<T: Copy, const N: usize>(values: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&value| of(value)).collect()
    }

    #[test]
    fn numbers_keep_their_bits_or_go_to_the_nearest() {
        let nan = [0x01, 0x7e, 0x00, 0xfc];
        assert_eq!(*converted(Number::F16, &nan, Dtype::F16).unwrap(), nan, "a NaN's bits too");
        let singles = bytes(&[1.0f32, 1.003_906_2, -2.5, f32::INFINITY, f32::NAN], f32::to_le_bytes);
        let as_bf16 = converted(Number::F32, &singles, Dtype::Bf16).unwrap();
        let back: Vec<f32> = each(&as_bf16, |b| bf16::from_le_bytes(b).to_f32());
        assert_eq!((back[0], back[2], back[3]), (1.0, -2.5, f32::INFINITY));
        assert!(back[4].is_nan());
        let doubles = bytes(&[1.0f64, 1.000_488_281_25 + 1e-9], f64::to_le_bytes);
        let once = converted(Number::F64, &doubles, Dtype::F16).unwrap();
        assert_eq!(each(&once, f16::from_le_bytes)[1], f16::from_f64(1.000_488_281_25 + 1e-9), "rounded once");
    }

    #[test]
    fn numbers_that_would_become_infinite_are_found() {
        let singles = bytes(&[1.0f32, 70_000.0], f32::to_le_bytes);
        assert_eq!(converted(Number::F32, &singles, Dtype::F16), Err(Beyond { at: 1, number: 70_000.0 }));
        assert!(converted(Number::F32, &singles, Dtype::Bf16).is_ok());
        let doubles = bytes(&[1e39f64, f64::NEG_INFINITY], f64::to_le_bytes);
        assert_eq!(converted(Number::F64, &doubles, Dtype::F32), Err(Beyond { at: 0, number: 1e39 }));
        assert!(converted(Number::F64, &doubles[8..], Dtype::F32).is_ok());
    }

    #[test]
    fn columns_hold_every_value() {
        assert_eq!(values(Number::I8, &[0xff, 1]), vec![-1i32, 1].into());
        assert_eq!(values(Number::U16, &[0xff, 0xff]), vec![65_535u32].into());
        assert_eq!(values(Number::I64, &(-7i64).to_le_bytes()), vec![-7i64].into());
        assert_eq!(values(Number::Bf16, &[0x80, 0x3f]), vec![1f32].into());
        for number in [Number::I16, Number::U64, Number::F16, Number::F64, Number::U8, Number::U32] {
            assert_eq!(values(number, &[0; 16]).kind(), column_type(number));
        }
    }
}
