//! Several GPUs: runs of `sae` on a mesh of emulated ones, a process each, with messages of an emulated NCCL between them.

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use kernels::mesh::Mesh;
use tests::checkpoints::Tensors;
use tests::control::Control;
use tests::emulator::{Emulator, Kernels, Variant};
use tests::fixture::{Fixture, json_lines, plain_rows, write_shards};
use tests::jobs::as_rank;
use tests::processes::{self, wait_for};
use tests::sae::Finished;
use tests::{checkpoints, golden, sae};
use trainer::communication::Traffic;
use trainer::recipe::{Adam, BiasInit, Every, Order, Precision, Recipe, Scale};

/// Ranks that a launcher starts, as words of its command line.
fn launch(ranks: &str) -> Vec<&str> {
    vec!["launch", "local", "--restarts", "0", "--ranks", ranks]
}

/// Meshes with their numbers of ranks.
const MESHES: [(&str, &str); 3] = [("1x2", "2"), ("2x1", "2"), ("2x2", "4")];

/// What `sae` needs to find so many emulated GPUs.
fn environment(gpus: &str, seed: u64) -> Option<Vec<(String, String)>> {
    Some(of_emulator(&Emulator::build(Variant::Plain)?, gpus, seed))
}

fn of_emulator(emulator: &Emulator, gpus: &str, seed: u64) -> Vec<(String, String)> {
    let own = [("EMULATOR_CAPABILITY", "90"), ("EMULATOR_DEVICES", gpus)];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let of_emulator = emulator.environment(seed).into_iter();
    let of_emulator = of_emulator.map(|(name, value)| (name.to_owned(), value.into_string().expect("UTF-8")));
    of_emulator.chain(own).collect()
}

fn borrowed(environment: &[(String, String)]) -> Vec<(&str, &str)> {
    environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// The two ranks of a job on this machine, started by hand, with variables of their own.
fn two_ranks(
    words: &[&str],
    environment: &[(String, String)],
    own: impl Fn(usize) -> Vec<(&'static str, String)>,
) -> [Child; 2] {
    [0, 1].map(|rank| {
        let mut command = sae::sae(words);
        command.args(as_rank(rank, 2, true, "one")).envs(borrowed(environment)).envs(own(rank));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sae starts")
    })
}

/// Sixteen steps on the sparse path, in tiles that four ranks share evenly.
fn recipe(fixture: &Fixture, run: &str) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.sae.features = 512;
    recipe.sae.bias_init = BiasInit::Calibrated;
    recipe.sae.bias_init_l0 = 3.0;
    recipe.train.batch = 64;
    recipe.train.tokens = Some(16 * 64);
    recipe.train.adam = Adam::Catchup;
    recipe.checkpoint.every = Every::Steps(8);
    recipe.log.every = 1;
    recipe
}

#[test]
fn every_mesh_reaches_the_golden_losses() {
    let Some(environment) = environment("4", 0) else { return };
    for case in golden::CASES {
        let committed = golden::committed(case);
        for (precision, moments, tolerance) in [("f32", "f32", 1e-5), ("mixed", "f32", 1e-3), ("bf16-sr", "int8", 1e-3)]
        {
            if case.name == "dense" && precision != "f32" {
                // What these do differently is the same on both paths, and here the dense one takes long.
                continue;
            }
            for (mesh, ranks) in MESHES {
                let set = [format!("train.precision={precision}"), format!("train.moments={moments}")];
                let arguments = ["--device", "cuda", "--mesh", mesh, "--set", &set[0], "--set", &set[1]];
                let measured = golden::measure_by(&launch(ranks), case, &arguments, &borrowed(&environment));
                assert_eq!(measured.len(), committed.len());
                for (step, (golden, measured)) in committed.iter().zip(&measured).enumerate() {
                    let error = (golden.loss - measured.loss).abs() / golden.loss;
                    let label = format!("{} {precision} {moments} on {mesh}, step {step}", case.name);
                    assert!(error <= tolerance, "{label}: {golden:?}, {measured:?}");
                }
            }
        }
    }
}

/// Bytes that all ranks sent in a step: the second, on the sparse path, and the last.
fn sent(fixture: &Fixture, run: &str) -> [f64; 2] {
    let lines = json_lines(&fixture.path(run).join("metrics.jsonl"));
    [1, lines.len() - 1].map(|step| lines[step]["ranks"]["sent_bytes"].as_f64().expect("a number of bytes"))
}

/// Where only touched rows travel, weights stand still elsewhere and nothing is lost: the curve is that of one GPU.
#[test]
fn rows_that_nobody_has_touched_need_not_travel() {
    let Some(environment) = environment("4", 0) else { return };
    let fixture = Fixture::with_data();
    for (adam, name) in [(Adam::Touched, "touched"), (Adam::Catchup, "catchup"), (Adam::Dense, "dense")] {
        let losses = |mesh: &str, ranks: &str| {
            let run = format!("{name}-{mesh}");
            let mut recipe = recipe(&fixture, &run);
            recipe.train.adam = adam;
            let path = fixture.save(&run, &recipe);
            let arguments = [&path, "--device", "cuda", "--mesh", mesh, "--set", "train.precision=f32"];
            sae::run_with(&[&launch(ranks)[..], &arguments].concat(), &borrowed(&environment)).exits(0);
            let lines = json_lines(&fixture.path(&run).join("metrics.jsonl"));
            (recipe, lines.iter().map(|line| line["loss"].as_f64().expect("a loss")).collect::<Vec<_>>())
        };
        let (_, one) = losses("1x1", "1");
        assert_eq!(one.len(), 16);
        for (mesh, ranks) in [("2x1", "2"), ("2x2", "4"), ("4x1", "4")] {
            let (recipe, several) = losses(mesh, ranks);
            for (step, (one, several)) in one.iter().zip(several).enumerate() {
                assert!((one - several).abs() <= 1e-5 * one, "{name} on {mesh}, step {step}: {one}, {several}");
            }
            let shape: Mesh = mesh.parse().expect("a mesh");
            let model = Traffic::of(&recipe, shape, 2.0).total() * 32.0 * shape.ranks() as f64;
            let [sparse, last] = sent(&fixture, &format!("{name}-{mesh}"));
            // The model has 100 active features a row, which touch all; what it leaves out are counts and the roll call.
            let [sparse, last] = [sparse, last].map(|sent| sent / model);
            assert!((1.0..1.1).contains(&last), "{name} on {mesh}: {last} of the model");
            let most = if adam == Adam::Dense { 0.9 } else { 0.6 };
            assert!(sparse < most, "{name} on {mesh}: rows that nobody has touched travel, {sparse} of the model");
        }
    }
}

/// Four steps on four ranks, their gradient rows in several rounds.
fn four_steps(emulator: &Emulator, seed: u64) -> Output {
    let fixture = Fixture::with_data();
    let mut recipe = recipe(&fixture, "run");
    // Two tiles a rank, more touched rows in them than there is room for.
    (recipe.sae.features, recipe.sae.bias_init_l0) = (1024, 7.0);
    (recipe.train.batch, recipe.train.tokens) = (128, Some(4 * 128));
    recipe.train.dense_bytes = 1;
    let path = fixture.save("recipe", &recipe);
    let words = [&launch("4")[..], &[&path, "--device", "cuda", "--mesh", "2x2"]].concat();
    emulator.run(sae::binary(), &words, seed, &borrowed(&of_emulator(emulator, "4", seed)))
}

#[test]
fn messages_between_ranks_hold_under_sanitizers() {
    for variant in [Variant::Asan, Variant::Tsan] {
        let Some(emulator) = Emulator::build(variant) else { return };
        let output = four_steps(&emulator, 1);
        assert!(output.status.success(), "{variant:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Bugs in what ranks make of each other's messages.
const CONTROLS: &[Control] = &[
    Control {
        name: "owners: touched features are counted before all warps have told theirs",
        file: "owners.cu",
        find: "slots[warp_id()] = sum;\n        __syncthreads();\n",
        replace: "slots[warp_id()] = sum;\n",
        caught_by: &[Variant::Tsan],
    },
    Control {
        name: "owners: gradient rows past their room",
        file: "owners.cu",
        find: "const u64 at = (u64)row * csc.stride + d;",
        replace: "const u64 at = ((u64)row + (1 << 20)) * csc.stride + d;",
        caught_by: &[Variant::Plain],
    },
];

#[test]
fn planted_bugs_between_ranks_are_caught() {
    let kernels = Kernels::of_trainer();
    for control in CONTROLS {
        let missed = control.missed_by(&kernels, four_steps);
        assert!(missed.is_empty(), "{}: not caught by {missed:?}", control.name);
    }
}

/// Whatever the order in which streams, blocks and messages come, and however many rounds gradients go in.
#[test]
fn the_same_mesh_gives_the_same_bits() {
    let fixture = Fixture::with_data();
    for (mesh, ranks) in MESHES {
        let last = |name: &str, seed: u64, tile: &str| {
            let name = format!("{mesh}-{name}");
            let mut recipe = recipe(&fixture, &name);
            (recipe.train.batch, recipe.train.tokens, recipe.sae.bias_init_l0) = (128, Some(8 * 128), 3.5);
            recipe.checkpoint.every = Every::Steps(4);
            let recipe = fixture.save(&name, &recipe);
            let set = format!("train.dense_bytes={tile}");
            let words = [&launch(ranks)[..], &[&recipe, "--device", "cuda", "--mesh", mesh, "--set", &set]].concat();
            sae::run_with(&words, &borrowed(&environment("4", seed)?)).exits(0);
            Some(checkpoints::last(&fixture.path(&name)))
        };
        let Some(first) = last("first", 0, "100000000") else { return };
        for (name, seed, tile) in [("again", 0, "100000000"), ("shuffled", 3, "100000000"), ("rounds", 0, "1")] {
            let again = last(name, seed, tile).expect("an emulator, as before");
            assert_eq!(checkpoints::differing(&first, &again), [""; 0], "{mesh} {name}");
        }
        // Two tiles a rank, more touched rows in them than there is room for: all are sent twice.
        let [rounds, first] = ["rounds", "first"].map(|name| sent(&fixture, &format!("{mesh}-{name}"))[0]);
        assert!(mesh != "2x1" || rounds > 1.3 * first, "{rounds} {first}");
    }
}

/// Trains on a mesh with batches in so many slices, into the folder `run`; what the last checkpoint holds, when all goes well.
fn in_slices(
    fixture: &Fixture,
    recipe: &Recipe,
    (run, mesh, ranks): (&str, &str, &str),
    slices: &str,
    more: &[(&str, &str)],
) -> Option<(Tensors, Finished)> {
    let mut recipe = recipe.clone();
    recipe.run.dir = fixture.text(run);
    let path = fixture.save(run, &recipe);
    let environment = environment("4", 0)?;
    let environment = [&borrowed(&environment)[..], &[("SAE_SLICES", slices)], more].concat();
    let words = [&launch(ranks)[..], &[&path, "--device", "cuda", "--mesh", mesh]].concat();
    let finished = sae::run_with(&words, &environment);
    (finished.code == Some(0)).then(|| (checkpoints::last(&fixture.path(run)), finished))
}

/// While one slice is encoded, x̂ of the one before is made and summed on another stream: with the waits of either stream for the
/// other left out, some order of them shows that.
#[test]
fn slices_of_a_batch_change_no_bits() {
    if environment("4", 0).is_none() {
        return;
    }
    let fixture = Fixture::with_data();
    // Three tiles on each rank, the last of them short; the last batch has one.
    let rows = |mesh: &str| if mesh.starts_with('2') { 600 } else { 300 };
    let of = |mesh: &str, precision| {
        let mut recipe = recipe(&fixture, "");
        (recipe.train.batch, recipe.train.precision) = (rows(mesh), precision);
        recipe.train.tokens = Some(3 * rows(mesh) as u64 + 100);
        recipe
    };
    for (mesh, ranks, precision) in
        [("1x2", "2", Precision::Mixed), ("2x2", "4", Precision::Mixed), ("1x2", "2", Precision::F32)]
    {
        let recipe = of(mesh, precision);
        let trained = |name: &str, slices: &str, more: &[(&str, &str)]| {
            let run = format!("{mesh}-{precision:?}-{name}");
            in_slices(&fixture, &recipe, (&run, mesh, ranks), slices, more).map(|(tensors, _)| tensors)
        };
        let whole = trained("whole", "1", &[]).expect("a run");
        for (name, slices, seed) in [("in_two", "2", "0"), ("in_all", "8", "0"), ("shuffled", "3", "3")] {
            let tensors = trained(name, slices, &[("EMULATOR_SEED", seed)]).expect("a run");
            assert_eq!(checkpoints::differing(&whole, &tensors), [""; 0], "{mesh} {precision:?} {name}");
        }
        if ranks != "2" || precision == Precision::F32 {
            continue;
        }
        // The third stream is that of sums.
        for omitted in ["wait:3-1", "wait:1-3"] {
            let seen = |seed: u64, slices: &str| {
                let more = [("EMULATOR_SEED", &*seed.to_string()), ("EMULATOR_OMIT", omitted)];
                let name = format!("{omitted}-{seed}-{slices}").replace(':', "-");
                trained(&name, slices, &more).is_none_or(|tensors| tensors != whole)
            };
            assert!((1..5).any(|seed| seen(seed, "3")), "{omitted} left out changes nothing");
            assert!(!seen(1, "1"), "{omitted} has no part in a batch of one slice");
        }
    }
}

/// Room runs out in one slice while the one before is decoded: all GPUs refuse the batch as a whole, and make it again without lists.
#[test]
fn a_list_without_room_in_one_slice_refuses_the_batch() {
    const WIDTH: usize = 8;
    if environment("4", 0).is_none() {
        return;
    }
    let fixture = Fixture::new();
    // The second batch of three has a row on which half of all features fire, behind the first tile.
    let mut rows = plain_rows(3 * 72, WIDTH, 5);
    rows[(72 + 70) * WIDTH..(72 + 71) * WIDTH].iter_mut().for_each(|x| *x *= 1000.0);
    write_shards(&fixture.path("train"), WIDTH, &rows, loader::Dtype::F32, 1000);
    let mut recipe = recipe(&fixture, "");
    (recipe.data.order, recipe.data.scale) = (Order::Sequential, Scale::Fixed(1.0));
    // Half of those of a rank are more than a list has room for.
    recipe.sae.features = 2 * 9216;
    (recipe.train.batch, recipe.train.tokens, recipe.train.precision) = (72, None, Precision::F32);
    recipe.checkpoint.every = Every::Steps(1000);
    let trained = |name: &str, slices: &str, seed: &str| {
        let more = [("EMULATOR_SEED", seed), ("RUST_LOG", "debug")];
        let (tensors, finished) =
            in_slices(&fixture, &recipe, (name, "1x2", "2"), slices, &more).expect("a run that ends well");
        assert!(finished.stderr.contains("made again on the dense path"), "{}", finished.stderr);
        tensors
    };
    let whole = trained("whole", "1", "0");
    for seed in ["1", "2"] {
        let tensors = trained(&format!("seed_{seed}"), "2", seed);
        assert_eq!(checkpoints::differing(&whole, &tensors), [""; 0], "seed {seed}");
    }
}

#[test]
fn the_doctor_measures_between_gpus() {
    let Some(environment) = environment("2", 0) else { return };
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &recipe(&fixture, "run"));
    for doctor in two_ranks(&["doctor", &path], &environment, |_| vec![]) {
        let output = doctor.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        for part in ["reaches 1 of 1", "NCCL 2.", "by NCCL this one sends"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

/// A GPU waits for others without end: its rank ends it when another is gone.
#[test]
fn a_killed_rank_ends_the_others_with_its_name() {
    let Some(environment) = environment("4", 0) else { return };
    let fixture = Fixture::with_data();
    for (mesh, ranks) in [("1x2", "2"), ("2x2", "4")] {
        let mut recipe = recipe(&fixture, mesh);
        recipe.train.tokens = None;
        recipe.checkpoint.every = Every::Steps(4);
        let path = fixture.save(mesh, &recipe);
        let words = [&launch(ranks)[..], &[&path, "--device", "cuda", "--mesh", mesh]].concat();
        let mut command = sae::sae(&words);
        command.envs(borrowed(&environment)).stdout(Stdio::null());
        let launcher = command.stderr(Stdio::piped()).spawn().expect("sae starts");
        wait_for("a checkpoint", || (!checkpoints::committed(&fixture.path(mesh)).is_empty()).then_some(()));
        let last = processes::children(launcher.id()).into_iter().max().expect("ranks that run");
        processes::signal(last, "KILL");
        let killed = Instant::now();
        let output = launcher.wait_with_output().expect("a child ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(killed.elapsed() < Duration::from_secs(10), "{mesh}: {:?}", killed.elapsed());
        assert!(!output.status.success() && !said.contains("killed: they had not ended"), "{mesh}: {said}");
        let ended = format!("rank {} was ended by signal 9", ranks.parse::<usize>().expect("a number") - 1);
        assert!(said.matches("ERROR").count() == 1 && said.contains(&ended), "{mesh}: {said}");
    }
}

#[test]
fn a_row_that_is_not_finite_is_refused_by_all_gpus() {
    let Some(environment) = environment("4", 0) else { return };
    let fixture = Fixture::with_data();
    let mut rows = plain_rows(1000, 32, 7);
    rows[777 * 32 + 3] = f32::NAN;
    write_shards(&fixture.path("nan"), 32, &rows, loader::Dtype::F32, 400);
    for (mesh, ranks) in MESHES {
        let mut recipe = recipe(&fixture, mesh);
        recipe.data.train = vec![fixture.text("nan")];
        recipe.data.eval = Vec::new();
        recipe.data.scale = Scale::Fixed(1.0);
        recipe.train.tokens = None;
        let path = fixture.save(mesh, &recipe);
        let words = [&launch(ranks)[..], &[&path, "--device", "cuda", "--mesh", mesh]].concat();
        let said = sae::run_with(&words, &borrowed(&environment)).exits(65);
        said.says(&["data.skip=[\"shard-00001.parquet:377\"]", "the weights before this step are in"]);
    }
}

#[test]
fn a_rank_without_a_gpu_of_its_own_is_refused() {
    let (Some(one), Some(two)) = (environment("1", 0), environment("2", 0)) else { return };
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &recipe(&fixture, "run"));
    let words = |ranks, device| [&launch(ranks)[..], &[&path, "--device", device]].concat();
    sae::run_with(&words("2", "cuda"), &borrowed(&one)).exits(64).says(&["have the same GPU", "needs one of its own"]);
    let said = sae::run_with(&words("3", "cuda"), &borrowed(&two)).exits(64);
    said.says(&["3 ranks are on this machine", "2 GPUs"]);
    sae::run_with(&words("2", "cuda:1"), &borrowed(&two)).exits(64).says(&["write --device cuda"]);
    assert!(!fixture.path("run/config.toml").exists(), "nothing was begun");
    let path = fixture.save("on_processors", &recipe(&fixture, "on_processors"));
    let shared = [&launch("2")[..], &[&path, "--device", "auto"]].concat();
    sae::run_with(&shared, &borrowed(&one)).exits(0).says(&["device=\"cpu"]);
}

/// What fails on one GPU the other ranks learn from its rank, wherever they are: in an evaluation they are not asked to save.
#[test]
fn a_gpu_that_fails_in_an_evaluation_ends_all_with_its_cause() {
    let Some(environment) = environment("2", 0) else { return };
    let fixture = Fixture::with_data();
    let mut recipe = recipe(&fixture, "run");
    recipe.data.eval = vec![fixture.text("eval")];
    recipe.eval.every = 2;
    let path = fixture.save("recipe", &recipe);
    let fails = |rank| if rank == 1 { vec![("EMULATOR_FAIL", "launch:150:700".to_owned())] } else { vec![] };
    let ranks = two_ranks(&["train", &path, "--device", "cuda", "--mesh", "1x2"], &environment, fails);
    let started = Instant::now();
    for (rank, process) in ranks.into_iter().enumerate() {
        let output = process.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(71), "rank {rank}: {said}");
        assert!(said.contains("illegal memory access") && !said.contains("saving failed"), "rank {rank}: {said}");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let failure = fixture.json("run/error-1.json");
    assert_eq!((&failure["operation"], &failure["step"]), (&"evaluating".into(), &2.into()), "{failure}");
}

/// A launcher that binds GPUs lets each rank see its own as the first: they are told apart by what they are.
#[test]
fn ranks_that_see_one_gpu_each_take_it() {
    let Some(environment) = environment("1", 0) else { return };
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &recipe(&fixture, "run"));
    let sees = |rank: usize| vec![("EMULATOR_FIRST", rank.to_string())];
    let ranks = two_ranks(&["train", &path, "--device", "auto"], &environment, sees);
    for (rank, process) in ranks.into_iter().enumerate() {
        let output = process.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && (rank > 0 || said.contains("CUDA emulator")), "{said}");
    }
}
