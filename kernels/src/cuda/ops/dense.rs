//! Launches `dense.cu`: forward and backward by GEMMs over tiles of features.

use half::bf16;

use super::Cost;
use super::adam::Adam;
use super::backward::{Gradient, SumColumns};
use super::normalize::Rows;
use super::touched::{RowsAt, TouchedArgument, WantedRows};
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::{Precision, Tile, stride};
use crate::cuda::weights::Weights;
use crate::mesh::Place;
use crate::{ActivePairs, Error, Purpose, Shape};
use std::ops::Range;

/// Tiles are whole multiples of so many features: sums then do not depend on how wide a tile is.
const UNIT: usize = 128;

/// Most features of a tile: a grid has at most 65,535 blocks in y, and the smaller of the GEMMs' tiles is half a [`UNIT`] wide.
const WIDEST: usize = 65_535 / 2 * UNIT;

/// What memory is taken for.
const WHAT: &str = "a tile of the dense path";

/// A tile of activations, in turn for all features.
pub struct Dense {
    /// Features of a tile, a multiple of [`UNIT`], or of 8 when it holds all.
    width: usize,
    /// `a [B, width]` in the format of GEMMs: kept as bytes because that format is a choice.
    a_bt: Buffer<u8>,
}

/// The gradients of a tile.
pub struct DenseGradient {
    /// `∂a`, as `a` lies.
    gradient_bt: Buffer<u8>,
    /// Gradient rows `[width, stride]`, where a rank owns all features of its shard; else they lie elsewhere, see
    /// [`crate::cuda::ranks::owners`].
    dec_ts: Buffer<f32>,
    enc_ts: Buffer<f32>,
}

/// What the GEMMs read.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub engine: &'a Engine,
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

/// What the backward pass reads besides, and where it leaves what is no row.
#[derive(Clone, Copy)]
pub struct GradientOperands<'a> {
    pub dense: &'a Dense,
    pub of: Operands<'a>,
    pub g_bs: Pointer,
    pub gradient: &'a Gradient,
}

/// Firings of a tile's features among some tokens.
struct CountTile<'a> {
    engine: &'a Engine,
    tokens: Range<usize>,
    /// Features of the tile.
    count: usize,
}

/// Whether gradient rows of a tile lie here: those of the other ranks' features are made where they are sent from.
fn keeps_rows(purpose: Purpose, place: Place) -> bool {
    purpose == Purpose::Training && place.mesh.data == 1
}

impl Dense {
    /// A tile is as wide as the `dense_bytes` of `shape` allow, with the gradients where it is trained, and at least [`UNIT`].
    pub fn new(
        shape: &Shape,
        purpose: Purpose,
        precision: Precision,
        place: Place,
        memory: &mut GpuMemory,
    ) -> Result<Self, Error> {
        let Shape { width, features, batch, dense_bytes } = *shape;
        let passes = if purpose == Purpose::Training { 2 } else { 1 };
        let rows = if keeps_rows(purpose, place) { 2 } else { 0 };
        let of_feature = passes * batch * precision.bytes() + rows * stride(width) * size_of::<f32>();
        let width = (dense_bytes / of_feature / UNIT * UNIT).clamp(UNIT, WIDEST).min(features.next_multiple_of(8));
        Ok(Dense { width, a_bt: memory.step(batch * width * precision.bytes(), WHAT)? })
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

    fn encode(&self, of: Operands<'_>, tile: &Range<usize>) {
        let Operands { engine, x, weights } = of;
        let Tile { side, shared } = engine.precision.tile();
        let (w_enc, b_enc) = (weights.w_enc.operand(tile.start), weights.b_enc.value.at(tile.start));
        let (n, count, width, stride) = (x.n as u32, tile.len() as u32, self.width as u32, weights.w_enc.stride as u32);
        let grid = (x.n.div_ceil(side), self.width.div_ceil(side));
        let arguments = arguments![x.operand(), w_enc, b_enc, self.a_bt.at(0), n, count, width, stride];
        // SAFETY: x has n rows; there are `count` features from the tile's first on; a has `width` columns.
        unsafe {
            engine.enqueue(engine.precision.pick("dense_encode_f32", "dense_encode_bf16"), grid, shared, arguments)
        };
    }

    /// x̂, Σ a ‖W_dec‖ and firings.
    pub fn forward(&self, of: Operands<'_>, to: Forward<'_>) {
        let Operands { engine, x, weights } = of;
        let Tile { side, shared } = engine.precision.tile();
        let (n, stride, width) = (x.n as u32, weights.w_dec.stride as u32, self.width as u32);
        for tile in self.tiles(to.count_f.len()) {
            self.encode(of, &tile);
            let (first, count) = (u32::from(tile.start == 0), tile.len() as u32);
            let (a_bt, norm_t) = (self.a_bt.at(0), weights.norm_f.at(tile.start));
            let (w_dec, first_s) = (weights.w_dec.operand(tile.start), to.first_s);
            // SAFETY: the tile's activations were made above; x̂ and l1 have n rows.
            unsafe {
                let kernel = engine.precision.pick("dense_l1_f32", "dense_l1_bf16");
                engine.enqueue(kernel, x.n, 0, arguments![a_bt, norm_t, to.l1_b.at(0), count, width, first]);
                let kernel = engine.precision.pick("dense_decode_f32", "dense_decode_bf16");
                let grid = (x.n.div_ceil(side), (stride as usize).div_ceil(side));
                let arguments = arguments![a_bt, w_dec, first_s, to.x_hat_bs.at(0), n, count, width, stride, first];
                engine.enqueue(kernel, grid, shared, arguments);
            }
            self.count_tile(CountTile { engine, tokens: 0..x.n, count: tile.len() }, to.count_f.at(tile.start));
        }
    }

    fn count_tile(&self, of: CountTile<'_>, count_t: Pointer) {
        let CountTile { engine, tokens, count } = of;
        let kernel = engine.precision.pick("dense_count_f32", "dense_count_bf16");
        let (from, to) = (tokens.start as u32, tokens.end as u32);
        let arguments = arguments![self.a_bt.at(0), count_t, from, to, count as u32, self.width as u32];
        // SAFETY: the tile holds the tokens, and there is a counter for each of its features.
        unsafe { engine.enqueue(kernel, count.div_ceil(32), 0, arguments) };
    }

    /// Firings among some tokens only.
    pub fn count(&self, of: Operands<'_>, tokens: Range<usize>, count_f: &Buffer<u32>) {
        for tile in self.tiles(count_f.len()) {
            if !self.keeps(count_f.len()) {
                self.encode(of, &tile);
            }
            let counted = CountTile { engine: of.engine, tokens: tokens.clone(), count: tile.len() };
            self.count_tile(counted, count_f.at(tile.start));
        }
    }

    /// The pairs of the tokens of `rows`, of a batch that was decoded.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn active_pairs(&self, of: Operands<'_>, features: usize, rows: Range<usize>) -> Result<ActivePairs, Error> {
        let bytes = of.engine.precision.bytes();
        let value = |stored: &[u8]| match *stored {
            [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("values of two or four bytes"),
        };
        let mut pairs_r = vec![Vec::new(); rows.len()];
        // What is not active is stored as 0.
        let mut a_t = vec![0; self.width * bytes];
        for tile in self.tiles(features) {
            if !self.keeps(features) {
                self.encode(of, &tile);
            }
            for (token, pairs) in rows.clone().zip(&mut pairs_r) {
                self.a_bt.read(token * a_t.len(), &mut a_t)?;
                let a = tile.clone().zip(a_t.chunks_exact(bytes).map(value));
                pairs.extend(a.filter(|&(_, a)| a != 0.0).map(|(feature, a)| (feature as u32, a)));
            }
        }
        Ok(ActivePairs::of_rows(pairs_r))
    }
}

impl DenseGradient {
    /// For the tiles of `dense`.
    pub fn new(
        dense: &Dense,
        shape: &Shape,
        precision: Precision,
        place: Place,
        memory: &mut GpuMemory,
    ) -> Result<Self, Error> {
        let rows = if keeps_rows(Purpose::Training, place) { dense.width * stride(shape.width) } else { 0 };
        Ok(DenseGradient {
            gradient_bt: memory.step(shape.batch * dense.width * precision.bytes(), WHAT)?,
            dec_ts: memory.step(rows, WHAT)?,
            enc_ts: memory.step(rows, WHAT)?,
        })
    }

    /// Gradient rows of a tile to `rows`, `∂b_enc` and `Σ a`.
    fn tile(&self, by: GradientOperands<'_>, tile: &Range<usize>, rows: RowsAt) {
        let GradientOperands { dense, of: Operands { engine, x, weights }, g_bs, gradient } = by;
        let Tile { side, shared } = engine.precision.tile();
        let (n, count, width, stride) =
            (x.n as u32, tile.len() as u32, dense.width as u32, weights.w_dec.stride as u32);
        let (a_bt, gradient_bt, lambda_over_b) = (dense.a_bt.at(0), self.gradient_bt.at(0), gradient.lambda_over_b);
        let (w_dec, norm_t) = (weights.w_dec.operand(tile.start), weights.norm_f.at(tile.start));
        let (bias_t, activation_t) = (gradient.bias_f.at(tile.start), gradient.activation_f.at(tile.start));
        let columns = |matrix| SumColumns { engine, matrix, n: x.n, columns: tile.len(), stride: dense.width };
        // SAFETY: the tile's activations were made before; every array has the tile's features or n rows.
        unsafe {
            let kernel = engine.precision.pick("dense_activations_f32", "dense_activations_bf16");
            let grid = (x.n.div_ceil(side), dense.width.div_ceil(side));
            let arguments = arguments![g_bs, w_dec, norm_t, a_bt, gradient_bt, n, count, width, stride, lambda_over_b];
            engine.enqueue(kernel, grid, shared, arguments);
            columns(gradient_bt).run(bias_t);
            columns(a_bt).run(activation_t);
            let grid = (tile.len().div_ceil(side), (stride as usize).div_ceil(side));
            for (left, right, w, to) in [
                (a_bt, g_bs, w_dec, rows.dec_ts),
                // W_enc has no penalty of its own.
                (gradient_bt, x.operand(), 0, rows.enc_ts),
            ] {
                let kernel = engine.precision.pick("dense_gradient_f32", "dense_gradient_bf16");
                let arguments =
                    arguments![left, right, w, norm_t, activation_t, to, n, count, width, stride, lambda_over_b];
                engine.enqueue(kernel, grid, shared, arguments);
            }
        }
    }

    /// Where the rows of a tile lie here.
    fn rows(&self) -> RowsAt {
        RowsAt { dec_ts: self.dec_ts.at(0), enc_ts: self.enc_ts.at(0) }
    }

    /// `∂b_enc`, `Σ a` and the squared norm of each feature's gradient.
    pub fn backward(&self, by: GradientOperands<'_>) {
        let GradientOperands { dense, of: Operands { engine, weights, .. }, gradient, .. } = by;
        let features = gradient.bias_f.len();
        for tile in dense.tiles(features) {
            if !dense.keeps(features) {
                dense.encode(by.of, &tile);
            }
            let rows = self.rows();
            self.tile(by, &tile, rows);
            let RowsAt { dec_ts, enc_ts } = rows;
            let (bias_t, norm2_t) = (gradient.bias_f.at(tile.start), gradient.norm2_f.at(tile.start));
            let stride = weights.w_dec.stride as u32;
            // SAFETY: the tile's rows were made above.
            unsafe {
                engine.enqueue("dense_norms", tile.len(), 0, arguments![dec_ts, enc_ts, bias_t, norm2_t, stride])
            };
        }
    }

    /// The update of every feature. With several tiles a tile's gradient is made again, from its weights before the update:
    /// those of other tiles do not enter it.
    pub fn adam(&self, by: GradientOperands<'_>, adam: &Adam<'_>) {
        let (dense, features) = (by.dense, adam.count_f.len());
        for tile in dense.tiles(features) {
            if !dense.keeps(features) {
                dense.encode(by.of, &tile);
                self.tile(by, &tile, self.rows());
            }
            adam.of_rows(self.rows(), TouchedArgument::all(tile.start), tile.len());
        }
    }

    /// The gradient rows that are `wanted`, of all its features, and `∂b_enc`, `Σ a`: for other ranks. Activations are made again, for
    /// tiles of these features are not those of the forward pass.
    pub fn gradient_rows(&self, by: GradientOperands<'_>, wanted: &WantedRows) {
        let WantedRows { features, to: RowsAt { dec_ts, enc_ts }, .. } = wanted;
        for first in features.clone().step_by(by.dense.width) {
            let tile = first..(first + by.dense.width).min(features.end);
            let at = ((first - features.start) * by.of.weights.w_dec.stride * size_of::<f32>()) as u64;
            by.dense.encode(by.of, &tile);
            self.tile(by, &tile, RowsAt { dec_ts: dec_ts + at, enc_ts: enc_ts + at });
        }
    }
}

/// Five GEMMs, or ten when the tile does not hold all features.
pub fn cost(precision: Precision, n: usize, features: usize, width: usize, tiles: usize) -> Cost {
    let gemms = if tiles == 1 { 5 } else { 10 };
    let bytes = gemms * ((n + features) * width + n * features) * precision.bytes();
    Cost { bytes: bytes as u64, flop: 2 * (gemms * n * features * width) as u64 }
}
