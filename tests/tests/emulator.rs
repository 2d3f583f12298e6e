//! The emulator of the CUDA kernels: its primitives, its driver, its stand-in for NVRTC, and the bugs that it has to find.

use std::path::Path;
use std::process::Output;

use kernels::Error;
use kernels::cuda::RELEASED;
use kernels::cuda::nvrtc::Nvrtc;
use kernels::cuda::sources::{KernelSource, NAIVE, SOURCES};
use tests::control::Control;
use tests::emulator::{Emulator, Kernels, Variant};
use tests::fixture::Fixture;
use tests::{checkpoints, sae};

use Variant::{Asan, Plain, Tsan};

/// Bugs in tests/emulator/self_test.cu.
const CONTROLS: &[Control] = &[
    Control {
        name: "a missing barrier between write and read",
        file: "self_test.cu",
        find: "    part[threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x];\n    __syncthreads();\n",
        replace: "    part[threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x];\n",
        caught_by: &[Plain, Tsan],
    },
    Control {
        name: "a missing barrier between read and the next write",
        file: "self_test.cu",
        find: "        if (threadIdx.x == 0) sums[row] = sum;\n        __syncthreads();\n",
        replace: "        if (threadIdx.x == 0) sums[row] = sum;\n",
        caught_by: &[Plain, Tsan],
    },
    Control {
        name: "a missing barrier in an array of unknown length",
        file: "self_test.cu",
        find: "const u32 other = i >= step ? values[i - step] : 0;\n        __syncthreads();\n",
        replace: "const u32 other = i >= step ? values[i - step] : 0;\n",
        caught_by: &[Plain, Tsan],
    },
    Control {
        name: "a barrier that not all threads reach",
        file: "self_test.cu",
        find: "if (threadIdx.x == 127) carried += part[0];\n    __syncthreads();\n",
        replace: "if (threadIdx.x == 127) {\n        carried += part[0];\n        __syncthreads();\n    }\n    __syncthreads();\n",
        caught_by: &[Plain],
    },
    Control {
        name: "a lost atomic among threads",
        file: "self_test.cu",
        find: "atomicAdd(&count[v % 16], 1u);",
        replace: "count[v % 16] += 1;",
        caught_by: &[Tsan],
    },
    Control {
        name: "a lost atomic among blocks",
        file: "self_test.cu",
        find: "atomicAdd(finished, 1u) == gridDim.x - 1",
        replace: "(*finished)++ == gridDim.x - 1",
        caught_by: &[Tsan],
    },
    Control {
        name: "a missing fence before a block says that it is done",
        file: "self_test.cu",
        find: "        parts[blockIdx.x] = part;\n        __threadfence();\n",
        replace: "        parts[blockIdx.x] = part;\n",
        caught_by: &[Tsan],
    },
    Control {
        name: "shared memory overrun",
        file: "self_test.cu",
        find: "__shared__ u32 part[128];",
        replace: "__shared__ u32 part[127];",
        caught_by: &[Asan],
    },
    Control {
        name: "shared memory overrun in a function that knows no length",
        file: "self_test.cu",
        find: "__shared__ float slots[128 / WARP];",
        replace: "__shared__ float slots[128 / WARP - 1];",
        caught_by: &[Asan],
    },
    Control {
        name: "shared memory of a template overrun through a pointer",
        file: "self_test.cu",
        find: "fetch(1 - stage, k0 + 16);",
        replace: "fetch(2 - stage, k0 + 16);",
        caught_by: &[Plain, Asan],
    },
    Control {
        name: "dynamic shared memory overrun",
        file: "self_test.cu",
        find: "out[i] = values[i];",
        replace: "values[n] = 0;\n    out[i] = values[i];",
        caught_by: &[Plain, Asan],
    },
    Control {
        name: "device memory overrun by a write",
        file: "self_test.cu",
        find: "out[i] = values[i];",
        replace: "out[i] = values[i];\n    out[n] = 0;",
        caught_by: &[Plain, Asan],
    },
    Control {
        name: "device memory overrun by a read",
        file: "self_test.cu",
        find: "if (i >= n) return;",
        replace: "if (i >= n || in[n] == 12345u) return;",
        caught_by: &[Plain, Asan],
    },
    Control {
        name: "a stale stage: the wrong number of copies waited for",
        file: "self_test.cu",
        find: "copies_wait<1>();",
        replace: "copies_wait<2>();",
        caught_by: &[Plain],
    },
    Control {
        name: "a stage overwritten while it is read",
        file: "self_test.cu",
        find: "        multiply_blocks(d, u, v[0], v[1]);\n        __syncthreads();\n",
        replace: "        multiply_blocks(d, u, v[0], v[1]);\n",
        caught_by: &[Tsan],
    },
    Control {
        name: "the wrong rows loaded into the tensor core",
        file: "self_test.cu",
        find: "load_blocks(u, &tile_a[stage][lane % 16][lane / 16 * 8]);",
        replace: "load_blocks(u, &tile_a[stage][lane / 2][lane % 2 * 8]);",
        caught_by: &[Plain],
    },
    Control {
        name: "shared memory read before it was written",
        file: "self_test.cu",
        find: "    if (threadIdx.x == 0) carried = 0;\n",
        replace: "",
        caught_by: &[Plain],
    },
    Control {
        name: "a lane that its mask leaves out",
        file: "self_test.cu",
        find: "lane < 16 ? 0x0000ffffu : 0xffff0000u;",
        replace: "lane < 16 ? 0x0000fffeu : 0xffff0000u;",
        caught_by: &[Plain],
    },
    Control {
        name: "a shuffle from a lane that has left",
        file: "self_test.cu",
        find: "    const int v = (int)lane * 10;\n",
        replace: "    const int v = (int)lane * 10;\n    if (lane == 7) return;\n",
        caught_by: &[Plain],
    },
    Control {
        name: "two lanes of a warp in different collectives",
        file: "self_test.cu",
        find: "    mine[1] = __any_sync(ALL, p);\n",
        replace: "    mine[1] = lane == 3 ? __all_sync(ALL, p) : __any_sync(ALL, p);\n",
        caught_by: &[Plain],
    },
    Control {
        name: "a vector where it is not aligned",
        file: "self_test.cu",
        find: "const float x = __ldg(in), y = in[1];",
        replace: "const float x = ((const float2*)(in - 1))->y, y = in[1];",
        caught_by: &[Asan],
    },
];

/// One part of the self-test on the unchanged kernels.
fn self_test(emulator: &Emulator, part: &str, seed: u64, more: &[(&str, &str)]) -> Option<Output> {
    let library = emulator.library();
    let program = Emulator::self_test()?;
    Some(emulator.run(&program, &[library.to_str().expect("a path in UTF-8"), part], seed, more))
}

#[track_caller]
fn passes(emulator: &Emulator, part: &str, seed: u64, more: &[(&str, &str)]) -> String {
    let Some(output) = self_test(emulator, part, seed, more) else { return String::new() };
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    assert!(output.status.success(), "{emulator:?}, {part}, seed {seed}: {}\n{text}", output.status);
    text
}

#[test]
fn every_primitive_does_what_cuda_says() {
    for variant in [Plain, Asan, Tsan] {
        let Some(emulator) = Emulator::build_with(variant, &Kernels::of_self_test()) else { return };
        for seed in 0..6 {
            passes(&emulator, "kernels", seed, &[]);
        }
    }
}

#[test]
fn the_driver_refuses_what_a_driver_refuses() {
    let Some(emulator) = Emulator::build_with(Plain, &Kernels::of_self_test()) else { return };
    for seed in 0..4 {
        passes(&emulator, "driver", seed, &[]);
        passes(&emulator, "memory", seed, &[("EMULATOR_MEMORY", "1048576")]);
        passes(&emulator, "failure", seed, &[("EMULATOR_FAIL", "launch:3:700,alloc:2:2")]);
    }
}

/// With an event between two streams the second sees what the first did; without it, some schedule shows that it may not.
#[test]
fn a_missing_event_between_streams_shows() {
    let Some(emulator) = Emulator::build_with(Plain, &Kernels::of_self_test()) else { return };
    let stale = |part: &str| (0..4).filter(|&seed| passes(&emulator, part, seed, &[]).contains("stale")).count();
    assert_eq!(stale("streams"), 0);
    assert!(stale("unordered") > 0);
}

/// The host that does not wait for a copy finds poison, and the one that writes to memory on its way is refused. An event that
/// EMULATOR_OMIT leaves out is like one that was never asked for.
#[test]
fn a_missing_wait_of_the_host_shows() {
    let Some(emulator) = Emulator::build_with(Plain, &Kernels::of_self_test()) else { return };
    let seeds = |part: &str, more: &[(&str, &str)], word: &str| {
        (0..4).filter(|&seed| passes(&emulator, part, seed, more).contains(word)).count()
    };
    assert_eq!(seeds("pinned", &[], "stale"), 0);
    assert!(seeds("unawaited", &[], "stale") > 0);
    assert!(seeds("pinned", &[("EMULATOR_OMIT", "sync")], "stale") > 0);
    assert!(seeds("pinned", &[("EMULATOR_OMIT", "sync:odd")], "stale") > 0);
    assert!(seeds("overwritten", &[], "refused") > 0);
}

/// The kernels of the trainer, all of them, in every variant.
#[test]
fn the_kernels_of_the_trainer_compile() {
    let kernels = Kernels::of_trainer();
    assert!(!kernels.files.is_empty(), "the trainer has kernels");
    for variant in [Plain, Asan, Tsan] {
        let Some(emulator) = Emulator::build_with(variant, &kernels) else { return };
        assert!(emulator.library().exists());
    }
}

/// What the stand-in for NVRTC gives holds the names that the real one would see, and it refuses what needs no compiler to be refused.
#[test]
fn the_stand_in_for_nvrtc_knows_kernels_headers_and_architectures() {
    let Some(_) = Emulator::build(Plain) else { return };
    let environment = Emulator::stand_in_for_nvrtc();
    let (_, folder) = environment.iter().find(|(name, _)| *name == "SAE_NVRTC").expect("its folder");
    let nvrtc = Nvrtc::find(Some(Path::new(folder))).expect("it has NVRTC's functions");
    for source in SOURCES.iter().chain(NAIVE) {
        for arch in RELEASED {
            let image = nvrtc.compile(source, arch).expect("it refuses nothing of the trainer's").image;
            let names: Vec<u8> =
                source.kernels().iter().flat_map(|kernel| [kernel.name.as_bytes(), b"\0"].concat()).collect();
            // An ELF header and a table with one section come first.
            assert_eq!(image[128..], names, "{} for {arch}", source.file);
        }
    }
    let outside = KernelSource { file: "outside.cu", text: "#include <cuda_runtime.h>\n" };
    let error = nvrtc.compile(&outside, RELEASED[0]).expect_err("only own headers are there");
    assert!(matches!(&error, Error::Compile { log, .. } if log.contains("cuda_runtime.h")), "{error}");
    let error = nvrtc.compile(&SOURCES[0], "sm_83".parse().expect("a name")).expect_err("there is no such GPU");
    assert!(matches!(&error, Error::UnknownArch { known, .. } if known.contains("sm_90")), "{error}");
}

/// Images decide nothing but which kernels there are: a run comes to the same bits by the stand-in as by the real NVRTC, which
/// tests on the emulator use where it is there.
#[test]
fn a_run_by_the_stand_in_for_nvrtc_has_the_same_bits() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let [usual, by_stand_in] = ["usual", "by_stand_in"].map(|run| {
        let recipe = fixture.save(run, &fixture.recipe(run));
        let mut environment = emulator.environment(0);
        environment.push(("EMULATOR_CAPABILITY", "90".into()));
        if run == "by_stand_in" {
            environment.extend(Emulator::stand_in_for_nvrtc());
            environment.push(("SAE_CACHE_DIR", fixture.text("cubins").into()));
        }
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| (*name, value.to_str().expect("UTF-8"))).collect();
        sae::run_with(&["train", &recipe, "--device", "cuda"], &environment).exits(0);
        checkpoints::last(&fixture.path(run))
    });
    assert_eq!(checkpoints::differing(&usual, &by_stand_in), [""; 0]);
    let images = std::fs::read_dir(fixture.path("cubins")).expect("the stand-in's images").count();
    assert_eq!(images, SOURCES.len(), "each by the stand-in");
}

#[test]
fn planted_bugs_are_found() {
    let kernels = Kernels::of_self_test();
    let run = |emulator: &Emulator, seed: u64| {
        self_test(emulator, "kernels", seed, &[]).expect("the kernels were compiled, so the self-test can be")
    };
    let missed: Vec<_> = CONTROLS
        .iter()
        .map(|control| (control.name, control.missed_by(&kernels, run)))
        .filter(|(_, by)| !by.is_empty())
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
