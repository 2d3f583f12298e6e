//! Opening a dataset: from its manifest, or from the footers of its shards.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Deserialize;

use crate::footer::{Footer, Layout};
use crate::{
    Dtype, Entry, Error, Location, Manifest, Piece, Result, RowFilter, RowId, Shard, SkipList, Store, manifest, tokens,
};

/// What to do about a manifest that cannot be kept.
const REDO: &str =
    "delete manifest.json beside the data and run `sae inspect`, which writes a new one of what is there";
/// Footers read at the same time.
const FOOTER_THREADS: usize = 16;

/// How a dataset is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A manifest (path or URL) of an earlier opening, such as [`Dataset::manifest`] saved in a run directory. If it exists it
    /// wins over one beside the data, so that a run keeps its identity when somebody inspects the data meanwhile, and its
    /// checksums are verified. Data of another shape is refused.
    pub manifest: Option<String>,
    /// The activation column, where its name or type does not say.
    pub column: Option<String>,
}

/// Shards of one width and dtype. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dataset {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    manifest: Manifest,
    /// For each shard its store and key.
    sources: Vec<(Store, String)>,
    column: Option<String>,
    /// Footers, read when first needed.
    footers: Vec<OnceLock<Arc<Footer>>>,
    /// Checksums that became known while reading: (shard, row group).
    filled: Mutex<HashMap<(u32, u32), Vec<Piece>>>,
    found_manifest: bool,
    /// Whether it was said that numbers are narrowed, and that some are infinite then.
    told_narrowed: AtomicBool,
    told_beyond: AtomicBool,
}

/// One shard as found by listing.
struct Found {
    store: Store,
    key: String,
    /// Its path in the manifest.
    path: String,
    size: u64,
    etag: Option<String>,
}

impl Dataset {
    /// Opens folders, files, globs or URLs.
    pub fn open(urls: &[String], options: &OpenOptions) -> Result<Self> {
        if urls.is_empty() {
            return Err(Error::Arguments("no data: give a folder, a file, a glob or a URL".into()));
        }
        let mut found = Vec::new();
        let mut manifests = Vec::new();
        for (i, url) in urls.iter().enumerate() {
            // With several places, paths carry the place's number: names may repeat.
            let prefix = if urls.len() > 1 { format!("{i:04}/") } else { String::new() };
            find(url, &prefix, options.column.as_deref(), &mut found, &mut manifests)?;
        }
        if found.is_empty() {
            return Err(Error::NotFound { location: urls.join(", "), hint: no_shards_hint(urls) });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let cached = cached_manifest(options)?;
        if let (Some(cached), Some(url)) = (&cached, &options.manifest) {
            check_shape(cached, url, &found, &manifests)?;
        }
        let known = cached.into_iter().chain(manifests.into_iter().flatten());
        let mut beside: HashMap<String, Described> = HashMap::new();
        for m in known {
            let (shape, prepared, checksummed) = (Some((m.dtype, m.width)), m.prepared, m.checksummed);
            for shard in m.shards {
                let path = shard.path.clone();
                beside.entry(path).or_insert(Described { shard, shape, is_double: false, prepared, checksummed });
            }
        }
        let found_manifest = found.iter().all(|f| beside.contains_key(&f.path));
        let described = describe(&found, &beside, options)?;
        let is_double = described.iter().any(|d| d.is_double);
        let manifest = combine(&found, described)?;
        let sources = found.into_iter().map(|f| (f.store, f.key)).collect::<Vec<_>>();
        let footers = sources.iter().map(|_| OnceLock::new()).collect();
        let filled = Mutex::default();
        let column = options.column.clone();
        let (told_narrowed, told_beyond) = (AtomicBool::new(false), AtomicBool::new(false));
        let inner = Inner { manifest, sources, column, footers, filled, found_manifest, told_narrowed, told_beyond };
        let dataset = Dataset { inner: Arc::new(inner) };
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
        for ((shard, group), pieces) in filled.iter() {
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

    /// Whether a manifest described every shard, so that no footer had to be read.
    pub fn has_manifest(&self) -> bool {
        self.inner.found_manifest
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
        let (store, key) = &self.inner.sources[shard as usize];
        (store, key)
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
            return Err(Error::Changed { location: store.url_of(key), problem });
        }
        Ok(cell.get_or_init(|| Arc::new(footer)).clone())
    }

    /// Looks whether every shard has the columns that a filter needs, in a form that it can use. Streams and samples look too;
    /// whoever opens data for later may want to know at once.
    ///
    /// # Errors
    /// [`Error::Data`] with the first shard that lacks one, and those of the store.
    pub fn check_columns(&self, filter: &RowFilter, skip: &SkipList) -> Result<()> {
        tokens::check(self, filter, skip)
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
                "{name}: {number:e} is more than float32 holds and becomes infinite: data.filter.finite = true leaves such rows out"
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
        filled.get(&(shard, group)).cloned().unwrap_or_default()
    }

    pub(crate) fn fill(&self, shard: u32, group: u32, pieces: Vec<Piece>) {
        let mut filled = self.inner.filled.lock().unwrap_or_else(PoisonError::into_inner);
        filled.insert((shard, group), pieces);
    }
}

fn no_shards_hint(urls: &[String]) -> String {
    let single = urls.len() == 1 && urls[0].ends_with(".parquet") && !urls[0].contains(['*', '?', '[']);
    if single { String::new() } else { ": no .parquet files there; check the prefix".into() }
}

/// Lists the shards at one location and reads the manifest beside them.
fn find(
    url: &str,
    prefix: &str,
    column: Option<&str>,
    found: &mut Vec<Found>,
    manifests: &mut Vec<Option<Manifest>>,
) -> Result<()> {
    let location = Location::resolve(url)?;
    let looks_like_file = location.pattern.is_none() && url.ends_with(".parquet");
    if looks_like_file && let Some((folder, name)) = location.split_file() {
        let store = folder.store();
        if let Some(entry) = store.head(&name)? {
            let mut known = read_manifest(&store)?;
            if let Some(m) = &mut known {
                m.shards.retain(|s| s.path == name);
            }
            known = of_column(&store, known, std::slice::from_ref(&entry), column)?;
            if let Some(m) = known.as_ref().filter(|m| !m.shards.is_empty()) {
                check_against(&store, m, std::slice::from_ref(&entry), true)?;
            }
            push_manifest(known, prefix, manifests);
            found.push(Found { path: format!("{prefix}{name}"), store, key: name, size: entry.size, etag: entry.etag });
            return Ok(());
        }
    }
    let store = location.store();
    let known = read_manifest(&store)?;
    if !store.lists() {
        let first = known.as_ref().and_then(|m| m.shards.first());
        let first = first.map(|shard| store.head(&shard.path)).transpose()?.flatten();
        let known = of_column(&store, known, first.as_slice(), column)?;
        return find_unlisted(&store, prefix, known, found, manifests);
    }
    let entries = store.list("")?;
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let is_shard =
        |key: &str| key.ends_with(".parquet") && !key.rsplit('/').next().is_some_and(|n| n.starts_with(['.', '_']));
    let chosen: Vec<_> = entries
        .into_iter()
        .filter(|e| is_shard(&e.key))
        .filter(|e| location.pattern.as_ref().is_none_or(|p| p.matches_with(&e.key, options)))
        .collect();
    let known = of_column(&store, known, &chosen, column)?;
    if let Some(m) = &known {
        check_against(&store, m, &chosen, location.pattern.is_some())?;
    }
    let bionemo =
        chosen.iter().any(|e| e.key == "shard_00000.parquet").then(|| store.get("metadata.json").ok()).flatten();
    if let Some(json) = bionemo {
        check_bionemo(&store, &json, chosen.len())?;
    }
    push_manifest(known, prefix, manifests);
    for e in chosen {
        found.push(Found {
            path: format!("{prefix}{}", e.key),
            store: store.clone(),
            key: e.key,
            size: e.size,
            etag: e.etag,
        });
    }
    Ok(())
}

/// The manifest, unless it describes another column of the same files than the one that is asked for: pages of both have the same
/// form, and only a footer tells them apart. That of the first of `entries` that is as the manifest has it speaks for all: what has
/// changed is told where all are compared.
fn of_column(
    store: &Store,
    known: Option<Manifest>,
    entries: &[Entry],
    column: Option<&str>,
) -> Result<Option<Manifest>> {
    let Some(m) = &known else { return Ok(known) };
    let described = |entry: &Entry| {
        let at = m.shards.binary_search_by(|shard| shard.path.as_str().cmp(&entry.key)).ok()?;
        Some(&m.shards[at]).filter(|shard| shard.size == entry.size && shard.rows > 0)
    };
    let Some(first) = entries.iter().find_map(described) else { return Ok(known) };
    let footer = Footer::read(store, &first.path, first.size, column)?;
    let chunks: Vec<_> = first.row_groups.iter().map(|group| (group.offset, group.length)).collect();
    match footer.leaf_at(&chunks) {
        Some(leaf) if footer.column.as_ref().is_some_and(|column| column.leaf != leaf) => {
            let url = store.url_of(manifest::FILE_NAME);
            tracing::info!("{url} describes another column of these files, and is not used");
            Ok(None)
        }
        _ => Ok(known),
    }
}

/// A server without listing: the manifest says what there is.
fn find_unlisted(
    store: &Store,
    prefix: &str,
    known: Option<Manifest>,
    found: &mut Vec<Found>,
    manifests: &mut Vec<Option<Manifest>>,
) -> Result<()> {
    let Some(m) = known else {
        let hint = ": plain HTTP has no listing: name the .parquet files, or put a manifest.json beside them".into();
        return Err(Error::NotFound { location: store.url().into(), hint });
    };
    for s in &m.shards {
        let (path, etag) = (format!("{prefix}{}", s.path), None);
        found.push(Found { path, store: store.clone(), key: s.path.clone(), size: s.size, etag });
    }
    push_manifest(Some(m), prefix, manifests);
    Ok(())
}

/// Puts the place's number before the paths.
fn push_manifest(known: Option<Manifest>, prefix: &str, manifests: &mut Vec<Option<Manifest>>) {
    manifests.push(known.map(|mut m| {
        m.shards.iter_mut().for_each(|s| s.path = format!("{prefix}{}", s.path));
        m
    }));
}

fn read_manifest(store: &Store) -> Result<Option<Manifest>> {
    let key = manifest::FILE_NAME;
    let entry = match store.head(key) {
        // Whoever may not list gets no other answer for what is absent.
        Err(Error::Denied { .. }) if store.local_path().is_none() => {
            if store.lists() {
                // Where nothing may be seen, that is what is wrong.
                store.list("")?;
            }
            let url = store.url_of(key);
            tracing::warn!("{url} is refused by the store, or absent: going on without its checksums");
            return Ok(None);
        }
        found => found?,
    };
    let Some(entry) = entry else { return Ok(None) };
    if entry.size > manifest::MAX_BYTES {
        return Err(Error::data(store.url_of(key), format!("{} bytes are no manifest", entry.size)));
    }
    let json = store.get(key)?;
    let manifest = match Manifest::from_json(&json, &store.url_of(key)) {
        Ok(manifest) => manifest,
        Err(_) if Manifest::is_foreign(&json) => {
            tracing::warn!("{} is not a manifest of activation shards: left alone", store.url_of(key));
            return Ok(None);
        }
        // Going on without it would give up its checksums, and a run its identity.
        Err(Error::Data { location, problem }) => {
            return Err(Error::data(location, format!("{problem}: bring the earlier file back, or {REDO}")));
        }
        Err(e) => return Err(e),
    };
    if let Some(root) = store.local_path() {
        inside(root, &manifest)?;
    }
    Ok(Some(manifest))
}

/// Refuses shards of a manifest that are links out of its folder.
fn inside(root: &std::path::Path, manifest: &Manifest) -> Result<()> {
    let Ok(real_root) = root.canonicalize() else { return Ok(()) };
    for s in &manifest.shards {
        let path = root.join(&s.path);
        if path.canonicalize().is_ok_and(|real| !real.starts_with(&real_root)) {
            let problem = "a shard of the manifest is a link that leaves the manifest's folder".to_string();
            return Err(Error::data(path.display().to_string(), problem));
        }
    }
    Ok(())
}

/// A manifest must describe exactly what lies there.
fn check_against(store: &Store, m: &Manifest, listed: &[Entry], partial: bool) -> Result<()> {
    let sizes: HashMap<&str, u64> = listed.iter().map(|e| (e.key.as_str(), e.size)).collect();
    let known: HashMap<&str, u64> = m.shards.iter().map(|s| (s.path.as_str(), s.size)).collect();
    for s in &m.shards {
        match sizes.get(s.path.as_str()) {
            Some(&size) if size != s.size => {
                let problem = format!("{size} bytes, the manifest says {}: if the change is meant, {REDO}", s.size);
                return Err(Error::Changed { location: store.url_of(&s.path), problem });
            }
            None if !partial => {
                return Err(Error::data(
                    store.url_of(&s.path),
                    format!("listed in the manifest, but absent: if that is meant, {REDO}"),
                ));
            }
            _ => {}
        }
    }
    match listed.iter().find(|e| !known.contains_key(e.key.as_str())) {
        Some(extra) => Err(Error::data(
            store.url_of(&extra.key),
            format!("not listed in the manifest beside it: if it belongs there, {REDO}"),
        )),
        None => Ok(()),
    }
}

/// BioNeMo's store says how many shards there must be.
fn check_bionemo(store: &Store, json: &[u8], shards: usize) -> Result<()> {
    #[derive(Deserialize)]
    struct Store {
        n_shards: usize,
    }
    match serde_json::from_slice::<Store>(json) {
        Ok(s) if s.n_shards != shards => Err(Error::data(
            store.url_of("metadata.json"),
            format!("speaks of {} shards, there are {shards}", s.n_shards),
        )),
        _ => Ok(()),
    }
}

fn cached_manifest(options: &OpenOptions) -> Result<Option<Manifest>> {
    let Some(url) = &options.manifest else { return Ok(None) };
    let Some((folder, name)) = Location::resolve(url)?.split_file() else { return Ok(None) };
    let store = folder.store();
    match store.get(&name) {
        Ok(json) => Manifest::from_json(&json, url).map(Some).map_err(|e| match e {
            Error::Data { location, problem } => {
                Error::data(location, format!("{problem}: delete it: its checksums are collected again"))
            }
            other => other,
        }),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Refuses data whose files are not those of the cached manifest, naming the first difference.
fn check_shape(cached: &Manifest, url: &str, found: &[Found], beside: &[Option<Manifest>]) -> Result<()> {
    let before: HashMap<&str, &Shard> = cached.shards.iter().map(|s| (s.path.as_str(), s)).collect();
    let changed = |location: String, what: String| {
        let problem = format!("{what} ({url}): bring the earlier data back, or start a new run");
        Err(Error::Changed { location, problem })
    };
    for f in found {
        let location = f.store.url_of(&f.key);
        match before.get(f.path.as_str()) {
            None => return changed(location, "the file is new".into()),
            Some(s) if s.size != f.size => {
                return changed(location, format!("{} bytes now, {} before", f.size, s.size));
            }
            Some(_) => {}
        }
    }
    // Listings are sorted by path and hold each path once.
    let is_there = |s: &&Shard| found.binary_search_by(|f| f.path.cmp(&s.path)).is_ok();
    if let Some(gone) = cached.shards.iter().find(|s| !is_there(s)) {
        return changed(gone.path.clone(), "the file is gone".into());
    }
    let shape = |s: &Shard| s.row_groups.iter().map(|g| (g.rows, g.offset, g.length)).collect::<Vec<_>>();
    for m in beside.iter().flatten() {
        if (m.width, m.dtype) != (cached.width, cached.dtype) {
            let what = format!("rows of {} × {} now, of {} × {} before", m.width, m.dtype, cached.width, cached.dtype);
            return changed(m.shards.first().map_or_else(String::new, |s| s.path.clone()), what);
        }
        // A glob takes only some of the shards that the manifest beside them lists.
        let differs = |s: &&Shard| before.get(s.path.as_str()).is_some_and(|b| shape(b) != shape(s));
        if let Some(s) = m.shards.iter().find(differs) {
            return changed(s.path.clone(), "the manifest beside it has other row groups".into());
        }
    }
    Ok(())
}

/// A shard with what belongs to the whole dataset.
#[derive(Clone)]
struct Described {
    shard: Shard,
    /// Format and width; a shard without rows may say neither.
    shape: Option<(Dtype, usize)>,
    /// Whether its numbers are narrowed when they are read; a manifest does not say.
    is_double: bool,
    prepared: bool,
    /// Whether its checksums belong to the identity.
    checksummed: bool,
}

/// Describes every found shard: from a manifest where it fits, from the footer otherwise, several at a time.
fn describe(found: &[Found], known: &HashMap<String, Described>, options: &OpenOptions) -> Result<Vec<Described>> {
    let next = AtomicUsize::new(0);
    let results: Vec<OnceLock<Result<Described>>> = found.iter().map(|_| OnceLock::new()).collect();
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(f) = found.get(i) else { break };
            let described = match known.get(&f.path) {
                // Sizes were compared when the manifest was found.
                Some(d) => {
                    let mut d = d.clone();
                    // Only what the store says now: a copy of the data has other tags than the manifest.
                    d.shard.etag.clone_from(&f.etag);
                    Ok(d)
                }
                None => from_footer(f, options),
            };
            // Set once per index: each index is handed out once.
            let _ = results[i].set(described);
        }
    };
    std::thread::scope(|scope| {
        let threads = if known.is_empty() { FOOTER_THREADS.min(found.len()) } else { 1 };
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let absent = || Error::Arguments("a thread that reads footers died".into());
    results.into_iter().map(|cell| cell.into_inner().unwrap_or_else(|| Err(absent()))).collect()
}

fn from_footer(f: &Found, options: &OpenOptions) -> Result<Described> {
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
    let is_double = rows > 0 && footer.column.as_ref().is_some_and(|column| column.is_double);
    Ok(Described { shard, shape, is_double, prepared: footer.prepared, checksummed: false })
}

/// One manifest of all shards, if they agree: those that have rows.
fn combine(found: &[Found], described: Vec<Described>) -> Result<Manifest> {
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
    let shards = described.into_iter().map(|d| d.shard).collect();
    Ok(Manifest::new(width, dtype, prepared, checksummed, shards))
}
