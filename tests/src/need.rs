//! What some tests need of the machine besides Rust. Where it is missing they say so and pass, or, with SAE_REQUIRE_ALL
//! set, fail: CI sets it, so nothing is left out there without anybody noticing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Says that a test did not run.
///
/// # Panics
/// With SAE_REQUIRE_ALL.
#[track_caller]
pub fn missing(what: &str) {
    assert!(std::env::var_os("SAE_REQUIRE_ALL").is_none(), "SAE_REQUIRE_ALL is set, and this machine has no {what}");
    untested::skip(&format!("this machine has no {what}"));
}

/// Says that a test, or a part of one, did not run for want of what no machine needs to have, CI included.
#[track_caller]
pub fn optional(what: &str) {
    untested::skip(&format!("there are no {what}"));
}

/// The Python of tests/reference/requirements.txt: PYTHON_REF, or the environment that tests/reference/venv.sh has made.
/// It is not made here: that takes minutes and gigabytes, which nobody expects of `cargo test`.
#[track_caller]
pub fn python() -> Option<PathBuf> {
    let found = found_python();
    if found.is_none() {
        missing("Python environment: make it with tests/reference/venv.sh");
    }
    found
}

fn found_python() -> Option<PathBuf> {
    std::env::var_os("PYTHON_REF").map(PathBuf::from).or_else(made_environment)
}

/// The Python of tests/reference/requirements-models.txt, which has everything of the other one too: PYTHON_MODELS, or the environment that
/// `tests/reference/venv.sh models` has made.
#[track_caller]
pub fn models_python() -> Option<PathBuf> {
    let files =
        ["requirements.txt", "requirements-models.txt"].map(|name| crate::root().join("tests/reference").join(name));
    let found = std::env::var_os("PYTHON_MODELS").map(PathBuf::from).or_else(|| environment_of(&files));
    if found.is_none() {
        missing("Python environment for models: make it with tests/reference/venv.sh models");
    }
    found
}

/// A C++ compiler for the emulator: CXX, or g++, and objcopy, which comes with it.
#[track_caller]
pub fn compiler() -> Option<String> {
    let name = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let version =
        |tool: &str| Command::new(tool).arg("--version").output().ok().filter(|output| output.status.success());
    let found = version(&name).and_then(|output| version("objcopy").map(|_| output));
    if found.is_none() {
        missing("C++ compiler for the emulator: install g++");
    }
    found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Programs that Debian has in `packages`; daemons may lie where only root looks.
#[track_caller]
pub fn programs(names: &[&str], packages: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    let absent = names.iter().find(|name| !folders.iter().any(|folder| folder.join(name).is_file()));
    if let Some(absent) = absent {
        missing(&format!("{absent}: install {packages}"));
    }
    absent.is_none()
}

fn made_environment() -> Option<PathBuf> {
    environment_of(&[crate::root().join("tests/reference/requirements.txt")])
}

/// The environment that is named by the hash of some files.
fn environment_of(files: &[PathBuf]) -> Option<PathBuf> {
    let sum = Command::new("sh").args(["-c", "cat \"$@\" | sha256sum", "sh"]).args(files).output().ok()?;
    let hash = String::from_utf8(sum.stdout).ok()?.get(..16)?.to_owned();
    let cache = match std::env::var_os("SAE_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(&std::env::var_os("HOME")?).join(".cache/sae-ci"),
    };
    let environment = cache.join(format!("venv-{hash}"));
    environment.join("complete").exists().then(|| environment.join("bin/python"))
}

/// The folder of NVRTC 13.0 in that environment, which `tests/reference/venv.sh` puts beside the newer one of PyTorch: drivers of CUDA
/// 13.0 have to take what it makes.
///
/// # Panics
/// When that Python does not run.
#[track_caller]
pub fn nvrtc() -> Option<PathBuf> {
    let found = nvrtc_of(&python()?);
    if found.is_none() {
        missing("NVRTC 13.0 in its Python environment: add it with tests/reference/venv.sh");
    }
    found
}

/// The same, for those that can do without it.
///
/// # Panics
/// When that Python does not run.
pub fn nvrtc_if_there() -> Option<PathBuf> {
    nvrtc_of(&found_python()?)
}

fn nvrtc_of(python: &Path) -> Option<PathBuf> {
    folder_with(python, "sys.prefix", ("nvrtc/nvidia/cu13/lib", "libnvrtc.so.13"))
}

/// The folder of NCCL there.
///
/// # Panics
/// When that Python does not run.
#[track_caller]
pub fn nccl() -> Option<PathBuf> {
    package_with(("nvidia/nccl/lib", "libnccl.so.2"))
}

/// A folder of that environment's packages, if the library lies there.
#[track_caller]
fn package_with(place: (&str, &str)) -> Option<PathBuf> {
    let found = folder_with(&python()?, "sysconfig.get_path('purelib')", place);
    if found.is_none() {
        missing(&format!("{} in its Python environment", place.1));
    }
    found
}

/// A folder below what Python calls `base`, if the library lies there.
fn folder_with(python: &Path, base: &str, (folder, library): (&str, &str)) -> Option<PathBuf> {
    let says = format!("import sys, sysconfig; print({base})");
    let output = Command::new(python).args(["-c", &says]).output().expect("Python runs");
    let folder = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(folder);
    folder.join(library).exists().then_some(folder)
}

/// A file system of its own size, mounted for the life of this value.
#[derive(Debug)]
pub struct SizedDisk {
    folder: tempfile::TempDir,
}

impl SizedDisk {
    /// Mounts one of `bytes`; needs root.
    ///
    /// # Panics
    /// When there is no temporary folder.
    #[track_caller]
    pub fn mount(bytes: u64) -> Option<SizedDisk> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path());
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(SizedDisk { folder });
        }
        missing("permission to mount a tmpfs");
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn resize(&self, bytes: u64) {
        let size = format!("remount,size={bytes}");
        let status = Command::new("mount").args(["-o", &size]).arg(self.path()).status().expect("mount(8) runs");
        assert!(status.success(), "the disk keeps its size");
    }
}

impl Drop for SizedDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
