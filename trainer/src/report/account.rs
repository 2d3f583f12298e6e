//! What a run is and what it has taken so far: stands in summary.json and in every line of metrics.jsonl, under the same names.

use serde::Serialize;

/// Size, schedule, time and cost of a run at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// `D`, numbers in a row.
    pub width: usize,
    /// `F`, features of the dictionary.
    pub features: usize,
    /// `B`, rows in a step.
    pub batch: usize,
    /// `train.seed`.
    pub seed: u64,
    /// λ in `loss`.
    pub lambda: f64,
    /// Learning rate at the step; in summary.json `train.lr`, before its decay.
    pub lr: f64,
    /// Seconds in steps, data included, over all starts of the run.
    pub step_s: f64,
    /// Seconds by the clock over all starts of the run: steps, and besides them its start, evaluations and checkpoints that were
    /// waited for. What is made again after a kill counts once, here as in `step_s`.
    pub wall_s: f64,
    /// Floating-point operations of all steps, as [`flops`] counts them; null in a run that goes on from a checkpoint in which they
    /// were not counted.
    pub flops: Option<f64>,
    /// Commit of the program, with `-dirty` behind it when its sources differed; `unknown` where there was no repository.
    pub commit: String,
}

/// What steps take over `rows` rows with `active` active features in all: `2·D·F` a row for the encoder's GEMM and `8·D` for
/// each active feature. It is the same on every device: what one computes twice, or for nothing, is not in it.
pub fn flops(width: usize, features: usize, rows: u64, active: u64) -> f64 {
    2.0 * width as f64 * features as f64 * rows as f64 + 8.0 * width as f64 * active as f64
}
