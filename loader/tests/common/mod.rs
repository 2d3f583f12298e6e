//! Datasets whose rows say which row they are.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;

use arrow::array::{ArrayRef, RecordBatch};
use loader::{
    Batch, Cursor, Dataset, Dtype, OpenOptions, Order, ShardWriter, Store, Stream, StreamOptions, WriteOptions,
};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterPropertiesBuilder;

/// Row `i`: its number in the first eight bytes, then a pattern of it.
pub fn row(i: u64, row_bytes: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..row_bytes).map(|k| (i.wrapping_mul(31) as usize + k) as u8).collect();
    bytes[..8].copy_from_slice(&i.to_le_bytes());
    bytes
}

/// Writes `rows` rows in shards of `shard_rows`, with small pages and row groups.
pub fn write(url: &str, rows: u64, shard_rows: u64, width: usize, dtype: Dtype) -> Store {
    let store = Store::open(url).unwrap();
    let mut options = WriteOptions::new(width, dtype);
    options.shard_rows = shard_rows;
    options.page_bytes = 37 * width * dtype.size();
    options.row_group_bytes = 500 * width * dtype.size();
    let mut writer = ShardWriter::create(&store, options).unwrap();
    for i in 0..rows {
        writer.write(&row(i, width * dtype.size()), &[]).unwrap();
    }
    writer.finish().unwrap();
    store
}

pub fn open(url: &str) -> Dataset {
    Dataset::open(&[url.to_string()], &OpenOptions::default()).unwrap()
}

/// Rows of the shards before one.
fn first_of(dataset: &Dataset, shard: u32) -> u64 {
    dataset.shards()[..shard as usize].iter().map(|shard| shard.rows).sum()
}

/// All batches of a stream: (batch, row numbers). Checks every byte.
pub fn drain(dataset: &Dataset, options: &StreamOptions, from: Cursor) -> Vec<(Batch, Vec<u64>)> {
    let mut stream = Stream::start(dataset, options.clone(), from).unwrap();
    let mut buffer = vec![0u8; stream.max_rows() * dataset.row_bytes()];
    let mut batches = Vec::new();
    while let Some(batch) = stream.next(&mut buffer).unwrap() {
        let mut ids = Vec::new();
        for bytes in buffer[..batch.rows * dataset.row_bytes()].chunks_exact(dataset.row_bytes()) {
            let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(bytes, row(id, dataset.row_bytes()), "row {id} arrived damaged");
            ids.push(id);
        }
        let named: Vec<u64> = stream.row_ids(&batch).iter().map(|id| first_of(dataset, id.shard) + id.row).collect();
        assert_eq!(named, ids, "the rows that came are those that the order names");
        batches.push((batch, ids));
    }
    batches
}

pub fn ids(batches: &[(Batch, Vec<u64>)]) -> Vec<u64> {
    batches.iter().flat_map(|(_, ids)| ids.iter().copied()).collect()
}

/// A folder of the process's memory store that no other test uses.
pub fn memory() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("memory://test-{}/data", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Writes a file of these columns: (name, values, whether they may be null).
pub fn file(path: &Path, columns: Vec<(&str, ArrayRef, bool)>, properties: WriterPropertiesBuilder) {
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let out = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(out, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// All rows of a dataset as f32, in the order of storage.
pub fn rows_of(dataset: &Dataset) -> Vec<f32> {
    let options = StreamOptions { order: Order::Sequential, batch: 64, ..StreamOptions::default() };
    let mut stream = Stream::start(dataset, options, Cursor::default()).unwrap();
    let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
    let mut out = Vec::new();
    while let Some(batch) = stream.next(&mut buffer).unwrap() {
        let mut rows = vec![0f32; batch.rows * dataset.width()];
        dataset.dtype().to_f32(&buffer[..batch.rows * dataset.row_bytes()], &mut rows);
        out.extend(rows);
    }
    out
}
