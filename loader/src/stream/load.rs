//! Loading units: read, verify, decode, and mark the rows that are left out.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::dataset::manifest;
use crate::dataset::tokens;
use crate::error::Flaw;
use crate::parquet::chunks::{self, Chunk};
use crate::parquet::decode::{self, Beside, Beyond, Buffer, Decoded, Outer};
use crate::parquet::pages;
use crate::store::io;
use crate::store::local::OpenFile;
use crate::stream::pool::{Pool, Pooled};
use crate::stream::unit::{Extent, FILTERED, Loaded, SKIPPED};
use crate::{Dataset, Error, Help, Piece, Result, RowFilter, RowGroup, SkipList};

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

impl Loader {
    /// Looks at the columns that the filter needs, in all shards.
    pub(crate) fn new(dataset: &Dataset, skip: SkipList, filter: RowFilter) -> Result<Self> {
        dataset.check_columns(&filter, &skip)?;
        Ok(Loader { dataset: dataset.clone(), skip, filter, pool: Arc::default(), bytes_read: AtomicU64::new(0) })
    }

    /// A unit's rows, from wherever they lie. Blocks.
    pub(crate) fn load(&self, extent: &Extent) -> Result<Loaded> {
        if self.is_skipped(extent) {
            return Ok(self.skipped(extent));
        }
        let (store, key) = self.dataset.source(extent.shard);
        let shard = &self.dataset.shards()[extent.shard as usize];
        match store.open_unchanged(key, shard.size, shard.etag.as_deref())? {
            Some(file) => {
                let buffer = self.read_file(&file, extent, &self.known_pieces(extent))?;
                self.finish(extent, Buffer::Pooled(buffer), true)
            }
            None => {
                let bytes = io::wait(store.fetch(key, extent.bytes.clone(), shard.etag.clone())?)?;
                self.finish(extent, Buffer::Shared(bytes), false)
            }
        }
    }

    /// The request for a unit's bytes, where they come over the network and are wanted; what it is answered is for [`Self::finish`].
    /// `None`: the unit is for [`Self::load`].
    pub(crate) fn request(&self, extent: &Extent) -> Option<impl Future<Output = Result<Bytes>> + Send + use<>> {
        let (store, key) = self.dataset.source(extent.shard);
        if store.local_path().is_some() || self.is_skipped(extent) {
            return None;
        }
        let etag = self.dataset.shards()[extent.shard as usize].etag.clone();
        // Loading tells what is wrong with a key.
        store.fetch(key, extent.bytes.clone(), etag).ok()
    }

    pub(crate) fn is_skipped(&self, extent: &Extent) -> bool {
        self.skip.has_row_group(extent.shard, extent.group)
    }

    /// A unit of a row group on the skip list: it is not read.
    pub(crate) fn skipped(&self, extent: &Extent) -> Loaded {
        let flags = Some(vec![SKIPPED; extent.row_count()]);
        Loaded { buffer: None, runs: Vec::new(), outer: Outer::new(), flags }
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
        let rows = extent.row_count();
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
        if let Some(Beyond { row, number }) = decoded.beyond {
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
    fn read_file(&self, file: &OpenFile, extent: &Extent, pieces: &[Piece]) -> Result<Pooled> {
        let mut buffer = self.pool.take((extent.bytes.end - extent.bytes.start) as usize);
        let mut at = 0usize;
        let read = |part: &mut [u8], at: &mut usize| -> Result<()> {
            file.read_at(extent.bytes.start + *at as u64, part)?;
            *at += part.len();
            Ok(())
        };
        for piece in pieces {
            let end = (at + piece.bytes as usize).min(buffer.len());
            let mut hash = Xxh3::new();
            while at < end {
                let to = (at + BLOCK).min(end);
                let part = &mut buffer[at..to];
                read(part, &mut at)?;
                hash.update(part);
            }
            if manifest::parse_sum(&piece.checksum) != Some(hash.digest()) {
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
        let rows = extent.row_count();
        let mut flags = vec![0u8; rows];
        if self.filter.needs_norm() {
            self.flag_norms(loaded, &mut flags);
        }
        for (name, unwanted) in [("pos", &self.filter.positions), ("token_id", &self.filter.token_ids)] {
            if !unwanted.is_empty() {
                let values = self.int_values(extent, name, Some(loaded))?;
                for (flag, value) in flags.iter_mut().zip(&values[extent.rows.start as usize..]) {
                    let is_unwanted = unwanted.iter().any(|&unwanted| i64::from(unwanted) == *value);
                    *flag = if is_unwanted { FILTERED } else { *flag };
                }
            }
        }
        for row in self.skip.rows_in(extent.shard, first..first + rows as u64) {
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
        let Chunk { offset, length } = chunks::place(footer.metadata.row_group(group).column(leaf));
        let bytes = store.get_range(key, offset..offset + length)?;
        let of_group = self.dataset.shards()[extent.shard as usize].row_groups[group].rows as usize;
        let beside = Beside { rows: of_group, outer: rows.map(|rows| &rows.outer) };
        decode::int_column(&footer, leaf, group, bytes, beside)
            .map_err(|flaw| fail(flaw.said(|text| format!("column {name}: {text}"))))
    }
}

/// Cuts a row group into units of about `target` bytes, where its pieces are known and hold whole rows.
pub(crate) fn extents(shard: u32, group: u32, g: &RowGroup, raw: bool, target: u64) -> Vec<Extent> {
    let whole = |pieces| Extent { shard, group, rows: 0..g.rows, bytes: g.offset..g.offset + g.length, pieces };
    // Where the first piece has all rows, the chunk was cut anywhere, whatever its footer promised.
    if !raw || g.pieces.len() < 2 || g.pieces[0].rows == g.rows {
        return vec![whole(0..0)];
    }
    let mut units = Vec::new();
    let (mut rows, mut bytes, mut first) = (0..0, g.offset..g.offset, 0);
    for (i, piece) in g.pieces.iter().enumerate() {
        rows.end += piece.rows;
        bytes.end += piece.bytes;
        let last = i + 1 == g.pieces.len();
        // A piece a little short of the target counts as enough: pages of 4 MiB hold whole rows.
        let full = bytes.end - bytes.start >= target / 4 * 3
            || g.pieces.get(i + 1).is_some_and(|next| bytes.end + next.bytes - bytes.start > 2 * target);
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
    use super::*;

    /// Pieces are put together to three quarters of the target, and no unit is more than twice it.
    #[test]
    fn units_are_runs_of_whole_pieces() {
        let cut = |pieces: &[u64]| -> Vec<usize> {
            let piece = |&length: &u64| Piece { rows: length, bytes: length, checksum: String::new() };
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
