//! What it takes to look at a dictionary while it trains.

use kernels::Device;

/// What it takes to look at a dictionary while it trains.
pub(super) struct Evaluation<D: Device> {
    /// Where weights settle to be looked at, in a mode that owes updates and when somebody will look.
    pub(super) settled: Option<D::Dictionary>,
}

impl<D: Device> Evaluation<D> {
    pub(super) fn new(settled: Option<D::Dictionary>) -> Self {
        Evaluation { settled }
    }
}
