//! The device sources, as they lie in `kernels/cuda/`, inside the binary, and the flags they are compiled with.
//!
//! A new file is one line in [`SOURCES`]. An entry point is written in one form,
//! `extern "C" __global__ void __launch_bounds__(THREADS) name(`; a test holds [`KernelSource::kernels`] against what the
//! compiler saw. The build script compiles this file too, to know stale cubins.

use std::fmt::Write;

use xxhash_rust::xxh3::xxh3_128;

/// A file of device code.
#[derive(Clone, Copy, Debug)]
pub struct KernelSource {
    /// Its name, with the extension.
    pub file: &'static str,
    /// What it holds.
    pub text: &'static str,
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// Its name.
    pub name: &'static str,
    /// Threads of a block: its launch bounds.
    pub threads: u32,
}

macro_rules! source {
    ($file:literal) => {
        KernelSource { file: $file, text: include_str!(concat!("../../../cuda/", $file)) }
    };
}

/// What is compiled, each into one cubin.
pub const SOURCES: &[KernelSource] = &[
    source!("adam.cu"),
    source!("backward.cu"),
    source!("count.cu"),
    source!("decode.cu"),
    source!("dense.cu"),
    source!("encode.cu"),
    source!("exchange.cu"),
    source!("normalize.cu"),
    source!("owners.cu"),
    source!("residual.cu"),
    source!("transpose.cu"),
];

/// What benchmarks load besides: see [`crate::cuda::measure::naive`].
pub const NAIVE: &[KernelSource] = &[source!("naive.cu")];

/// What sources may include; nothing else is found, so that a cubin depends on nothing outside the binary.
pub const HEADERS: &[KernelSource] = &[
    source!("activation.cuh"),
    source!("columns.cuh"),
    source!("device.cuh"),
    source!("gradient.cuh"),
    source!("parameter.cuh"),
    source!("rounding.cuh"),
    source!("status.cuh"),
    source!("tile.cuh"),
    source!("touched.cuh"),
];

/// Flags of every compilation, besides the architecture.
pub const FLAGS: &[&str] = &[
    "--std=c++17",
    // A fused multiply-add stands where the source says fmaf, and nowhere else: results do not depend on what one version of
    // the compiler contracts, and are those of the emulator.
    "--fmad=false",
    // Division, square root and subnormals as IEEE 754 says. These are defaults, but results rest on them.
    "--prec-div=true",
    "--prec-sqrt=true",
    "--ftz=false",
    // Registers, shared memory and spills of each kernel, in the log.
    "--ptxas-options=-v",
    // The cache of this program knows what it holds; NVRTC's would need the driver, and would leave the log empty.
    "--no-cache",
];

impl KernelSource {
    /// The file's name without its extension: the name of the operation.
    pub fn name(&self) -> &'static str {
        self.file.split('.').next().unwrap_or(self.file)
    }

    /// The entry points, in the order of the file.
    pub fn kernels(&self) -> Vec<EntryPoint> {
        let heads = self.text.split("extern \"C\" __global__ void __launch_bounds__(").skip(1);
        heads
            .filter_map(|head| {
                let (bounds, rest) = head.split_once(')')?;
                let threads = bounds.split(',').next()?.trim().parse().ok()?;
                Some(EntryPoint { name: rest.split_once('(')?.0.trim(), threads })
            })
            .collect()
    }

    /// What a cubin of this source was made from, architecture and compiler aside: source, headers and flags.
    pub fn hash(&self) -> u128 {
        hash(self, HEADERS, FLAGS)
    }
}

fn hash(source: &KernelSource, headers: &[KernelSource], flags: &[&str]) -> u128 {
    let mut all = String::new();
    for KernelSource { file, text } in headers.iter().chain([source]) {
        // Lengths keep two different sets of files from reading the same.
        let _ = write!(all, "{file} {}\n{text}", text.len());
    }
    for flag in flags {
        let _ = writeln!(all, "{flag}");
    }
    xxh3_128(all.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: KernelSource = KernelSource {
        file: "two.cu",
        text: "extern \"C\" __global__ void __launch_bounds__(256, 2) first(float* x) {}\n\
               template <int N> __global__ void no_entry() {}\n\
               extern \"C\" __global__ void __launch_bounds__(64)\n    second(int n) {}\n",
    };

    #[test]
    fn entry_points_are_found() {
        let kernels = [EntryPoint { name: "first", threads: 256 }, EntryPoint { name: "second", threads: 64 }];
        assert_eq!((SOURCE.name(), SOURCE.kernels()), ("two", kernels.to_vec()));
    }

    #[test]
    fn the_hash_knows_everything_that_a_cubin_is_made_from() {
        let header = KernelSource { file: "a.cuh", text: "int a;" };
        let other = KernelSource { text: "int b;", ..header };
        let renamed = KernelSource { file: "b.cuh", ..header };
        let hashes = [
            hash(&SOURCE, &[header], &["-a", "-b"]),
            hash(&SOURCE, &[header], &["-a"]),
            hash(&SOURCE, &[other], &["-a", "-b"]),
            hash(&SOURCE, &[renamed], &["-a", "-b"]),
            hash(&KernelSource { text: "", ..SOURCE }, &[header], &["-a", "-b"]),
        ];
        for (at, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..at].contains(hash), "{at}");
        }
    }
}
