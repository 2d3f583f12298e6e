//! Launches `residual.cu`.

use super::Cost;
use super::normalize::Rows;
use crate::cuda::runtime::engine::{Engine, arguments};
use crate::cuda::runtime::memory::Buffer;
use crate::cuda::runtime::pointer::Pointer;
use crate::cuda::runtime::precision::Precision;
use crate::cuda::runtime::status::Status;

/// The operands, and where results go.
pub struct Residual<'a> {
    pub engine: &'a Engine,
    pub x: &'a Rows,
    pub x_hat_bs: &'a Buffer<f32>,
    /// In the format that GEMMs read.
    pub g_bs: Pointer,
    pub error_b: &'a Buffer<f64>,
    pub l1_b: &'a Buffer<f64>,
    pub count_f: &'a Buffer<u32>,
    pub status: &'a Buffer<Status>,
}

impl Residual<'_> {
    /// g and the sums of the report.
    pub fn run(&self) {
        let Residual { engine, x, .. } = *self;
        let kernel = engine.precision.pick("residual_f32", "residual_bf16");
        let (n, of, stride, features) = (x.n as u32, x.batch_rows as u32, x.stride as u32, self.count_f.len() as u32);
        let (error_b, l1_b, status) = (self.error_b.at(0), self.l1_b.at(0), self.status.at(0));
        let blocks = self.count_f.len().div_ceil(256).min(8 * engine.multiprocessors as usize);
        // SAFETY: all arrays have n rows or tokens, count_f one value a feature.
        unsafe {
            let arguments = arguments![x.x_bs.at(0), self.x_hat_bs.at(0), self.g_bs, error_b, status, of, stride];
            engine.enqueue(kernel, x.n, 0, arguments);
            engine.enqueue("sum_tokens", 1, 0, arguments![error_b, l1_b, status, n]);
            engine.enqueue("count_active", blocks, 0, arguments![self.count_f.at(0), status, features]);
        }
    }
}

/// x and x̂ read, g written, and a counter a feature.
pub fn cost(precision: Precision, n: usize, width: usize, features: usize) -> Cost {
    Cost { bytes: (n * width * (8 + precision.bytes()) + 4 * features) as u64, flop: 5 * (n * width) as u64 }
}
