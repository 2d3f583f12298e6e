//! The command line of `sae launch`.

use std::path::PathBuf;

use clap::builder::RangedI64ValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::{Args as _, Parser, Subcommand};

use super::{Args, Command, Log, Train};
use crate::failure::Failure;

/// Start a run on several ranks: on this machine, by SLURM, or on Kubernetes.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch local --ranks 4 my.toml --set train.l1=8\n  sae launch slurm --nodes 2 \
--gpus-per-node 8 --dry-run my.toml\n  sae launch k8s --ranks 16 --image registry/sae:0.1 my.toml > job.yaml\n\nWhatever starts \
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
    Slurm(Slurm),
    K8s(K8s),
}

/// Start the ranks on this machine, watch them, and start them again from the last checkpoint when restarting can help.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch local launch/recipes/quickstart.toml\n  sae launch local --ranks 8 my.toml --set \
run.dir=runs/a\n\nWhat rank 0 says appears as if it ran alone, of the others warnings and errors. Signals are passed on.\nExit \
codes are those of sae train; after 69, 71, 75 and signals the ranks are started again."
)]
pub struct Local {
    /// Processes to start.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: u32,
    /// Starts after the first, at most.
    #[arg(long, default_value_t = 3, value_name = "K")]
    pub restarts: u32,
    #[command(flatten)]
    pub train: TrainWords,
}

/// Write a batch script and submit it to SLURM.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch slurm --nodes 2 --gpus-per-node 8 --time 1-00:00:00 --partition gpu my.toml\n  sae \
launch slurm --ranks-per-node 4 --sbatch cpus-per-task=8 --dry-run my.toml --set train.l1=8\n\nBefore its time is over the job \
saves, goes back into the queue and goes on; so it does after exit codes\n69 and 71. After 64, 65, 70 and 73 it fails."
)]
pub struct Slurm {
    /// Machines.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub nodes: u32,
    /// GPUs of each machine; one rank for each.
    #[arg(long, value_name = "G", conflicts_with = "ranks_per_node", value_parser = clap::value_parser!(u32).range(1..))]
    pub gpus_per_node: Option<u32>,
    /// Ranks on each machine, without GPUs.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks_per_node: Option<u32>,
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
    /// Seconds before the time limit at which the run is asked to save: three times what storing a checkpoint takes, since one may
    /// be on its way, and at least 120. sae plan reckons it.
    #[arg(long, default_value_t = LEAST_SAVE_S, value_name = "S", value_parser = save_s())]
    pub save_s: u32,
    /// How often the job goes back into the queue, those at the time limit included.
    #[arg(long, default_value_t = 50, value_name = "K")]
    pub restarts: u32,
    /// The script; job.sh in run.dir by default. What the job writes goes beside it. One that was changed by hand is not written over.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print the script and submit nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub train: TrainWords,
}

/// Print the manifest of a JobSet for Kubernetes, one pod a rank.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch k8s --image registry/sae:0.1 --gpu --secret s3 my.toml | kubectl apply -f -\n  sae launch \
k8s --ranks 16 --image registry/sae:0.1 --name l12 my.toml > job.yaml\n\nThe recipe travels in the manifest with what --set changes; data.train \
and run.dir must be reachable\nfrom the pods. Exit codes 64, 65, 70 and 73 fail the JobSet, others start all pods again. A pod\nthat is \
taken away has --save-s to save; where its node is gone sooner, the run goes on from the\ncheckpoint before."
)]
pub struct K8s {
    /// Pods, each one rank.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: u32,
    /// The image, with sae on its path.
    #[arg(long)]
    pub image: String,
    /// Name of the JobSet: small letters, digits and dashes.
    #[arg(long, default_value = "sae", value_parser = name)]
    pub name: String,
    /// One GPU for each pod.
    #[arg(long)]
    pub gpu: bool,
    /// A Secret whose entries become environment variables, such as AWS_ACCESS_KEY_ID. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub secret: Vec<String>,
    /// Seconds between SIGTERM, on which the run saves, and SIGKILL (terminationGracePeriodSeconds of the pods): three times what
    /// storing a checkpoint takes, since one may be on its way, and at least 120. sae plan reckons it.
    #[arg(long, default_value_t = LEAST_SAVE_S, value_name = "S", value_parser = save_s())]
    pub save_s: u32,
    /// How often all pods are started again.
    #[arg(long, default_value_t = 50, value_name = "K")]
    pub restarts: u32,
    #[command(flatten)]
    pub train: TrainWords,
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

/// The command line of `sae train`, as it was written after that of `sae launch`.
#[derive(clap::Args, Debug)]
pub struct TrainWords {
    /// The recipe, and options of sae train.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "RECIPE [TRAIN OPTIONS]")]
    words: Vec<String>,
}

impl TrainWords {
    /// What the words mean to `sae train`, so that what is wrong with them is said before anything is started.
    ///
    /// # Errors
    /// Exit code 64 when `sae train` does not take them.
    pub fn parse(&self) -> Result<Train, Failure> {
        let line = ["sae", "train"].into_iter().chain(self.words.iter().map(String::as_str));
        let parsed = Args::try_parse_from(line).map_err(|error| match option_of_launch(&error) {
            Some(option) => {
                Failure::arguments(format!("{option} is an option of sae launch: write it before the recipe"))
            }
            None => Failure::arguments(error.to_string()),
        })?;
        match parsed.command {
            Command::Train(train) => Ok(train),
            _ => Err(Failure::arguments("write a recipe and options of sae train")),
        }
    }

    /// As [`TrainWords::parse`], for a job that runs later: a dry run is none.
    ///
    /// # Errors
    /// As there.
    pub fn parse_job(&self) -> Result<Train, Failure> {
        let train = self.parse()?;
        if train.dry_run {
            return Err(Failure::arguments(
                "--dry-run behind the recipe is an option of sae train, which a job has no use for: write it before the recipe to \
                 see what would be submitted",
            ));
        }
        Ok(train)
    }

    /// The words for a process that may find the run begun, or not: `--resume-or-start` fits both.
    pub fn resuming(&self) -> Vec<&str> {
        let others =
            self.words.iter().map(String::as_str).filter(|word| !["--resume", "--resume-or-start"].contains(word));
        others.chain(["--resume-or-start"]).collect()
    }

    /// The words as they are.
    pub fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }
}

/// The word that `sae train` does not know, where `sae launch` does.
fn option_of_launch(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    let launch = Launch::augment_args(clap::Command::new("launch"));
    let mut known = launch.get_subcommands().flat_map(clap::Command::get_arguments).filter_map(clap::Arg::get_long);
    known.any(|long| word.strip_prefix("--") == Some(long)).then(|| word.clone())
}

/// The option that hands on how messages are written.
pub fn log_words(log: Log) -> &'static [&'static str] {
    match log {
        Log::Pretty => &[],
        Log::Json => &["--log", "json"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(line: &[&str]) -> Result<Local, String> {
        let line = ["sae", "launch", "local"].iter().chain(line);
        match Args::try_parse_from(line).map_err(|error| error.to_string())?.command {
            Command::Launch(Launch { how: How::Local(local) }) => Ok(local),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn options_after_the_recipe_are_those_of_train() {
        let args = local(&["--ranks", "4", "my.toml", "--set", "train.l1=8", "--resume"]).expect("a command line");
        assert_eq!((args.ranks, args.restarts), (4, 3));
        let train = args.train.parse().expect("train takes them");
        assert_eq!((train.recipe.as_str(), train.set, train.resume), ("my.toml", vec!["train.l1=8".to_owned()], true));
        assert_eq!(args.train.resuming(), ["my.toml", "--set", "train.l1=8", "--resume-or-start"]);
    }

    #[test]
    fn what_train_does_not_take_is_said_first() {
        let args = local(&["my.toml", "--resme"]).expect("not looked at yet");
        assert!(format!("{:?}", args.train.parse().expect_err("unknown")).contains("--resume"));
        assert!(local(&["--ranks", "0", "my.toml"]).is_err());
        let args = local(&["my.toml", "--restarts", "1"]).expect("not looked at yet");
        assert!(format!("{:?}", args.train.parse().expect_err("behind")).contains("write it before the recipe"));
        let args = local(&["my.toml", "--dry-run"]).expect("not looked at yet");
        assert!(args.train.parse().is_ok() && args.train.parse_job().is_err());
    }
}
