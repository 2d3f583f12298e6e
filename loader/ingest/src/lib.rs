//! Activations as other tools keep them, turned into shards: NumPy's arrays, safetensors, Arrow and Parquet with contexts as rows, SAELens' activation
//! cache, BioNeMo's stores, vLLM's hidden states, PyTorch's archives.
//!
//! A [`Survey`] looks into a source and finds files, rows, columns and parts before anything is read; [`write`] makes the parts of a worker. Files are
//! read in ranges of records, so memory does not grow with them (Parquet: with their row groups). What a file claims is held against its size before
//! memory is taken; nothing in it is executed, and no name in it is a path that is written to.

mod apart;
mod arrow;
mod files;
mod finite;
mod format;
mod npy;
mod numbers;
mod parquet;
mod safetensors;
mod survey;
mod tensor;
mod torch;
mod unit;
mod work;

pub use finite::NonFinite;
pub use format::Format;
pub use survey::{Options, Refusal, Survey};
pub use work::{Outcome, write};
