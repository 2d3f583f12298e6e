//! The roll call of the ranks before a batch: how many rows each brings, whether one of them wants the run to stop, and how far the
//! checkpoint is that is on its way.
//!
//! Skip lists and filters shorten batches unevenly, and a signal reaches ranks at different steps: both must be known to all before
//! they go on together. A run of one rank only talks to itself.

use std::ops::Range;

use kernels::mesh::{Axes, Place};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::checkpoint::LeftOut;
use crate::ranks::together::together;

/// What a rank says.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Rows that it brings.
    pub rows: usize,
    /// Rows that were left out of its part.
    pub left_out: LeftOut,
    /// It was asked to stop.
    pub stop: bool,
    /// Its clock says that a checkpoint is due.
    pub save: bool,
    /// It has done its part of the checkpoint that is on its way.
    pub saved: bool,
}

/// What all ranks have said.
#[derive(Clone, Debug)]
pub struct RollCall {
    place: Place,
    rows: Vec<usize>,
    /// Rows that were left out of the batch.
    pub left_out: LeftOut,
    /// Whether any was asked to stop.
    pub stop: bool,
    /// Whether the first rank's clock says that a checkpoint is due.
    pub save: bool,
    /// Whether all have done their part of the checkpoint that is on its way.
    pub saved: bool,
}

impl RollCall {
    /// Hears all ranks, or why one of them cannot read its rows.
    ///
    /// # Errors
    /// `answer`; [`kernels::Error::Peer`].
    pub fn hold(axes: &Axes, answer: Result<Answer, Error>) -> Result<RollCall, Error> {
        let heard = together(&axes.all, "reading a batch", answer)?;
        Ok(RollCall {
            place: axes.place,
            rows: heard.iter().map(|answer| answer.rows).collect(),
            left_out: LeftOut {
                skipped: heard.iter().map(|answer| answer.left_out.skipped).sum(),
                filtered: heard.iter().map(|answer| answer.left_out.filtered).sum(),
            },
            stop: heard.iter().any(|answer| answer.stop),
            save: heard[0].save,
            saved: heard.iter().all(|answer| answer.saved),
        })
    }

    /// Rows of the batch over all ranks.
    pub fn rows(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Rows that this rank sees: those that the ranks of its feature axis bring.
    pub fn rows_here(&self) -> usize {
        self.rows[self.axis()].iter().sum()
    }

    /// Rows that this rank sees before the first that it brings itself.
    pub fn rows_before(&self) -> usize {
        self.rows[self.axis().start..self.place.rank].iter().sum()
    }

    /// Where the rows of `row_bytes` lie that each rank of the feature axis brings, `rank_batch` at most.
    pub fn parts(&self, rank_batch: usize, row_bytes: usize) -> Vec<Range<usize>> {
        let rows = self.rows[self.axis()].iter().enumerate();
        rows.map(|(part, rows)| part * rank_batch * row_bytes..(part * rank_batch + rows) * row_bytes).collect()
    }

    /// The ranks of this one's feature axis.
    fn axis(&self) -> Range<usize> {
        let feature = self.place.mesh.feature;
        self.place.data() * feature..(self.place.data() + 1) * feature
    }
}

/// Most rows of a batch of `batch` that one rank of a place's mesh brings.
pub fn most_rows(place: Place, batch: usize) -> usize {
    batch.div_ceil(place.mesh.ranks())
}
