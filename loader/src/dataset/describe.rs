//! What each shard holds: from a manifest that describes it, or from its footer.

use std::collections::HashMap;
use std::sync::Arc;

use super::options::OpenOptions;
use super::place::FoundShard;
use super::same;
use crate::parquet::footer::{Footer, Layout};
use crate::parquet::footers;
use crate::{Dtype, Error, Manifest, Result, Shard, Source};

/// A shard with what belongs to the whole dataset.
#[derive(Clone)]
pub(super) struct Described {
    pub(super) shard: Shard,
    /// Format and width; a shard without rows may say neither.
    shape: Option<(Dtype, usize)>,
    /// Whether its numbers are narrowed when they are read; a manifest does not say.
    pub(super) is_double: bool,
    pub(super) prepared: bool,
    /// Whether its checksums belong to the identity.
    pub(super) checksummed: bool,
    /// The name of its column; manifests of earlier versions do not say it.
    pub(super) column: Option<String>,
    /// Where its rows come from; only a manifest says it.
    source: Option<Arc<Source>>,
}

impl Described {
    /// All shards of a manifest.
    pub(super) fn all(m: Manifest) -> impl Iterator<Item = Described> {
        let Manifest { dtype, width, prepared, checksummed, column, source, shards, .. } = m;
        let shape = Some((dtype, width));
        let source = source.map(Arc::new);
        let described = move |shard| {
            let (column, source) = (column.clone(), source.clone());
            Described { shard, shape, is_double: false, prepared, checksummed, column, source }
        };
        shards.into_iter().map(described)
    }

    /// What tells the shard's rows from others, if its manifest came with checksums.
    pub(super) fn sums(&self) -> Option<u128> {
        self.checksummed.then(|| same::sums(&self.shard)).flatten()
    }
}

/// Describes every found shard: from a manifest where it fits, from the footer otherwise, several at a time.
pub(super) fn describe(
    found: &[FoundShard],
    known: &HashMap<String, Described>,
    options: &OpenOptions,
) -> Result<Vec<Described>> {
    let without = found.iter().filter(|f| !known.contains_key(&f.path)).count();
    footers::look_at(found, without, |f| match known.get(&f.path) {
        // Sizes were compared when the manifest was found.
        Some(d) => {
            let mut d = d.clone();
            // Only what the store says now: a copy of the data has other tags than the manifest.
            d.shard.etag.clone_from(&f.etag);
            Ok(d)
        }
        None => from_footer(f, options),
    })
}

fn from_footer(f: &FoundShard, options: &OpenOptions) -> Result<Described> {
    let footer = Footer::read(&f.store, &f.key, f.size, options.column.as_deref())?;
    let (width, row_groups) = footer.shape(&f.store, &f.key)?;
    let rows = row_groups.iter().map(|g| g.rows).sum();
    let raw = footer.layout == Layout::Raw;
    let shape = footer.column.as_ref().map(|column| column.dtype).zip(width);
    let row_bytes = shape.map_or(0, |(dtype, width)| (width * dtype.size()) as u64);
    if let Some(i) = row_groups.iter().position(|g| raw && g.length < g.rows.saturating_mul(row_bytes)) {
        let problem = format!("row group {i}: damaged: claims more rows than its bytes can hold");
        return Err(Error::data(f.store.url_of(&f.key), problem));
    }
    let shard = Shard { path: f.path.clone(), size: f.size, etag: f.etag.clone(), rows, raw, row_groups };
    // What has no rows adds nothing, whatever it is called.
    let column = footer.column.filter(|_| rows > 0);
    let is_double = column.as_ref().is_some_and(|column| column.is_double);
    let column = column.map(|column| column.name);
    Ok(Described { shard, shape, is_double, prepared: footer.prepared, checksummed: false, column, source: None })
}

/// One manifest of all shards, if they agree: those that have rows.
pub(super) fn combine(found: &[FoundShard], described: Vec<Described>) -> Result<Manifest> {
    let shapes = || found.iter().zip(&described).filter_map(|(f, d)| Some((f, d, d.shape?)));
    let Some((first, _, (dtype, width))) = shapes().find(|(_, d, _)| d.shard.rows > 0).or_else(|| shapes().next())
    else {
        let problem = format!("no rows in {} files, so no width can be seen", found.len());
        return Err(Error::data(found[0].store.url_of(&found[0].key), problem));
    };
    for (f, _, (other, wide)) in shapes().filter(|(_, d, _)| d.shard.rows > 0) {
        if (other, wide) != (dtype, width) {
            let first = first.store.url_of(&first.key);
            let problem =
                format!("rows of {wide} × {other} here, of {width} × {dtype} in {first}: all shards need one shape");
            return Err(Error::data(f.store.url_of(&f.key), problem));
        }
    }
    let has_rows = described.iter().any(|d| d.shard.rows > 0);
    let prepared = described.iter().filter(|d| d.shard.rows > 0 || !has_rows).all(|d| d.prepared);
    let checksummed = described.iter().all(|d| d.checksummed);
    let column = one_column(found, &described)?;
    let source = of_all(&described);
    let shards = described.into_iter().map(|d| d.shard).collect();
    let manifest = Manifest::new(width, dtype, prepared, checksummed, shards).with_column(column);
    Ok(manifest.with_source(source))
}

/// What is said of all rows alike; nothing where of some nothing is said.
fn of_all(described: &[Described]) -> Option<Source> {
    let mut all = described.first()?.source.as_deref()?.clone();
    let mut seen = None;
    for d in described {
        let source = d.source.as_ref()?;
        // Shards of one manifest share what it says.
        if seen.is_none_or(|seen| !Arc::ptr_eq(seen, source)) {
            all.retain(|key, value| source.get(key) == Some(value));
            seen = Some(source);
        }
    }
    Some(all)
}

/// The name of the column of all shards that say theirs.
fn one_column(found: &[FoundShard], described: &[Described]) -> Result<Option<String>> {
    let named = || found.iter().zip(described).filter_map(|(f, d)| Some((f, d.column.as_deref()?)));
    let Some((first, name)) = named().next() else { return Ok(None) };
    let Some((f, other)) = named().find(|(_, other)| *other != name) else { return Ok(Some(name.to_string())) };
    let problem = format!(
        "its activations are in the column {other}, those of {} in {name}: they may come from another layer or model: write all \
         with one name, or take the others out",
        first.store.url_of(&first.key)
    );
    Err(Error::data(f.store.url_of(&f.key), problem))
}
