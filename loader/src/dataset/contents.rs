//! What a data set consists of, for people to look at: its folders, and what lies among its shards and is not read.

use std::collections::BTreeMap;

use serde::Serialize;

use super::rule::Why;

/// How many of what is left out for one reason are named.
const FIRST: usize = 10;
/// And how many of them in a line for people.
const SHOWN: usize = 3;

/// What a data set consists of, and what it leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Folders that hold shards, by path.
    pub folders: Vec<Folder>,
    /// What lies among the shards and is not read, by reason.
    pub left_out: Vec<LeftOut>,
}

/// A folder with shards in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Folder {
    /// Path or URL.
    pub folder: String,
    /// Shards in it, those in folders below aside.
    pub shards: usize,
    /// Their rows.
    pub rows: u64,
}

/// What is left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The reason.
    pub why: Why,
    /// How many files and folders; what is in a folder does not count.
    pub count: usize,
    /// Paths or URLs of the first of them; those of folders end in `/`.
    pub first: Vec<String>,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = &self.first[..self.first.len().min(SHOWN)];
        let more = if self.count > first.len() { ", …" } else { "" };
        write!(f, "{} {}: {}{more}", self.count, self.why.words(), first.join(", "))
    }
}

/// Puts together what is left out for the same reason; `paths` come in order.
pub(super) fn by_reason(paths: impl Iterator<Item = (String, Why)>) -> Vec<LeftOut> {
    let mut reasons: BTreeMap<Why, LeftOut> = BTreeMap::new();
    for (path, why) in paths {
        let reason = reasons.entry(why).or_insert_with(|| LeftOut { why, count: 0, first: Vec::new() });
        reason.count += 1;
        if reason.first.len() < FIRST {
            reason.first.push(path);
        }
    }
    reasons.into_values().collect()
}

/// Shards counted by folder; `shards` are (folder, rows).
pub(super) fn by_folder(shards: impl Iterator<Item = (String, u64)>) -> Vec<Folder> {
    let mut folders: BTreeMap<String, Folder> = BTreeMap::new();
    for (folder, rows) in shards {
        let entry = folders.entry(folder.clone()).or_insert_with(|| Folder { folder, shards: 0, rows: 0 });
        entry.shards += 1;
        entry.rows += rows;
    }
    folders.into_values().collect()
}
