//! The command line of `sae sweep`.

use clap::Subcommand;
use trainer::forecast::Gpu;

use crate::device::DeviceChoice;

/// Train many configurations of a recipe, each once, by as many workers as are started on the same folder.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  sae sweep launch/recipes/sweep-quickstart.toml\n  sae sweep my.toml --dir s3://bucket/sweeps/a --slots 4\n  sae \
sweep my.toml --dry-run\n  sae sweep s3://bucket/sweeps/a --retry\n  sae sweep status s3://bucket/sweeps/a\n\nlaunch/recipes/README.md#sweeps says how a sweep is written. What is \
submitted again does\nnothing twice; more points are added. sae launch slurm and sae launch k8s start workers elsewhere.\n\nExit codes: 0 all \
done, 75 interrupted, 69 and 71 where another start may help, 70 where configurations\ndiverged, else that of the first that failed."
)]
pub struct Sweep {
    #[command(subcommand)]
    pub command: Option<SweepCommand>,
    #[command(flatten)]
    pub work: SweepArgs,
}

/// What looks at a sweep.
#[derive(Subcommand, Debug)]
pub enum SweepCommand {
    Status(SweepStatus),
}

/// Show where a sweep stands: which configurations are pending, running, done, failed or diverged.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae sweep status sweeps/a\n  sae sweep status s3://bucket/sweeps/a --json\n\nWhether somebody still \
trains what is claimed shows after a few seconds."
)]
pub struct SweepStatus {
    /// The sweep's folder, a path or URL.
    pub dir: String,
    /// Print a JSON object to standard output.
    #[arg(long)]
    pub json: bool,
}

/// What is trained, and where.
#[derive(clap::Args, Clone, Debug)]
pub struct SweepArgs {
    /// The sweep: a TOML file, or the folder or URL of one that was submitted, whose configurations are gone on with.
    #[arg(required = true)]
    pub sweep: Option<String>,
    /// The sweep's folder, a path or URL, over `dir` of the file.
    #[arg(long)]
    pub dir: Option<String>,
    /// Set a key of the base recipe: a TOML value, or a bare word for a string. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Configurations to train at the same time: by default one for each GPU, and one on the processor, whose cores they share.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    #[command(flatten)]
    pub taking: Taking,
    /// Where to compute: auto (GPUs that can be used, else the processor), cpu, cuda, or cuda:N for GPU N alone.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Train those again that have failed or diverged.
    #[arg(long)]
    pub retry: bool,
    /// One of several that were started together: ends, with 0, as soon as nothing is left to begin, though others train still or some have
    /// failed.
    #[arg(long)]
    pub worker: bool,
    /// How many were started together: each begins its share of what is left. By default the tasks of srun, torchrun or mpirun.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub workers: Option<u32>,
    /// Print the configurations with their time, memory and bytes on this machine; then stop.
    #[arg(long, conflicts_with_all = ["retry", "worker"])]
    pub dry_run: bool,
    /// With --dry-run: estimate for such a GPU, one for each slot: a100, h100, h200 or b200.
    #[arg(long, requires = "dry_run", value_parser = super::plan::gpu)]
    pub gpu: Option<Gpu>,
    /// With --dry-run: what a GPU, or this machine, costs an hour, in any currency.
    #[arg(long, value_name = "PRICE", requires = "dry_run", value_parser = super::plan::positive)]
    pub price: Option<f64>,
}

/// `--heartbeat` where nobody says.
const HEARTBEAT: f64 = 5.0;

/// How a worker takes configurations: what `sae sweep` and launchers of a sweep both take.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Taking {
    /// Configurations of a sweep with at least so many features are too large for one slot: all slots of a process train each of them together, as
    /// the ranks of a mesh.
    #[arg(long, value_name = "FEATURES", requires = "sweep", value_parser = super::scaling::count)]
    pub mesh_from: Option<u64>,
    /// Seconds between two signs of life of a worker of a sweep. Others take over after six that are missing.
    #[arg(long, default_value_t = HEARTBEAT, value_name = "SECONDS", requires = "sweep", value_parser = heartbeat)]
    pub heartbeat: f64,
}

impl Taking {
    /// The words behind `sae sweep` that say the same.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        words.extend(self.mesh_from.iter().flat_map(|from| ["--mesh-from".to_owned(), from.to_string()]));
        if self.heartbeat != HEARTBEAT {
            words.extend(["--heartbeat".to_owned(), self.heartbeat.to_string()]);
        }
        words
    }
}

fn heartbeat(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|seconds| (0.05..=600.0).contains(seconds)).ok_or("write seconds, 0.05 to 600")
}
