//! A column of text, row by row from any row on, whatever the file claims.
//!
//! Files of text are large, and their row groups too, so that pages are read one after the other and not a row group at once. The reader
//! makes what a page's header says: it is looked at first, and a page that would be larger than any writer makes them is refused. Rows
//! are decoded one by one, since a dictionary may repeat one long text.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_schema};
use parquet::basic::Compression;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};

use crate::error::Flaw;
use crate::parquet::chunks::{self, Problem};
use crate::parquet::decode::broken;
use crate::parquet::footer;
use crate::parquet::inflate;
use crate::parquet::metadata::{check_codec, groups_with_rows, guarded};
use crate::parquet::pages;
use crate::{Error, Result, Store};

/// Bytes of a page at most, compressed or not: writers end pages at 1 MiB, some at 100 MB.
const MOST_PAGE: u64 = 128 << 20;

/// Bytes that are fetched at once, at least.
const FETCHED: u64 = 4 << 20;

/// A Parquet file with columns of text.
#[derive(Debug)]
pub struct Texts {
    object: Object,
    metadata: ParquetMetaData,
    data_end: u64,
    /// The columns at the top and whether they are text.
    columns: Vec<(String, bool)>,
}

impl Texts {
    /// Opens a file of `size` bytes.
    ///
    /// # Errors
    /// [`Error::Data`] where it is no Parquet file or damaged; those of the store.
    pub fn open(store: &Store, key: &str, size: u64) -> Result<Texts> {
        let (bytes, data_end) = footer::bytes(store, key, size)?;
        let fail = |flaw: Flaw| Error::data(store.url_of(key), flaw);
        let metadata = footer::decoded(&bytes).map_err(fail)?;
        let schema = guarded(|| {
            let schema = metadata.file_metadata().schema_descr();
            parquet_to_arrow_schema(schema, None).map_err(|e| Flaw::of(format!("damaged footer: {e}"), e))
        });
        let is_text = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let fields = schema.map_err(fail)?;
        let columns = fields.fields().iter().map(|field| (field.name().clone(), is_text(field.data_type()))).collect();
        let object = Object { store: store.clone(), key: key.into(), size, state: Arc::default() };
        Ok(Texts { object, metadata, data_end, columns })
    }

    /// The columns at the top of the file, and whether each is text.
    pub fn columns(&self) -> impl Iterator<Item = (&str, bool)> {
        self.columns.iter().map(|(name, is_text)| (name.as_str(), *is_text))
    }

    /// Rows of the file, as its footer says.
    pub fn row_count(&self) -> u64 {
        u64::try_from(self.metadata.file_metadata().num_rows()).unwrap_or_default()
    }

    /// The rows of a column of text from a row on. A text of more than `most` bytes is not handed over.
    ///
    /// # Errors
    /// [`Error::Data`] where there is no such column or it is damaged; those of the store.
    pub fn rows(self, column: &str, row: u64, most: usize) -> Result<TextRows> {
        let Texts { object, metadata, data_end, columns } = self;
        let name = object.store.url_of(&object.key);
        let fail = |flaw: Flaw| Error::data(name.clone(), flaw);
        if !columns.iter().any(|(name, is_text)| name == column && *is_text) {
            return Err(fail(format!("has no column {column:?} of text").into()));
        }
        let schema = metadata.file_metadata().schema_descr_ptr();
        let leaf = (0..schema.num_columns()).find(|&leaf| schema.column(leaf).path().parts() == [column]);
        let leaf = leaf.ok_or_else(|| fail(format!("has no column {column:?} of text").into()))?;
        let page = |at: u64| object.page_at(at);
        let settled = chunks::settle(metadata, data_end, &[leaf], page);
        let metadata = Arc::new(settled.map_err(|problem| match problem {
            Problem::Footer(flaw) => fail(flaw),
            Problem::Store(error) => error,
        })?);
        let mut first = None;
        let mut before = 0u64;
        let mut codecs = Vec::new();
        for (at, group) in groups_with_rows(&metadata) {
            let chunk = group.column(leaf);
            check_codec(chunk).map_err(|problem| fail(format!("row group {at}: {problem}").into()))?;
            let place = chunks::place(chunk);
            codecs.push((place.offset, chunk.compression()));
            let rows = group.num_rows() as u64;
            if first.is_none() && before + rows > row {
                first = Some((at, row - before));
            }
            before += rows;
        }
        codecs.sort_unstable_by_key(|(offset, _)| *offset);
        object.lock().codecs = codecs;
        // Row groups before the row are not looked at.
        let (first, skipped) = first.unwrap_or((metadata.num_row_groups(), 0));
        let reader = guarded(|| {
            // Without the embedded arrow schema, which may ask for dictionaries: text is text.
            let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            let known = ArrowReaderMetadata::try_new(metadata.clone(), options).map_err(broken)?;
            ParquetRecordBatchReaderBuilder::new_with_metadata(object.clone(), known)
                .with_row_groups((first..metadata.num_row_groups()).collect())
                .with_projection(ProjectionMask::leaves(&schema, [leaf]))
                .with_batch_size(1)
                .with_offset(usize::try_from(skipped).unwrap_or(usize::MAX))
                .build()
                .map_err(broken)
        });
        let reader = reader.map_err(|flaw| object.failure(row, flaw))?;
        Ok(TextRows { object, reader, row, most })
    }
}

/// What a row of a column of text holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// A text.
    Whole(String),
    /// One with more bytes than were asked for at most.
    TooLong,
}

/// The texts of a column, one after the other.
pub struct TextRows {
    object: Object,
    reader: ParquetRecordBatchReader,
    row: u64,
    most: usize,
}

impl std::fmt::Debug for TextRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextRows({}, row {})", self.object.store.url_of(&self.object.key), self.row)
    }
}

impl TextRows {
    /// The text of the next row: empty where it is null, and nothing behind the last.
    ///
    /// # Errors
    /// [`Error::Data`] where it is damaged; those of the store, as they are.
    pub fn next_text(&mut self) -> Result<Option<Text>> {
        let (reader, row, most) = (&mut self.reader, self.row, self.most);
        let text = guarded(|| {
            let Some(batch) = reader.next() else { return Ok(None) };
            let batch = batch.map_err(broken)?;
            let values = batch.column(0);
            if values.is_empty() || values.is_null(0) {
                return Ok(Some(Text::Whole(String::new())));
            }
            let text = match values.data_type() {
                DataType::Utf8 => values.as_string::<i32>().value(0),
                DataType::LargeUtf8 => values.as_string::<i64>().value(0),
                _ => values.as_string_view().value(0),
            };
            Ok(Some(if text.len() > most { Text::TooLong } else { Text::Whole(text.to_owned()) }))
        });
        let text = text.map_err(|flaw| self.object.failure(row, flaw))?;
        self.row += 1;
        Ok(text)
    }
}

/// An object as Parquet's reader takes it. The reader goes forward in small steps, so the last block is kept.
#[derive(Clone, Debug)]
struct Object {
    store: Store,
    key: String,
    size: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    block_at: u64,
    block: Bytes,
    /// Where the chunks of the column begin, and how each is compressed.
    codecs: Vec<(u64, Compression)>,
    /// The page whose header was looked at last: where its data begin, and what they become.
    page: Option<(pages::Page, u64)>,
    /// What the store said when it failed, or why a page was refused: the reader keeps words alone.
    failed: Option<Error>,
}

impl Object {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's failure, if there was one, and else a flaw of a row.
    fn failure(&self, row: u64, flaw: Flaw) -> Error {
        let failed = self.lock().failed.take();
        failed.unwrap_or_else(|| Error::data(format!("{}, row {row}", self.store.url_of(&self.key)), flaw))
    }

    fn range(&self, start: u64, length: u64) -> Result<Bytes> {
        let mut state = self.lock();
        let end = start.saturating_add(length).min(self.size);
        let start = start.min(end);
        if start < state.block_at || end > state.block_at + state.block.len() as u64 {
            let to = self.size.min(end.max(start + FETCHED));
            state.block = match start < to {
                true => self.store.get_range(&self.key, start..to)?,
                false => Bytes::new(),
            };
            state.block_at = start;
        }
        let at = state.block_at;
        Ok(state.block.slice((start - at) as usize..(end - at) as usize))
    }

    /// The header of the page at a place, if it is one.
    fn page_at(&self, at: u64) -> Result<Option<pages::Page>> {
        // Old writers put the least and the greatest text into it, whole.
        for length in [4 << 10, FETCHED] {
            if let Ok(page) = pages::header(&self.range(at, length)?) {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// The same for Parquet's reader, whose errors have no room for the store's.
    fn asked<T>(&self, result: Result<T>) -> ParquetResult<T> {
        result.map_err(|error| {
            let words = ParquetError::General(error.to_string());
            self.lock().failed = Some(error);
            words
        })
    }

    /// Looks at the header of the page that the reader is about to read at `start`.
    fn check_page(&self, start: u64) -> ParquetResult<()> {
        // A reader that has looked at a header already comes back for the data.
        if self.lock().page.is_some_and(|(_, data)| data == start) {
            return Ok(());
        }
        let refuse = |text: String| self.asked(Err(Error::data(self.store.url_of(&self.key), text)));
        let Some(page) = self.asked(self.page_at(start))? else {
            return refuse("a page has no header that can be read".into());
        };
        let bytes = page.uncompressed.max((page.end - page.data) as i64);
        if page.uncompressed < 0 || bytes as u64 > MOST_PAGE {
            let most = MOST_PAGE >> 20;
            return refuse(format!("a page of {bytes} bytes, and {most} MiB are the most: write smaller pages"));
        }
        self.lock().page = Some((page, start + page.data as u64));
        Ok(())
    }

    /// Looks at the data of the page that begins at `start`: the reader goes on for as long as some codecs give bytes.
    fn check_length(&self, start: u64, bytes: &Bytes) -> ParquetResult<()> {
        let state = self.lock();
        let Some((page, _)) = state.page.filter(|(_, data)| *data == start) else { return Ok(()) };
        let chunk = state.codecs.partition_point(|(offset, _)| *offset <= start);
        let codec = chunk.checked_sub(1).map(|at| state.codecs[at].1);
        drop(state);
        if codec.is_some_and(|codec| inflate::is_longer(&page, bytes, codec)) {
            let problem = "damaged: a page holds more than its header says";
            return self.asked(Err(Error::data(self.store.url_of(&self.key), problem)));
        }
        Ok(())
    }
}

impl Length for Object {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Object {
    type T = Forward;

    fn get_read(&self, start: u64) -> ParquetResult<Forward> {
        self.check_page(start)?;
        Ok(Forward { object: self.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.asked(self.range(start, (length as u64).min(MOST_PAGE)))?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} lie behind the end")));
        }
        self.check_length(start, &bytes)?;
        Ok(bytes)
    }
}

/// Bytes from a place on.
struct Forward {
    object: Object,
    at: u64,
}

impl Read for Forward {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.object.range(self.at, to.len() as u64);
        let bytes = self.object.asked(bytes).map_err(std::io::Error::other)?;
        to[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use arrow::record_batch::RecordBatch;
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::{EnabledStatistics, WriterProperties};

    use super::*;
    use crate::parquet::thrift::integer;

    fn file(folder: &std::path::Path, texts: &[String], codec: Compression) -> Vec<u8> {
        let column: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let properties = WriterProperties::builder().set_compression(codec).set_dictionary_enabled(false);
        let properties = properties.set_statistics_enabled(EnabledStatistics::None).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        let bytes = writer.into_inner().unwrap();
        std::fs::write(folder.join("x.parquet"), &bytes).unwrap();
        bytes
    }

    fn rows(folder: &std::path::Path, row: u64) -> Result<TextRows> {
        let size = std::fs::metadata(folder.join("x.parquet")).unwrap().len();
        let store = Store::open(folder.to_str().unwrap()).unwrap();
        Texts::open(&store, "x.parquet", size)?.rows("text", row, 1 << 20)
    }

    /// Texts that compress badly.
    fn texts(count: usize, bytes: usize) -> Vec<String> {
        let letter = |at: usize| char::from(b'a' + (xxh3(at) % 26) as u8);
        (0..count).map(|text| (0..bytes).map(|at| letter(text * bytes + at)).collect()).collect()
    }

    fn xxh3(at: usize) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&at.to_le_bytes())
    }

    #[test]
    fn rows_come_from_any_row_on() {
        let folder = tempfile::tempdir().unwrap();
        let texts = texts(3000, 1000);
        for codec in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::BROTLI(Default::default()),
        ] {
            file(folder.path(), &texts, codec);
            for from in [0, 1, 1500, 2999, 3000] {
                let mut rows = rows(folder.path(), from).unwrap();
                for text in &texts[from as usize..] {
                    assert_eq!(rows.next_text().unwrap(), Some(Text::Whole(text.clone())));
                }
                assert_eq!(rows.next_text().unwrap(), None);
            }
        }
    }

    #[test]
    fn what_is_too_long_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), &["a".repeat(2 << 20), "b".into()], Compression::SNAPPY);
        let mut rows = rows(folder.path(), 0).unwrap();
        assert_eq!(rows.next_text().unwrap(), Some(Text::TooLong));
        assert_eq!(rows.next_text().unwrap(), Some(Text::Whole("b".into())));
        assert_eq!(rows.next_text().unwrap(), None);
    }

    #[test]
    fn what_the_store_says_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), &texts(12, 1 << 20), Compression::UNCOMPRESSED);
        let mut rows = rows(folder.path(), 0).unwrap();
        rows.next_text().unwrap();
        std::fs::remove_file(folder.path().join("x.parquet")).unwrap();
        let error = std::iter::repeat_with(|| rows.next_text()).take(12).find_map(Result::err).unwrap();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }

    #[test]
    fn a_page_may_not_hold_more_than_its_header_says() {
        let folder = tempfile::tempdir().unwrap();
        for codec in [Compression::GZIP(Default::default()), Compression::BROTLI(Default::default())] {
            let mut bytes = file(folder.path(), &["a".repeat(20 << 20)], codec);
            let page = pages::header(&bytes[4..]).unwrap();
            let (said, less) = (integer(page.uncompressed as u64), integer(1_100_000));
            assert_eq!(said.len(), less.len());
            let at = 4 + bytes[4..4 + page.data].windows(said.len()).position(|bytes| bytes == said).unwrap();
            bytes[at..at + less.len()].copy_from_slice(&less);
            std::fs::write(folder.path().join("x.parquet"), &bytes).unwrap();
            let error = rows(folder.path(), 0).unwrap().next_text().unwrap_err().to_string();
            assert!(error.contains("more than its header says"), "{codec}: {error}");
        }
    }
}
