//! `sae launch`: one file for each place where ranks can be.

mod k8s;
mod local;
mod slurm;

use crate::args::{How, Launch, Log};
use crate::failure::Failure;

/// Starts the ranks, or hands them to a scheduler.
pub fn run(args: &Launch, log: Log) -> Result<(), Failure> {
    match &args.how {
        How::Local(args) => local::run(args, log),
        How::Slurm(args) => slurm::run(args, log),
        How::K8s(args) => k8s::run(args, log),
    }
}

/// This program, for other machines that see the same files.
fn program() -> Result<String, Failure> {
    let path = std::env::current_exe().ok().and_then(|path| path.into_os_string().into_string().ok());
    path.ok_or_else(|| Failure::arguments("the path of this program is no text: put it elsewhere"))
}

/// Words as one line of a shell.
fn quoted_line(words: &[&str]) -> Result<String, Failure> {
    let line = shlex::try_join(words.iter().copied()).ok().filter(|line| !line.contains('\n'));
    line.ok_or_else(|| {
        Failure::arguments(format!("{words:?}: a script has no place for a line break or a NUL in an option"))
    })
}
