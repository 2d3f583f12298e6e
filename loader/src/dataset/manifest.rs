//! What a dataset consists of: one JSON file beside the shards, or made from their footers.
//!
//! Identity = version, width, dtype and, for each shard sorted by path: relative path, size, rows, row groups (rows, offset,
//! length) and the checksums, if the manifest was complete when it was made. Checksums that are filled in while reading are
//! kept and verified but are no part of the identity: it would change during the run. ETags never are: a copy has others.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::Flaw;
use crate::parquet::chunks::Chunk;
use crate::{Dtype, Error, Result};

/// Name of the manifest beside the shards.
pub const FILE_NAME: &str = "manifest.json";
const FORMAT: &str = "sae-shards";
const VERSION: u32 = 1;
/// A manifest larger than this is refused (10 TB of shards need about 150 MB).
pub(crate) const MAX_BYTES: u64 = 2 << 30;
/// What is said of where rows come from has at most so many bytes.
pub(crate) const MAX_SOURCE_BYTES: usize = 64 << 10;

/// Where rows come from, as a JSON object.
pub type Source = serde_json::Map<String, serde_json::Value>;

/// The shards of a dataset, what they hold, and checksums by which ranged reads are verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// Numbers per row.
    pub width: usize,
    /// Format of the numbers.
    pub dtype: Dtype,
    /// Whether the rows are globally shuffled (`sae.order` = `shuffled`).
    #[serde(default)]
    pub prepared: bool,
    /// Whether every row group had its checksums when the manifest was made, so that they belong to the identity.
    pub checksummed: bool,
    /// Name of the activation column, if it is known: manifests of version 0.1.0 do not say it. No part of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Where the rows come from, for people and for files that are made of them later: tool, model, revision, layer, hook, data set, … No part
    /// of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    identity: String,
    /// Sorted by path.
    pub shards: Vec<Shard>,
}

/// One Parquet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Path relative to the manifest's folder.
    pub path: String,
    /// Bytes of the file.
    pub size: u64,
    /// The store's tag: only to detect a change during a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Rows of the file.
    pub rows: u64,
    /// Whether the activation column is required FixedSizeBinary, PLAIN, uncompressed: its pages are the rows.
    pub raw: bool,
    /// In the order of the file.
    pub row_groups: Vec<RowGroup>,
}

/// The activation column's chunk in one row group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowGroup {
    /// Rows of the group.
    pub rows: u64,
    /// Where the column chunk begins in the file.
    pub offset: u64,
    /// Bytes of the column chunk.
    pub length: u64,
    /// The chunk in pieces that can be fetched and verified alone; empty until it was read once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
}

/// A run of whole pages. Pieces of a chunk follow each other without a gap. In JSON it is `[rows, bytes, checksum]`: there are many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, String)", into = "(u64, u64, String)")]
pub struct Piece {
    /// Rows that begin in the piece (all of the chunk's, if the pages are not cut at rows).
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// xxh3-64 of the bytes, 16 hex digits.
    pub checksum: String,
}

impl From<(u64, u64, String)> for Piece {
    fn from((rows, bytes, checksum): (u64, u64, String)) -> Self {
        Piece { rows, bytes, checksum }
    }
}

impl From<Piece> for (u64, u64, String) {
    fn from(piece: Piece) -> Self {
        (piece.rows, piece.bytes, piece.checksum)
    }
}

/// A row group of a data set. In JSON it is `[shard, group]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub(crate) struct GroupId {
    /// Index of the shard in the manifest.
    pub(crate) shard: u32,
    /// Index of the row group in the shard.
    pub(crate) group: u32,
}

impl From<(u32, u32)> for GroupId {
    fn from((shard, group): (u32, u32)) -> Self {
        GroupId { shard, group }
    }
}

impl From<GroupId> for (u32, u32) {
    fn from(id: GroupId) -> Self {
        (id.shard, id.group)
    }
}

impl RowGroup {
    /// Where the column chunk lies.
    pub(crate) fn chunk(&self) -> Chunk {
        Chunk { offset: self.offset, length: self.length }
    }
}

impl Manifest {
    /// A manifest of these shards: sorts them by path and computes the identity, which the checksums belong to if
    /// `checksummed` says so (then every row group needs them).
    pub fn new(width: usize, dtype: Dtype, prepared: bool, checksummed: bool, mut shards: Vec<Shard>) -> Self {
        shards.sort_by(|a, b| a.path.cmp(&b.path));
        let mut manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            width,
            dtype,
            prepared,
            checksummed,
            column: None,
            source: None,
            identity: String::new(),
            shards,
        };
        manifest.identity = manifest.hash();
        manifest
    }

    /// The hash that cursors are tied to, 32 hex digits.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What permutations are derived from: names, rows and row groups alone. The identity also holds checksums, if the manifest
    /// is complete; the order of the same files must not change because somebody wrote a manifest beside them.
    pub(crate) fn shape_key(&self) -> u64 {
        let mut h = Xxh3::new();
        let mut word = |w: u64| h.update(&w.to_le_bytes());
        for shard in &self.shards {
            word(xxh3_64(shard.path.as_bytes()));
            word(shard.rows);
            word(shard.row_groups.len() as u64);
            shard.row_groups.iter().for_each(|g| word(g.rows));
        }
        h.digest()
    }

    /// The same with the name of the activation column.
    pub fn with_column(mut self, column: Option<String>) -> Self {
        self.column = column;
        self
    }

    /// The same with where the rows come from.
    pub fn with_source(mut self, source: Option<Source>) -> Self {
        self.source = source;
        self
    }

    /// The same with a prefix before the paths, so that several can be put together; no manifest of its own any more.
    pub(crate) fn below(mut self, prefix: &str) -> Self {
        self.shards.iter_mut().for_each(|shard| shard.path.insert_str(0, prefix));
        self
    }

    /// Rows of all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|s| s.rows).sum()
    }

    /// Bytes of one row as stored.
    pub fn row_bytes(&self) -> usize {
        self.width * self.dtype.size()
    }

    /// The manifest as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// Reads and validates a manifest. `location` is named in errors.
    pub fn from_json(json: &[u8], location: &str) -> Result<Self> {
        let manifest: Manifest = serde_json::from_slice(json)
            .map_err(|e| Error::data(location, Flaw::of(format!("is not a manifest of activation shards: {e}"), e)))?;
        manifest.validate(location)?;
        Ok(manifest)
    }

    /// Whether this is another tool's manifest.json. What is not even JSON counts as ours: a damaged manifest must not be taken
    /// for none, and neither must one whose format was hit, which the other keys give away.
    pub(crate) fn is_foreign(json: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Head {
            format: Option<serde_json::Value>,
            identity: Option<serde::de::IgnoredAny>,
            shards: Option<serde::de::IgnoredAny>,
        }
        let is_ours = |h: Head| h.format.is_some_and(|f| f == FORMAT) || (h.identity.is_some() && h.shards.is_some());
        serde_json::from_slice::<Head>(json).is_ok_and(|head| !is_ours(head))
    }

    /// Checks everything that later code relies on.
    pub(crate) fn validate(&self, location: &str) -> Result<()> {
        let fail = |problem: String| Err(Error::data(location, problem));
        if self.format != FORMAT || self.version != VERSION {
            return fail(format!(
                "manifest of format {} version {}, expected {FORMAT} {VERSION}",
                self.format, self.version
            ));
        }
        if self.width == 0 || self.width > crate::parquet::metadata::MAX_WIDTH {
            return fail(format!("impossible width {}", self.width));
        }
        if let Some(source) = &self.source {
            let bytes = serde_json::to_string(source).map_or(usize::MAX, |json| json.len());
            if bytes > MAX_SOURCE_BYTES {
                return fail(format!("source of {bytes} bytes: at most {MAX_SOURCE_BYTES} say where rows come from"));
            }
        }
        for pair in self.shards.windows(2) {
            if pair[0].path >= pair[1].path {
                return fail(format!("shards are not sorted by path at {}", pair[1].path));
            }
        }
        for shard in &self.shards {
            if let Some(problem) = bad_path(&shard.path) {
                return fail(format!("shard path {:?} {problem}", shard.path));
            }
            if let Err(problem) = self.validate_shard(shard) {
                return fail(format!("shard {}: {problem}", shard.path));
            }
        }
        if self.hash() != self.identity {
            return fail("identity does not fit the contents: the manifest was edited or damaged".into());
        }
        Ok(())
    }

    fn validate_shard(&self, shard: &Shard) -> std::result::Result<(), String> {
        let mut rows = 0u64;
        for (i, g) in shard.row_groups.iter().enumerate() {
            let end = g.offset.checked_add(g.length).ok_or("offset overflows")?;
            if end > shard.size {
                return Err(format!("row group {i} ends at byte {end} of a file of {} bytes", shard.size));
            }
            if g.rows > crate::parquet::metadata::MAX_GROUP_ROWS {
                return Err(format!("row group {i} claims {} rows", g.rows));
            }
            if shard.raw && g.length < g.rows.saturating_mul(self.row_bytes() as u64) {
                return Err(format!("row group {i} claims {} rows in {} bytes", g.rows, g.length));
            }
            if self.checksummed && g.rows > 0 && g.pieces.is_empty() {
                return Err(format!("row group {i} lacks its checksums"));
            }
            rows = rows.checked_add(g.rows).ok_or("rows overflow")?;
            validate_pieces(g).map_err(|problem| format!("row group {i}: {problem}"))?;
        }
        if rows != shard.rows { Err(format!("row groups hold {rows} rows, the shard {}", shard.rows)) } else { Ok(()) }
    }

    fn hash(&self) -> String {
        let mut h = Xxh3::new();
        let mut word = |w: u64| h.update(&w.to_le_bytes());
        word(u64::from(self.version));
        word(self.width as u64);
        word(self.dtype as u64);
        word(u64::from(self.checksummed));
        for shard in &self.shards {
            word(xxh3_64(shard.path.as_bytes()));
            word(shard.size);
            for g in &shard.row_groups {
                word(g.rows);
                word(g.offset);
                word(g.length);
                if self.checksummed {
                    let number = |p: &Piece| xxh3_64(p.checksum.as_bytes()) ^ p.rows ^ p.bytes.rotate_left(32);
                    g.pieces.iter().for_each(|piece| word(number(piece)));
                }
            }
        }
        format!("{:032x}", h.digest128())
    }
}

fn validate_pieces(g: &RowGroup) -> std::result::Result<(), String> {
    if g.pieces.is_empty() {
        return Ok(());
    }
    let (mut rows, mut bytes) = (0u64, 0u64);
    for piece in &g.pieces {
        rows = rows.checked_add(piece.rows).ok_or("rows of the pieces overflow")?;
        bytes = bytes.checked_add(piece.bytes).ok_or("bytes of the pieces overflow")?;
        if parse_sum(&piece.checksum).is_none() {
            return Err(format!("checksum {:?} is not 16 hex digits", piece.checksum));
        }
    }
    if rows != g.rows || bytes != g.length {
        return Err(format!("pieces hold {rows} rows in {bytes} bytes, the group {} in {}", g.rows, g.length));
    }
    Ok(())
}

/// Reads a checksum.
pub(crate) fn parse_sum(hex: &str) -> Option<u64> {
    if hex.len() == 16 { u64::from_str_radix(hex, 16).ok() } else { None }
}

/// Why a path may not appear in a manifest: it must stay inside the manifest's folder. Any other name that a file may have is fine.
fn bad_path(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        Some("is empty")
    } else if path.starts_with('/') {
        Some("is absolute: shards lie under the manifest's folder")
    } else if path.contains("://") {
        Some("is a URL: shards lie under the manifest's folder")
    } else if path.split('/').any(|part| part == "..") {
        Some("leaves the manifest's folder")
    } else if path.split('/').any(|part| part.is_empty() || part == ".") {
        Some("is not in its plain form")
    } else {
        None
    }
}
