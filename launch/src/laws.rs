//! laws.json, as `sae scaling fit` leaves it.

use loader::Store;
use scaling::Laws;
use scaling::laws::VERSION;

use crate::failure::Failure;

/// Bytes of a laws.json, at most: that of 100,000 replicates has 20 MiB.
const MOST_BYTES: u64 = 256 << 20;

/// Reads laws from a path or URL.
///
/// # Errors
/// [`trainer::Exit::Arguments`] where there is no such file; [`trainer::Exit::Data`] where it is damaged or of another version; those of the store.
pub fn read(url: &str) -> Result<Laws, Failure> {
    let (folder, name) = url.rsplit_once('/').unwrap_or((".", url));
    let store = Store::open(if folder.is_empty() { "/" } else { folder })?;
    let Some(entry) = store.head(name)? else {
        return Err(Failure::arguments(format!("{url}: no such file: sae scaling fit writes laws.json")));
    };
    let damaged = |why: String| Failure::data(format!("{url}: {why}: fit again with sae scaling fit"));
    if entry.size > MOST_BYTES {
        return Err(damaged(format!("has {} bytes, more than laws have", entry.size)));
    }
    let bytes = store.get(name)?;
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let version: Version = serde_json::from_slice(&bytes).map_err(|error| damaged(format!("no laws: {error}")))?;
    if version.version != VERSION {
        return Err(damaged(format!("laws of version {}, and this program reads {VERSION}", version.version)));
    }
    let laws: Laws = serde_json::from_slice(&bytes).map_err(|error| damaged(format!("damaged: {error}")))?;
    let p = laws.surface.parameters();
    let sane = [p.e, p.a, p.b, p.alpha, p.beta].iter().all(|value| value.is_finite());
    if !(sane && p.a > 0.0 && p.b > 0.0 && p.alpha > 0.0 && p.beta > 0.0 && !laws.runs.is_empty()) {
        return Err(damaged("its surface has no optimum".to_owned()));
    }
    Ok(laws)
}
