//! What can go wrong on a device or between ranks, by what the caller can do about it.
//!
//! A text states what was met and what the machine's owner can do; which setting of the caller's would help, only the caller knows. An error is
//! remembered by the device and told to every function that can fail after it, so it can be cloned: what it came from is shared where it is an
//! error of the system. Codes of CUDA, NVRTC and NCCL become words where they are met, since only the library that returned one can say what it
//! means, and so do failures of other ranks, of which nothing but words comes over the wire.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

/// An error of the system, shared by the clones of an [`Error`].
#[derive(Clone, Debug)]
pub struct System(Arc<io::Error>);

impl From<io::Error> for System {
    fn from(error: io::Error) -> Self {
        System(Arc::new(error))
    }
}

/// The error itself is what [`std::error::Error::source`] gives.
impl Deref for System {
    type Target = io::Error;
    fn deref(&self) -> &io::Error {
        &self.0
    }
}

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Memory for an object could not be had.
    #[error("{what} needs {} of memory, more than this machine gives{said}", size(*bytes))]
    OutOfMemory {
        /// What was being made.
        what: &'static str,
        /// What it takes.
        bytes: usize,
        /// The driver's call and its words in parentheses, behind a space; empty where there was none.
        said: String,
    },
    /// A batch is larger than the numbers in which kernels count.
    #[error(
        "a batch of {batch} rows on one GPU is more than its kernels can count: at most {most} with {features} features"
    )]
    TooManyRows {
        /// Rows that one GPU was to take.
        batch: usize,
        /// Rows that it can take.
        most: usize,
        /// Features of the dictionary there.
        features: usize,
    },
    /// The system gave too few threads.
    #[error("no worker threads for the cpu device: {purpose}{}", **source)]
    Threads {
        /// What they were wanted for, with a colon and a space behind it; empty for work of the device.
        purpose: &'static str,
        /// What the system said.
        source: System,
    },
    /// There is no CUDA driver, or what was named as one is none.
    #[error("no CUDA driver: {looked}: install NVIDIA's driver")]
    NoDriver {
        /// Where it was looked for, and what was said there.
        looked: String,
    },
    /// The driver knows only older versions of CUDA.
    #[error(
        "the NVIDIA driver supports CUDA {major}.{minor}, and this program needs 13.0: update it to version 580 or newer"
    )]
    DriverTooOld {
        /// The newest version of CUDA that the driver supports.
        major: u32,
        /// Its second part.
        minor: u32,
    },
    /// The driver sees no GPU.
    #[error("the NVIDIA driver sees no GPU: look at nvidia-smi and at CUDA_VISIBLE_DEVICES")]
    NoGpu,
    /// There are GPUs, but not this one.
    #[error("there is no GPU {ordinal}: {count} can be seen, counted from 0; CUDA_VISIBLE_DEVICES may hide some")]
    NoSuchGpu {
        /// What was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU lacks instructions that the kernels use.
    #[error("{name} has compute capability {major}.{minor}, and the kernels need 8.0 (A100) or higher")]
    GpuTooOld {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        major: u32,
        /// Its second part.
        minor: u32,
    },
    /// The driver failed.
    #[error("CUDA failed: {call}: {reason}: start again; if it stays, look at nvidia-smi and dmesg")]
    Cuda {
        /// What was called.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// Kernels must be compiled for the GPU, and there is nothing to do it with.
    #[error(
        "no compiler for CUDA kernels: {looked}: install a CUDA toolkit 13 or newer, or `pip install 'nvidia-cuda-nvrtc==13.0.*'`; or name \
         the folder of libnvrtc.so in SAE_NVRTC; or build with kernels that `sae kernels` compiled ahead (SAE_CUBINS)"
    )]
    NoCompiler {
        /// Where it was looked for, and what was found there.
        looked: String,
    },
    /// The driver takes no kernels that could be had.
    #[error(
        "the NVIDIA driver refuses the GPU's kernels, {which}: {reason}: update the driver to version 580 or newer; or let an NVRTC \
         make others that is not newer than the CUDA version that nvidia-smi shows (`pip install 'nvidia-cuda-nvrtc==13.0.*'`, its \
         folder in SAE_NVRTC){nvrtc}"
    )]
    RefusedKernels {
        /// The first of their files, and where it came from.
        which: String,
        /// The driver's words.
        reason: String,
        /// Why no others could be made, behind a colon; empty where they were refused as well.
        nvrtc: String,
    },
    /// There is no NCCL, which several GPUs need, or what was found is none.
    #[error(
        "no NCCL, which several GPUs need: {looked}: install it (libnccl2, or `pip install nvidia-nccl-cu13`), or name the folder \
         of libnccl.so.2 in SAE_NCCL"
    )]
    NoNccl {
        /// Where it was looked for, and what was found there.
        looked: String,
    },
    /// NCCL failed: usually because another rank did.
    #[error("NCCL failed: {call}: {reason}")]
    Nccl {
        /// What was called.
        call: &'static str,
        /// NCCL's words.
        reason: String,
    },
    /// Two ranks were given one GPU.
    #[error(
        "ranks {rank} and {other} have the same GPU, {name}, and each needs one of its own: start at most as many ranks on a machine \
         as it has GPUs, and let each see all of them or one of its own (CUDA_VISIBLE_DEVICES)"
    )]
    SharedGpu {
        /// This rank.
        rank: usize,
        /// Another one.
        other: usize,
        /// The GPU's name.
        name: String,
    },
    /// A kernel does not compile: a bug of this program, or of the compiler.
    #[error(
        "{source_file} does not compile for {arch} with NVRTC {nvrtc}; please report it with what the compiler says:\n{log}"
    )]
    Compile {
        /// The source.
        source_file: &'static str,
        /// The architecture.
        arch: String,
        /// The compiler's version.
        nvrtc: String,
        /// What the compiler says.
        log: String,
    },
    /// No other rank could reach this one.
    #[error("cannot listen at {address}: {}: choose an address of this machine, and port 0 for a free one", **source)]
    Listen {
        /// Where it was to listen.
        address: std::net::SocketAddr,
        /// What the system said.
        source: System,
    },
    /// A rank of the job failed, or this one did.
    #[error("rank {rank}: {reason} (during {operation})")]
    Peer {
        /// Its index.
        rank: usize,
        /// What this rank was doing when it heard of it.
        operation: &'static str,
        /// How it failed, in the words of the rank that saw it first.
        reason: String,
        /// The exit code that it will end with, where it could still say so.
        code: Option<u8>,
    },
    /// No architecture, or none that kernels can be compiled for.
    #[error("{arch} is no architecture that kernels can be compiled for: {known}")]
    UnknownArch {
        /// What was asked for.
        arch: String,
        /// Some or all that are.
        known: String,
    },
}

impl Error {
    /// Memory for an object could not be had, and nobody said why.
    pub(crate) fn out_of_memory(what: &'static str, bytes: usize) -> Error {
        Error::OutOfMemory { what, bytes, said: String::new() }
    }

    /// Threads for work of the device could not be had.
    pub fn threads(error: io::Error) -> Error {
        Error::Threads { purpose: "", source: error.into() }
    }
}

/// Bytes as a person says them.
fn size(bytes: usize) -> String {
    match bytes >> 30 {
        0 => format!("{} MiB", bytes.div_ceil(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn errors_of_the_system_are_kept_and_said_once() {
        let refused = || io::Error::from(io::ErrorKind::WouldBlock);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        for error in [Error::threads(refused()), Error::Listen { address, source: refused().into() }] {
            let clone = error.clone();
            let source = clone.source().and_then(|source| source.downcast_ref::<io::Error>()).expect("a source");
            assert_eq!(source.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(error.to_string().matches(&source.to_string()).count(), 1, "{error}");
        }
        assert!(Error::NoGpu.source().is_none());
    }
}
