//! The layout of shards that are written here, which reads fastest: required FixedSizeBinary, PLAIN, pages of whole rows, row groups of
//! about 32 MiB, offset index; dtype, width and byte order in the metadata.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::add_encoded_arrow_schema_to_metadata;
use parquet::basic::{Compression as Codec, Encoding, LogicalType, Repetition, Type, ZstdLevel};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::Type as SchemaType;
use serde::{Deserialize, Serialize};

use crate::make::columns::{ColumnValues, ExtraColumn};
use crate::{Dtype, Error, Result};

/// Name of the column of activations in shards that are written here.
pub const COLUMN: &str = "activation";

/// Bytes of a row group in the recommended layout, about.
pub(crate) const ROW_GROUP_BYTES: usize = 32 << 20;

/// How column chunks are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: pages are the rows.
    #[default]
    None,
    /// zstd level 1: for cold bf16 data (ratio about 1.27; read at a tenth of the speed).
    Zstd,
}

/// The layout of a dataset to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOptions {
    /// Numbers per row.
    pub width: usize,
    /// Format of the numbers.
    pub dtype: Dtype,
    /// Compression.
    pub compression: Compression,
    /// Rows per shard at most. Where a shard is a part, its writer decides.
    #[serde(skip, default = "unlimited")]
    pub shard_rows: u64,
    /// Bytes of a row group, about.
    pub row_group_bytes: usize,
    /// Bytes of a page, about.
    pub page_bytes: usize,
    /// Mark the rows as globally shuffled.
    pub prepared: bool,
    /// Columns beside the activations: [`ExtraColumn::tokens`] are those that row filters look at.
    pub columns: Vec<ExtraColumn>,
    /// First part of the shards' names: PREFIX-00000.parquet. Parts have names of their own.
    #[serde(skip, default = "prefix")]
    pub prefix: String,
}

fn unlimited() -> u64 {
    u64::MAX
}

fn prefix() -> String {
    "shard".into()
}

impl WriteOptions {
    /// The recommended layout.
    pub fn new(width: usize, dtype: Dtype) -> Self {
        WriteOptions {
            width,
            dtype,
            compression: Compression::None,
            shard_rows: unlimited(),
            row_group_bytes: ROW_GROUP_BYTES,
            page_bytes: 4 << 20,
            prepared: false,
            columns: Vec::new(),
            prefix: prefix(),
        }
    }
}

/// The layout, checked, and what follows from it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) options: WriteOptions,
    /// Bytes of a row.
    pub(crate) row_bytes: usize,
    /// Rows of a row group.
    pub(crate) group_rows: usize,
    /// Rows of a page.
    pub(crate) page_rows: usize,
}

impl Layout {
    pub(crate) fn new(options: WriteOptions) -> Result<Self> {
        if options.width == 0 || options.width > crate::parquet::metadata::MAX_WIDTH || options.shard_rows == 0 {
            return Err(Error::Arguments(format!("cannot write rows of width {}", options.width)));
        }
        ExtraColumn::check(&options.columns, COLUMN)?;
        let row_bytes = options.width * options.dtype.size();
        let page_rows = (options.page_bytes / row_bytes).max(1);
        let group_rows = (options.row_group_bytes / row_bytes / page_rows).max(1) * page_rows;
        Ok(Layout { options, row_bytes, group_rows, page_rows })
    }

    /// How many rows these are.
    pub(crate) fn count(&self, rows: &[u8], columns: &[ColumnValues<'_>]) -> Result<usize> {
        let count = rows.len() / self.row_bytes;
        let declared = &self.options.columns;
        let fits = columns.len() == declared.len()
            && columns.iter().zip(declared).all(|(values, column)| values.kind() == column.kind);
        if !rows.len().is_multiple_of(self.row_bytes) || !fits || columns.iter().any(|values| values.len() != count) {
            return Err(Error::Arguments(format!(
                "{} bytes are not rows of {} with the columns declared",
                rows.len(),
                self.row_bytes
            )));
        }
        Ok(count)
    }

    pub(crate) fn schema(&self) -> ParquetResult<Arc<SchemaType>> {
        let field = |name: &str, kind: Type, length: i32, logical: Option<LogicalType>| {
            let builder = SchemaType::primitive_type_builder(name, kind).with_repetition(Repetition::REQUIRED);
            builder.with_length(length).with_logical_type(logical).build().map(Arc::new)
        };
        let mut fields = vec![field(COLUMN, Type::FIXED_LEN_BYTE_ARRAY, self.row_bytes as i32, None)?];
        for ExtraColumn { name, kind } in &self.options.columns {
            let (kind, logical) = kind.physical();
            fields.push(field(name, kind, 0, logical)?);
        }
        SchemaType::group_type_builder("schema").with_fields(fields).build().map(Arc::new)
    }

    pub(crate) fn properties(&self) -> WriterProperties {
        let codec = match self.options.compression {
            Compression::None => Codec::UNCOMPRESSED,
            Compression::Zstd => Codec::ZSTD(ZstdLevel::default()),
        };
        let mut pairs = vec![
            ("sae.dtype", self.options.dtype.name().to_string()),
            ("sae.width", self.options.width.to_string()),
            ("sae.byte_order", "little".to_string()),
        ];
        if self.options.prepared {
            pairs.push(("sae.order", "shuffled".into()));
        }
        let pair = |(key, value): &(&str, String)| KeyValue::new(key.to_string(), value.clone());
        let mut properties = WriterProperties::builder()
            .set_compression(codec)
            .set_encoding(Encoding::PLAIN)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_write_batch_size(self.page_rows)
            .set_data_page_row_count_limit(self.page_rows)
            .set_data_page_size_limit(self.page_rows * self.row_bytes)
            .set_max_row_group_row_count(None)
            .set_key_value_metadata(Some(pairs.iter().map(pair).collect()))
            .build();
        let numbers: HashMap<String, String> = pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        let activation =
            Field::new(COLUMN, DataType::FixedSizeBinary(self.row_bytes as i32), false).with_metadata(numbers);
        let extra = self.options.columns.iter().map(|column| Field::new(&column.name, column.kind.arrow(), false));
        let fields: Vec<Field> = std::iter::once(activation).chain(extra).collect();
        add_encoded_arrow_schema_to_metadata(&Schema::new(fields), &mut properties);
        properties
    }
}
