//! A deterministic random sample of rows, for scales and biases.

use std::ops::Range;

use crate::stream::load::{Loader, extents};
use crate::stream::permutation::{Permutation, key};
use crate::stream::unit::{Extent, Loaded};
use crate::{Dataset, Result, RowFilter, RowId, SkipList};

/// Places that a sample is spread over at most.
const PLACES: u64 = 64;
/// Bytes of rows of a place: cut by rows and not by pieces, which only a manifest knows.
const PLACE_BYTES: u64 = 8 << 20;

/// Neighbouring rows of one row group.
#[derive(Debug, Clone)]
struct Place {
    shard: u32,
    group: u32,
    /// Rows in the row group.
    rows: Range<u64>,
    /// Its number among all places: what its rows are drawn by.
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

/// `n` rows (or all, if there are fewer): a function of the shards' names and shape, the seed and what
/// is left out. They come from at most 64 places spread over the dataset, so that a sample of 10 TB reads half a gigabyte
/// (whole row groups where no manifest says how to read less).
///
/// Row groups on the skip list are not read, and rows that are skipped or filtered are not sampled: fewer than `n` rows come
/// out when the places hold fewer that are kept.
pub fn sample(dataset: &Dataset, n: usize, seed: u64, skip: &SkipList, filter: &RowFilter) -> Result<Sample> {
    let seed_key = key(&[dataset.as_opened().shape_key(), seed, 0x73616d706c65]);
    let (chosen, rows) = choose(dataset, n as u64, seed_key, skip);
    let n = (n as u64).min(rows);
    // In storage order, so that no row group is read twice; what each place gives is put together in the order of the choice.
    let mut by_storage: Vec<usize> = (0..chosen.len()).collect();
    by_storage.sort_by_key(|&k| (chosen[k].shard, chosen[k].group, chosen[k].rows.start));
    let loader = Loader::new(dataset, skip.clone(), filter.clone())?;
    let mut parts: Vec<Sample> = vec![Sample::default(); chosen.len()];
    let mut loaded: Vec<(Extent, Loaded)> = Vec::new();
    let (mut taken, mut seen, mut looked_at) = (0u64, 0u64, 0);
    for k in by_storage {
        let place = &chosen[k];
        let in_place = place.rows.end - place.rows.start;
        seen += in_place;
        // Each place gives in proportion to its rows, and what the ones before it lacked; rounding adds up to n exactly.
        let until = (u128::from(n) * u128::from(seen) / u128::from(rows)) as u64;
        load(&loader, place, &mut loaded)?;
        let inside = Permutation::new(key(&[seed_key, place.number]), in_place);
        let groups = &dataset.shards()[place.shard as usize].row_groups[..place.group as usize];
        let before: u64 = groups.iter().map(|group| group.rows).sum();
        let mut left = until - taken;
        for i in 0..in_place {
            if left == 0 {
                break;
            }
            looked_at += 1;
            let row = place.rows.start + inside.apply(i);
            if append(dataset, &loaded, row, &mut parts[k].rows) {
                parts[k].ids.push(RowId { shard: place.shard, row: before + row });
                (left, taken) = (left - 1, taken + 1);
            }
        }
    }
    let rows = Vec::with_capacity(taken as usize * dataset.width());
    let mut all = Sample { rows, ids: Vec::with_capacity(taken as usize), looked_at };
    // Each part is freed once it is copied.
    for part in parts {
        all.rows.extend_from_slice(&part.rows);
        all.ids.extend_from_slice(&part.ids);
    }
    Ok(all)
}

/// The places to sample from, with the number of their rows.
fn choose(dataset: &Dataset, n: u64, seed_key: u64, skip: &SkipList) -> (Vec<Place>, u64) {
    let place_rows = (PLACE_BYTES / (dataset.row_bytes() as u64).max(1)).max(1);
    let mut places = Vec::new();
    for (s, shard) in dataset.shards().iter().enumerate() {
        for (g, group) in shard.row_groups.iter().enumerate() {
            places.extend((0..group.rows).step_by(place_rows as usize).map(|start| Place {
                shard: s as u32,
                group: g as u32,
                rows: start..(start + place_rows).min(group.rows),
                number: 0,
            }));
        }
    }
    let order = Permutation::new(seed_key, places.len().max(1) as u64);
    let mut chosen: Vec<Place> = Vec::new();
    let mut rows = 0u64;
    for k in 0..places.len() as u64 {
        // Enough places that each gives a small share of its rows, more if the rows ask for it.
        if rows >= n && (chosen.len() as u64 >= PLACES || rows >= n.saturating_mul(PLACES)) {
            break;
        }
        // The permutation is over all places, so that a longer skip list leaves the other places as they were.
        let number = order.apply(k);
        let place = &places[number as usize];
        if !skip.has_row_group(place.shard, place.group) {
            rows += place.rows.end - place.rows.start;
            chosen.push(Place { number, ..place.clone() });
        }
    }
    (chosen, rows)
}

/// Makes `loaded` hold the units that a place lies in.
fn load(loader: &Loader, place: &Place, loaded: &mut Vec<(Extent, Loaded)>) -> Result<()> {
    let shard = &loader.dataset.shards()[place.shard as usize];
    let group = &shard.row_groups[place.group as usize];
    let touches = |e: &Extent| {
        (e.shard, e.group) == (place.shard, place.group)
            && e.rows.start < place.rows.end
            && e.rows.end > place.rows.start
    };
    loaded.retain(|(e, _)| touches(e));
    for extent in extents(place.shard, place.group, group, shard.raw, PLACE_BYTES).into_iter().filter(|e| touches(e)) {
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
