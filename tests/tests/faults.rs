//! Kills, damage, full disks and bad input: what a run survives, and what it says when it cannot go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use loader::{Dtype, Store, synth};
use tests::checkpoints::{self, Change};
use tests::fixture::{Fixture, Numbers, json, plain_rows, text, write_shards};
use tests::kills::{self, soak};
use tests::need::{self, SizedDisk};
use tests::proxy::{Fault, Proxy};
use tests::s3::S3;
use tests::sae;
use trainer::checkpoint;
use trainer::checkpoint::FORMAT;
use trainer::recipe::{Checkpoint, Every, Order, Recipe, Scale};

/// Kills here; the command in CONTRIBUTING.md does hundreds.
const KILLS: u32 = 5;

#[test]
fn killed_runs_resume_to_the_same_bits() {
    let fixture = Fixture::with_data();
    let tally = soak(&fixture, KILLS, 7, &mut |_| ());
    assert!(tally.kills >= KILLS && tally.finished >= 1, "{tally:?}");
}

/// The comparison behind every resume test sees a checkpoint that is whole but wrong.
#[test]
fn a_wrong_checkpoint_is_caught() {
    let fixture = Fixture::with_data();
    let mut recipe = kills::recipe(&fixture, "whole");
    recipe.log.rows = false;
    sae::run(&["train", &fixture.save("whole", &recipe)]).exits(0);
    recipe.run.dir = fixture.text("half");
    let path = fixture.save("half", &recipe);
    half(&path, &fixture.path("half"));
    let whole = checkpoints::last(&fixture.path("whole"));
    let resume = |name: &str| {
        let run_dir = format!("run.dir={}", fixture.text(name));
        sae::run(&["train", &path, "--resume", "--set", &run_dir])
    };
    checkpoints::copy(&fixture.path("half"), &fixture.path("unchanged"));
    resume("unchanged").exits(0);
    assert_eq!(checkpoints::differing(&whole, &checkpoints::last(&fixture.path("unchanged"))), Vec::<String>::new());
    for change in [Change::DropMoments, Change::MoveCursor, Change::NudgeWeight] {
        let name = format!("{change:?}");
        checkpoints::copy(&fixture.path("half"), &fixture.path(&name));
        checkpoints::tamper(&fixture.path(&name), change);
        let resumed = resume(&name);
        // A moved cursor may be refused. The others look whole: they resume, and come to other weights.
        if matches!(change, Change::MoveCursor) && resumed.code != Some(0) {
            continue;
        }
        resumed.exits(0);
        let differing = checkpoints::differing(&whole, &checkpoints::last(&fixture.path(&name)));
        assert!(differing.iter().any(|file| file.starts_with("weights-")), "{name} went unseen: {differing:?}");
    }
}

/// Starts a run and stops it once it has saved a checkpoint or two.
fn half(recipe: &str, run: &Path) {
    let mut command = sae::sae(&["train", recipe]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sae starts");
    while checkpoints::committed(run).len() < 2 && child.try_wait().expect("a child has a state").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    sae::signal(&child, "TERM");
    assert_eq!(child.wait().expect("a child can be waited for").code(), Some(75));
}

/// Truncations and flipped bits in every file of a checkpoint: each is seen, the file is named, and the checkpoint before
/// it is used.
#[test]
fn a_damaged_checkpoint_is_seen_named_and_passed_over() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.checkpoint.every = Every::Steps(40);
    sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
    let store = Store::open(&recipe.run.dir).expect("a run");
    let [older, newest] = checkpoints::committed(&fixture.path("run")).try_into().expect("two checkpoints");
    let mut numbers = Numbers::new(3);
    let mut damage = 0;
    for file in checkpoints::files(&newest) {
        let whole = fs::read(&file).expect("read");
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        // Of COMMIT the hash counts, and not the end of the line.
        let length = if name == "COMMIT" { 32 } else { whole.len() };
        for round in 0..60 {
            let mut damaged = whole.clone();
            match round {
                // Ends and headers, where formats are fragile.
                0 => damaged.clear(),
                1..20 => damaged.truncate(numbers.below(length)),
                20..40 => damaged[numbers.below(length.min(600))] ^= 1 << numbers.below(8),
                _ => damaged[numbers.below(length)] ^= 1 << numbers.below(8),
            }
            fs::write(&file, &damaged).expect("written");
            let found = checkpoint::newest(&store).expect("another one is whole").expect("a checkpoint");
            assert!(older.ends_with(&found.folder), "{name} round {round}: {} passed for whole", found.folder);
            let error = checkpoint::open(&text(&newest)).expect_err("it is damaged").to_string();
            assert!(error.contains(&name), "{name} round {round} is not named: {error}");
            damage += 1;
        }
        fs::remove_file(&file).expect("removed");
        let found = checkpoint::newest(&store).expect("another one is whole").expect("a checkpoint");
        assert!(older.ends_with(&found.folder), "without {name} {} passed for whole", found.folder);
        fs::write(&file, &whole).expect("restored");
    }
    assert!(damage >= 240, "{damage} kinds of damage");
    assert!(newest.ends_with(checkpoint::newest(&store).expect("whole").expect("a checkpoint").folder), "restored");
}

#[test]
fn a_run_goes_on_before_the_damage_and_not_at_all_when_all_is_damaged() {
    let fixture = Fixture::with_data();
    let recipe = kills::recipe(&fixture, "whole");
    sae::run(&["train", &fixture.save("whole", &recipe)]).exits(0);
    let path = fixture.save("half", &Recipe { run: trainer::recipe::Run { dir: fixture.text("half") }, ..recipe });
    half(&path, &fixture.path("half"));
    let newest = checkpoints::committed(&fixture.path("half")).pop().expect("a checkpoint");
    let damaged = newest.join("optimizer-000000.safetensors");
    let whole = fs::read(&damaged).expect("read");
    fs::write(&damaged, &whole[..whole.len() / 2]).expect("written");

    checkpoints::copy(&fixture.path("half"), &fixture.path("lost"));
    for folder in checkpoints::committed(&fixture.path("lost")) {
        fs::write(folder.join("shared.safetensors"), "gone").expect("written");
    }
    let run_dir = format!("run.dir={}", fixture.text("lost"));
    sae::run(&["train", &path, "--resume", "--set", &run_dir])
        .exits(65)
        .says(&["no intact checkpoint", "shared.safetensors"]);

    let named = ["optimizer-000000.safetensors", "trying the checkpoint before it"];
    sae::run(&["train", &path, "--resume"]).exits(0).says(&named);
    kills::assert_same_run(&fixture.path("whole"), &fixture.path("half"));
}

/// What an attempt left that never committed is no checkpoint, and a later save of the step gets a name of its own.
/// A run that fell back behind damaged checkpoints of later steps keeps what it commits from then on.
#[test]
fn retention_after_a_fall_back_keeps_what_was_committed() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    (recipe.checkpoint.every, recipe.checkpoint.keep) = (Every::Steps(20), 10);
    sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
    let folders = checkpoints::committed(&fixture.path("run"));
    for later in &folders[2..] {
        fs::write(later.join("shared.safetensors"), "gone").expect("written");
    }
    let store = Store::open(&recipe.run.dir).expect("a run");
    let found = checkpoint::newest(&store).expect("one is whole").expect("a checkpoint");
    let mut known = checkpoint::Known::until(&store, &found).expect("manifests are read");
    checkpoint::retain(&store, &Checkpoint { keep: 1, ..Checkpoint::default() }, &mut known)
        .expect("old ones are removed");
    assert_eq!(checkpoint::newest(&store).expect("one is whole").expect("a checkpoint").folder, found.folder);
    assert!(!folders[0].exists() && folders[1].exists());
}

#[test]
fn biases_are_calibrated_on_finite_rows_alone() {
    let fixture = Fixture::new();
    let mut rows = plain_rows(2000, 16, 5);
    rows[7 * 16] = f32::NAN;
    write_shards(&fixture.path("train"), 16, &rows, Dtype::F32, 2000);
    let mut recipe = fixture.recipe("run");
    (recipe.sae.bias_init, recipe.sae.bias_init_l0) = (trainer::recipe::BiasInit::Calibrated, 1.0);
    recipe.data.filter.finite = true;
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path]).exits(0);
    let summary = fixture.json("run/summary.json");
    assert!(summary["l0"].as_f64().is_some_and(|l0| l0 > 0.0), "{summary}");
    assert_eq!(summary["filtered"], 1);
}

#[test]
fn an_attempt_without_commit_is_ignored() {
    let fixture = Fixture::with_data();
    let recipe = kills::recipe(&fixture, "whole");
    sae::run(&["train", &fixture.save("whole", &recipe)]).exits(0);
    let path = fixture.save("half", &Recipe { run: trainer::recipe::Run { dir: fixture.text("half") }, ..recipe });
    half(&path, &fixture.path("half"));
    let newest = checkpoints::committed(&fixture.path("half")).pop().expect("a checkpoint");
    let step = json(&newest.join("manifest.json"))["step"].as_u64().expect("a step");
    let next = (step / 20 + 1) * 20;
    let torn = fixture.path(format!("half/checkpoints/step-{next:010}/attempt-0001"));
    checkpoints::copy(&newest, &torn);
    fs::remove_file(torn.join("COMMIT")).expect("removed");
    sae::run(&["train", &path, "--resume", "--set", "checkpoint.keep=100"]).exits(0);
    kills::assert_same_run(&fixture.path("whole"), &fixture.path("half"));
    let second = torn.with_file_name("attempt-0002");
    assert!(second.join("COMMIT").exists(), "step {next} was saved as another attempt");
}

#[test]
fn a_checkpoint_of_a_later_format_is_refused() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    sae::run(&["train", &path]).exits(0);
    let newest = checkpoints::committed(&fixture.path("run")).pop().expect("a checkpoint");
    let manifest = fs::read_to_string(newest.join("manifest.json")).expect("read");
    let later = manifest.replacen(&format!("\"format\": {FORMAT}"), "\"format\": 99", 1);
    assert_ne!(manifest, later);
    fs::write(newest.join("manifest.json"), &later).expect("written");
    let hash = xxhash_rust::xxh3::xxh3_128(later.as_bytes());
    fs::write(newest.join("COMMIT"), format!("{hash:032x}\n")).expect("written");
    let parts = ["checkpoint format 99", &format!("reads formats up to {FORMAT}"), "use the program that wrote it"];
    sae::run(&["train", &path, "--resume"]).exits(64).says(&parts);
    sae::run(&["eval", &text(&newest), "--data", &fixture.text("train")]).exits(64).says(&parts);
}

/// The disk fills up during a run: it says so and leaves the checkpoint before intact, from which it goes on when there is
/// room.
#[test]
fn a_full_disk_loses_nothing() {
    let fixture = Fixture::with_data();
    let mut recipe = kills::recipe(&fixture, "whole");
    recipe.checkpoint.keep = 100;
    sae::run(&["train", &fixture.save("whole", &recipe)]).exits(0);
    let size: u64 = checkpoints::last(&fixture.path("whole")).values().map(|bytes| bytes.len() as u64).sum();
    // Ends inside the second checkpoint, inside the third, and early enough that not even one fits.
    for (share, saved) in [(1.7, true), (2.4, true), (2.9, true), (0.5, false)] {
        let Some(disk) = SizedDisk::mount((share * size as f64) as u64) else { return };
        let run = disk.path().join("run");
        recipe.run.dir = text(&run);
        let path = fixture.save("full", &recipe);
        let finished = sae::run(&["train", &path]).exits(73);
        assert!(finished.stderr.contains("cannot write") && finished.stderr.contains("full"), "{}", finished.stderr);
        assert_eq!(checkpoints::unfinished(&run), Vec::<PathBuf>::new(), "half-written files are removed");
        let store = Store::open(&recipe.run.dir).expect("a run");
        let newest = checkpoint::newest(&store).expect("what is committed is whole");
        assert_eq!(newest.is_some(), saved, "share {share}");
        disk.resize(1 << 30);
        sae::run(&["train", &path, "--resume"]).exits(0);
        kills::assert_same_run(&fixture.path("whole"), &run);
    }
}

/// What a user gets wrong: one clear message and the right exit code each, before anything is trained.
#[test]
fn wrong_recipes_and_arguments_are_explained() {
    let fixture = Fixture::with_data();
    let good = fixture.recipe("run");
    let path = fixture.save("good", &good);
    let set = |set: &str| sae::run(&["train", &path, "--set", set]).exits(64);
    set("train.bacth=3").says(&["train.bacth", "did you mean train.batch"]);
    set("sae.feature=3").says(&["sae.feature", "did you mean sae.features"]);
    set("train.batch=0").says(&["train.batch must be at least 1"]);
    set("train.batch=many").says(&["train.batch", "many"]);
    set("train.lr=-1").says(&["train.lr must be a number above 0"]);
    set("train.l1_warmup=1.5").says(&["train.l1_warmup must be a share"]);
    set("data.order=random").says(&["data.order", "random", "sequential"]);
    set("checkpoint.every=soon").says(&["checkpoint.every", "soon", "10min"]);
    set("train.tokens=1000000").says(&["train.tokens is 1000000", "15401 rows"]);
    set("data.skip=[\"nowhere.parquet:1\"]").says(&["nowhere.parquet:1", "file.parquet:row"]);
    set("train.l1").says(&["KEY=VALUE"]);
    set("eval.every=5").says(&["eval.every", "no data.eval"]);
    sae::run(&["train", &fixture.text("nowhere.toml")]).exits(64).says(&["no such recipe"]);
    let broken = fixture.save_text("broken", "[data\ntrain = 1");
    sae::run(&["train", &broken]).exits(64).says(&["broken.toml"]);
    let missing = fixture.save_text("missing", "[data]\ntrain = \"x\"\n[sae]\n[train]\n[run]\ndir = \"y\"\n");
    sae::run(&["train", &missing]).exits(64).says(&["sae.features is missing"]);
    let never = format!("run.dir={}", fixture.text("never"));
    sae::run(&["train", &path, "--resume", "--set", &never]).exits(64).says(&[
        "holds no run to resume",
        "leave out --resume",
        "--resume-or-start",
    ]);
    assert!(!fixture.path("run/metrics.jsonl").exists(), "nothing was trained");
    sae::run(&["eval", &fixture.text("train"), "--data", &fixture.text("eval")])
        .exits(65)
        .says(&["no committed checkpoint"]);
}

/// What a requeued job calls: stopped while it makes its data, started again, and once more when all is done.
#[test]
fn one_command_starts_and_goes_on() {
    let fixture = Fixture::new();
    let mut recipe = fixture.recipe("run");
    let rows = 400_000;
    recipe.data.synth =
        Some(synth::Spec { features: 64, width: 32, rows, shards: 2, active: 4.0, ..Default::default() });
    recipe.data.train = vec![fixture.text("made")];
    recipe.train.tokens = Some(5000);
    let path = fixture.save("recipe", &recipe);
    let errors = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = sae::sae(&["train", &path, "--resume-or-start"]);
    let mut child =
        command.stdout(Stdio::null()).stderr(errors.reopen().expect("a handle")).spawn().expect("sae starts");
    while !fixture.path("made/synth.json").exists() && child.try_wait().expect("a child has a state").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    sae::signal(&child, "TERM");
    let status = child.wait().expect("a child can be waited for");
    let said = fs::read_to_string(errors.path()).expect("standard error is read");
    assert_eq!(status.code(), Some(75), "{said}");
    assert!(said.contains("stopped while making synthetic shards") && !fixture.path("run").exists(), "{said}");
    assert!(checkpoints::unfinished(&fixture.path("made")).is_empty(), "half a shard was left");
    for _ in 0..2 {
        sae::run(&["train", &path, "--resume-or-start"]).exits(0);
        assert_eq!(fixture.json("run/summary.json")["tokens"], 5000);
    }
    sae::run(&["train", &path, "--resume-or-start", "--resume"]).exits(64).says(&["cannot be used with"]);
}

/// A start that was refused leaves nothing that a corrected one would stumble over.
#[test]
fn a_refused_start_can_be_corrected() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    for wrong in ["data.skip=[\"nowhere.parquet:1\"]", "train.init_from=nowhere.safetensors", "data.prefetch_bytes=1"] {
        sae::run(&["train", &path, "--set", wrong]).exits_with_one_of(&[64, 65]);
    }
    sae::run(&["train", &path]).exits(0);
}

#[test]
fn a_folder_that_holds_a_run_is_guarded() {
    let fixture = Fixture::with_data();
    let recipe = kills::recipe(&fixture, "run");
    let path = fixture.save("recipe", &recipe);
    let mut command = sae::sae(&["train", &path]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sae starts");
    while !fixture.path("run/config.toml").exists() && child.try_wait().expect("a child has a state").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    // Frozen, it cannot end before the other one has looked.
    sae::signal(&child, "STOP");
    sae::run(&["train", &path, "--resume"]).exits(64).says(&["in use by another process"]);
    sae::signal(&child, "CONT");
    assert!(child.wait().expect("a child can be waited for").success());

    sae::run(&["train", &path]).exits(64).says(&["already holds a run", "--resume"]);
    let changed = ["train", &path, "--resume", "--set", "train.lr=0.5", "--set", "train.batch=64"];
    sae::run(&changed)
        .exits(64)
        .says(&["train.lr: the run has 0.001, the recipe says 0.5", "train.batch: the run has 32, the recipe says 64"]);
    write_shards(&fixture.path("narrow"), 16, &plain_rows(15_401, 16, 5), Dtype::F16, 6000);
    let narrow = format!("data.train={}", fixture.text("narrow"));
    sae::run(&["train", &path, "--resume", "--set", &narrow]).exits(64).says(&["data (manifest identity) was"]);
    let before = checkpoints::last(&fixture.path("run"));
    sae::run(&["train", &path, "--resume"]).exits(0);
    assert_eq!(before, checkpoints::last(&fixture.path("run")), "a finished run stays what it is");
}

/// Data that cannot be used: which file, and what is wrong.
#[test]
fn unusable_data_is_named() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    let train_on = |folder: &str| {
        let data = format!("data.train={}", fixture.text(folder));
        sae::run(&["train", &path, "--set", &data])
    };
    train_on("nowhere").exits(65).says(&["nowhere"]);
    fs::create_dir(fixture.path("empty")).expect("a folder is made");
    train_on("empty").exits(65).says(&["empty"]);

    let narrow = fixture.path("narrow");
    write_shards(&narrow, 16, &plain_rows(100, 16, 5), Dtype::F16, 50);
    let eval = format!("data.eval={}", text(&narrow));
    sae::run(&["train", &path, "--set", &eval]).exits(64).says(&["width 32", "width 16"]);

    // Shards of other makers come without a manifest: what each holds is in its footer.
    let mixed = fixture.path("mixed");
    write_shards(&mixed, 32, &plain_rows(100, 32, 5), Dtype::F16, 100);
    for (name, width, dtype) in [("wide", 64, Dtype::F16), ("long", 32, Dtype::F32)] {
        let other = fixture.path(format!("other-{name}"));
        write_shards(&other, width, &plain_rows(100, width, 5), dtype, 100);
        let _ = fs::remove_file(mixed.join("manifest.json"));
        fs::copy(shards(&other).remove(0), mixed.join("z.parquet")).expect("copied");
        train_on("mixed").exits(65).says(&["z.parquet"]);
    }

    fs::write(mixed.join("z.parquet"), "PAR1 is how Parquet files begin").expect("written");
    train_on("mixed").exits(65).says(&["z.parquet"]);
    fs::write(mixed.join("z.parquet"), "").expect("written");
    train_on("mixed").exits(0).says(&["left out: 1 of zero bytes", "z.parquet"]);
}

fn shards(folder: &Path) -> Vec<PathBuf> {
    let is_shard = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
    checkpoints::files(folder).into_iter().filter(is_shard).collect()
}

/// A shard that is cut short or has other bytes than its manifest says: never trained on, never a hang, always named; with
/// its row group on the skip list the run goes on.
#[test]
fn a_damaged_shard_stops_the_run_and_is_named() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.data.order = Order::Sequential;
    recipe.data.scale = Scale::Fixed(3.0);
    let path = fixture.save("recipe", &recipe);
    let shard = shards(&fixture.path("train")).remove(1);
    let name = shard.file_name().expect("a name").to_string_lossy().into_owned();
    let whole = fs::read(&shard).expect("read");
    let mut numbers = Numbers::new(11);
    let mut damaged = Vec::new();
    for length in [0, 3, 23, whole.len() / 2, whole.len() - 1] {
        damaged.push(whole[..length].to_vec());
    }
    for _ in 0..5 {
        let mut flipped = whole.clone();
        // Among the rows: the footer comes after them.
        flipped[100 + numbers.below(whole.len() / 2)] ^= 1 << numbers.below(8);
        damaged.push(flipped);
    }
    for (case, bytes) in damaged.iter().enumerate() {
        fs::write(&shard, bytes).expect("written");
        let run_dir = format!("run.dir={}", fixture.text(&format!("run-{case}")));
        let finished = sae::run(&["train", &path, "--set", &run_dir]);
        assert_eq!(finished.code, Some(65), "case {case}: {}", finished.stderr);
        assert!(finished.stderr.contains(&name), "case {case}: {}", finished.stderr);
    }
    let run_dir = format!("run.dir={}", fixture.text("skipped"));
    let skip = format!("data.skip=[\"{name}#0\"]");
    sae::run(&["train", &path, "--set", &run_dir, "--set", &skip]).exits(0);
    let tokens = fixture.json("skipped/summary.json")["tokens"].as_u64().expect("tokens");
    assert!(tokens < 15_401, "{tokens}");
    let report = sae::run(&["inspect", &fixture.text("train")]).exits(65);
    assert!(report.stderr.contains(&name), "{}", report.stderr);
}

/// NaN and infinity never reach the weights: the run stops before the update, names the rows, and goes on without them.
#[test]
fn rows_with_nan_stop_the_run_before_they_do_harm() {
    let fixture = Fixture::new();
    let mut rows = plain_rows(4000, 32, 9);
    rows[2500 * 32 + 3] = f32::NAN;
    rows[2510 * 32] = f32::INFINITY;
    write_shards(&fixture.path("train"), 32, &rows, Dtype::F16, 1000);
    let mut recipe = fixture.recipe("run");
    recipe.data.order = Order::Sequential;
    recipe.log.rows = true;
    let path = fixture.save("recipe", &recipe);
    let report = sae::run(&["inspect", &fixture.text("train"), "--json"]).exits(0).json();
    assert_eq!(report["non_finite"].as_u64(), Some(2));

    let finished = sae::run(&["train", &path]).exits(65);
    let (nan, infinite) = ("shard-00002.parquet:500", "shard-00002.parquet:510");
    assert!(finished.stderr.contains(nan) && finished.stderr.contains(infinite), "{}", finished.stderr);
    let newest = checkpoints::committed(&fixture.path("run")).pop().expect("a checkpoint");
    assert_eq!(json(&newest.join("manifest.json"))["step"].as_u64(), Some(9), "the weights before the step are saved");
    let failure = fixture.json("run/error-0.json");
    assert_eq!(failure["exit_code"].as_u64(), Some(65));
    let error = failure["error"].as_str().expect("words");
    let command = format!("sae train {path} --resume --set 'data.skip=");
    assert!(error.contains(&command), "a launcher says from it how to go on: {error}");

    sae::run(&["train", &path, "--resume"]).exits(65);
    let skip = format!("data.skip=[\"{nan}\", \"{infinite}\"]");
    assert!(finished.stderr.contains("--resume"), "the message says how to go on: {}", finished.stderr);
    sae::run(&["train", &path, "--resume", "--set", &skip]).exits(0);
    let used = kills::rows(&fixture.path("run"));
    assert_eq!(used.len(), 3998);
    assert!(!used.iter().any(|row| row == nan || row == infinite));
    for bytes in checkpoints::last(&fixture.path("run")).values() {
        let tensors = safetensors::SafeTensors::deserialize(bytes).expect("tensors");
        for (name, tensor) in tensors.tensors().iter().filter(|(_, tensor)| tensor.dtype() == safetensors::Dtype::F32) {
            let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            assert!(values.clone().all(f32::is_finite), "{name} is finite");
        }
    }
    // The list only grows.
    sae::run(&["train", &path, "--resume"]).exits(64).says(&["data.skip may only grow", nan]);
}

/// An evaluation that fails costs no step: what was trained before it is saved, by all ranks, and a resumed run comes back to it.
#[test]
fn held_out_rows_that_cannot_be_read_cost_no_step() {
    let fixture = Fixture::with_data();
    let copy = |name: &str| {
        let folder = fixture.path(name);
        fs::create_dir(&folder).expect("a folder");
        for file in checkpoints::files(&fixture.path("eval")) {
            fs::copy(&file, folder.join(file.file_name().expect("a name"))).expect("a copy");
        }
        folder
    };
    for words in [&["train"][..], &["launch", "local", "--restarts", "0", "--ranks", "2", "--mesh", "1x2"]] {
        let run = format!("run-{}", words.len());
        let damaged = copy(&format!("eval-{}", words.len()));
        let shard = shards(&damaged).remove(0);
        let whole = fs::read(&shard).expect("read");
        let mut bytes = whole.clone();
        // Among the rows: the footer comes after them.
        bytes[whole.len() / 2] ^= 1;
        fs::write(&shard, bytes).expect("written");
        let mut recipe = fixture.recipe(&run);
        recipe.data.eval = vec![text(&damaged)];
        recipe.eval.every = 60;
        recipe.checkpoint.every = Every::Steps(50);
        let path = fixture.save(&run, &recipe);
        sae::run(&[words, &[&path]].concat()).exits(65).says(&["shard-00000.parquet"]);
        let newest = checkpoints::committed(&fixture.path(&run)).pop().expect("a checkpoint");
        assert_eq!(json(&newest.join("manifest.json"))["step"].as_u64(), Some(60), "{words:?}");

        fs::write(&shard, whole).expect("mended");
        sae::run(&[words, &[&path, "--resume"]].concat()).exits(0);
        let manifests = checkpoints::committed(&fixture.path(&run));
        let mut manifests = manifests.iter().map(|folder| json(&folder.join("manifest.json")));
        let measured = |manifest: serde_json::Value| manifest["step"] == 60 && !manifest["held_out"].is_null();
        assert!(manifests.any(measured), "{words:?}: measured after all");
    }
}

#[test]
fn threads_that_cannot_be_had_are_said() {
    let fixture = Fixture::new();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    // 3 GiB of addresses are too few for the stacks of 8 threads and enough for whatever else is allocated.
    let limited = format!("ulimit -v 3145728; exec {} \"$@\"", text(sae::binary()));
    let args = ["-c", &limited, "sae", "train", &path, "--dry-run", "--set", "train.threads=8"];
    let stacks = ("RUST_MIN_STACK", (1 << 30).to_string());
    let output = Command::new("sh").args(args).envs([stacks]).output().expect("sh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{said}");
    assert!(said.contains("no worker threads") && said.contains("train.threads"), "{said}");
}

#[test]
fn missing_credentials_are_said_at_once() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    let finished = sae::run(&["train", &path, "--set", "data.train=s3://some-bucket/acts"]).exits(64);
    assert!(finished.stderr.contains("AWS_ACCESS_KEY_ID"), "{}", finished.stderr);
    assert!(!fixture.path("run").exists(), "nothing was begun");
}

/// Secrets in the environment and in URLs appear nowhere: not in messages at the finest level, not in the run's files.
#[test]
fn secrets_appear_nowhere() {
    const CANARY: &str = "c4n4ry-never-print-me";
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", CANARY),
        ("AWS_SESSION_TOKEN", CANARY),
        ("RUST_LOG", "trace"),
    ];
    let in_url = format!("data.train=s3://key:{CANARY}@bucket/acts");
    let in_query = format!("data.train=https://host.invalid/acts?sig={CANARY}");
    for set in ["train.seed=1", &in_url, &in_query, "data.train=s3://bad bucket/x"] {
        let finished = sae::run_with(&["train", &path, "--set", set], &environment);
        assert_eq!(finished.code == Some(0), set == "train.seed=1", "{set}: {}", finished.stderr);
        assert!(!finished.stderr.contains(CANARY) && !finished.stdout.contains(CANARY), "{set}: {}", finished.stderr);
    }
    for file in checkpoints::files(&fixture.path("run")) {
        let bytes = fs::read(&file).expect("read");
        assert!(!String::from_utf8_lossy(&bytes).contains(CANARY), "{}", file.display());
    }
}

/// A store that throttles, resets connections or sends less than was asked for delivers the same rows a little later; one that
/// never does better is distinguished from damaged data. Read by a glob that no manifest lies beside, so that no checksum helps.
#[test]
fn storage_that_stumbles_delivers_the_same_rows() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let run = |address: &str, arguments: &[&str]| {
        let environment = s3.environment_by(address);
        let pairs: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        sae::run_with(arguments, &pairs)
    };
    let shape = ["--features", "64", "--width", "32", "--rows", "6007", "--shards", "3", "--active", "4"];
    run(s3.address(), &[&["synth", "--out", "s3://bucket/acts"][..], &shape].concat()).exits(0);
    let inspect = ["inspect", "s3://bucket/*/*.parquet", "--json"];
    let expected = run(s3.address(), &inspect).exits(0).json();
    assert_eq!((expected["looked_at"].as_u64(), &expected["manifest"]), (Some(6007), &"absent".into()));
    for fault in [Fault::SlowDown, Fault::Reset, Fault::Short] {
        let proxy = Proxy::start(s3.address(), fault, 2);
        let report = run(&proxy.address, &inspect).exits(0).json();
        assert_eq!((proxy.spoilt(), report), (2, expected.clone()), "{fault:?}");
    }
    let proxy = Proxy::start(s3.address(), Fault::Short, u32::MAX);
    run(&proxy.address, &inspect).exits(69).says(&["storage unreachable", "bytes came where"]);
}
