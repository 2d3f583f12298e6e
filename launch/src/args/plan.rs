//! The command line of `sae plan`.

use kernels::mesh::Mesh;
use loader::number;
use trainer::forecast::{GPUS, Gpu};

use super::rows;

/// Active features of a row once training has settled, where nobody says.
pub const L0: f64 = 100.0;

/// What all machines together store a second where nobody says, in GB/s.
pub const STORAGE: f64 = 5.0;

/// Hours between failures of a device, where nobody says.
pub const MTBF: f64 = 50_000.0;

/// Say what a run would take of so many GPUs: memory, time, storage, traffic, cost, and what bounds it. Needs no GPU, and no data where
/// --width and --rows or [data.synth] say what it would be. Estimated from data sheets, not measured; with --cpu for this machine's
/// processor, from a few steps measured here.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae plan my.toml --gpus 64 --gpu h200\n  sae plan launch/recipes/quickstart.toml --width 4096 --rows \
1e9 \\\n    --set sae.features=34000000 --gpus 64 --gpu h200 --price 2.5\n  sae plan launch/recipes/quickstart.toml --cpu\n\n\
What --json prints: launch/recipes/README.md#the-plan"
)]
pub struct PlanArgs {
    /// The recipe, a TOML file.
    pub recipe: String,
    /// Set a key over the recipe's value. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// For the processor of this machine, alone: a few steps are made here and timed.
    #[arg(long, conflicts_with_all = ["gpus", "gpu", "mesh"])]
    pub cpu: bool,
    /// GPUs, each one rank.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub gpus: u32,
    /// What they are: a100 (80 GB), h100 (80 GB), h200 or b200.
    #[arg(long, default_value = "h200", value_parser = gpu)]
    pub gpu: Gpu,
    /// How they share the work, as DATAxFEATURE. By default what moves the fewest bytes.
    #[arg(long, value_name = "DxF")]
    pub mesh: Option<Mesh>,
    /// Width of a row, where data.train cannot be looked at.
    #[arg(long, value_name = "D", requires = "rows", value_parser = width)]
    pub width: Option<usize>,
    /// Rows of the run, where data.train cannot be looked at.
    #[arg(long, value_name = "N", requires = "width", value_parser = rows)]
    pub rows: Option<u64>,
    /// Active features of a row once training has settled.
    #[arg(long, default_value_t = L0, value_name = "L0", value_parser = positive)]
    pub l0: f64,
    /// What all machines together read from storage, and write to it, in GB/s.
    #[arg(long, default_value_t = STORAGE, value_name = "GB/S", value_parser = positive)]
    pub storage: f64,
    /// Memory of a machine, which its ranks share, at most 8 of them: bytes, such as 2TB. By default 128 GiB for each of its GPUs;
    /// of this machine what is available.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub host_memory: Option<u64>,
    /// Hours between failures of a GPU, with all that it hangs on, from which follows how often to save.
    #[arg(long, default_value_t = MTBF, value_name = "HOURS", value_parser = positive)]
    pub mtbf: f64,
    /// What a GPU costs an hour, or with --cpu this machine, in any currency.
    #[arg(long, value_name = "PRICE", value_parser = positive)]
    pub price: Option<f64>,
    /// Print a JSON object to standard output.
    #[arg(long)]
    pub json: bool,
}

fn width(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|width| (1..=1 << 20).contains(width)).ok_or("a number from 1 to 1048576 is needed")
}

pub(super) fn positive(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0).ok_or("a number above 0 is needed")
}

pub(super) fn gpu(name: &str) -> Result<Gpu, String> {
    let names = GPUS.map(|gpu| gpu.name).join(", ");
    GPUS.into_iter().find(|gpu| gpu.name == name).ok_or_else(|| format!("known are {names}"))
}

fn bytes(text: &str) -> Result<u64, &'static str> {
    number::parse_bytes(text)
        .filter(|&bytes| bytes > 0)
        .ok_or("a whole number of bytes is needed, or one such as 512GiB or 2TB")
}
