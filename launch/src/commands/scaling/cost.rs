//! What a size takes of GPUs, by the estimate of `sae plan`.

use scaling::laws::Identity;
use serde::Serialize;
use trainer::checkpoint;
use trainer::forecast::{EXPECTED, Floor, Gpu, IN_A_MACHINE, Workload, fewest};
use trainer::overhead::COPY;
use trainer::recipe::Recipe;

use crate::args::{L0, MTBF, STORAGE};
use crate::budget::{Budget, Terms};
use crate::device::on_a_gpu;
use crate::failure::Failure;
use crate::gpus::{Fewest, HOST_BYTES_A_GPU, fewest_by_mode};
use crate::job;

/// Bytes of a value of stored rows: they are f16 or bf16.
const STORED: usize = 2;

/// The recipe of runs of these laws, of so many features and steps, in the keys that costs depend on; `None` where the batch is not
/// known.
pub fn recipe(identity: &Identity, features: f64, steps: f64) -> Option<Recipe> {
    let batch = identity.batch?;
    let tokens = (steps * batch as f64).round().max(1.0);
    let text = format!(
        "[data]\ntrain = 'x'\n[sae]\nfeatures = {}\n[train]\nbatch = {batch}\ntokens = {tokens:e}\n[run]\ndir = 'y'\n",
        features.round().clamp(1.0, 2_147_483_647.0)
    );
    let mut recipe: Recipe = toml::from_str(&text).ok()?;
    let decides = |key: &str| identity.recipe.get(key).map(|value| value.trim_matches('"').to_owned());
    for (key, value) in ["train.adam", "train.precision", "train.moments"].map(|key| (key, decides(key))) {
        let Some(value) = value else { continue };
        let table = format!("{} = '{value}'", key.trim_start_matches("train."));
        let Ok(read) = toml::from_str::<trainer::recipe::Train>(&table) else { continue };
        match key {
            "train.adam" => recipe.train.adam = read.adam,
            "train.precision" => recipe.train.precision = read.precision,
            _ => recipe.train.moments = read.moments,
        }
    }
    Some(recipe)
}

/// Hours of all GPUs in steps, on as few as the run fits on; `None` where it fits on no number, or D or the batch is not known.
pub fn gpu_hours(identity: &Identity, gpu: &Gpu, l0: f64, features: f64, steps: f64) -> Option<f64> {
    let recipe = recipe(identity, features, steps)?;
    let width = identity.width? as usize;
    let precision = on_a_gpu(&recipe.train);
    let gpus = fewest(&recipe, width, precision, gpu)?;
    let mesh = job::mesh_of(None, gpus, &recipe).ok()?;
    let rows = Workload { rows: recipe.train.tokens?, width, stored: STORED, l0 };
    let step_s = Floor::of(&recipe, mesh, &rows, precision, gpu).total() / EXPECTED;
    Some(mesh.ranks() as f64 * step_s * steps / 3600.0)
}

/// A run on GPUs.
#[derive(Debug, Serialize)]
pub struct OnGpus {
    /// What they are.
    pub gpu: &'static str,
    /// How many.
    pub gpus: usize,
    /// DATAxFEATURE.
    pub mesh: String,
    /// Hours by the clock.
    pub hours: f64,
    /// Hours of all GPUs.
    pub gpu_hours: f64,
    /// Rows a second.
    pub tokens_per_s: f64,
    /// Fewest GPUs for each memory mode; none where it fits on no number.
    pub memory_modes: Vec<Fewest>,
    /// Bytes of rows read from storage.
    pub read_bytes: u64,
    /// Bytes of a checkpoint.
    pub checkpoint_bytes: u64,
    /// Bytes of checkpoints that are there at once, at most.
    pub peak_checkpoint_bytes: u64,
}

/// The whole estimate of a recipe; by default on as few GPUs as it fits on.
pub fn on_gpus(recipe: &Recipe, width: usize, l0: f64, gpu: &Gpu, gpus: Option<u32>) -> Result<OnGpus, Failure> {
    let precision = on_a_gpu(&recipe.train);
    let least = fewest(recipe, width, precision, gpu);
    let enough = match (gpus.map(|gpus| gpus as usize), least) {
        (Some(asked), Some(least)) if asked >= least => asked,
        (Some(asked), Some(least)) => {
            return Err(Failure::arguments(format!(
                "{asked} {} are too few for this run: it fits on {least}",
                gpu.name
            )));
        }
        (None, Some(least)) => least,
        (_, None) => {
            return Err(Failure::arguments(format!(
                "{} features of width {width} fit on no number of {}: a lighter train.precision and train.moments may",
                recipe.sae.features, gpu.name
            )));
        }
    };
    let mesh = job::mesh_of(None, enough, recipe)?;
    let rows = recipe.train.tokens.unwrap_or_default();
    let workload = Workload { rows, width, stored: STORED, l0 };
    let floor = Floor::of(recipe, mesh, &workload, precision, gpu);
    let ranks = mesh.ranks().min(IN_A_MACHINE);
    let host = HOST_BYTES_A_GPU * ranks as u64;
    let row_bytes = (width * STORED) as f64;
    let budget = Budget::of(&Terms {
        recipe,
        mesh,
        width,
        row_bytes,
        steps_done: 0,
        rows,
        eval_rows: None,
        step_s: floor.total() / EXPECTED,
        forward_s: (floor.encode + floor.decode + floor.exchange) / EXPECTED,
        copy: COPY,
        storage: STORAGE * 1e9,
        buffer: recipe.checkpoint.buffer_bytes.unwrap_or_else(|| checkpoint::spare_bytes(Some(host), ranks)),
        mtbf: MTBF,
        price: None,
    });
    Ok(OnGpus {
        gpu: gpu.name,
        gpus: mesh.ranks(),
        mesh: mesh.to_string(),
        hours: budget.time.total_s / 3600.0,
        gpu_hours: budget.device_hours,
        tokens_per_s: budget.tokens_per_s,
        memory_modes: fewest_by_mode(recipe, width, gpu),
        read_bytes: (rows as f64 * row_bytes) as u64,
        checkpoint_bytes: budget.checkpoints.bytes,
        peak_checkpoint_bytes: budget.checkpoints.peak_bytes,
    })
}

/// L0 of laws, or what `sae plan` takes where nobody says.
pub fn l0_of(l0: Option<f64>) -> f64 {
    l0.unwrap_or(L0)
}
