//! What `sae plan` and `sae train --dry-run` say beforehand, held against runs and against arithmetic of its own; and that a dry run
//! fails wherever the run would.

use std::fs;

use loader::synth;
use serde_json::Value;
use tests::checkpoints;
use tests::fixture::{Fixture, json_lines};
use tests::need::{self, SizedDisk};
use tests::root;
use tests::s3::S3;
use tests::sae;
use trainer::recipe::{Every, Recipe};

/// A dictionary that is large beside the headers of its files, and a run of 61 steps with held-out rows.
fn recipe(fixture: &Fixture, run: &str) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.sae.features = 2048;
    recipe.data.eval = vec![fixture.text("eval")];
    (recipe.checkpoint.every, recipe.checkpoint.keep) = (Every::Steps(15), 1000);
    (recipe.eval.every, recipe.eval.rows) = (20, 512);
    recipe
}

fn plan(arguments: &[&str]) -> Value {
    sae::run(&[&["plan"], arguments, &["--json"]].concat()).exits(0).json()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The checkpoints of a run are those of its plan, in number and, within a per cent for headers and manifests, in bytes.
#[test]
fn a_run_writes_the_checkpoints_of_its_plan() {
    let fixture = Fixture::with_data();
    for (run, best) in [("best", true), ("plain", false)] {
        let mut recipe = recipe(&fixture, run);
        recipe.checkpoint.best = best;
        let path = fixture.save(run, &recipe);
        let plan = plan(&[&path]);
        sae::run(&["train", &path]).exits(0);
        let written = checkpoints::committed(&fixture.path(run));
        // At 15, 30, 45, 60 and 61; the evaluations at 20, 40 and 60 are better each than the one before, and 60 is due anyway.
        assert_eq!(written.len(), if best { 7 } else { 5 }, "{written:?}");
        assert_eq!(plan["checkpoints"]["count"], written.len(), "{plan}");
        assert_eq!(plan["checkpoints"]["best_count"], if best { 2 } else { 0 }, "{plan}");
        let files = checkpoints::files(&fixture.path(run).join("checkpoints"));
        let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("a file").len()).sum();
        let of_plan = number(&plan["checkpoints"]["total_bytes"]);
        assert!((bytes as f64 / of_plan - 1.0).abs() < 0.01, "{bytes} bytes, and {of_plan} in the plan");
        let lines = json_lines(&fixture.path(run).join("metrics.jsonl"));
        assert_eq!(plan["evaluations"]["count"], 4, "{} lines", lines.len());
        assert_eq!((&plan["evaluations"]["rows"], &plan["evaluations"]["last_rows"]), (&512.into(), &1024.into()));
    }
}

/// `checkpoint.best = false` writes none for an evaluation and keeps none besides the newest, and may be changed on resume.
#[test]
fn the_best_checkpoint_is_kept_besides_where_the_recipe_says_so() {
    let fixture = Fixture::with_data();
    let mut recipe = recipe(&fixture, "run");
    // Unlearns what it has learned: the first evaluation stays the best.
    (recipe.checkpoint.keep, recipe.train.tokens) = (1, Some(41 * 256));
    (recipe.train.l1, recipe.train.l1_warmup) = (0.0, 0.0);
    let path = fixture.save("run", &recipe);
    sae::run(&["train", &path]).exits(0);
    let best = fixture.path("run/checkpoints/step-0000000040");
    assert!(best.exists(), "{:?}", checkpoints::committed(&fixture.path("run")));
    assert_eq!(checkpoints::committed(&fixture.path("run")).len(), 2, "the newest and the best");

    let set = [
        "--set".to_owned(),
        format!("run.dir={}", fixture.text("none")),
        "--set".to_owned(),
        "checkpoint.best=false".to_owned(),
    ];
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    sae::run(&[&["train", &path], &set[..]].concat()).exits(0);
    assert_eq!(checkpoints::committed(&fixture.path("none")).len(), 1, "the newest alone");
    sae::run(&["train", &path, "--resume", "--set", "checkpoint.best=false", "--set", "checkpoint.buffer_bytes=1MiB"])
        .exits(0);
}

/// The settings that were found in the field: 34M features saved every 10 minutes with 2 GiB a rank.
#[test]
fn checkpoints_of_a_large_run_are_counted_as_an_independent_sum_counts_them() {
    let template = root().join("launch/recipes/paper-34m.toml");
    let template = template.to_str().expect("a plain path");
    let size = ["--width", "4096", "--rows", "8e9", "--gpus", "64", "--price", "2.5"];
    let set = ["--set", "checkpoint.every=10min", "--set", "checkpoint.buffer_bytes=2GiB", "--set", "eval.every=0"];
    let found = plan(&[&[template], &size[..], &set[..]].concat());
    let (time, saved) = (&found["time"], &found["checkpoints"]);

    let (features, width, ranks) = (33_554_432.0, 4096.0, 64.0);
    let bytes = 12.0 * (2.0 * width * features + features + width) + 40.0 * features;
    assert_eq!(number(&saved["bytes"]), bytes);
    // Of each part all but 2 GiB, at a rank's share of 5 GB/s; then 10 minutes of steps.
    let part = 12.0 * (2.0 * width * features / ranks + features / ranks + width) + 40.0 * features / ranks;
    let waits = (part - f64::from(2u32 << 30)) / (5e9 / ranks);
    assert!((number(&saved["waited_s"]) / waits - 1.0).abs() < 1e-6, "{saved}");
    let count = (number(&time["steps_s"]) / 600.0).ceil();
    assert!((number(&saved["count"]) - count).abs() <= 1.0, "{saved}, and {count} in 10 minutes each");
    let waited = count * waits;
    assert!((number(&time["checkpoints_s"]) / waited - 1.0).abs() < 0.02, "{time}, and {waited} s");
    assert!(waited > 18.0 * 3600.0 && count * bytes > 300.0 * f64::from(1u32 << 30) * 1024.0, "18 hours and 300 TiB");
    let total = number(&time["steps_s"]) + number(&time["evaluations_s"]) + number(&time["checkpoints_s"]);
    assert!((number(&time["total_s"]) - total).abs() < 1e-6 * total);
    assert!((number(&found["cost"]) - 2.5 * ranks * total / 3600.0).abs() < 1e-6 * total);

    // What the host can spare instead: training waits for the copy alone.
    let spare = plan(&[&[template], &size[..], &["--set", "checkpoint.every=10min", "--host-memory", "2TB"]].concat());
    assert!((number(&spare["checkpoints"]["waited_s"]) - part / 5e9).abs() < 1e-6, "{spare}");
    assert_eq!(spare["assumed"]["host_memory_bytes"], 2_000_000_000_000u64);
}

/// The templates save as often as their plan recommends, and spend at most two per cent of their time on it.
#[test]
fn templates_save_as_their_plan_recommends() {
    for (name, gpus) in [("paper-1m", "8"), ("paper-4m", "8"), ("paper-34m", "64")] {
        let path = root().join(format!("launch/recipes/{name}.toml"));
        let found = plan(&[path.to_str().expect("a plain path"), "--width", "4096", "--rows", "8e9", "--gpus", gpus]);
        let saved = &found["checkpoints"];
        assert_eq!(saved["every"], saved["recommended_every"], "{name}: {saved}");
        let time = &found["time"];
        assert!(number(&time["checkpoints_s"]) < 0.02 * number(&time["total_s"]), "{name}: {time}");
    }
}

#[test]
fn a_plan_for_the_processor_is_measured() {
    let fixture = Fixture::with_data();
    let path = fixture.save("run", &recipe(&fixture, "run"));
    let found = plan(&[&path, "--cpu", "--price", "0.5"]);
    assert_eq!((&found["measured"], found["mesh"].as_str()), (&true.into(), Some("1x1")), "{found}");
    assert!(found["device"].as_str().is_some_and(|device| device.starts_with("cpu, ")), "{found}");
    assert!(number(&found["tokens_per_s"]) > 0.0 && number(&found["cost"]) > 0.0, "{found}");
    // W_enc, b_enc, W_dec and b_dec with two moments each, at least.
    let least = 12 * (2 * 32 * 2048 + 2048 + 32);
    let memory = &found["memory"];
    assert!(number(&memory["weights_bytes"]) + number(&memory["moments_bytes"]) >= f64::from(least), "{memory}");
    let told = sae::run(&["plan", &path, "--cpu"]).exits(0).stdout;
    assert!(told.contains("tokens/s, measured here") && !told.contains("GPU-hours"), "{told}");
    assert!(!fixture.path("run").exists(), "nothing was left");
}

/// Wherever a run would end at its start, the dry run ends with the same exit code, and leaves nothing.
#[test]
fn a_dry_run_fails_where_the_run_would() {
    let fixture = Fixture::with_data();
    fs::write(fixture.path("file"), "x").expect("written");
    fs::write(fixture.path("bad.safetensors"), "x").expect("written");
    let spec = synth::Spec { features: 16, width: 8, rows: 600, shards: 1, active: 2.0, ..Default::default() };
    fixture.synth("narrow", &spec);
    let path = fixture.save("run", &recipe(&fixture, "run"));
    sae::run(&["train", &fixture.save("taken", &recipe(&fixture, "taken"))]).exits(0);
    let set = |key: &str, name: &str| format!("{key}={}", fixture.text(name));
    for (code, sets, says) in [
        (73, vec![set("run.dir", "file/run")], "file/run"),
        (64, vec![set("run.dir", "taken")], "already holds a run"),
        (65, vec!["data.column=nothing".to_owned()], "nothing"),
        (65, vec!["data.filter.positions=[0]".to_owned()], "pos"),
        (64, vec![set("train.init_from", "bad.safetensors"), "train.init_space=raw".to_owned()], "bad.safetensors"),
        (64, vec![set("train.init_from", "taken"), "sae.features=1024".to_owned()], "1024"),
        (64, vec![set("data.eval", "narrow")], "same layer"),
        (64, vec!["data.skip=[\"no.parquet:1\"]".to_owned()], "data.skip"),
        (64, vec!["train.tokens=1e9".to_owned()], "train.tokens"),
    ] {
        let words: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let before = checkpoints::files(&fixture.path(""));
        sae::run(&[&["train", &path, "--dry-run"], &words[..]].concat()).exits(code).says(&[says]);
        assert_eq!(checkpoints::files(&fixture.path("")), before, "{sets:?} left something");
        sae::run(&[&["train", &path], &words[..]].concat()).exits(code).says(&[says]);
    }
    // Before synthetic shards are made, too.
    let (made, held_out) = (set("data.train", "made"), set("data.eval", "made-eval"));
    let synthetic = ["train", &path, "--dry-run", "--set", "data.synth.width=8", "--set", &made, "--set", &held_out];
    let weights = set("train.init_from", "bad.safetensors");
    let started = ["--set", &weights, "--set", "train.init_space=raw"];
    sae::run(&[&synthetic[..], &started].concat()).exits(64).says(&["bad.safetensors"]);
    sae::run(&synthetic).exits(0);
    sae::run(&[&synthetic[..], &["--set", "train.tokens=1e9"]].concat()).exits(64).says(&["train.tokens"]);
    let few = ["--set", "data.synth.rows=5000", "--set", "train.batch=64"];
    sae::run(&[&synthetic[..], &few].concat()).exits(0).says(&["5000 rows in batches of 64 give 79 of the 100 steps"]);
    assert!(!fixture.path("made").exists(), "nothing is made");
    // 16 tiles of features.
    let ranks = ["--rank", "0", "--ranks", "17", "--local-rank", "0", "--local-ranks", "17", "--attempt", "a"];
    let refused =
        sae::run(&[&["train", &path, "--dry-run", "--mesh", "1x17", "--device", "cpu"], &ranks[..]].concat()).exits(64);
    assert!(refused.stderr.contains("tiles"), "{}", refused.stderr);
}

/// Ranks meet in the run's folder, of which a dry run leaves nothing either.
#[test]
fn a_dry_run_of_several_ranks_leaves_nothing() {
    let fixture = Fixture::with_data();
    let path = fixture.save("run", &recipe(&fixture, "run"));
    let finished = sae::run(&["launch", "local", "--ranks", "2", &path, "--dry-run", "--device", "cpu"]).exits(0);
    assert!(finished.stdout.contains("on several ranks or GPUs: sae plan"), "{}", finished.stdout);
    assert!(!fixture.path("run").exists(), "{:?}", checkpoints::files(&fixture.path("run")));
}

#[test]
fn a_full_disk_is_seen_beforehand() {
    let Some(disk) = SizedDisk::mount(3 << 20) else { return };
    let fixture = Fixture::with_data();
    let mut recipe = recipe(&fixture, "run");
    recipe.run.dir = disk.path().join("run").to_str().expect("a plain path").to_owned();
    let path = fixture.save("run", &recipe);
    // Seven checkpoints of 1.7 MB do not fit, and the run may begin.
    sae::run(&["train", &path, "--dry-run"]).exits(0).says(&["free, and checkpoints take up to", "checkpoint.keep"]);
    let rest = vec![0; 4 << 20];
    let _ = fs::write(disk.path().join("rest"), &rest);
    sae::run(&["train", &path, "--dry-run"]).exits(73).says(&["cannot write"]);
    assert_eq!(checkpoints::files(disk.path()).len(), 1, "nothing was left");
}

#[test]
fn a_run_of_few_steps_is_warned_of_and_a_longer_one_is_not() {
    let fixture = Fixture::with_data();
    let path = fixture.save("run", &recipe(&fixture, "run"));
    let says = "15401 rows in batches of 256 give 61 of the 100 steps";
    sae::run(&["train", &path, "--dry-run"]).exits(0).says(&[says]);
    sae::run(&["train", &path]).exits(0).says(&[says]);
    let longer =
        sae::run(&["train", &path, "--dry-run", "--set", "train.batch=128", "--set", "run.dir=elsewhere"]).exits(0);
    assert!(!longer.stderr.contains("steps below which"), "{}", longer.stderr);
}

/// A run in object storage: a dry run leaves no object there and no folder here.
#[test]
fn a_dry_run_leaves_nothing_in_object_storage() {
    let Some(python) = need::python() else { return };
    let s3 = S3::start(&python);
    let fixture = Fixture::with_data();
    let mut recipe = recipe(&fixture, "run");
    let mut environment = s3.environment();
    environment.push(("TMPDIR".to_owned(), fixture.text("temporary")));
    fs::create_dir(fixture.path("temporary")).expect("a folder");
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    recipe.run.dir = "s3://bucket/runs/a".to_owned();
    let path = fixture.save("run", &recipe);
    sae::run_with(&["train", &path, "--dry-run"], &environment).exits(0);
    assert_eq!(s3.find("runs/a/dry-run.probe"), None);
    assert_eq!(fs::read_dir(fixture.path("temporary")).expect("a folder").count(), 0);
    recipe.run.dir = "s3://absent/runs/a".to_owned();
    let path = fixture.save("absent", &recipe);
    sae::run_with(&["train", &path, "--dry-run"], &environment).exits(64).says(&["the bucket does not exist"]);
}
