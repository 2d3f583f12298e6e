//! The device sources through the real compiler, without a GPU: every kernel for every released architecture, what it takes
//! of a multiprocessor, and where cubins come from.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kernels::Error;
use kernels::cuda::cache::Cache;
use kernels::cuda::cubin::Label;
use kernels::cuda::kernels::{Kernels, Origin};
use kernels::cuda::nvrtc::Nvrtc;
use kernels::cuda::sources::{HEADERS, KernelSource, NAIVE, SOURCES};
use kernels::cuda::{Arch, RELEASED, Resources};
use tests::{need, root, sae};

/// Registers of a multiprocessor; the same from 8.0 to 10.0.
const REGISTERS: u32 = 65_536;

/// Static shared memory that a block may have.
const STATIC_SHARED_BYTES: u32 = 48 << 10;

const ADD: KernelSource = KernelSource {
    file: "add.cu",
    text: "#include \"device.cuh\"\n\
           extern \"C\" __global__ void __launch_bounds__(256, 2) add(float* a, const float* b, u32 n) {\n\
           const u32 i = blockIdx.x * 256 + threadIdx.x;\n\
           if (i < n) a[i] += b[i];\n}\n",
};

const HOPPER: KernelSource = KernelSource {
    file: "hopper.cu",
    text: "extern \"C\" __global__ void hopper() { asm volatile(\"wgmma.fence.sync.aligned;\"); }\n",
};

/// 100 values at once in registers for 32 of them.
const SPILLS: KernelSource = KernelSource {
    file: "spills.cu",
    text: "extern \"C\" __global__ void __launch_bounds__(1024, 2) spills(float* x, int n) {\n\
           float a[100];\n\
           for (int i = 0; i < 100; ++i) a[i] = x[i * n];\n\
           for (int j = 0; j < n; ++j) {\n\
           #pragma unroll\n\
           for (int i = 0; i < 100; ++i) a[i] = a[i] * a[(i * 7 + 3) % 100] + x[j];\n}\n\
           for (int i = 0; i < 100; ++i) x[i] = a[i];\n}\n",
};

fn arch(name: &str) -> Arch {
    name.parse().expect("an architecture")
}

/// The compiler, where there is one.
#[track_caller]
fn nvrtc() -> Option<Nvrtc> {
    need::nvrtc().map(|folder| Nvrtc::find(Some(&folder)).expect("what lies there is NVRTC"))
}

/// Whether the blocks that `__launch_bounds__` promises fit beside each other. A warp gets registers in units of 256.
fn fits(kernel: &Resources) -> bool {
    let of_warp = (kernel.registers * 32).next_multiple_of(256);
    kernel.threads > 0 && of_warp * kernel.threads.div_ceil(32) * kernel.blocks.max(1) <= REGISTERS
}

#[test]
fn every_kernel_fits_its_multiprocessor() {
    let Some(nvrtc) = nvrtc() else { return };
    for source in SOURCES.iter().chain(NAIVE) {
        for arch in RELEASED {
            let compiled = nvrtc.compile(source, arch).unwrap_or_else(|error| panic!("{error}"));
            let of = |kernel: &Resources| format!("{} for {arch}: {kernel:?}", source.file);
            assert!(!compiled.log.contains("warning"), "{} for {arch}:\n{}", source.file, compiled.log);
            let compiled_heads = compiled.resources.iter().map(|kernel| (kernel.kernel.as_str(), kernel.threads));
            let written = source.kernels().into_iter().map(|kernel| (kernel.name, kernel.threads));
            assert_eq!(compiled_heads.collect::<BTreeSet<_>>(), written.collect(), "entry points of {}", source.file);
            for kernel in &compiled.resources {
                assert_eq!(kernel.spill_store_bytes + kernel.spill_load_bytes, 0, "spills: {}", of(kernel));
                assert_eq!(kernel.local_bytes, 0, "local memory: {}", of(kernel));
                assert!(fits(kernel), "registers: {}", of(kernel));
                assert!(kernel.shared_bytes <= STATIC_SHARED_BYTES, "shared memory: {}", of(kernel));
            }
        }
    }
}

#[test]
fn every_file_of_device_code_is_in_the_tables() {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(root().join("kernels/cuda")).expect("the folder can be read").flatten() {
        files.insert(entry.file_name().into_string().expect("a name in UTF-8"));
    }
    let known: BTreeSet<String> =
        SOURCES.iter().chain(NAIVE).chain(HEADERS).map(|source| source.file.to_owned()).collect();
    assert_eq!(known, files, "kernels/src/cuda/compile/sources.rs, and what lies in kernels/cuda");
}

#[test]
fn resources_are_what_the_compiler_gave() {
    let Some(nvrtc) = nvrtc() else { return };
    let kernel = &nvrtc.compile(&ADD, arch("sm_90a")).expect("it compiles").resources[0];
    assert_eq!((kernel.kernel.as_str(), kernel.threads, kernel.blocks), ("add", 256, 2));
    assert!(fits(kernel) && (4..=32).contains(&kernel.registers) && kernel.local_bytes == 0, "{kernel:?}");
    assert!(!fits(&Resources { registers: 129, ..kernel.clone() }), "2 blocks of 256 threads have 128 each");

    let kernel = &nvrtc.compile(&SPILLS, arch("sm_90a")).expect("it compiles").resources[0];
    assert!(kernel.spill_store_bytes > 0 && kernel.spill_load_bytes > 0 && kernel.local_bytes > 0, "{kernel:?}");
}

#[test]
fn errors_carry_what_the_compiler_says() {
    let Some(nvrtc) = nvrtc() else { return };
    assert!(nvrtc.version().major >= 13);
    nvrtc.compile(&HOPPER, arch("sm_90a")).expect("a Hopper instruction compiles for Hopper");
    let error = nvrtc.compile(&HOPPER, arch("sm_90")).expect_err("and for nothing else");
    assert!(matches!(&error, Error::Compile { log, .. } if log.contains("wgmma")), "{error}");

    let broken = KernelSource { file: "broken.cu", text: "extern \"C\" __global__ void f() {\n  flaot x;\n}\n" };
    let text = nvrtc.compile(&broken, arch("sm_80")).expect_err("it is no C++").to_string();
    assert!(text.contains("broken.cu(2)") && text.contains("flaot") && text.contains("sm_80"), "{text}");

    let outside = KernelSource { file: "outside.cu", text: "#include <cuda_runtime.h>\n" };
    let text = nvrtc.compile(&outside, arch("sm_80")).expect_err("only own headers are there").to_string();
    assert!(text.contains("cuda_runtime.h"), "{text}");

    let error = nvrtc.compile(&ADD, arch("sm_83")).expect_err("there is no such architecture");
    assert!(matches!(&error, Error::UnknownArch { known, .. } if known.contains("sm_90")), "{error}");
}

#[test]
fn several_threads_compile_at_once() {
    let Some(nvrtc) = nvrtc() else { return };
    let images: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let compile = || nvrtc.compile(&ADD, arch("sm_80")).expect("it compiles").image;
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(compile)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(images.iter().all(|image| *image == images[0]), "the same source gives the same bytes");
}

#[test]
fn a_cubin_is_compiled_once() {
    let Some(nvrtc) = need::nvrtc() else { return };
    let (folder, empty) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    // As processes do, one after the other.
    let start = |nvrtc: &Path| {
        let kernels = Kernels::new(Some(Cache::at(folder.path().join("cubins"))), Some(nvrtc.to_owned()));
        kernels.cubin(&ADD, arch("sm_80"), None)
    };
    let (image, origin) = start(&nvrtc).expect("it compiles");
    assert_eq!(origin, Origin::Compiled);
    assert_eq!(start(&nvrtc).expect("it is there"), (image.clone(), Origin::Cache));
    assert_eq!(start(empty.path()).expect("a cached one needs no compiler"), (image.clone(), Origin::Cache));

    let files: Vec<_> = fs::read_dir(folder.path().join("cubins")).expect("a folder").flatten().collect();
    assert_eq!(files.len(), 1);
    let mut content = fs::read(files[0].path()).expect("a file");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(files[0].path(), &content).expect("damaged");
    assert!(matches!(start(empty.path()), Err(Error::NoCompiler { .. })), "a damaged one is not used");
    assert_eq!(start(&nvrtc).expect("it compiles"), (image.clone(), Origin::Compiled), "but made again");
    assert_eq!(start(&nvrtc).expect("it is there"), (image, Origin::Cache));
}

#[test]
fn a_missing_compiler_is_one_message_with_remedies() {
    let empty = tempfile::tempdir().expect("a folder");
    let place = empty.path().to_str().expect("UTF-8");
    let remedies = ["pip install 'nvidia-cuda-nvrtc==13.0.*'", "SAE_NVRTC", "sae kernels", place, "no libnvrtc.so.13"];
    sae::run_with(&["kernels"], &[("SAE_NVRTC", place)]).exits(64).says(&remedies);
    sae::run_with(&["kernels"], &[("SAE_NVRTC", "/nowhere")]).exits(64).says(&["/nowhere: No such file"]);
    fs::write(empty.path().join("libnvrtc.so.13"), "no library").expect("written");
    sae::run_with(&["kernels"], &[("SAE_NVRTC", place)]).exits(64).says(&["libnvrtc.so.13 cannot be loaded"]);
}

#[test]
fn kernels_are_compiled_ahead() {
    sae::run(&["kernels", "--arch", "sm_75"]).exits(64).says(&["sm_75 is no architecture", "sm_90a"]);
    let Some(nvrtc) = need::nvrtc() else { return };
    let out = tempfile::tempdir().expect("a folder");
    let args = ["kernels", "--arch", "sm_80,sm_90a", "--out", out.path().to_str().expect("UTF-8")];
    let finished = sae::run_with(&args, &[("SAE_NVRTC", nvrtc.to_str().expect("UTF-8"))]).exits(0);
    for source in SOURCES {
        for arch in ["sm_80", "sm_90a"] {
            let file = fs::read(out.path().join(format!("{}-{arch}.cubin", source.name()))).expect("a cubin");
            let (label, image) = Label::unwrap(&file).expect("a whole one");
            // The oldest that is supported: what it makes is taken by every driver that is.
            assert_eq!(label, Label::new(source, arch, "13.0"));
            assert!(image.starts_with(b"\x7fELF"));
        }
        for kernel in source.kernels() {
            assert!(finished.stdout.contains(kernel.name), "{kernel:?} is missing in:\n{}", finished.stdout);
        }
    }
}
