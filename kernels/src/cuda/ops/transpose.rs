//! Launches `transpose.cu`: from lists by token (CSR) to runs by feature (CSC).

use super::Cost;
use super::encode::Lists;
use crate::cuda::runtime::engine::{Argument, Engine, arguments};
use crate::cuda::runtime::memory::{Buffer, GpuMemory};
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::stride;
use crate::cuda::runtime::status::Status;
use crate::{Error, Shape};

/// Pairs a token on average for which there is room; more are taken by the dense path.
const PAIRS_A_TOKEN: usize = 1024;
/// What memory is taken for.
const WHAT: &str = "runs of pairs";
/// As in transpose.cu and gradient.cuh.
const CHUNK: usize = 1024;
const SCAN_TILE: usize = 2048;
const WARP: usize = 32;
/// Of shared memory for each 32 tokens: a word of the bitmap, and the number of tokens before it.
const BITMAP_BYTES_A_WORD: usize = 8;

/// Most tokens whose bitmap has room in `shared` bytes.
pub fn most_tokens(shared: usize) -> usize {
    shared / BITMAP_BYTES_A_WORD * 32
}

/// The active pairs of a batch in CSC: a column for each feature, called its run, of the tokens on which it fired, ascending, with its
/// activations.
pub struct Csc {
    features: usize,
    stride: usize,
    /// Pairs for which there is room.
    room: usize,
    /// Chunks of long runs for which there is room.
    chunk_room: usize,
    totals: Buffer<[u32; 3]>,
    pub run_f: Buffer<u32>,
    cursor_f: Buffer<u32>,
    chunk_f: Buffer<u32>,
    feature_l: Buffer<u32>,
    pub feature_c: Buffer<u32>,
    loose_p: Buffer<u64>,
    pub token_p: Buffer<u32>,
    activation_p: Buffer<f32>,
}

/// What backward makes of the runs, and Adam reads again.
pub struct CscGradient {
    gradient_p: Buffer<f32>,
    /// Sums over the chunks of long runs.
    dec_cs: Buffer<f32>,
    enc_cs: Buffer<f32>,
}

/// `Csc` in gradient.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CscArgument {
    run_f: Pointer,
    token_p: Pointer,
    activation_p: Pointer,
    gradient_p: Pointer,
    chunk_f: Pointer,
    dec_cs: Pointer,
    enc_cs: Pointer,
    g_bs: Pointer,
    x_bs: Pointer,
    stride: u32,
}
// SAFETY: nine pointers and a u32 in the same order.
unsafe impl Argument for CscArgument {}

impl Csc {
    /// For batches of `shape` whose lists have room for `capacity` pairs each.
    pub fn new(shape: &Shape, capacity: usize, memory: &mut GpuMemory) -> Result<Self, Error> {
        let Shape { width, features, batch, .. } = *shape;
        let room = batch * capacity.min(PAIRS_A_TOKEN);
        // A run that is cut has more than a chunk, hence at most twice as many chunks as it fills.
        let chunk_room = 2 * room / CHUNK;
        Ok(Csc {
            features,
            stride: stride(width),
            room,
            chunk_room,
            totals: memory.step(features.div_ceil(SCAN_TILE) + 1, WHAT)?,
            run_f: memory.step(features + 1, WHAT)?,
            cursor_f: memory.step(features, WHAT)?,
            chunk_f: memory.step(features + 1, WHAT)?,
            feature_l: memory.step(room / WARP, WHAT)?,
            feature_c: memory.step(chunk_room, WHAT)?,
            loose_p: memory.step(room, WHAT)?,
            token_p: memory.step(room, WHAT)?,
            activation_p: memory.step(room, WHAT)?,
        })
    }

    /// As kernels take it, with the gradient and the rows that its pairs mean.
    pub fn argument(&self, gradient: &CscGradient, g_bs: Pointer, x_bs: Pointer) -> CscArgument {
        CscArgument {
            run_f: self.run_f.at(0),
            token_p: self.token_p.at(0),
            activation_p: self.activation_p.at(0),
            gradient_p: gradient.gradient_p.at(0),
            chunk_f: self.chunk_f.at(0),
            dec_cs: gradient.dec_cs.at(0),
            enc_cs: gradient.enc_cs.at(0),
            g_bs,
            x_bs,
            stride: self.stride as u32,
        }
    }

    fn bitmap_bytes(n: usize) -> u32 {
        (BITMAP_BYTES_A_WORD * n.div_ceil(32)) as u32
    }

    /// Lets the kernels use the shared memory that they need.
    pub fn prepare(&self, engine: &Engine, batch: usize) {
        engine.allow_shared("order_long_runs", Self::bitmap_bytes(batch));
    }
}

impl CscGradient {
    /// For the pairs of `of`.
    pub fn new(of: &Csc, memory: &mut GpuMemory) -> Result<Self, Error> {
        Ok(CscGradient {
            gradient_p: memory.step(of.room, WHAT)?,
            dec_cs: memory.step(of.chunk_room * of.stride, WHAT)?,
            enc_cs: memory.step(of.chunk_room * of.stride, WHAT)?,
        })
    }
}

/// The operands.
pub struct Transpose<'a> {
    pub engine: &'a Engine,
    pub lists: &'a Lists,
    /// Tokens.
    pub n: usize,
    pub status: &'a Buffer<Status>,
}

impl Transpose<'_> {
    /// Makes the runs of the lists.
    pub fn run(&self, to: &mut Csc) {
        let Transpose { engine, lists, n, status } = *self;
        let tiles = to.features.div_ceil(SCAN_TILE);
        let (features, capacity) = (to.features as u32, lists.capacity as u32);
        let (count_f, totals, status) = (lists.count_f.at(0), to.totals.at(0), status.at(0));
        let (run_f, cursor_f, loose_p) = (to.run_f.at(0), to.cursor_f.at(0), to.loose_p.at(0));
        let (token_p, activation_p) = (to.token_p.at(0), to.activation_p.at(0));
        let (chunk_f, feature_l, feature_c) = (to.chunk_f.at(0), to.feature_l.at(0), to.feature_c.at(0));
        // SAFETY: every array has the length that the head of transpose.cu asks for; kernels that fill runs do nothing when
        // scan_sums has found that there is no room for them.
        unsafe {
            engine.enqueue("scan_tiles", tiles, 0, arguments![count_f, totals, features]);
            let (room, chunk_room) = (to.room as u32, to.chunk_room as u32);
            engine.enqueue("scan_sums", 1, 0, arguments![totals, tiles as u32, status, room, chunk_room]);
            let arguments =
                arguments![count_f, totals, status, run_f, cursor_f, chunk_f, feature_l, feature_c, features];
            engine.enqueue("scan_apply", tiles, 0, arguments);
            let arguments = arguments![lists.pairs_bc.at(0), lists.count_b.at(0), status, cursor_f, loose_p, capacity];
            engine.enqueue("fill_runs", n, 0, arguments);
            let arguments = arguments![run_f, loose_p, status, token_p, activation_p, features];
            engine.enqueue("order_short_runs", to.features.div_ceil(256 / WARP), 0, arguments);
            let all = to.totals.at(tiles);
            let arguments = arguments![run_f, feature_l, all, loose_p, status, token_p, activation_p, n as u32];
            engine.enqueue("order_long_runs", 8 * engine.multiprocessors as usize, Csc::bitmap_bytes(n), arguments);
        }
    }
}

/// Bytes that must move: 16 a pair read and written twice, 24 a feature.
pub fn cost(features: usize, pairs: usize) -> Cost {
    Cost { bytes: (32 * pairs + 24 * features) as u64, flop: 0 }
}
