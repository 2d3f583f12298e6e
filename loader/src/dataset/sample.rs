//! A deterministic random sample of rows, for scales and biases.

use std::ops::Range;

use crate::stream::load::{Loader, extents};
use crate::stream::permutation::{Permutation, key};
use crate::stream::unit::{Extent, Loaded};
use crate::{Dataset, Result, RowFilter, RowId, SkipList};

/// Stretches that a sample is spread over at most.
const STRETCHES: u64 = 64;
/// Bytes of rows of a stretch: cut by rows and not by pieces, which only a manifest knows.
const STRETCH_BYTES: u64 = 8 << 20;

/// Neighbouring rows of one row group.
#[derive(Debug, Clone)]
struct Stretch {
    shard: u32,
    group: u32,
    /// Rows in the row group.
    rows: Range<u64>,
    /// Its number among all stretches: what its rows are drawn by.
    number: u64,
}

/// Rows that were drawn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// The rows as f32, one after the other.
    pub rows: Vec<f32>,
    /// Which they are.
    pub ids: Vec<RowId>,
    /// Rows that were looked at to find these: the others are skipped or filtered.
    pub looked_at: usize,
}

impl Sample {
    /// ‖x‖² of each row.
    pub fn squared_norms(&self) -> impl Iterator<Item = f64> {
        let width = (self.rows.len() / self.ids.len().max(1)).max(1);
        self.rows.chunks_exact(width).map(|row| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum())
    }

    /// ‖x‖ of each row.
    pub fn norms(&self) -> Vec<f64> {
        self.squared_norms().map(f64::sqrt).collect()
    }
}

/// So many rows (or all, if there are fewer): a function of the shards' names and shape, the seed and what
/// is left out. They come from at most 64 stretches spread over the dataset, so that a sample of 10 TB reads half a gigabyte
/// (whole row groups where no manifest says how to read less).
///
/// Row groups on the skip list are not read, and rows that are skipped or filtered are not sampled: fewer rows come
/// out when the stretches hold fewer that are kept.
pub fn sample(dataset: &Dataset, rows: usize, seed: u64, skip: &SkipList, filter: &RowFilter) -> Result<Sample> {
    let seed_key = key(&[dataset.as_opened().shape_key(), seed, 0x73616d706c65]);
    let (chosen, rows_chosen) = choose(dataset, rows as u64, seed_key, skip);
    let rows = (rows as u64).min(rows_chosen);
    // In storage order, so that no row group is read twice; what each stretch gives is put together in the order of the choice.
    let mut by_storage: Vec<usize> = (0..chosen.len()).collect();
    by_storage.sort_by_key(|&k| (chosen[k].shard, chosen[k].group, chosen[k].rows.start));
    let loader = Loader::new(dataset, skip.clone(), filter.clone())?;
    let mut parts: Vec<Sample> = vec![Sample::default(); chosen.len()];
    let mut loaded: Vec<(Extent, Loaded)> = Vec::new();
    let (mut taken, mut rows_so_far, mut looked_at) = (0u64, 0u64, 0);
    for k in by_storage {
        let stretch = &chosen[k];
        let in_stretch = stretch.rows.end - stretch.rows.start;
        rows_so_far += in_stretch;
        // Each stretch gives in proportion to its rows, and what the ones before it lacked; rounding adds up exactly.
        let until = (u128::from(rows) * u128::from(rows_so_far) / u128::from(rows_chosen)) as u64;
        load(&loader, stretch, &mut loaded)?;
        let inside = Permutation::new(key(&[seed_key, stretch.number]), in_stretch);
        let groups = &dataset.shards()[stretch.shard as usize].row_groups[..stretch.group as usize];
        let before: u64 = groups.iter().map(|group| group.rows).sum();
        let mut left = until - taken;
        for i in 0..in_stretch {
            if left == 0 {
                break;
            }
            looked_at += 1;
            let row = stretch.rows.start + inside.apply(i);
            if append(dataset, &loaded, row, &mut parts[k].rows) {
                parts[k].ids.push(RowId { shard: stretch.shard, row: before + row });
                (left, taken) = (left - 1, taken + 1);
            }
        }
    }
    let values = Vec::with_capacity(taken as usize * dataset.width());
    let mut all = Sample { rows: values, ids: Vec::with_capacity(taken as usize), looked_at };
    // Each part is freed once it is copied.
    for part in parts {
        all.rows.extend_from_slice(&part.rows);
        all.ids.extend_from_slice(&part.ids);
    }
    Ok(all)
}

/// The stretches to sample so many rows from, and all the rows in them.
fn choose(dataset: &Dataset, rows: u64, seed_key: u64, skip: &SkipList) -> (Vec<Stretch>, u64) {
    let stretch_rows = (STRETCH_BYTES / (dataset.row_bytes() as u64).max(1)).max(1);
    let mut stretches = Vec::new();
    for (s, shard) in dataset.shards().iter().enumerate() {
        for (g, group) in shard.row_groups.iter().enumerate() {
            stretches.extend((0..group.rows).step_by(stretch_rows as usize).map(|start| Stretch {
                shard: s as u32,
                group: g as u32,
                rows: start..(start + stretch_rows).min(group.rows),
                number: 0,
            }));
        }
    }
    let order = Permutation::new(seed_key, stretches.len().max(1) as u64);
    let mut chosen: Vec<Stretch> = Vec::new();
    let mut rows_chosen = 0u64;
    for k in 0..stretches.len() as u64 {
        // Enough stretches that each gives a small share of its rows, more if the rows ask for it.
        let is_spread = chosen.len() as u64 >= STRETCHES || rows_chosen >= rows.saturating_mul(STRETCHES);
        if rows_chosen >= rows && is_spread {
            break;
        }
        // The permutation is over all stretches, so that a longer skip list leaves the other stretches as they were.
        let number = order.apply(k);
        let stretch = &stretches[number as usize];
        if !skip.has_row_group(stretch.shard, stretch.group) {
            rows_chosen += stretch.rows.end - stretch.rows.start;
            chosen.push(Stretch { number, ..stretch.clone() });
        }
    }
    (chosen, rows_chosen)
}

/// Makes `loaded` hold the units that a stretch lies in.
fn load(loader: &Loader, stretch: &Stretch, loaded: &mut Vec<(Extent, Loaded)>) -> Result<()> {
    let shard = &loader.dataset.shards()[stretch.shard as usize];
    let group = &shard.row_groups[stretch.group as usize];
    let touches = |e: &Extent| {
        (e.shard, e.group) == (stretch.shard, stretch.group)
            && e.rows.start < stretch.rows.end
            && e.rows.end > stretch.rows.start
    };
    loaded.retain(|(e, _)| touches(e));
    for extent in
        extents(stretch.shard, stretch.group, group, shard.raw, STRETCH_BYTES).into_iter().filter(|e| touches(e))
    {
        if loaded.iter().all(|(e, _)| *e != extent) {
            let rows = loader.load(&extent)?;
            loaded.push((extent, rows));
        }
    }
    Ok(())
}

/// Appends a row of the row group as f32, unless it is left out; says whether it did.
fn append(dataset: &Dataset, loaded: &[(Extent, Loaded)], row: u64, out: &mut Vec<f32>) -> bool {
    let Some((extent, unit)) = loaded.iter().find(|(e, _)| e.rows.contains(&row)) else { return false };
    let inside = (row - extent.rows.start) as usize;
    if unit.flag(inside) != 0 {
        return false;
    }
    let at = out.len();
    out.resize(at + dataset.width(), 0.0);
    dataset.dtype().to_f32(unit.rows(inside, 1, dataset.row_bytes()), &mut out[at..]);
    true
}
