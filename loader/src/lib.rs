//! Activation shards in Parquet on any object store: manifests, the order of rows, streaming, writing.
//!
//! A run opens a [`Dataset`], starts a [`Stream`] at a [`Cursor`] and takes batches into buffers that it owns. The order of
//! rows is a pure function of (shape of the shards, seed, epoch, position), stated in `order.rs`. Rows come out in their stored
//! [`Dtype`]: conversion and scaling belong to the consumer. The crate knows no GPU, no rank and no mathematics of the trainer.

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
pub use dataset::manifest::{FILE_NAME as MANIFEST, Manifest, Piece, RowGroup, Shard};
pub use dataset::norms::{Norms, TOP};
pub use dataset::sample::{Sample, sample};
pub use dataset::skip::{RowFilter, SkipList};
pub use dataset::tokens::TokenColumn;
pub use dataset::{Contents, Dataset, Folder, LeftOut, OpenOptions, SameBy, Why, is_shard_name};
pub use dtype::Dtype;
pub use error::{Error, Help, Result, Source};
pub use make::synth;
pub use make::writer::{Columns, Compression, ShardWriter, WriteOptions};
pub use store::Store;
pub use store::address::has_query;
pub use store::entry::Entry;
pub use store::location::Location;
pub use store::patience;
pub use store::redact::Redacted;
pub use store::variable::{Unexpanded, check_expanded};
pub use stream::cursor::Cursor;
pub use stream::order::{Order, Partition, RowId, RowOrder, STREAMS};
pub use stream::{Batch, Stream, StreamOptions};
