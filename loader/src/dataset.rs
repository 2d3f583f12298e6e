//! Opening a dataset: from its manifest, or from the footers of its shards.

mod beside;
mod contents;
mod describe;
mod find;
pub(crate) mod heavy;
pub(crate) mod inspect;
mod kept;
pub(crate) mod manifest;
pub(crate) mod norms;
mod options;
mod place;
pub(crate) mod rule;
mod same;
pub(crate) mod sample;
pub(crate) mod scalars;
pub(crate) mod skip;
mod stored;
pub(crate) mod tokens;
mod walk;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use self::contents::{Contents, Folder, LeftOut};
pub use self::options::OpenOptions;
pub use self::rule::Why;
pub use self::rule::is_shard_name;
pub use self::same::{Resolver, SameBy};

use self::describe::{Described, combine, describe};
use self::find::find;
use self::manifest::GroupId;
use self::place::{FoundShard, Place};
use self::stored::StoredShard;
use crate::parquet::footer::Footer;
use crate::{Dtype, Error, Manifest, Piece, Result, RowId, Shard, Source, Store};

/// Shards of one width and dtype. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dataset {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    manifest: Manifest,
    /// Where each shard is.
    stored: Vec<StoredShard>,
    left_out: Vec<LeftOut>,
    /// The folder that this is all of.
    folder: Option<Store>,
    column: Option<String>,
    /// Footers, read when first needed.
    footers: Vec<OnceLock<Arc<Footer>>>,
    /// Checksums that became known while reading.
    filled: Mutex<HashMap<GroupId, Vec<Piece>>>,
    found_manifest: bool,
    /// Folders of shards that no manifest describes.
    bare: Vec<String>,
    /// Whether it was said that numbers are narrowed, and that some are infinite then.
    told_narrowed: AtomicBool,
    told_beyond: AtomicBool,
}

impl Dataset {
    /// Opens folders, files, globs or URLs.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a place without shards; [`Error::Data`] and [`Error::Changed`] for shards that do not make one data
    /// set: of several shapes or columns, the same one twice, or others than a manifest beside them says; those of the store.
    pub fn open(urls: &[String], options: &OpenOptions) -> Result<Self> {
        if urls.is_empty() {
            return Err(Error::Arguments("no data: give a folder, a file, a glob or a URL".into()));
        }
        let mut places = urls.iter().map(|url| find(url, options.column.as_deref())).collect::<Result<Vec<_>>>()?;
        let prefix = |i: usize| if urls.len() > 1 { format!("{i:04}/") } else { String::new() };
        let bare =
            places.iter().filter(|place| place.manifest.is_none()).map(|place| place.store.url().to_string()).collect();
        let (mut found, mut manifests) = (Vec::new(), Vec::new());
        for (i, place) in places.iter_mut().enumerate() {
            // With several places, paths carry the place's number: names may repeat.
            manifests.extend(place.manifest.take().map(|m| m.below(&prefix(i))));
            found.extend(place.shards.drain(..).map(|entry| FoundShard {
                path: format!("{}{}", prefix(i), entry.key),
                store: place.store.clone(),
                key: entry.key,
                size: entry.size,
                etag: entry.etag,
            }));
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let kept = kept::read(options)?;
        if let (Some(kept), Some(url)) = (&kept, &options.manifest) {
            let why_not = |path: &str| {
                let below = |(i, place): (usize, &Place)| place.why_not(path.strip_prefix(prefix(i).as_str())?);
                places.iter().enumerate().find_map(below)
            };
            kept::check_shape(kept, url, &found, why_not, &manifests)?;
        }
        let mut known: HashMap<String, Described> = HashMap::new();
        for described in kept.into_iter().chain(manifests).flat_map(Described::all) {
            known.entry(described.shard.path.clone()).or_insert(described);
        }
        let found_manifest = found.iter().all(|f| known.contains_key(&f.path));
        let described = describe(&found, &known, options)?;
        let is_double = described.iter().any(|d| d.is_double);
        let sums: Vec<_> = described.iter().map(Described::sums).collect();
        let manifest = combine(&found, described)?;
        let mut resolver = Resolver::default();
        let source = |(f, sums): (FoundShard, _)| {
            let place = resolver.place(&f.store, &f.key);
            StoredShard { store: f.store, key: f.key, place, sums }
        };
        let stored: Vec<StoredShard> = found.into_iter().zip(sums).map(source).collect();
        let footers = stored.iter().map(|_| OnceLock::new()).collect();
        let left_out = left_out(&places);
        let folder = places.iter().find(|place| place.is_whole && places.len() == 1).map(|place| place.store.clone());
        let (filled, column) = (Mutex::default(), options.column.clone());
        let (told_narrowed, told_beyond) = (AtomicBool::new(false), AtomicBool::new(false));
        let inner = Inner {
            manifest,
            stored,
            left_out,
            folder,
            column,
            footers,
            filled,
            found_manifest,
            bare,
            told_narrowed,
            told_beyond,
        };
        let dataset = Dataset { inner: Arc::new(inner) };
        dataset.check_distinct(options)?;
        if is_double {
            dataset.tell_narrowed();
        }
        Ok(dataset)
    }

    /// Numbers per row.
    pub fn width(&self) -> usize {
        self.inner.manifest.width
    }

    /// Stored format of the numbers.
    pub fn dtype(&self) -> Dtype {
        self.inner.manifest.dtype
    }

    /// Bytes of a row as stored.
    pub fn row_bytes(&self) -> usize {
        self.inner.manifest.row_bytes()
    }

    /// Rows of all shards.
    pub fn rows(&self) -> u64 {
        self.inner.manifest.rows()
    }

    /// Bytes of all rows as stored.
    pub fn bytes(&self) -> u64 {
        self.rows() * self.row_bytes() as u64
    }

    /// The shards, by path.
    pub fn shards(&self) -> &[Shard] {
        &self.inner.manifest.shards
    }

    /// The manifest as it is known now: checksums fill in while rows are read, the identity stays. A run saves its JSON and gives
    /// it to [`OpenOptions::manifest`] when it continues: rows read before are then verified when they are read again.
    pub fn manifest(&self) -> Manifest {
        let mut manifest = self.inner.manifest.clone();
        let filled = self.inner.filled.lock().unwrap_or_else(PoisonError::into_inner);
        for (GroupId { shard, group }, pieces) in filled.iter() {
            manifest.shards[*shard as usize].row_groups[*group as usize].pieces.clone_from(pieces);
        }
        manifest
    }

    /// The hash that cursors are tied to.
    pub fn identity(&self) -> String {
        self.inner.manifest.identity().to_string()
    }

    /// Whether the rows are globally shuffled.
    pub fn prepared(&self) -> bool {
        self.inner.manifest.prepared
    }

    /// Where the rows come from, as far as the manifests of all of them say the same.
    pub fn rows_source(&self) -> Option<&Source> {
        self.inner.manifest.source.as_ref()
    }

    /// Whether a manifest described every shard, so that no footer had to be read.
    pub fn has_manifest(&self) -> bool {
        self.inner.found_manifest
    }

    /// Name of the column of activations, if it is known: manifests of version 0.1.0 do not say it, nor does one that a run kept.
    pub fn column(&self) -> Option<&str> {
        self.inner.manifest.column.as_deref()
    }

    /// The folders of the shards, and what lies among them and is not read.
    pub fn contents(&self) -> Contents {
        let shards = self.inner.stored.iter().zip(self.shards());
        let folders = contents::by_folder(shards.map(|(source, shard)| {
            let folder = source.key.rsplit_once('/').map_or("", |(folder, _)| folder);
            (source.store.url_of(folder), shard.rows)
        }));
        Contents { folders, left_out: self.inner.left_out.clone() }
    }

    /// What to do where the data are copies that came without their manifest, and are taken for others for want of its checksums.
    pub fn if_copied(&self) -> Option<String> {
        let bare = self.inner.bare.first()?;
        Some(format!(
            "no manifest lies beside the data now: if they are a copy of the same, `sae inspect {bare}` makes them known again"
        ))
    }

    /// The folder that this is all of: where a manifest belongs. `None` for several places, a single file and what a glob finds.
    pub(crate) fn folder(&self) -> Option<&Store> {
        self.inner.folder.as_ref()
    }

    /// A shard of this data set that is also one of `other`, by its name here and there, and what shows that it is the same.
    pub fn shared_with(&self, other: &Dataset) -> Option<(String, String, SameBy)> {
        let mut index = same::Index::default();
        self.inner.stored.iter().for_each(|source| index.add(source));
        other.inner.stored.iter().find_map(|source| {
            let (same, by) = index.find(source)?;
            Some((same.url(), source.url(), by))
        })
    }

    /// Refuses the same shard twice. A run that goes on was begun with it, by a version that did not look.
    fn check_distinct(&self, options: &OpenOptions) -> Result<()> {
        let mut index = same::Index::default();
        for source in &self.inner.stored {
            if let Some((first, by)) = index.find(source) {
                let error = same::twice(&first.url(), &source.url(), by);
                if options.manifest.is_none() {
                    return Err(error);
                }
                tracing::warn!("{error}: the run goes on as it began");
                break;
            }
            index.add(source);
        }
        Ok(())
    }

    /// What is wrong when a shard is there twice by the checksums that are known by now, also those that reading made known.
    pub(crate) fn doubled(&self) -> Option<Error> {
        let mut known: HashMap<u128, &StoredShard> = HashMap::new();
        let manifest = self.manifest();
        self.inner.stored.iter().zip(&manifest.shards).find_map(|(source, shard)| {
            let first = known.insert(same::sums(shard)?, source)?;
            Some(same::twice(&first.url(), &source.url(), SameBy::Checksums))
        })
    }

    /// A row as `path:row`.
    pub fn row_name(&self, row: RowId) -> String {
        match self.inner.manifest.shards.get(row.shard as usize) {
            Some(shard) => format!("{}:{}", shard.path, row.row),
            None => format!("shard {}:{}", row.shard, row.row),
        }
    }

    pub(crate) fn as_opened(&self) -> &Manifest {
        &self.inner.manifest
    }

    pub(crate) fn source(&self, shard: u32) -> (&Store, &str) {
        let source = &self.inner.stored[shard as usize];
        (&source.store, &source.key)
    }

    /// A row group's place, for messages.
    pub(crate) fn group_name(&self, shard: u32, group: u32) -> String {
        let (store, key) = self.source(shard);
        format!("{}, row group {group}", store.url_of(key))
    }

    pub(crate) fn footer(&self, shard: u32) -> Result<Arc<Footer>> {
        let cell = &self.inner.footers[shard as usize];
        if let Some(footer) = cell.get() {
            return Ok(footer.clone());
        }
        let (store, key) = self.source(shard);
        let s = &self.shards()[shard as usize];
        let footer = Footer::read(store, key, s.size, self.inner.column.as_deref())?;
        let same = s.rows == 0
            || (footer.width.is_none_or(|width| width == self.width())
                && footer.column.as_ref().is_some_and(|column| column.dtype == self.dtype()));
        if !same || !footer.has(&s.row_groups) {
            let problem = "the file's footer does not fit the manifest".to_string();
            return Err(Error::changed(store.url_of(key), problem));
        }
        Ok(cell.get_or_init(|| Arc::new(footer)).clone())
    }

    /// Says once that numbers stored as f64 become f32.
    pub(crate) fn tell_narrowed(&self) {
        if !self.inner.told_narrowed.swap(true, Ordering::Relaxed) {
            let (store, _) = self.source(0);
            tracing::warn!(
                "{}: numbers are stored as float64 and are rounded to float32 when they are read",
                store.url()
            );
        }
    }

    /// Says once that a finite number is infinite as f32: row `row` of a row group is the first that was seen to hold one.
    pub(crate) fn tell_beyond(&self, shard: u32, group: u32, row: u64, number: f64) {
        if !self.inner.told_beyond.swap(true, Ordering::Relaxed) {
            let s = &self.shards()[shard as usize];
            let first: u64 = s.row_groups[..group as usize].iter().map(|g| g.rows).sum();
            let name = self.row_name(RowId { shard, row: first + row });
            tracing::warn!(
                "{name}: {number:e} is more than float32 holds and becomes infinite: the filter `finite` leaves such rows out"
            );
        }
    }

    /// The known pieces of a row group.
    pub(crate) fn pieces(&self, shard: u32, group: u32) -> Vec<Piece> {
        let opened = &self.shards()[shard as usize].row_groups[group as usize].pieces;
        if !opened.is_empty() {
            return opened.clone();
        }
        let filled = self.inner.filled.lock().unwrap_or_else(PoisonError::into_inner);
        filled.get(&GroupId { shard, group }).cloned().unwrap_or_default()
    }

    pub(crate) fn fill(&self, shard: u32, group: u32, pieces: Vec<Piece>) {
        let mut filled = self.inner.filled.lock().unwrap_or_else(PoisonError::into_inner);
        filled.insert(GroupId { shard, group }, pieces);
    }
}

/// What is left out at all places, by its URL; of shards without a byte also a warning, because rows may be missing.
fn left_out(places: &[Place]) -> Vec<LeftOut> {
    let url = |place: &Place, path: &str| place.store.url_of(path);
    let all = places.iter().flat_map(|place| place.left_out.iter().map(|(path, why)| (url(place, path), *why)));
    let left_out = contents::by_reason(all);
    for empty in left_out.iter().filter(|left_out| left_out.why == Why::Empty) {
        tracing::warn!("left out: {empty}: what wrote them may not have ended");
    }
    for (place, format) in places.iter().filter_map(|place| Some((place, place.table_format()?))) {
        tracing::warn!(
            "{} is a {format} table: all Parquet files in it are read, also those that its log has removed or replaced",
            place.store.url()
        );
    }
    left_out
}
