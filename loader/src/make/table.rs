//! Tables that are written here and read by others: sparse activations, and what belongs to their rows. Parquet as every reader takes it.
//!
//! Bytes are a function of what is written and of nothing else, however it is cut into calls: a row group ends after
//! [`GROUP_ROWS`] rows. Whole numbers are stored as differences (DELTA_BINARY_PACKED): the row of a pair is that of the pair before
//! or the next, and takes next to nothing. Dictionaries of values were rejected: features and activations repeat too rarely.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use xxhash_rust::xxh3::Xxh3;

use crate::dataset::scalars::{Scalar, Values};
use crate::store::Upload;
use crate::{Error, Result, Store};

/// Rows of a row group: of pairs about 12 MB.
const GROUP_ROWS: usize = 1 << 20;

/// Rows handed to the writer at once: it looks at them again and again.
const BATCH_ROWS: usize = 1 << 16;

/// A column of a table that is to be written.
#[derive(Debug, Clone)]
pub struct TableColumn {
    field: Field,
}

impl TableColumn {
    /// Whole numbers of 64 bits.
    pub fn u64(name: &str) -> Self {
        TableColumn { field: Field::new(name, DataType::UInt64, false) }
    }

    /// Whole numbers of 32 bits.
    pub fn u32(name: &str) -> Self {
        TableColumn { field: Field::new(name, DataType::UInt32, false) }
    }

    /// Numbers of 32 bits.
    pub fn f32(name: &str) -> Self {
        TableColumn { field: Field::new(name, DataType::Float32, false) }
    }

    /// A column that came beside rows of activations, whose values may be absent.
    pub fn scalar(scalar: &Scalar) -> Self {
        TableColumn { field: Field::new(scalar.name(), scalar.data_type().clone(), true) }
    }
}

/// Values of a column, one for each row.
#[derive(Debug, Clone, Copy)]
pub enum Cells<'a> {
    /// Of [`TableColumn::u64`].
    U64(&'a [u64]),
    /// Of [`TableColumn::u32`].
    U32(&'a [u32]),
    /// Of [`TableColumn::f32`].
    F32(&'a [f32]),
    /// Of [`TableColumn::scalar`].
    Scalar(&'a Values),
}

impl Cells<'_> {
    fn len(&self) -> usize {
        match self {
            Cells::U64(values) => values.len(),
            Cells::U32(values) => values.len(),
            Cells::F32(values) => values.len(),
            Cells::Scalar(values) => values.len(),
        }
    }

    fn array(&self, from: usize, count: usize) -> ArrayRef {
        match self {
            Cells::U64(values) => Arc::new(UInt64Array::from(values[from..from + count].to_vec())),
            Cells::U32(values) => Arc::new(UInt32Array::from(values[from..from + count].to_vec())),
            Cells::F32(values) => Arc::new(Float32Array::from(values[from..from + count].to_vec())),
            Cells::Scalar(values) => values.array().slice(from, count),
        }
    }
}

/// A table that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenTable {
    /// Its rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Hash of the file: xxh3-64, in hexadecimal.
    pub checksum: String,
}

/// Writes a table to a file of a store, which appears, whole, when it is finished. Holds a row group at most.
///
/// ```
/// use loader::{Cells, Store, TableColumn, TableWriter};
///
/// let store = Store::open("memory://table/example")?;
/// let columns = [TableColumn::u64("row"), TableColumn::u32("feature"), TableColumn::f32("activation")];
/// let mut table = TableWriter::create(&store, "activations/part-000000.parquet", &columns, &[("step", "7".into())])?;
/// table.write(&[Cells::U64(&[3, 3, 5]), Cells::U32(&[10, 17, 2]), Cells::F32(&[0.5, 1.5, 0.25])])?;
/// assert_eq!(table.finish()?.rows, 3);
/// # Ok::<(), loader::Error>(())
/// ```
pub struct TableWriter {
    name: String,
    schema: SchemaRef,
    parquet: ArrowWriter<Vec<u8>>,
    upload: Upload,
    /// Rows that are not with the writer yet, fewer than [`BATCH_ROWS`].
    pending: Vec<Vec<ArrayRef>>,
    pending_rows: usize,
    in_group: usize,
    rows: u64,
    bytes: u64,
    hash: Xxh3,
}

impl std::fmt::Debug for TableWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TableWriter({}, {} rows)", self.name, self.rows)
    }
}

impl TableWriter {
    /// Begins the file `key`, with `metadata` in its footer.
    ///
    /// # Errors
    /// Those of the store.
    pub fn create(store: &Store, key: &str, columns: &[TableColumn], metadata: &[(&str, String)]) -> Result<Self> {
        let name = store.url_of(key);
        let fields: Vec<Field> = columns.iter().map(|column| column.field.clone()).collect();
        let schema = Arc::new(Schema::new(fields));
        let pairs = metadata.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
        let mut properties = WriterProperties::builder()
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_compression(Compression::UNCOMPRESSED)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(None)
            .set_key_value_metadata(Some(pairs));
        for field in schema.fields() {
            let path = ColumnPath::from(field.name().as_str());
            let encoding = match field.data_type() {
                DataType::UInt64 | DataType::UInt32 | DataType::Int64 | DataType::Int32 => {
                    Some(Encoding::DELTA_BINARY_PACKED)
                }
                DataType::Float32 | DataType::Float64 => Some(Encoding::PLAIN),
                // As the writer sees fit: texts repeat.
                _ => None,
            };
            if let Some(encoding) = encoding {
                properties =
                    properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
            }
        }
        let options = ArrowWriterOptions::new().with_properties(properties.build());
        let parquet = ArrowWriter::try_new_with_options(Vec::new(), schema.clone(), options)
            .map_err(|error| Error::cannot_write(name.clone(), error))?;
        let pending = vec![Vec::new(); schema.fields().len()];
        Ok(TableWriter {
            upload: store.upload(key)?,
            name,
            schema,
            parquet,
            pending,
            pending_rows: 0,
            in_group: 0,
            rows: 0,
            bytes: 0,
            hash: Xxh3::new(),
        })
    }

    /// Appends rows: values of every column, as many of each.
    ///
    /// # Errors
    /// [`Error::Arguments`] when they do not fit the columns, and those of the store.
    pub fn write(&mut self, columns: &[Cells<'_>]) -> Result<()> {
        let rows = columns.first().map_or(0, Cells::len);
        if columns.len() != self.schema.fields().len() || columns.iter().any(|cells| cells.len() != rows) {
            return Err(Error::Arguments(format!("{}: rows that do not have the columns of the table", self.name)));
        }
        let mut at = 0;
        while at < rows {
            let room = (BATCH_ROWS - self.pending_rows).min(GROUP_ROWS - self.in_group - self.pending_rows);
            let take = room.min(rows - at);
            let to = self.pending.iter_mut().zip(columns);
            to.for_each(|(pending, cells)| pending.push(cells.array(at, take)));
            self.pending_rows += take;
            at += take;
            if self.pending_rows == BATCH_ROWS || self.in_group + self.pending_rows == GROUP_ROWS {
                self.hand_over()?;
            }
            if self.in_group == GROUP_ROWS {
                self.end_group()?;
            }
        }
        self.rows += rows as u64;
        Ok(())
    }

    /// Gives the pending rows to the writer, in one piece however they came.
    fn hand_over(&mut self) -> Result<()> {
        if self.pending_rows == 0 {
            return Ok(());
        }
        let fail = |error: ParquetError| Error::cannot_write(self.name.clone(), error);
        let whole = |pending: &mut Vec<ArrayRef>| {
            let arrays = std::mem::take(pending);
            concat(&arrays.iter().map(|array| &**array).collect::<Vec<_>>())
        };
        let arrays = self.pending.iter_mut().map(whole).collect::<std::result::Result<Vec<_>, ArrowError>>();
        let batch = arrays.and_then(|arrays| RecordBatch::try_new(self.schema.clone(), arrays));
        let batch = batch.map_err(|error| Error::cannot_write(self.name.clone(), error))?;
        self.parquet.write(&batch).map_err(fail)?;
        self.in_group += self.pending_rows;
        self.pending_rows = 0;
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        self.parquet.flush().map_err(|error| Error::cannot_write(self.name.clone(), error))?;
        self.in_group = 0;
        self.send()
    }

    /// Sends on what the writer has put down.
    fn send(&mut self) -> Result<()> {
        let bytes = std::mem::take(self.parquet.inner_mut());
        self.bytes += bytes.len() as u64;
        self.hash.update(&bytes);
        self.upload.write(bytes)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Those of the store.
    pub fn finish(mut self) -> Result<WrittenTable> {
        self.hand_over()?;
        self.parquet.finish().map_err(|error| Error::cannot_write(self.name.clone(), error))?;
        self.send()?;
        self.upload.finish()?;
        Ok(WrittenTable { rows: self.rows, bytes: self.bytes, checksum: format!("{:016x}", self.hash.digest()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a table are the same in whatever calls it was written, over the ends of batches and row groups.
    #[test]
    fn bytes_do_not_depend_on_how_rows_are_handed_over() {
        let store = Store::open("memory://table/cut").expect("a store");
        let count = GROUP_ROWS + BATCH_ROWS + 123;
        let row_p: Vec<u64> = (0..count as u64).map(|pair| pair / 5).collect();
        let feature_p: Vec<u32> = (0..count as u32).map(|pair| pair % 5 * 1000 + pair / 5 % 997).collect();
        let activation_p: Vec<f32> = feature_p.iter().map(|&feature| feature as f32 / 8.0).collect();
        let columns = [TableColumn::u64("row"), TableColumn::u32("feature"), TableColumn::f32("activation")];
        let write = |key: &str, at_once: usize| {
            let mut table = TableWriter::create(&store, key, &columns, &[("a", "b".into())]).expect("begun");
            for start in (0..count).step_by(at_once) {
                let some = start..(start + at_once).min(count);
                let cells = [
                    Cells::U64(&row_p[some.clone()]),
                    Cells::U32(&feature_p[some.clone()]),
                    Cells::F32(&activation_p[some]),
                ];
                table.write(&cells).expect("written");
            }
            let written = table.finish().expect("finished");
            let bytes = store.get(key).expect("there");
            assert_eq!((written.rows, written.bytes), (count as u64, bytes.len() as u64));
            (written.checksum, bytes)
        };
        let whole = write("whole", count);
        assert!(whole.1.len() < 8 * count, "{} bytes of {count} pairs", whole.1.len());
        for at_once in [1000, BATCH_ROWS, BATCH_ROWS + 1] {
            assert!(write("cut", at_once) == whole, "{at_once} at once");
        }
        let mut table = TableWriter::create(&store, "wrong", &columns, &[]).expect("begun");
        let wrong = [Cells::U64(&[1, 2]), Cells::U32(&[1]), Cells::F32(&[1.0, 2.0])];
        assert!(matches!(table.write(&wrong), Err(Error::Arguments(_))));
    }
}
