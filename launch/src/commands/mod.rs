//! One file for each command.

pub mod doctor;
pub mod encode;
pub mod eval;
pub mod export;
pub mod harvest;
pub mod ingest;
pub mod inspect;
pub mod kernels;
pub mod launch;
pub mod plan;
pub mod runs;
pub mod scaling;
pub mod sweep;
pub mod synth;
pub mod train;
