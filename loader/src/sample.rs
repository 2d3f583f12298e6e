//! A deterministic random sample of rows, for scales and biases.

use crate::load::{Loader, extents};
use crate::permutation::{Permutation, key};
use crate::unit::Extent;
use crate::{Dataset, Result, RowFilter, SkipList, manifest};

/// Places that a sample is spread over at most, each one unit of reading of about 8 MiB.
const PLACES: u64 = 64;

/// `n` rows (or all, if there are fewer) as f32, row after row: a function of the manifest's identity and the seed. They come
/// from at most 64 units spread over the dataset, so that a sample of 10 TB reads half a gigabyte.
pub fn sample(dataset: &Dataset, n: usize, seed: u64) -> Result<Vec<f32>> {
    let n = (n as u64).min(dataset.rows());
    let mut units: Vec<Extent> = Vec::new();
    for (s, shard) in dataset.shards().iter().enumerate() {
        for (g, group) in shard.row_groups.iter().enumerate().filter(|(_, g)| g.rows > 0) {
            // Whole pieces where the identity holds them; otherwise the group, so that what was read before changes nothing.
            let cut = shard.raw && dataset.as_opened().checksummed;
            units.extend(extents(s as u32, g as u32, group, cut, 8 << 20));
        }
    }
    let seed_key = key(&[manifest::hash_words(&dataset.identity()), seed, 0x73616d706c65]);
    let order = Permutation::new(seed_key, units.len().max(1) as u64);
    let mut chosen = Vec::new();
    let mut rows = 0;
    // Enough units that each gives a small share of its rows, more if the rows ask for it.
    for k in 0..units.len() as u64 {
        if rows >= n && (k >= PLACES || rows >= n.saturating_mul(PLACES)) {
            break;
        }
        let unit = units[order.apply(k) as usize].clone();
        rows += unit.rows.end - unit.rows.start;
        chosen.push(unit);
    }
    let loader = Loader::new(dataset, SkipList::default(), RowFilter::default());
    let width = dataset.width();
    let mut out = vec![0f32; n as usize * width];
    let (mut taken, mut seen) = (0u64, 0u64);
    for (k, unit) in chosen.iter().enumerate() {
        let in_unit = unit.rows.end - unit.rows.start;
        seen += in_unit;
        // Each unit gives in proportion to its rows; rounding adds up to n exactly.
        let until = (u128::from(n) * u128::from(seen) / u128::from(rows)) as u64;
        let loaded = loader.load(unit)?;
        let inside = Permutation::new(key(&[seed_key, k as u64]), in_unit);
        for i in 0..until - taken {
            let row = inside.apply(i) as usize;
            let at = (taken + i) as usize * width;
            dataset.dtype().to_f32(loaded.rows(row, 1, dataset.row_bytes()), &mut out[at..at + width]);
        }
        taken = until;
    }
    Ok(out)
}
