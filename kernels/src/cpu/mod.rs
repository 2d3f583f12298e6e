//! The processor as a [`Device`]: every operation in f32, the same bits for every thread count and instruction set.
//!
//! A feature's work belongs together: activations are kept by feature (`codes.rs`), and decode, backward and Adam walk
//! over them feature by feature, so weights are read once per batch and only the small `[B, D]` arrays are gathered.

mod activation;
mod codes;
mod device;
mod dictionary;
mod engine;
pub mod gemm;
mod memory;
mod moments;
mod ops;
mod peak;
mod scratch;
mod screen;
mod simd;
mod training;
mod weights;

pub use device::{Cpu, Options, Staging};
pub use dictionary::CpuDictionary;
pub use ops::count::Tally;
pub use ops::normalize::Rows;
pub use peak::Peaks;
pub use screen::ScreenDtype;
pub use simd::Isa;
pub use training::CpuTraining;
