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

#[cfg(test)]
mod tests {
    use super::*;

    fn list(rows: &[(u32, u64)], row_groups: &[(u32, u32)]) -> SkipList {
        let mut list = SkipList::default();
        rows.iter().for_each(|&(shard, row)| list.add_row(RowId { shard, row }));
        row_groups.iter().for_each(|&(shard, group)| list.add_row_group(shard, group));
        list
    }

    #[test]
    fn a_list_finds_what_it_was_given() {
        let all = list(&[(2, 5), (2, 9), (3, 5), (2, 5)], &[(1, 4), (1, 4)]);
        assert_eq!((all.len(), all.is_empty()), (4, false));
        assert_eq!(
            [list(&[], &[]).is_empty(), list(&[(0, 0)], &[]).is_empty(), list(&[], &[(0, 0)]).is_empty()],
            [true, false, false]
        );
        assert_eq!([all.has_row_group(1, 4), all.has_row_group(4, 1), all.has_row_group(1, 5)], [true, false, false]);
        for (shard, range, rows) in [
            (2, 0..100, &[5, 9][..]),
            (2, 5..9, &[5]),
            (2, 6..10, &[9]),
            (2, 6..9, &[]),
            (3, 0..6, &[5]),
            (1, 0..100, &[]),
        ] {
            assert!(all.rows_in(shard, range.clone()).eq(rows.iter().copied()), "{range:?} of shard {shard}");
        }
    }

    #[test]
    fn a_longer_list_includes_a_shorter_one() {
        let all = list(&[(2, 5), (2, 9)], &[(1, 4)]);
        for (earlier, includes) in [
            (list(&[], &[]), true),
            (list(&[(2, 9)], &[(1, 4)]), true),
            (list(&[(2, 8)], &[(1, 4)]), false),
            (list(&[(2, 9)], &[(1, 3)]), false),
        ] {
            assert_eq!(all.includes(&earlier), includes, "{earlier:?}");
        }
    }

    #[test]
    fn a_filter_keeps_its_bounds_and_asks_for_what_it_needs() {
        let all = RowFilter::default();
        assert!(all.is_empty() && !all.needs_norm() && all.keeps_norm(0.0) && all.keeps_norm(f64::NAN));
        let (min, max) =
            (RowFilter { norm_min: Some(2.0), ..all.clone() }, RowFilter { norm_max: Some(2.0), ..all.clone() });
        let finite = RowFilter { finite: true, ..all.clone() };
        for (filter, keeps) in [
            (&min, [false, true, true, true, true]),
            (&max, [true, true, false, false, true]),
            (&finite, [true, true, true, false, false]),
        ] {
            assert!(filter.needs_norm() && !filter.is_empty() && filter.columns().count() == 0);
            assert_eq!(
                [1.999, 2.0, 2.001, f64::INFINITY, f64::NAN].map(|norm| filter.keeps_norm(norm)),
                keeps,
                "{filter:?}"
            );
        }
        let (positions, tokens) =
            (RowFilter { positions: vec![0], ..all.clone() }, RowFilter { token_ids: vec![7], ..all });
        for (filter, column) in [(positions, "pos"), (tokens, "token_id")] {
            assert!(!filter.needs_norm() && !filter.is_empty() && filter.columns().eq([column]), "{filter:?}");
        }
    }
}
