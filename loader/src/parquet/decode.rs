//! From the bytes of a column chunk to rows: verified first, then found in place, or decoded by the arrow reader.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray};
use arrow::compute::concat;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_schema};
use parquet::basic::{Compression, Type as PhysicalType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};
use xxhash_rust::xxh3::xxh3_64;

use crate::Piece;
use crate::dataset::manifest;
use crate::error::Flaw;
use crate::parquet::chunks;
use crate::parquet::column::Column;
use crate::parquet::footer::{Footer, Layout};
use crate::parquet::inflate;
use crate::parquet::metadata::{NULLS, guarded};
use crate::parquet::pages::{self, Run};
use crate::stream::pool::Pooled;

type Outcome<T> = std::result::Result<T, Flaw>;

/// Bytes of a piece of the manifest at least: what can be fetched and verified alone. Below 4 MiB, so that a page of about
/// 4 MiB is one piece and not half of one.
const PIECE: u64 = 3 << 20;

/// What to do about values of another type.
const AS_LISTS: &str = "write rows as FixedSizeBinary or as lists of float16 or float32";

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
    pieces.iter().all(|piece| {
        let Some((bytes, tail)) = rest.split_at_checked(piece.bytes as usize) else { return false };
        rest = tail;
        manifest::parse_sum(&piece.checksum) == Some(xxh3_64(bytes))
    })
}

/// The pieces of a whole chunk: runs of pages where pages are rows (`runs` with the bytes of a row), plain cuts otherwise.
pub(crate) fn pieces(chunk: &[u8], rows: u64, runs: Option<(&[Run], usize)>) -> Vec<Piece> {
    /// Where a piece ends in the chunk, and the rows that begin in it.
    struct Cut {
        rows: u64,
        end: usize,
    }
    let mut cuts: Vec<Cut> = Vec::new();
    if let Some((runs, row_bytes)) = runs {
        let (mut pending, mut start) = (0, 0);
        for (i, r) in runs.iter().enumerate() {
            pending += r.rows as u64;
            // A page's header lies before its rows, so a piece ends where its last page's rows end.
            let end = if i + 1 == runs.len() { chunk.len() } else { r.at + r.rows * row_bytes };
            if (end - start) as u64 >= PIECE || i + 1 == runs.len() {
                cuts.push(Cut { rows: pending, end });
                (pending, start) = (0, end);
            }
        }
    } else {
        let count = chunk.len().div_ceil(PIECE as usize);
        let cut = |i: usize| Cut { rows: if i == 1 { rows } else { 0 }, end: (i * PIECE as usize).min(chunk.len()) };
        cuts = (1..=count).map(cut).collect();
    }
    let mut start = 0;
    let piece = |Cut { rows, end }| {
        let bytes = &chunk[start..end];
        start = end;
        Piece { rows, bytes: bytes.len() as u64, checksum: format!("{:016x}", xxh3_64(bytes)) }
    };
    cuts.into_iter().map(piece).collect()
}

/// Lengths of the lists that lie around rows, for each level of them from the outermost on. What has one value a row must have the
/// same.
pub(crate) type Outer = Vec<Vec<u32>>;

/// A finite number that is infinite as f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beyond {
    /// The row that holds it.
    pub(crate) row: usize,
    pub(crate) number: f64,
}

/// The rows of a row group.
pub(crate) struct Decoded {
    /// What the runs point into.
    pub(crate) buffer: Buffer,
    pub(crate) runs: Vec<Run>,
    pub(crate) outer: Outer,
    /// The first number that f32 does not hold.
    pub(crate) beyond: Option<Beyond>,
}

/// Finds or decodes the rows of a whole row group's chunk, which has so many.
pub(crate) fn whole_group(
    footer: &Footer,
    group: usize,
    chunk: Buffer,
    rows: usize,
    row_bytes: usize,
) -> Outcome<Decoded> {
    let found = |buffer, runs| Decoded { buffer, runs, outer: Outer::new(), beyond: None };
    match footer.layout {
        Layout::Raw => {
            if let Ok(runs) = pages::raw_runs(&chunk, rows, row_bytes) {
                return Ok(found(chunk, runs));
            }
        }
        Layout::Levels(levels) => {
            if let Some(runs) = pages::level_runs(&chunk, rows, row_bytes, levels)? {
                return Ok(found(chunk, runs));
            }
        }
        Layout::General => {}
    }
    let Sink { out, outer, beyond, .. } = general(footer, group, chunk, rows, row_bytes)?;
    let runs = vec![Run { first_row: 0, rows, at: 0 }];
    Ok(Decoded { buffer: Buffer::Shared(out.into()), runs, outer, beyond })
}

/// The arrow reader on one column chunk in memory.
fn general(footer: &Footer, group: usize, chunk: Buffer, rows: usize, row_bytes: usize) -> Outcome<Sink> {
    let column = footer.activations()?;
    let codec = footer.metadata.row_group(group).column(column.leaf).compression();
    let limit = (rows as u64).saturating_mul(2 * row_bytes as u64 + 16) + MORE;
    let held = check_pages(&chunk, codec, limit, rows as u64)?;
    let stored_bytes = row_bytes / column.dtype.size() * column.stored_size();
    let mut sink = Sink::new(row_bytes, stored_bytes, column.outer);
    // Sizes are the file's word: they may not end the process. What a dictionary repeats beyond the pages' bytes grows as it comes.
    let reserved = sink.out.try_reserve_exact(held.min(rows.saturating_mul(row_bytes)));
    reserved.map_err(|e| Flaw::of(format!("{rows} rows are declared, more than memory can hold"), e))?;
    let batch = records(footer, group, rows, 1024);
    each_batch(footer, column.leaf, group, chunk, batch, |array| sink.append(array).map(ControlFlow::Continue))?;
    if sink.out.len() != rows * row_bytes {
        return Err(format!("damaged: {} rows where {rows} were declared", sink.out.len() / row_bytes).into());
    }
    Ok(sink)
}

/// Records of a group that hold about so many rows.
pub(super) fn records(footer: &Footer, group: usize, rows: usize, wanted: usize) -> usize {
    let records = footer.metadata.row_group(group).num_rows() as usize;
    (wanted as u64 * records as u64 / (rows as u64).max(1)).clamp(1, wanted as u64) as usize
}

/// Bytes that pages may hold besides what rows take: a dictionary.
pub(super) const MORE: u64 = 16 << 20;

/// What the footer and the pages declare is allocated: it must be possible for the bytes that are there. Pages may hold `limit`
/// bytes, and need `least` values. Returns the bytes that the data pages hold uncompressed.
pub(super) fn check_pages(chunk: &[u8], codec: Compression, limit: u64, least: u64) -> Outcome<usize> {
    let pages = pages::scan(chunk, limit).map_err(|e| format!("damaged: {e}"))?;
    // The most that a codec makes of a byte: zstd's is a block of 128 KiB that repeats one byte, in four; brotli's a copy of
    // 16 MiB, in as many; deflate's 258 bytes in two bits.
    let ratio = match codec {
        Compression::UNCOMPRESSED => 1,
        Compression::ZSTD(_) => 1 << 15,
        Compression::BROTLI(_) => 1 << 22,
        Compression::GZIP(_) => 1032,
        _ => 255,
    };
    if pages.iter().any(|p| p.uncompressed as u64 > (p.end - p.data) as u64 * ratio + 64) {
        return Err("damaged: a page declares more data than its bytes can hold".into());
    }
    if pages.iter().any(|p| inflate::is_longer(p, &chunk[p.data..p.end], codec)) {
        return Err("damaged: a page holds more than its header says".into());
    }
    let data = || pages.iter().filter(|p| !p.is_dictionary());
    let values: u64 = data().map(|p| p.values as u64).sum();
    if values > limit {
        return Err("damaged: pages declare more values than the rows can have".into());
    }
    // A list that is null or empty counts as one value too.
    if values < least {
        return Err(format!("damaged: {least} rows are declared, and {values} values in the pages").into());
    }
    Ok(data().map(|p| p.uncompressed as usize).sum())
}

/// The rows of a row group beside which a column of integers lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside<'a> {
    pub(crate) rows: usize,
    /// The lists around them, where these are known.
    pub(crate) outer: Option<&'a Outer>,
}

/// A column of integers of a row group, one for each row, in lists as long as those around the rows, where these are known. What is
/// greater than an i64 becomes the greatest.
pub(crate) fn int_column(
    footer: &Footer,
    leaf: usize,
    group: usize,
    chunk: Bytes,
    Beside { rows, outer }: Beside<'_>,
) -> Outcome<Vec<i64>> {
    let chunk = Buffer::Shared(chunk);
    let codec = footer.metadata.row_group(group).column(leaf).compression();
    check_pages(&chunk, codec, rows as u64 * 32 + MORE, rows as u64)?;
    let (mut out, mut lengths) = (Vec::new(), vec![Vec::new(); footer.activations()?.outer]);
    each_batch(footer, leaf, group, chunk, records(footer, group, rows, 8192), |array| {
        append_integers(&inside(array, &mut lengths)?, &mut out)?;
        Ok(ControlFlow::Continue(()))
    })?;
    for (lengths, of_rows) in lengths.iter().zip(outer.into_iter().flatten()) {
        if lengths.len() != of_rows.len() {
            return Err(format!("{} lists, and {} of activations", lengths.len(), of_rows.len()).into());
        }
        if let Some(i) = lengths.iter().zip(of_rows).position(|(a, b)| a != b) {
            return Err(format!("list {i} has {} values, and {} rows of activations", lengths[i], of_rows[i]).into());
        }
    }
    if out.len() != rows { Err(format!("{} values for {rows} rows", out.len()).into()) } else { Ok(out) }
}

/// Bytes of the texts of a row group at most: a column that holds more is no label of its rows.
const MOST_TEXT: u64 = 256 << 20;

/// A column of one value a record, each of which is a row, for the `rows` of a row group. Values may be absent.
pub(crate) fn scalar_column(
    footer: &Footer,
    leaf: usize,
    group: usize,
    chunk: Bytes,
    rows: usize,
) -> Outcome<ArrayRef> {
    let chunk = Buffer::Shared(chunk);
    let column = footer.metadata.row_group(group).column(leaf);
    let limit = match column.column_type() {
        PhysicalType::BYTE_ARRAY => MOST_TEXT,
        _ => rows as u64 * 32 + MORE,
    };
    check_pages(&chunk, column.compression(), limit, rows as u64)?;
    let (mut arrays, mut bytes) = (Vec::new(), 0);
    each_batch(footer, leaf, group, chunk, 8192, |array| {
        // What a dictionary repeats is more than its pages hold.
        bytes += array.get_array_memory_size() as u64;
        if bytes > 2 * limit {
            return Err(format!("its values take more than {} MiB in a row group", (2 * limit) >> 20).into());
        }
        arrays.push(array);
        Ok(ControlFlow::Continue(()))
    })?;
    let parts: Vec<&dyn Array> = arrays.iter().map(|array| &**array).collect();
    let whole = concat(&parts).map_err(|e| Flaw::of(e.to_string(), e))?;
    if whole.len() != rows { Err(format!("{} values for {rows} rows", whole.len()).into()) } else { Ok(whole) }
}

/// Integers as an array.
pub(crate) fn i64_array(values: Vec<i64>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

/// The types of the columns at the top of a file, as they are read.
pub(crate) fn arrow_fields(footer: &Footer) -> HashMap<String, DataType> {
    let schema = guarded(|| {
        let schema = footer.metadata.file_metadata().schema_descr();
        parquet_to_arrow_schema(schema, None).map_err(|e| Flaw::of(e.to_string(), e))
    });
    let fields = schema.map(|schema| schema.fields().clone()).unwrap_or_default();
    fields.iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
}

fn append_integers(values: &ArrayRef, out: &mut Vec<i64>) -> Outcome<()> {
    fn widen<T: ArrowPrimitiveType<Native: TryInto<i64>>>(values: &ArrayRef, out: &mut Vec<i64>) {
        out.extend(values.as_primitive::<T>().values().iter().map(|&n| n.try_into().unwrap_or(i64::MAX)));
    }
    match values.data_type() {
        DataType::Int8 => widen::<Int8Type>(values, out),
        DataType::Int16 => widen::<Int16Type>(values, out),
        DataType::Int32 => widen::<Int32Type>(values, out),
        DataType::Int64 => widen::<Int64Type>(values, out),
        DataType::UInt8 => widen::<UInt8Type>(values, out),
        DataType::UInt16 => widen::<UInt16Type>(values, out),
        DataType::UInt32 => widen::<UInt32Type>(values, out),
        DataType::UInt64 => widen::<UInt64Type>(values, out),
        other => return Err(format!("is {other}: integers are needed").into()),
    }
    Ok(())
}

/// The length of the first list that is a row, in the first pages of a chunk; `None` if there is no list.
pub(crate) fn first_list(footer: &Footer, group: usize, pages: Bytes) -> Outcome<Option<usize>> {
    let mut first = None;
    each_row_length(footer, group, pages, 1, |length| {
        first = Some(length);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(first)
}

/// The rows in the lists of a whole chunk, each of which has this width.
pub(crate) fn count_rows(footer: &Footer, group: usize, chunk: Bytes, width: usize) -> Outcome<u64> {
    let mut rows = 0;
    each_row_length(footer, group, chunk, 16, |length| {
        rows += 1;
        if length == width { Ok(ControlFlow::Continue(())) } else { Err(ragged(width, length)) }
    })?;
    Ok(rows)
}

fn ragged(one: impl Display, another: impl Display) -> Flaw {
    format!("lists of {one} and of {another} values: every row needs the same width").into()
}

/// Calls `take` with the length of each row inside nested lists.
fn each_row_length(
    footer: &Footer,
    group: usize,
    chunk: Bytes,
    batch: usize,
    mut take: impl FnMut(usize) -> Outcome<ControlFlow<()>>,
) -> Outcome<()> {
    let column = footer.activations()?;
    let metadata = footer.metadata.row_group(group).column(column.leaf);
    let chunk = Buffer::Shared(chunk);
    let limit = (metadata.num_values() as u64).saturating_mul(2 * row_size(footer, column)? + 16) + MORE;
    check_pages(&chunk, metadata.compression(), limit, 0)?;
    let mut outer = vec![Vec::new(); column.outer];
    each_batch(footer, column.leaf, group, chunk, batch, |array| {
        outer.iter_mut().for_each(Vec::clear);
        let rows = inside(array, &mut outer)?;
        let lengths: Vec<usize> = match rows.data_type() {
            DataType::List(_) => lengths(rows.as_list()).map(|length| length as usize).collect(),
            _ => vec![footer.width.unwrap_or_default(); rows.len()],
        };
        for length in lengths {
            if take(length)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Bytes of what a value of a column takes at least: of a number, or of a row in FixedSizeBinary.
fn row_size(footer: &Footer, column: &Column) -> Outcome<u64> {
    let length = footer.metadata.file_metadata().schema_descr().column(column.leaf).type_length();
    Ok(u64::try_from(length).unwrap_or(0).max(column.stored_size() as u64))
}

/// Calls `take` with batches of so many records of a chunk, until it breaks.
pub(super) fn each_batch(
    footer: &Footer,
    leaf: usize,
    group: usize,
    chunk: Buffer,
    batch: usize,
    mut take: impl FnMut(ArrayRef) -> Outcome<ControlFlow<()>>,
) -> Outcome<()> {
    let start = chunks::place(footer.metadata.row_group(group).column(leaf)).offset;
    let bytes = match chunk {
        Buffer::Shared(b) => b,
        Buffer::Pooled(b) => Bytes::from_owner(b),
    };
    guarded(|| {
        // Without the embedded arrow schema: it is one more thing that can lie, and Parquet's own types say enough.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata =
            ArrowReaderMetadata::try_new(footer.metadata.clone(), options).map_err(|e| Flaw::of(e.to_string(), e))?;
        let mask = ProjectionMask::leaves(footer.metadata.file_metadata().schema_descr(), [leaf]);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(Region { start, bytes }, metadata)
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(batch)
            .build()
            .map_err(broken)?;
        for batch in reader {
            let batch = batch.map_err(broken)?;
            if take(batch.column(0).clone())?.is_break() {
                break;
            }
        }
        Ok(())
    })
}

/// What lies inside structs of one field and, for as many levels as `outer` has, lists, whose lengths it takes down: an array of
/// one element for each row.
pub(super) fn inside(mut array: ArrayRef, outer: &mut [Vec<u32>]) -> Outcome<ArrayRef> {
    let mut levels = outer.iter_mut();
    loop {
        if array.null_count() > 0 {
            return Err(NULLS.into());
        }
        array = match array.data_type() {
            DataType::Struct(fields) if fields.len() == 1 => array.as_struct().column(0).clone(),
            DataType::List(_) => {
                let Some(level) = levels.next() else { return Ok(array) };
                let list = array.as_list::<i32>();
                level.extend(lengths(list));
                elements(list)
            }
            _ => return Ok(array),
        };
    }
}

/// What a reader could not make of a chunk. What it does not know is no damage, and comes the same again.
pub(super) fn broken(e: impl std::error::Error + Send + Sync + 'static) -> Flaw {
    let text = match e.to_string() {
        text if text.contains("NYI") => format!("cannot be read ({text}): write the file with another encoding"),
        text => format!("damaged: {text}"),
    };
    Flaw::of(text, e)
}

fn lengths(list: &ListArray) -> impl Iterator<Item = u32> + '_ {
    list.value_offsets().windows(2).map(|w| (w[1] - w[0]) as u32)
}

/// What all lists hold, one after the other.
fn elements(list: &ListArray) -> ArrayRef {
    let offsets = list.value_offsets();
    let (first, last) = (offsets[0] as usize, offsets[list.len()] as usize);
    list.values().slice(first, last - first)
}

/// Rows as they are handed over.
pub(super) struct Sink {
    row_bytes: usize,
    /// Bytes of a row in the file.
    stored_bytes: usize,
    pub(super) out: Vec<u8>,
    pub(super) outer: Outer,
    pub(super) beyond: Option<Beyond>,
}

impl Sink {
    /// For rows of so many bytes here and in the file, inside so many lists.
    pub(super) fn new(row_bytes: usize, stored_bytes: usize, outer: usize) -> Self {
        Sink { row_bytes, stored_bytes, out: Vec::new(), outer: vec![Vec::new(); outer], beyond: None }
    }

    /// Takes all rows away.
    pub(super) fn clear(&mut self) {
        self.out.clear();
        self.outer.iter_mut().for_each(Vec::clear);
    }

    /// Appends an array of records.
    pub(super) fn append(&mut self, array: ArrayRef) -> Outcome<()> {
        let rows = inside(array, &mut self.outer)?;
        match rows.data_type() {
            DataType::FixedSizeBinary(n) if *n as usize == self.stored_bytes => {
                let a = rows.as_fixed_size_binary();
                let bytes = &a.value_data()[..a.len() * self.stored_bytes];
                if self.stored_bytes == self.row_bytes {
                    self.out.extend_from_slice(bytes);
                } else {
                    self.narrow(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)));
                }
                Ok(())
            }
            DataType::List(_) => {
                let list = rows.as_list::<i32>();
                let width = lengths(list).try_fold(None, |width, length| match width {
                    Some(width) if width != length => Err(ragged(width, length)),
                    _ => Ok(Some(length)),
                })?;
                let values = inside(elements(list), &mut [])?;
                let before = self.out.len();
                self.append_numbers(&values)?;
                match width {
                    Some(width) if (self.out.len() - before) != list.len() * self.row_bytes => {
                        Err(format!("a list of {width} values: another width").into())
                    }
                    _ => Ok(()),
                }
            }
            other => Err(format!("cannot read activations of type {other}: {AS_LISTS}").into()),
        }
    }

    fn append_numbers(&mut self, values: &ArrayRef) -> Outcome<()> {
        match values.data_type() {
            DataType::Float16 => {
                self.out.extend_from_slice(bytemuck::cast_slice(values.as_primitive::<Float16Type>().values()));
            }
            DataType::Float32 => {
                self.out.extend_from_slice(bytemuck::cast_slice(values.as_primitive::<Float32Type>().values()));
            }
            DataType::Float64 => self.narrow(values.as_primitive::<Float64Type>().values().iter().copied()),
            other => return Err(format!("cannot read numbers of type {other}: {AS_LISTS}").into()),
        }
        Ok(())
    }

    /// Appends numbers as f32, to the nearest.
    fn narrow(&mut self, numbers: impl Iterator<Item = f64>) {
        for number in numbers {
            let narrow = number as f32;
            if narrow.is_infinite() && number.is_finite() && self.beyond.is_none() {
                self.beyond = Some(Beyond { row: self.out.len() / self.row_bytes, number });
            }
            self.out.extend_from_slice(&narrow.to_le_bytes());
        }
    }
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
    use std::io::Read as _;

    use flate2::read::GzEncoder;

    use super::*;
    use crate::parquet::thrift::integer;

    /// A v1 data page as Thrift writes it: PLAIN, with this body.
    fn page(values: u64, uncompressed: u64, body: &[u8]) -> Vec<u8> {
        let fields = [integer(0), integer(uncompressed), integer(body.len() as u64)].map(|n| [vec![0x15], n].concat());
        let data = [vec![0x2c, 0x15], integer(values), vec![0x15, 0, 0x15, 0x06, 0x15, 0x06, 0]].concat();
        [&fields.concat(), &data, &[0][..], body].concat()
    }

    #[test]
    fn pages_that_declare_the_impossible_are_refused() {
        let check = |page: &[u8], codec, rows: u64| check_pages(page, codec, rows * 216 + MORE, rows);
        let says = |outcome: Outcome<usize>, text: &str| assert!(outcome.unwrap_err().to_string().contains(text));
        let (zstd, body) = (Compression::ZSTD(parquet::basic::ZstdLevel::default()), &[7; 1000]);
        assert_eq!(check(&page(10, 1000, body), Compression::UNCOMPRESSED, 10).unwrap(), 1000);
        assert_eq!(check(&page(10, 1000, &[7; 60]), Compression::SNAPPY, 10).unwrap(), 1000);
        says(check(&page(10, 1000, body), Compression::UNCOMPRESSED, 11), "11 rows are declared, and 10 values");
        let (rows, lie) = (1 << 30, 1 << 30);
        says(check(&page(rows, lie, body), Compression::UNCOMPRESSED, 1 << 30), "more data than its bytes can hold");
        says(check(&page(rows, lie, body), Compression::LZ4_RAW, 1 << 30), "more data than its bytes can hold");
        says(check(&page(rows, lie, body), zstd, 1 << 30), "more data than its bytes can hold");
        let held = check(&page(rows, 1 << 20, body), zstd, 1 << 30).unwrap();
        assert_eq!(held, 1 << 20, "no more than this is reserved");
        let (gzip, mut zeros) = (Compression::GZIP(Default::default()), Vec::new());
        GzEncoder::new(&[0; 1000][..], Default::default()).read_to_end(&mut zeros).unwrap();
        assert_eq!(check(&page(10, 1000, &zeros), gzip, 10).unwrap(), 1000);
        says(check(&page(10, 999, &zeros), gzip, 10), "more than its header says");
    }
}
