//! Shards are made here: written from rows, by one process or by several in parts, and from a description of rows.

pub(crate) mod columns;
mod differences;
pub(crate) mod layout;
pub mod parts;
pub(crate) mod shard;
pub mod synth;
pub(crate) mod table;
pub(crate) mod writer;
