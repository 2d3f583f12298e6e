//! Rows that are left out: bad ones by a list that only grows, unwanted ones by a filter. Both act after the order.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::RowId;
use crate::dataset::manifest::GroupId;

/// Rows and whole row groups to leave out. Append-only, so that a resumed run skips at least what it skipped before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkipList {
    #[serde(default)]
    rows: BTreeSet<RowId>,
    #[serde(default)]
    row_groups: BTreeSet<GroupId>,
}

impl SkipList {
    /// Leaves a row out.
    pub fn add_row(&mut self, row: RowId) {
        self.rows.insert(row);
    }

    /// Leaves a row group out; it is not even read, so a damaged one no longer stops a run.
    pub fn add_row_group(&mut self, shard: u32, row_group: u32) {
        self.row_groups.insert(GroupId { shard, group: row_group });
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.row_groups.is_empty()
    }

    /// Single rows plus row groups listed.
    pub fn len(&self) -> usize {
        self.rows.len() + self.row_groups.len()
    }

    /// Whether everything in `earlier` is listed here too: what a resumed run must fulfil.
    pub fn includes(&self, earlier: &SkipList) -> bool {
        earlier.rows.is_subset(&self.rows) && earlier.row_groups.is_subset(&self.row_groups)
    }

    pub(crate) fn has_row_group(&self, shard: u32, row_group: u32) -> bool {
        self.row_groups.contains(&GroupId { shard, group: row_group })
    }

    /// Rows of a shard listed in a range.
    pub(crate) fn rows_in(&self, shard: u32, rows: std::ops::Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let bound = |row| RowId { shard, row };
        self.rows.range(bound(rows.start)..bound(rows.end)).map(|id| id.row)
    }
}

/// Rows that are not wanted. The default keeps every row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowFilter {
    /// Leave out rows with a smaller Euclidean norm.
    pub norm_min: Option<f32>,
    /// Leave out rows with a larger Euclidean norm.
    pub norm_max: Option<f32>,
    /// Leave out rows with a NaN or an infinite value.
    pub finite: bool,
    /// Leave out these positions in the document (column `pos`), such as 0.
    pub positions: Vec<i32>,
    /// Leave out these tokens (column `token_id`).
    pub token_ids: Vec<i32>,
}

impl RowFilter {
    /// Whether every row passes.
    pub fn is_empty(&self) -> bool {
        !self.needs_norm() && self.positions.is_empty() && self.token_ids.is_empty()
    }

    /// The columns that it looks at.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &'static str> {
        let columns = [("pos", &self.positions), ("token_id", &self.token_ids)];
        columns.into_iter().filter(|(_, unwanted)| !unwanted.is_empty()).map(|(name, _)| name)
    }

    pub(crate) fn needs_norm(&self) -> bool {
        self.finite || self.norm_min.is_some() || self.norm_max.is_some()
    }

    /// Whether a row of this norm passes. A norm that is not a number passes unless `finite` is set: the trainer reports such
    /// rows by name.
    pub fn keeps_norm(&self, norm: f64) -> bool {
        !((self.finite && !norm.is_finite())
            || self.norm_min.is_some_and(|min| norm < f64::from(min))
            || self.norm_max.is_some_and(|max| norm > f64::from(max)))
    }
}
