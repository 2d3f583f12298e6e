//! A few rows that are everything: which rows of a sample carry most of E‖x‖², where they stand in their documents, and which filter
//! leaves them out.
//!
//! Language models put norms of a hundred times the usual on single tokens, mostly the first of a context. A scale, a λ and an
//! explained variance over such rows are about them alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::dataset::norms::{Norms, TOP};
use crate::dataset::tokens;
use crate::stream::load::{Loader, extents};
use crate::{Dataset, Result, RowFilter, RowId, SkipList};

/// Share of E‖x‖² above which the largest 1 % of the rows carry too much.
pub(crate) const TOO_MUCH: f64 = 0.2;

/// Multiples of the median norm that a filter may be given, the mildest first.
const MULTIPLES: [f64; 4] = [10.0, 5.0, 3.0, 2.0];

/// Values of a column that are named at most.
const NAMED: usize = 8;

/// Rows of a sample that carry too much of E‖x‖².
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Heavy {
    /// Which share of E‖x‖² the largest 1 % of the sample carry.
    pub top1_share: f64,
    /// Rows of the sample with a finite norm.
    #[serde(rename = "of")]
    pub sampled: u64,
    /// The heavy ones among them have more than so many times the median norm; `null` where no multiple tells them from the others, and
    /// the largest 1 % are meant.
    pub times: Option<f64>,
    /// How many they are.
    pub rows: u64,
    /// Where they stand, as far as the columns `pos` and `token_id` say so.
    pub at: Vec<HeavyAt>,
    /// Filters that leave them out.
    pub filters: Vec<Remedy>,
}

/// A value of a column at which most rows are heavy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeavyAt {
    /// `pos` or `token_id`.
    pub column: &'static str,
    /// The value.
    pub value: i64,
    /// Heavy rows with it.
    pub heavy: u64,
    /// All rows of the sample with it.
    pub rows: u64,
}

/// A filter, and what it would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// As [`RowFilter`] calls it, with its value as TOML; see [`Heavy::under`].
    pub filter: String,
    /// Rows of the sample that it leaves out.
    pub rows: u64,
}

impl Heavy {
    /// The same with its filters as they stand in a recipe that has them under `key`.
    #[must_use]
    pub fn under(mut self, key: &str) -> Heavy {
        self.filters.iter_mut().for_each(|remedy| remedy.filter.insert_str(0, &format!("{key}.")));
        self
    }
}

/// The heavy rows of a sample of `dataset`, given by their norms; `None` where the largest 1 % carry no more than a fifth of E‖x‖².
pub fn heavy(dataset: &Dataset, ids: &[RowId], row_norms: &[f64]) -> Option<Heavy> {
    let norms: Norms = row_norms.iter().copied().collect();
    let top1_share = norms.top_share(TOP).filter(|share| *share > TOO_MUCH)?;
    let median = norms.quantile(0.5)?;
    let mends = |times: &f64| {
        let kept = norms.up_to(times * median);
        kept.rows() < norms.rows() && kept.top_share(TOP).is_some_and(|share| share <= TOO_MUCH)
    };
    let times = MULTIPLES.into_iter().find(mends);
    let limit = times.map_or(norms.quantile(1.0 - TOP)?, |times| times * median);
    let is_heavy: Vec<bool> = row_norms.iter().map(|norm| norm.is_finite() && *norm > limit).collect();
    let rows = is_heavy.iter().filter(|&&heavy| heavy).count() as u64;
    let mut found = Heavy { top1_share, sampled: norms.rows(), times, rows, at: Vec::new(), filters: Vec::new() };
    for (column, key) in [("pos", "positions"), ("token_id", "token_ids")] {
        // Naming them is a courtesy: a column that cannot be read is reported where it is needed.
        let Ok(Some(values)) = values(dataset, ids, column) else { continue };
        let at = values_of(column, &values, &is_heavy);
        let covered: u64 = at.iter().map(|at| at.heavy).sum();
        if 2 * covered > rows {
            let list: Vec<String> = at.iter().map(|at| at.value.to_string()).collect();
            let filter = format!("{key} = [{}]", list.join(", "));
            found.filters.push(Remedy { filter, rows: at.iter().map(|at| at.rows).sum() });
        }
        found.at.extend(at);
    }
    if let Some(times) = times {
        found.filters.push(Remedy { filter: format!("norm_max = \"{times}x\""), rows });
    }
    Some(found)
}

/// The values at which at least half of the rows are heavy, those with the most heavy rows first.
fn values_of(column: &'static str, values: &[i64], is_heavy: &[bool]) -> Vec<HeavyAt> {
    let mut counts: BTreeMap<i64, HeavyAt> = BTreeMap::new();
    for (&value, &heavy) in values.iter().zip(is_heavy) {
        let at = counts.entry(value).or_insert_with(|| HeavyAt { column, value, heavy: 0, rows: 0 });
        at.heavy += u64::from(heavy);
        at.rows += 1;
    }
    let mut at: Vec<HeavyAt> = counts.into_values().filter(|at| at.heavy > 0 && 2 * at.heavy >= at.rows).collect();
    at.sort_by_key(|at| std::cmp::Reverse(at.heavy));
    at.truncate(NAMED);
    at
}

/// The values of an integer column in the rows of `ids`, in their order; `None` where a shard has no such column that can be used.
fn values(dataset: &Dataset, ids: &[RowId], column: &str) -> Result<Option<Vec<i64>>> {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&i| ids[i]);
    let loader = Loader::new(dataset, SkipList::default(), RowFilter::default())?;
    let mut values = vec![0; ids.len()];
    // One row group after the other: its first row, and its values.
    let mut group: Option<(RowId, Vec<i64>)> = None;
    for i in order {
        let RowId { shard, row } = ids[i];
        let inside = |(first, values): &(RowId, Vec<i64>)| {
            first.shard == shard && (first.row..first.row + values.len() as u64).contains(&row)
        };
        if !group.as_ref().is_some_and(inside) {
            let footer = dataset.footer(shard)?;
            if !matches!(tokens::leaf(&footer, column), Ok(Some(_))) {
                return Ok(None);
            }
            group = group_of(&loader, ids[i], column)?;
        }
        let Some((first, of_group)) = &group else { return Ok(None) };
        values[i] = of_group[(row - first.row) as usize];
    }
    Ok(Some(values))
}

/// The first row of the row group that holds a row, and the group's values of a column.
fn group_of(loader: &Loader, id: RowId, column: &str) -> Result<Option<(RowId, Vec<i64>)>> {
    let shard = &loader.dataset.shards()[id.shard as usize];
    let mut first = 0;
    for (g, group) in shard.row_groups.iter().enumerate() {
        if id.row < first + group.rows {
            let Some(extent) = extents(id.shard, g as u32, group, false, u64::MAX).pop() else { return Ok(None) };
            let values = loader.int_values(&extent, column, None)?;
            return Ok(Some((RowId { shard: id.shard, row: first }, values)));
        }
        first += group.rows;
    }
    Ok(None)
}

impl fmt::Display for Heavy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |rows: u64| 100.0 * rows as f64 / self.sampled as f64;
        write!(
            f,
            "the largest 1 % of the rows carry {:.1} % of E‖x‖²: the scale, λ and explained variance would be about these rows. {} of \
             {} sampled rows ",
            100.0 * self.top1_share,
            self.rows,
            self.sampled
        )?;
        match self.times {
            Some(times) => write!(f, "have more than {times} times the median norm")?,
            None => write!(f, "are meant, and no multiple of the median norm tells them from the others")?,
        }
        for (i, HeavyAt { column, value, heavy, rows }) in self.at.iter().enumerate() {
            let before = if i == 0 { ":" } else { "," };
            write!(f, "{before} {heavy} of the {rows} at {column} {value}")?;
        }
        for (i, Remedy { filter, rows }) in self.filters.iter().enumerate() {
            let before = if i == 0 { ". Leave them out:" } else { " or" };
            write!(f, "{before} {filter} ({rows} rows of the sample, {:.2} %)", percent(*rows))?;
        }
        Ok(())
    }
}
