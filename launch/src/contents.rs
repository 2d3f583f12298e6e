//! What belongs to a data set, and what lies among it and does not, as commands show it.

use indicatif::HumanCount;
use loader::Contents;

use crate::table;

/// Folders that are shown one by one.
const FIRST: usize = 10;

/// Prints the folders of a data set with their shards, and what it leaves out.
pub fn print(title: &str, contents: &Contents) {
    let line = |folder: String, shards: usize, rows: u64| {
        [folder, HumanCount(shards as u64).to_string(), HumanCount(rows).to_string()]
    };
    let (first, more) = contents.folders.split_at(contents.folders.len().min(FIRST));
    let mut lines: Vec<_> = first.iter().map(|f| line(f.folder.clone(), f.shards, f.rows)).collect();
    if !more.is_empty() {
        let (shards, rows) = (more.iter().map(|f| f.shards).sum(), more.iter().map(|f| f.rows).sum());
        lines.push(line(format!("{} more", HumanCount(more.len() as u64)), shards, rows));
    }
    table::columns(&[title, "shards", "rows"], &lines);
    for left_out in &contents.left_out {
        table::say(format!("left out of {title}: {left_out}"));
    }
}
