//! Writing shards in the layout that reads fastest: required FixedSizeBinary, PLAIN, pages of whole rows, row groups of about
//! 32 MiB, offset index; dtype, width and byte order in the metadata; and a manifest with checksums.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::add_encoded_arrow_schema_to_metadata;
use parquet::basic::{Compression as Codec, Encoding, Repetition, Type, ZstdLevel};
use parquet::data_type::{ByteArray, FixedLenByteArray, FixedLenByteArrayType, Int32Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type as SchemaType;

use crate::dataset::is_shard_name;
use crate::dataset::manifest;
use crate::parquet::chunks::{self, Chunk};
use crate::parquet::decode;
use crate::parquet::pages;
use crate::store::Upload;
use crate::{Dtype, Error, Manifest, Result, RowGroup, Shard, Store};

/// Name of the column of activations in shards that are written here.
pub const COLUMN: &str = "activation";

/// Bytes of a row group in the recommended layout, about.
pub(crate) const ROW_GROUP_BYTES: usize = 32 << 20;

/// How column chunks are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: pages are the rows.
    #[default]
    None,
    /// zstd level 1: for cold bf16 data (ratio about 1.27; read at a tenth of the speed).
    Zstd,
}

/// The layout of a dataset to write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Numbers per row.
    pub width: usize,
    /// Format of the numbers.
    pub dtype: Dtype,
    /// Compression.
    pub compression: Compression,
    /// Rows per shard at most.
    pub shard_rows: u64,
    /// Bytes of a row group, about.
    pub row_group_bytes: usize,
    /// Bytes of a page, about.
    pub page_bytes: usize,
    /// Mark the rows as globally shuffled.
    pub prepared: bool,
    /// Write the columns `token_id`, `doc_id` and `pos`.
    pub columns: bool,
    /// First part of the shards' names: PREFIX-00000.parquet.
    pub prefix: String,
}

impl WriteOptions {
    /// The recommended layout.
    pub fn new(width: usize, dtype: Dtype) -> Self {
        WriteOptions {
            width,
            dtype,
            compression: Compression::None,
            shard_rows: u64::MAX,
            row_group_bytes: ROW_GROUP_BYTES,
            page_bytes: 4 << 20,
            prepared: false,
            columns: false,
            prefix: "shard".into(),
        }
    }
}

/// The optional columns of some rows.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// Token ids.
    pub token_id: &'a [i32],
    /// Document ids.
    pub doc_id: &'a [i32],
    /// Positions in the document.
    pub pos: &'a [i32],
}

/// Streams rows into shards of a store and ends with a manifest.
///
/// ```
/// use loader::{Columns, Dtype, ShardWriter, Store, WriteOptions};
///
/// let folder = tempfile::tempdir()?;
/// let store = Store::open(&folder.path().display().to_string())?;
/// let options = WriteOptions { columns: true, shard_rows: 2, ..WriteOptions::new(4, Dtype::F32) };
/// let mut writer = ShardWriter::create(&store, options)?;
/// // Three rows of four numbers, and what a row filter may look at. Any number of rows may be written at once.
/// let mut rows = vec![0; 3 * 4 * Dtype::F32.size()];
/// Dtype::F32.from_f32(&[0.5; 3 * 4], &mut rows);
/// writer.write(&rows, Some(Columns { token_id: &[17, 4, 9], doc_id: &[0, 0, 1], pos: &[0, 1, 0] }))?;
///
/// let manifest = writer.finish()?;
/// assert_eq!((manifest.shards.len(), manifest.rows()), (2, 3));
/// assert!(store.head("shard-00001.parquet")?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ShardWriter {
    store: Store,
    options: WriteOptions,
    row_bytes: usize,
    group_rows: usize,
    page_rows: usize,
    /// Rows of the row group being filled, and its columns.
    rows: Vec<u8>,
    columns: [Vec<i32>; 3],
    open: Option<OpenShard>,
    shards: Vec<Shard>,
}

/// A shard being written.
struct OpenShard {
    name: String,
    parquet: SerializedFileWriter<Vec<u8>>,
    upload: Upload,
    written: u64,
    row_groups: Vec<RowGroup>,
}

impl std::fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardWriter({}, {} shards)", self.store.url(), self.shards.len())
    }
}

impl ShardWriter {
    /// Starts writing into a folder, which must not hold shards yet.
    pub fn create(store: &Store, options: WriteOptions) -> Result<Self> {
        if options.width == 0 || options.width > crate::parquet::metadata::MAX_WIDTH || options.shard_rows == 0 {
            return Err(Error::Arguments(format!("cannot write rows of width {}", options.width)));
        }
        let taken =
            store.lists() && store.list("")?.iter().any(|e| is_shard_name(&e.key) || e.key == manifest::FILE_NAME);
        if taken {
            return Err(Error::Arguments(format!("{} already holds shards: name an empty folder", store.url())));
        }
        let row_bytes = options.width * options.dtype.size();
        let page_rows = (options.page_bytes / row_bytes).max(1);
        let group_rows = (options.row_group_bytes / row_bytes / page_rows).max(1) * page_rows;
        let (store, columns) = (store.clone(), Default::default());
        Ok(ShardWriter {
            store,
            options,
            row_bytes,
            group_rows,
            page_rows,
            rows: Vec::new(),
            columns,
            open: None,
            shards: Vec::new(),
        })
    }

    /// Appends rows in the stored dtype, with their columns if the options ask for them.
    pub fn write(&mut self, rows: &[u8], columns: Option<Columns<'_>>) -> Result<()> {
        let count = rows.len() / self.row_bytes;
        let given = columns.map(|c| [c.token_id, c.doc_id, c.pos]);
        let fits = given.is_none_or(|g| g.iter().all(|c| c.len() == count));
        if !rows.len().is_multiple_of(self.row_bytes) || given.is_some() != self.options.columns || !fits {
            return Err(Error::Arguments(format!(
                "{} bytes are not rows of {} with the columns declared",
                rows.len(),
                self.row_bytes
            )));
        }
        let mut at = 0;
        while at < count {
            let in_shard = self.written() + (self.rows.len() / self.row_bytes) as u64;
            let room = (self.group_rows - self.rows.len() / self.row_bytes) as u64;
            let take = (count - at).min(room.min(self.options.shard_rows - in_shard) as usize);
            self.rows.extend_from_slice(&rows[at * self.row_bytes..(at + take) * self.row_bytes]);
            if let Some(given) = given {
                self.columns.iter_mut().zip(given).for_each(|(to, from)| to.extend_from_slice(&from[at..at + take]));
            }
            at += take;
            let shard_full = in_shard + take as u64 == self.options.shard_rows;
            if shard_full || self.rows.len() / self.row_bytes == self.group_rows {
                self.flush()?;
            }
            if shard_full {
                self.close()?;
            }
        }
        Ok(())
    }

    /// Rows of the open shard that are in row groups.
    fn written(&self) -> u64 {
        self.open.as_ref().map_or(0, |o| o.row_groups.iter().map(|g| g.rows).sum())
    }

    /// Ends the last shard and writes the manifest.
    pub fn finish(mut self) -> Result<Manifest> {
        self.flush()?;
        self.close()?;
        let WriteOptions { width, dtype, prepared, .. } = self.options;
        let manifest = Manifest::new(width, dtype, prepared, true, std::mem::take(&mut self.shards));
        let manifest = manifest.with_column(Some(COLUMN.to_string()));
        self.store.put(manifest::FILE_NAME, manifest.to_json())?;
        Ok(manifest)
    }

    /// Writes the buffered rows as one row group.
    fn flush(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open_shard()?,
        };
        let rows = self.rows.len() / self.row_bytes;
        let bytes = Bytes::from(std::mem::take(&mut self.rows));
        let fail = |e: ParquetError| Error::cannot_write(open.name.clone(), e);
        let Chunk { offset, length } = self.write_group(&mut open.parquet, &bytes).map_err(fail)?;
        // The Vec behind `bytes` comes back: nothing else holds it once the row group is closed.
        self.rows = bytes.try_into_mut().map(Vec::from).unwrap_or_default();
        self.rows.clear();
        self.columns.iter_mut().for_each(Vec::clear);
        let file = std::mem::take(open.parquet.inner_mut());
        let start = (offset - open.written) as usize;
        let chunk = &file[start..start + length as usize];
        let raw = self.options.compression == Compression::None;
        let runs = raw.then(|| pages::raw_runs(chunk, rows, self.row_bytes));
        let pieces = match &runs {
            Some(Ok(runs)) => decode::pieces(chunk, rows as u64, Some((runs, self.row_bytes))),
            _ => decode::pieces(chunk, rows as u64, None),
        };
        open.row_groups.push(RowGroup { rows: rows as u64, offset, length, pieces });
        open.written += file.len() as u64;
        open.upload.write(file)?;
        self.open = Some(open);
        Ok(())
    }

    fn write_group(&self, parquet: &mut SerializedFileWriter<Vec<u8>>, rows: &Bytes) -> ParquetResult<Chunk> {
        let mut group = parquet.next_row_group()?;
        if let Some(mut column) = group.next_column()? {
            let typed = column.typed::<FixedLenByteArrayType>();
            let mut page = Vec::with_capacity(self.page_rows);
            for start in (0..rows.len()).step_by(self.page_rows * self.row_bytes) {
                let end = (start + self.page_rows * self.row_bytes).min(rows.len());
                page.clear();
                page.extend(
                    (start..end)
                        .step_by(self.row_bytes)
                        .map(|at| FixedLenByteArray::from(ByteArray::from(rows.slice(at..at + self.row_bytes)))),
                );
                typed.write_batch(&page, None, None)?;
            }
            column.close()?;
        }
        for values in &self.columns {
            if let Some(mut column) = group.next_column()? {
                column.typed::<Int32Type>().write_batch(values, None, None)?;
                column.close()?;
            }
        }
        let chunk = chunks::place(group.close()?.column(0));
        parquet.flush()?;
        Ok(chunk)
    }

    fn open_shard(&self) -> Result<OpenShard> {
        let name = format!("{}-{:05}.parquet", self.options.prefix, self.shards.len());
        let upload = self.store.upload(&name)?;
        let fail = |e: ParquetError| Error::cannot_write(self.store.url_of(&name), e);
        let parquet = SerializedFileWriter::new(Vec::new(), self.schema().map_err(fail)?, Arc::new(self.properties()))
            .map_err(fail)?;
        Ok(OpenShard { name, parquet, upload, written: 0, row_groups: Vec::new() })
    }

    fn schema(&self) -> ParquetResult<Arc<SchemaType>> {
        let field = |name: &str, kind: Type, length: i32| {
            let builder = SchemaType::primitive_type_builder(name, kind).with_repetition(Repetition::REQUIRED);
            builder.with_length(length).build().map(Arc::new)
        };
        let mut fields = vec![field(COLUMN, Type::FIXED_LEN_BYTE_ARRAY, self.row_bytes as i32)?];
        if self.options.columns {
            for name in ["token_id", "doc_id", "pos"] {
                fields.push(field(name, Type::INT32, 0)?);
            }
        }
        SchemaType::group_type_builder("schema").with_fields(fields).build().map(Arc::new)
    }

    fn properties(&self) -> WriterProperties {
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
            Field::new("activation", DataType::FixedSizeBinary(self.row_bytes as i32), false).with_metadata(numbers);
        let mut fields = vec![activation];
        if self.options.columns {
            fields.extend(["token_id", "doc_id", "pos"].map(|name| Field::new(name, DataType::Int32, false)));
        }
        add_encoded_arrow_schema_to_metadata(&Schema::new(fields), &mut properties);
        properties
    }

    /// Ends the open shard.
    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let fail = |e: ParquetError| Error::cannot_write(open.name.clone(), e);
        open.parquet.finish().map_err(fail)?;
        let rest = std::mem::take(open.parquet.inner_mut());
        let size = open.written + rest.len() as u64;
        open.upload.write(rest)?;
        open.upload.finish()?;
        let rows = open.row_groups.iter().map(|g| g.rows).sum();
        let raw = self.options.compression == Compression::None;
        self.shards.push(Shard { path: open.name, size, etag: None, rows, raw, row_groups: open.row_groups });
        Ok(())
    }
}
