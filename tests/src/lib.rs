//! What the end-to-end tests share: data sets and recipes of a small size, the binary `sae`, and what can be done to a run
//! from outside. Nothing here stands in for a part of the program: runs are processes, files are files.

pub mod browser;
pub mod cases;
pub mod checkpoints;
pub mod control;
pub mod emulator;
pub mod equal_bits;
pub mod exact;
pub mod fixture;
pub mod gate;
pub mod golden;
pub mod imports;
pub mod jobs;
pub mod kills;
pub mod late;
pub mod launcher;
pub mod listing;
pub mod mesh;
pub mod need;
pub mod network;
pub mod on_gpu;
pub mod pairs;
pub mod processes;
pub mod proxy;
pub mod ranks;
pub mod reference;
pub mod rounding;
pub mod runs;
pub mod s3;
pub mod sae;
pub mod slurm;
pub mod sweeps;
pub mod tiny;
pub mod tls;
pub mod tolerance;

use std::path::{Path, PathBuf};

/// The folder of the workspace. Cargo says at run time which one it is: builds may be shared between clones, and what was
/// compiled in may name another.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().expect("the crate lies in the workspace").to_owned()
}
