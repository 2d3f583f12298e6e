//! A data set that any number of processes write together, in numbered parts, each exactly once.
//!
//! What is written is cut into parts, numbered from 0. The bytes of a part follow from the plan and its number alone. A part is one shard
//! `shard-000007.parquet` in each folder of the output (`""` is the output itself), and whatever else its maker puts under names of that number.
//! Files are written, whole, under their own keys; then the part is committed by one small marker, `parts/000007.json`. A process that dies
//! leaves no marker, and its files are written again with the same bytes, by itself when it comes back or by anyone. So work that is done twice costs
//! time and harms nothing, and workers share nothing but the folder.
//!
//! `parts/plan.json` holds what decides bytes; a worker with another plan is refused. A process that sees all parts committed writes the manifest of each
//! folder, which follows from the markers: again the same bytes, however many write it.
//!
//! Parquet files that are no shards belong into a folder whose name begins with `_`: they would be taken for rows otherwise.
//!
//! ```
//! use std::collections::BTreeMap;
//! use loader::parts::{Marker, Parts, Plan, Worker};
//! use loader::{Dtype, Store, WriteOptions};
//!
//! let folder = tempfile::tempdir()?;
//! let store = Store::open(&folder.path().display().to_string())?;
//! let mut what = serde_json::Map::new();
//! what.insert("rows".into(), 30.into());
//! let plan = Plan { what, folders: BTreeMap::from([(String::new(), WriteOptions::new(4, Dtype::F32))]) };
//!
//! // Two workers, one after the other; each could be a process of its own.
//! for index in 0..2 {
//!     let parts = Parts::open(&store, &plan)?;
//!     for part in parts.left(Worker::new(index, 2)?, 3)? {
//!         let mut writer = parts.shard("", part)?;
//!         writer.write(&[part as u8; 10 * 16], &[])?;
//!         parts.commit(part, &Marker::default().with_shard("", writer.finish()?))?;
//!     }
//! }
//! let parts = Parts::open(&store, &plan)?;
//! assert!(parts.left(Worker::alone(), 3)?.is_empty());
//! let manifests = parts.finish(3, |_folder| None)?;
//! assert_eq!(manifests[0].rows(), 30);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use crate::dataset::is_shard_name;
use crate::dataset::manifest::{self, Source};
use crate::error::Flaw;
use crate::make::columns::ColumnValues;
use crate::make::differences::differences;
use crate::make::layout::{COLUMN, Layout, WriteOptions};
use crate::make::shard::ShardFile;
use crate::parquet::footers;
use crate::{Error, Manifest, Result, Shard, Store};

/// The folder of markers and of the plan.
const FOLDER: &str = "parts";
const PLAN: &str = "parts/plan.json";
const FORMAT: &str = "sae-parts";
const VERSION: u32 = 1;
/// A plan or a marker that is larger is refused: a marker has about 60 bytes for each piece of 4 MiB.
const MAX_BYTES: u64 = 64 << 20;
/// Parts that a data set has at most: their numbers have six digits, and further ones grow.
pub const MOST_PARTS: u64 = 1 << 40;

/// Everything that decides what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For the maker of the parts: its command, sources with their identity, options. Where something differs, its keys are said to users, as
    /// words; in a list, things that have a `name` are called by it. What follows from the rest stands under `follows`, and is said where nothing
    /// else differs.
    pub what: Map<String, Value>,
    /// The layout of the shards in each folder of the output; `""` is the output itself. None where parts have no shards.
    pub folders: BTreeMap<String, WriteOptions>,
}

/// The plan as it is stored.
#[derive(Serialize)]
struct Stored<'a> {
    format: &'static str,
    version: u32,
    /// Another version may write other bytes.
    sae_version: &'static str,
    what: &'a Map<String, Value>,
    folders: &'a BTreeMap<String, WriteOptions>,
}

/// What a committed part holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Its shard in each folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shards: BTreeMap<String, Shard>,
    /// Whatever its maker wants to know later, such as where the next part begins.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub note: Value,
}

impl Marker {
    /// The same with a shard.
    pub fn with_shard(mut self, folder: &str, shard: Shard) -> Self {
        self.shards.insert(folder.into(), shard);
        self
    }

    /// The same with a note.
    pub fn with_note(mut self, note: Value) -> Self {
        self.note = note;
        self
    }
}

/// A marker as it is stored: with the plan that it belongs to.
#[derive(Serialize, Deserialize)]
struct StoredMarker<M> {
    part: u64,
    plan: String,
    #[serde(flatten)]
    marker: M,
}

/// Which parts a process makes, of those that have no marker: every `count`-th from `index` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    index: u64,
    count: u64,
}

impl Worker {
    /// Worker `index` of `count`, from 0 on.
    ///
    /// # Errors
    /// [`Error::Arguments`] where there is no such worker.
    pub fn new(index: u64, count: u64) -> Result<Self> {
        if index < count {
            return Ok(Worker { index, count });
        }
        Err(Error::Arguments(format!("worker {index} of {count}: workers are numbered from 0 to their number less 1")))
    }

    /// The only one.
    pub fn alone() -> Self {
        Worker { index: 0, count: 1 }
    }

    /// Its number, from 0 on.
    pub fn index(self) -> u64 {
        self.index
    }

    /// How many there are.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Whether a part is one of its own.
    pub fn does(self, part: u64) -> bool {
        part % self.count == self.index
    }
}

/// Reads `w/W`.
impl FromStr for Worker {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let (index, count) = numbers
            .ok_or_else(|| Error::Arguments(format!("{text:?} is no worker: write 0/4 for the first of four")))?;
        Worker::new(index, count)
    }
}

impl std::fmt::Display for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// The parts of a data set that is being written.
pub struct Parts {
    store: Store,
    /// Each output folder and its layout.
    folders: BTreeMap<String, (Store, Layout)>,
    /// Of the plan, as it is stored.
    hash: String,
    /// Markers that were read: they do not change.
    seen: Mutex<BTreeMap<u64, Arc<Marker>>>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts({})", self.store.url())
    }
}

/// The name of a part's shard in each folder.
pub fn shard_name(part: u64) -> String {
    format!("shard-{part:06}.parquet")
}

fn marker_name(part: u64) -> String {
    format!("{FOLDER}/{part:06}.json")
}

/// The number of the part that a marker of this name is of.
fn part_of(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?;
    digits.parse().ok().filter(|&part| marker_name(part) == key)
}

impl Parts {
    /// Begins or goes on with the parts of a plan in a folder.
    ///
    /// # Errors
    /// [`Error::Arguments`] where the folder holds shards that are no parts, parts of another plan (with the difference), or cannot be listed; those
    /// of the store.
    pub fn open(store: &Store, plan: &Plan) -> Result<Self> {
        let mut folders = BTreeMap::new();
        for (name, options) in &plan.folders {
            let folder = if name.is_empty() { store.clone() } else { store.join(name)? };
            folders.insert(name.clone(), (folder, Layout::new(options.clone())?));
        }
        if !store.lists() {
            let text = format!("{}: cannot be listed, and workers see each other's parts by that", store.url());
            return Err(Error::Arguments(text));
        }
        let stored = Stored {
            format: FORMAT,
            version: VERSION,
            sae_version: env!("CARGO_PKG_VERSION"),
            what: &plan.what,
            folders: &plan.folders,
        };
        let json = serde_json::to_vec_pretty(&stored).map_err(|e| Error::Arguments(format!("the plan: {e}")))?;
        // Shards that are seen here were there before the plan is looked for: another worker writes that first.
        let before = store.list("")?;
        let taken = before.iter().any(|e| is_shard_name(&e.key) || e.key == manifest::FILE_NAME);
        if store.head(PLAN)?.is_none() {
            if taken {
                return Err(Error::Arguments(format!("{} already holds shards: name an empty folder", store.url())));
            }
            store.put_new(PLAN, json.clone())?;
        }
        // Of workers that begin together the one that was first decides.
        let there = read(store, PLAN)?;
        if let Err(differing) = compare(&there, &json, store) {
            // A plan of which no part was ever committed binds nobody: mostly it could not be carried out, and was corrected. Markers name their
            // plan, so that another worker which goes by it nevertheless is found out. A manifest says that all was there, whatever became of markers.
            let is_whole = before.iter().any(|entry| entry.key.rsplit('/').next() == Some(manifest::FILE_NAME));
            let is_begun = is_whole || store.list(FOLDER)?.iter().any(|entry| part_of(&entry.key).is_some());
            if is_begun || !matches!(differing, Error::Arguments(_)) {
                return Err(differing);
            }
            store.put(PLAN, json.clone())?;
        }
        let hash = format!("{:016x}", xxh3_64(&json));
        Ok(Parts { store: store.clone(), folders, hash, seen: Mutex::default() })
    }

    /// The folder that all is written to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The numbers of the parts that are committed by now.
    ///
    /// # Errors
    /// Those of the store.
    pub fn numbers(&self) -> Result<BTreeSet<u64>> {
        Ok(self.store.list(FOLDER)?.iter().filter_map(|entry| part_of(&entry.key)).collect())
    }

    /// The parts of a worker that are not committed, of so many.
    ///
    /// # Errors
    /// Those of the store.
    pub fn left(&self, worker: Worker, count: u64) -> Result<Vec<u64>> {
        let committed = self.numbers()?;
        let own = (worker.index..count).step_by(usize::try_from(worker.count).unwrap_or(usize::MAX));
        Ok(own.filter(|part| !committed.contains(part)).collect())
    }

    /// The markers of all parts that are committed by now. Each is read once.
    ///
    /// # Errors
    /// [`Error::Data`] for a marker that is damaged or of another plan; those of the store.
    pub fn committed(&self) -> Result<BTreeMap<u64, Arc<Marker>>> {
        let numbers = self.numbers()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|part, _| numbers.contains(part));
        let new: Vec<u64> = numbers.into_iter().filter(|part| !seen.contains_key(part)).collect();
        let markers = footers::look_at(&new, new.len(), |&part| self.marker(part))?;
        seen.extend(new.into_iter().zip(markers.into_iter().map(Arc::new)));
        Ok(seen.clone())
    }

    fn marker(&self, part: u64) -> Result<Marker> {
        let key = marker_name(part);
        let redo = "delete it and run again: its part is then made anew";
        let damaged = |problem: Flaw| Error::data(self.store.url_of(&key), problem.said(|p| format!("{p}: {redo}")));
        let stored: StoredMarker<Marker> = serde_json::from_slice(&read(&self.store, &key)?)
            .map_err(|e| damaged(Flaw::of(format!("is no marker of a part: {e}"), e)))?;
        if stored.part != part || stored.plan != self.hash {
            return Err(damaged(format!("marks part {} of plan {}", stored.part, stored.plan).into()));
        }
        let (folders, shards) = (self.folders.keys(), &stored.marker.shards);
        if !folders.eq(shards.keys()) || shards.values().any(|shard| shard.path != shard_name(part)) {
            return Err(damaged("does not mark the shards of the plan".to_string().into()));
        }
        Ok(stored.marker)
    }

    /// Begins the shard of a part in a folder of the plan. Nothing is there before it is finished.
    ///
    /// # Errors
    /// [`Error::Arguments`] for a folder that the plan does not have.
    pub fn shard(&self, folder: &str, part: u64) -> Result<PartWriter> {
        let absent = || Error::Arguments(format!("the plan has no folder {folder:?}"));
        let (store, layout) = self.folders.get(folder).ok_or_else(absent)?;
        Ok(PartWriter { file: ShardFile::new(store, shard_name(part), layout), layout: layout.clone() })
    }

    /// Commits a part, all of whose files are written.
    ///
    /// # Errors
    /// [`Error::Arguments`] where it lacks the shard of a folder; those of the store.
    pub fn commit(&self, part: u64, marker: &Marker) -> Result<()> {
        if part >= MOST_PARTS || !self.folders.keys().eq(marker.shards.keys()) {
            return Err(Error::Arguments(format!("part {part} needs a shard in each folder of the plan")));
        }
        let stored = StoredMarker { part, plan: self.hash.clone(), marker };
        let json =
            serde_json::to_vec(&stored).map_err(|e| Error::Arguments(format!("the note of part {part}: {e}")))?;
        self.store.put(&marker_name(part), json)
    }

    /// Writes the manifest of each folder, once parts 0 to `count` − 1 are committed. `source` says where the rows of a folder come from;
    /// it has to be the same for all workers.
    ///
    /// # Errors
    /// [`Error::Arguments`] where a part is not committed; [`Error::Data`] where one is too many, or its shard is gone; those of the store.
    pub fn finish(&self, count: u64, source: impl Fn(&str) -> Option<Source>) -> Result<Vec<Manifest>> {
        let markers = self.committed()?;
        if let Some(part) = (0..count).find(|part| !markers.contains_key(part)) {
            return Err(Error::Arguments(format!("{}: part {part} of {count} is not there yet", self.store.url())));
        }
        if let Some((&part, _)) = markers.range(count..).next() {
            let problem = format!("is a part beyond the last, which is {}", count.saturating_sub(1));
            return Err(Error::data(self.store.url_of(&marker_name(part)), problem));
        }
        let mut manifests = Vec::new();
        for (name, (folder, layout)) in &self.folders {
            let sizes: BTreeMap<String, u64> = folder.list("")?.into_iter().map(|e| (e.key, e.size)).collect();
            let shards: Vec<Shard> = markers.values().map(|marker| marker.shards[name].clone()).collect();
            let is_other = |(_, shard): &(usize, &Shard)| sizes.get(&shard.path) != Some(&shard.size);
            let others: Vec<(usize, &Shard)> = shards.iter().enumerate().filter(is_other).collect();
            if let Some((_, shard)) = others.first() {
                let there = sizes.get(&shard.path).map_or("is gone".into(), |size| format!("has {size} bytes"));
                let markers: Vec<String> =
                    others.iter().take(NAMED).map(|&(part, _)| marker_name(part as u64)).collect();
                let more = if others.len() > NAMED { " and others" } else { "" };
                let problem = format!(
                    "{there}, and its part was committed with {} bytes: delete what commits it, and the same command makes it again; in {} this \
                     concerns {}{more}",
                    shard.size,
                    self.store.url(),
                    markers.join(", ")
                );
                return Err(Error::data(folder.url_of(&shard.path), problem));
            }
            let WriteOptions { width, dtype, prepared, .. } = layout.options;
            let manifest = Manifest::new(width, dtype, prepared, true, shards);
            let manifest = manifest.with_column(Some(COLUMN.to_string())).with_source(source(name));
            manifest.validate(&folder.url_of(manifest::FILE_NAME))?;
            manifests.push((folder, manifest));
        }
        // None where another has a fault.
        for (folder, manifest) in &manifests {
            folder.put(manifest::FILE_NAME, manifest.to_json())?;
        }
        Ok(manifests.into_iter().map(|(_, manifest)| manifest).collect())
    }
}

/// The shard of a part while it is written.
pub struct PartWriter {
    file: ShardFile,
    layout: Layout,
}

impl std::fmt::Debug for PartWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PartWriter({} rows)", self.file.rows())
    }
}

impl PartWriter {
    /// Appends rows in the stored dtype, with the values of each column that the plan declares, in their order.
    ///
    /// # Errors
    /// [`Error::Arguments`] where they do not fit; those of the store.
    pub fn write(&mut self, rows: &[u8], columns: &[ColumnValues<'_>]) -> Result<()> {
        let count = self.layout.count(rows, columns)?;
        self.file.write(rows, columns, 0..count)
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.file.rows()
    }

    /// Ends the shard, which is then there, whole.
    ///
    /// # Errors
    /// Those of the store.
    pub fn finish(self) -> Result<Shard> {
        self.file.finish()
    }
}

/// A plan or a marker.
fn read(store: &Store, key: &str) -> Result<bytes::Bytes> {
    match store.head(key)? {
        Some(entry) if entry.size > MAX_BYTES => {
            Err(Error::data(store.url_of(key), format!("{} bytes are no part's", entry.size)))
        }
        _ => store.get(key),
    }
}

/// Refuses a plan that differs from the one that is there.
fn compare(there: &[u8], here: &[u8], store: &Store) -> Result<()> {
    if there == here {
        return Ok(());
    }
    let parsed = |json: &[u8]| serde_json::from_slice::<Value>(json);
    let flaw = |e: serde_json::Error| Error::data(store.url_of(PLAN), Flaw::of(format!("is no plan of parts: {e}"), e));
    let differences = differences(&parsed(there).map_err(flaw)?, &parsed(here).map_err(flaw)?);
    let named = differences.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    let more = differences.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(Error::Arguments(format!(
        "{} was begun with other options or data ({named}{more}): go on with those, or name an empty folder",
        store.url()
    )))
}

/// Differences that a message names.
const NAMED: usize = 5;
