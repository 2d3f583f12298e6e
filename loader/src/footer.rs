//! Parquet footers: read with caps, checked before a general reader sees them, and searched for the activation column.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::basic::{Compression, LogicalType, Type};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::ColumnDescriptor;

use crate::decode::NULLS;
use crate::pages::Levels;
use crate::{Dtype, Error, Result, RowGroup, Store, thrift};

/// Widest rows that are believed.
pub(crate) const MAX_WIDTH: usize = 1 << 20;
/// Most rows of a row group that are believed.
pub(crate) const MAX_GROUP_ROWS: u64 = 1 << 31;
/// Longest footer that is read: 40,000 row groups of four columns.
const MAX_FOOTER: u64 = 32 << 20;
/// Read from a file's end at first: holds nearly every footer.
const TAIL: u64 = 64 << 10;

/// How the activation column is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Pages are rows.
    Raw,
    /// PLAIN and uncompressed, with levels in front of the values.
    Levels(Levels),
    /// Anything else: the arrow reader.
    General,
}

/// A checked footer and its activation column.
#[derive(Debug)]
pub(crate) struct Footer {
    pub(crate) metadata: Arc<ParquetMetaData>,
    /// Leaf index of the activation column.
    pub(crate) column: usize,
    pub(crate) width: usize,
    pub(crate) dtype: Dtype,
    pub(crate) layout: Layout,
    pub(crate) prepared: bool,
    pub(crate) schema: String,
}

impl Footer {
    /// Reads the footer of an object of `size` bytes.
    pub(crate) fn read(store: &Store, key: &str, size: u64, wanted: Option<&str>) -> Result<Self> {
        let name = store.url_of(key);
        if size < 12 {
            return Err(Error::data(name, format!("not a Parquet file: only {size} bytes")));
        }
        let tail = store.get_range(key, size - size.min(TAIL)..size)?;
        let fail = |problem: String| Error::data(name.clone(), problem);
        let end = &tail[tail.len() - 8..];
        if &end[4..] != b"PAR1" {
            return Err(fail("not a Parquet file (or cut off): it does not end in PAR1".into()));
        }
        let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
        if length > MAX_FOOTER || length + 12 > size {
            return Err(fail(format!("damaged: claims a footer of {length} bytes in a file of {size}")));
        }
        let bytes = if length + 8 <= tail.len() as u64 {
            tail.slice(tail.len() - 8 - length as usize..tail.len() - 8)
        } else {
            store.get_range(key, size - 8 - length..size - 8)?
        };
        Footer::parse(&bytes, size - 8 - length, wanted).map_err(fail)
    }

    /// Parses footer bytes; column chunks must lie below `data_end`.
    fn parse(bytes: &Bytes, data_end: u64, wanted: Option<&str>) -> std::result::Result<Self, String> {
        thrift::validate(bytes).map_err(|e| format!("damaged footer: it {e}"))?;
        let parsed = guarded(|| ParquetMetaDataReader::decode_metadata(bytes).map_err(|e| e.to_string()));
        let metadata = parsed.map_err(|e| format!("damaged footer: {e}"))?;
        for (i, group) in metadata.row_groups().iter().enumerate() {
            if group.num_rows() < 0 || group.num_rows() as u64 > MAX_GROUP_ROWS {
                return Err(format!("row group {i}: damaged: claims {} rows", group.num_rows()));
            }
            for column in group.columns() {
                chunk_range(column, data_end).map_err(|e| format!("row group {i}: {e}"))?;
            }
        }
        let (column, dtype, per_row) = find_column(&metadata, wanted)?;
        for group in metadata.row_groups() {
            check_codec(group.column(column))?;
        }
        let descriptor = metadata.file_metadata().schema_descr().column(column);
        let width = if descriptor.max_rep_level() == 0 { per_row } else { list_width(&metadata, column)? };
        if width == 0 || width > MAX_WIDTH {
            return Err(format!("impossible width {width}"));
        }
        let layout = layout(&metadata, column, if descriptor.max_rep_level() == 0 { 1 } else { width });
        let prepared = key_value(&metadata, "sae.order").is_some_and(|v| v == "shuffled");
        let schema = schema_text(&metadata);
        Ok(Footer { metadata: Arc::new(metadata), column, width, dtype, layout, prepared, schema })
    }

    /// The activation column's chunks.
    pub(crate) fn row_groups(&self) -> Vec<RowGroup> {
        let chunk = |g: &parquet::file::metadata::RowGroupMetaData| {
            let (offset, length) = unchecked_range(g.column(self.column));
            RowGroup { rows: g.num_rows() as u64, offset, length, pieces: Vec::new() }
        };
        self.metadata.row_groups().iter().map(chunk).collect()
    }

    /// The leaf column whose chunks lie at these offsets, with these lengths.
    pub(crate) fn leaf_at(&self, chunks: &[(u64, u64)]) -> Option<usize> {
        let groups = self.metadata.row_groups();
        let lies = |leaf: &usize| groups.iter().map(|g| unchecked_range(g.column(*leaf))).eq(chunks.iter().copied());
        (0..self.metadata.file_metadata().schema_descr().num_columns()).find(lies)
    }

    /// The leaf column of this name.
    pub(crate) fn leaf(&self, name: &str) -> Option<usize> {
        let schema = self.metadata.file_metadata().schema_descr();
        (0..schema.num_columns()).find(|&i| schema.column(i).path().string() == name)
    }
}

/// Runs third-party code that may panic on hostile input.
pub(crate) fn guarded<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the Parquet reader gave up on it".into()))
}

fn chunk_range(column: &ColumnChunkMetaData, data_end: u64) -> std::result::Result<(u64, u64), String> {
    let damaged = || format!("damaged: column {} lies outside the file", column.column_path().string());
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let (start, length) = (u64::try_from(start), u64::try_from(column.compressed_size()));
    let (Ok(start), Ok(length)) = (start, length) else { return Err(damaged()) };
    if column.num_values() < 0 || start < 4 || start.checked_add(length).is_none_or(|end| end > data_end) {
        return Err(damaged());
    }
    Ok((start, length))
}

/// Refuses codecs that this build cannot read: the reader would call such pages damaged.
pub(crate) fn check_codec(column: &ColumnChunkMetaData) -> std::result::Result<(), String> {
    let name = match column.compression() {
        Compression::UNCOMPRESSED
        | Compression::SNAPPY
        | Compression::LZ4
        | Compression::LZ4_RAW
        | Compression::ZSTD(_) => return Ok(()),
        Compression::GZIP(_) => "GZIP",
        Compression::BROTLI(_) => "BROTLI",
        Compression::LZO => "LZO",
    };
    Err(format!("compressed with {name}: write it with zstd, snappy, lz4 or none"))
}

/// (offset, length) of a chunk of a footer that was checked.
pub(crate) fn unchecked_range(column: &ColumnChunkMetaData) -> (u64, u64) {
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    (start as u64, column.compressed_size() as u64)
}

fn key_value(metadata: &ParquetMetaData, key: &str) -> Option<String> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|kv| kv.key == key)?.value.clone()
}

/// A value from the file's metadata or, failing that, from the field's.
fn annotation(metadata: &ParquetMetaData, root: &str, key: &str) -> Option<String> {
    key_value(metadata, key).or_else(|| {
        let file = metadata.file_metadata();
        let schema = guarded(|| {
            parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()).map_err(|e| e.to_string())
        });
        schema.ok()?.field_with_name(root).ok()?.metadata().get(key).cloned()
    })
}

fn is_float_list(c: &ColumnDescriptor) -> bool {
    let half =
        c.physical_type() == Type::FIXED_LEN_BYTE_ARRAY && matches!(c.logical_type_ref(), Some(LogicalType::Float16));
    c.max_rep_level() == 1 && (half || c.physical_type() == Type::FLOAT)
}

fn is_binary(c: &ColumnDescriptor) -> bool {
    c.max_rep_level() == 0 && c.physical_type() == Type::FIXED_LEN_BYTE_ARRAY && c.logical_type_ref().is_none()
}

/// (leaf index, dtype, width of a FixedSizeBinary).
fn find_column(metadata: &ParquetMetaData, wanted: Option<&str>) -> std::result::Result<(usize, Dtype, usize), String> {
    let schema = metadata.file_metadata().schema_descr();
    let root = |i: usize| schema.column(i).path().parts().first().cloned().unwrap_or_default();
    let candidates: Vec<usize> = (0..schema.num_columns())
        .filter(|&i| is_float_list(&schema.column(i)) || is_binary(&schema.column(i)))
        .collect();
    let names = || candidates.iter().map(|&i| root(i)).collect::<Vec<_>>().join(", ");
    let chosen = match wanted {
        Some(name) => candidates.iter().copied().find(|&i| root(i) == name).ok_or_else(|| {
            format!("no activation column named {name}: FixedSizeBinary or lists of float16/float32 here are: [{}]", names())
        })?,
        None if candidates.len() == 1 => candidates[0],
        None => candidates.iter().copied().find(|&i| matches!(root(i).as_str(), "activation" | "act")).ok_or_else(|| {
            if candidates.is_empty() {
                format!(
                    "no activation column: FixedSizeBinary or a list of float16/float32 is needed; the file has: {}",
                    schema_text(metadata).replace('\n', ", ")
                )
            } else {
                format!("several columns could be the activations ({}): name one in data.column", names())
            }
        })?,
    };
    let column = schema.column(chosen);
    if column.physical_type() == Type::FLOAT {
        return Ok((chosen, Dtype::F32, 0));
    }
    if column.max_rep_level() == 1 {
        return Ok((chosen, Dtype::F16, 0));
    }
    let (dtype, width) = binary_shape(metadata, &root(chosen), column.type_length())?;
    Ok((chosen, dtype, width))
}

/// dtype and width of a FixedSizeBinary column, from metadata.
fn binary_shape(metadata: &ParquetMetaData, root: &str, bytes: i32) -> std::result::Result<(Dtype, usize), String> {
    let bytes = usize::try_from(bytes).map_err(|_| "damaged: negative type length")?;
    let Some(name) = annotation(metadata, root, "sae.dtype") else {
        return Err(format!(
            "column {root} is FixedSizeBinary({bytes}) and nothing says what the bytes are: add the metadata sae.dtype \
             (f32, f16 or bf16) and sae.width to the file or the field"
        ));
    };
    let dtype = Dtype::parse(&name).ok_or_else(|| format!("sae.dtype is {name:?}: f32, f16 or bf16 are understood"))?;
    let width = bytes / dtype.size();
    let stated = annotation(metadata, root, "sae.width");
    if bytes % dtype.size() != 0 || stated.as_ref().is_some_and(|w| w.parse() != Ok(width)) {
        return Err(format!(
            "column {root} has {bytes} bytes a row, which are not {} numbers of {dtype}",
            stated.unwrap_or_else(|| "whole".into())
        ));
    }
    Ok((dtype, width))
}

/// The one width of a list column, from the counts; levels are checked when rows are read.
fn list_width(metadata: &ParquetMetaData, column: usize) -> std::result::Result<usize, String> {
    let mut width = None;
    for (i, group) in metadata.row_groups().iter().enumerate().filter(|(_, g)| g.num_rows() > 0) {
        let (values, rows) = (group.column(column).num_values() as u64, group.num_rows() as u64);
        let here = values / rows;
        if values % rows != 0 || *width.get_or_insert(here) != here {
            // A null row counts as one value. Only statistics, where there are some, tell it from a shorter list.
            let nulls = group.column(column).statistics().and_then(|s| s.null_count_opt());
            if nulls.is_some_and(|n| n > 0) {
                return Err(format!("row group {i}: {NULLS}"));
            }
            let nulls = metadata.file_metadata().schema_descr().column(column).max_def_level() > 1 && nulls.is_none();
            let or_nulls = if nulls { ", and none may be null" } else { "" };
            return Err(format!(
                "row group {i}: {values} values in {rows} rows: every row needs the same width{or_nulls}"
            ));
        }
    }
    usize::try_from(width.ok_or("no rows, so no width can be seen")?).map_err(|_| "impossible width".into())
}

fn layout(metadata: &ParquetMetaData, column: usize, per_row: usize) -> Layout {
    let plain = metadata.row_groups().iter().filter(|g| g.num_rows() > 0).all(|g| {
        let c = g.column(column);
        c.compression() == Compression::UNCOMPRESSED && c.dictionary_page_offset().is_none()
    });
    let descriptor = metadata.file_metadata().schema_descr().column(column);
    let (max_rep, max_def) = (descriptor.max_rep_level(), descriptor.max_def_level());
    match (plain, max_rep, max_def) {
        (false, ..) => Layout::General,
        (true, 0, 0) => Layout::Raw,
        (true, 0 | 1, 0..=7) => Layout::Levels(Levels { max_rep: max_rep as u8, max_def: max_def as u8, per_row }),
        _ => Layout::General,
    }
}

/// One line per column: name and Parquet type.
fn schema_text(metadata: &ParquetMetaData) -> String {
    let schema = metadata.file_metadata().schema_descr();
    let line = |i: usize| {
        let c = schema.column(i);
        let logical = c.logical_type_ref().map(|l| format!(" {l:?}")).unwrap_or_default();
        let kind = match c.physical_type() {
            Type::FIXED_LEN_BYTE_ARRAY => format!("FIXED_LEN_BYTE_ARRAY({})", c.type_length()),
            other => other.to_string(),
        };
        let list = if c.max_rep_level() > 0 { "list of " } else { "" };
        format!("{}: {list}{kind}{logical}", c.path().string())
    };
    (0..schema.num_columns().min(100)).map(line).collect::<Vec<_>>().join("\n")
}
