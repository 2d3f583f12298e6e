//! Text from a column of Parquet, row by row.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::file::File;
use crate::error::{Error, Help, Result};

/// Rows that are decoded at once.
const BATCH: usize = 64;

/// Bytes that are fetched at once, at least.
const FETCHED: u64 = 4 << 20;

/// An object as Parquet's reader takes it. The reader goes forward in small steps, so the last block is kept.
#[derive(Clone)]
struct Object {
    file: Arc<File>,
    last: Arc<Mutex<(u64, Bytes)>>,
}

impl Length for Object {
    fn len(&self) -> u64 {
        self.file.size
    }
}

impl Object {
    fn range(&self, start: u64, length: u64) -> ParquetResult<Bytes> {
        let end = start.checked_add(length).filter(|&end| end <= self.file.size);
        let end = end.ok_or_else(|| ParquetError::EOF(format!("{length} bytes at {start} lie behind the end")))?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, block) = &*last;
        if start < *at || end > at + block.len() as u64 {
            let to = self.file.size.min(end.max(start + FETCHED));
            let fetched = self.file.store.get_range(&self.file.key, start..to);
            *last = (start, fetched.map_err(|e| ParquetError::External(Box::new(e)))?);
        }
        let (at, block) = &*last;
        Ok(block.slice((start - at) as usize..(end - at) as usize))
    }
}

impl ChunkReader for Object {
    type T = Forward;

    fn get_read(&self, start: u64) -> ParquetResult<Forward> {
        Ok(Forward { object: self.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.range(start, length as u64)
    }
}

/// Bytes from a place on.
struct Forward {
    object: Object,
    at: u64,
}

impl Read for Forward {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let count = (self.object.file.size - self.at.min(self.object.file.size)).min(to.len() as u64);
        let bytes = self.object.range(self.at, count).map_err(std::io::Error::other)?;
        to[..bytes.len()].copy_from_slice(&bytes);
        self.at += count;
        Ok(bytes.len())
    }
}

/// The rows of a file from some row on.
pub(super) struct Rows {
    file: Arc<File>,
    reader: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    at: usize,
}

impl Rows {
    /// Opens a file at a row.
    pub(super) fn open(file: &File, column: &str, row: u64) -> Result<Rows> {
        let file = Arc::new(file.clone());
        let object = Object { file: Arc::clone(&file), last: Arc::default() };
        // What Arrow's writers say of types beside the schema may ask for dictionaries; text is text.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder =
            ParquetRecordBatchReaderBuilder::try_new_with_options(object, options).map_err(|e| failed(&file, e))?;
        let schema = builder.schema();
        let Ok(at) = schema.index_of(column) else {
            let names: Vec<&str> = schema.fields().iter().take(20).map(|field| field.name().as_str()).collect();
            let problem = format!("has no column {column:?} of text; it has {}", names.join(", "));
            return Err(Error::data(file.url(), problem).with(Help::Column));
        };
        if !matches!(schema.field(at).data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            let problem = format!("its column {column:?} is no text, but {}", schema.field(at).data_type());
            return Err(Error::data(file.url(), problem).with(Help::Column));
        }
        // Row groups before the row are not looked at.
        let (mut first, mut before) = (0, 0u64);
        let groups = builder.metadata().row_groups();
        while first < groups.len() && before + groups[first].num_rows().max(0) as u64 <= row {
            before += groups[first].num_rows().max(0) as u64;
            first += 1;
        }
        let (groups, mask) = ((first..groups.len()).collect(), ProjectionMask::roots(builder.parquet_schema(), [at]));
        let builder = builder.with_row_groups(groups).with_projection(mask).with_batch_size(BATCH);
        let reader = builder.with_offset((row - before) as usize).build().map_err(|e| failed(&file, e))?;
        Ok(Rows { file, reader, batch: None, at: 0 })
    }

    /// The text of the next row: empty where it is null, and nothing behind the last.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.at < batch.num_rows()) {
                let (values, at) = (batch.column(0), self.at);
                self.at += 1;
                if values.is_null(at) {
                    return Ok(Some(String::new()));
                }
                let text = match values.data_type() {
                    DataType::Utf8 => values.as_string::<i32>().value(at),
                    DataType::LargeUtf8 => values.as_string::<i64>().value(at),
                    _ => values.as_string_view().value(at),
                };
                return Ok(Some(text.to_owned()));
            }
            match self.reader.next() {
                None => return Ok(None),
                Some(batch) => {
                    let batch = batch.map_err(|e| Error::data(self.file.url(), format!("cannot be read: {e}")))?;
                    (self.batch, self.at) = (Some(batch), 0);
                }
            }
        }
    }
}

/// What a failure of Parquet's reader is: the store's, or damage.
fn failed(file: &File, error: ParquetError) -> Error {
    if let ParquetError::External(inner) = &error
        && let Some(error) = inner.downcast_ref::<loader::Error>()
    {
        return Error::Loader(error.clone());
    }
    Error::data(file.url(), format!("is no Parquet that can be read: {error}"))
}
