//! Whole runs of `sae` on the emulated GPU: steps that are made again, GPUs that fail or are too small, and what is enqueued in
//! other orders.

use loader::Dtype;
use tests::checkpoints::Tensors;
use tests::emulator::Variant::Plain;
use tests::emulator::{Emulator, borrowed};
use tests::fixture::{Fixture, json, json_lines, plain_rows, write_shards};
use tests::pairs::pairs;
use tests::sae::Finished;
use tests::{checkpoints, golden, sae};
use trainer::recipe::{BiasInit, Every, InitSpace, Order, Recipe, Scale};

/// Memory modes of a GPU: bf16 and 8 bits in checkpoints of binary32, and back.
#[test]
fn a_run_with_narrow_weights_and_moments_goes_on_to_the_same_bits() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let healthy = emulator.settings(&[]);
    let failing = emulator.settings(&[("EMULATOR_FAIL", "launch:100:700")]);
    let mut recipe = fixture.recipe("whole");
    recipe.sae.features = 64;
    recipe.train.batch = 64;
    recipe.train.tokens = Some(8 * 64);
    recipe.train.adam = trainer::recipe::Adam::Catchup;
    recipe.train.precision = trainer::recipe::Precision::Bf16Sr;
    recipe.train.moments = trainer::recipe::Moments::Int8;
    recipe.checkpoint.every = trainer::recipe::Every::Steps(2);
    let whole = fixture.save("whole", &recipe);
    sae::run_with(&["train", &whole, "--device", "cuda"], &borrowed(&healthy)).exits(0);

    recipe.run.dir = fixture.text("resumed");
    let resumed = fixture.save("resumed", &recipe);
    sae::run_with(&["train", &resumed, "--device", "cuda"], &borrowed(&failing)).exits(71);
    assert!(fixture.path("resumed/checkpoints").exists(), "there is something to go on from");
    sae::run_with(&["train", &resumed, "--device", "cuda", "--resume"], &borrowed(&healthy)).exits(0);
    let same = checkpoints::last(&fixture.path("resumed")) == checkpoints::last(&fixture.path("whole"));
    assert!(same, "the run that was resumed ends with other bits");
}

/// What only a GPU can do, and what does not go together, is one message with the key and the remedy.
#[test]
fn memory_modes_are_refused_where_there_are_none() {
    let fixture = Fixture::with_data();
    let recipe = fixture.save("recipe", &fixture.recipe("run"));
    let train = |set: &[&str]| {
        let set = set.iter().flat_map(|set| ["--set", *set]);
        sae::run(&["train", &recipe, "--device", "cpu"].into_iter().chain(set).collect::<Vec<_>>()).exits(64)
    };
    train(&["train.precision=bf16-sr"])
        .says(&["train.precision = \"bf16-sr\" needs a GPU", "train.precision to \"auto\""]);
    train(&["train.moments=int8"]).says(&["train.moments = \"int8\" needs a GPU", "train.moments to \"f32\""]);
    let both = ["train.precision=f32", "train.moments=bf16"];
    train(&both).says(&["train.moments must be \"f32\" where train.precision is", "\"mixed\" and \"bf16-sr\""]);
}

/// An error of the GPU names the kernel, keeps the checkpoint, and the run goes on from it to the same bits.
#[test]
fn a_gpu_that_fails_costs_no_checkpoint() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("whole");
    recipe.sae.features = 128;
    recipe.train.tokens = Some(12 * 256);
    recipe.checkpoint.every = trainer::recipe::Every::Steps(4);
    let whole = fixture.save("whole", &recipe);
    let healthy = emulator.settings(&[]);
    let on_gpu = ["--device", "cuda"];
    sae::run_with(&[&["train", &whole], &on_gpu[..]].concat(), &borrowed(&healthy)).exits(0);

    recipe.run.dir = fixture.text("failed");
    let failed = fixture.save("failed", &recipe);
    for (fault, words) in [("launch:150:700", "illegal memory access"), ("launch:150:214", "ECC")] {
        let failing = emulator.settings(&[("EMULATOR_FAIL", fault)]);
        let start = [&["train", &failed, "--resume-or-start"], &on_gpu[..]].concat();
        sae::run_with(&start, &borrowed(&failing)).exits(71).says(&["CUDA failed", words]);
        assert!(fixture.json("failed/error-0.json")["error"].as_str().is_some_and(|text| text.contains(words)));
    }
    sae::run_with(&[&["train", &failed, "--resume"], &on_gpu[..]].concat(), &borrowed(&healthy)).exits(0);
    let same = checkpoints::last(&fixture.path("failed")) == checkpoints::last(&fixture.path("whole"));
    assert!(same, "the run that failed ends with other bits");
    let lines = json_lines(&fixture.path("failed/metrics.jsonl"));
    assert_eq!(lines.len(), json_lines(&fixture.path("whole/metrics.jsonl")).len());
}

/// A run on a GPU with batches of 16 rows, one of which, at step `loud`, has more active features than there is room for: its rows
/// are a thousand times as long.
fn with_a_loud_batch(fixture: &Fixture, steps: usize, loud: usize) -> Recipe {
    const WIDTH: usize = 8;
    const FEATURES: usize = 2560;
    golden::Weights::start(WIDTH, FEATURES, -0.55).write(&fixture.path("start.safetensors"));
    let mut rows = plain_rows(steps * 16, WIDTH, 5);
    rows[loud * 16 * WIDTH..(loud + 1) * 16 * WIDTH].iter_mut().for_each(|x| *x *= 1000.0);
    write_shards(&fixture.path("train"), WIDTH, &rows, Dtype::F32, 1000);
    let mut recipe = fixture.recipe("run");
    recipe.data.order = Order::Sequential;
    recipe.data.scale = Scale::Fixed(1.0);
    recipe.sae.features = FEATURES;
    recipe.train.init_from = Some(fixture.text("start.safetensors"));
    recipe.train.init_space = Some(InitSpace::Normalized);
    recipe.train.batch = 16;
    recipe.log.every = 1000;
    recipe.checkpoint.every = Every::Steps(1000);
    recipe.checkpoint.keep = 1000;
    recipe
}

/// Trains on the emulated GPU into the folder `run`; what the last checkpoint holds.
fn trained(fixture: &Fixture, recipe: &Recipe, run: &str, environment: &[(String, String)]) -> (Tensors, Finished) {
    let mut recipe = recipe.clone();
    recipe.run.dir = fixture.text(run);
    let path = fixture.save(run, &recipe);
    let finished = sae::run_with(&["train", &path, "--device", "cuda"], &borrowed(environment)).exits(0);
    (checkpoints::last(&fixture.path(run)), finished)
}

/// The step without room is seen when the next one is under way, or at once where a checkpoint is made after every step: the
/// same bits, also when the run is resumed right behind it.
#[test]
fn a_step_without_room_is_made_again_before_the_next() {
    const AGAIN: &str = "made again on the dense path";
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::new();
    let mut recipe = with_a_loud_batch(&fixture, 9, 4);
    let environment = emulator.settings(&[("RUST_LOG", "debug")]);
    let (late, finished) = trained(&fixture, &recipe, "late", &environment);
    assert_eq!(finished.stderr.matches(AGAIN).count(), 1, "{}", finished.stderr);
    recipe.checkpoint.every = Every::Steps(1);
    let (at_once, finished) = trained(&fixture, &recipe, "at_once", &environment);
    assert_eq!(finished.stderr.matches(AGAIN).count(), 1, "{}", finished.stderr);
    assert_eq!(checkpoints::differing(&late, &at_once), [""; 0]);
    let metrics = |run: &str| fixture.json(&format!("{run}/summary.json"))["explained_variance"].clone();
    assert_eq!(metrics("late"), metrics("at_once"));

    let committed = checkpoints::committed(&fixture.path("at_once"));
    recipe.run.dir = fixture.text("at_once");
    recipe.checkpoint.every = Every::Steps(1000);
    let path = fixture.save("resumed", &recipe);
    // Behind steps 6, 5 and 4, each time from what the first run has left.
    for step in [7, 6, 5] {
        for later in checkpoints::committed(&fixture.path("at_once")) {
            if !committed[..step].contains(&later) {
                std::fs::remove_dir_all(later).expect("a checkpoint is removed");
            }
        }
        sae::run_with(&["train", &path, "--device", "cuda", "--resume"], &borrowed(&environment)).exits(0);
        let resumed = checkpoints::last(&fixture.path("at_once"));
        assert_eq!(checkpoints::differing(&late, &resumed), [""; 0], "resumed after step {}", step - 1);
    }
}

/// A row that is not finite is heard of when the next step is under way: nothing of either has happened.
#[test]
fn a_row_with_nan_is_named_though_the_next_step_is_under_way() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::new();
    let mut rows = plain_rows(2000, 32, 9);
    rows[1300 * 32 + 3] = f32::NAN;
    write_shards(&fixture.path("train"), 32, &rows, Dtype::F16, 1000);
    let mut recipe = fixture.recipe("run");
    recipe.data.order = Order::Sequential;
    recipe.data.scale = Scale::Fixed(1.0);
    (recipe.log.every, recipe.checkpoint.every) = (1000, Every::Steps(1000));
    let path = fixture.save("run", &recipe);
    let environment = emulator.settings(&[]);
    let nan = "shard-00001.parquet:300";
    let on_gpu = ["train", &path, "--device", "cuda"];
    sae::run_with(&on_gpu, &borrowed(&environment)).exits(65).says(&["step 5", "1 of its rows", nan]);
    let newest = checkpoints::committed(&fixture.path("run")).pop().expect("a checkpoint");
    let manifest = json(&newest.join("manifest.json"));
    assert_eq!((manifest["step"].as_u64(), manifest["tokens"].as_u64()), (Some(5), Some(5 * 256)));

    let skip = format!("data.skip=[\"{nan}\"]");
    let resume = [&on_gpu[..], &["--resume", "--set", &skip]].concat();
    sae::run_with(&resume, &borrowed(&environment)).exits(0);
    recipe.data.skip = vec![nan.to_owned()];
    let (whole, _) = trained(&fixture, &recipe, "whole", &environment);
    assert_eq!(checkpoints::differing(&whole, &checkpoints::last(&fixture.path("run"))), [""; 0]);
}

/// Copies come as late as the events between the streams and the host allow, and with any of these events left out too late.
#[test]
fn no_order_of_copies_and_kernels_changes_a_run() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::new();
    let recipe = with_a_loud_batch(&fixture, 7, 3);
    let run = |name: &str, more: &[(&str, &str)]| trained(&fixture, &recipe, name, &emulator.settings(more));
    let (expected, _) = run("at_once", &[]);
    for seed in ["1", "2", "3"] {
        let (tensors, _) = run(&format!("seed_{seed}"), &[("EMULATOR_SEED", seed)]);
        assert_eq!(checkpoints::differing(&expected, &tensors), [""; 0], "seed {seed}");
    }
    for omitted in ["wait", "sync"] {
        let seen = |seed: u64| {
            let (mut recipe, name) = (recipe.clone(), format!("{omitted}_{seed}"));
            recipe.run.dir = fixture.text(&name);
            let path = fixture.save(&name, &recipe);
            let more = [("EMULATOR_SEED", &*seed.to_string()), ("EMULATOR_OMIT", omitted)];
            let environment = emulator.settings(&more);
            let finished = sae::run_with(&["train", &path, "--device", "cuda"], &borrowed(&environment));
            finished.code != Some(0) || checkpoints::last(&fixture.path(&name)) != expected
        };
        assert!((1..5).any(seen), "{omitted} left out changes nothing");
    }
}

/// However many steps a run has, it waits for the whole GPU equally often: at its start, and where somebody looks.
#[test]
fn no_step_waits_for_the_gpu_to_be_idle() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::new();
    let mut recipe = with_a_loud_batch(&fixture, 18, 17);
    let mut waits = |steps: u64| {
        recipe.train.tokens = Some(16 * steps);
        let more = [("EMULATOR_SEED", "2"), ("EMULATOR_TRACE", "1")];
        let (_, finished) = trained(&fixture, &recipe, &format!("of_{steps}"), &emulator.settings(&more));
        let count = |words: &str| finished.stderr.lines().filter(|line| line.contains(words)).count() as u64;
        (count("the host waits for a stream"), count("the host waits for an event"))
    };
    let [(few, of_few), (many, of_many)] = [8, 16].map(&mut waits);
    assert_eq!(few, many, "waits for everything");
    assert!(of_many >= of_few + 8, "every report is waited for: {of_few} times in 8 steps, {of_many} in 16");
}

#[test]
fn a_gpu_that_is_too_small_is_said_with_what_would_fit() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let recipe = fixture.save("recipe", &fixture.recipe("run"));
    let small = emulator.settings(&[("EMULATOR_MEMORY", "2000000")]);
    let said = sae::run_with(&["train", &recipe, "--device", "cuda"], &borrowed(&small)).exits(64);
    said.says(&["does not fit", "sae.features", "train.batch"]);
    // It is known before anything is made.
    let made = format!("data.train={}", fixture.text("made"));
    let synthetic = ["--set", "data.eval=[]", "--set", &made, "--set", "data.synth.width=4096"];
    let features = ["train", &recipe, "--device", "cuda", "--dry-run", "--set", "sae.features=34000000"];
    let said = sae::run_with(&[&features[..], &synthetic].concat(), &borrowed(&small)).exits(64);
    said.says(&["does not fit", "neither", "lower both"]);

    // Most of what this one takes are weights and moments.
    let mut large = fixture.recipe("run");
    (large.sae.features, large.train.dense_bytes) = (1 << 17, 1 << 20);
    let large = fixture.save("large", &large);
    let small = emulator.settings(&[("EMULATOR_MEMORY", "120000000")]);
    let said = sae::run_with(&["train", &large, "--device", "cuda"], &borrowed(&small)).exits(64);
    said.says(&["does not fit", "train.moments = \"bf16\" would fit"]);
    assert!(!fixture.path("run/config.toml").exists(), "nothing was begun");
}

/// `sae encode` on a GPU finds the pairs that it finds on the processor, within rounding: where numbers are binary32, and where products are
/// of bf16.
#[test]
fn a_gpu_encodes_what_the_processor_does() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.sae.features = 192;
    (recipe.sae.bias_init, recipe.sae.bias_init_l0) = (BiasInit::Calibrated, 8.0);
    recipe.train.tokens = Some(2560);
    sae::run(&["train", &fixture.save("recipe", &recipe), "--device", "cpu"]).exits(0);
    let data = fixture.text("eval");
    let on = |device: &str, out: &str, precision: &str| {
        let words = ["encode", &recipe.run.dir, "--data", &data, "--out", &fixture.text(out), "--device", device];
        let environment = emulator.settings(&[]);
        sae::run_with(&[&words[..], &["--precision", precision]].concat(), &borrowed(&environment)).exits(0);
        pairs(&fixture.path(out))
    };
    let exact = on("cpu", "cpu", "f32");
    let largest = exact.values().copied().fold(0.0, f32::max);
    assert!(exact.len() > 4 * 1024, "{} pairs of 1,024 rows", exact.len());
    for (precision, tolerance) in [("f32", 1e-5), ("mixed", 2e-2)] {
        let on_gpu = on("cuda", precision, precision);
        for pair in exact.keys().chain(on_gpu.keys()) {
            let [a, b] = [&exact, &on_gpu].map(|of| of.get(pair).copied().unwrap_or(0.0));
            assert!((a - b).abs() <= tolerance * largest, "{precision}, {pair:?}: {a} and {b} of {largest}");
        }
        let both = exact.keys().filter(|pair| on_gpu.contains_key(pair)).count();
        assert!(100 * both >= 95 * exact.len(), "{precision}: {both} of {} pairs", exact.len());
    }
}
