//! Writing shards one after the other, and a manifest with checksums.

use crate::dataset::is_shard_name;
use crate::dataset::manifest;
use crate::make::columns::ColumnValues;
use crate::make::layout::{COLUMN, Layout, WriteOptions};
use crate::make::shard::ShardFile;
use crate::{Error, Manifest, Result, Shard, Store};

/// Streams rows into shards of a store and ends with a manifest.
///
/// ```
/// use loader::{Dtype, ExtraColumn, ShardWriter, Store, WriteOptions};
///
/// let folder = tempfile::tempdir()?;
/// let store = Store::open(&folder.path().display().to_string())?;
/// let options = WriteOptions { columns: ExtraColumn::tokens(), shard_rows: 2, ..WriteOptions::new(4, Dtype::F32) };
/// let mut writer = ShardWriter::create(&store, options)?;
/// // Three rows of four numbers, and what a row filter may look at. Any number of rows may be written at once.
/// let mut rows = vec![0; 3 * 4 * Dtype::F32.size()];
/// Dtype::F32.from_f32(&[0.5; 3 * 4], &mut rows);
/// let (token_id, doc_id, pos) = ([17, 4, 9], [0, 0, 1], [0, 1, 0]);
/// writer.write(&rows, &[(&token_id).into(), (&doc_id).into(), (&pos).into()])?;
///
/// let manifest = writer.finish()?;
/// assert_eq!((manifest.shards.len(), manifest.rows()), (2, 3));
/// assert!(store.head("shard-00001.parquet")?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ShardWriter {
    store: Store,
    layout: Layout,
    open: Option<ShardFile>,
    shards: Vec<Shard>,
}

impl std::fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardWriter({}, {} shards)", self.store.url(), self.shards.len())
    }
}

impl ShardWriter {
    /// Starts writing into a folder, which must not hold shards yet.
    pub fn create(store: &Store, options: WriteOptions) -> Result<Self> {
        let layout = Layout::new(options)?;
        let taken =
            store.lists() && store.list("")?.iter().any(|e| is_shard_name(&e.key) || e.key == manifest::FILE_NAME);
        if taken {
            return Err(Error::Arguments(format!("{} already holds shards: name an empty folder", store.url())));
        }
        Ok(ShardWriter { store: store.clone(), layout, open: None, shards: Vec::new() })
    }

    /// Appends rows in the stored dtype, with the values of each column that the options declare, in their order.
    pub fn write(&mut self, rows: &[u8], columns: &[ColumnValues<'_>]) -> Result<()> {
        let count = self.layout.count(rows, columns)?;
        let mut at = 0;
        while at < count {
            let open = match &mut self.open {
                Some(open) => open,
                none => {
                    let name = format!("{}-{:05}.parquet", self.layout.options.prefix, self.shards.len());
                    none.insert(ShardFile::new(&self.store, name, &self.layout))
                }
            };
            let room = self.layout.options.shard_rows - open.rows();
            let end = at + (count - at).min(usize::try_from(room).unwrap_or(usize::MAX));
            open.write(rows, columns, at..end)?;
            at = end;
            if open.rows() == self.layout.options.shard_rows {
                self.close()?;
            }
        }
        Ok(())
    }

    /// Ends the last shard and writes the manifest.
    pub fn finish(mut self) -> Result<Manifest> {
        self.close()?;
        let WriteOptions { width, dtype, prepared, .. } = self.layout.options;
        let manifest = Manifest::new(width, dtype, prepared, true, std::mem::take(&mut self.shards));
        let manifest = manifest.with_column(Some(COLUMN.to_string()));
        self.store.put(manifest::FILE_NAME, manifest.to_json())?;
        Ok(manifest)
    }

    /// Ends the open shard.
    fn close(&mut self) -> Result<()> {
        if let Some(open) = self.open.take() {
            self.shards.push(open.finish()?);
        }
        Ok(())
    }
}
