//! From sources to what a GPU runs: cubins in the binary, in the cache, or of NVRTC.

pub mod arch;
pub mod cache;
pub mod cubin;
pub mod embedded;
pub mod kernels;
pub mod nvrtc;
pub mod resources;
pub mod sources;
