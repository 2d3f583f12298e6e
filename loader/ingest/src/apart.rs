//! What has to be apart: the files of a source from each other, and what is written from what is read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use loader::{Error, Result, Store};
use tensors::File;

/// Refuses a file that is listed twice, and a local one that has two names there: its rows would come twice.
pub(crate) fn refuse_twice(files: &[File]) -> Result<()> {
    let mut seen: HashMap<String, &File> = HashMap::new();
    for file in files {
        // The tag of a local file is of the file itself, whatever leads to it. In object storage one of equal bytes may have the same.
        let tag = match file.store().local_path() {
            Some(_) => file.store().head(file.key())?.and_then(|entry| entry.etag),
            None => None,
        };
        for name in [Some(format!("key {}", file.key())), tag.map(|tag| format!("tag {tag}"))].into_iter().flatten() {
            if let Some(first) = seen.insert(name, file) {
                return Err(file.flaw(if first.key() == file.key() {
                    "is listed twice, and its rows would come twice: list it once".to_string()
                } else {
                    format!("is one file with {}, and its rows would come twice: keep one of the two", first.url())
                }));
            }
        }
    }
    Ok(())
}

/// Refuses an output in the folder that is read: what is written there would be taken for a part of the source.
pub(crate) fn refuse_inside(source: &Store, out: &Store) -> Result<()> {
    let is_inside = match (source.local_path(), out.local_path()) {
        (Some(source), Some(out)) => resolved(out).starts_with(resolved(source)),
        (None, None) => {
            let below = out.url().strip_prefix(source.url());
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        }
        _ => false,
    };
    if !is_inside {
        return Ok(());
    }
    let (out, source) = (out.url(), source.url());
    Err(Error::Arguments(format!(
        "{out} lies in the source, {source}, which another start would read with the shards in it: name a folder outside of it"
    )))
}

/// A path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let there = |above: &Path| Some(above.canonicalize().ok()?.join(path.strip_prefix(above).ok()?));
    path.ancestors().find_map(there).unwrap_or_else(|| path.to_path_buf())
}
