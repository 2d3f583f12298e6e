//! Parquet footers: read with caps, checked before a general reader sees them, and put right where writers differ.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};

use crate::error::Flaw;
use crate::parquet::chunks::{self, Chunk, Problem};
use crate::parquet::column::{self, Column};
use crate::parquet::metadata::{
    MAX_GROUP_ROWS, MAX_WIDTH, NULLS, check_codec, groups_with_rows, guarded, key_value, schema_text,
};
use crate::parquet::pages::{self, Levels, Page};
use crate::parquet::thrift;
use crate::{Error, Result, RowGroup, Store};

/// Longest footer that is read: 300,000 row groups of four columns.
const MAX_FOOTER: u64 = 256 << 20;
/// Read from a file's end at first: holds nearly every footer.
const TAIL: u64 = 64 << 10;
/// Read to look at the header of a page: its statistics hold two values of the column at most.
const HEADER: u64 = 4 << 10;

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
    /// `None` in a file without rows that has none: it adds nothing.
    pub(crate) column: Option<Column>,
    /// Numbers per row, where the footer says so: not where there are no rows, nor of rows inside nested lists.
    pub(crate) width: Option<usize>,
    pub(crate) layout: Layout,
    pub(crate) prepared: bool,
    pub(crate) schema: String,
    /// Where the footer begins.
    pub(crate) data_end: u64,
}

impl Footer {
    /// Reads the footer of an object of `size` bytes.
    pub(crate) fn read(store: &Store, key: &str, size: u64, wanted: Option<&str>) -> Result<Self> {
        let fail = |problem: Flaw| Error::data(store.url_of(key), problem);
        let (bytes, data_end) = bytes(store, key, size)?;
        let page = |at: u64| -> Result<Option<Page>> {
            let bytes = store.get_range(key, at..(at + HEADER).min(data_end))?;
            Ok(pages::header(&bytes).ok())
        };
        Footer::parse(&bytes, data_end, wanted, page).map_err(|problem| match problem {
            Problem::Footer(problem) => fail(problem),
            Problem::Store(error) => error,
        })
    }

    /// Parses footer bytes; column chunks must lie below `data_end`. `page` reads the header of a page.
    fn parse(
        bytes: &Bytes,
        data_end: u64,
        wanted: Option<&str>,
        page: impl Fn(u64) -> Result<Option<Page>>,
    ) -> std::result::Result<Self, Problem> {
        let metadata = decoded(bytes).map_err(Problem::Footer)?;
        let has_rows = metadata.row_groups().iter().any(|group| group.num_rows() > 0);
        let column = match column::find(&metadata, wanted) {
            Ok(column) => Some(column),
            Err(_) if !has_rows => None,
            Err(problem) => return Err(Problem::Footer(problem)),
        };
        let mut needed: Vec<usize> = column::TOKENS.iter().flat_map(|name| column::leaves(&metadata, name)).collect();
        needed.extend(column.iter().map(|column| column.leaf));
        let metadata = chunks::settle(metadata, data_end, &needed, page)?;
        Footer::of(metadata, column, data_end).map_err(Problem::Footer)
    }

    fn of(metadata: ParquetMetaData, column: Option<Column>, data_end: u64) -> std::result::Result<Self, Flaw> {
        let prepared = key_value(&metadata, "sae.order").is_some_and(|v| v == "shuffled");
        let schema = schema_text(&metadata);
        let (mut width, mut of_layout) = (None, Layout::General);
        if let Some(column) = &column {
            for (_, group) in groups_with_rows(&metadata) {
                check_codec(group.column(column.leaf))?;
            }
            width = match column.width {
                None if column.outer == 0 => list_width(&metadata, column.leaf)?,
                width => width,
            };
            if width.is_some_and(|width| width == 0 || width > MAX_WIDTH) {
                return Err(format!("impossible width {}", width.unwrap_or_default()).into());
            }
            of_layout = layout(&metadata, column, width);
        }
        Ok(Footer { metadata: Arc::new(metadata), column, width, layout: of_layout, prepared, schema, data_end })
    }

    /// The activation column, which every file with rows has.
    pub(crate) fn activations(&self) -> std::result::Result<&Column, Flaw> {
        self.column.as_ref().ok_or_else(|| "no activation column: the file has no rows".into())
    }

    /// Whether a column chunk lies before the footer.
    pub(crate) fn holds(&self, chunk: &ColumnChunkMetaData) -> bool {
        chunks::is_inside(chunk, self.data_end)
    }

    /// Where a row group's activations lie; nowhere (0, of no bytes) where a group without rows says what cannot be.
    pub(crate) fn chunk(&self, group: &RowGroupMetaData) -> Chunk {
        let Some(column) = &self.column else { return Chunk::default() };
        let chunk = group.column(column.leaf);
        let is_there = group.num_rows() > 0 || chunks::is_inside(chunk, self.data_end);
        if is_there { chunks::place(chunk) } else { Chunk::default() }
    }

    /// Whether the file has row groups at these places. Rows are compared where the footer says how many there are.
    pub(crate) fn has(&self, groups: &[RowGroup]) -> bool {
        let nested = self.column.as_ref().is_some_and(|column| column.outer > 0);
        let same = |(group, known): (&RowGroupMetaData, &RowGroup)| {
            self.chunk(group) == known.chunk() && (nested || group.num_rows() as u64 == known.rows)
        };
        self.metadata.num_row_groups() == groups.len() && self.metadata.row_groups().iter().zip(groups).all(same)
    }

    /// The leaf column whose chunks are these.
    pub(crate) fn leaf_at(&self, chunks: &[Chunk]) -> Option<usize> {
        let groups = self.metadata.row_groups();
        let lies = |leaf: &usize| groups.iter().map(|g| chunks::place(g.column(*leaf))).eq(chunks.iter().copied());
        (0..self.metadata.file_metadata().schema_descr().num_columns()).find(lies)
    }
}

/// The bytes of the footer of an object of `size` bytes, and where it begins.
pub(super) fn bytes(store: &Store, key: &str, size: u64) -> Result<(Bytes, u64)> {
    let name = store.url_of(key);
    if size < 12 {
        return Err(Error::data(name, format!("not a Parquet file: only {size} bytes")));
    }
    let tail = store.get_range(key, size - size.min(TAIL)..size)?;
    let fail = |problem: Flaw| Error::data(name.clone(), problem);
    let end = &tail[tail.len() - 8..];
    if &end[4..] != b"PAR1" {
        return Err(fail("not a Parquet file (or cut off): it does not end in PAR1".into()));
    }
    let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    if length > MAX_FOOTER || length + 12 > size {
        return Err(fail(format!("damaged: claims a footer of {length} bytes in a file of {size}").into()));
    }
    let bytes = if length + 8 <= tail.len() as u64 {
        tail.slice(tail.len() - 8 - length as usize..tail.len() - 8)
    } else {
        store.get_range(key, size - 8 - length..size - 8)?
    };
    Ok((bytes, size - 8 - length))
}

/// The metadata in a footer's bytes, with row groups that may be.
pub(super) fn decoded(bytes: &Bytes) -> std::result::Result<ParquetMetaData, Flaw> {
    thrift::validate(bytes).map_err(|e| format!("damaged footer: it {e}"))?;
    let parsed = guarded(|| ParquetMetaDataReader::decode_metadata(bytes).map_err(|e| Flaw::of(e.to_string(), e)));
    let metadata = parsed.map_err(|flaw| flaw.said(|text| format!("damaged footer: {text}")))?;
    let columns = metadata.file_metadata().schema_descr().num_columns();
    for (i, group) in metadata.row_groups().iter().enumerate() {
        if group.num_rows() < 0 || group.num_rows() as u64 > MAX_GROUP_ROWS {
            return Err(format!("row group {i}: damaged: claims {} rows", group.num_rows()).into());
        }
        if group.num_columns() != columns {
            return Err(format!("row group {i}: damaged: {} columns of {columns}", group.num_columns()).into());
        }
    }
    Ok(metadata)
}

/// The one width of a list column, from the counts; levels are checked when rows are read. `None` without rows.
fn list_width(metadata: &ParquetMetaData, leaf: usize) -> std::result::Result<Option<usize>, Flaw> {
    let mut width = None;
    for (i, group) in groups_with_rows(metadata) {
        let (values, rows) = (group.column(leaf).num_values() as u64, group.num_rows() as u64);
        let here = values / rows;
        if values % rows != 0 || *width.get_or_insert(here) != here {
            // A null row counts as one value. Only statistics, where there are some, tell it from a shorter list.
            let nulls = group.column(leaf).statistics().and_then(|s| s.null_count_opt());
            if nulls.is_some_and(|n| n > 0) {
                return Err(format!("row group {i}: {NULLS}").into());
            }
            let nulls = metadata.file_metadata().schema_descr().column(leaf).max_def_level() > 1 && nulls.is_none();
            let or_nulls = if nulls { ", and none may be null" } else { "" };
            let text =
                format!("row group {i}: {values} values in {rows} rows: every row needs the same width{or_nulls}");
            return Err(text.into());
        }
    }
    width.map(|width| usize::try_from(width).map_err(|_| "impossible width".into())).transpose()
}

fn layout(metadata: &ParquetMetaData, column: &Column, width: Option<usize>) -> Layout {
    let plain = groups_with_rows(metadata).all(|(_, group)| {
        let c = group.column(column.leaf);
        c.compression() == Compression::UNCOMPRESSED && !chunks::has_dictionary(c)
    });
    if !plain || column.is_double || column.outer > 0 {
        return Layout::General;
    }
    let descriptor = metadata.file_metadata().schema_descr().column(column.leaf);
    let (max_rep, max_def) = (descriptor.max_rep_level(), descriptor.max_def_level());
    let per_row = if column.width.is_some() { Some(1) } else { width };
    match (max_rep, max_def, per_row) {
        (0, 0, _) => Layout::Raw,
        (0 | 1, 0..=7, Some(per_row)) => {
            Layout::Levels(Levels { max_rep: max_rep as u8, max_def: max_def as u8, per_row })
        }
        _ => Layout::General,
    }
}
