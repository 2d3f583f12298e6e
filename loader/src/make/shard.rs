//! One shard while it is written, row group by row group; and what a manifest says of it, with checksums.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::{ByteArray, FixedLenByteArray, FixedLenByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::writer::SerializedFileWriter;

use crate::make::columns::ColumnValues;
use crate::make::layout::{Compression, Layout};
use crate::parquet::chunks::{self, Chunk};
use crate::parquet::decode;
use crate::parquet::pages;
use crate::store::Upload;
use crate::{Error, Result, RowGroup, Shard, Store};

/// A shard that takes rows. Its file appears, whole, when it is finished.
pub(crate) struct ShardFile {
    store: Store,
    name: String,
    layout: Layout,
    /// Rows of the row group being filled, and its columns.
    rows: Vec<u8>,
    columns: Vec<ColumnValues<'static>>,
    row_groups: Vec<RowGroup>,
    /// Once there is something to write.
    open: Option<Open>,
}

struct Open {
    parquet: SerializedFileWriter<Vec<u8>>,
    upload: Upload,
    written: u64,
}

impl ShardFile {
    /// A shard without rows, of this name in a folder.
    pub(crate) fn new(store: &Store, name: String, layout: &Layout) -> Self {
        let columns = layout.options.columns.iter().map(|column| ColumnValues::none(column.kind)).collect();
        let (rows, row_groups) = (Vec::new(), Vec::new());
        ShardFile { store: store.clone(), name, layout: layout.clone(), rows, columns, row_groups, open: None }
    }

    fn buffered(&self) -> usize {
        self.rows.len() / self.layout.row_bytes
    }

    /// Rows that it has taken.
    pub(crate) fn rows(&self) -> u64 {
        self.row_groups.iter().map(|group| group.rows).sum::<u64>() + self.buffered() as u64
    }

    /// Appends a range of rows that [`Layout::count`] has seen.
    pub(crate) fn write(&mut self, rows: &[u8], columns: &[ColumnValues<'_>], range: Range<usize>) -> Result<()> {
        let (mut at, row_bytes) = (range.start, self.layout.row_bytes);
        while at < range.end {
            let end = range.end.min(at + self.layout.group_rows - self.buffered());
            self.rows.extend_from_slice(&rows[at * row_bytes..end * row_bytes]);
            self.columns.iter_mut().zip(columns).for_each(|(to, from)| to.append(from, at..end));
            at = end;
            if self.buffered() == self.layout.group_rows {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn failed(&self) -> impl Fn(ParquetError) -> Error + use<> {
        let url = self.store.url_of(&self.name);
        move |e| Error::cannot_write(url.clone(), e)
    }

    fn open(&mut self) -> Result<Open> {
        if let Some(open) = self.open.take() {
            return Ok(open);
        }
        let upload = self.store.upload(&self.name)?;
        let schema = self.layout.schema().map_err(self.failed())?;
        let parquet = SerializedFileWriter::new(Vec::new(), schema, Arc::new(self.layout.properties()));
        Ok(Open { parquet: parquet.map_err(self.failed())?, upload, written: 0 })
    }

    /// Writes the buffered rows as one row group.
    fn flush(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut open = self.open()?;
        let (rows, row_bytes) = (self.buffered(), self.layout.row_bytes);
        let bytes = Bytes::from(std::mem::take(&mut self.rows));
        let Chunk { offset, length } = self.write_group(&mut open.parquet, &bytes).map_err(self.failed())?;
        // The Vec behind `bytes` comes back: nothing else holds it once the row group is closed.
        self.rows = bytes.try_into_mut().map(Vec::from).unwrap_or_default();
        self.rows.clear();
        self.columns.iter_mut().for_each(ColumnValues::clear);
        let file = std::mem::take(open.parquet.inner_mut());
        let start = (offset - open.written) as usize;
        let chunk = &file[start..start + length as usize];
        let raw = self.layout.options.compression == Compression::None;
        let runs = raw.then(|| pages::raw_runs(chunk, rows, row_bytes));
        let pieces = match &runs {
            Some(Ok(runs)) => decode::pieces(chunk, rows as u64, Some((runs, row_bytes))),
            _ => decode::pieces(chunk, rows as u64, None),
        };
        self.row_groups.push(RowGroup { rows: rows as u64, offset, length, pieces });
        open.written += file.len() as u64;
        open.upload.write(file)?;
        self.open = Some(open);
        Ok(())
    }

    fn write_group(&self, parquet: &mut SerializedFileWriter<Vec<u8>>, rows: &Bytes) -> ParquetResult<Chunk> {
        let (row_bytes, page_rows) = (self.layout.row_bytes, self.layout.page_rows);
        let mut group = parquet.next_row_group()?;
        if let Some(mut column) = group.next_column()? {
            let typed = column.typed::<FixedLenByteArrayType>();
            let mut page = Vec::with_capacity(page_rows.min(rows.len() / row_bytes));
            for start in (0..rows.len()).step_by(page_rows * row_bytes) {
                let end = (start + page_rows * row_bytes).min(rows.len());
                page.clear();
                page.extend(
                    (start..end)
                        .step_by(row_bytes)
                        .map(|at| FixedLenByteArray::from(ByteArray::from(rows.slice(at..at + row_bytes)))),
                );
                typed.write_batch(&page, None, None)?;
            }
            column.close()?;
        }
        for values in &self.columns {
            if let Some(column) = group.next_column()? {
                values.write(column)?;
            }
        }
        let chunk = chunks::place(group.close()?.column(0));
        parquet.flush()?;
        Ok(chunk)
    }

    /// Ends the shard, with whatever rows it has.
    pub(crate) fn finish(mut self) -> Result<Shard> {
        self.flush()?;
        let mut open = self.open()?;
        open.parquet.finish().map_err(self.failed())?;
        let rest = std::mem::take(open.parquet.inner_mut());
        let size = open.written + rest.len() as u64;
        open.upload.write(rest)?;
        open.upload.finish()?;
        let rows = self.row_groups.iter().map(|g| g.rows).sum();
        let raw = self.layout.options.compression == Compression::None;
        Ok(Shard { path: self.name, size, etag: None, rows, raw, row_groups: self.row_groups })
    }
}
