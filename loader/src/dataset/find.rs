//! What lies at a place that somebody named: the shards, what is left out, and the manifest beside them.

use std::path::Path;

use serde::Deserialize;

use super::beside;
use super::contents::by_reason;
use super::place::Place;
use super::rule::{Rule, Verdict, Why, is_shard_name};
use super::same::{SameBy, twice};
use super::walk::walk;
use crate::dataset::manifest;
use crate::{Entry, Error, Location, Result, Store};

/// Looks at one place.
///
/// # Errors
/// [`Error::NotFound`] when there is no shard, [`Error::Data`] and [`Error::Changed`] when a manifest beside the shards does not fit
/// or a link leads nowhere, and those of the store.
pub(super) fn find(url: &str, column: Option<&str>) -> Result<Place> {
    let location = Location::resolve(url)?;
    let mut place = match file_at(&location)? {
        Some((store, entry)) => {
            let mut known = beside::read(&store)?;
            if let Some(m) = &mut known {
                m.shards.retain(|s| s.path == entry.key);
            }
            let manifest = known.filter(|m| !m.shards.is_empty());
            Place { store, shards: vec![entry], left_out: Vec::new(), manifest, is_whole: false }
        }
        None if location.store().lists() => list(&location)?,
        None => unlisted(location.store())?,
    };
    if place.shards.is_empty() {
        return Err(Error::NotFound { location: url.into(), hint: hint(&location, &place), source: None });
    }
    if let Some(m) = place.manifest.take() {
        // Without listing, the manifest itself says what there is: whether it is so, the first shard has to tell.
        let mut there = place.shards.as_slice();
        let first;
        if !place.store.lists() && place.is_whole {
            first = place.store.head(&there[0].key)?;
            there = first.as_slice();
        }
        place.manifest = beside::of_column(&place.store, m, there, column)?;
    }
    if let Some(m) = &place.manifest {
        beside::check_against(&place, m)?;
    }
    Ok(place)
}

/// The single file that a location names, with its folder.
fn file_at(location: &Location) -> Result<Option<(Store, Entry)>> {
    if location.pattern.is_some() {
        return Ok(None);
    }
    let Some((folder, name)) = location.split_file().filter(|(_, name)| is_shard_name(name)) else { return Ok(None) };
    let folder = folder.store();
    // Some stores show folders as objects of zero bytes.
    Ok(folder.head(&name)?.filter(|entry| entry.size > 0).map(|entry| (folder, entry)))
}

/// Lists a folder, or what a glob finds below one.
fn list(location: &Location) -> Result<Place> {
    let (store, rule) = (location.store(), Rule::new(location.pattern.as_ref()));
    let (mut shards, mut left_out) = match store.local_path() {
        Some(root) => walked(&store, root, &rule)?,
        None => listed(&store, &rule)?,
    };
    let (whole, empty): (Vec<_>, Vec<_>) = shards.drain(..).partition(|entry| entry.size > 0);
    left_out.extend(empty.into_iter().map(|entry| (entry.key, Why::Empty)));
    left_out.retain(|(key, _)| key != manifest::FILE_NAME);
    left_out.sort();
    left_out.dedup();
    let place =
        Place { manifest: beside::read(&store)?, store, shards: whole, left_out, is_whole: location.pattern.is_none() };
    if place.is_whole {
        check_bionemo(&place)?;
    }
    Ok(place)
}

type Listed = (Vec<Entry>, Vec<(String, Why)>);

fn walked(store: &Store, root: &Path, rule: &Rule) -> Result<Listed> {
    let mut walked = walk(root, rule)?;
    walked.shards.sort_by(|a, b| a.key.cmp(&b.key));
    for (first, second) in &walked.again {
        let inside =
            |key: &str| key.strip_prefix(first.as_str()).and_then(|rest| rest.strip_prefix('/').map(str::to_owned));
        if let Some(rest) = walked.shards.iter().find_map(|entry| inside(&entry.key)) {
            let (one, other) = (format!("{first}/{rest}"), format!("{second}/{rest}"));
            return Err(twice(&store.url_of(&one), &store.url_of(&other), SameBy::Place));
        }
    }
    Ok((walked.shards, walked.left_out))
}

fn listed(store: &Store, rule: &Rule) -> Result<Listed> {
    let (mut shards, mut left_out) = (Vec::new(), Vec::new());
    let entries = store.list("")?;
    for entry in entries.iter().filter(|entry| !is_folder(entry, &entries)).cloned() {
        match rule.file(&entry.key) {
            Verdict::Belongs => shards.push(entry),
            Verdict::LeftOut(path, why) => left_out.push((path, why)),
            Verdict::Elsewhere => {}
        }
    }
    Ok((shards, left_out))
}

/// Whether an object of zero bytes stands for a folder, as some clients make them: others of the sorted `entries` lie below it.
fn is_folder(entry: &Entry, entries: &[Entry]) -> bool {
    let inside = format!("{}/", entry.key);
    let next = entries.partition_point(|other| other.key < inside);
    entry.size == 0 && entries.get(next).is_some_and(|other| other.key.starts_with(&inside))
}

/// A server without listing: the manifest says what there is.
fn unlisted(store: Store) -> Result<Place> {
    let Some(manifest) = beside::read(&store)? else {
        let hint = ": plain HTTP has no listing: name the .parquet files, or put a manifest.json beside them".into();
        return Err(Error::NotFound { location: store.url().into(), hint, source: None });
    };
    let rule = Rule::new(None);
    let (mut shards, mut left_out) = (Vec::new(), Vec::new());
    for shard in &manifest.shards {
        match rule.file(&shard.path) {
            Verdict::LeftOut(path, why) => left_out.push((path, why)),
            _ => shards.push(Entry { key: shard.path.clone(), size: shard.size, etag: None }),
        }
    }
    Ok(Place { store, shards, left_out, manifest: Some(manifest), is_whole: true })
}

/// BioNeMo's store says how many shards there must be.
fn check_bionemo(place: &Place) -> Result<()> {
    #[derive(Deserialize)]
    struct Metadata {
        n_shards: usize,
    }
    if !place.shards.iter().any(|e| e.key == "shard_00000.parquet") {
        return Ok(());
    }
    let json = place.store.get("metadata.json").ok();
    match json.and_then(|json| serde_json::from_slice::<Metadata>(&json).ok()) {
        Some(m) if m.n_shards != place.shards.len() => Err(Error::data(
            place.store.url_of("metadata.json"),
            format!("speaks of {} shards, there are {}", m.n_shards, place.shards.len()),
        )),
        _ => Ok(()),
    }
}

/// Why there may be no shards at a place.
fn hint(location: &Location, place: &Place) -> String {
    if place.store.local_path().is_some_and(Path::is_file) {
        return ": a file of zero bytes, or one that is not named .parquet or .pq".into();
    }
    if location.pattern.is_none() && location.split_file().is_some_and(|(_, name)| is_shard_name(&name)) {
        return String::new();
    }
    let left_out = by_reason(place.left_out.iter().cloned());
    let words: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    match words.is_empty() {
        true => ": no .parquet or .pq files there; check the prefix".into(),
        false => format!(": no .parquet or .pq files there that belong to the data; left out are {}", words.join("; ")),
    }
}
