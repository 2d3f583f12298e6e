//! What is reported of a run: metrics, their files, what was found.

pub mod account;
pub mod centre;
pub(crate) mod curves;
pub(crate) mod dot;
pub(crate) mod events;
pub(crate) mod hparams;
pub(crate) mod html;
pub(crate) mod journal;
pub mod metrics;
pub mod recovery;
pub mod summary;
