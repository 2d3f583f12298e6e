//! From the bytes of a column chunk to rows: verified first, then found in place, or decoded by the arrow reader.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float16Type, Float32Type};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};
use xxhash_rust::xxh3::xxh3_64;

use crate::footer::{Footer, Layout, guarded};
use crate::pages::{self, Run};
use crate::pool::Pooled;
use crate::{Piece, manifest};

type Outcome<T> = std::result::Result<T, String>;

/// Bytes of a piece of the manifest at least: what can be fetched and verified alone. Below 4 MiB, so that a page of about
/// 4 MiB is one piece and not half of one.
const PIECE: u64 = 3 << 20;

/// Said of rows that are absent or lack a number: nothing can be trained on them.
pub(crate) const NULLS: &str = "null values: every row needs all its numbers: leave such rows out when writing";

/// Bytes that rows lie in.
#[derive(Debug)]
pub(crate) enum Buffer {
    Pooled(Pooled),
    Shared(Bytes),
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Buffer::Pooled(b) => b,
            Buffer::Shared(b) => b,
        }
    }
}

/// Whether pieces fit their checksums; `bytes` begins with the first of them.
pub(crate) fn verify(bytes: &[u8], pieces: &[Piece]) -> bool {
    let mut rest = bytes;
    pieces.iter().all(|Piece(_, length, sum)| {
        let Some((piece, tail)) = rest.split_at_checked(*length as usize) else { return false };
        rest = tail;
        manifest::parse_sum(sum) == Some(xxh3_64(piece))
    })
}

/// The pieces of a whole chunk: runs of pages where pages are rows (`runs` with the bytes of a row), plain cuts otherwise.
pub(crate) fn pieces(chunk: &[u8], rows: u64, runs: Option<(&[Run], usize)>) -> Vec<Piece> {
    let mut cuts: Vec<(u64, usize)> = Vec::new();
    if let Some((runs, row_bytes)) = runs {
        let (mut pending, mut start) = (0, 0);
        for (i, r) in runs.iter().enumerate() {
            pending += r.rows as u64;
            // A page's header lies before its rows, so a piece ends where its last page's rows end.
            let end = if i + 1 == runs.len() { chunk.len() } else { r.at + r.rows * row_bytes };
            if (end - start) as u64 >= PIECE || i + 1 == runs.len() {
                cuts.push((pending, end));
                (pending, start) = (0, end);
            }
        }
    } else {
        let n = chunk.len().div_ceil(PIECE as usize);
        cuts = (1..=n).map(|i| (if i == 1 { rows } else { 0 }, (i * PIECE as usize).min(chunk.len()))).collect();
    }
    let mut start = 0;
    let piece = |(rows, end): (u64, usize)| {
        let bytes = &chunk[start..end];
        start = end;
        Piece(rows, bytes.len() as u64, format!("{:016x}", xxh3_64(bytes)))
    };
    cuts.into_iter().map(piece).collect()
}

/// Finds or decodes the rows of a whole row group's chunk. Returns the buffer that the runs point into.
pub(crate) fn whole_group(
    footer: &Footer,
    group: usize,
    chunk: Buffer,
    row_bytes: usize,
) -> Outcome<(Buffer, Vec<Run>)> {
    let rows = footer.metadata.row_group(group).num_rows() as usize;
    match footer.layout {
        Layout::Raw => {
            if let Ok(runs) = pages::raw_runs(&chunk, rows, row_bytes) {
                return Ok((chunk, runs));
            }
        }
        Layout::Levels(levels) => {
            if let Some(runs) = pages::level_runs(&chunk, rows, row_bytes, levels)? {
                return Ok((chunk, runs));
            }
        }
        Layout::General => {}
    }
    let bytes = general(footer, footer.column, group, chunk, row_bytes)?;
    Ok((Buffer::Shared(bytes.into()), vec![Run { first_row: 0, rows, at: 0 }]))
}

/// The arrow reader on one column chunk in memory.
fn general(footer: &Footer, column: usize, group: usize, chunk: Buffer, row_bytes: usize) -> Outcome<Vec<u8>> {
    let rows = footer.metadata.row_group(group).num_rows() as usize;
    let held = check_pages(&chunk, footer.metadata.row_group(group).column(column).compression(), rows, row_bytes)?;
    let mut out = Vec::new();
    // Sizes are the file's word: they may not end the process. What a dictionary repeats beyond the pages' bytes grows as it comes.
    let reserved = out.try_reserve_exact(held.min(rows.saturating_mul(row_bytes)));
    reserved.map_err(|_| format!("{rows} rows are declared, more than memory can hold"))?;
    each_batch(footer, column, group, chunk, 1024, |array| append(&array, row_bytes, &mut out))?;
    if out.len() != rows * row_bytes {
        return Err(format!("damaged: {} rows where {rows} were declared", out.len() / row_bytes));
    }
    Ok(out)
}

/// What the footer and the pages declare is allocated: it must be possible for the bytes that are there. Returns the bytes
/// that the data pages hold uncompressed.
fn check_pages(chunk: &[u8], codec: Compression, rows: usize, row_bytes: usize) -> Outcome<usize> {
    let most = (rows as u64).saturating_mul(2 * row_bytes as u64 + 16) + (16 << 20);
    let pages = pages::scan(chunk, most).map_err(|e| format!("damaged: {e}"))?;
    // The most that a codec makes of a byte; zstd's is a block of 128 KiB that repeats one byte, in four.
    let ratio = match codec {
        Compression::UNCOMPRESSED => 1,
        Compression::ZSTD(_) => 1 << 15,
        _ => 255,
    };
    if pages.iter().any(|p| p.uncompressed as u64 > (p.end - p.data) as u64 * ratio + 64) {
        return Err("damaged: a page declares more data than its bytes can hold".into());
    }
    let data = || pages.iter().filter(|p| p.kind != 2);
    let values: u64 = data().map(|p| p.values as u64).sum();
    if values > most {
        return Err("damaged: pages declare more values than the rows can have".into());
    }
    // A list that is null or empty counts as one value too.
    if values < rows as u64 {
        return Err(format!("damaged: {rows} rows are declared, and {values} values in the pages"));
    }
    Ok(data().map(|p| p.uncompressed as usize).sum())
}

/// An int32 column of a row group.
pub(crate) fn int_column(footer: &Footer, column: usize, group: usize, chunk: Bytes) -> Outcome<Vec<i32>> {
    let rows = footer.metadata.row_group(group).num_rows() as usize;
    let chunk = Buffer::Shared(chunk);
    check_pages(&chunk, footer.metadata.row_group(group).column(column).compression(), rows, 8)?;
    let mut out = Vec::new();
    each_batch(footer, column, group, chunk, 8192, |array| {
        let cast = array.as_primitive_opt::<arrow::datatypes::Int32Type>().ok_or("is not int32")?;
        if cast.null_count() > 0 {
            return Err("null values".into());
        }
        out.extend_from_slice(cast.values());
        Ok(())
    })?;
    if out.len() != rows { Err(format!("{} values for {rows} rows", out.len())) } else { Ok(out) }
}

fn each_batch(
    footer: &Footer,
    column: usize,
    group: usize,
    chunk: Buffer,
    batch: usize,
    mut take: impl FnMut(ArrayRef) -> Outcome<()>,
) -> Outcome<()> {
    let (start, _) = crate::footer::unchecked_range(footer.metadata.row_group(group).column(column));
    let bytes = match chunk {
        Buffer::Shared(b) => b,
        Buffer::Pooled(b) => Bytes::from_owner(b),
    };
    guarded(|| {
        // Without the embedded arrow schema: it is one more thing that can lie, and Parquet's own types say enough.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::try_new(footer.metadata.clone(), options).map_err(|e| e.to_string())?;
        let mask = ProjectionMask::leaves(footer.metadata.file_metadata().schema_descr(), [column]);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(Region { start, bytes }, metadata)
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(batch)
            .build()
            .map_err(|e| format!("damaged: {e}"))?;
        for batch in reader {
            let batch = batch.map_err(|e| format!("damaged: {e}"))?;
            take(batch.column(0).clone())?;
        }
        Ok(())
    })
}

/// Appends the bytes of an array of rows.
fn append(array: &ArrayRef, row_bytes: usize, out: &mut Vec<u8>) -> Outcome<()> {
    if array.null_count() > 0 {
        return Err(NULLS.into());
    }
    match array.data_type() {
        DataType::FixedSizeBinary(n) if *n as usize == row_bytes => {
            let a = array.as_fixed_size_binary();
            out.extend_from_slice(&a.value_data()[..a.len() * row_bytes]);
            Ok(())
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let width = list.value_offsets().windows(2).map(|w| w[1] - w[0]).try_fold(None, |seen, n| match seen {
                Some(m) if m != n => Err(format!("lists of {m} and of {n} values: every row needs the same width")),
                _ => Ok(Some(n)),
            })?;
            let (first, last) = (list.value_offsets()[0] as usize, list.value_offsets()[list.len()] as usize);
            let values = list.values().slice(first, last - first);
            let before = out.len();
            append_numbers(&values, out)?;
            match width {
                Some(n) if (out.len() - before) != list.len() * row_bytes => {
                    Err(format!("a list of {n} values: another width"))
                }
                _ => Ok(()),
            }
        }
        other => Err(format!("cannot read activations of type {other}")),
    }
}

fn append_numbers(values: &ArrayRef, out: &mut Vec<u8>) -> Outcome<()> {
    if values.null_count() > 0 {
        return Err(NULLS.into());
    }
    match values.data_type() {
        DataType::Float16 => out.extend_from_slice(bytemuck::cast_slice(values.as_primitive::<Float16Type>().values())),
        DataType::Float32 => out.extend_from_slice(bytemuck::cast_slice(values.as_primitive::<Float32Type>().values())),
        other => return Err(format!("cannot read numbers of type {other}")),
    }
    Ok(())
}

/// A part of a file in memory.
struct Region {
    start: u64,
    bytes: Bytes,
}

impl Region {
    fn part(&self, start: u64, length: Option<usize>) -> ParquetResult<Bytes> {
        let outside = || ParquetError::EOF("the page lies outside its column chunk".into());
        let from = usize::try_from(start.checked_sub(self.start).ok_or_else(outside)?).map_err(|_| outside())?;
        let to = length.map_or(Some(self.bytes.len()), |n| from.checked_add(n)).ok_or_else(outside)?;
        if from > to || to > self.bytes.len() { Err(outside()) } else { Ok(self.bytes.slice(from..to)) }
    }
}

impl Length for Region {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Region {
    type T = std::io::Cursor<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.part(start, None).map(std::io::Cursor::new)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.part(start, Some(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A v1 data page as Thrift writes it: PLAIN, `bytes` of body.
    fn page(values: u64, uncompressed: u64, bytes: usize) -> Vec<u8> {
        let varint = |n: u64| {
            let mut n = n << 1;
            let mut out = Vec::new();
            while n >= 0x80 {
                out.push(n as u8 | 0x80);
                n >>= 7;
            }
            out.push(n as u8);
            out
        };
        let fields = [varint(0), varint(uncompressed), varint(bytes as u64)].map(|n| [vec![0x15], n].concat()).concat();
        let data = [vec![0x2c, 0x15], varint(values), vec![0x15, 0, 0x15, 0x06, 0x15, 0x06, 0]].concat();
        [fields, data, vec![0], vec![7; bytes]].concat()
    }

    #[test]
    fn pages_that_declare_the_impossible_are_refused() {
        let check = |page: &[u8], codec, rows| check_pages(page, codec, rows, 100);
        let says = |outcome: Outcome<usize>, text: &str| assert!(outcome.unwrap_err().contains(text));
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        assert_eq!(check(&page(10, 1000, 1000), Compression::UNCOMPRESSED, 10), Ok(1000));
        assert_eq!(check(&page(10, 1000, 60), Compression::SNAPPY, 10), Ok(1000));
        says(check(&page(10, 1000, 1000), Compression::UNCOMPRESSED, 11), "11 rows are declared, and 10 values");
        let (rows, lie) = (1 << 30, 1 << 30);
        says(check(&page(rows, lie, 1000), Compression::UNCOMPRESSED, 1 << 30), "more data than its bytes can hold");
        says(check(&page(rows, lie, 1000), Compression::LZ4_RAW, 1 << 30), "more data than its bytes can hold");
        says(check(&page(rows, lie, 1000), zstd, 1 << 30), "more data than its bytes can hold");
        assert_eq!(check(&page(rows, 1 << 20, 1000), zstd, 1 << 30), Ok(1 << 20), "no more than this is reserved");
    }
}
