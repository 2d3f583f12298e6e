//! What is looked up in the metadata of a Parquet file, and what is believed of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::basic::{Compression, Type};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

use crate::error::Flaw;

/// Widest rows that are believed.
pub(crate) const MAX_WIDTH: usize = 1 << 20;
/// Most rows of a row group that are believed.
pub(crate) const MAX_GROUP_ROWS: u64 = 1 << 31;
/// Said of rows that are absent or lack a number: nothing can be trained on them.
pub(crate) const NULLS: &str = "null values: every row needs all its numbers: leave such rows out when writing";

/// The row groups that have rows, with their numbers.
pub(crate) fn groups_with_rows(metadata: &ParquetMetaData) -> impl Iterator<Item = (usize, &RowGroupMetaData)> {
    metadata.row_groups().iter().enumerate().filter(|(_, group)| group.num_rows() > 0)
}

/// Runs third-party code that may panic on hostile input.
pub(crate) fn guarded<T>(work: impl FnOnce() -> std::result::Result<T, Flaw>) -> std::result::Result<T, Flaw> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the Parquet reader gave up on it".into()))
}

/// Refuses codecs that this build cannot read: the reader would call such pages damaged.
pub(crate) fn check_codec(column: &ColumnChunkMetaData) -> std::result::Result<(), String> {
    match column.compression() {
        Compression::UNCOMPRESSED
        | Compression::SNAPPY
        | Compression::LZ4
        | Compression::LZ4_RAW
        | Compression::ZSTD(_)
        | Compression::GZIP(_)
        | Compression::BROTLI(_) => Ok(()),
        Compression::LZO => Err("compressed with LZO: write it with zstd, snappy, lz4, gzip, brotli or none".into()),
    }
}

/// A value of the file's own metadata.
pub(crate) fn key_value(metadata: &ParquetMetaData, key: &str) -> Option<String> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|kv| kv.key == key)?.value.clone()
}

/// One line per column: name and Parquet type.
pub(crate) fn schema_text(metadata: &ParquetMetaData) -> String {
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
