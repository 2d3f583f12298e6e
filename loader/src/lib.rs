//! Activation shards in Parquet on any object store: manifests, the order of rows, streaming, writing.
//!
//! A run opens a [`Dataset`], starts a [`Stream`] at a [`Cursor`] and takes batches into buffers that it owns. The order of
//! rows is a pure function of (shape of the shards, seed, epoch, position), stated in `order.rs`. Rows come out in their stored
//! [`Dtype`]: conversion and scaling belong to the consumer. The crate knows no GPU, no rank and no mathematics of the trainer.

mod address;
mod chunks;
mod column;
mod cursor;
mod dataset;
mod decode;
mod dtype;
mod environment;
mod error;
mod feed;
mod footer;
mod footers;
mod heavy;
mod inspect;
mod io;
mod key;
mod listing;
mod load;
mod local;
mod location;
mod manifest;
pub mod memory;
mod nested;
mod norms;
pub mod number;
mod order;
mod outage;
mod pages;
pub mod patience;
mod permutation;
mod pool;
mod sample;
mod skip;
mod store;
mod stream;
pub mod synth;
mod thrift;
mod tokens;
mod unit;
mod upload;
mod variable;
mod writer;

pub use address::has_query;
pub use cursor::Cursor;
pub use dataset::{Contents, Dataset, Folder, LeftOut, OpenOptions, SameBy, Why, is_shard_name};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use heavy::{Heavy, HeavyAt, Remedy, heavy};
pub use inspect::{InspectOptions, Inspection, ManifestState, NormQuantiles, Progress, inspect};
pub use location::Location;
pub use manifest::{FILE_NAME as MANIFEST, Manifest, Piece, RowGroup, Shard};
pub use norms::{Norms, TOP};
pub use order::{Order, Plan, RowId, STREAMS};
pub use sample::{Sample, sample};
pub use skip::{RowFilter, SkipList};
pub use store::{Entry, Store};
pub use stream::{Batch, Stream, StreamOptions};
pub use tokens::TokenColumn;
pub use variable::unexpanded;
pub use writer::{Columns, Compression, ShardWriter, WriteOptions};
