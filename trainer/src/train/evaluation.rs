//! What it takes to look at a dictionary while it trains.

use kernels::Device;

use crate::report::centre::Centre;
use crate::report::recovery::Truth;

/// What it takes to look at a dictionary while it trains.
pub(super) struct Evaluation<D: Device> {
    /// Where weights settle to be looked at, in a mode that owes updates and when somebody will look.
    pub(super) settled: Option<D::Dictionary>,
    /// The middle of the rows that were measured last, and how many were asked for.
    pub(super) centre: Option<(u64, Centre)>,
    /// The directions that the data were made of, when they are known and of the data's width.
    pub(super) truth: Option<Truth>,
}

impl<D: Device> Evaluation<D> {
    pub(super) fn new(settled: Option<D::Dictionary>, truth: Option<Truth>) -> Self {
        Evaluation { settled, centre: None, truth }
    }
}
