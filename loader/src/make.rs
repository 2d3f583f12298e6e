//! Shards are made here: written from rows, and from a description of rows.

pub mod synth;
pub(crate) mod table;
pub(crate) mod writer;
