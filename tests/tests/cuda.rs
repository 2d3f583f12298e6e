//! The CUDA kernels: the cases of every device on a card, where there is one, and on the emulator; whole runs of `sae` on the
//! emulator, with a card that fails or is too small; and bugs planted in the kernels.

use std::process::Output;

use kernels::cuda::card::{Card, Options};
use kernels::cuda::{Cuda, Moments, Precision};
use kernels::{Device, Shape};
use loader::Dtype;
use tests::cases::{self, Case, Numbers, Run, update};
use tests::checkpoints::Tensors;
use tests::control::Control;
use tests::emulator::{Emulator, Kernels, Variant};
use tests::fixture::{Fixture, json, json_lines, plain_rows, write_shards};
use tests::sae::Finished;
use tests::{checkpoints, golden, late, need, rounding, sae};
use trainer::recipe::{Every, InitSpace, Order, Recipe, Scale};

use Variant::{Asan, Plain, Tsan};

/// Set for a process that must have a card, an emulated one or a real one: `all` cases or a `few`.
const EMULATED: &str = "SAE_TEST_EMULATED";

/// How often the same step is made for [`a_step_repeated_on_a_card_gives_the_same_bits`]; 3 times by default.
const REPEATS: &str = "SAE_REPEATS";

/// The card, and whether a few cases are enough. None where there is no card, unless one was promised.
#[track_caller]
fn card() -> Option<(Card, bool)> {
    let emulated = std::env::var(EMULATED).ok();
    match Card::open(0, Options::from_environment()) {
        Ok(card) => Some((card, emulated.as_deref() == Some("few"))),
        Err(error) => {
            assert!(emulated.is_none(), "a card: {error}");
            println!("no card: {error}");
            need::optional("GPUs");
            None
        }
    }
}

/// Runs on a card; the tests below start it again on the emulator.
#[test]
fn cases_hold_on_a_card() {
    let Some((card, few)) = card() else { return };
    for (precision, numbers, bytes) in PRECISIONS {
        let rounds_by_chance = !matches!(numbers, Numbers::F32 | Numbers::Mixed);
        if few && rounds_by_chance && precision != Precision::Bf16Sr(Moments::Int8) {
            // This one reaches every kind of code.
            continue;
        }
        let device = Cuda::new(&card, precision).expect("kernels");
        let cases = match (rounds_by_chance, few) {
            (true, _) => cases::of_adam(),
            (false, true) => cases::few(),
            (false, false) => cases::all(),
        };
        let late = if rounds_by_chance { Vec::new() } else { late::all() };
        for (name, check) in cases.into_iter().chain(late) {
            println!("{precision:?}: {name}");
            check(&device, numbers);
        }
        rounding::check(&device, precision);
        a_parameter_takes(&device, bytes);
    }
}

/// What depends on who comes first shows in some of many repeats: places in lists and runs are given out by atomics, and the rows of
/// this batch are enough for many blocks at once, with runs of more than one chunk.
#[test]
fn a_step_repeated_on_a_card_gives_the_same_bits() {
    let Some((card, _)) = card() else { return };
    let repeats = std::env::var(REPEATS).map_or(3, |repeats| repeats.parse().expect("a number in SAE_REPEATS"));
    for (precision, numbers, _) in PRECISIONS {
        if ![Precision::F32, Precision::Mixed(Moments::F32), Precision::Bf16Sr(Moments::Int8)].contains(&precision) {
            // The others differ from these in nothing that has an order.
            continue;
        }
        let device = Cuda::new(&card, precision).expect("kernels");
        let case = Case::new(numbers, 40, 300, 1100, -1.0, 7);
        for path in cases::PATHS {
            let once = || {
                let mut run = Run::new(&device, &case);
                let reports = [0, 1].map(|step| run.step(path, case.lambda, &update(step)));
                (reports, run.state())
            };
            let first = once();
            assert!(first.0.iter().all(|report| report.ok), "{:?}", first.0);
            for repeat in 1..repeats {
                assert!(once() == first, "{precision:?}, {path:?}: repeat {repeat} of {repeats} gives other bits");
            }
        }
    }
}

/// Whole runs of `sae` on a card, against the losses of the reference in double precision.
#[test]
fn a_run_on_a_card_reaches_the_golden_losses() {
    if card().is_some() {
        reaches_the_golden_losses(&[]);
    }
}

/// Every way to keep weights and moments, how near it comes, and the bytes that a parameter takes. What the narrow ones do
/// differently lies in Adam, so a few cases hold them.
const PRECISIONS: [(Precision, Numbers, f64); 7] = [
    (Precision::F32, Numbers::F32, 12.0),
    (Precision::Mixed(Moments::F32), Numbers::Mixed, 14.0),
    (Precision::Mixed(Moments::Bf16), Numbers::Bf16, 10.0),
    // A scale for 128 columns of each moment.
    (Precision::Mixed(Moments::Int8), Numbers::Int8, 8.0 + 8.0 / 128.0),
    (Precision::Bf16Sr(Moments::F32), Numbers::Bf16, 10.0),
    (Precision::Bf16Sr(Moments::Bf16), Numbers::Bf16, 6.0),
    (Precision::Bf16Sr(Moments::Int8), Numbers::Int8, 4.0 + 8.0 / 128.0),
];

/// The biases, their moments, norms and clocks of a feature take a thousandth more at this width.
fn a_parameter_takes(device: &Cuda, bytes: f64) {
    let case = Case::new(Numbers::F32, 8, 8, 1, 0.0, 1);
    let shape = Shape { width: 4096, features: 1 << 20, ..case.shape };
    let taken = device.bytes(shape).weights as f64 / (2.0 * 4096.0 * (1 << 20) as f64);
    assert!((bytes..bytes + 0.005).contains(&taken), "{taken} bytes a parameter, not {bytes}");
}

/// This test binary with an emulated card.
fn on_the_emulator(emulator: &Emulator, cases: &str, seed: u64) -> Output {
    let own = std::env::current_exe().expect("a process knows its file");
    let more = [(EMULATED, cases), ("EMULATOR_CAPABILITY", "90"), ("RUST_BACKTRACE", "0")];
    emulator.run(&own, &["--exact", "cases_hold_on_a_card", "--nocapture"], seed, &more)
}

#[track_caller]
fn holds(output: &Output, label: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{label}:\n{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("Mixed(F32): "), "{label}: the cases ran");
}

#[test]
fn cases_hold_on_the_emulator() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    for (cases, seed) in [("all", 0), ("few", 1), ("few", 2), ("few", 3)] {
        holds(&on_the_emulator(&emulator, cases, seed), &format!("{cases} cases, seed {seed}"));
    }
}

#[test]
fn cases_hold_under_sanitizers() {
    for variant in [Asan, Tsan] {
        let Some(emulator) = Emulator::build(variant) else { return };
        holds(&on_the_emulator(&emulator, "few", 1), &format!("{variant:?}"));
    }
}

/// What `sae` needs to find the emulated card.
fn environment(emulator: &Emulator, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut environment: Vec<(String, String)> = vec![("EMULATOR_CAPABILITY".into(), "90".into())];
    let of_emulator = emulator.environment(0).into_iter();
    environment.extend(of_emulator.map(|(name, value)| (name.to_owned(), value.into_string().expect("UTF-8"))));
    environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    environment
}

fn borrowed(environment: &[(String, String)]) -> Vec<(&str, &str)> {
    environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn a_run_on_the_emulator_reaches_the_golden_losses() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    reaches_the_golden_losses(&borrowed(&environment(&emulator, &[])));
}

fn reaches_the_golden_losses(environment: &[(&str, &str)]) {
    for case in golden::CASES {
        let committed = golden::committed(case);
        for (precision, moments, tolerance) in [
            ("f32", "f32", 1e-5),
            ("mixed", "f32", 1e-3),
            // Rounding by chance moves weights apart from those of the reference, and losses by less than bf16 products do.
            ("mixed", "bf16", 1e-3),
            ("mixed", "int8", 1e-3),
            ("bf16-sr", "f32", 1e-3),
            ("bf16-sr", "bf16", 1e-3),
            ("bf16-sr", "int8", 1e-3),
        ] {
            let narrow = precision == "bf16-sr" || moments != "f32";
            if narrow && case.name == "dense" {
                // What these do differently is the same on both paths, and here the dense one takes long.
                continue;
            }
            if std::env::var(EMULATED).is_ok_and(|asked| asked == "few") && (narrow || case.name == "dense") {
                continue;
            }
            let set = [format!("train.precision={precision}"), format!("train.moments={moments}")];
            let arguments = ["--device", "cuda", "--set", &set[0], "--set", &set[1]];
            let measured = golden::measure(case, &arguments, environment);
            assert_eq!(measured.len(), committed.len());
            for (step, (golden, measured)) in committed.iter().zip(&measured).enumerate() {
                let error = (golden.loss - measured.loss).abs() / golden.loss;
                let label = format!("{} {precision} {moments} step {step}", case.name);
                assert!(error <= tolerance, "{label}: {golden:?}, {measured:?}");
            }
        }
    }
}

/// Memory modes of a card: bf16 and 8 bits in checkpoints of binary32, and back.
#[test]
fn a_run_with_narrow_weights_and_moments_goes_on_to_the_same_bits() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let healthy = environment(&emulator, &[]);
    let failing = environment(&emulator, &[("EMULATOR_FAIL", "launch:100:700")]);
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

/// What only a card can do, and what does not go together, is one message with the key and the remedy.
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

/// An error of the card names the kernel, keeps the checkpoint, and the run goes on from it to the same bits.
#[test]
fn a_card_that_fails_costs_no_checkpoint() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("whole");
    recipe.sae.features = 128;
    recipe.train.tokens = Some(12 * 256);
    recipe.checkpoint.every = trainer::recipe::Every::Steps(4);
    let whole = fixture.save("whole", &recipe);
    let healthy = environment(&emulator, &[]);
    let on_card = ["--device", "cuda"];
    sae::run_with(&[&["train", &whole], &on_card[..]].concat(), &borrowed(&healthy)).exits(0);

    recipe.run.dir = fixture.text("failed");
    let failed = fixture.save("failed", &recipe);
    for (fault, words) in [("launch:150:700", "illegal memory access"), ("launch:150:214", "ECC")] {
        let failing = environment(&emulator, &[("EMULATOR_FAIL", fault)]);
        let start = [&["train", &failed, "--resume-or-start"], &on_card[..]].concat();
        sae::run_with(&start, &borrowed(&failing)).exits(71).says(&["CUDA failed", words]);
        assert!(fixture.json("failed/error-0.json")["error"].as_str().is_some_and(|text| text.contains(words)));
    }
    sae::run_with(&[&["train", &failed, "--resume"], &on_card[..]].concat(), &borrowed(&healthy)).exits(0);
    let same = checkpoints::last(&fixture.path("failed")) == checkpoints::last(&fixture.path("whole"));
    assert!(same, "the run that failed ends with other bits");
    let lines = json_lines(&fixture.path("failed/metrics.jsonl"));
    assert_eq!(lines.len(), json_lines(&fixture.path("whole/metrics.jsonl")).len());
}

/// A run on a card with batches of 16 rows, one of which, at step `loud`, has more active features than there is room for: its rows
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

/// Trains on the emulated card into the folder `run`; what the last checkpoint holds.
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
    let environment = environment(&emulator, &[("RUST_LOG", "debug")]);
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
    let environment = environment(&emulator, &[]);
    let nan = "shard-00001.parquet:300";
    let on_card = ["train", &path, "--device", "cuda"];
    sae::run_with(&on_card, &borrowed(&environment)).exits(70).says(&["step 5", "1 of its rows", nan]);
    let newest = checkpoints::committed(&fixture.path("run")).pop().expect("a checkpoint");
    let manifest = json(&newest.join("manifest.json"));
    assert_eq!((manifest["step"].as_u64(), manifest["tokens"].as_u64()), (Some(5), Some(5 * 256)));

    let skip = format!("data.skip=[\"{nan}\"]");
    let resume = [&on_card[..], &["--resume", "--set", &skip]].concat();
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
    let run = |name: &str, more: &[(&str, &str)]| trained(&fixture, &recipe, name, &environment(&emulator, more));
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
            let environment = environment(&emulator, &more);
            let finished = sae::run_with(&["train", &path, "--device", "cuda"], &borrowed(&environment));
            finished.code != Some(0) || checkpoints::last(&fixture.path(&name)) != expected
        };
        assert!((1..5).any(seen), "{omitted} left out changes nothing");
    }
}

/// However many steps a run has, it waits for the whole card equally often: at its start, and where somebody looks.
#[test]
fn no_step_waits_for_the_card_to_be_idle() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::new();
    let mut recipe = with_a_loud_batch(&fixture, 18, 17);
    let mut waits = |steps: u64| {
        recipe.train.tokens = Some(16 * steps);
        let more = [("EMULATOR_SEED", "2"), ("EMULATOR_TRACE", "1")];
        let (_, finished) = trained(&fixture, &recipe, &format!("of_{steps}"), &environment(&emulator, &more));
        let count = |words: &str| finished.stderr.lines().filter(|line| line.contains(words)).count() as u64;
        (count("the host waits for a stream"), count("the host waits for an event"))
    };
    let [(few, of_few), (many, of_many)] = [8, 16].map(&mut waits);
    assert_eq!(few, many, "waits for everything");
    assert!(of_many >= of_few + 8, "every report is waited for: {of_few} times in 8 steps, {of_many} in 16");
}

#[test]
fn a_card_that_is_too_small_is_said_with_what_would_fit() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let fixture = Fixture::with_data();
    let recipe = fixture.save("recipe", &fixture.recipe("run"));
    let small = environment(&emulator, &[("EMULATOR_MEMORY", "2000000")]);
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
    let small = environment(&emulator, &[("EMULATOR_MEMORY", "120000000")]);
    let said = sae::run_with(&["train", &large, "--device", "cuda"], &borrowed(&small)).exits(64);
    said.says(&["does not fit", "train.moments = \"bf16\" would fit"]);
    assert!(!fixture.path("run/config.toml").exists(), "nothing was begun");
}

/// Bugs in the trainer's kernels.
const CONTROLS: &[Control] = &[
    Control {
        name: "encode: the counter of hits is reset without a barrier",
        file: "encode.cu",
        find: "        if (threadIdx.x == 0) *used = 0;\n        __syncthreads();\n        if (rows == 1) {",
        replace: "        if (threadIdx.x == 0) *used = 0;\n        if (rows == 1) {",
        caught_by: &[Tsan],
    },
    Control {
        name: "encode: a lost atomic on the token's counter",
        file: "encode.cu",
        find: "const u32 place = atomicAdd(&count_b[token], 1u);",
        replace: "const u32 place = count_b[token]++;",
        caught_by: &[Tsan],
    },
    Control {
        name: "tile: a stage that has not arrived",
        file: "tile.cuh",
        find: "            copies_wait<STAGES - 2>();",
        replace: "            copies_wait<STAGES - 1>();",
        caught_by: &[Plain],
    },
    Control {
        name: "tile: pieces stored without their permutation",
        file: "tile.cuh",
        find: "const u32 m = m0 + i * 16 + block % 2 * 8, k = kk + block / 2 * 8;",
        replace: "const u32 m = m0 + i * 16 + block / 2 * 8, k = kk + block % 2 * 8;",
        caught_by: &[Plain],
    },
    Control {
        name: "transpose: a run that overruns the pairs",
        file: "transpose.cu",
        find: "token_p[from + place] = pair.x;\n            activation_p[from + place] = __uint_as_float(pair.y);\n        }\n        __syncthreads();",
        replace: "token_p[from + place + (1 << 20)] = pair.x;\n            activation_p[from + place] = __uint_as_float(pair.y);\n        }\n        __syncthreads();",
        caught_by: &[Plain, Asan],
    },
    Control {
        name: "encode: a batch behind one that was refused is not held",
        file: "encode.cu",
        find: "before && refused(before, with_gradient);",
        replace: "before && before->overflow;",
        caught_by: &[Plain],
    },
    Control {
        name: "backward: the parts of a dot product are read too early",
        file: "backward.cu",
        find: "        __syncthreads();\n        if (threadIdx.x < TOGETHER && p0",
        replace: "        if (threadIdx.x < TOGETHER && p0",
        caught_by: &[Plain, Tsan],
    },
    Control {
        name: "adam: coefficients read before they are there",
        file: "adam.cu",
        find: "of.last_update_f[f]);\n    __syncthreads();\n",
        replace: "of.last_update_f[f]);\n",
        caught_by: &[Plain, Tsan],
    },
    Control {
        name: "rounding: the same random bits at every step",
        file: "rounding.cuh",
        find: "what, (u32)step, (u32)(step >> 32),",
        replace: "what, 0, 0,",
        caught_by: &[Plain],
    },
    Control {
        name: "rounding: always down",
        file: "rounding.cuh",
        find: "(bits + random) >> 16",
        replace: "bits >> 16",
        caught_by: &[Plain],
    },
    Control {
        name: "parameter: lanes past the end of a row leave their warp",
        file: "parameter.cuh",
        find: "        const float first_scale = scale_of(moments.first),",
        replace: "        if (!place.inside) return;\n        const float first_scale = scale_of(moments.first),",
        caught_by: &[Plain],
    },
];

#[test]
fn planted_bugs_are_caught() {
    let kernels = Kernels::of_trainer();
    for control in CONTROLS {
        let missed = control.missed_by(&kernels, |emulator, seed| on_the_emulator(emulator, "few", seed));
        assert!(missed.is_empty(), "{}: not caught by {missed:?}", control.name);
    }
}
