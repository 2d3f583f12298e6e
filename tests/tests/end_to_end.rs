//! Whole runs of the binary on generated data: what comes out, that it is right, and that nothing but the recipe decides it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use loader::{Dtype, synth};
use tests::fixture::{Fixture, json, json_lines, plain_rows, text, write_shards};
use tests::golden::{self, Measured};
use tests::{checkpoints, kills, need, root, sae};
use trainer::recipe::{Adam, BiasInit, Every, Order, Recipe};

#[test]
fn a_run_learns_and_leaves_everything_behind() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.data.eval = vec![fixture.text("eval")];
    recipe.eval.every = 20;
    let path = fixture.save("recipe", &recipe);
    let finished = sae::run(&["train", &path, "--set", "train.l1=1.5"]).exits(0);
    assert!(finished.stdout.contains("explained variance"), "{}", finished.stdout);

    let summary = fixture.json("run/summary.json");
    assert_eq!((summary["tokens"].as_u64(), summary["steps"].as_u64()), (Some(15_401), Some(61)));
    assert_eq!(summary["evaluated_on"], "eval");
    let number = |key: &str| summary[key].as_f64().unwrap_or_else(|| panic!("{key} in {summary:#}"));
    assert!(number("explained_variance") > 0.5 && number("explained_variance") < 1.0, "{summary:#}");
    assert!(number("normalized_mse") < 0.5 && number("l0") > 1.0 && number("l0") < 256.0, "{summary:#}");
    assert!(
        (number("loss") - number("mse") - 1.5 * number("l1_norm")).abs() < 1e-9 * number("loss"),
        "final λ: {summary:#}"
    );
    assert!((0.0..=1.0).contains(&number("recovered")) && number("mmcs") > 0.3, "{summary:#}");
    assert_eq!(summary["dead_window"].as_u64(), Some(15_401), "the window is what was seen");
    let silent = summary["density"]["silent"].as_u64().expect("silent features");
    let bins = summary["density"]["half_decades"].as_array().expect("bins").iter();
    assert_eq!(silent + bins.map(|bin| bin.as_u64().expect("a count")).sum::<u64>(), 256, "every feature has one bin");

    let mut lines = json_lines(&fixture.path("run/metrics.jsonl"));
    lines.retain(|line| line["kind"] == "train");
    let steps: Vec<_> = lines.iter().map(|line| line["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, [9, 19, 29, 39, 49, 59, 60]);
    let loss = |line: &serde_json::Value| line["mse"].as_f64().expect("mse");
    assert!(loss(&lines[6]) < 0.7 * loss(&lines[0]), "the error falls: {lines:#?}");
    assert_eq!(lines[6]["tokens"].as_u64(), Some(15_401));
    assert!(lines[6]["lr"].as_f64() < lines[0]["lr"].as_f64(), "the rate decays");

    let config: Recipe = toml::from_str(&std::fs::read_to_string(fixture.path("run/config.toml")).expect("a config"))
        .expect("config.toml is a recipe");
    assert_eq!(config, Recipe { train: trainer::recipe::Train { l1: 1.5, ..recipe.train.clone() }, ..recipe });
    let events = checkpoints::files(&fixture.path("run")).iter().filter(|path| text(path).contains("tfevents")).count();
    assert_eq!(events, 1);
    assert_eq!(checkpoints::unfinished(&fixture.path("run")), Vec::<std::path::PathBuf>::new());
}

/// `sae eval` measures what the run measured at its end, on the run and on the checkpoint, from another process.
#[test]
fn evaluation_agrees_with_the_summary() {
    let fixture = Fixture::with_data();
    for adam in [Adam::Dense, Adam::Catchup] {
        let mut recipe = fixture.recipe(&format!("run-{adam:?}"));
        recipe.data.eval = vec![fixture.text("eval")];
        recipe.train.adam = adam;
        // A sparse start, so that catchup owes some features updates.
        recipe.sae.bias_init = BiasInit::Calibrated;
        recipe.sae.bias_init_l0 = 8.0;
        let path = fixture.save("recipe", &recipe);
        sae::run(&["train", &path]).exits(0);
        let run = recipe.run.dir;
        let summary = json(&Path::new(&run).join("summary.json"));
        let checkpoint = format!("{run}/{}", summary["checkpoint"].as_str().expect("a checkpoint"));
        for what in [&run, &checkpoint] {
            let report = sae::run(&["eval", what, "--data", &fixture.text("eval"), "--json"]).exits(0).json();
            for key in ["loss", "mse", "l1_norm", "l0", "explained_variance", "normalized_mse"] {
                let (said, measured) =
                    (summary[key].as_f64().expect("in summary"), report[key].as_f64().expect("in report"));
                assert!(
                    (said - measured).abs() <= 1e-6 * said.abs(),
                    "{adam:?} {key}: {said} in summary.json, {measured} by eval"
                );
            }
        }
        let other =
            sae::run(&["eval", &run, "--data", &fixture.text("train"), "--rows", "500", "--json"]).exits(0).json();
        assert_ne!(other["loss"], summary["loss"], "other rows have another loss");
        assert_eq!((&other["rows"], &other["data"][0]), (&500.into(), &fixture.text("train").into()));
        assert_eq!(other["tokens"], other["rows"], "programs read either name");
        assert!(other["stall_s"].as_f64().is_some_and(|stall_s| stall_s <= other["wall_s"].as_f64().unwrap_or(0.0)));
        // Other data may have its activations in another column than the run's.
        let column = |name: &str| sae::run(&["eval", &run, "--column", name, "--rows", "500", "--json"]);
        column("activation").exits(0);
        column("layer9").exits(65).says(&["no activation column named layer9"]);
        // What summary.json says of the true directions, from the checkpoint alone.
        assert!(summary["recovered"].is_number() && other["recovered"] == summary["recovered"], "{other}");
    }
}

/// Losses against the committed ones, which the double-precision reference in tests/src/golden.rs made.
/// SAE_GOLDEN=write makes them again.
#[test]
fn golden_losses() {
    for case in golden::CASES {
        let reference = golden::train(case);
        let path = golden::file(case);
        if std::env::var_os("SAE_GOLDEN").is_some_and(|value| value == "write") {
            write_golden(&path, &reference);
        }
        let committed = golden::committed(case);
        assert_eq!(committed.len(), 20);
        for (step, (committed, reference)) in committed.iter().zip(&reference).enumerate() {
            assert!(
                near(committed.loss, reference.loss, 1e-9),
                "{} step {step}: {committed:?}, {reference:?}",
                case.name
            );
        }
        for adam in ["dense", "catchup", "touched"] {
            let measured = golden::measure(case, &["--set", &format!("train.adam={adam}")], &[]);
            assert_eq!(measured.len(), committed.len());
            // The other modes leave silent features alone, which dense Adam moves by their momentum: the same until then.
            let comparable = if adam == "dense" { 20 } else { 1 };
            for step in 0..comparable {
                let (committed, measured) = (committed[step], measured[step]);
                let same = near(committed.loss, measured.loss, 1e-5) && near(committed.mse, measured.mse, 1e-5);
                assert!(same, "{} {adam} step {step}: golden {committed:?}, measured {measured:?}", case.name);
            }
            let (last, golden) = (measured[19], committed[19]);
            assert!(near(golden.loss, last.loss, 0.05), "{} {adam} ends at {last:?}, golden {golden:?}", case.name);
        }
    }
}

fn write_golden(path: &Path, steps: &[Measured]) {
    let lines = steps
        .iter()
        .map(|m| serde_json::json!({"loss": m.loss, "mse": m.mse, "l1_norm": m.l1, "l0": m.l0}).to_string());
    let lines: Vec<String> = lines.collect();
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder is made");
    std::fs::write(path, format!("[\n  {}\n]\n", lines.join(",\n  "))).expect("golden losses are written");
}

fn near(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * a.abs()
}

/// A run that was asked to stop saves, says so, and goes on to the same bits. Each mode of Adam has state of its own.
#[test]
fn a_stopped_run_resumes_to_the_same_bits() {
    let fixture = Fixture::with_data();
    for (adam, signal) in [(Adam::Dense, "TERM"), (Adam::Catchup, "USR1"), (Adam::Touched, "INT")] {
        let name = |what: &str| format!("{what}-{signal}");
        let mut recipe = kills::recipe(&fixture, &name("whole"));
        recipe.train.adam = adam;
        recipe.data.eval = vec![fixture.text("eval")];
        recipe.eval.every = 100;
        let whole = fixture.save(&name("whole"), &recipe);
        sae::run(&["train", &whole]).exits(0);
        recipe.run.dir = fixture.text(&name("stopped"));
        let stopped = fixture.save(&name("stopped"), &recipe);
        let run = fixture.path(name("stopped"));
        let mut arguments = vec!["train", &stopped];
        for lines in [1, 20] {
            // A scheduler sends more than one, and a rank that saves is not disturbed by the second.
            let signals = if lines == 1 { vec![signal] } else { vec!["USR1", "TERM", "TERM"] };
            let step = stop(&arguments, &run, lines, &signals);
            assert!(
                checkpoints::committed(&run).iter().any(|folder| text(folder).contains(&format!("{step:010}"))),
                "{step}"
            );
            arguments = vec!["train", &stopped, "--resume"];
        }
        // What does not decide the result may change.
        sae::run(&["train", &stopped, "--resume", "--set", "train.threads=1", "--set", "checkpoint.every=\"5min\""])
            .exits(0);
        kills::assert_same_run(&fixture.path(name("whole")), &run);
    }
}

/// A run that opens data may wait for a store for minutes, and a signal ends it all the same.
#[test]
fn a_signal_before_the_run_begins_ends_it() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    // Nobody listens there, and a connection that is refused is tried again.
    let mut command = sae::sae(&["train", &path, "--set", "data.train=http://127.0.0.1:9/x.parquet"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sae starts");
    std::thread::sleep(Duration::from_secs(2));
    let asked = std::time::Instant::now();
    sae::signal(&child, "TERM");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("stopped before the run began") && asked.elapsed() < Duration::from_secs(20), "{said}");
}

/// Starts a run, waits until metrics.jsonl has so many lines, sends signals, and returns the step that was saved.
fn stop(arguments: &[&str], run: &Path, lines: usize, signals: &[&str]) -> u64 {
    let errors = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = sae::sae(arguments);
    let mut child =
        command.stdout(Stdio::null()).stderr(errors.reopen().expect("a handle")).spawn().expect("sae starts");
    let written = || std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count();
    while written() < lines && child.try_wait().expect("a child has a state").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    signals.iter().for_each(|signal| sae::signal(&child, signal));
    let status = child.wait().expect("a child can be waited for");
    let said = std::fs::read_to_string(errors.path()).expect("standard error is read");
    assert_eq!(status.code(), Some(75), "{said}");
    assert!(said.contains("continue with --resume"), "{said}");
    let newest = checkpoints::committed(run).pop().expect("a checkpoint");
    json(&newest.join("manifest.json"))["step"].as_u64().expect("a step")
}

/// The evaluation at the end may take long: asked to stop, the run leaves what it trained and comes back to it.
#[test]
fn the_evaluation_at_the_end_can_be_stopped() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    let rows =
        synth::Spec { features: 128, width: 32, rows: 500_000, shards: 1, active: 4.0, set: 1, ..Default::default() };
    fixture.synth("long", &rows);
    recipe.data.eval = vec![fixture.text("long")];
    let path = fixture.save("recipe", &recipe);
    let errors = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = sae::sae(&["train", &path]);
    let mut child =
        command.stdout(Stdio::null()).stderr(errors.reopen().expect("a handle")).spawn().expect("sae starts");
    let trained = || checkpoints::committed(&fixture.path("run")).iter().any(|f| text(f).contains("step-0000000061"));
    while !trained() && child.try_wait().expect("a child has a state").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    sae::signal(&child, "TERM");
    let status = child.wait().expect("a child can be waited for");
    let said = std::fs::read_to_string(errors.path()).expect("standard error is read");
    assert_eq!(status.code(), Some(75), "{said}");
    assert!(said.contains("stopped at step 61") && !fixture.path("run/summary.json").exists(), "{said}");
    sae::run(&["train", &path, "--resume"]).exits(0);
    assert_eq!(fixture.json("run/summary.json")["evaluated_on"], "eval");
}

/// On a terminal bars are drawn, unless a program is to read the messages.
#[test]
fn bars_are_for_people() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    // Bars are drawn twenty times a second: the evaluation must last longer than that takes.
    let rows =
        synth::Spec { features: 128, width: 32, rows: 40_000, shards: 1, active: 4.0, set: 1, ..Default::default() };
    fixture.synth("long", &rows);
    recipe.data.eval = vec![fixture.text("long")];
    let path = fixture.save("recipe", &recipe);
    let on_a_terminal = |log: &str| {
        let run = format!("run.dir={}", fixture.text(log));
        let program = sae::binary().display();
        let call = format!("stty cols 80; {program} train {path} --log {log} --set {run} >/dev/null");
        let output = Command::new("script").args(["-qec", &call, "/dev/null"]).stdin(Stdio::null()).output();
        output.ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (Some(shown), Some(messages)) = (on_a_terminal("pretty"), on_a_terminal("json")) else {
        return need::missing("script(1), which makes a terminal: install util-linux");
    };
    assert!(shown.contains("training ") && shown.contains("evaluating "), "{shown}");
    let rates = shown.match_indices("/s · ").filter_map(|(at, _)| shown[..at].rsplit(' ').next());
    assert!(rates.clone().count() > 0, "{shown}");
    for rate in rates {
        assert!(rate.split_once('.').is_none_or(|(_, decimals)| decimals.len() == 1), "{rate}/s: {shown}");
    }
    let drawn: Vec<&str> = shown.split(['\r', '\n', '\u{1b}']).filter(|piece| piece.contains("EV ")).collect();
    assert!(!drawn.is_empty(), "{shown}");
    // Bars follow each other, each as wide as the terminal.
    for line in drawn.iter().map(|piece| piece.split("evaluating").next().unwrap_or_default().trim_end()) {
        assert!(line.contains("loss ") && line.contains("L0 ") && line.chars().count() <= 80 + "[2K".len(), "{line:?}");
    }
    let fields = |line: &str| -> serde_json::Value {
        let message: serde_json::Value =
            serde_json::from_str(line.trim()).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(message["fields"]["message"].is_string(), "{line}");
        message["fields"].clone()
    };
    let said: Vec<_> = messages.lines().filter(|line| !line.trim().is_empty()).map(fields).collect();
    let last = |what: &str| said.iter().rfind(|fields| fields["message"] == what).expect("it is said");
    for key in ["rows", "total_rows", "rows_per_s", "step", "loss", "l0", "explained_variance", "dead_fraction"] {
        assert!(last("training")[key].is_number(), "{key} in {}", last("training"));
    }
    for (what, key) in [("held-out rows measured", "loss"), ("checkpoint committed", "stored_s")] {
        assert!(last(what)[key].is_number(), "{key} in {}", last(what));
    }
    let refused = sae::run(&["train", &path, "--log", "json", "--set", "sae.features=0"]).exits(64);
    let error = fields(refused.stderr.lines().last().expect("an error"));
    assert_eq!((&error["exit_code"], &error["cause"]), (&64.into(), &"arguments".into()), "{error}");
}

#[test]
fn threads_change_no_bit() {
    let fixture = Fixture::with_data();
    for n in [1, 2, 3] {
        let mut recipe = fixture.recipe(&format!("run-{n}"));
        recipe.log.rows = true;
        recipe.data.prefetch_bytes = Some((2 << 20) * n);
        let path = fixture.save("recipe", &recipe);
        let (step, loader) = (format!("train.threads={n}"), format!("data.threads={n}"));
        sae::run(&["train", &path, "--set", &step, "--set", &loader]).exits(0);
    }
    for other in ["run-2", "run-3"] {
        kills::assert_same_run(&fixture.path("run-1"), &fixture.path(other));
    }
}

/// Each row of the data is trained on exactly once in either order, also when the last step is short.
#[test]
fn every_row_is_used_once() {
    let fixture = Fixture::with_data();
    let mut orders = Vec::new();
    for order in [Order::Direct, Order::Sequential] {
        let mut recipe = fixture.recipe(&format!("run-{order:?}"));
        recipe.data.order = order;
        recipe.log.rows = true;
        let path = fixture.save("recipe", &recipe);
        sae::run(&["train", &path]).exits(0);
        let rows = kills::rows(Path::new(&recipe.run.dir));
        assert_eq!(rows.len(), 15_401);
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), 15_401);
        orders.push(rows);
    }
    assert_ne!(orders[0], orders[1], "direct is not the order of storage");
    let sequential = &orders[1];
    assert!(sequential[0].ends_with(".parquet:0") && sequential[1].ends_with(".parquet:1"), "{:?}", &sequential[..2]);
}

#[test]
fn rows_that_are_left_out_are_not_trained_on() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("all");
    recipe.log.rows = true;
    sae::run(&["train", &fixture.save("all", &recipe)]).exits(0);
    let all = kills::rows(&fixture.path("all"));
    let (first, second) = (&all[5], &all[700]);
    recipe.run.dir = fixture.text("some");
    let path = fixture.save("some", &recipe);
    sae::run(&["train", &path, "--set", &format!("data.skip=[{first:?}, {second:?}]")]).exits(0);
    let some = kills::rows(&fixture.path("some"));
    let expected: Vec<_> = all.iter().filter(|row| *row != first && *row != second).cloned().collect();
    assert_eq!(some, expected, "all other rows keep their places");
    assert_eq!(fixture.json("some/summary.json")["tokens"].as_u64(), Some(15_399));

    recipe.run.dir = fixture.text("short");
    let path = fixture.save("short", &recipe);
    sae::run(&["train", &path, "--set", "data.filter.norm_max=1.5"]).exits(0);
    let tokens = fixture.json("short/summary.json")["tokens"].as_u64().expect("tokens");
    assert!(tokens > 100 && tokens < 15_301, "{tokens} rows have a norm up to 1.5");
}

/// Without held-out data a run is measured on its last rows, each before it was trained on.
#[test]
fn a_run_without_held_out_data_is_measured_on_its_last_rows() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    sae::run(&["train", &path]).exits(0);
    let summary = fixture.json("run/summary.json");
    assert_eq!(summary["evaluated_on"], "last_training_rows");
    // All rows are among the last 65,536, so the closing error is the mean over the lines of metrics.
    let lines = json_lines(&fixture.path("run/metrics.jsonl"));
    let (mut sum, mut before) = (0.0, 0);
    for line in &lines {
        let tokens = line["tokens"].as_u64().expect("tokens");
        sum += line["mse"].as_f64().expect("mse") * (tokens - before) as f64;
        before = tokens;
    }
    let mse = summary["mse"].as_f64().expect("mse");
    assert!(near(mse, sum / before as f64, 1e-9), "{mse} in the summary, {} over the lines", sum / before as f64);
}

/// The closing rows begin in the middle of a batch, rows are left out on both sides, and the run is resumed in between.
#[test]
fn closing_metrics_are_exact_when_rows_are_left_out_and_the_run_resumes() {
    let fixture = Fixture::new();
    write_shards(&fixture.path("train"), 8, &plain_rows(70_000, 8, 9), Dtype::F32, 70_000);
    let mut recipe = fixture.recipe("whole");
    (recipe.sae.features, recipe.train.batch) = (16, 100);
    recipe.data.filter.norm_max = Some(trainer::filter::Bound::Norm(1.7));
    (recipe.checkpoint.every, recipe.checkpoint.keep, recipe.log.every) = (Every::Steps(45), 100, 7);
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path]).exits(0);
    checkpoints::copy(&fixture.path("whole"), &fixture.path("resumed"));
    for folder in checkpoints::committed(&fixture.path("resumed")) {
        if !text(&folder).contains("step-0000000045") {
            std::fs::remove_dir_all(folder).expect("removed");
        }
    }
    let run_dir = format!("run.dir={}", fixture.text("resumed"));
    sae::run(&["train", &path, "--resume", "--set", &run_dir]).exits(0);
    let (whole, resumed) = (fixture.json("whole/summary.json"), fixture.json("resumed/summary.json"));
    assert!(whole["filtered"].as_u64().is_some_and(|filtered| filtered > 1000), "{whole}");
    for name in ["mse", "l1_norm", "l0", "explained_variance", "tokens", "filtered"] {
        assert_eq!(whole[name], resumed[name], "{name}");
    }
}

#[test]
fn retention_keeps_the_newest_the_best_and_what_is_not_ours() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.data.eval = vec![fixture.text("eval")];
    recipe.eval.every = 7;
    recipe.checkpoint.every = Every::Steps(3);
    recipe.checkpoint.keep = 2;
    let foreign = fixture.path("run/checkpoints/step-0000000003/attempt-0001/notes.txt");
    std::fs::create_dir_all(foreign.parent().expect("a folder")).expect("a folder is made");
    std::fs::write(&foreign, "mine").expect("written");
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path]).exits(0);
    assert_eq!(std::fs::read_to_string(&foreign).expect("a foreign file stays"), "mine");
    let manifests: Vec<_> =
        checkpoints::committed(&fixture.path("run")).iter().map(|folder| json(&folder.join("manifest.json"))).collect();
    let steps: Vec<u64> = manifests.iter().map(|manifest| manifest["step"].as_u64().expect("a step")).collect();
    assert!(steps.ends_with(&[60, 61]), "the two newest: {steps:?}");
    assert!(steps.len() <= 3, "and at most one more, the best: {steps:?}");
    let best =
        manifests.iter().filter_map(|manifest| manifest["held_out"]["loss"].as_f64()).fold(f64::INFINITY, f64::min);
    assert!(best.is_finite(), "a kept checkpoint was evaluated");
    let last = manifests.last().expect("a checkpoint");
    assert!(last["held_out"].is_null(), "the evaluation at the end is over other rows and does not compete: {last}");
    // Nothing of removed checkpoints is left but the foreign file.
    let left = checkpoints::files(&fixture.path("run/checkpoints"));
    assert_eq!(left.iter().filter(|path| path.ends_with("manifest.json")).count(), steps.len());
}

#[test]
fn held_out_rows_may_move_but_not_change_when_a_run_resumes() {
    let fixture = Fixture::with_data();
    fixture
        .synth("other", &synth::Spec { features: 128, width: 32, rows: 1024, shards: 1, set: 2, ..Default::default() });
    let path = fixture.save("recipe", &fixture.recipe("run"));
    let resume = |run: &str, eval: &str| {
        let (run, eval) = (format!("run.dir={}", fixture.text(run)), format!("data.eval={}", fixture.text(eval)));
        sae::run(&["train", &path, "--resume", "--set", &run, "--set", &eval])
    };
    sae::run(&["train", &path]).exits(0);
    resume("run", "eval").exits(64).says(&["it has none", "data.eval names those of identity"]);

    let (run, eval) = (format!("run.dir={}", fixture.text("held")), format!("data.eval={}", fixture.text("eval")));
    sae::run(&["train", &path, "--set", &run, "--set", &eval]).exits(0);
    checkpoints::copy(&fixture.path("eval"), &fixture.path("moved"));
    resume("held", "moved").exits(0);
    resume("held", "other").exits(64).says(&["cannot be resumed with other held-out rows", "sae eval --data"]);

    // Data without a manifest may get one while the run goes on.
    std::fs::remove_file(fixture.path("moved/manifest.json")).expect("removed");
    let (run, eval) = (format!("run.dir={}", fixture.text("plain")), format!("data.eval={}", fixture.text("moved")));
    sae::run(&["train", &path, "--set", &run, "--set", &eval]).exits(0);
    sae::run(&["inspect", &fixture.text("moved")]).exits(0);
    assert!(fixture.path("moved/manifest.json").exists());
    resume("plain", "moved").exits(0);
}

#[test]
fn recipes_that_come_along_are_valid() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("launch/recipes")).expect("recipes").flatten() {
        let path = entry.path();
        // Sweeps are held by tests of their own.
        let is_sweep = entry.file_name().to_string_lossy().starts_with("sweep-");
        if !is_sweep && path.extension().is_some_and(|extension| extension == "toml") {
            let recipe: Recipe = toml::from_str(&std::fs::read_to_string(&path).expect("read"))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            recipe.validate().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            names.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        }
    }
    names.sort();
    let expected = ["minilm-l3", "paper-1m", "paper-34m", "paper-4m", "quickstart", "smollm2-l15"];
    assert_eq!(names, expected.map(|name| format!("{name}.toml")));
}

#[test]
fn a_dry_run_shows_the_recipe_and_touches_nothing() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    let finished = sae::run(&["train", &path, "--dry-run", "--set", "train.l1=7"]).exits(0);
    assert!(finished.stdout.contains("l1 = 7"), "{}", finished.stdout);
    assert!(finished.stdout.contains("61"), "the number of steps: {}", finished.stdout);
    assert!(!fixture.path("run").exists());
}

/// Shards that training would make are planned with as [data.synth] has them; where nobody would make any, the remedy is said.
#[test]
fn plans_count_on_shards_that_are_yet_to_be_made() {
    let fixture = Fixture::new();
    let mut recipe = fixture.recipe("run");
    let path = fixture.save("missing", &recipe);
    sae::run(&["plan", &path]).exits(64).says(&[&recipe.data.train[0], "--width and --rows"]);
    recipe.data.synth = Some(synth::Spec { features: 64, width: 24, rows: 5003, active: 4.0, ..Default::default() });
    let path = fixture.save("synthetic", &recipe);
    let plan = sae::run(&["plan", &path]).exits(0).stdout;
    assert!(plan.contains("5,003 × 24") && plan.contains("which training makes first"), "{plan}");
    let plan = sae::run(&["plan", &path, "--set", "train.tokens=4e3"]).exits(0).stdout;
    assert!(plan.contains("4,000 × 24"), "{plan}");
    let dry = sae::run(&["train", &path, "--dry-run"]).exits(0).stdout;
    assert!(dry.contains("training makes the 5,003 rows × 24 f16 of [data.synth] first"), "{dry}");
    assert!(!fixture.path("train").exists() && !fixture.path("run").exists(), "nothing was made");
    sae::run(&["plan", &path, "--set", "data.synth.active=100"]).exits(64).says(&["active = 100"]);
    // Rows that are there win.
    let train = fixture.text("train");
    sae::run(&["synth", "--out", &train, "--features", "64", "--width", "16", "--rows", "2_000", "--active", "4"])
        .exits(0);
    let plan = sae::run(&["plan", &path]).exits(0).stdout;
    assert!(plan.contains("2,000 × 16") && !plan.contains("makes first"), "{plan}");
}

#[test]
fn help_shows_an_example_for_each_command() {
    for command in ["train", "inspect", "synth", "eval", "encode", "export"] {
        let help = sae::run(&[command, "--help"]).exits(0).stdout;
        assert!(help.contains(&format!("\n  sae {command} ")), "{help}");
    }
}

#[test]
fn synth_and_inspect_agree_on_what_was_written() {
    let fixture = Fixture::new();
    let out = fixture.text("acts");
    let arguments = ["--features", "64", "--width", "24", "--rows", "5003", "--shards", "2", "--dtype", "bf16"];
    sae::run(&[&["synth", "--out", &out][..], &arguments].concat()).exits(0);
    let report = sae::run(&["inspect", &out, "--json"]).exits(0).json();
    assert_eq!((report["rows"].as_u64(), report["width"].as_u64()), (Some(5003), Some(24)));
    assert_eq!((&report["dtype"], report["shards"].as_u64()), (&"bf16".into(), Some(2)));
    assert_eq!(report["non_finite"].as_u64(), Some(0));
    assert_eq!(report["manifest"], "verified");
    // The same call again would write over it.
    sae::run(&["synth", "--out", &out]).exits(64).says(&["already holds shards"]);
}
