//! The manifest that a run keeps of the data that it began with.

use std::collections::HashMap;

use super::options::OpenOptions;
use super::place::FoundShard;
use super::rule::Why;
use crate::{Error, Manifest, Result, Shard, Store};

/// The manifest that the options name, if it is there.
pub(super) fn read(options: &OpenOptions) -> Result<Option<Manifest>> {
    let Some(url) = &options.manifest else { return Ok(None) };
    let (store, name) = Store::open_file(url)?;
    match store.get(&name) {
        Ok(json) => Manifest::from_json(&json, url).map(Some).map_err(|e| match e {
            Error::Data { location, problem, source, help } => {
                let problem = format!("{problem}: delete it: its checksums are collected again");
                Error::Data { location, problem, source, help }
            }
            other => other,
        }),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Refuses data whose files are not those of the kept manifest at `url`, naming the first difference. `why_not` says of a path why it is not
/// among those found, if it is there.
pub(super) fn check_shape(
    kept: &Manifest,
    url: &str,
    found: &[FoundShard],
    why_not: impl Fn(&str) -> Option<Why>,
    beside: &[Manifest],
) -> Result<()> {
    let before: HashMap<&str, &Shard> = kept.shards.iter().map(|s| (s.path.as_str(), s)).collect();
    let changed = |location: String, what: String| {
        let problem = format!("{what} ({url}): bring the earlier data back, or start a new run");
        Err(Error::changed(location, problem))
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
    if let Some(gone) = kept.shards.iter().find(|s| !is_there(s)) {
        let what = match why_not(&gone.path) {
            Some(why) => format!("it is now left out as one of those {}", why.words()),
            None => "the file is gone".into(),
        };
        return changed(gone.path.clone(), what);
    }
    let shape = |s: &Shard| s.row_groups.iter().map(|g| (g.rows, g.chunk())).collect::<Vec<_>>();
    for m in beside {
        if (m.width, m.dtype) != (kept.width, kept.dtype) {
            let what = format!("rows of {} × {} now, of {} × {} before", m.width, m.dtype, kept.width, kept.dtype);
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
