//! The manifest that lies beside shards: whether it is one, of this column, and of what lies there.

use std::collections::{HashMap, HashSet};

use super::place::Place;
use super::rule::Why;
use crate::dataset::manifest;
use crate::parquet::footer::Footer;
use crate::parquet::footers;
use crate::{Entry, Error, Manifest, Result, RowGroup, Shard, Store};

/// What to do about a manifest that cannot be kept.
const REDO: &str =
    "delete manifest.json beside the data and run `sae inspect`, which writes a new one of what is there";

/// The manifest of a folder.
pub(super) fn read(store: &Store) -> Result<Option<Manifest>> {
    let key = manifest::FILE_NAME;
    let entry = match store.head(key) {
        // A user who may not list gets no other answer for what is absent.
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
    // That its paths stay below its folder is checked with the rest. A link below it may lead elsewhere: a user who can make one could
    // as well put the shard there, and listing follows it without a manifest too.
    match Manifest::from_json(&json, &store.url_of(key)) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(_) if Manifest::is_foreign(&json) => {
            tracing::warn!("{} is not a manifest of activation shards: left alone", store.url_of(key));
            Ok(None)
        }
        // Going on without it would give up its checksums, and a run its identity.
        Err(Error::Data { location, problem, source, help }) => {
            let problem = format!("{problem}: bring the earlier file back, or {REDO}");
            Err(Error::Data { location, problem, source, help })
        }
        Err(e) => Err(e),
    }
}

/// The manifest with the name of its column, unless that is another column of the same files than the one that is asked for: pages of
/// both have the same form, and only footers tell them apart. Looked at are those of `entries` that are as the manifest has them: what
/// has changed is reported where all are compared. Where the manifest names its column, the first speaks for all; those of version 0.1.0 do
/// not, and what they describe was not compared.
pub(super) fn of_column(
    store: &Store,
    mut m: Manifest,
    entries: &[Entry],
    column: Option<&str>,
) -> Result<Option<Manifest>> {
    let described = |entry: &Entry| {
        let at = m.shards.binary_search_by(|shard| shard.path.as_str().cmp(&entry.key)).ok()?;
        Some(&m.shards[at]).filter(|shard| shard.size == entry.size && shard.rows > 0)
    };
    let limit = if m.column.is_some() { 1 } else { usize::MAX };
    let shards: Vec<&Shard> = entries.iter().filter_map(described).take(limit).collect();
    let columns = footers::look_at(&shards, shards.len(), |shard| column_of(store, shard, column))?;
    let columns: Vec<(String, bool)> = columns.into_iter().flatten().collect();
    let Some((first, _)) = columns.first() else { return Ok(Some(m)) };
    let name = m.column.as_ref().unwrap_or(first).clone();
    if columns.iter().any(|(other, is_described)| !is_described || *other != name) {
        let url = store.url_of(manifest::FILE_NAME);
        tracing::info!("{url} describes another column of these files, and is not used");
        return Ok(None);
    }
    m.column = Some(name);
    Ok(Some(m))
}

/// The name of a shard's activation column, and whether no other has its chunks where the manifest says.
fn column_of(store: &Store, shard: &Shard, column: Option<&str>) -> Result<Option<(String, bool)>> {
    let footer = Footer::read(store, &shard.path, shard.size, column)?;
    let chunks: Vec<_> = shard.row_groups.iter().map(RowGroup::chunk).collect();
    let leaf = footer.leaf_at(&chunks);
    Ok(footer.column.map(|column| (column.name, leaf.is_none_or(|leaf| leaf == column.leaf))))
}

/// A manifest must describe exactly what lies there.
pub(super) fn check_against(place: &Place, m: &Manifest) -> Result<()> {
    let url = |key: &str| place.store.url_of(key);
    let sizes: HashMap<&str, u64> = place.shards.iter().map(|e| (e.key.as_str(), e.size)).collect();
    let known: HashSet<&str> = m.shards.iter().map(|s| s.path.as_str()).collect();
    for s in &m.shards {
        match (sizes.get(s.path.as_str()), place.why_not(&s.path)) {
            (Some(&size), _) if size == s.size => {}
            (Some(&size), _) => return Err(changed(url(&s.path), size, s.size)),
            (None, Some(Why::Empty)) => return Err(changed(url(&s.path), 0, s.size)),
            (None, Some(why)) => {
                let problem = format!("listed in the manifest, but left out as one of those {}: {REDO}", why.words());
                return Err(Error::data(url(&s.path), problem));
            }
            (None, None) if place.is_whole => {
                let problem = format!("listed in the manifest, but absent: if that is meant, {REDO}");
                return Err(Error::data(url(&s.path), problem));
            }
            // A glob or a file takes only some of them.
            (None, None) => {}
        }
    }
    match place.shards.iter().find(|e| !known.contains(e.key.as_str())) {
        Some(extra) => {
            let problem = format!("not listed in the manifest beside it: if it belongs there, {REDO}");
            Err(Error::data(url(&extra.key), problem))
        }
        None => Ok(()),
    }
}

fn changed(location: String, now: u64, before: u64) -> Error {
    let problem = format!("{now} bytes, the manifest says {before}: if the change is meant, {REDO}");
    Error::changed(location, problem)
}
