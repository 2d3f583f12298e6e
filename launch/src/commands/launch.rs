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
