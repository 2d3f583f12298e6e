//! Names in summary.json and metrics.jsonl, which programs of others read, and what they mean; runs with older names go on.

use std::path::Path;

use serde_json::Value;
use tests::fixture::{Fixture, json, json_lines};
use tests::{checkpoints, sae};
use trainer::recipe::Every;

#[test]
fn a_summary_and_lines_of_metrics_agree_and_say_what_the_run_is() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.data.eval = vec![fixture.text("eval")];
    recipe.eval.every = 20;
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path, "--set", "train.l1=1.5"]).exits(0);
    let summary = fixture.json("run/summary.json");
    let number = |key: &str| summary[key].as_f64().unwrap_or_else(|| panic!("{key} in {summary:#}"));
    let (lines, held_out) = lines_of_both_kinds(&fixture.path("run"));
    let steps: Vec<_> = held_out.iter().map(|line| line["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, [19, 39, 59, 60]);
    for key in ["loss", "mse", "l1_norm", "l0", "explained_variance", "lambda", "density", "flops", "commit"] {
        assert_eq!(held_out[3][key], summary[key], "{key}");
    }
    assert_eq!(held_out[3]["rows"], 1024);
    // 2·D·F a row for the encoder, and 8·D for each active feature, of which the lines say how many a row has.
    let active: f64 = rows_of(&lines).zip(&lines).map(|(rows, line)| rows * line["l0"].as_f64().expect("L0")).sum();
    let flops = 2.0 * 32.0 * 256.0 * 15_401.0 + 8.0 * 32.0 * active;
    assert!((number("flops") / flops - 1.0).abs() < 1e-9, "{flops} in {summary:#}");
    assert!(number("step_s") < number("wall_s") && number("tokens_per_s") > number("tokens_per_s_wall"), "{summary:#}");
    assert!((number("tokens_per_s_wall") * number("wall_s") / 15_401.0 - 1.0).abs() < 1e-9, "{summary:#}");
    assert_eq!((number("width"), number("features"), number("batch"), number("lambda")), (32.0, 256.0, 256.0, 1.5));
    assert_eq!((number("lr"), number("seed")), (recipe.train.lr, 0.0));
    let commit = summary["commit"].as_str().expect("a commit");
    let version = sae::run(&["--version"]).exits(0).stdout;
    assert!(version.contains(&format!("(commit {commit})")) && commit.len() >= "unknown".len(), "{version}");
    let newest = checkpoints::committed(&fixture.path("run")).pop().expect("a checkpoint");
    assert_eq!(json(&newest.join("manifest.json"))["commit"], commit);
}

/// A run that version 0.1.0 wrote, under the names of its time, goes on to the same weights and numbers.
#[test]
fn a_run_with_the_old_names_goes_on() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.data.eval = vec![fixture.text("eval")];
    (recipe.eval.every, recipe.checkpoint.every, recipe.checkpoint.keep) = (20, Every::Steps(20), 100);
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path]).exits(0);
    let run = fixture.path("run");
    checkpoints::copy(&run, &fixture.path("old"));
    let rename = |value: &mut Value| {
        let object = value.as_object_mut().expect("an object");
        let l1 = object.remove("l1_norm").expect("an L1 term");
        object.insert("l1".into(), l1);
        object.remove("commit");
    };
    for folder in checkpoints::committed(&fixture.path("old")) {
        let mut manifest = json(&folder.join("manifest.json"));
        if manifest["step"] != 40 {
            std::fs::remove_dir_all(folder).expect("removed");
            continue;
        }
        rename(&mut manifest["held_out"]);
        ["commit", "active", "step_s"].iter().for_each(|key| drop(manifest.as_object_mut().map(|m| m.remove(*key))));
        checkpoints::write_manifest(&folder, &manifest);
    }
    let mut lines = lines_of_both_kinds(&run).0;
    lines.iter_mut().for_each(rename);
    let old: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(fixture.path("old/metrics.jsonl"), old).expect("written");
    let run_dir = format!("run.dir={}", fixture.text("old"));
    sae::run(&["train", &path, "--resume", "--set", &run_dir]).exits(0);
    assert!(checkpoints::differing(&checkpoints::last(&run), &checkpoints::last(&fixture.path("old"))).is_empty());
    let (whole, old) = (fixture.json("run/summary.json"), fixture.json("old/summary.json"));
    assert_eq!((&whole["loss"], &whole["l1_norm"]), (&old["loss"], &old["l1_norm"]));
    assert!(old["flops"].is_null() && old["wall_s"].as_f64() >= old["step_s"].as_f64(), "{old}");
}

/// Rows between lines.
fn rows_of(lines: &[Value]) -> impl Iterator<Item = f64> {
    let tokens = |line: &Value| line["tokens"].as_f64().expect("tokens");
    let before = std::iter::once(0.0).chain(lines.iter().map(tokens));
    lines.iter().map(tokens).zip(before).map(|(now, before)| now - before)
}

/// Lines of metrics.jsonl on training rows and on held-out ones. Each says when it was written, and what the run is.
fn lines_of_both_kinds(run: &Path) -> (Vec<Value>, Vec<Value>) {
    let lines = json_lines(&run.join("metrics.jsonl"));
    for line in &lines {
        assert!(line["time"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{line}");
        assert!(line["commit"].is_string() && line["seed"].is_u64(), "{line}");
        let numbers = ["step_s", "wall_s", "tokens_per_s", "tokens_per_s_wall", "width", "features", "batch"];
        for key in numbers.iter().chain(&["lambda", "lr", "flops", "l1_norm"]) {
            assert!(line[key].is_number(), "{key} in {line}");
        }
    }
    let (train, eval): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line["kind"] == "train");
    assert!(eval.iter().all(|line| line["kind"] == "eval"), "{eval:?}");
    (train, eval)
}
