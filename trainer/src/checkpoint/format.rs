//! What a checkpoint holds: files, tensors, the manifest that names them.
//!
//! **Checkpoints are tiles.** Files hold whole tiles of 128 features, at most 64 MiB, independent of who wrote them, with a hash for each
//! tile. A commit marker holds the hash of the manifest, which holds all others. Reading falls back to the newest intact one. A rank
//! reads four files at once, and of a file of which it needs no more than half only its own rows: tiles have hashes of their own.
//!
//! **Older checkpoints are read.** Formats only ever move things: in format 1 the firings of all features lay in the shared file. A
//! reader knows all formats up to its own, a writer the last; tests hold a checkpoint of each that was written by the program of its
//! time.
//!
//! **Sums travel in checkpoints.** Running metrics are f64 sums whose bits depend on the order of additions; they are saved and restored
//! as they stand, so that metrics.jsonl and summary.json of a resumed run equal those of an uninterrupted one.

use std::fmt;

use kernels::{Moment, Sums, Tensor};
use loader::Cursor;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::recipe::Recipe;
use crate::report::metrics::Metrics;

/// Version of the layout, in which checkpoints are written. Those of earlier ones are read.
pub const FORMAT: u32 = 2;

/// The first version in which the firings of a feature lie with its moments: before, those of all lay in the shared file.
pub(super) const FIRINGS_WITH_FEATURES: u32 = 2;

/// Features in a tile: every boundary between files or ranks lies on one.
pub use kernels::mesh::TILE;

/// Most bytes of tensors in a file, unless a single tile is larger.
pub(super) const FILE_BYTES: usize = 64 << 20;

/// What a run has come to, besides its weights and moments.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Steps done; the next one to make.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// Rows left out by `data.skip` and by `data.filter`.
    pub left_out: LeftOut,
    /// Factor on every row.
    pub scale: f32,
    /// The median norm of stored rows, where `data.filter` counts in it: the same for the whole run.
    pub norm_median: Option<f32>,
    /// Active pairs and all pairs of the last batch, and of the one before it: they decide between sparse and dense path.
    pub density: [(u64, u64); 2],
    /// Norm of the last gradient, before clipping.
    pub gradient_norm: f64,
    /// Sums on the device.
    pub tally: Sums,
    /// Sums since the last metrics line that have left the device.
    pub window: Sums,
    /// Sums over the last rows of the run, when it is evaluated on them.
    pub closing: Sums,
    /// Whether the rows in `tally` belong to the closing evaluation.
    pub closing_open: bool,
    /// Metrics on the first `eval.rows` rows of `data.eval` at this step, if it was evaluated during training: what the
    /// best checkpoint is chosen by.
    pub held_out: Option<Metrics>,
    /// Identity of `data.eval`, if there is any: the same on every evaluation of a run.
    pub eval: Option<String>,
    /// Where the training rows come from, as far as the manifests beside them said so when the run began.
    pub source: Option<loader::Source>,
    /// Active features of all rows trained on; `None` when the run goes on from a checkpoint in which they were not counted.
    pub active: Option<u64>,
    /// Seconds spent in steps, over all starts of the run.
    pub step_s: f64,
    /// Seconds by the clock, over all starts of the run.
    pub wall_s: f64,
    /// Seconds of `step_s` spent waiting for data.
    pub stall_s: f64,
}

impl State {
    /// In the order of [`SUMS`].
    pub(super) fn sums(&self) -> [&Sums; 3] {
        [&self.tally, &self.window, &self.closing]
    }
}

/// Rows that were not trained on although their turn came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// By `data.skip`.
    pub skipped: u64,
    /// By `data.filter`.
    pub filtered: u64,
}

/// Content of manifest.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`], or an earlier one.
    pub format: u32,
    /// Program and version that wrote it.
    pub software: String,
    /// Its commit, for people: any commit of a version goes on from the checkpoints of any other. Absent in a checkpoint made before
    /// it was kept.
    #[serde(default)]
    pub commit: Option<String>,
    /// See [`State::step`].
    pub step: u64,
    /// See [`State::steps`].
    pub steps: u64,
    /// Counts up when a step is saved again.
    pub attempt: u32,
    /// See [`State::tokens`].
    pub tokens: u64,
    /// `D`.
    pub width: usize,
    /// `F`.
    pub features: usize,
    /// See [`State::left_out`].
    pub left_out: LeftOut,
    /// See [`State::scale`].
    pub scale: f32,
    /// See [`State::norm_median`]; absent in a checkpoint made before a filter could count in it.
    #[serde(default)]
    pub norm_median: Option<f32>,
    /// Of the last batch: see [`State::density`].
    pub density: (u64, u64),
    /// Of the batch before it; absent in a checkpoint made before it was kept.
    #[serde(default)]
    pub density_before: Option<(u64, u64)>,
    /// See [`State::gradient_norm`]; 0 in a checkpoint made before it was kept.
    #[serde(default)]
    pub gradient_norm: f64,
    /// See [`State::closing_open`].
    pub closing_open: bool,
    /// See [`State::held_out`].
    pub held_out: Option<Metrics>,
    /// See [`State::eval`].
    pub eval: Option<String>,
    /// See [`State::source`]; absent in a checkpoint made before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<loader::Source>,
    /// See [`State::active`].
    #[serde(default)]
    pub active: Option<u64>,
    /// See [`State::step_s`]; absent in a checkpoint made when `wall_s` was this.
    #[serde(default)]
    pub step_s: Option<f64>,
    /// See [`State::wall_s`].
    pub wall_s: f64,
    /// See [`State::stall_s`].
    pub stall_s: f64,
    /// Position in the data.
    pub cursor: Cursor,
    /// The whole recipe.
    pub recipe: Recipe,
    /// Every file of the checkpoint but this one and COMMIT.
    pub files: Vec<File>,
}

/// A safetensors file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Name in the attempt's folder.
    pub name: String,
    /// What is in it.
    pub holds: Holds,
    /// Size in bytes.
    pub bytes: u64,
    /// First feature; 0 in `shared`.
    pub first_feature: usize,
    /// Number of features; 0 in `shared`.
    pub features: usize,
    /// Hash of the header: its length and its JSON.
    pub header_hash: Hash,
    /// For each tile the hash of its rows in every tensor, tensors in the order of their offsets; in `shared` a single
    /// hash of everything behind the header.
    pub tile_hashes: Vec<Hash>,
}

/// Kinds of [`File`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// Encoder and decoder of some features.
    Weights,
    /// Moments and clocks of some features.
    Optimizer,
    /// What belongs to no feature.
    Shared,
}

/// xxh3-128, in hexadecimal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(pub(super) String);

impl Hash {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Hash(format!("{:032x}", xxh3_128(bytes)))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder of an attempt, relative to the run's.
pub(super) fn folder(step: u64, attempt: u32) -> String {
    format!("checkpoints/step-{step:010}/attempt-{attempt:04}")
}

/// A tensor of a file: its name there, what it is on the device, and its values for one feature.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) tensor: Tensor,
    /// Which of its moments; `None` is the tensor itself.
    pub(super) moment: Option<Moment>,
    pub(super) per_feature: usize,
}

pub(super) fn entries(holds: Holds, width: usize) -> Vec<Entry> {
    let entry = |name, tensor, moment, per_feature| Entry { name, tensor, moment, per_feature };
    match holds {
        Holds::Weights => vec![
            entry("W_dec", Tensor::DecoderWeight, None, width),
            entry("W_enc", Tensor::EncoderWeight, None, width),
            entry("b_enc", Tensor::EncoderBias, None, 1),
        ],
        Holds::Optimizer => vec![
            entry("W_dec.m", Tensor::DecoderWeight, Some(Moment::First), width),
            entry("W_dec.v", Tensor::DecoderWeight, Some(Moment::Second), width),
            entry("W_enc.m", Tensor::EncoderWeight, Some(Moment::First), width),
            entry("W_enc.v", Tensor::EncoderWeight, Some(Moment::Second), width),
            entry("b_enc.m", Tensor::EncoderBias, Some(Moment::First), 1),
            entry("b_enc.v", Tensor::EncoderBias, Some(Moment::Second), 1),
        ],
        Holds::Shared => vec![
            entry("b_dec", Tensor::DecoderBias, None, width),
            entry("b_dec.m", Tensor::DecoderBias, Some(Moment::First), width),
            entry("b_dec.v", Tensor::DecoderBias, Some(Moment::Second), width),
        ],
    }
}

/// The sums of a state, by name: what is in [`SUMS_PARTS`] of each.
pub(super) const SUMS: [&str; 3] = ["tally", "window", "closing"];

/// Tensors that make up a [`Sums`]: `[squared_error, squared_norm, l1]`, `[rows, active]` and `x_d` in the shared file, `fired_f` in
/// those of the optimizer.
pub(super) const SUMS_PARTS: [&str; 4] = ["scalars", "counts", "x", "fired"];

/// Clocks in optimizer files.
pub(super) const CLOCKS: [(&str, kernels::Clock); 2] =
    [("last_fired", kernels::Clock::LastFired), ("last_update", kernels::Clock::LastUpdate)];

/// A hash that tells the dictionary of a checkpoint from any other, wherever it lies: of the hashes of its files, the step and the factor
/// on rows.
pub fn identity(found: &Found) -> String {
    let Manifest { files, step, scale, .. } = &found.manifest;
    let words = files
        .iter()
        .flat_map(|file| [&file.header_hash.0].into_iter().chain(file.tile_hashes.iter().map(|hash| &hash.0)));
    let mut text: String = words.map(String::as_str).collect();
    text.push_str(&format!("{step} {:08x}", scale.to_bits()));
    Hash::of(text.as_bytes()).0
}

/// Features in each file of weights: as many are read at once where not all of a dictionary fits into memory.
pub fn features_at_once(width: usize) -> usize {
    features_per_file(Holds::Weights, width)
}

/// Features in each file of a kind.
pub(super) fn features_per_file(holds: Holds, width: usize) -> usize {
    (FILE_BYTES / (bytes_per_feature(holds, width) * TILE)).max(1) * TILE
}

pub(super) fn bytes_per_feature(holds: Holds, width: usize) -> usize {
    let counts = if holds == Holds::Optimizer { CLOCKS.len() + SUMS.len() } else { 0 };
    entries(holds, width).iter().map(|entry| 4 * entry.per_feature).sum::<usize>() + 8 * counts
}

/// What a rank keeps of a checkpoint at most where the system does not say how much memory is available.
pub(super) const BUFFER_BYTES: u64 = 2 << 30;

/// What a rank may keep of a checkpoint where `checkpoint.buffer_bytes` does not say: its share of half of what its host has
/// available, which its `host_ranks` ranks share. The other half is for what a run has not touched yet, and for other processes.
pub fn spare_bytes(available: Option<u64>, host_ranks: usize) -> u64 {
    available.map_or(BUFFER_BYTES, |bytes| bytes / 2 / host_ranks.max(1) as u64)
}

/// Bytes of a whole checkpoint, up to its headers.
pub fn bytes(width: usize, features: usize) -> u64 {
    let parameters = 2 * width * features + features + width;
    (3 * 4 * parameters + 8 * (CLOCKS.len() + SUMS.len()) * features) as u64
}

/// A committed checkpoint.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its folder, relative to the run's.
    pub folder: String,
    /// Its manifest, whose hash COMMIT confirms.
    pub manifest: Manifest,
}
