//! How many rows there are where a record of a file is a sequence of rows: lists of lists, as `datasets` writes an `Array2D`.
//!
//! A row of the dataset is one of the inner lists; their number stands nowhere in a footer, and must be known before anything is
//! read. Histograms of levels (Parquet's size statistics) give it and the width. Without them the width is that of the first list,
//! read from the first pages, and the rows are the values through the width, if statistics say that no list is empty. What is
//! left is read once and counted; a manifest keeps the counts. Whatever was believed is checked when the rows are read.
//!
//! Columns of integers must have lists of the same lengths, list by list, so that no filter meets another row's value.

use std::sync::Once;

use bytes::Bytes;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};

use crate::error::Flaw;
use crate::parquet::chunks::{self, Chunk};
use crate::parquet::column::Column;
use crate::parquet::decode;
use crate::parquet::footer::Footer;
use crate::parquet::metadata::{MAX_GROUP_ROWS, MAX_WIDTH, groups_with_rows};
use crate::parquet::pages;
use crate::{Error, Result, RowGroup, Store};

/// Bytes of a chunk that are read to find its first list, before all are.
const STARTS: [u64; 2] = [1 << 20, 16 << 20];

impl Footer {
    /// Width and row groups of the activation column. Rows inside nested lists are counted, for which parts of the file may
    /// have to be read. The width is unknown where there are no rows.
    pub(crate) fn shape(&self, store: &Store, key: &str) -> Result<(Option<usize>, Vec<RowGroup>)> {
        let records = |group: &RowGroupMetaData| group.num_rows() as u64;
        let stated = || self.metadata.row_groups().iter().map(records).collect();
        let (width, rows): (_, Vec<u64>) = match &self.column {
            Some(column) if column.outer > 0 => count(self, column, store, key)?,
            _ => (self.width, stated()),
        };
        let place = |(group, rows): (&RowGroupMetaData, u64)| {
            let Chunk { offset, length } = self.chunk(group);
            RowGroup { rows, offset, length, pieces: Vec::new() }
        };
        Ok((width, self.metadata.row_groups().iter().zip(rows).map(place).collect()))
    }
}

/// Numbers per row, if there are rows, and the rows of every row group.
fn count(footer: &Footer, column: &Column, store: &Store, key: &str) -> Result<(Option<usize>, Vec<u64>)> {
    let fail = |group: usize, problem: Flaw| Error::data(format!("{}, row group {group}", store.url_of(key)), problem);
    let mut rows = vec![0; footer.metadata.num_row_groups()];
    // FixedSizeBinary has one value a row, and says the width itself.
    let mut per_row = column.width.map(|_| 1);
    let mut width = column.width;
    for (i, group) in groups_with_rows(&footer.metadata) {
        let chunk = group.column(column.leaf);
        if width.is_none() {
            width = match width_stated(chunk) {
                Some(width) => Some(width),
                None => first_width(footer, i, store, key)?.map_err(|problem| fail(i, problem))?,
            };
            if width.is_some_and(|width| width == 0 || width > MAX_WIDTH) {
                return Err(fail(i, format!("impossible width {}", width.unwrap_or_default()).into()));
            }
            per_row = width.map(|width| width as u64);
        }
        // Without a width there was no list in the whole group.
        let Some(per_row) = per_row else { continue };
        rows[i] = match present(chunk) {
            Some(values) if values % per_row == 0 => values / per_row,
            _ => {
                tell(&store.url_of(key));
                let bytes = read(footer, i, store, key, u64::MAX)?;
                decode::count_rows(footer, i, bytes, width.unwrap_or_default()).map_err(|problem| fail(i, problem))?
            }
        };
        if rows[i] > MAX_GROUP_ROWS {
            return Err(fail(i, format!("damaged: claims {} rows", rows[i]).into()));
        }
    }
    Ok((width, rows))
}

/// Says once why opening takes long.
fn tell(url: &str) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        tracing::info!(
            "{url}: rows inside lists are counted by reading them, since statistics do not say how many there are; `sae inspect` \
             keeps the counts in manifest.json"
        );
    });
}

/// Numbers that are there, and not only the mark of an empty list, as far as the footer says.
fn present(chunk: &ColumnChunkMetaData) -> Option<u64> {
    let all = chunk.num_values() as u64;
    let levels = chunk.column_descr().max_def_level() as usize + 1;
    if let Some(histogram) = chunk.definition_level_histogram().filter(|h| h.values().len() == levels) {
        return histogram.values().last().and_then(|&n| u64::try_from(n).ok()).filter(|&n| n <= all);
    }
    chunk.statistics().and_then(|s| s.null_count_opt()).filter(|&nulls| nulls == 0).map(|_| all)
}

/// Numbers through lists that have some, by the histograms.
fn width_stated(chunk: &ColumnChunkMetaData) -> Option<usize> {
    let descriptor = chunk.column_descr();
    let (repetition, definition) =
        (chunk.repetition_level_histogram()?.values(), chunk.definition_level_histogram()?.values());
    let (inner, whole) = (descriptor.max_rep_level() as usize, descriptor.max_def_level() as usize);
    if (repetition.len(), definition.len()) != (inner + 1, whole + 1) {
        return None;
    }
    let sum = |counts: &[i64]| counts.iter().try_fold(0u64, |sum, &n| sum.checked_add(u64::try_from(n).ok()?));
    // Every list and every empty one begins with a lower level of repetition than the numbers in it.
    let lists = sum(&repetition[..inner])?.checked_sub(sum(&definition[..whole])?)?;
    let numbers = u64::try_from(definition[whole]).ok()?;
    if lists == 0 || !numbers.is_multiple_of(lists) { None } else { usize::try_from(numbers / lists).ok() }
}

/// The length of the first list of a row group that has one, from as few bytes as do.
fn first_width(
    footer: &Footer,
    group: usize,
    store: &Store,
    key: &str,
) -> Result<std::result::Result<Option<usize>, Flaw>> {
    for limit in STARTS.into_iter().chain([u64::MAX]) {
        let bytes = read(footer, group, store, key, limit)?;
        let whole = bytes.len() as u64 == chunk(footer, group).length;
        let pages = if whole { bytes.len() } else { pages::whole_pages(&bytes) };
        match decode::first_list(footer, group, bytes.slice(..pages)) {
            Ok(Some(width)) => return Ok(Ok(Some(width))),
            found if whole => return Ok(found),
            // The list does not end, or its dictionary, in what was read.
            _ => {}
        }
    }
    Ok(Ok(None))
}

/// Where a row group's activations lie.
fn chunk(footer: &Footer, group: usize) -> Chunk {
    let leaf = footer.column.as_ref().map_or(0, |column| column.leaf);
    chunks::place(footer.metadata.row_group(group).column(leaf))
}

/// The first bytes of a row group's activations, `limit` at most.
fn read(footer: &Footer, group: usize, store: &Store, key: &str, limit: u64) -> Result<Bytes> {
    let Chunk { offset, length } = chunk(footer, group);
    store.get_range(key, offset..offset + length.min(limit))
}
