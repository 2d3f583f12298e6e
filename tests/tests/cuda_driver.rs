//! What a GPU's driver may refuse, on the emulated GPU: compiled kernels, memory; and what hosts do that read a program's memory late.

use std::path::Path;

use tests::emulator::Variant::Plain;
use tests::emulator::{Emulator, borrowed};
use tests::fixture::Fixture;
use tests::sae::Finished;
use tests::{checkpoints, sae};

/// A short run, its recipe, and the GPU that it is made on.
struct Short {
    emulator: Emulator,
    fixture: Fixture,
}

impl Short {
    /// `None` where the emulator cannot be built.
    fn new() -> Option<Short> {
        let emulator = Emulator::build(Plain)?;
        Some(Short { emulator, fixture: Fixture::with_data() })
    }

    /// Trains two steps into the folder `run`.
    fn train(&self, run: &str, more: &[(&str, &str)]) -> Finished {
        let mut recipe = self.fixture.recipe(run);
        (recipe.sae.features, recipe.train.batch, recipe.train.tokens) = (128, 64, Some(2 * 64));
        let recipe = self.fixture.save(run, &recipe);
        sae::run_with(&["train", &recipe, "--device", "cuda"], &borrowed(&self.emulator.settings(more)))
    }

    /// That a run comes out to the bits of the one that nothing was refused.
    fn comes_out_as(&self, whole: &str, run: &str) {
        let [whole, run] = [whole, run].map(|run| checkpoints::last(&self.fixture.path(run)));
        assert_eq!(checkpoints::differing(&whole, &run), [""; 0]);
    }
}

/// Kernels of an earlier start, as those that a release carries, may be older or newer than the driver: others are compiled.
#[test]
fn kernels_that_the_driver_refuses_are_compiled_again() {
    let Some(short) = Short::new() else { return };
    // A compiler that takes no time, whatever else is there.
    let nvrtc = Emulator::stand_in_for_nvrtc().into_iter().find(|(name, _)| *name == "SAE_NVRTC");
    let nvrtc = nvrtc.and_then(|(_, folder)| folder.into_string().ok()).expect("a folder");
    let cache = short.fixture.text("cubins");
    let kept = [("SAE_CACHE_DIR", cache.as_str()), ("SAE_NVRTC", nvrtc.as_str())];
    let failing = |run: &str, fault: &str| short.train(run, &[&kept[..], &[("EMULATOR_FAIL", fault)]].concat());
    short.train("whole", &kept).exits(0);
    let files = std::fs::read_dir(short.fixture.path("cubins")).expect("a cache").count() as u64;

    // The first and the last file of those that were kept.
    let some = format!("load:1:209,load:{files}:222");
    let finished = failing("some", &some).exits(0);
    let words = ["refuses kernels", "compiled at an earlier start", "no kernel image is available", "files=2"];
    finished.says(&words);
    short.comes_out_as("whole", "some");

    // Those that were compiled are refused as well, and then there are none.
    let refused = format!("load:1:209,load:{}:209", files + 1);
    let remedies = ["refuses the GPU's kernels", "(compiled now)", "CUDA_ERROR_NO_BINARY_FOR_GPU", "SAE_NVRTC", "580"];
    failing("refused", &refused).exits(64).says(&remedies);
    let nowhere = [kept[0], ("EMULATOR_FAIL", "load:1:200"), ("SAE_NVRTC", "/nowhere")];
    let remedies = ["refuses the GPU's kernels", "CUDA_ERROR_INVALID_IMAGE", "no NVRTC was found", "/nowhere", "580"];
    short.train("alone", &nowhere).exits(64).says(&remedies);
    // What has nothing to do with the image is what it was.
    failing("broken", "load:1:719").exits(71).says(&["CUDA failed: cuModuleLoadData"]);
}

/// Only one of the driver's codes means that a dictionary is too large; others are no reason to make it smaller.
#[test]
fn memory_that_the_driver_does_not_give_is_said_in_its_words() {
    let Some(short) = Short::new() else { return };
    let fails =
        |fault: &str, code: i32| short.train(&format!("fails-{code}-{fault}"), &[("EMULATOR_FAIL", fault)]).exits(code);
    let words = [
        " of memory, more than this machine gives",
        "(cuMemAllocAsync: out of memory (CUDA_ERROR_OUT_OF_MEMORY))",
        "train.batch",
    ];
    fails("alloc:3:2", 64).says(&words);
    let finished = fails("alloc:3:999", 71);
    assert!(!finished.stderr.contains("train.batch"), "{}", finished.stderr);
    finished.says(&["CUDA failed: cuMemAllocAsync: unknown error (CUDA_ERROR_UNKNOWN), for ", " bytes: start again"]);
}

/// Some virtual GPUs have no pools of memory, and of these some say that they have.
#[test]
fn gpus_without_pools_of_memory_are_used_without() {
    let Some(short) = Short::new() else { return };
    short.train("whole", &[]).exits(0);
    for pools in ["none", "broken"] {
        let finished = short.train(pools, &[("EMULATOR_POOLS", pools)]).exits(0);
        assert!(!finished.stderr.contains("emulator: "), "memory is given back as it was taken:\n{}", finished.stderr);
        short.comes_out_as("whole", pools);
    }
}

/// On hosts whose memory a GPU reads by itself, a copy may begin when what it copies is gone.
#[test]
fn hosts_that_copy_late_change_no_bit() {
    let Some(short) = Short::new() else { return };
    short.train("whole", &[]).exits(0);
    for seed in ["1", "2", "3"] {
        let run = format!("seed-{seed}");
        short.train(&run, &[("EMULATOR_COHERENT", "1"), ("EMULATOR_SEED", seed)]).exits(0);
        short.comes_out_as("whole", &run);
    }
}

/// Two blocks of the encoder's GEMM fit on a multiprocessor when nothing of its shared memory is left to the L1 cache.
#[test]
fn gemms_get_all_shared_memory() {
    let Some(short) = Short::new() else { return };
    let finished = short.train("run", &[("EMULATOR_TRACE", "1")]).exits(0);
    let gemms = ["encode", "dense_encode", "dense_decode", "dense_activations", "dense_gradient"];
    let lines = gemms.map(|kernel| format!("{kernel}_bf16: 100 % shared memory"));
    finished.says(&lines.each_ref().map(String::as_str));
}

/// Before anything is made, and by the key that has to change.
#[test]
fn a_batch_that_kernels_cannot_count_is_refused() {
    let Some(short) = Short::new() else { return };
    let recipe = short.fixture.save("recipe", &short.fixture.recipe("run"));
    let made = format!("data.train={}", short.fixture.text("made"));
    let synthetic = ["data.eval=[]", &made, "data.synth.width=8", "data.synth.rows=4000000", "sae.features=4096"];
    let train = |batch: &str| {
        let set = synthetic.iter().chain([&batch]).flat_map(|set| ["--set", *set]);
        let all: Vec<&str> = ["train", &recipe, "--device", "cuda", "--dry-run"].into_iter().chain(set).collect();
        // Room for everything: only counting is in the way.
        let settings = short.emulator.settings(&[("EMULATOR_MEMORY", "400000000000")]);
        sae::run_with(&all, &borrowed(&settings))
    };
    // 163 KiB of shared memory are the bitmap of 667,648 tokens.
    train("train.batch=667648").exits(0);
    let words = ["a batch of 667649 rows on one GPU", "at most 667648 with 4096 features", "train.batch"];
    train("train.batch=667649").exits(64).says(&words);
    assert!(!Path::new(&short.fixture.path("made")).exists(), "nothing was made");
}
