//! From a language model and text to activation shards: models, tokenizers, text, contexts, and workers that share the work.
//!
//! A [`Model`] computes the residual streams of contexts on the processor, in f32; a [`Tokenizer`] gives the tokens that the model's Python
//! tokenizer gives; [`Documents`] reads text from any store; [`harvest`] joins them into parts, which any number of processes make
//! ([`loader::parts`]). GPUs are no concern here: a model of any size on one is run by its own framework, and its rows are written with
//! [`loader::ShardWriter`].
//!
//! The loop over blocks is the crate's own, on the GEMM of `kernels`. A framework was tried on paper and left: its tensors are allocated for
//! each operation, its GEMM divides a product among threads and its elementwise operations run on one, so that a thread for each batch of
//! contexts is faster and has the same bits for any number of threads. Files are read here, so that what they claim is held against their
//! length before memory is taken.

mod contexts;
mod error;
mod harvest;
mod model;
mod rows;
mod text;
mod tokens;

pub use error::{Error, Help, Result};
pub use harvest::{Done, Event, Options, Progress, harvest};
pub use model::Model;
pub use rows::{Heavy, LayerNorms};
pub use text::{Document, Documents, Files, Format, Position, Skipped, Split, TextOptions};
pub use tokens::{Bos, Tokenizer};
