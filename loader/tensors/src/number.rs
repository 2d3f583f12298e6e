//! Numbers as tools store them.

use loader::Dtype;

/// How a number is stored; the least significant byte comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// A byte that is 0 or 1.
    Bool,
    /// A signed integer of 8 bits.
    I8,
    /// A signed integer of 16 bits.
    I16,
    /// A signed integer of 32 bits.
    I32,
    /// A signed integer of 64 bits.
    I64,
    /// An unsigned integer of 8 bits.
    U8,
    /// An unsigned integer of 16 bits.
    U16,
    /// An unsigned integer of 32 bits.
    U32,
    /// An unsigned integer of 64 bits.
    U64,
    /// IEEE 754's half precision.
    F16,
    /// The upper half of an [`Number::F32`].
    Bf16,
    /// IEEE 754's single precision.
    F32,
    /// IEEE 754's double precision.
    F64,
}

impl Number {
    /// Bytes.
    pub fn size(self) -> u64 {
        match self {
            Number::Bool | Number::I8 | Number::U8 => 1,
            Number::I16 | Number::U16 | Number::F16 | Number::Bf16 => 2,
            Number::I32 | Number::U32 | Number::F32 => 4,
            Number::I64 | Number::U64 | Number::F64 => 8,
        }
    }

    /// Its name in messages, as NumPy and PyTorch have it.
    pub fn name(self) -> &'static str {
        match self {
            Number::Bool => "bool",
            Number::I8 => "int8",
            Number::I16 => "int16",
            Number::I32 => "int32",
            Number::I64 => "int64",
            Number::U8 => "uint8",
            Number::U16 => "uint16",
            Number::U32 => "uint32",
            Number::U64 => "uint64",
            Number::F16 => "float16",
            Number::Bf16 => "bfloat16",
            Number::F32 => "float32",
            Number::F64 => "float64",
        }
    }

    /// The format of rows and weights that has these numbers, if there is one.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Number::F16 => Some(Dtype::F16),
            Number::Bf16 => Some(Dtype::Bf16),
            Number::F32 => Some(Dtype::F32),
            _ => None,
        }
    }
}

impl From<Dtype> for Number {
    fn from(dtype: Dtype) -> Number {
        match dtype {
            Dtype::F16 => Number::F16,
            Dtype::Bf16 => Number::Bf16,
            Dtype::F32 => Number::F32,
        }
    }
}
