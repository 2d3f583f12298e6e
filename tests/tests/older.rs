//! Checkpoints that earlier versions of this program have written, one of each format before the present. tests/fixtures/format-N
//! holds the files that the program of its time left, and expected.json what it measured with them.

use std::path::Path;

use loader::synth::Spec;
use tests::fixture::{Fixture, json, text};
use tests::{checkpoints, root, sae};

/// A run of 20 steps in format 1, of which the checkpoint of step 10 is kept. With `catchup` all files are needed to know the weights.
#[test]
fn a_checkpoint_of_format_1_is_evaluated_exported_taken_up_and_resumed() {
    let kept = root().join("tests/fixtures/format-1");
    let expected = json(&kept.join("expected.json"));
    let fixture = Fixture::new();
    let spec = Spec { features: 16, width: 8, rows: 640, shards: 2, active: 3.0, ..Spec::default() };
    fixture.synth("train", &spec);
    fixture.synth("eval", &Spec { rows: 200, shards: 1, set: 1, ..spec });
    checkpoints::copy(&kept.join("run"), &fixture.path("run"));
    let (run, eval) = (fixture.text("run"), fixture.text("eval"));
    let attempt = checkpoints::committed(&fixture.path("run")).pop().expect("a checkpoint");
    assert_eq!(json(&attempt.join("manifest.json"))["format"], 1);
    let near = |what: &str, found: &serde_json::Value, expected: &serde_json::Value| {
        for key in ["loss", "mse", "l0", "dead_fraction"] {
            let (a, b) = (found[key].as_f64().expect("a number"), expected[key].as_f64().expect("a number"));
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: {key} is {a}, and was {b}");
        }
    };
    for path in [&run, &text(&attempt)] {
        let found = sae::run(&["eval", path, "--data", &eval, "--json"]).exits(0).json();
        near("evaluated", &found, &expected["step_10"]);
    }

    let exported = fixture.text("exported");
    sae::run(&["export", &run, "--out", &exported, "--alive-only"]).exits(0);
    assert!(Path::new(&exported).join("sae_weights.safetensors").exists());
    sae::run(&["export", &run, "--out", &fixture.text("all")]).exits(0);
    let recipe = fixture.path("run/config.toml");
    for from in [&run, &fixture.text("all")] {
        let still = fixture.path(format!("from-{}", Path::new(from).file_name().expect("a name").display()));
        let sets = [
            format!("data.train={}", fixture.text("train")),
            format!("data.eval={eval}"),
            format!("run.dir={}", text(&still)),
            format!("train.init_from={from}"),
            "sae.bias_init=zero".to_owned(),
            "train.lr=1e-30".to_owned(),
            "train.tokens=32".to_owned(),
        ];
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        sae::run(&[&["train", &text(&recipe)], &sets[..]].concat()).exits(0);
        let found = json(&still.join("summary.json"));
        let (a, b) = (found["loss"].as_f64().expect("a loss"), expected["step_10"]["loss"].as_f64().expect("a loss"));
        assert!((a - b).abs() <= 1e-5 * b, "{from}: the loss is {a}, and was {b}");
    }

    let sets = [format!("data.train={}", fixture.text("train")), format!("data.eval={eval}"), format!("run.dir={run}")];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    sae::run(&[&["train", &text(&recipe), "--resume"], &sets[..]].concat()).exits(0);
    near("resumed", &fixture.json("run/summary.json"), &expected["step_20"]);
}
