//! The least time that the operations of a step can take on a GPU: the bytes that must move over the rate at which it copies, and
//! for the encoder's GEMM the larger of that and its operations over the rate at which cuBLAS multiplies. Both rates are
//! measured in the same run: see [`crate::ceiling`].

use kernels::AdamMode;
use kernels::cuda::{Cost, Precision, cost};

use crate::ceiling::Ceiling;
use crate::planted::Operation;

/// What a step's costs follow from.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The precision of GEMMs, weights and moments.
    pub precision: Precision,
    /// Of Adam.
    pub mode: AdamMode,
    /// D.
    pub width: usize,
    /// F.
    pub features: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// Active pairs.
    pub pairs: usize,
    /// Features with a pair.
    pub touched: usize,
}

impl Work {
    /// What an operation on stored rows of bf16 must move and do. Backward is that of a batch whose runs are made.
    pub fn cost(&self, operation: Operation) -> Cost {
        let Work { precision, mode, width, features, rows, pairs, touched } = *self;
        let backward = cost::backward(precision, width, pairs, touched);
        match operation {
            Operation::Normalize => cost::normalize(precision, rows, width, 2),
            Operation::Encode => cost::encode(precision, rows, features, width, pairs),
            Operation::Decode => cost::decode(precision, rows, width, pairs),
            Operation::Residual => cost::residual(precision, rows, width, features),
            Operation::Backward => backward,
            Operation::Count => cost::count(rows, width, features),
            Operation::Adam => {
                let updated = if mode == AdamMode::Dense { features } else { touched };
                let update = cost::adam(precision, width, updated);
                // The gradient is made again.
                Cost { bytes: update.bytes + backward.bytes, flop: update.flop + backward.flop }
            }
        }
    }

    /// What making the runs must move.
    pub fn cost_of_transpose(&self) -> Cost {
        cost::transpose(self.features, self.pairs)
    }

    /// µs of an operation at least; `None` where it makes GEMMs and the ceiling of these was not measured.
    pub fn floor_us(&self, operation: Operation, ceiling: &Ceiling) -> Option<f64> {
        let cost = self.cost(operation);
        let moved_us = moved_us(cost, ceiling);
        if operation != Operation::Encode {
            return Some(moved_us);
        }
        Some((cost.flop as f64 / ceiling.gemm.as_ref()?.gflops / 1e3).max(moved_us))
    }

    /// µs of making the runs at least.
    pub fn floor_of_transpose_us(&self, ceiling: &Ceiling) -> f64 {
        moved_us(self.cost_of_transpose(), ceiling)
    }

    /// µs of a whole step at least.
    pub fn floor_of_step_us(&self, ceiling: &Ceiling) -> Option<f64> {
        let operations = Operation::ALL.iter().map(|&operation| self.floor_us(operation, ceiling));
        operations.sum::<Option<f64>>().map(|us| us + self.floor_of_transpose_us(ceiling))
    }
}

fn moved_us(cost: Cost, ceiling: &Ceiling) -> f64 {
    cost.bytes as f64 / ceiling.copy_gbs / 1e3
}
