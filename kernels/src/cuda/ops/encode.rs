//! Launches `encode.cu`: the lists of active features of a batch, one for each token (CSR).

use std::ops::Range;

use super::Cost;
use super::normalize::Rows;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::precision::Precision;
use crate::cuda::runtime::status::Status;
use crate::cuda::weights::Weights;
use crate::{ActivePairs, Error};

/// Most active features of a token for which there is room; a batch with more takes the dense path.
const CAPACITY: usize = 4096;

/// Room in the list of a token.
pub fn capacity(features: usize) -> usize {
    features.next_power_of_two().min(CAPACITY)
}

/// Blocks of the GEMM for `n` tokens.
pub fn blocks(n: usize, features: usize, precision: Precision) -> usize {
    let side = precision.tile().side;
    n.div_ceil(side) * features.div_ceil(side)
}

/// For each token its active features, sorted, with their activations.
pub struct Lists {
    features: usize,
    /// Room in a list.
    pub capacity: usize,
    /// `feature · 2³² + bits of the activation`, `[B, capacity]`.
    pub pairs_bc: Buffer<u64>,
    pub count_b: Buffer<u32>,
    /// Tokens on which each feature fired.
    pub count_f: Buffer<u32>,
}

impl Lists {
    pub fn new(batch: usize, features: usize, memory: &mut GpuMemory) -> Result<Self, Error> {
        let what = "lists of active features";
        let capacity = capacity(features);
        Ok(Lists {
            features,
            capacity,
            pairs_bc: memory.step(batch * capacity, what)?,
            count_b: memory.step(batch, what)?,
            count_f: memory.step(features, what)?,
        })
    }

    fn sort_bytes(&self) -> u32 {
        (self.capacity * size_of::<u64>()) as u32
    }

    /// Lets the kernels use the shared memory that they need.
    pub fn prepare(&self, engine: &Engine) {
        engine.allow_shared(engine.precision.pick("encode_f32", "encode_bf16"), engine.precision.tile().shared);
        engine.allow_shared("sort_lists", self.sort_bytes());
    }

    /// Begins with the lists of a batch.
    pub fn clear(&mut self) {
        self.count_b.clear();
        self.count_f.clear();
    }

    /// The pairs of the tokens of `rows`, of a batch that had room.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn active_pairs(&self, rows: Range<usize>) -> Result<ActivePairs, Error> {
        let mut count_r = vec![0; rows.len()];
        self.count_b.read(rows.start, &mut count_r)?;
        let pairs_of = |(token, count): (usize, u32)| {
            let mut pairs = vec![0; count as usize];
            self.pairs_bc.read(token * self.capacity, &mut pairs)?;
            Ok(pairs.into_iter().map(|pair| ((pair >> 32) as u32, f32::from_bits(pair as u32))).collect())
        };
        let pairs_r = rows.zip(count_r).map(pairs_of).collect::<Result<_, Error>>()?;
        Ok(ActivePairs::of_rows(pairs_r))
    }
}

/// The operands.
pub struct Encode<'a> {
    pub engine: &'a Engine,
    pub x: &'a Rows,
    /// Those whose lists are made, from the first of a tile on.
    pub tokens: Range<usize>,
    pub weights: &'a Weights,
    /// Learns of a list without room.
    pub status: &'a Buffer<Status>,
}

impl Encode<'_> {
    /// Makes the lists, and counts firings.
    pub fn run(&self, to: &Lists) {
        let Encode { engine, x, weights, status, .. } = *self;
        let tile = engine.precision.tile();
        let kernel = engine.precision.pick("encode_f32", "encode_bf16");
        let (n, first) = (self.tokens.len(), self.tokens.start);
        let blocks = blocks(n, to.features, engine.precision);
        let (w_enc, b_enc) = (weights.w_enc.operand(0), weights.b_enc.value.at(0));
        let (features, stride, capacity) = (to.features as u32, x.stride as u32, to.capacity as u32);
        let (pairs_bc, count_b) = (to.pairs_bc.at(first * to.capacity), to.count_b.at(first));
        let (x_bs, count_f, rows) = (x.operand_from(first), to.count_f.at(0), n as u32);
        // SAFETY: x has n rows from there on and W_enc `features`, `stride` apart; biases fill whole tiles; a list has `capacity` places.
        unsafe {
            let arguments = arguments![x_bs, w_enc, b_enc, pairs_bc, count_b, rows, features, stride, capacity];
            engine.enqueue(kernel, blocks, tile.shared, arguments);
            let arguments = arguments![pairs_bc, count_b, count_f, status.at(0), capacity];
            engine.enqueue("sort_lists", n, to.sort_bytes(), arguments);
        }
    }
}

/// Bytes that must move and operations that must be done for a batch: x and W_enc once, 16 bytes a pair.
pub fn cost(precision: Precision, n: usize, features: usize, width: usize, pairs: usize) -> Cost {
    let bytes = (n + features) * width * precision.bytes() + 16 * pairs;
    Cost { bytes: bytes as u64, flop: 2 * (n * features * width) as u64 }
}
