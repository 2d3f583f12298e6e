//! The command line of `sae scaling`.

use loader::number;
use trainer::forecast::Gpu;

use super::plan::{gpu, positive};

/// Fit scaling laws to finished runs, and ask them for a recipe.
#[derive(clap::Args, Debug)]
pub struct Scaling {
    #[command(subcommand)]
    pub what: What,
}

#[derive(clap::Subcommand, Debug)]
pub enum What {
    Fit(Fit),
    Recommend(Recommend),
}

/// Fit loss against features and steps: L(F, S) = E + A·F^-α + B·S^-β, with intervals; what is best for a budget follows from it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae scaling fit sweeps/isoflop --out laws\n  sae scaling fit runs/a runs/b s3://bucket/sweep --out laws \
--loss huber\n  sae scaling fit --runs runs.csv --out laws\n\nA table has the columns features, steps and loss; lr, seed, budget (F x steps), \
l1, batch, width, l0,\nexplained_variance, dead_fraction, flops, data, eval, run and the others of `sae runs --csv` are taken \
where they are there; so\nare keys of the recipe, as train.clip."
)]
pub struct Fit {
    /// Run folders, or folders that hold some; paths or URLs.
    #[arg(required_unless_present = "runs", conflicts_with = "runs", value_name = "DIR")]
    pub folders: Vec<String>,
    /// A table of runs, as comma-separated values with a line of names.
    #[arg(long, value_name = "FILE.csv")]
    pub runs: Option<String>,
    /// Folder or URL for laws.json, runs.parquet, report.html and plots, which holds no other laws yet. Several λ or batches have a folder in it
    /// for each.
    #[arg(long)]
    pub out: String,
    /// What is made least over the residuals: squares, or Huber's loss, which single bad runs pull less.
    #[arg(long, value_enum, default_value_t = Objective::Squares)]
    pub loss: Objective,
    /// Replicates of the bootstrap behind the intervals.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub replicates: u32,
    /// Seed of the replicates.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Which GPU's hours are told beside F x steps and FLOPs: a100, h100, h200 or b200.
    #[arg(long, default_value = "h200", value_parser = gpu)]
    pub gpu: Gpu,
}

/// `--loss`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Objective {
    /// Least squares.
    Squares,
    /// Huber's loss.
    Huber,
}

/// Ask laws for the best run of a budget, as a recipe; or which runs would narrow the intervals most.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae scaling recommend laws/laws.json --flops 1e21 --out big.toml\n  sae scaling recommend laws/laws.json \
--gpu-hours 512 --gpu h200\n  sae scaling recommend laws/laws.json --features 34M --json\n  sae scaling recommend laws/laws.json --next 5\n\n1M, 4M and \
34M are 2^20, 2^22 and 2^25 features, as in the paper."
)]
#[command(group(clap::ArgGroup::new("asked").required(true).args(["flops", "gpu_hours", "tokens", "features", "next"])))]
pub struct Recommend {
    /// A laws.json; a path or URL.
    pub laws: String,
    /// Floating-point operations of the run, on the sparse path.
    #[arg(long, value_name = "FLOP", value_parser = positive)]
    pub flops: Option<f64>,
    /// Hours of all GPUs together.
    #[arg(long, value_name = "HOURS", value_parser = positive)]
    pub gpu_hours: Option<f64>,
    /// Rows trained on.
    #[arg(long, value_name = "N", value_parser = count)]
    pub tokens: Option<u64>,
    /// Features: a number, or 1M, 4M, 34M.
    #[arg(long, value_name = "F", value_parser = count)]
    pub features: Option<u64>,
    /// Say which N runs would narrow the intervals most, of at most 8 x the largest compute so far.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub next: Option<u32>,
    /// A recipe to fill in, in place of what the runs had in common. It must agree with them.
    #[arg(long, value_name = "RECIPE.toml")]
    pub recipe: Option<String>,
    /// Set a key over the value of the recipe, or of what the runs had in common. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// What the GPUs are: a100, h100, h200 or b200.
    #[arg(long, default_value = "h200", value_parser = gpu)]
    pub gpu: Gpu,
    /// How many there are; by default as few as the run fits on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub gpus: Option<u32>,
    /// Go on beyond 100 x the largest compute of the runs, and beyond the largest where they do not tell an exponent.
    #[arg(long)]
    pub force: bool,
    /// A new file for the recipe, or with --next for a sweep of those runs.
    #[arg(long, value_name = "FILE.toml")]
    pub out: Option<String>,
    /// Print a JSON object to standard output.
    #[arg(long)]
    pub json: bool,
}

/// A count above 0, as a recipe takes it.
pub fn count(text: &str) -> Result<u64, String> {
    number::parse_count(text).filter(|&count| count > 0).ok_or_else(|| format!("{} is needed", number::COUNT))
}
