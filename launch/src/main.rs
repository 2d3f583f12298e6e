//! `sae`: trains, launches, inspects, evaluates and exports sparse autoencoders.

mod args;
mod budget;
mod commands;
mod contents;
mod counterparts;
mod device;
mod disk;
mod failure;
mod gpus;
mod job;
mod laws;
mod logging;
mod origin;
mod parent;
mod progress;
mod ranks;
mod recipes;
mod remedy;
mod runs;
mod shards;
mod signals;
mod sweep;
mod table;
mod template;
mod terminal;
mod worker;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use args::{Args, Command};
use clap::Parser;
use loader::patience;
use trainer::Exit;

/// Runs the command and turns its failure into a message and an exit code.
fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { Exit::Arguments.code() } else { 0 };
            // That help cannot be printed leaves nothing to tell and nobody to tell it to.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    logging::start(args.log, matches!(args.command, Command::Sweep(_)));
    signals::leave_file_sizes_to_writers();
    patience::set_name("--patience");
    if let Some(seconds) = args.patience {
        patience::set(Duration::from_secs(seconds.into()));
    }
    let done = match args.command {
        Command::Train(train) => commands::train::run(&train),
        Command::Plan(plan) => commands::plan::run(&plan),
        Command::Launch(launch) => commands::launch::run(&launch, args.log),
        Command::Sweep(sweep) => commands::sweep::run(&sweep),
        Command::Inspect(inspect) => commands::inspect::run(&inspect),
        Command::Ingest(ingest) => commands::ingest::run(&ingest),
        Command::Synth(synth) => commands::synth::run(&synth),
        Command::Encode(encode) => commands::encode::run(&encode),
        Command::Harvest(harvest) => commands::harvest::run(&harvest),
        Command::Eval(eval) => commands::eval::run(&eval),
        Command::Runs(runs) => commands::runs::run(&runs),
        Command::Scaling(scaling) => commands::scaling::run(&scaling),
        Command::Doctor(doctor) => commands::doctor::run(&doctor),
        Command::Export(export) => commands::export::run(&export),
        Command::Kernels(kernels) => commands::kernels::run(&kernels),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
