//! The command line of `sae launch`.

use clap::{Parser, Subcommand};

use super::{Args, Command, Log, Train};
use crate::failure::Failure;

/// Start a run on several ranks: on this machine, by SLURM, or on Kubernetes.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae launch local --ranks 4 my.toml --set train.l1=8\n  sae launch slurm --nodes 2 \
--gpus-per-node 8 my.toml --dry-run\n  sae launch k8s --ranks 16 --image registry/sae:0.1 my.toml > job.yaml\n\nWhatever starts \
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
        match Args::try_parse_from(line).map_err(|error| Failure::arguments(error.to_string()))?.command {
            Command::Train(train) => Ok(train),
            _ => Err(Failure::arguments("write a recipe and options of sae train")),
        }
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
    }
}
