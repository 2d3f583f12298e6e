//! Finding a GPU, with drivers of every kind that a machine may have: none, too old, broken, without a GPU. The drivers
//! are small libraries that answer what a test needs; the rest is the real binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::fixture::Fixture;
use tests::root;
use tests::sae::{self, Finished};
use tests::sweeps;

/// What `STANDIN` says is wrong with it; nothing is.
const DRIVER: &str = r#"
#include <stdlib.h>
#include <string.h>
static int is(const char* fault) { const char* set = getenv("STANDIN"); return set && !strcmp(set, fault); }
int cuDriverGetVersion(int* version) { *version = is("old") ? 12040 : 13000; return 0; }
int cuInit(unsigned flags) { return is("broken") ? 999 : is("stub") ? 34 : is("hidden") ? 100 : 0; }
int cuGetErrorName(int error, const char** name) { *name = "SOME_ERROR"; return 0; }
int cuGetErrorString(int error, const char** text) { *text = "words of the driver"; return 0; }
int cuDeviceGetCount(int* count) { *count = is("none") ? 0 : 2; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char* name, int length, int device) { strncpy(name, "Stand-in 3000", length); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? is("small") ? 7 : 9 : attribute == 76 ? is("small") ? 5 : 0 : attribute == 16 ? 132 : 1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = "context"; return is("full") ? 2 : 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuCtxGetCurrent(void** context) { *context = "context"; return 0; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = 1ull << 34; *total = 3ull << 35; return 0; }
"#;

/// Compiles a library with the compiler that Rust links with.
fn library(folder: &Path, code: &str) -> PathBuf {
    let (source, library) = (folder.join("libcuda.c"), folder.join("libcuda.so.1"));
    std::fs::write(&source, code).expect("written");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so", "-o"]).arg(&library).arg(&source);
    assert!(cc.status().expect("cc runs").success(), "the stand-in compiles");
    library
}

/// A dry run on a device, with a driver and what is wrong with it.
#[track_caller]
fn plan(device: &str, driver: &Path, fault: &str) -> Finished {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = root().join("launch/recipes/quickstart.toml");
    let dir = format!("run.dir={}", folder.path().join("run").display());
    let data = format!("data.train={}", folder.path().join("data").display());
    let recipe = recipe.to_str().expect("UTF-8");
    let args = ["train", recipe, "--dry-run", "--device", device, "--set", &dir, "--set", &data];
    sae::run_with(&args, &[("SAE_CUDA_DRIVER", driver.to_str().expect("UTF-8")), ("STANDIN", fault)])
}

#[test]
fn what_is_wrong_is_said_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let driver = library(folder.path(), DRIVER);
    for (device, fault, code, says) in [
        ("cuda", "old", 64, "supports CUDA 12.4, and this program needs 13.0: update it"),
        ("cuda", "hidden", 64, "the NVIDIA driver sees no GPU: look at nvidia-smi"),
        ("cuda", "none", 64, "the NVIDIA driver sees no GPU"),
        ("cuda", "stub", 64, "is the stub that CUDA toolkits bring along"),
        ("cuda:2", "", 64, "there is no GPU 2: 2 can be seen"),
        ("cuda:99999999999", "", 64, "there is no GPU 99999999999"),
        ("cuda:1", "small", 64, "Stand-in 3000 has compute capability 7.5, and the kernels need 8.0"),
        ("cuda", "broken", 71, "cuInit: words of the driver (CUDA_ERROR_UNKNOWN)"),
        ("cuda", "full", 71, "cuDevicePrimaryCtxRetain: words of the driver (CUDA_ERROR_OUT_OF_MEMORY)"),
    ] {
        plan(device, &driver, fault).exits(code).says(&[says]);
    }
}

#[test]
fn what_is_no_driver_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    plan("cuda", &folder.path().join("absent.so"), "").exits(64).says(&["no CUDA driver", "absent.so", "--device cpu"]);
    let other = library(folder.path(), "int other() { return 0; }");
    plan("cuda", &other, "").exits(64).says(&["libcuda.so.1 has no function cuInit: it is no CUDA driver"]);
}

/// Whatever is wrong with GPUs, the processor is there.
#[test]
fn auto_and_cpu_need_no_gpu() {
    let folder = tempfile::tempdir().expect("a folder");
    let driver = library(folder.path(), DRIVER);
    plan("auto", &driver, "old").exits(0).says(&["computing on the processor", "CUDA 12.4"]);
    plan("auto", &folder.path().join("absent.so"), "").exits(0);
    let finished = plan("cpu", &driver, "broken").exits(0);
    assert!(!finished.stderr.contains("driver"), "nobody asked for a GPU:\n{}", finished.stderr);
}

/// Before anything is claimed: a slot without a GPU would fail what it takes, or train it in other numbers.
#[test]
fn slots_of_a_sweep_have_a_gpu_each() {
    let fixture = Fixture::new();
    let driver = library(&fixture.path(""), DRIVER);
    let (sweep, dir) = (fixture.save_text("six", &sweeps::six(&fixture)), fixture.text("sweep"));
    let run = |more: &[&str], environment: &[(&str, &str)]| {
        let driver = [("SAE_CUDA_DRIVER", driver.to_str().expect("UTF-8"))];
        sae::run_with(&[&["sweep", &sweep, "--dir", &dir], more].concat(), &[&driver, environment].concat())
    };
    for device in ["auto", "cuda"] {
        run(&["--slots", "3", "--device", device], &[])
            .exits(64)
            .says(&["each slot trains on a GPU of its own", "has 2"]);
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "4")];
        run(&["--device", device], &torchrun).exits(64).says(&["4 processes are on this machine", "fewer GPUs"]);
        let two = [("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")];
        run(&["--slots", "2", "--device", device], &two)
            .exits(64)
            .says(&["each slot trains on a GPU of its own", "has 1"]);
    }
    assert!(!fixture.path("sweep").exists());
}

#[test]
fn devices_are_checked_as_arguments() {
    for device in ["gpu", "cuda:", "cuda:x"] {
        sae::run(&["train", "recipe.toml", "--device", device]).exits(64).says(&["--device"]);
    }
}
