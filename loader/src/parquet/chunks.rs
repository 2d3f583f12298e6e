//! Where column chunks lie, whatever writer said so.
//!
//! A chunk begins at its dictionary page, if it has one. Writers have not agreed on how a footer says that: parquet-mr wrote 0
//! for "there is none", and before 1.12 left the offset out and named the dictionary page as the first data page; Polars before
//! 1.39 left it out and named the first data page rightly, so that the dictionary lies before everything that the footer names.
//! Here offsets are put right once, where a footer is read; later code and the Parquet reader believe them.
//!
//! The footer alone settles the offsets where it can say, and the header of one page where it cannot, so that manifests, reading and the
//! Parquet reader see one truth. Files that were read before keep their offsets, and so their identity.

use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

use crate::Result;
use crate::error::Flaw;
use crate::parquet::pages::Page;

/// First byte of a file that may belong to a column.
const FIRST: u64 = 4;

/// Where a column chunk lies in its file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// Where a chunk lies whose footer was put right, or whose column is another than that of activations: then a dictionary at 0, which is
/// none, has been left there.
pub(crate) fn place(column: &ColumnChunkMetaData) -> Chunk {
    let dictionary = column.dictionary_page_offset().filter(|&offset| offset > 0);
    let start = dictionary.unwrap_or(column.data_page_offset());
    Chunk { offset: start as u64, length: column.compressed_size() as u64 }
}

/// Whether a chunk without rows lies in the file as its footer says; nobody reads it.
pub(crate) fn is_inside(column: &ColumnChunkMetaData, data_end: u64) -> bool {
    let number = |n: i64| u64::try_from(n).ok();
    let start = number(column.dictionary_page_offset().unwrap_or(column.data_page_offset()));
    let end = start.zip(number(column.compressed_size())).and_then(|(start, length)| start.checked_add(length));
    start.is_some_and(|start| start >= FIRST) && end.is_some_and(|end| end <= data_end)
}

/// Whether the footer says where a chunk begins that was not put right.
pub(crate) fn is_named(column: &ColumnChunkMetaData, data_end: u64) -> bool {
    let Ok((start, length)) = stated(column, data_end) else { return false };
    matches!(start, Start::At(at) if place(column).offset == at && at.saturating_add(length) <= data_end)
}

/// Whether a chunk has a dictionary page, or pages that refer to one.
pub(crate) fn has_dictionary(column: &ColumnChunkMetaData) -> bool {
    column.dictionary_page_offset().is_some() || uses_dictionary(column)
}

fn uses_dictionary(column: &ColumnChunkMetaData) -> bool {
    column.encodings().any(|e| matches!(e, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY))
}

/// What is wrong with a footer, or with reading on.
#[derive(Debug)]
pub(crate) enum Problem {
    Footer(Flaw),
    Store(crate::Error),
}

/// Where a chunk begins, as far as the footer says.
#[derive(Debug, Clone, Copy)]
enum Start {
    At(u64),
    /// There is a dictionary page, here or before.
    Dictionary(u64),
}

/// A chunk as the footer states it.
#[derive(Debug, Clone, Copy)]
struct Stated {
    start: Start,
    /// Bytes.
    length: u64,
    /// Row group in the file.
    group: usize,
    /// Column in the row group.
    column: usize,
}

/// Puts the offsets of the columns in `needed` right. All chunks with rows must lie below `data_end`. `page` reads the header of
/// a page at an offset, `None` if there is none; it is asked where the footer alone cannot say.
pub(crate) fn settle(
    metadata: ParquetMetaData,
    data_end: u64,
    needed: &[usize],
    page: impl Fn(u64) -> Result<Option<Page>>,
) -> std::result::Result<ParquetMetaData, Problem> {
    let mut chunks = Vec::new();
    for (g, group) in metadata.row_groups().iter().enumerate().filter(|(_, group)| group.num_rows() > 0) {
        for (c, column) in group.columns().iter().enumerate() {
            let (start, length) =
                stated(column, data_end).map_err(|e| Problem::Footer(format!("row group {g}: {e}").into()))?;
            chunks.push(Stated { start, length, group: g, column: c });
        }
    }
    let is_needed = |c: usize| needed.contains(&c);
    let missing = |chunk: &Stated| matches!(chunk.start, Start::Dictionary(_)) && is_needed(chunk.column);
    if chunks.iter().any(missing) {
        find_dictionaries(&mut chunks, is_needed, page).map_err(Problem::Store)?;
    }
    let mut starts = vec![Vec::new(); metadata.num_row_groups()];
    for Stated { start, length, group: g, column: c } in chunks {
        let column = metadata.row_group(g).column(c);
        // A column that is not read may begin before that.
        let Start::At(start) = start else { continue };
        if start.checked_add(length).is_none_or(|end| end > data_end) {
            return Err(Problem::Footer(format!("row group {g}: {}", outside(column)).into()));
        }
        let dictionary = (start < column.data_page_offset() as u64).then_some(start as i64);
        if is_needed(c) && column.dictionary_page_offset() != dictionary {
            starts[g].push((c, dictionary));
        }
    }
    rewrite(metadata, &starts).map_err(|e| Problem::Footer(Flaw::of(format!("damaged: {e}"), e)))
}

fn outside(column: &ColumnChunkMetaData) -> String {
    format!("damaged: column {} lies outside the file", column.column_path().string())
}

/// (start, length) of a chunk as the footer has it.
fn stated(column: &ColumnChunkMetaData, data_end: u64) -> std::result::Result<(Start, u64), String> {
    let number = |n: i64| u64::try_from(n).map_err(|_| outside(column));
    let (data, length) = (number(column.data_page_offset())?, number(column.compressed_size())?);
    let dictionary = number(column.dictionary_page_offset().unwrap_or(0))?;
    let start = match dictionary {
        FIRST.. if dictionary <= data => Start::At(dictionary),
        _ if uses_dictionary(column) => Start::Dictionary(data),
        _ => Start::At(data),
    };
    let (Start::At(at) | Start::Dictionary(at)) = start;
    if column.num_values() < 0 || at < FIRST || at > data_end || length > data_end {
        return Err(outside(column));
    }
    Ok((start, length))
}

/// Finds where chunks begin whose dictionary the footer does not name. It is the first page, at the offset that is stated for the
/// data; or it fills the room between the chunk before and that offset.
fn find_dictionaries(
    chunks: &mut [Stated],
    is_needed: impl Fn(usize) -> bool,
    page: impl Fn(u64) -> Result<Option<Page>>,
) -> Result<()> {
    chunks.sort_by_key(|Stated { start: Start::At(at) | Start::Dictionary(at), .. }| *at);
    // Where the chunk before ends.
    let mut end = FIRST;
    for Stated { start, length, column, .. } in chunks {
        let at = match *start {
            Start::At(at) => at,
            Start::Dictionary(data) if end >= data => data,
            // Not read here: where it begins only says where its neighbour may.
            Start::Dictionary(_) if !is_needed(*column) => end,
            Start::Dictionary(data) => {
                let is_first = page(data)?.is_some_and(|page| page.is_dictionary());
                let fills = |page: Page| page.is_dictionary() && end + page.end as u64 == data;
                if !is_first && page(end)?.is_some_and(fills) { end } else { data }
            }
        };
        *start = Start::At(at);
        end = end.max(at.saturating_add(*length));
    }
    Ok(())
}

/// The metadata with other offsets of dictionary pages: for each row group (column, offset).
fn rewrite(
    metadata: ParquetMetaData,
    changed: &[Vec<(usize, Option<i64>)>],
) -> std::result::Result<ParquetMetaData, ParquetError> {
    if changed.iter().all(Vec::is_empty) {
        return Ok(metadata);
    }
    let mut builder = metadata.into_builder();
    let groups = builder.take_row_groups();
    let group = |(group, changed): (RowGroupMetaData, &Vec<(usize, Option<i64>)>)| {
        let mut group = group.into_builder();
        let mut columns = group.take_columns();
        for &(c, dictionary) in changed {
            columns[c] = columns[c].clone().into_builder().set_dictionary_page_offset(dictionary).build()?;
        }
        group.set_column_metadata(columns).build()
    };
    let groups = groups.into_iter().zip(changed).map(group).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(builder.set_row_groups(groups).build())
}
