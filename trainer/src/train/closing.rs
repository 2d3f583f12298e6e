//! Where the closing evaluation of a run without held-out rows begins.

use crate::data::Data;

/// Rows at the end of the training data on which a run without held-out data is measured.
const CLOSING_ROWS: u64 = 65_536;

/// Where the closing evaluation begins.
pub(super) struct Closing {
    from: Option<u64>,
}

impl Closing {
    /// Of a run on `data`.
    pub(super) fn of(data: &Data) -> Self {
        Closing { from: data.eval.is_none().then(|| data.rows.saturating_sub(CLOSING_ROWS)) }
    }

    /// Position of its first row; `None` when `data.eval` serves.
    pub(super) fn from(&self) -> Option<u64> {
        self.from
    }
}
