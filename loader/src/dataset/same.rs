//! Shards that are the same although their paths differ: they would bring their rows twice.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::stored::StoredShard;
use crate::{Error, Piece, Shard, Store};

/// What makes two shards one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameBy {
    /// Both paths lead to one file or object.
    Place,
    /// Their manifests have the same checksums for all their rows.
    Checksums,
}

impl std::fmt::Display for SameBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SameBy::Place => "both lead to one file",
            SameBy::Checksums => "all their rows have the same checksums",
        })
    }
}

/// The refusal of a shard that is there twice, by the names of both.
pub(super) fn twice(first: &str, second: &str, by: SameBy) -> Error {
    Error::data(second, format!("the same shard as {first} ({by}): its rows would come twice: keep one of them"))
}

/// Says where files are, links resolved: what two paths to one file have in common.
#[derive(Debug, Default)]
pub struct Resolver {
    /// Folders of which many files are asked.
    folders: HashMap<PathBuf, PathBuf>,
}

impl Resolver {
    /// Where a file of a store is: the same text for all its paths.
    pub fn place(&mut self, store: &Store, key: &str) -> String {
        match store.local_path() {
            Some(root) => self.local(&root.join(key)),
            None => store.name_of(key),
        }
    }

    fn local(&mut self, path: &Path) -> String {
        // A file of several names (hard links) has no path of its own.
        if let Some(m) = std::fs::metadata(path).ok().filter(|m| m.nlink() > 1) {
            return format!("file {} of device {}", m.ino(), m.dev());
        }
        // Reading tells what is wrong with a path that cannot be resolved.
        let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (Some(folder), Some(name), false) = (path.parent(), path.file_name(), path.is_symlink()) else {
            return resolved(path).display().to_string();
        };
        let folder = self.folders.entry(folder.to_path_buf()).or_insert_with(|| resolved(folder));
        folder.join(name).display().to_string()
    }
}

/// What a shard's rows are, where all its checksums are known and it has rows.
pub(super) fn sums(shard: &Shard) -> Option<u128> {
    let mut hash = Xxh3::new();
    for group in shard.row_groups.iter().filter(|group| group.rows > 0) {
        if group.pieces.is_empty() {
            return None;
        }
        for Piece { rows, checksum, .. } in &group.pieces {
            hash.update(&rows.to_le_bytes());
            hash.update(checksum.as_bytes());
        }
    }
    (shard.rows > 0).then(|| hash.digest128())
}

/// Shards by where they are and by what they hold.
#[derive(Default)]
pub(super) struct Index<'a> {
    places: HashMap<&'a str, &'a StoredShard>,
    sums: HashMap<u128, &'a StoredShard>,
}

impl<'a> Index<'a> {
    /// The same shard, if it was added before.
    pub(super) fn find(&self, shard: &StoredShard) -> Option<(&'a StoredShard, SameBy)> {
        let by_place = self.places.get(shard.place.as_str()).map(|&same| (same, SameBy::Place));
        by_place.or_else(|| Some((*self.sums.get(&shard.sums?)?, SameBy::Checksums)))
    }

    pub(super) fn add(&mut self, shard: &'a StoredShard) {
        self.places.entry(&shard.place).or_insert(shard);
        if let Some(sums) = shard.sums {
            self.sums.entry(sums).or_insert(shard);
        }
    }
}
