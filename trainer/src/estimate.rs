//! What a run would take, before it begins.

pub mod forecast;
pub mod overhead;
pub mod plan;
pub mod rehearsal;
pub mod room;
