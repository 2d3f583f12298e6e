//! A full pass over a dataset: shape, statistics, bad values, state of the manifest.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};

use serde::Serialize;

use crate::dataset::heavy;
use crate::dataset::manifest::{self, GroupId};
use crate::dataset::norms::{Norms, TOP};
use crate::dataset::sample::sample;
use crate::dataset::tokens;
use crate::parquet::footer::Footer;
use crate::stream::load::{Loader, extents};
use crate::stream::unit::{Extent, Loaded};
use crate::{
    Contents, Dataset, Dtype, Error, Heavy, Manifest, OpenOptions, Result, RowFilter, RowId, SkipList, TokenColumn,
};

/// Non-finite rows that are named.
const FIRST: usize = 10;
/// Rows sampled to find out which are heavy.
const SAMPLED: usize = 16_384;
/// The seed by which they are drawn.
const SAMPLE_SEED: u64 = 0;
/// Threads of a pass.
const THREADS: usize = 4;

/// How much of a dataset is inspected.
#[derive(Default)]
pub struct InspectOptions<'a> {
    /// How the dataset is opened.
    pub open: OpenOptions,
    /// Look at about this many rows instead of all.
    pub sample: Option<u64>,
    /// Called now and then.
    pub progress: Option<&'a mut dyn FnMut(InspectProgress)>,
    /// Write the manifest beside the data if it is absent.
    pub write_manifest: bool,
    /// How an error is said in [`Inspection::mismatches`]: the caller knows what its settings are called ([`Error::help`]). By default as it
    /// says itself.
    pub words: Option<&'a dyn Fn(&Error) -> String>,
}

/// How far an inspection is.
#[derive(Debug, Clone, Copy)]
pub struct InspectProgress {
    /// Rows looked at.
    pub rows: u64,
    /// Rows to look at.
    pub total_rows: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Whether the data has a manifest with checksums, and what this inspection found out about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestState {
    /// There is none: nothing was verified.
    Absent,
    /// There was none: written by this inspection, from what was read.
    Written,
    /// Every byte of the activations was read and fits its checksum.
    Verified,
    /// What was read fits its checksums; not everything was read, or not everything has one.
    PartlyVerified,
    /// Something cannot be used: see the mismatches.
    Mismatched,
    /// There is none, and the place is read-only.
    ReadOnly,
    /// A manifest.json of another program takes its place: left alone.
    Foreign,
}

/// What a dataset holds.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Columns with their Parquet types, one a line.
    pub schema: String,
    /// Rows of all shards.
    pub rows: u64,
    /// Numbers per row.
    pub width: usize,
    /// Stored format.
    pub dtype: Dtype,
    /// Number of shards.
    pub shards: usize,
    /// Which of the columns `token_id`, `doc_id` and `pos` there are, and whether filters can use them.
    pub token_columns: Vec<TokenColumn>,
    /// Identity that the data has when it is opened after this: of the manifest written just now, if one was.
    pub identity: String,
    /// Whether the rows are globally shuffled.
    pub prepared: bool,
    /// Rows looked at.
    pub looked_at: u64,
    /// E‖x‖ over finite rows.
    pub mean_norm: f64,
    /// E‖x‖² over finite rows.
    pub mean_norm_sq: f64,
    /// The greatest norm of a finite row; `null` where there is none.
    pub norm_max: Option<f64>,
    /// Quantiles of the norms of finite rows; `null` where there is none.
    pub norm_quantiles: Option<NormQuantiles>,
    /// Which share of E‖x‖² the largest 1 % of the finite rows carry; `null` where E‖x‖² is 0.
    pub top1_share: Option<f64>,
    /// Where they stand and what leaves them out, when they carry more than a fifth: found in a sample.
    pub heavy: Option<Heavy>,
    /// Rows with a NaN or an infinity.
    pub non_finite: u64,
    /// The first of them.
    pub first_non_finite: Vec<RowId>,
    /// The same by name, `path:row`.
    pub first_non_finite_names: Vec<String>,
    /// State of the manifest.
    pub manifest: ManifestState,
    /// Bytes of activations, as they are stored.
    pub bytes: u64,
    /// Bytes of these that were compared with a checksum and fit.
    pub verified_bytes: u64,
    /// Row groups that hold rows.
    pub row_groups: u64,
    /// Row groups with bytes that were compared with a checksum and fit.
    pub verified_row_groups: u64,
    /// What does not fit, in words: damaged row groups with their files.
    pub mismatches: Vec<String>,
    /// Its folders, and what is left out.
    #[serde(flatten)]
    pub contents: Contents,
}

/// Norms that so many per cent of the rows do not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NormQuantiles {
    /// The least norm.
    #[serde(rename = "0")]
    pub p0: f64,
    /// Of 1 %.
    #[serde(rename = "1")]
    pub p1: f64,
    /// Of 10 %.
    #[serde(rename = "10")]
    pub p10: f64,
    /// The median.
    #[serde(rename = "50")]
    pub p50: f64,
    /// Of 90 %.
    #[serde(rename = "90")]
    pub p90: f64,
    /// Of 99 %.
    #[serde(rename = "99")]
    pub p99: f64,
    /// The greatest norm.
    #[serde(rename = "100")]
    pub p100: f64,
}

impl NormQuantiles {
    fn of(norms: &Norms) -> Option<Self> {
        let at = |percent: f64| norms.quantile(percent / 100.0);
        Some(NormQuantiles {
            p0: at(0.0)?,
            p1: at(1.0)?,
            p10: at(10.0)?,
            p50: at(50.0)?,
            p90: at(90.0)?,
            p99: at(99.0)?,
            p100: at(100.0)?,
        })
    }
}

/// Sums over the rows of one unit.
#[derive(Default)]
struct Sums {
    rows: u64,
    finite: u64,
    /// Of finite rows, until they are counted.
    norms: Vec<f64>,
    norm: f64,
    norm_sq: f64,
    bytes: u64,
    bad: Vec<RowId>,
    bad_count: u64,
    verified_bytes: u64,
    /// Row groups with verified bytes.
    verified: BTreeSet<GroupId>,
}

/// Reads a dataset and reports on it. Damage is listed in the report; an error means that nothing could be said.
pub fn inspect(urls: &[String], mut options: InspectOptions<'_>) -> Result<Inspection> {
    let dataset = Dataset::open(urls, &options.open)?;
    let (store, key) = dataset.source(0);
    let schema = Footer::read(store, key, dataset.shards()[0].size, options.open.column.as_deref())?.schema;
    let token_columns = tokens::report(&dataset)?;
    let units = units(&dataset, options.sample);
    let (total, norms, mut damage) = pass(&dataset, &units, &mut options.progress)?;
    damage.extend(dataset.doubled());
    let words = |e: &Error| options.words.map_or_else(|| e.to_string(), |words| words(e));
    let mismatches: Vec<String> = damage.iter().map(|e| with_remedy(e, words(e))).collect();
    let groups = || dataset.shards().iter().flat_map(|s| &s.row_groups).filter(|g| g.rows > 0);
    let bytes = groups().map(|g| g.length).sum();
    let is_new = dataset.as_opened().shards.iter().flat_map(|s| &s.row_groups).all(|g| g.pieces.is_empty());
    let (manifest, identity) = if !mismatches.is_empty() {
        (ManifestState::Mismatched, dataset.identity())
    } else if is_new && !dataset.has_manifest() {
        write_manifest(&dataset, options.write_manifest && options.sample.is_none())?
    } else if total.verified_bytes == bytes {
        (ManifestState::Verified, dataset.identity())
    } else {
        (ManifestState::PartlyVerified, dataset.identity())
    };
    let top1_share = norms.top_share(TOP);
    // What is damaged may lie in the sample too.
    let heavy = if mismatches.is_empty() { heavy_rows(&dataset, top1_share)? } else { None };
    let mut first_non_finite = total.bad;
    first_non_finite.sort();
    first_non_finite.truncate(FIRST);
    Ok(Inspection {
        schema,
        rows: dataset.rows(),
        width: dataset.width(),
        dtype: dataset.dtype(),
        shards: dataset.shards().len(),
        token_columns,
        identity,
        prepared: dataset.prepared(),
        looked_at: total.rows,
        mean_norm: total.norm / total.finite.max(1) as f64,
        mean_norm_sq: total.norm_sq / total.finite.max(1) as f64,
        norm_max: norms.max(),
        norm_quantiles: NormQuantiles::of(&norms),
        top1_share,
        heavy,
        non_finite: total.bad_count,
        first_non_finite_names: first_non_finite.iter().map(|&row| dataset.row_name(row)).collect(),
        first_non_finite,
        manifest,
        bytes,
        verified_bytes: total.verified_bytes,
        row_groups: groups().count() as u64,
        verified_row_groups: total.verified.len() as u64,
        mismatches,
        contents: dataset.contents(),
    })
}

/// Which rows are heavy, where that is to be asked.
fn heavy_rows(dataset: &Dataset, top1_share: Option<f64>) -> Result<Option<Heavy>> {
    if top1_share.is_none_or(|share| share <= heavy::TOO_MUCH) {
        return Ok(None);
    }
    match sample(dataset, SAMPLED, SAMPLE_SEED, &SkipList::default(), &RowFilter::default()) {
        Ok(sampled) => Ok(heavy::heavy(dataset, &sampled.ids, &sampled.norms())),
        // Damage where the pass did not look.
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The units to look at: all, or evenly spread ones that hold about `sample` rows.
fn units(dataset: &Dataset, sample: Option<u64>) -> Vec<Extent> {
    let mut units = Vec::new();
    for (s, shard) in dataset.shards().iter().enumerate() {
        for (g, group) in shard.row_groups.iter().enumerate().filter(|(_, g)| g.rows > 0) {
            units.extend(extents(s as u32, g as u32, group, shard.raw, 8 << 20));
        }
    }
    let every = match sample {
        Some(rows) => {
            let per_unit = (dataset.rows() / units.len().max(1) as u64).max(1);
            units.len() / (rows.div_ceil(per_unit) as usize).clamp(1, units.len().max(1))
        }
        None => 1,
    };
    units.into_iter().step_by(every.max(1)).collect()
}

/// Loads the units on several threads; their sums are added in the order of the units, so results do not depend on timing.
fn pass(
    dataset: &Dataset,
    units: &[Extent],
    progress: &mut Option<&mut dyn FnMut(InspectProgress)>,
) -> Result<(Sums, Norms, Vec<Error>)> {
    let loader = Loader::new(dataset, SkipList::default(), RowFilter::default())?;
    let total_rows = units.iter().map(|unit| unit.row_count() as u64).sum();
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::sync_channel(THREADS * 2);
    let work = |sender: SyncSender<_>| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(unit) = units.get(i) else { break };
            let sums = loader.load(unit).map(|loaded| sum(dataset, unit, &loaded));
            if sums.as_ref().is_err_and(|e| !is_damage(e)) {
                // It ends the inspection. The other units would each take as long to fail: nobody begins one.
                next.store(units.len(), Ordering::Relaxed);
            }
            if sender.send((i, sums)).is_err() {
                break;
            }
        }
    };
    let mut results: Vec<Option<Result<Sums>>> = units.iter().map(|_| None).collect();
    let mut norms = Norms::default();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (work, sender) = (&work, sender.clone());
            scope.spawn(move || work(sender));
        }
        // The answers end when the last thread does.
        drop(sender);
        let (mut rows, mut bytes) = (0, 0);
        for (i, mut sums) in receiver {
            if let Ok(sums) = &mut sums {
                // Kept, the norms of all rows would take memory that grows with the data.
                std::mem::take(&mut sums.norms).into_iter().for_each(|norm| norms.add(norm));
            }
            rows += units[i].row_count() as u64;
            bytes += sums.as_ref().map_or(0, |s: &Sums| s.bytes);
            if let Some(call) = progress {
                call(InspectProgress { rows, total_rows, bytes });
            }
            results[i] = Some(sums);
        }
    });
    let (mut total, mut damage) = (Sums::default(), Vec::new());
    for result in results.into_iter().flatten() {
        match result {
            Ok(s) => total.add(s),
            Err(e) if is_damage(&e) => damage.push(e),
            Err(e) => return Err(e),
        }
    }
    Ok((total, norms, damage))
}

/// An error of the data in its words, with what helps against damage. Other words hold a remedy themselves: what cannot be read as it is would come
/// the same again.
fn with_remedy(e: &Error, words: String) -> String {
    match e {
        Error::Data { problem, .. } if problem.starts_with("damaged: ") && !problem.contains(" again") => {
            format!("{words}: fetch or make the file again")
        }
        _ => words,
    }
}

/// Whether an error is about the data. A store that does not answer says nothing about it.
fn is_damage(e: &Error) -> bool {
    matches!(e, Error::Data { .. } | Error::Changed { .. } | Error::NotFound { .. })
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.rows += other.rows;
        self.finite += other.finite;
        self.norm += other.norm;
        self.norm_sq += other.norm_sq;
        self.bytes += other.bytes;
        self.bad_count += other.bad_count;
        self.verified_bytes += other.verified_bytes;
        self.verified.extend(other.verified);
        if self.bad.len() < FIRST {
            self.bad.extend(other.bad);
        }
    }
}

fn sum(dataset: &Dataset, unit: &Extent, loaded: &Loaded) -> Sums {
    let shard = &dataset.shards()[unit.shard as usize];
    let first: u64 = shard.row_groups[..unit.group as usize].iter().map(|g| g.rows).sum::<u64>() + unit.rows.start;
    let mut row_f32 = vec![0f32; dataset.width()];
    let mut sums = Sums { bytes: unit.bytes.end - unit.bytes.start, ..Sums::default() };
    // Where checksums were known, loading compared them.
    if !shard.row_groups[unit.group as usize].pieces.is_empty() {
        sums.verified_bytes = sums.bytes;
        sums.verified.insert(GroupId { shard: unit.shard, group: unit.group });
    }
    for row in 0..unit.rows.end - unit.rows.start {
        dataset.dtype().to_f32(loaded.rows(row as usize, 1, dataset.row_bytes()), &mut row_f32);
        let norm_sq = row_f32.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        sums.rows += 1;
        if norm_sq.is_finite() {
            sums.finite += 1;
            sums.norm += norm_sq.sqrt();
            sums.norm_sq += norm_sq;
            sums.norms.push(norm_sq.sqrt());
        } else {
            sums.bad_count += 1;
            if sums.bad.len() < FIRST {
                sums.bad.push(RowId { shard: unit.shard, row: first + row });
            }
        }
    }
    sums
}

/// Writes the manifest of data that has none, where it may: its state, and the data's identity from now on.
fn write_manifest(dataset: &Dataset, write: bool) -> Result<(ManifestState, String)> {
    let as_opened = |state| Ok((state, dataset.identity()));
    let Some(store) = dataset.folder().filter(|_| write) else { return as_opened(ManifestState::Absent) };
    match store.head(manifest::FILE_NAME) {
        Ok(None) => {}
        Ok(Some(_)) => return as_opened(ManifestState::Foreign),
        // One may be there that is not shown.
        Err(Error::Denied { .. }) => return as_opened(ManifestState::ReadOnly),
        Err(other) => return Err(other),
    }
    let opened = dataset.manifest();
    let complete =
        Manifest::new(opened.width, opened.dtype, opened.prepared, true, opened.shards).with_column(opened.column);
    match store.put(manifest::FILE_NAME, complete.to_json()) {
        Ok(()) => Ok((ManifestState::Written, complete.identity().to_string())),
        Err(Error::CannotWrite { .. }) => as_opened(ManifestState::ReadOnly),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ShardWriter, Store, WriteOptions};

    #[test]
    fn a_store_that_fails_ends_the_pass_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().to_str().unwrap().to_string();
        let options = WriteOptions { row_group_bytes: 16, page_bytes: 16, ..WriteOptions::new(8, Dtype::F16) };
        let mut writer = ShardWriter::create(&Store::open(&url).unwrap(), options).unwrap();
        writer.write(&[0; 200 * 16], &[]).unwrap();
        writer.finish().unwrap();
        let dataset = Dataset::open(&[url], &OpenOptions::default()).unwrap();
        let units = units(&dataset, None);
        assert_eq!(units.len(), 200);
        // A link to itself: there, and not to be read.
        let shard = folder.path().join("shard-00000.parquet");
        std::fs::remove_file(&shard).unwrap();
        std::os::unix::fs::symlink(&shard, &shard).unwrap();
        let mut tried = 0;
        let mut count = |_: InspectProgress| tried += 1;
        let error = pass(&dataset, &units, &mut Some(&mut count)).err().unwrap();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!((1..=THREADS).contains(&tried), "{tried} units were tried");
    }
}
