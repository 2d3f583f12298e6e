//! What can be known before a run begins, of rows that are yet to be made as of others: a dry run says it and a start goes by it, before
//! anything is made or written.

use std::fs;
use std::process::Command;

use loader::synth;
use tests::checkpoints;
use tests::fixture::Fixture;
use tests::need::SizedDisk;
use tests::root;
use tests::sae::{self, Finished};
use trainer::recipe::{Every, Recipe};

/// More features than any machine has memory for: 1.5 TB of weights and moments.
const TOO_MANY: &str = "sae.features=4e8";

/// A recipe that makes 3,000 rows of width 32, and 512 held-out ones.
fn recipe(fixture: &Fixture, run: &str) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.data.train = vec![fixture.text("made")];
    recipe.data.eval = vec![fixture.text("made-eval")];
    recipe.data.synth_eval_rows = 512;
    recipe.data.synth = Some(spec(3000));
    recipe
}

fn spec(rows: u64) -> synth::Spec {
    synth::Spec { features: 64, width: 32, rows, shards: 2, active: 4.0, ..synth::Spec::default() }
}

fn set<'a>(arguments: &[&'a str], sets: &[&'a str]) -> Finished {
    let words: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    sae::run(&[arguments, &words].concat())
}

#[test]
fn what_cannot_begin_is_refused_before_shards_are_made() {
    let fixture = Fixture::with_data();
    let path = fixture.save("run", &recipe(&fixture, "run"));
    let [others, bare, taken] = ["others", "bare", "taken"].map(|name| fixture.text(name));
    // Rows of another recipe; shards without a manifest; a folder that holds a run.
    set(&["train", &path], &[&format!("data.train={others}"), "data.synth.seed=7", &format!("run.dir={taken}")])
        .exits(0);
    fs::remove_dir_all(fixture.path("made-eval")).expect("there");
    fixture.synth("bare", &spec(100));
    fs::remove_file(fixture.path("bare/manifest.json")).expect("there");
    let [others, bare, taken] =
        [format!("data.train={others}"), format!("data.train={bare}"), format!("run.dir={taken}")];
    for (code, sets, says) in [
        (64, [TOO_MANY, "train.l1=2"], "does not fit into the memory of this machine: a rank needs "),
        (65, ["data.filter.positions=[0]", "train.l1=2"], "data.filter.positions needs the column pos"),
        (65, ["data.filter.token_ids=[0]", "train.l1=2"], "data.filter.token_ids needs the column token_id"),
        (65, ["data.column=acts", "train.l1=2"], "data.column is acts"),
        (64, ["data.synth.features=1e9", "train.l1=2"], "features × width must be at most 2^32"),
        (64, ["data.synth.width=2e6", "data.synth.features=4"], "width = 2000000 must be at most 1048576"),
        (64, ["data.synth_eval_rows=0", "train.l1=2"], "data.synth_eval_rows must be at least 1"),
        (64, [&others, "train.l1=2"], "holds synthetic rows of another [data.synth]"),
        (64, [&bare, "train.l1=2"], "already holds shards"),
        (64, [&taken, "train.l1=2"], "already holds a run"),
        (64, ["train.tokens=1e9", "train.l1=2"], "train.tokens is 1000000000"),
        (73, ["data.synth.rows=1e15", "train.l1=2"], "free some space, lower data.synth.rows"),
    ] {
        let before = checkpoints::files(&fixture.path(""));
        set(&["train", &path, "--dry-run"], &sets).exits(code).says(&[says]);
        assert_eq!(checkpoints::files(&fixture.path("")), before, "{sets:?}: a dry run left something");
        set(&["train", &path], &sets).exits(code).says(&[says]);
        assert_eq!(checkpoints::files(&fixture.path("")), before, "{sets:?}: a start left something");
    }
    // The corrected recipe finds nothing in its way, not even what a version that wrote it first has left.
    fs::create_dir_all(fixture.path("made")).expect("a folder");
    fs::copy(fixture.path("others/synth.json"), fixture.path("made/synth.json")).expect("copied");
    sae::run(&["train", &path]).exits(0);
}

#[test]
fn a_dry_run_says_of_rows_yet_to_be_made_what_it_says_of_others() {
    let fixture = Fixture::new();
    let path = fixture.save("run", &recipe(&fixture, "run"));
    let before = sae::run(&["train", &path, "--dry-run"]).exits(0).stdout;
    assert!(before.contains("data.train is not there yet: training makes the 3,000 rows × 32 f16"), "{before}");
    assert!(before.contains("data.eval is not there yet: training makes the 512 rows × 32 f16"), "{before}");
    assert!(!fixture.path("made").exists() && !fixture.path("run").exists(), "nothing is made");
    sae::run(&["train", &path]).exits(0);
    let other = ["--set", &format!("run.dir={}", fixture.text("other"))];
    let after = sae::run(&[&["train", &path, "--dry-run"], &other[..]].concat()).exits(0).stdout;
    let line = |text: &str, name: &str| {
        let found = text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for told in [&before, &after] {
        assert!(told.contains("sequential") && told.contains("memory: altogether, at most"), "{told}");
    }
    for name in [
        "rows × width",
        "steps ",
        "parameters",
        "read ",
        "memory: weights and moments",
        "memory: step, at most",
        "written at each checkpoint",
        "there at once, at most",
    ] {
        assert_eq!(line(&before, name), line(&after, name));
    }
}

#[test]
fn shards_that_do_not_fit_onto_their_disk_are_refused() {
    let Some(disk) = SizedDisk::mount(20 << 20) else { return };
    let fixture = Fixture::new();
    let mut recipe = recipe(&fixture, "run");
    recipe.data.train = vec![disk.path().join("made").to_str().expect("a plain path").to_owned()];
    recipe.data.eval = vec![disk.path().join("held-out").to_str().expect("a plain path").to_owned()];
    let path = fixture.save("run", &recipe);
    // 64 bytes a row: 16 MB and 8 MB, each of which would fit.
    let sets = ["data.synth.rows=250_000", "data.synth_eval_rows=125_000"];
    for command in [&["train", &path, "--dry-run"][..], &["train", &path]] {
        set(command, &sets).exits(73).says(&["data.eval", "and the shards of [data.synth] take", "name another disk"]);
        assert_eq!(fs::read_dir(disk.path()).expect("a folder").count(), 0, "nothing is made");
    }
    set(&["train", &path, "--dry-run"], &["data.synth.rows=250_000"]).exits(0);
}

/// What a start that was killed has left goes with the next one, however young it is.
#[test]
fn half_written_shards_go_with_the_next_start() {
    let fixture = Fixture::new();
    let path = fixture.save("run", &recipe(&fixture, "run"));
    sae::run(&["train", &path]).exits(0);
    fs::remove_file(fixture.path("made/manifest.json")).expect("there");
    let left = fixture.path("made/.loader-tmp-1-1-shard-00001.parquet");
    fs::write(&left, "x").expect("written");
    let again = format!("run.dir={}", fixture.text("again"));
    set(&["train", &path], &[&again]).exits(0);
    assert!(!left.exists());
    assert!(fixture.path("made/manifest.json").exists());
    assert_eq!(fixture.json("run/summary.json")["metrics"], fixture.json("again/summary.json")["metrics"]);
}

#[test]
fn shards_of_ones_own_are_left_as_they_are() {
    let fixture = Fixture::with_data();
    let mut recipe = recipe(&fixture, "run");
    (recipe.data.train, recipe.data.eval) = (vec![fixture.text("train")], vec![fixture.text("eval")]);
    let path = fixture.save("run", &recipe);
    let before = checkpoints::files(&fixture.path("train"));
    let says = "holds shards of its own: [data.synth] makes none";
    sae::run(&["train", &path, "--dry-run"]).exits(0).says(&[says]);
    sae::run(&["train", &path]).exits(0).says(&[says]);
    assert_eq!(checkpoints::files(&fixture.path("train")), before);
    for name in ["train", "bare"] {
        // With a manifest and without.
        if name == "bare" {
            fs::create_dir(fixture.path(name)).expect("a folder");
            fs::copy(fixture.path("train/shard-00000.parquet"), fixture.path("bare/a.parquet")).expect("copied");
        }
        sae::run(&["synth", "--out", &fixture.text(name), "--rows", "100"]).exits(64).says(&["already holds shards"]);
    }
}

/// Of rows that are there, of several ranks, under a limit of addresses, in a plan and by `sae doctor`.
#[test]
fn a_dictionary_that_this_machine_cannot_hold_is_refused_everywhere() {
    let fixture = Fixture::with_data();
    let path = fixture.save("run", &fixture.recipe("run"));
    let (says, jointly) =
        ("does not fit into the memory of this machine", format!("run.dir={}", fixture.text("jointly")));
    for more in [&["--dry-run"][..], &[]] {
        set(&[&["train", &path, "--device", "cpu"], more].concat(), &[TOO_MANY]).exits(64).says(&[
            says,
            "GiB",
            "sae.features =",
        ]);
        let local = ["launch", "local", "--ranks", "2", "--restarts", "0", &path, "--device", "cpu"];
        set(&[&local, more].concat(), &[TOO_MANY, &jointly]).exits(64).says(&[says, "which 2 ranks share"]);
        // 3.9 GB of weights and moments, and 4 GB of addresses of which the program has some already.
        let limited = "ulimit -v 4000000; exec \"$0\" train \"$@\" --device cpu --set sae.features=5e6";
        let output = Command::new("sh").args(["-c", limited]).arg(sae::binary()).arg(&path).args(more).output();
        let output = output.expect("a shell runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{stderr}");
        assert!(stderr.contains("does not fit into what ulimit -v leaves this process"), "{stderr}");
    }
    assert!(!fixture.path("run").join("config.toml").exists(), "no run was begun");

    let told = set(&["plan", &path, "--cpu", "--host-memory", "1GiB"], &["sae.features=5e6"]).exits(0).stdout;
    let next = told.lines().last().expect("a last line");
    let fitting = next.split("--set sae.features=").last().and_then(|number| number.parse::<u64>().ok());
    let fitting = fitting.unwrap_or_else(|| panic!("what would fit is missing: {next}"));
    // 12 · (2 · 32 + 1) bytes of weights and moments for each, at least, and not five times that, whatever the processor's screen keeps.
    assert!((1 << 30) / (5 * 780) < fitting && fitting < (1 << 30) / 780, "{fitting}");
    assert!(next.starts_with("next: sae plan ") && next.contains("--cpu"), "{next}");
    assert_eq!(next.matches("sae.features=").count(), 1, "each key once: {next}");

    let doctor = set(&["doctor", &path], &[TOO_MANY]).exits(64).stdout;
    let words = doctor.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("does not fit into the memory of this machine"), "{doctor}");
    let doctor = sae::run(&["doctor", &path]).exits(0).stdout;
    assert!(doctor.contains("written at"), "{doctor}");
    assert!(!fixture.path("run").exists(), "a look leaves no folder");
}

#[test]
fn a_dry_run_of_several_ranks_says_what_each_takes() {
    let fixture = Fixture::with_data();
    let path = fixture.save("run", &fixture.recipe("run"));
    let local = ["launch", "local", "--ranks", "2", &path, "--dry-run", "--device", "cpu", "--mesh", "2x1"];
    let told = sae::run(&local).exits(0).stdout;
    for part in ["2, 2 of them on this machine", "2x1: 2 slices of the batch, 1 shards of the features", "of each rank"]
    {
        assert!(told.contains(part), "{part} is missing: {told}");
    }
    let alone = sae::run(&["train", &path, "--dry-run"]).exits(0).stdout;
    assert!(!alone.contains("mesh") && !alone.contains("of each rank"), "{alone}");
}

/// Where it goes on, and what is left; of one that is done that nothing is.
#[test]
fn a_dry_run_of_one_that_goes_on_plans_what_is_left() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    (recipe.checkpoint.every, recipe.checkpoint.keep) = (Every::Steps(15), 1000);
    let path = fixture.save("run", &recipe);
    sae::run(&["train", &path]).exits(0);
    let told = sae::run(&["train", &path, "--resume", "--dry-run"]).exits(0).stdout;
    assert!(told.contains("step 61, from checkpoints/step-0000000061") && told.contains("nothing is left"), "{told}");
    let again = sae::run(&["train", &path, "--resume"]).exits(0);
    assert!(
        again.stderr.contains("nothing is left to train") && !again.stderr.contains("training begins"),
        "{}",
        again.stderr
    );
    for step in ["60", "61"] {
        fs::remove_dir_all(fixture.path(format!("run/checkpoints/step-00000000{step}"))).expect("a checkpoint");
    }
    let told = sae::run(&["train", &path, "--resume", "--dry-run"]).exits(0).stdout;
    // 15,401 rows in batches of 256, of which 45 are made; checkpoints at 60 and 61. 64 bytes a row.
    for part in ["step 45, from checkpoints/step-0000000045", "16 steps, 3,881 rows", "16 in ", "2 of ", "242.56 KiB"] {
        assert!(told.contains(part), "{part} is missing: {told}");
    }
}

/// The next command trains what was planned.
#[test]
fn the_width_and_rows_of_a_plan_are_in_its_next_command() {
    let quickstart = root().join("launch/recipes/quickstart.toml");
    let quickstart = quickstart.to_str().expect("a plain path");
    let told = sae::run(&["plan", quickstart, "--width", "4096", "--rows", "1e9", "--gpus", "8"]).exits(0).stdout;
    let next = told.lines().last().expect("a last line");
    assert!(next.ends_with("--set data.synth.width=4096 --set data.synth.rows=1000000000"), "{next}");
}
