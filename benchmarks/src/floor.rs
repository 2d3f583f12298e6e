//! The least time that the operations of a step can take on a card: the larger of the bytes that must move over its rate of
//! copying and the operations that must be done over its rate of multiplying, both measured in the same run.

use kernels::AdamMode;
use kernels::cuda::{Cost, Peaks, Precision, cost};

use crate::planted::Operation;

/// What a step's costs follow from.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// In which products are made, and weights and moments kept.
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

    /// µs of a whole step at least.
    pub fn floor_us(&self, peaks: &Peaks) -> f64 {
        let operations = Operation::ALL.map(|operation| floor_us(self.cost(operation), peaks));
        operations.iter().sum::<f64>() + floor_us(self.cost_of_transpose(), peaks)
    }
}

/// µs at least.
pub fn floor_us(cost: Cost, peaks: &Peaks) -> f64 {
    (cost.bytes as f64 / peaks.copy_gbs / 1e3).max(cost.flop as f64 / peaks.product_gflops / 1e3)
}
