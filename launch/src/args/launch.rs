//! The command line of `sae launch`.

use std::path::PathBuf;

use clap::Subcommand;
use clap::builder::RangedI64ValueParser;
use loader::patience;

use super::{Log, RunArgs, Taking};

/// Start a run on several ranks: on this machine, by SLURM, or on Kubernetes.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch local my.toml --ranks 4 --set train.l1=8\n  sae launch slurm my.toml --nodes 2 \
--gpus-per-node 8 --dry-run\n  sae launch k8s my.toml --pods 16 --image registry/sae:0.1 > job.yaml\n\nWhatever starts \
ranks by itself (torchrun, srun, mpirun, an indexed Job) may start sae train\ndirectly; sae doctor says which rank it is."
)]
pub struct Launch {
    #[command(subcommand)]
    pub how: How,
}

/// Where the ranks are.
#[derive(Subcommand, Debug)]
pub enum How {
    Local(Local),
    Slurm(Box<Slurm>),
    K8s(Box<K8s>),
}

/// Start the ranks on this machine, watch them, and start them again from the last checkpoint when restarting can help.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch local launch/recipes/quickstart.toml --ranks 2\n  sae launch local my.toml --ranks 8 --set \
run.dir=runs/a\n  srun --ntasks-per-node=1 sae launch local my.toml --as-node --ranks 8 --resume-or-start\n\nWhat rank 0 says appears \
as if it ran alone, of the others warnings and errors. Signals are passed on.\nExit codes are those of sae train; after 69, 71, 75 and \
signals the ranks are started again."
)]
pub struct Local {
    #[command(flatten)]
    pub run: RunArgs,
    /// Processes to start.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: u32,
    /// Starts after the first, at most.
    #[arg(long, default_value_t = 3, value_name = "K")]
    pub restarts: u32,
    /// This machine is one of several, on each of which srun, mpirun or an indexed Job has started this command once: the ranks of
    /// all train together. Nothing is started again here, for all would have to be.
    #[arg(long, conflicts_with = "restarts")]
    pub as_node: bool,
    /// Print the whole recipe and what would be read, held in memory and written; then stop.
    #[arg(long)]
    pub dry_run: bool,
}

/// Write a batch script and submit it to SLURM.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch slurm my.toml --nodes 2 --gpus-per-node 8 --cpus-per-task 12 --time 1-00:00:00 --partition gpu\n  sae \
launch slurm my.toml --ranks-per-node 4 --prologue modules.sh --sbatch qos=long --dry-run\n  sae launch slurm my-sweep.toml --sweep \
--nodes 12 --gpus-per-node 8 --cpus-per-task 96 --mesh-from 4M\n\nBefore its time is over the job \
saves, goes back into the queue and goes on; so it does after exit codes\n69 and 71. After 64, 65, 70, 73 and 101 it fails."
)]
pub struct Slurm {
    #[command(flatten)]
    pub run: RunArgs,
    /// The file is a sweep, or it is a sweep's folder: an array of --nodes jobs of one machine each, which share its configurations out. Each
    /// has a slot for each of its GPUs, or --ranks-per-node slots.
    #[arg(long, conflicts_with_all = ["mesh", "resume", "resume_or_start"])]
    pub sweep: bool,
    #[command(flatten)]
    pub taking: Taking,
    /// Machines.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub nodes: u32,
    /// GPUs of each machine; one rank for each.
    #[arg(long, value_name = "G", conflicts_with = "ranks_per_node", value_parser = clap::value_parser!(u32).range(1..))]
    pub gpus_per_node: Option<u32>,
    /// Ranks on each machine, without GPUs.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks_per_node: Option<u32>,
    /// Cores of each rank. Most clusters give one where nothing is said, on which reading, decoding and training take turns.
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus_per_task: Option<u32>,
    /// Memory of each machine, as sbatch takes it: 64G, or 0 for all.
    #[arg(long)]
    pub mem: Option<String>,
    /// Time limit, as sbatch takes it: minutes, or DAYS-HOURS:MINUTES:SECONDS.
    #[arg(long)]
    pub time: Option<String>,
    /// Partition.
    #[arg(long)]
    pub partition: Option<String>,
    /// Account.
    #[arg(long)]
    pub account: Option<String>,
    /// Name of the job.
    #[arg(long, default_value = "sae")]
    pub name: String,
    /// Any other option of sbatch, without its dashes. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub sbatch: Vec<String>,
    /// A file of shell commands that the script runs before the ranks: module load, source, export.
    #[arg(long, value_name = "FILE")]
    pub prologue: Option<PathBuf>,
    #[command(flatten)]
    pub save: SaveTime,
    /// How often the job goes back into the queue, those at the time limit included.
    #[arg(long, default_value_t = 50, value_name = "K")]
    pub restarts: u32,
    /// The script; job.sh in run.dir by default. What the job writes goes beside it. One that was changed by hand is not written over.
    #[arg(long, value_parser = super::local)]
    pub out: Option<PathBuf>,
    /// Print the script and submit nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Print the manifest of a JobSet for Kubernetes.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch k8s my.toml --image registry/sae:0.1 --gpus-per-pod 1 --secret s3 | kubectl apply -f -\n  sae launch \
k8s my.toml --pods 4 --gpus-per-pod 8 --cpu 96 --memory 800Gi --image registry/sae:0.1 > job.yaml\n\nThe recipe travels in the manifest with \
what --set changes; data.train and run.dir must be reachable\nfrom the pods. launch/Dockerfile makes the image. Exit codes 64, 65, 70, 73\nand 101 \
fail the JobSet, others start all pods again. A pod that is taken away has --save-s to\nsave; where its node is gone sooner, the run goes \
on from the checkpoint before."
)]
pub struct K8s {
    #[command(flatten)]
    pub run: RunArgs,
    /// The file is a sweep: an indexed Job of --pods pods, which share its configurations out. Each has a slot for each of its GPUs, or
    /// --ranks-per-pod slots.
    #[arg(long, conflicts_with_all = ["mesh", "resume", "resume_or_start"])]
    pub sweep: bool,
    #[command(flatten)]
    pub taking: Taking,
    /// Pods.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pods: u32,
    /// GPUs of each pod; one rank for each.
    #[arg(long, value_name = "G", conflicts_with = "ranks_per_pod", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub gpus_per_pod: Option<u32>,
    /// Ranks in each pod, without GPUs.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks_per_pod: Option<u32>,
    /// The image, with sae on its path.
    #[arg(long)]
    pub image: String,
    /// Name of the JobSet: small letters, digits and dashes.
    #[arg(long, default_value = "sae", value_parser = name)]
    pub name: String,
    /// Namespace of the JobSet; that of kubectl by default.
    #[arg(long, value_parser = name)]
    pub namespace: Option<String>,
    /// Service account of the pods, such as one that may read the bucket.
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// Cores that each pod asks for, as Kubernetes writes them: 8, 500m.
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub cpu: Option<String>,
    /// Memory that each pod asks for and may have at most: 64Gi.
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub memory: Option<String>,
    /// Size of /dev/shm, which counts as memory of the pod: NCCL connects the GPUs of a pod through it, and 64 MiB, what pods have by
    /// themselves, are too little. By default 8Gi where a pod has several GPUs.
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    pub shm: Option<String>,
    /// A taint of nodes that pods tolerate, as kubectl taint writes it: KEY, KEY=VALUE or KEY=VALUE:EFFECT. May be repeated.
    #[arg(long, value_name = "TAINT", value_parser = toleration)]
    pub toleration: Vec<Toleration>,
    /// A label of the nodes that pods may be on. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub node_selector: Vec<(String, String)>,
    /// A Secret whose entries become environment variables, such as AWS_ACCESS_KEY_ID. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub secret: Vec<String>,
    #[command(flatten)]
    pub save: SaveTime,
    /// How often all pods are started again.
    #[arg(long, default_value_t = 50, value_name = "K")]
    pub restarts: u32,
}

/// The time that a scheduler gives a run to save.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct SaveTime {
    /// Seconds in which the run saves: between the signal that SLURM sends and the time limit, or between SIGTERM and SIGKILL of a
    /// pod (terminationGracePeriodSeconds). By default what sae plan says: three times what storing a checkpoint takes, since one
    /// may be on its way, and at least 120.
    #[arg(long, value_name = "S", value_parser = save_s())]
    pub save_s: Option<u32>,
}

/// Seconds in which ranks agree to stop, end their step and store what is small.
pub const LEAST_SAVE_S: u32 = 120;

fn save_s() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(i64::from(LEAST_SAVE_S)..)
}

/// A name that pods may have: JobSet adds to it, and all of it has 63 characters at most.
fn name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    let ends = text.starts_with(|c: char| c.is_ascii_lowercase()) && !text.ends_with('-');
    if plain && ends && text.len() <= 40 {
        return Ok(text.to_owned());
    }
    Err("write small letters, digits and dashes, a letter first, 40 at most".to_owned())
}

/// A quantity of Kubernetes: a number with a suffix, decimal or binary.
fn quantity(text: &str) -> Result<String, String> {
    let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = &text[..text.len() - suffix.len()];
    let known = ["", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"].contains(&suffix);
    if known && number.parse::<f64>().is_ok_and(|number| number > 0.0) {
        return Ok(text.to_owned());
    }
    Err("write a number, with a suffix of Kubernetes where there is one: 8, 500m, 64Gi".to_owned())
}

/// A taint that pods tolerate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    pub key: String,
    /// `None`: any.
    pub value: Option<String>,
    /// `None`: any.
    pub effect: Option<String>,
}

fn toleration(text: &str) -> Result<Toleration, String> {
    let (taint, effect) = text.rsplit_once(':').map_or((text, None), |(taint, effect)| (taint, Some(effect)));
    let (key, value) = taint.split_once('=').map_or((taint, None), |(key, value)| (key, Some(value)));
    let known = effect.is_none_or(|effect| ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect));
    if !key.is_empty() && known {
        let [value, effect] = [value, effect].map(|part| part.map(str::to_owned));
        return Ok(Toleration { key: key.to_owned(), value, effect });
    }
    Err("write KEY, KEY=VALUE or KEY=VALUE:EFFECT, EFFECT being NoSchedule, PreferNoSchedule or NoExecute".to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
    parts.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "write KEY=VALUE".to_owned())
}

/// The options that ranks take over from their launcher: how messages are written, and its patience with stores.
pub fn handed_on(log: Log) -> Vec<String> {
    let mut words = Vec::new();
    if log == Log::Json {
        words.extend(["--log", "json"].map(str::to_owned));
    }
    if patience::now() != patience::AT_START {
        words.extend(["--patience".to_owned(), patience::now().as_secs().to_string()]);
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn local(line: &[&str]) -> Result<Local, String> {
        let line = ["sae", "launch", "local"].iter().chain(line);
        match Args::try_parse_from(line).map_err(|error| error.to_string())?.command {
            Command::Launch(Launch { how: How::Local(local) }) => Ok(local),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn options_stand_in_any_order() {
        let lines = [
            &["--ranks", "4", "my.toml", "--set", "train.l1=8", "--resume", "--mesh", "2x2", "--device", "cuda:1"][..],
            &["--set", "train.l1=8", "--device", "cuda:1", "my.toml", "--mesh", "2x2", "--resume", "--ranks", "4"],
            &["my.toml", "--resume", "--ranks", "4", "--set", "train.l1=8", "--mesh", "2x2", "--device", "cuda:1"],
        ];
        for line in lines {
            let args = local(line).expect("a command line");
            assert_eq!((args.ranks, args.restarts, args.run.resume), (4, 3, true));
            let words = ["my.toml", "--set", "train.l1=8", "--device", "cuda:1", "--mesh", "2x2"];
            assert_eq!(args.run.words(), [&words[..], &["--resume"]].concat());
            assert_eq!(args.run.resuming(), [&words[..], &["--resume-or-start"]].concat());
            // What a rank is started with means the same to it.
            let rank = ["sae", "train"].map(str::to_owned).into_iter().chain(args.run.words());
            let Command::Train(train) = Args::try_parse_from(rank).expect("train takes them").command else { panic!() };
            assert_eq!(train.run.words(), args.run.words());
        }
    }

    #[test]
    fn what_is_wrong_is_said_first() {
        assert!(local(&["my.toml", "--resme"]).expect_err("unknown").contains("--resume"));
        assert!(local(&["--ranks", "0", "my.toml"]).is_err());
        assert!(local(&["my.toml", "--as-node", "--restarts", "1"]).is_err());
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused() {
        for text in ["8", "500m", "0.5", "64Gi"] {
            assert_eq!(quantity(text).as_deref(), Ok(text));
        }
        for text in ["", "Gi", "64GB", "-1", "0", "1e3x", "64 Gi"] {
            assert!(quantity(text).is_err(), "{text}");
        }
        let parts = |text| toleration(text).map(|t| (t.key, t.value, t.effect));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("nvidia.com/gpu"), Ok(("nvidia.com/gpu".to_owned(), None, None)));
        assert_eq!(parts("pool=sae:NoSchedule"), Ok(("pool".to_owned(), some("sae"), some("NoSchedule"))));
        assert!(toleration("pool=sae:Never").is_err() && toleration("=x").is_err());
    }
}
