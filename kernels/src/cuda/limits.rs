//! How many rows a batch may have before a number in which kernels count would begin again at 0, which nobody would see.
//!
//! 32 bits hold the pairs of a batch (`run_f` and the sums of `transpose.cu`), which are at most as many as the lists of all tokens
//! have room for; the blocks of a grid, of which a launch takes at most 2³¹ − 1 in x; and the length of what ranks sum. A
//! list of tokens also has to have a bitmap in shared memory. What is counted over several batches has 64 bits.
//!
//! 32 bits halve what the kernels that place pairs move; so batches beyond are refused before anything is made.

use super::ops::{encode, transpose};
use super::runtime::engine::Engine;
use super::runtime::precision::{Precision, stride};
use crate::{Error, Shape};

/// A count of pairs, or of values that ranks sum.
const MOST: usize = u32::MAX as usize;

/// Blocks of a grid.
const MOST_BLOCKS: usize = i32::MAX as usize;

/// Refuses a batch that is more than kernels can count.
///
/// # Errors
/// [`Error::TooManyRows`].
pub fn check(shape: Shape, engine: &Engine) -> Result<(), Error> {
    let Shape { width, features, batch, .. } = shape;
    let most = most_rows(width, features, engine.precision, engine.shared_bytes as usize);
    if batch <= most { Ok(()) } else { Err(Error::TooManyRows { batch, most, features }) }
}

fn most_rows(width: usize, features: usize, precision: Precision, shared_bytes: usize) -> usize {
    let side = precision.tile().side;
    // As many tokens as whole tiles of the encoder's GEMM have.
    let by_blocks = MOST_BLOCKS / encode::blocks(1, features, precision).max(1) * side;
    let by_pairs = MOST / encode::capacity(features);
    let by_sums = MOST / stride(width);
    [by_blocks, by_pairs, by_sums, transpose::most_tokens(shared_bytes)].into_iter().min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Moments;

    /// Each of the limits, with numbers computed by hand; one row more would be too many.
    #[test]
    fn the_smallest_limit_counts() {
        let mixed = Precision::Mixed(Moments::F32);
        for (of, (width, features), precision, shared_bytes, most) in [
            // 4096 pairs a token: 2³² at 1,048,576 tokens.
            ("pairs", (768, 131_072), mixed, 1 << 20, 1_048_575),
            // 64 pairs a token.
            ("pairs of few features", (8, 40), mixed, usize::MAX / 64, 67_108_863),
            // 265,625 tiles of features: 8,084 tiles of 128 tokens.
            ("blocks", (768, 34_000_000), mixed, 1 << 20, 1_034_752),
            // 531,250 tiles of features: 4,042 tiles of 64 tokens.
            ("blocks in binary32", (768, 34_000_000), Precision::F32, 1 << 20, 258_688),
            ("sums over ranks", (16_384, 131_072), mixed, 1 << 20, 262_143),
            // 8 bytes of 232,448 for 32 tokens.
            ("the bitmap", (768, 131_072), mixed, 232_448, 929_792),
        ] {
            assert_eq!(most_rows(width, features, precision, shared_bytes), most, "{of}");
        }
    }
}
