//! Launches `dense.cu`: forward and backward by GEMMs over tiles of features.

use super::Cost;
use super::adam::Adam;
use super::backward::{Gradient, sum_columns};
use super::normalize::Rows;
use super::touched::{RowsAt, TouchedArgument};
use crate::Error;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, Memory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::{Precision, Tile};
use crate::cuda::weights::Weights;
use std::ops::Range;

/// Tiles are whole multiples of so many features: sums then do not depend on how wide a tile is.
const UNIT: usize = 128;

/// Most features of a tile: a grid has at most 65,535 blocks in y, and the smaller of the GEMMs' tiles is half a [`UNIT`] wide.
const WIDEST: usize = 65_535 / 2 * UNIT;

/// A tile of activations and gradients, in turn for all features.
pub struct Dense {
    /// Features of a tile, a multiple of [`UNIT`], or of 8 when it holds all.
    width: usize,
    /// `a` and `∂a` `[B, width]`, in the format of GEMMs: kept as bytes because that format is a choice.
    a_bt: Buffer<u8>,
    gradient_bt: Buffer<u8>,
    /// Gradient rows `[width, stride]`.
    dec_ts: Buffer<f32>,
    enc_ts: Buffer<f32>,
}

/// What the GEMMs read.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub x: &'a Rows,
    pub weights: &'a Weights,
}

/// What the forward pass makes.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    pub x_hat_bs: &'a Buffer<f32>,
    pub l1_b: &'a Buffer<f64>,
    pub count_f: &'a Buffer<u32>,
    /// What sums begin at: b_dec or zeros.
    pub first_s: Pointer,
}

impl Dense {
    /// A tile is as wide as `bytes` allow, and at least [`UNIT`]. Where a rank does not own all features of its shard, gradient rows
    /// lie elsewhere: see [`crate::cuda::ranks::owners`].
    pub fn new(
        (batch, features, stride): (usize, usize, usize),
        bytes: usize,
        (precision, trains, owns_all): (Precision, bool, bool),
        memory: &mut Memory,
    ) -> Result<Self, Error> {
        let what = "a tile of the dense path";
        let (passes, rows) = (1 + usize::from(trains), if trains && owns_all { 2 } else { 0 });
        let of_feature = passes * batch * precision.bytes() + rows * stride * size_of::<f32>();
        let width = (bytes / of_feature / UNIT * UNIT).clamp(UNIT, WIDEST).min(features.next_multiple_of(8));
        let a_bytes = batch * width * precision.bytes();
        Ok(Dense {
            width,
            a_bt: memory.step(a_bytes, what)?,
            gradient_bt: memory.step(if trains { a_bytes } else { 0 }, what)?,
            dec_ts: memory.step(rows / 2 * width * stride, what)?,
            enc_ts: memory.step(rows / 2 * width * stride, what)?,
        })
    }

    /// Lets the kernels use the shared memory that they need.
    pub fn prepare(&self, engine: &Engine) {
        let Tile { shared, .. } = engine.precision.tile();
        for (single, mixed) in [
            ("dense_encode_f32", "dense_encode_bf16"),
            ("dense_decode_f32", "dense_decode_bf16"),
            ("dense_activations_f32", "dense_activations_bf16"),
            ("dense_gradient_f32", "dense_gradient_bf16"),
        ] {
            engine.allow_shared(engine.precision.pick(single, mixed), shared);
        }
    }

    fn tiles(&self, features: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let width = self.width;
        (0..features).step_by(width).map(move |first| first..(first + width).min(features))
    }

    /// Whether what was made for a tile is still there when the next pass begins.
    fn keeps(&self, features: usize) -> bool {
        features <= self.width
    }

    fn encode(&self, engine: &Engine, of: Operands<'_>, tile: &Range<usize>) {
        let Tile { side, shared } = engine.precision.tile();
        let (w_enc, b_enc) = (of.weights.w_enc.operand(tile.start), of.weights.b_enc.value.at(tile.start));
        let (n, count, width, stride) =
            (of.x.n as u32, tile.len() as u32, self.width as u32, of.weights.w_enc.stride as u32);
        let grid = (of.x.n.div_ceil(side), self.width.div_ceil(side));
        let arguments = arguments![of.x.operand(), w_enc, b_enc, self.a_bt.at(0), n, count, width, stride];
        // SAFETY: x has n rows; there are `count` features from the tile's first on; a has `width` columns.
        unsafe {
            engine.enqueue(engine.precision.pick("dense_encode_f32", "dense_encode_bf16"), grid, shared, arguments)
        };
    }

    /// x̂, Σ a ‖W_dec‖ and firings.
    pub fn forward(&self, engine: &Engine, of: Operands<'_>, to: Forward<'_>) {
        let Tile { side, shared } = engine.precision.tile();
        let (n, stride, width) = (of.x.n as u32, of.weights.w_dec.stride as u32, self.width as u32);
        for tile in self.tiles(to.count_f.len()) {
            self.encode(engine, of, &tile);
            let (first, count) = (u32::from(tile.start == 0), tile.len() as u32);
            let (a_bt, norm_t) = (self.a_bt.at(0), of.weights.norm_f.at(tile.start));
            let (w_dec, first_s) = (of.weights.w_dec.operand(tile.start), to.first_s);
            // SAFETY: the tile's activations were made above; x̂ and l1 have n rows.
            unsafe {
                let kernel = engine.precision.pick("dense_l1_f32", "dense_l1_bf16");
                engine.enqueue(kernel, of.x.n, 0, arguments![a_bt, norm_t, to.l1_b.at(0), count, width, first]);
                let kernel = engine.precision.pick("dense_decode_f32", "dense_decode_bf16");
                let grid = (of.x.n.div_ceil(side), (stride as usize).div_ceil(side));
                let arguments = arguments![a_bt, w_dec, first_s, to.x_hat_bs.at(0), n, count, width, stride, first];
                engine.enqueue(kernel, grid, shared, arguments);
            }
            self.count_tile(engine, to.count_f.at(tile.start), 0..of.x.n, tile.len());
        }
    }

    fn count_tile(&self, engine: &Engine, count_t: Pointer, tokens: Range<usize>, count: usize) {
        let kernel = engine.precision.pick("dense_count_f32", "dense_count_bf16");
        let (from, to) = (tokens.start as u32, tokens.end as u32);
        let arguments = arguments![self.a_bt.at(0), count_t, from, to, count as u32, self.width as u32];
        // SAFETY: the tile holds the tokens, and there is a counter for each of its features.
        unsafe { engine.enqueue(kernel, count.div_ceil(32), 0, arguments) };
    }

    /// Firings among some tokens only.
    pub fn count(&self, engine: &Engine, of: Operands<'_>, tokens: Range<usize>, count_f: &Buffer<u32>) {
        for tile in self.tiles(count_f.len()) {
            if !self.keeps(count_f.len()) {
                self.encode(engine, of, &tile);
            }
            self.count_tile(engine, count_f.at(tile.start), tokens.clone(), tile.len());
        }
    }

    /// Gradient rows of a tile, `∂b_enc` and `Σ a`.
    fn backward_tile(
        &self,
        engine: &Engine,
        of: Operands<'_>,
        g_bs: Pointer,
        gradient: &Gradient,
        (tile, (dec_ts, enc_ts)): (&Range<usize>, RowsAt),
    ) {
        let Tile { side, shared } = engine.precision.tile();
        let (n, count, width, stride) =
            (of.x.n as u32, tile.len() as u32, self.width as u32, of.weights.w_dec.stride as u32);
        let (a_bt, gradient_bt, lambda_over_b) = (self.a_bt.at(0), self.gradient_bt.at(0), gradient.lambda_over_b);
        let (w_dec, norm_t) = (of.weights.w_dec.operand(tile.start), of.weights.norm_f.at(tile.start));
        let (bias_t, activation_t) = (gradient.bias_f.at(tile.start), gradient.activation_f.at(tile.start));
        let columns = (of.x.n, tile.len(), self.width);
        // SAFETY: the tile's activations were made before; every array has the tile's features or n rows.
        unsafe {
            let kernel = engine.precision.pick("dense_activations_f32", "dense_activations_bf16");
            let grid = (of.x.n.div_ceil(side), self.width.div_ceil(side));
            let arguments = arguments![g_bs, w_dec, norm_t, a_bt, gradient_bt, n, count, width, stride, lambda_over_b];
            engine.enqueue(kernel, grid, shared, arguments);
            sum_columns(engine, gradient_bt, bias_t, columns);
            sum_columns(engine, a_bt, activation_t, columns);
            let grid = (tile.len().div_ceil(side), (stride as usize).div_ceil(side));
            for (left, right, w, to) in [
                (a_bt, g_bs, w_dec, dec_ts),
                // W_enc has no penalty of its own.
                (gradient_bt, of.x.operand(), 0, enc_ts),
            ] {
                let kernel = engine.precision.pick("dense_gradient_f32", "dense_gradient_bf16");
                let arguments =
                    arguments![left, right, w, norm_t, activation_t, to, n, count, width, stride, lambda_over_b];
                engine.enqueue(kernel, grid, shared, arguments);
            }
        }
    }

    /// `∂b_enc`, `Σ a` and the squared norm of each feature's gradient.
    pub fn backward(&self, engine: &Engine, of: Operands<'_>, g_bs: Pointer, gradient: &Gradient) {
        let features = gradient.bias_f.len();
        for tile in self.tiles(features) {
            if !self.keeps(features) {
                self.encode(engine, of, &tile);
            }
            let (dec_ts, enc_ts) = (self.dec_ts.at(0), self.enc_ts.at(0));
            self.backward_tile(engine, of, g_bs, gradient, (&tile, (dec_ts, enc_ts)));
            let (bias_t, norm2_t) = (gradient.bias_f.at(tile.start), gradient.norm2_f.at(tile.start));
            let stride = of.weights.w_dec.stride as u32;
            // SAFETY: the tile's rows were made above.
            unsafe {
                engine.enqueue("dense_norms", tile.len(), 0, arguments![dec_ts, enc_ts, bias_t, norm2_t, stride])
            };
        }
    }

    /// The update of every feature. With several tiles a tile's gradient is made again, from its weights before the update:
    /// those of other tiles do not enter it.
    pub fn adam(&self, engine: &Engine, x: &Rows, g_bs: Pointer, adam: &Adam<'_>) {
        let features = adam.count_f.len();
        let rows = (self.dec_ts.at(0), self.enc_ts.at(0));
        for tile in self.tiles(features) {
            if !self.keeps(features) {
                let of = Operands { x, weights: adam.weights };
                self.encode(engine, of, &tile);
                self.backward_tile(engine, of, g_bs, adam.gradient, (&tile, rows));
            }
            adam.of_rows(engine, rows, TouchedArgument::all(tile.start), tile.len());
        }
    }

    /// Gradient rows of `features` to `to`, and `∂b_enc`, `Σ a`: for other ranks. Activations are made again, for tiles of these features
    /// are not those of the forward pass.
    pub fn gradient_rows(
        &self,
        engine: &Engine,
        of: Operands<'_>,
        g_bs: Pointer,
        gradient: &Gradient,
        (features, (dec, enc)): (Range<usize>, RowsAt),
    ) {
        for first in features.clone().step_by(self.width) {
            let tile = first..(first + self.width).min(features.end);
            let at = ((first - features.start) * of.weights.w_dec.stride * size_of::<f32>()) as u64;
            self.encode(engine, of, &tile);
            self.backward_tile(engine, of, g_bs, gradient, (&tile, (dec + at, enc + at)));
        }
    }
}

/// Five GEMMs, or ten when the tile does not hold all features.
pub fn cost(precision: Precision, n: usize, features: usize, width: usize, tiles: usize) -> Cost {
    let gemms = if tiles == 1 { 5 } else { 10 };
    let bytes = gemms * ((n + features) * width + n * features) * precision.bytes();
    Cost { bytes: bytes as u64, flop: 2 * (gemms * n * features * width) as u64 }
}
