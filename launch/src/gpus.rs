//! What is known of GPUs before any is there: the ways to keep weights and moments on them, and how many a dictionary needs.

use kernels::cuda::{Moments, Precision};
use serde::Serialize;
use trainer::forecast::{Gpu, fewest};
use trainer::recipe::Recipe;

use crate::table;

/// Memory of a machine for each of its GPUs, where nobody says: the large ones of clouds have more.
pub const HOST_BYTES_A_GPU: u64 = 128 << 30;

/// The ways to keep weights and moments, as a recipe says them, from the most memory to the least.
const MODES: [(&str, Precision); 4] = [
    ("mixed, moments f32", Precision::Mixed(Moments::F32)),
    ("bf16-sr, moments f32", Precision::Bf16Sr(Moments::F32)),
    ("bf16-sr, moments bf16", Precision::Bf16Sr(Moments::Bf16)),
    ("bf16-sr, moments int8", Precision::Bf16Sr(Moments::Int8)),
];

/// The fewest GPUs that a dictionary fits on.
#[derive(Debug, Serialize)]
pub struct Fewest {
    /// How weights and moments are kept.
    pub mode: &'static str,
    /// None where it fits on no number.
    pub gpus: Option<usize>,
}

/// The fewest for each memory mode.
pub fn fewest_by_mode(recipe: &Recipe, width: usize, gpu: &Gpu) -> Vec<Fewest> {
    MODES.map(|(mode, precision)| Fewest { mode, gpus: fewest(recipe, width, precision, gpu) }).into()
}

/// Prints them.
pub fn print_fewest(gpu: &str, fewest: &[Fewest]) {
    let of = |few: &Fewest| (few.mode, few.gpus.map_or("none".to_owned(), |gpus| gpus.to_string()));
    table::print(&format!("fewest {gpu} for each memory mode"), &fewest.iter().map(of).collect::<Vec<_>>());
}
