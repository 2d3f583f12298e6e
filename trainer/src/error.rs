//! What can go wrong in training, by what the caller can do about it.
//!
//! A text says what was met, whole, with what it came from and what the recipe can do; what the command line can do is added by the program that
//! has one. So the chain of sources is for programs that want to know more of a cause, and is not printed behind a text.

use std::sync::Arc;

use kernels::ranks::Failure;

use crate::exit::Exit;
use crate::message::Message;
use crate::remedy;

/// What helps a new run against rows that are not finite.
pub const OR_FILTER: &str = "a new run with data.filter.finite = true leaves out all such rows";

/// The crate's error. Each text names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key of the recipe, or two that do not fit.
    #[error("{0}")]
    Recipe(String),
    /// `train.init_from`, or weights to export, cannot be used.
    #[error(transparent)]
    Weights(Message),
    /// The run's folder is in use or holds something else.
    #[error(transparent)]
    RunDir(Message),
    /// Another process of this machine uses the run's folder.
    #[error("{place} is in use by another process: wait for it, or choose another run.dir")]
    InUse {
        /// The folder.
        place: String,
    },
    /// The run's folder holds no run that could be resumed.
    #[error("{place} holds no run to resume")]
    NoRun {
        /// The folder.
        place: String,
    },
    /// The run's folder holds a run, and another was to begin there.
    #[error("{place} already holds a run")]
    HoldsRun {
        /// The folder.
        place: String,
    },
    /// A rank has come to a meeting of ranks where one of its number had come before.
    #[error(
        "another rank {rank} has come to the attempt {attempt} in {place}: give every start of a job an attempt of its own, and every \
         process a rank of its own"
    )]
    UsedAttempt {
        /// The number of both.
        rank: usize,
        /// The attempt id.
        attempt: String,
        /// The run's folder.
        place: String,
    },
    /// The run was to be resumed with other held-out rows.
    #[error("{problem}{if_copied}")]
    OtherHeldOut {
        /// The rows that it has, and those that it was given.
        problem: String,
        /// What to do where they are a copy; empty, or behind a separator.
        if_copied: String,
    },
    /// A file of weights would be larger than any that can be written.
    #[error("the weights take {bytes} bytes, and one file of at most {most} can be written from here")]
    FileTooLarge {
        /// What the weights take.
        bytes: u64,
        /// The most that a file may have.
        most: u64,
    },
    /// A part of an export may have fewer bytes than a feature takes.
    #[error("{most} bytes hold no feature, which takes {least} here with b_dec and the file's header")]
    PartTooSmall {
        /// Bytes that a part may have.
        most: u64,
        /// Bytes that a part has at least.
        least: u64,
    },
    /// The data as a whole cannot be trained on.
    #[error("{0}")]
    Data(String),
    /// A checkpoint is damaged or missing.
    #[error(transparent)]
    Checkpoint(Message),
    /// A checkpoint of another version of this program.
    #[error("{0}")]
    OtherFormat(String),
    /// Training has come to NaN or infinity: the update was refused, the weights are those before the step.
    #[error("{0}")]
    Divergence(String),
    /// Rows that hold NaN or infinity: the update was refused, the weights are those before the step.
    #[error("{problem}. Leave the rows out and go on: {skip}; {OR_FILTER}")]
    BadRows {
        /// The step, how many rows there are, and where the weights are.
        problem: String,
        /// The key of the recipe that leaves them out, with its value.
        skip: String,
    },
    /// Somebody asked the run to stop, and it did after saving.
    #[error("stopped at step {step} after saving {checkpoint}")]
    Interrupted {
        /// Steps done.
        step: u64,
        /// What was saved.
        checkpoint: String,
    },
    /// A local file of the run cannot be written.
    #[error("{path}: cannot write: {source}: free some space, fix its permissions, or choose another run.dir")]
    CannotWrite {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It was not begun together with the runs before it, for what the text says; another time it may be.
    #[error("{0}")]
    NotBegun(&'static str),
    /// What several runs have failed of together.
    #[error(transparent)]
    OfAll(Arc<Error>),
    /// Data or storage.
    #[error("{0}{remedy}", remedy = remedy::of_loader(.0))]
    Loader(#[from] loader::Error),
    /// The device.
    #[error("{0}{remedy}", remedy = remedy::of_device(.0))]
    Device(#[from] kernels::Error),
    /// A bug of this program.
    #[error("internal error, please report it: {0}")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// What a process that it ends tells its launcher.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Recipe(_)
            | Error::Weights(_)
            | Error::RunDir(_)
            | Error::InUse { .. }
            | Error::NoRun { .. }
            | Error::HoldsRun { .. }
            | Error::UsedAttempt { .. }
            | Error::OtherHeldOut { .. }
            | Error::FileTooLarge { .. }
            | Error::PartTooSmall { .. }
            | Error::NotBegun(_)
            | Error::OtherFormat(_) => Exit::Arguments,
            Error::Data(_) | Error::Checkpoint(_) | Error::BadRows { .. } => Exit::Data,
            Error::Divergence(_) => Exit::Divergence,
            Error::Internal(_) => Exit::Internal,
            Error::CannotWrite { .. } => Exit::CannotWrite,
            Error::Interrupted { .. } => Exit::Interrupted,
            Error::OfAll(error) => error.exit(),
            Error::Loader(error) => of_loader(error),
            Error::Device(error) => of_device(error),
        }
    }

    /// What several runs have failed of is what each of them has.
    pub(crate) fn own(&self) -> &Error {
        match self {
            Error::OfAll(error) => error.own(),
            own => own,
        }
    }

    /// Whether it only says that the run was asked to stop.
    pub fn is_interruption(&self) -> bool {
        self.exit() == Exit::Interrupted
    }

    /// What rank `rank` tells the others of this error. Of another rank's failure it tells what it heard, so that all name the same
    /// one.
    pub fn failure(&self, rank: usize) -> Failure {
        match self {
            Error::Device(kernels::Error::Peer { rank, reason, code, .. }) => {
                Failure { rank: *rank, code: *code, reason: reason.clone() }
            }
            Error::OfAll(error) => error.failure(rank),
            own => Failure { rank, code: Some(own.exit().code()), reason: own.to_string() },
        }
    }
}

fn of_loader(error: &loader::Error) -> Exit {
    use loader::Error as Loader;
    match error {
        Loader::Arguments(_)
        | Loader::Address { .. }
        | Loader::Unexpanded(_)
        | Loader::Memory { .. }
        | Loader::Cursor { .. }
        | Loader::Denied { .. } => Exit::Arguments,
        Loader::NotFound { .. } | Loader::Data { .. } | Loader::Changed { .. } => Exit::Data,
        Loader::Unreachable { .. } => Exit::Storage,
        // Other processes may hold them for now.
        Loader::Threads(_) => Exit::Hardware,
        Loader::CannotWrite { .. } => Exit::CannotWrite,
    }
}

fn of_device(error: &kernels::Error) -> Exit {
    use kernels::Error as Device;
    match error {
        // What does not fit into this machine, or is not there, will not be after a restart.
        Device::OutOfMemory { .. }
        | Device::TooManyRows { .. }
        | Device::RefusedKernels { .. }
        | Device::NoDriver { .. }
        | Device::DriverTooOld { .. }
        | Device::NoGpu
        | Device::NoSuchGpu { .. }
        | Device::GpuTooOld { .. }
        | Device::NoCompiler { .. }
        | Device::NoNccl { .. }
        | Device::SharedGpu { .. }
        | Device::UnknownArch { .. }
        | Device::Listen { .. } => Exit::Arguments,
        Device::Compile { .. } => Exit::Internal,
        // A launcher may see one code only: what another start would not change is said by all ranks.
        Device::Peer { code, .. } => {
            code.and_then(Exit::of).filter(|exit| !exit.restart_helps()).unwrap_or(Exit::Hardware)
        }
        // Threads: other processes may hold them for now.
        Device::Cuda { .. } | Device::Nccl { .. } | Device::Threads { .. } => Exit::Hardware,
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// A text says what its source says, and the source is there for programs.
    #[test]
    fn errors_keep_their_source() {
        let json = || serde_json::from_str::<u64>("{").expect_err("no number");
        let io = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let is_json = |error: &Error| error.source().is_some_and(|source| source.is::<serde_json::Error>());
        let is_io = |error: &Error| error.source().is_some_and(|source| source.is::<std::io::Error>());
        let message = || Message::of(format!("manifest.json: {}", json()), json());
        for error in [Error::Checkpoint(message()), Error::Weights(message()), Error::RunDir(message())] {
            assert!(is_json(&error) && error.to_string() == format!("manifest.json: {}", json()), "{error:?}");
        }
        let later = Error::Checkpoint(message().said(|text| format!("none is left: {text}")));
        assert!(is_json(&later) && later.to_string().starts_with("none is left: manifest.json: "), "{later:?}");
        assert!(is_json(&Error::Internal(json().into())));
        assert!(is_io(&Error::CannotWrite { path: String::new(), source: io() }));
        assert!(Error::Checkpoint("damaged".to_owned().into()).source().is_none());
        // Those of the crates below are the source, and keep theirs.
        let below = Error::from(loader::Error::Threads(io().into()));
        let source = below.source().expect("the loader's").downcast_ref::<loader::Error>().expect("the loader's");
        assert!(source.source().is_some_and(|source| source.is::<std::io::Error>()), "{below:?}");
        let below = Error::from(kernels::Error::threads(io()));
        let source = below.source().expect("the device's").downcast_ref::<kernels::Error>().expect("the device's");
        assert!(source.source().is_some_and(|source| source.is::<std::io::Error>()), "{below:?}");
    }

    /// The whole table: what a launcher starts again, and what it does not.
    #[test]
    fn every_error_has_the_exit_code_of_its_kind() {
        let text = String::new;
        let io = || std::io::Error::other("x");
        for (error, code) in [
            (Error::Recipe(text()), 64),
            (Error::Weights(text().into()), 64),
            (Error::RunDir(text().into()), 64),
            (Error::NoRun { place: text() }, 64),
            (Error::HoldsRun { place: text() }, 64),
            (Error::UsedAttempt { rank: 1, attempt: text(), place: text() }, 64),
            (Error::OtherHeldOut { problem: text(), if_copied: text() }, 64),
            (Error::FileTooLarge { bytes: 1, most: 1 }, 64),
            (Error::PartTooSmall { most: 1, least: 1 }, 64),
            (Error::OtherFormat(text()), 64),
            (Error::NotBegun("x"), 64),
            (Error::Data(text()), 65),
            (Error::Checkpoint(text().into()), 65),
            (Error::Divergence(text()), 70),
            (Error::BadRows { problem: text(), skip: text() }, 65),
            (Error::Internal(text().into()), 101),
            (Error::CannotWrite { path: text(), source: io() }, 73),
            (Error::Interrupted { step: 1, checkpoint: text() }, 75),
            (Error::OfAll(Arc::new(Error::Data(text()))), 65),
            (loader::Error::Arguments(text()).into(), 64),
            (loader::Error::Cursor { difference: text() }.into(), 64),
            (loader::Error::Address { location: text(), problem: text(), source: None }.into(), 64),
            (loader::Error::Unexpanded(loader::Unexpanded { path: text(), variable: text() }).into(), 64),
            (loader::Error::Memory { problem: text(), needed: 1 }.into(), 64),
            (loader::Error::Data { location: text(), problem: text(), source: None, help: None }.into(), 65),
            (loader::Error::Denied { location: text(), problem: text(), source: None }.into(), 64),
            (loader::Error::NotFound { location: text(), hint: text(), source: None }.into(), 65),
            (loader::Error::Changed { location: text(), problem: text(), source: None, help: None }.into(), 65),
            (loader::Error::Unreachable { location: text(), problem: text(), source: None }.into(), 69),
            (loader::Error::CannotWrite { location: text(), problem: text(), source: None }.into(), 73),
            (loader::Error::Threads(io().into()).into(), 71),
        ] {
            assert_eq!(error.exit().code(), code, "{error:?}");
        }
        let (call, address) = ("x", std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        for (error, code) in [
            (kernels::Error::OutOfMemory { what: "x", bytes: 1, said: text() }, 64),
            (kernels::Error::TooManyRows { batch: 1, most: 1, features: 1 }, 64),
            (kernels::Error::RefusedKernels { which: text(), reason: text(), nvrtc: text() }, 64),
            (kernels::Error::NoDriver { looked: text() }, 64),
            (kernels::Error::DriverTooOld { major: 1, minor: 1 }, 64),
            (kernels::Error::NoGpu, 64),
            (kernels::Error::NoSuchGpu { ordinal: 1, count: 1 }, 64),
            (kernels::Error::GpuTooOld { name: text(), major: 1, minor: 1 }, 64),
            (kernels::Error::NoCompiler { looked: text() }, 64),
            (kernels::Error::NoNccl { looked: text() }, 64),
            (kernels::Error::SharedGpu { rank: 1, other: 2, name: text() }, 64),
            (kernels::Error::UnknownArch { arch: text(), known: text() }, 64),
            (kernels::Error::Listen { address, source: io().into() }, 64),
            (kernels::Error::Compile { source_file: "x", arch: text(), nvrtc: text(), log: text() }, 101),
            (kernels::Error::Cuda { call, reason: text() }, 71),
            (kernels::Error::Nccl { call, reason: text() }, 71),
            (kernels::Error::Threads { purpose: "x", source: io().into() }, 71),
        ] {
            assert_eq!(Error::from(error.clone()).exit().code(), code, "{error:?}");
        }
        // What another rank failed of, where it said so and another start changes nothing.
        let peer = |code| Error::from(kernels::Error::Peer { rank: 3, operation: "x", reason: text(), code });
        for code in (64..=75).chain([101]) {
            let expected = if [64, 65, 70, 73, 101].contains(&code) { code } else { 71 };
            assert_eq!(peer(Some(code)).exit().code(), expected, "{code}");
        }
        assert_eq!(peer(None).exit().code(), 71);
    }
}
