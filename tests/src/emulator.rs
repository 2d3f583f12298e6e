//! The CUDA kernels on a processor: builds `libcuda.so.1` of tests/emulator with a set of kernels, and runs programs on it.
//!
//! A program needs no change: it looks for `libcuda.so.1` as it always does and finds this one. The kernels are compiled as
//! C++, so they run under sanitizers; seeds vary the order in which threads, blocks and streams run. A program asks NVRTC for
//! images first: NVIDIA's where the Python environment has it, and a stand-in elsewhere, so that g++ is all that is needed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::Xxh3;

use crate::{need, root};

/// Seconds after which a run counts as hanging.
const HANGS_AFTER: &str = "900";

/// How the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Optimised. What is read before it was written is poison; device memory ends at pages that fault.
    Plain,
    /// With the sanitizers of addresses and of undefined behaviour.
    Asan,
    /// With the sanitizer of data races, between threads and between blocks.
    Tsan,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Asan => "asan",
            Variant::Tsan => "tsan",
        }
    }

    /// A sanitizer has to be there before the program is.
    fn preload(self) -> Option<&'static str> {
        match self {
            Variant::Plain => None,
            Variant::Asan => Some("libasan.so"),
            Variant::Tsan => Some("libtsan.so"),
        }
    }
}

/// Kernels to build: some .cu files, and the device.cuh that they include.
#[derive(Clone, Debug)]
pub struct Kernels {
    /// device.cuh; headers beside it are found.
    pub device: PathBuf,
    /// The .cu files.
    pub files: Vec<PathBuf>,
}

impl Kernels {
    /// Those of the trainer.
    pub fn of_trainer() -> Kernels {
        Kernels::of_folder(&root().join("kernels/cuda"))
    }

    /// Those that the emulator is tested with.
    pub fn of_self_test() -> Kernels {
        let device = root().join("kernels/cuda/device.cuh");
        Kernels { device, files: vec![sources().join("self_test.cu")] }
    }

    /// All .cu files of a folder with a device.cuh.
    ///
    /// # Panics
    /// When the folder cannot be read.
    pub fn of_folder(folder: &Path) -> Kernels {
        let mut files = list(folder);
        files.retain(|file| file.extension().is_some_and(|extension| extension == "cu"));
        Kernels { device: folder.join("device.cuh"), files }
    }
}

/// A built library.
#[derive(Clone, Debug)]
pub struct Emulator {
    variant: Variant,
    folder: PathBuf,
}

impl Emulator {
    /// The kernels of the trainer; see [`Emulator::build_with`].
    #[track_caller]
    pub fn build(variant: Variant) -> Option<Emulator> {
        Emulator::build_with(variant, &Kernels::of_trainer())
    }

    /// Compiles the library, or takes the one that was made of the same sources before. `None`, said once, where there is no
    /// compiler. Any number of processes may ask for the same at once.
    ///
    /// # Panics
    /// When the sources do not compile; shows what the compiler says.
    #[track_caller]
    pub fn build_with(variant: Variant, kernels: &Kernels) -> Option<Emulator> {
        let compiler = need::compiler()?;
        let own = digest(&list(&sources()), &format!("{compiler} {}", variant.name()));
        let objects = cached(&format!("objects-{}-{own:032x}", variant.name()), |folder| {
            build(&["objects".as_ref(), variant.name().as_ref(), folder.as_ref()]);
        });
        let mut inputs = kernels.files.clone();
        inputs.extend(list(kernels.device.parent().expect("a file lies in a folder")));
        let all = digest(&inputs, &format!("{own:x}"));
        let folder = cached(&format!("library-{}-{all:032x}", variant.name()), |folder| {
            let mut arguments: Vec<&OsStr> = vec!["library".as_ref(), variant.name().as_ref(), objects.as_ref()];
            arguments.extend([folder.as_os_str(), kernels.device.as_os_str()]);
            arguments.extend(kernels.files.iter().map(|file| file.as_os_str()));
            build(&arguments);
        });
        Some(Emulator { variant, folder })
    }

    /// The program that tests the emulator itself.
    ///
    /// # Panics
    /// When it does not compile.
    #[track_caller]
    pub fn self_test() -> Option<PathBuf> {
        let compiler = need::compiler()?;
        let digest = digest(&list(&sources()), &compiler);
        let folder = cached(&format!("self_test-{digest:032x}"), |folder| {
            build(&["self_test".as_ref(), folder.as_os_str()]);
        });
        Some(folder.join("self_test"))
    }

    /// The library: a `libcuda.so.1`.
    pub fn library(&self) -> PathBuf {
        self.folder.join("libcuda.so.1")
    }

    /// The stand-in for NVRTC, as a program finds it: its folder, and a cache of images that are good for nothing else.
    ///
    /// # Panics
    /// When it does not compile.
    pub fn stand_in_for_nvrtc() -> Vec<(&'static str, OsString)> {
        let compiler = need::compiler().expect("the emulator was built, so there is a compiler");
        let digest = digest(&[sources().join("build.sh"), sources().join("nvrtc.cpp")], &compiler);
        let folder = cached(&format!("nvrtc-{digest:032x}"), |folder| build(&["nvrtc".as_ref(), folder.as_os_str()]));
        vec![("SAE_CACHE_DIR", folder.join("cubins").into()), ("SAE_NVRTC", folder.into())]
    }

    /// What a program's environment has to hold so that it finds the library instead of a driver and a compiler for it, and
    /// the sanitizers' settings. Seed 0 runs everything in order and at once.
    pub fn environment(&self, seed: u64) -> Vec<(&'static str, OsString)> {
        let mut path = self.folder.clone().into_os_string();
        if let Some(more) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(more);
        }
        let mut environment = vec![
            ("LD_LIBRARY_PATH", path),
            ("EMULATOR_SEED", seed.to_string().into()),
            // Threads of kernels move between stacks, and nobody frees what lives as long as the process.
            ("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0".into()),
            ("UBSAN_OPTIONS", "print_stacktrace=1".into()),
            // What Rust does is not watched, so what it calls must not be either.
            ("TSAN_OPTIONS", "halt_on_error=1:ignore_noninstrumented_modules=1".into()),
        ];
        environment.extend(nvrtc().iter().cloned());
        if let Some(runtime) = self.variant.preload() {
            environment.push(("LD_PRELOAD", runtime_library(runtime).into()));
        }
        environment
    }

    /// What `sae` needs to find the emulated GPU, with seed 0, and `more`.
    ///
    /// # Panics
    /// When a path is not UTF-8.
    pub fn settings(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut settings: Vec<(String, String)> = vec![("EMULATOR_CAPABILITY".into(), "90".into())];
        let own = self.environment(0).into_iter();
        settings.extend(own.map(|(name, value)| (name.to_owned(), value.into_string().expect("UTF-8"))));
        settings.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        settings
    }

    /// Runs a program on the library to its end; one that hangs is ended.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, program: &Path, arguments: &[&str], seed: u64, more: &[(&str, &str)]) -> Output {
        let mut command = Command::new("timeout");
        // The sanitizer belongs to the program, not to the one that watches the time.
        command.args(["--signal=KILL", HANGS_AFTER, "env"]);
        for (name, value) in self.environment(seed) {
            let mut setting = OsString::from(name);
            setting.push("=");
            setting.push(value);
            command.arg(setting);
        }
        command.args(more.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(program).args(arguments).output().expect("timeout(1) runs")
    }
}

/// What a program's environment has to hold so that it finds an NVRTC: the real one, where there is one.
fn nvrtc() -> &'static [(&'static str, OsString)] {
    static FOUND: OnceLock<Vec<(&'static str, OsString)>> = OnceLock::new();
    FOUND.get_or_init(|| match need::nvrtc_if_there() {
        Some(folder) => vec![("SAE_NVRTC", folder.into())],
        None => Emulator::stand_in_for_nvrtc(),
    })
}

/// Settings as a process takes them.
pub fn borrowed(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// The folder of the emulator's sources.
fn sources() -> PathBuf {
    root().join("tests/emulator")
}

/// Where a sanitizer's runtime lies.
fn runtime_library(name: &str) -> String {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let output = Command::new(compiler).arg(format!("-print-file-name={name}")).output().expect("the compiler runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The files of a folder, in order.
fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Of names and contents; `with` is what else the result depends on.
fn digest(files: &[PathBuf], with: &str) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(with.as_bytes());
    for file in files {
        let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    hash.digest128()
}

/// The folder `name` of the cache. If it is not there, `make` fills one beside it, which then takes the name at once: a
/// process sees it whole or not at all, and the second one uses what the first has made.
fn cached(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let cache = root().join(target).join("emulator");
    let folder = cache.join(name);
    if folder.exists() {
        return folder;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let making = cache.join(format!("making-{}-{now}", std::process::id()));
    fs::create_dir_all(&making).unwrap_or_else(|error| panic!("{}: {error}", making.display()));
    make(&making);
    if fs::rename(&making, &folder).is_err() {
        assert!(folder.exists(), "{} cannot be made", folder.display());
        let _ = fs::remove_dir_all(&making);
    }
    folder
}

/// Runs tests/emulator/build.sh.
#[track_caller]
fn build(arguments: &[&OsStr]) {
    let output = Command::new(sources().join("build.sh")).args(arguments).output().expect("bash runs");
    assert!(output.status.success(), "build.sh: {}", String::from_utf8_lossy(&output.stderr));
}
