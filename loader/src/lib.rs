//! Activation shards in Parquet on any object store: manifests, the order of rows, streaming, writing.
//!
//! A run opens a [`Dataset`], starts a [`Stream`] at a [`Cursor`] and takes batches into buffers that it owns. The order of
//! rows is a pure function of (shape of the shards, seed, epoch, position), stated in `order.rs`. Rows come out in their stored
//! [`Dtype`]: conversion and scaling belong to the consumer. The crate knows no GPU, no rank and no mathematics of the trainer.
//!
//! Synthetic shards are made, opened, and read once in batches. A path may be a URL, such as `s3://bucket/prefix`, here as anywhere:
//!
//! ```
//! use loader::{Cursor, Dataset, Dtype, OpenOptions, Store, Stream, StreamOptions, synth};
//!
//! let folder = tempfile::tempdir()?;
//! let url = folder.path().join("shards").display().to_string();
//! let spec = synth::Spec { features: 32, width: 8, rows: 1000, active: 2.0, dtype: Dtype::F16, ..synth::Spec::default() };
//! synth::write(&spec, &Store::open(&url)?, 1, &mut |_rows_written| {})?;
//!
//! let dataset = Dataset::open(&[url], &OpenOptions::default())?;
//! assert_eq!((dataset.rows(), dataset.width(), dataset.dtype()), (1000, 8, Dtype::F16));
//!
//! let options = StreamOptions { batch: 64, ..StreamOptions::default() };
//! let mut stream = Stream::start(&dataset, options, Cursor::default())?;
//! let mut buffer = vec![0; stream.max_rows() * dataset.row_bytes()];
//! let mut rows = 0;
//! while let Some(batch) = stream.next(&mut buffer)? {
//!     let stored = &buffer[..batch.rows * dataset.row_bytes()];
//!     let mut x_bd = vec![0.0; batch.rows * dataset.width()];
//!     dataset.dtype().to_f32(stored, &mut x_bd);
//!     rows += batch.rows;
//! }
//! assert_eq!(rows, 1000, "every row once, in a last short batch too");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod dataset;
mod dtype;
mod error;
mod make;
pub mod memory;
pub mod number;
mod parquet;
mod store;
mod stream;

pub use dataset::heavy::{Heavy, HeavyAt, Remedy, heavy};
pub use dataset::inspect::{InspectOptions, InspectProgress, Inspection, ManifestState, NormQuantiles, inspect};
pub use dataset::manifest::{FILE_NAME as MANIFEST, Manifest, Piece, RowGroup, Shard, Source};
pub use dataset::norms::{Norms, TOP};
pub use dataset::sample::{Sample, sample};
pub use dataset::scalars::{Scalar, Scalars, Values};
pub use dataset::skip::{RowFilter, SkipList};
pub use dataset::tokens::TokenColumn;
pub use dataset::{Contents, Dataset, Folder, LeftOut, OpenOptions, Resolver, SameBy, Why, is_shard_name};
pub use dtype::Dtype;
pub use error::{Cause, Error, Help, Result};
pub use make::columns::{ColumnType, ColumnValues, ExtraColumn};
pub use make::layout::{COLUMN, Compression, WriteOptions};
pub use make::table::{Cells, TableColumn, TableWriter, WrittenTable};
pub use make::writer::ShardWriter;
pub use make::{parts, synth};
pub use parquet::records::{RecordRows, Records};
pub use parquet::texts::{Text, TextRows, Texts};
pub use store::Store;
pub use store::address::has_query;
pub use store::entry::Entry;
pub use store::location::Location;
pub use store::patience;
pub use store::redact::Redacted;
pub use store::variable::{Unexpanded, check_expanded};
pub use stream::batch::Batch;
pub use stream::cursor::Cursor;
pub use stream::in_sequence::{GroupOfRows, InSequence, RowPiece, Wanted};
pub use stream::order::{Order, Partition, RowId, RowOrder, STREAMS};
pub use stream::positions::Positions;
pub use stream::{Stream, StreamOptions};
