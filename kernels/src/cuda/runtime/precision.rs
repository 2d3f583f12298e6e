//! The precision of GEMMs, weights and moments.

/// `SCALE_BLOCK` in parameter.cuh.
pub(crate) const SCALE_BLOCK: usize = 128;

/// The precision of GEMMs, weights and moments. Biases and their moments are binary32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Binary32 throughout.
    F32,
    /// Weights in binary32; GEMMs read bf16 copies of weights, x and g, and sum in binary32.
    Mixed(Moments),
    /// The same GEMMs, and weights in bf16 alone: Adam computes in binary32 and rounds stochastically.
    Bf16Sr(Moments),
}

/// How both moments of W_enc and W_dec are kept: see parameter.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moments {
    /// Binary32.
    F32,
    /// bf16, rounded stochastically.
    Bf16,
    /// 8 bits, rounded stochastically, with a scale for each block of a row.
    Int8,
}

impl Precision {
    /// Bytes of a value that GEMMs read.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Mixed(_) | Precision::Bf16Sr(_) => 2,
        }
    }

    /// How W_enc and W_dec are kept.
    pub(crate) fn weights(self) -> Format {
        match self {
            Precision::F32 | Precision::Mixed(_) => Format::F32,
            Precision::Bf16Sr(_) => Format::Bf16,
        }
    }

    /// How their first and second moments are kept.
    pub(crate) fn moments(self) -> [Format; 2] {
        match self {
            Precision::F32 | Precision::Mixed(Moments::F32) | Precision::Bf16Sr(Moments::F32) => [Format::F32; 2],
            Precision::Mixed(Moments::Bf16) | Precision::Bf16Sr(Moments::Bf16) => [Format::Bf16; 2],
            Precision::Mixed(Moments::Int8) | Precision::Bf16Sr(Moments::Int8) => {
                [Format::Int8(Code::First), Format::Int8(Code::Second)]
            }
        }
    }

    /// For people: `bf16 GEMMs and weights, 8-bit moments`.
    pub(crate) fn describe(self) -> String {
        let moments = |moments| match moments {
            Moments::F32 => "",
            Moments::Bf16 => ", bf16 moments",
            Moments::Int8 => ", 8-bit moments",
        };
        match self {
            Precision::F32 => "f32".to_owned(),
            Precision::Mixed(of) => format!("bf16 GEMMs{}", moments(of)),
            Precision::Bf16Sr(of) => format!("bf16 GEMMs and weights{}", moments(of)),
        }
    }

    /// One of two kernels.
    pub(crate) fn pick(self, single: &'static str, mixed: &'static str) -> &'static str {
        match self {
            Precision::F32 => single,
            Precision::Mixed(_) | Precision::Bf16Sr(_) => mixed,
        }
    }

    /// As in tile.cuh.
    pub(crate) fn tile(self) -> Tile {
        match self {
            Precision::F32 => Tile { side: 64, shared: 2 * 16 * (64 + 4) * 4 },
            Precision::Mixed(_) | Precision::Bf16Sr(_) => Tile { side: 128, shared: 3 * 2 * 128 * 64 * 2 },
        }
    }
}

/// The part of a GEMM that a block makes.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Rows and columns.
    pub side: usize,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// How numbers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    Bf16,
    /// A byte each, with a binary32 scale for each block of [`SCALE_BLOCK`] columns of a row.
    Int8(Code),
}

/// What a byte means beside the scale of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A sign, and `(q / 127)²`: first moments.
    First,
    /// `(q / 255)⁴`: second moments.
    Second,
}

/// Rows are padded with zeros to whole pieces of 16 bytes of either format.
pub(crate) fn stride(width: usize) -> usize {
    width.next_multiple_of(8)
}
