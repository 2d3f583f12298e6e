//! Loading units: read, verify, decode, and mark the rows that are left out.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path as Key;
use xxhash_rust::xxh3::Xxh3;

use crate::dataset::manifest;
use crate::dataset::tokens;
use crate::error::Flaw;
use crate::parquet::chunks;
use crate::parquet::decode::{self, Buffer, Decoded, Outer};
use crate::parquet::pages;
use crate::store::io;
use crate::store::local;
use crate::store::{Target, get_exact};
use crate::stream::pool::Pool;
use crate::stream::unit::{Extent, FILTERED, Loaded, SKIPPED};
use crate::{Dataset, Error, Help, Piece, Result, RowFilter, RowGroup, SkipList};

/// Bytes of one GET at most.
const GET: u64 = 16 << 20;
/// GETs of one unit at the same time (only row groups without known pieces need several).
const GETS: usize = 4;
/// Bytes that are read and hashed before the next ones are read: stays in the L2 cache.
const BLOCK: usize = 256 << 10;

/// Everything that loading a unit needs. Shared by all threads of a stream.
#[derive(Debug)]
pub(crate) struct Loader {
    pub(crate) dataset: Dataset,
    pub(crate) skip: SkipList,
    pub(crate) filter: RowFilter,
    pub(crate) pool: Arc<Pool>,
    /// Bytes read so far.
    pub(crate) bytes_read: AtomicU64,
}

/// A place to read from.
pub(crate) enum Source {
    Local(std::path::PathBuf),
    Remote { store: Arc<dyn ObjectStore>, key: Key, url: String, etag: Option<String> },
}

impl Loader {
    /// Looks at the columns that the filter needs, in all shards.
    pub(crate) fn new(dataset: &Dataset, skip: SkipList, filter: RowFilter) -> Result<Self> {
        dataset.check_columns(&filter, &skip)?;
        Ok(Loader { dataset: dataset.clone(), skip, filter, pool: Arc::default(), bytes_read: AtomicU64::new(0) })
    }

    pub(crate) fn source(&self, shard: u32) -> Result<Source> {
        let (store, key) = self.dataset.source(shard);
        Ok(match store.target(key)? {
            Target::Local(path) => Source::Local(path),
            Target::Remote(remote, path) => {
                let etag = self.dataset.shards()[shard as usize].etag.clone();
                Source::Remote { store: remote, key: path, url: store.url_of(key), etag }
            }
        })
    }

    /// A unit's rows, from wherever they lie. Blocks.
    pub(crate) fn load(&self, extent: &Extent) -> Result<Loaded> {
        if self.is_skipped(extent) {
            return Ok(self.skipped(extent));
        }
        match self.source(extent.shard)? {
            Source::Local(path) => {
                let pieces = self.known_pieces(extent);
                let buffer = self.read_local(&path, extent, &pieces)?;
                self.finish(extent, Buffer::Pooled(buffer), true)
            }
            Source::Remote { store, key, url, etag } => {
                let range = extent.bytes.clone();
                let bytes = io::wait(async move { fetch(&store, &key, range, etag.as_deref(), &url).await })?;
                self.finish(extent, Buffer::Shared(bytes), false)
            }
        }
    }

    pub(crate) fn is_skipped(&self, extent: &Extent) -> bool {
        self.skip.has_row_group(extent.shard, extent.group)
    }

    /// A unit of a row group on the skip list: it is not read.
    pub(crate) fn skipped(&self, extent: &Extent) -> Loaded {
        let n = (extent.rows.end - extent.rows.start) as usize;
        Loaded { buffer: None, runs: Vec::new(), outer: Outer::new(), flags: Some(vec![SKIPPED; n]) }
    }

    /// Verifies (unless that was done while reading) and decodes what was read.
    pub(crate) fn finish(&self, extent: &Extent, buffer: Buffer, verified: bool) -> Result<Loaded> {
        self.bytes_read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let name = || self.dataset.group_name(extent.shard, extent.group);
        let fail = |problem: Flaw| Error::data(name(), problem);
        let known = self.known_pieces(extent);
        if !verified && !decode::verify(&buffer, &known) {
            return Err(self.mismatch(extent));
        }
        let row_bytes = self.dataset.row_bytes();
        let rows = (extent.rows.end - extent.rows.start) as usize;
        let shard = &self.dataset.shards()[extent.shard as usize];
        let raw = shard.raw.then(|| pages::raw_runs(&buffer, rows, row_bytes));
        let decoded = match raw {
            Some(Ok(runs)) => {
                if known.is_empty() {
                    let pieces = decode::pieces(&buffer, rows as u64, Some((&runs, row_bytes)));
                    self.dataset.fill(extent.shard, extent.group, pieces);
                }
                Decoded { buffer, runs, outer: Outer::new(), beyond: None }
            }
            // Part of a group was asked because a manifest called it raw.
            Some(Err(problem)) if !self.is_whole(extent) => return Err(fail(format!("damaged: {problem}").into())),
            _ => {
                let footer = self.dataset.footer(extent.shard)?;
                if footer.column.as_ref().is_some_and(|column| column.is_double) {
                    self.dataset.tell_narrowed();
                }
                let pieces = known.is_empty().then(|| decode::pieces(&buffer, rows as u64, None));
                let decoded =
                    decode::whole_group(&footer, extent.group as usize, buffer, rows, row_bytes).map_err(fail)?;
                if let Some(pieces) = pieces {
                    self.dataset.fill(extent.shard, extent.group, pieces);
                }
                decoded
            }
        };
        if let Some((row, number)) = decoded.beyond {
            self.dataset.tell_beyond(extent.shard, extent.group, row as u64, number);
        }
        let mut loaded = Loaded { buffer: Some(decoded.buffer), runs: decoded.runs, outer: decoded.outer, flags: None };
        loaded.flags = self.flags(extent, &loaded)?;
        Ok(loaded)
    }

    fn is_whole(&self, extent: &Extent) -> bool {
        self.dataset.shards()[extent.shard as usize].row_groups[extent.group as usize].rows == extent.rows.end
            && extent.rows.start == 0
    }

    fn known_pieces(&self, extent: &Extent) -> Vec<Piece> {
        let mut pieces = self.dataset.pieces(extent.shard, extent.group);
        if extent.pieces.is_empty() { pieces } else { pieces.drain(extent.pieces.clone()).collect() }
    }

    /// Bytes that do not fit their checksum. Checksums of the identity came with the data; others were recorded while reading.
    fn mismatch(&self, extent: &Extent) -> Error {
        let location = self.dataset.group_name(extent.shard, extent.group);
        let path = &self.dataset.shards()[extent.shard as usize].path;
        let help = Help::Skip(format!("{path}#{}", extent.group));
        if self.dataset.as_opened().checksummed {
            let problem = "damaged: the checksum differs from the manifest's: fetch or make the file again";
            return Error::data(location, Flaw::from(problem).with(help));
        }
        let problem = "the checksum differs from the one recorded before: bring the earlier file back";
        Error::changed(location, Flaw::from(problem).with(help))
    }

    /// Reads into a buffer of the pool, hashing each block while it is in the cache.
    fn read_local(
        &self,
        path: &std::path::Path,
        extent: &Extent,
        pieces: &[Piece],
    ) -> Result<crate::stream::pool::Pooled> {
        let file = local::open(path)?;
        let shard = &self.dataset.shards()[extent.shard as usize];
        local::check_unchanged(&file, path, shard.size, shard.etag.as_deref())?;
        let mut buffer = self.pool.take((extent.bytes.end - extent.bytes.start) as usize);
        let mut at = 0usize;
        let read = |part: &mut [u8], at: &mut usize| -> Result<()> {
            local::read_at(&file, path, extent.bytes.start + *at as u64, part)?;
            *at += part.len();
            Ok(())
        };
        for Piece(_, length, sum) in pieces {
            let end = (at + *length as usize).min(buffer.len());
            let mut hash = Xxh3::new();
            while at < end {
                let to = (at + BLOCK).min(end);
                let part = &mut buffer[at..to];
                read(part, &mut at)?;
                hash.update(part);
            }
            if manifest::parse_sum(sum) != Some(hash.digest()) {
                return Err(self.mismatch(extent));
            }
        }
        let rest = at;
        read(&mut buffer[rest..], &mut at)?;
        Ok(buffer)
    }

    /// For each row whether and why it is left out; `None` if all are kept.
    fn flags(&self, extent: &Extent, loaded: &Loaded) -> Result<Option<Vec<u8>>> {
        let shard = &self.dataset.shards()[extent.shard as usize];
        let group_start: u64 = shard.row_groups[..extent.group as usize].iter().map(|g| g.rows).sum();
        let first = group_start + extent.rows.start;
        let n = (extent.rows.end - extent.rows.start) as usize;
        let mut flags = vec![0u8; n];
        if self.filter.needs_norm() {
            self.flag_norms(loaded, &mut flags);
        }
        for (name, unwanted) in [("pos", &self.filter.positions), ("token_id", &self.filter.token_ids)] {
            if !unwanted.is_empty() {
                let values = self.int_values(extent, name, Some(loaded))?;
                for (flag, value) in flags.iter_mut().zip(&values[extent.rows.start as usize..]) {
                    let is_unwanted = unwanted.iter().any(|&n| i64::from(n) == *value);
                    *flag = if is_unwanted { FILTERED } else { *flag };
                }
            }
        }
        for row in self.skip.rows_in(extent.shard, first..first + n as u64) {
            flags[(row - first) as usize] = SKIPPED;
        }
        Ok(flags.iter().any(|&f| f != 0).then_some(flags))
    }

    fn flag_norms(&self, loaded: &Loaded, flags: &mut [u8]) {
        let (row_bytes, dtype) = (self.dataset.row_bytes(), self.dataset.dtype());
        let mut row_f32 = vec![0f32; self.dataset.width()];
        for (row, flag) in flags.iter_mut().enumerate() {
            dtype.to_f32(loaded.rows(row, 1, row_bytes), &mut row_f32);
            // In f64, where squares of f32 values neither overflow nor vanish.
            let norm = row_f32.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            if !self.filter.keeps_norm(norm) {
                *flag = FILTERED;
            }
        }
    }

    /// The integers of a column beside the rows of a unit's whole row group. Lists must be as long as those of the rows where
    /// they were loaded.
    pub(crate) fn int_values(&self, extent: &Extent, name: &str, rows: Option<&Loaded>) -> Result<Vec<i64>> {
        let footer = self.dataset.footer(extent.shard)?;
        let (store, key) = self.dataset.source(extent.shard);
        let fail = |problem: Flaw| Error::data(self.dataset.group_name(extent.shard, extent.group), problem);
        let group = extent.group as usize;
        // That it is there was seen when the data were opened.
        let leaf =
            tokens::leaf(&footer, name).map_err(fail)?.ok_or_else(|| fail(format!("has no column {name}").into()))?;
        let (offset, length) = chunks::range(footer.metadata.row_group(group).column(leaf));
        let bytes = store.get_range(key, offset..offset + length)?;
        let n = self.dataset.shards()[extent.shard as usize].row_groups[group].rows as usize;
        decode::int_column(&footer, leaf, group, bytes, (n, rows.map(|rows| &rows.outer)))
            .map_err(|flaw| fail(flaw.said(|text| format!("column {name}: {text}"))))
    }
}

/// Fetches a range, in several GETs if it is long.
pub(crate) async fn fetch(
    store: &Arc<dyn ObjectStore>,
    key: &Key,
    range: Range<u64>,
    etag: Option<&str>,
    url: &str,
) -> Result<Bytes> {
    if range.end - range.start <= GET {
        return get_exact(&**store, key, range, etag, url).await;
    }
    let starts: Vec<u64> = (range.start..range.end).step_by(GET as usize).collect();
    let parts: Vec<Bytes> = futures::stream::iter(starts)
        .map(|s| get_exact(&**store, key, s..(s + GET).min(range.end), etag, url))
        .buffered(GETS)
        .try_collect()
        .await?;
    let mut all = Vec::with_capacity((range.end - range.start) as usize);
    parts.iter().for_each(|p| all.extend_from_slice(p));
    Ok(all.into())
}

/// Cuts a row group into units of about `target` bytes, where its pieces are known and hold whole rows.
pub(crate) fn extents(shard: u32, group: u32, g: &RowGroup, raw: bool, target: u64) -> Vec<Extent> {
    let whole = |pieces| Extent { shard, group, rows: 0..g.rows, bytes: g.offset..g.offset + g.length, pieces };
    // Where the first piece has all rows, the chunk was cut anywhere, whatever its footer promised.
    if !raw || g.pieces.len() < 2 || g.pieces[0].0 == g.rows {
        return vec![whole(0..0)];
    }
    let mut units = Vec::new();
    let (mut rows, mut bytes, mut first) = (0..0, g.offset..g.offset, 0);
    for (i, Piece(piece_rows, length, _)) in g.pieces.iter().enumerate() {
        rows.end += piece_rows;
        bytes.end += length;
        let last = i + 1 == g.pieces.len();
        // A piece a little short of the target counts as enough: pages of 4 MiB hold whole rows.
        let full = bytes.end - bytes.start >= target / 4 * 3
            || g.pieces.get(i + 1).is_some_and(|p| bytes.end + p.1 - bytes.start > 2 * target);
        if last || full {
            units.push(Extent { shard, group, rows: rows.clone(), bytes: bytes.clone(), pieces: first..i + 1 });
            (rows.start, bytes.start, first) = (rows.end, bytes.end, i + 1);
        }
    }
    units.retain(|u| u.rows.end > u.rows.start);
    units
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    #[test]
    fn ranges_longer_than_a_request_are_whole() {
        let bytes: Vec<u8> = (0..5 * GET as usize + 8).map(|i| (i / 7 + i / (1 << 20)) as u8).collect();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let key = Key::from("x");
        io::wait({
            let (store, key, payload) = (store.clone(), key.clone(), PutPayload::from(bytes.clone()));
            async move { store.put(&key, payload).await.map(drop).map_err(|e| crate::store::read_error("x", e)) }
        })
        .unwrap();
        for (start, length) in
            [(3, 1), (3, GET - 1), (3, GET), (3, GET + 1), (3, 2 * GET), (0, 4 * GET + 1), (7, 5 * GET + 1)]
        {
            let (store, key) = (store.clone(), key.clone());
            let got = io::wait(async move { fetch(&store, &key, start..start + length, None, "x").await }).unwrap();
            assert!(got == bytes[start as usize..(start + length) as usize], "{length} bytes from {start}");
        }
    }

    /// Pieces are put together to three quarters of the target, and no unit is more than twice it.
    #[test]
    fn units_are_runs_of_whole_pieces() {
        let cut = |pieces: &[u64]| -> Vec<usize> {
            let piece = |&length: &u64| Piece(length, length, String::new());
            let (rows, pieces) = (pieces.iter().sum(), pieces.iter().map(piece).collect());
            let group = RowGroup { rows, offset: 4, length: rows, pieces };
            let units = extents(0, 0, &group, true, 8);
            // They follow each other in rows, bytes and pieces, from the first to the last.
            let mut ends = (0, 4, 0);
            for unit in &units {
                assert_eq!((unit.rows.start, unit.bytes.start), (ends.0, ends.1));
                assert!(unit.pieces.is_empty() || unit.pieces.start == ends.2);
                ends = (unit.rows.end, unit.bytes.end, unit.pieces.end);
            }
            assert_eq!((ends.0, ends.1), (rows, 4 + rows));
            units.iter().map(|unit| unit.pieces.len()).collect()
        };
        assert_eq!(cut(&[5]), [0], "one piece is the row group");
        assert_eq!(cut(&[3, 3, 3, 3, 3]), [2, 2, 1]);
        assert_eq!(cut(&[3, 2, 3]), [3], "5 of 8 is not enough, the last piece is");
        assert_eq!(cut(&[6, 1]), [1, 1]);
        assert_eq!(cut(&[5, 11]), [2], "twice the target, exactly");
        assert_eq!(cut(&[5, 12]), [1, 1]);
    }
}
