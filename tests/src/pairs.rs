//! What `sae encode` has written, read without our own reader.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Activations in the files of a folder, by row and feature.
///
/// # Panics
/// Where a pair comes twice, or something is not there.
#[track_caller]
pub fn pairs(folder: &Path) -> BTreeMap<(u64, u32), f32> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder.join("activations")).expect("pairs").flatten() {
        let file = File::open(entry.path()).expect("a file");
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build().expect("a reader") {
            let batch = batch.expect("rows");
            let (row, feature) =
                (batch.column(0).as_primitive::<UInt64Type>(), batch.column(1).as_primitive::<UInt32Type>());
            let activation = batch.column(2).as_primitive::<Float32Type>();
            for i in 0..batch.num_rows() {
                let before = all.insert((row.value(i), feature.value(i)), activation.value(i));
                assert_eq!(before, None, "a pair comes once");
            }
        }
    }
    all
}
