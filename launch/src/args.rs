//! The command line.

mod encode;
mod export;
mod harvest;
mod ingest;
mod launch;
mod plan;
mod scaling;
mod sweep;

use std::path::PathBuf;

use clap::builder::RangedI64ValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use kernels::cuda::Arch;
use kernels::mesh::Mesh;
use loader::{Dtype, number, patience};

pub use self::encode::Encode;
pub use self::export::{Export, Format};
pub use self::harvest::Harvest;
pub use self::ingest::Ingest;
pub use self::launch::{How, K8s, LEAST_SAVE_S, Launch, Local, SaveTime, Slurm, Toleration, handed_on};
pub use self::plan::{L0, MTBF, PlanArgs, STORAGE};
pub use self::scaling::{Fit, Objective, Recommend, Scaling, What};
pub use self::sweep::{Sweep, SweepArgs, SweepCommand, SweepStatus, Taking};
use crate::device::DeviceChoice;
use crate::remedy;

/// The commit that this program was built from; build.rs says how it is known.
pub const COMMIT: &str = env!("SAE_COMMIT");

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("SAE_COMMIT"), ")");

/// Trains sparse autoencoders on activation shards streamed from Parquet, at scale.
#[derive(Parser, Debug)]
#[command(name = "sae", version = VERSION, propagate_version = true, max_term_width = 110)]
#[command(
    after_help = "Start with:\n  sae train launch/recipes/quickstart.toml\n\nExit codes: 0 done, 64 recipe or arguments, \
65 data, 69 storage unreachable,\n70 NaN or infinity, 71 hardware, 73 cannot write, 75 interrupted: start again\nwith --resume-or-start, 101 a bug."
)]
pub struct Args {
    /// How messages are written to standard error.
    #[arg(long, global = true, value_enum, default_value_t = Log::Pretty)]
    pub log: Log,
    /// Seconds for which a store that does not answer is asked again: 10 by default, 600 at most. Once training has begun they are
    /// 150 at least.
    #[arg(long, global = true, value_name = "SECONDS", env = "SAE_PATIENCE", value_parser = seconds_of_patience())]
    pub patience: Option<u32>,
    #[command(subcommand)]
    pub command: Command,
}

fn seconds_of_patience() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=patience::MOST.as_secs() as i64)
}

/// `--log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// For people, with progress bars on a terminal.
    Pretty,
    /// One JSON object a line, for log collectors.
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Train(Train),
    Plan(PlanArgs),
    Launch(Launch),
    Sweep(Box<Sweep>),
    Inspect(Inspect),
    Ingest(Ingest),
    Synth(Synth),
    Harvest(Box<Harvest>),
    Eval(Eval),
    Encode(Box<Encode>),
    Runs(Runs),
    Scaling(Scaling),
    Doctor(Doctor),
    Export(Export),
    Kernels(Kernels),
}

/// Train a dictionary as a recipe says.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae train launch/recipes/quickstart.toml\n  sae train my.toml --set train.l1=8 --set \
run.dir=runs/l1-8\n  sae train my.toml --dry-run\n  sae train my.toml --resume\n  sae train my.toml --resume-or-start\n\nlaunch/recipes/README.md lists every key."
)]
pub struct Train {
    #[command(flatten)]
    pub run: RunArgs,
    /// Print the whole recipe and what would be read, held in memory and written; then stop.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub world: WorldArgs,
}

/// What is trained, and how: what `sae train` and `sae launch` both take.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// The recipe, a TOML file.
    pub recipe: String,
    /// Go on from the newest checkpoint in run.dir.
    #[arg(long)]
    pub resume: bool,
    /// Go on if run.dir holds a run, else start one there: what launchers should call, on the first start as after exit code
    /// 75, which may come before there is a checkpoint.
    #[arg(long, conflicts_with = "resume")]
    pub resume_or_start: bool,
    /// Set a key over the recipe's value: a TOML value, or a bare word for a string. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Where to compute: auto (the first usable GPU, else the processor), cpu, cuda, or cuda:N for GPU N, from 0. Of several ranks
    /// each takes the GPU of its number on its machine.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// How the ranks share the work, as DATAxFEATURE: slices of the batch and shards of the features. By default what moves
    /// the fewest bytes.
    #[arg(long, value_name = "DxF")]
    pub mesh: Option<Mesh>,
}

impl RunArgs {
    /// The words behind `sae train` that say the same.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![self.recipe.clone()];
        words.extend(self.set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
        if self.device != DeviceChoice::default() {
            words.extend(["--device".to_owned(), self.device.to_string()]);
        }
        words.extend(self.mesh.iter().flat_map(|mesh| ["--mesh".to_owned(), mesh.to_string()]));
        words.extend(self.resume.then(|| "--resume".to_owned()));
        words.extend(self.resume_or_start.then(|| "--resume-or-start".to_owned()));
        words
    }

    /// The words for a process to which it is still to be said whether it goes on.
    pub fn starting(&self) -> Vec<String> {
        RunArgs { resume: false, resume_or_start: false, ..self.clone() }.words()
    }

    /// The words for a process that may find the run begun, or not: `--resume-or-start` fits both.
    pub fn resuming(&self) -> Vec<String> {
        RunArgs { resume: false, resume_or_start: true, ..self.clone() }.words()
    }
}

/// Which of several processes this one is, where no launcher says so: all four, with an attempt.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Ranks, where no launcher tells them")]
pub struct WorldArgs {
    /// This process, from 0 on.
    #[arg(long, value_name = "R", requires_all = ["ranks", "local_rank", "local_ranks"])]
    pub rank: Option<usize>,
    /// How many processes train together.
    #[arg(long, value_name = "N", requires = "rank")]
    pub ranks: Option<usize>,
    /// This process among those on its machine, from 0 on.
    #[arg(long, value_name = "R", requires = "rank")]
    pub local_rank: Option<usize>,
    /// How many of them are on its machine.
    #[arg(long, value_name = "N", requires = "rank")]
    pub local_ranks: Option<usize>,
    /// The same for all processes, and another one at each start.
    #[arg(long, value_name = "ID", env = "SAE_ATTEMPT")]
    pub attempt: Option<String>,
}

/// A number of features, as a recipe takes it.
fn features(text: &str) -> Result<usize, String> {
    let count = number::parse_count(text).and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| format!("{} is needed", number::COUNT))
}

/// A number of rows, as a recipe takes it.
fn rows(text: &str) -> Result<u64, &'static str> {
    number::parse_count(text)
        .filter(|&rows| rows > 0)
        .ok_or("rows are a whole number above 0, such as 1000000, 1_000_000 or 1e6 (of names with M only 1M, 4M and 34M are known)")
}

/// The numbers of stored rows.
fn dtype(text: &str) -> Result<Dtype, &'static str> {
    Dtype::parse(text).ok_or("write bf16, f16 or f32")
}

/// A path on this machine.
fn local(text: &str) -> Result<PathBuf, String> {
    loader::check_expanded(text).map(|()| text.into()).map_err(|error| remedy::unexpanded(&error))
}

/// Look at activation shards: schema, statistics, bad values; write or verify their manifest.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae inspect data/quickstart/train\n  sae inspect 's3://bucket/layer12/*.parquet' --json\n  \
sae inspect /mnt/acts --rows 1000000 --no-write"
)]
pub struct Inspect {
    /// Folders, files, globs or URLs (file://, s3://, gs://, az://, abfss://, wasbs://, http(s)://).
    #[arg(required = true)]
    pub data: Vec<String>,
    /// Look at about this many rows instead of all.
    #[arg(long, value_parser = rows)]
    pub rows: Option<u64>,
    /// The column of activations, where its name or type does not say.
    #[arg(long)]
    pub column: Option<String>,
    /// Do not write a manifest beside the data.
    #[arg(long)]
    pub no_write: bool,
    /// Print a JSON object to standard output.
    #[arg(long)]
    pub json: bool,
}

/// Make activation shards that are sparse sums of known directions.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae synth --out data/synth --features 2048 --width 256 --rows 4e6\n  sae synth --out \
s3://bucket/synth --rows 10_000_000 --groups 64 --parents 0.1 --norm-tail 0.5"
)]
pub struct Synth {
    /// Folder or URL for the shards and truth.safetensors.
    #[arg(long)]
    pub out: String,
    /// True directions.
    #[arg(long, default_value_t = 1024, value_parser = features)]
    pub features: usize,
    /// Values in a row.
    #[arg(long, default_value_t = 128)]
    pub width: usize,
    /// Rows to write.
    #[arg(long, default_value_t = 1 << 20, value_parser = rows)]
    pub rows: u64,
    /// Shards to spread them over.
    #[arg(long, default_value_t = 4)]
    pub shards: usize,
    /// Stored format: f16, bf16 or f32.
    #[arg(long, default_value = "f16")]
    pub dtype: String,
    /// Mean number of directions active in a row.
    #[arg(long, default_value_t = 16.0)]
    pub active: f64,
    /// Frequencies fall as rank^-zipf.
    #[arg(long, default_value_t = 0.7)]
    pub zipf: f64,
    /// Groups of directions that fire together (0: none).
    #[arg(long, default_value_t = 0)]
    pub groups: usize,
    /// Share of a group's firing that is shared.
    #[arg(long, default_value_t = 0.5)]
    pub group_correlation: f64,
    /// Share of the directions that are parents with children that fire only with them (0: none).
    #[arg(long, default_value_t = 0.0)]
    pub parents: f64,
    /// Children of a parent.
    #[arg(long, default_value_t = 4)]
    pub children: usize,
    /// Standard deviation of the noise, relative to a unit direction.
    #[arg(long, default_value_t = 0.02)]
    pub noise: f64,
    /// Spread of a lognormal factor on a row's norm (0: none).
    #[arg(long, default_value_t = 0.0)]
    pub norm_tail: f64,
    /// Seed of directions and rows.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Which disjoint set of rows from the same directions: 0 for training, 1 for evaluation.
    #[arg(long, default_value_t = 0)]
    pub set: u64,
}

/// Measure a run or a checkpoint on rows.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  sae eval runs/quickstart --data data/quickstart/eval\n  sae eval \
runs/a/checkpoints/step-0000001000 --data s3://bucket/held-out --json")]
pub struct Eval {
    /// A run's folder (its newest checkpoint), a checkpoints/step-… folder in it, an export, or a folder of SAELens or
    /// dictionary_learning; a path or URL.
    pub run: String,
    /// Folders, files, globs or URLs of the rows; the run's data.eval when absent.
    #[arg(long)]
    pub data: Vec<String>,
    /// The column of activations; the run's data.column when absent.
    #[arg(long)]
    pub column: Option<String>,
    /// At most this many rows.
    #[arg(long, value_parser = rows)]
    pub rows: Option<u64>,
    /// Where to compute: auto (the first usable GPU, else the processor), cpu, cuda, or cuda:N for GPU N, from 0.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Print a JSON object to standard output.
    #[arg(long)]
    pub json: bool,
}

/// Show runs beside each other: recipe, results, what each took.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae runs runs\n  sae runs runs/a s3://bucket/runs --csv > runs.csv\n\nWhat --csv and --json print: \
launch/recipes/README.md#tables-of-runs"
)]
pub struct Runs {
    /// Run folders, or folders that hold some; paths or URLs.
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<String>,
    /// Print comma-separated values with a line of names, to standard output.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Print a list of JSON objects to standard output.
    #[arg(long)]
    pub json: bool,
}

/// Check what a run needs of this machine, and of the recipe's places.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae doctor\n  sae doctor my.toml --set run.dir=/scratch/a\n  srun sae doctor my.toml\n\nEnds \
with exit code 64 when a check fails. Warnings are no failures."
)]
pub struct Doctor {
    /// The recipe whose data.train and run.dir are looked at, and written to.
    pub recipe: Option<String>,
    /// Set a key over the recipe's value. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "recipe")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub world: WorldArgs,
}

/// Compile the GPU kernels ahead of time, and show what they take of a multiprocessor.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae kernels\n  sae kernels --arch sm_90a\n  sae kernels --carried\n  sae kernels --out /tmp/cubins && \
SAE_CUBINS=/tmp/cubins cargo build --release\n\nNeeds NVRTC, 13.0 for what others are to use, and no GPU: pip install \
'nvidia-cuda-nvrtc==13.0.*', and name\nits folder in SAE_NVRTC when it is not found."
)]
pub struct Kernels {
    /// Architectures to compile for: sm_80 (A100 and later 8.x), sm_90a (H100, H200), sm_100a (B200), or another.
    #[arg(long, value_delimiter = ',', value_name = "LIST", default_values_t = kernels::cuda::RELEASED)]
    pub arch: Vec<Arch>,
    /// Folder for the compiled kernels; without one they are only looked at. A build with SAE_CUBINS set to it carries them.
    #[arg(long, value_parser = local)]
    pub out: Option<PathBuf>,
    /// Say what this binary carries, and compile nothing.
    #[arg(long, conflicts_with_all = ["arch", "out"])]
    pub carried: bool,
}
