//! What the command line can do against errors of the crates below, which know of no flags. Mostly it stands behind their text.

use std::sync::OnceLock;

use loader::{Help, Unexpanded};
use trainer::{Error, Exit, OR_FILTER};

use crate::table;

/// Set where a run of several ranks is a configuration of a sweep, whose recipe is the sweep's.
pub const OF_SWEEP: &str = "SAE_OF_SWEEP";

/// An error in the words that a user sees.
pub fn words(error: &Error) -> String {
    match error {
        Error::BadRows { .. } if std::env::var_os(OF_SWEEP).is_some() => words_in_sweep(error),
        Error::BadRows { problem, skip } => {
            // As a shell takes it between quotes.
            let quoted = skip.replace('\'', r"'\''");
            format!("{problem}. Leave the rows out and go on: {} --resume --set '{quoted}'; {OR_FILTER}", command(skip))
        }
        Error::OtherHeldOut { problem, if_copied } => {
            format!("{problem}, or measure on other rows with `sae eval --data`{if_copied}")
        }
        Error::OfAll(error) => words(error),
        Error::PartTooSmall { .. } => format!("--max-shard-size: {error}"),
        _ => format!("{error}{}", remedy(error)),
    }
}

/// The same of a configuration of a sweep, whose recipe is the sweep's.
pub fn words_in_sweep(error: &Error) -> String {
    match error {
        Error::BadRows { problem, skip } => format!(
            "{problem}. Leave the rows out of all and go on: set {skip} in the sweep's recipe, then sae sweep … --retry; {OR_FILTER}"
        ),
        Error::OfAll(error) => words_in_sweep(error),
        _ => words(error),
    }
}

/// The words behind `sae train` that start the run of this process.
static WORDS: OnceLock<Vec<String>> = OnceLock::new();

/// Remembers the words behind `sae train` that start the run of this process, for remedies that go on with it.
pub fn remember(words: Vec<String>) {
    // A process has one run.
    let _ = WORDS.set(words);
}

/// The command that starts the run of this process, as a shell takes it, without what sets the key that `setting` sets.
fn command(setting: &str) -> String {
    let Some(words) = WORDS.get() else { return "sae train …".into() };
    let mut command = String::from("sae train");
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if word == "--set" && words.next_if(|set| set_key(set) == set_key(setting)).is_some() {
            continue;
        }
        command.push(' ');
        command.push_str(&table::quoted(word));
    }
    command
}

/// The key that a `KEY=VALUE` of `--set` sets.
pub fn set_key(set: &str) -> Option<&str> {
    set.split_once('=').map(|(key, _)| key.trim())
}

/// A path with a variable in it, in the words that a user sees.
pub fn unexpanded(error: &Unexpanded) -> String {
    format!("{error}{BY_FLAG}")
}

const BY_FLAG: &str = ", or give it with --set and double quotes";

/// What the command line can do against an error of harvesting.
pub fn of_harvest(error: &harvest::Error) -> String {
    use harvest::Help;
    let remedy = |help: &Help| match help {
        Help::Tokenizer => ". Name a tokenizer.json of the model with --tokenizer FILE",
        Help::NoBos => ": say --bos auto or --bos never",
        Help::Column => ": name the column or key with --column",
        Help::NoColumn => ": leave out --column",
        Help::Split => ", with --split lines or --split paragraphs",
        Help::NoSplit => ": leave out --split",
        Help::SkipUnreadable => ". With --skip-unreadable the same command goes on without it",
        Help::Context => ": change --context",
        Help::Layers => " (--layer)",
        Help::Dtype => ": write them with --dtype bf16 or --dtype f32",
    };
    let remedies: String = error.help().iter().map(remedy).collect();
    format!("{error}{remedies}")
}

/// Empty where the text says all.
fn remedy(error: &Error) -> &'static str {
    use kernels::Error as Device;
    match error {
        Error::Interrupted { .. } => ": continue with --resume",
        Error::NoRun { .. } => ": leave out --resume to start one there (--resume-or-start does whichever fits)",
        Error::HoldsRun { .. } => ": continue it with --resume, or choose another run.dir (--set run.dir=…)",
        Error::UsedAttempt { .. } => " (--attempt or SAE_ATTEMPT, and --rank)",
        Error::FileTooLarge { .. } => {
            ": write parts with --max-shard-size, such as 4GB, halve them with --dtype bf16, or leave out what is dead with --alive-only"
        }
        Error::Loader(loader::Error::Unexpanded(_)) => BY_FLAG,
        Error::Loader(error) if error.help() == Some(Help::Column) => " (sae inspect and sae eval: with --column)",
        Error::Loader(error) if error.help() == Some(Help::Credentials) => ", and go on with --resume-or-start",
        Error::Device(Device::NoDriver { .. } | Device::DriverTooOld { .. } | Device::NoGpu) => {
            ", or compute with --device cpu"
        }
        Error::Device(Device::GpuTooOld { .. }) => {
            ": choose another GPU with --device cuda:N, or compute with --device cpu"
        }
        Error::Device(Device::Nccl { .. }) => {
            ": start the job again with --resume; if it stays, NCCL_DEBUG=INFO makes NCCL say more"
        }
        // Another start helps where it was not what the ranks were started with.
        Error::Device(Device::Peer { .. }) if error.exit() == Exit::Hardware => {
            ": start the job again with --resume-or-start once that rank can run"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// What an error came from is in its own text, and is said once: the chain of sources is for programs.
    #[test]
    fn a_source_is_said_once_and_remedies_follow() {
        let io = || std::io::Error::other("no more of them");
        for (error, words) in [
            (
                Error::from(loader::Error::Threads(io().into())),
                "no threads to read with: no more of them: lower data.threads, or let this user have more of them",
            ),
            (
                kernels::Error::threads(io()).into(),
                "no worker threads for the cpu device: no more of them: lower train.threads, or let this user have more of them",
            ),
            (
                Error::CannotWrite { path: "x".into(), source: io() },
                "x: cannot write: no more of them: free some space, fix its permissions, or choose another run.dir",
            ),
            (Error::Internal(io().into()), "internal error, please report it: no more of them"),
            (
                Error::Weights(trainer::Message::of("train.init_from: x: no more of them".into(), io())),
                "train.init_from: x: no more of them",
            ),
        ] {
            assert_eq!(super::words(&error), words);
            let (mut source, mut is_there) = (error.source(), false);
            while let Some(error) = source {
                is_there |= error.downcast_ref::<std::io::Error>().is_some();
                source = error.source();
            }
            assert!(is_there, "{error:?}");
            assert_eq!(crate::failure::Failure::from(error).message(), words);
        }
    }

    #[test]
    fn remedies_name_flags_and_keys() {
        let place = || "runs/a".to_owned();
        let step = || "step 3: 1 of its rows holds NaN or infinite values, so the update was refused; saved".to_owned();
        for (error, words) in [
            (
                Error::Interrupted { step: 7, checkpoint: "c".into() },
                "stopped at step 7 after saving c: continue with --resume",
            ),
            (
                Error::HoldsRun { place: place() },
                "runs/a already holds a run: continue it with --resume, or choose another run.dir (--set run.dir=…)",
            ),
            (
                Error::BadRows { problem: step(), skip: r#"data.skip=["it's.parquet:1"]"#.into() },
                "step 3: 1 of its rows holds NaN or infinite values, so the update was refused; saved. Leave the rows out and go on: sae \
                 train … --resume --set 'data.skip=[\"it'\\''s.parquet:1\"]'; a new run with data.filter.finite = true leaves out all such \
                 rows",
            ),
            (
                loader::Error::Data {
                    location: "a.parquet".into(),
                    problem: "has two columns that could be meant".into(),
                    source: None,
                    help: Some(Help::Column),
                }
                .into(),
                "a.parquet: has two columns that could be meant: name one in data.column (sae inspect and sae eval: with --column)",
            ),
            (
                kernels::Error::OutOfMemory { what: "the weights", bytes: 1 << 20, said: String::new() }.into(),
                "the weights needs 1 MiB of memory, more than this machine gives: lower sae.features",
            ),
            (
                Error::PartTooSmall { most: 1, least: 2 },
                "--max-shard-size: 1 bytes hold no feature, which takes 2 here with b_dec and the file's header",
            ),
            (
                kernels::Error::NoDriver { looked: "nowhere".into() }.into(),
                "no CUDA driver: nowhere: install NVIDIA's driver, or compute with --device cpu",
            ),
            (
                kernels::Error::TooManyRows { batch: 9, most: 8, features: 7 }.into(),
                "a batch of 9 rows on one GPU is more than its kernels can count: at most 8 with 7 features: lower train.batch, or share \
                 it between more ranks",
            ),
            (
                loader::Error::from(Unexpanded { path: "$A/b".into(), variable: "A".into() }).into(),
                "$A/b: $A is a variable that nothing has replaced, and there is no path of that name: a shell replaces it outside of \
                 single quotes; in a recipe write the path itself, or give it with --set and double quotes",
            ),
            (
                loader::Error::Memory { problem: "the order needs 8.0 MiB in memory".into(), needed: 8 << 20 }.into(),
                "the order needs 8.0 MiB in memory: lower data.window_bytes, raise data.prefetch_bytes to 8388608 if the memory is \
                 there, or shuffle the data once and read it in sequence",
            ),
            (
                loader::Error::Data {
                    location: "a.parquet, row group 1".into(),
                    problem: "damaged: fetch or make the file again".into(),
                    source: None,
                    help: Some(Help::Skip("a.parquet#1".into())),
                }
                .into(),
                "a.parquet, row group 1: damaged: fetch or make the file again, or leave the row group out with data.skip = \
                 [\"a.parquet#1\"]",
            ),
        ] {
            assert_eq!(super::words(&error), words);
        }
    }
}
