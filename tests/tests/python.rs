//! The Python package in launch/python: what it writes is read and trained on as what Rust has written, and what it reads of runs is
//! what `sae export` says. The checks themselves stand in tests/reference/package.py.

use std::fs;
use std::path::Path;
use std::process::Command;

use loader::{Dtype, synth};
use tests::fixture::{Fixture, json_lines, plain_rows, text, write_shards};
use tests::s3::S3;
use tests::{checkpoints, need, root, sae, tiny};
use trainer::recipe::{Adam, BiasInit, Every, Recipe};

/// Runs checks, `--` between them, with some environment variables.
#[track_caller]
fn checked(interpreter: &Path, checks: &[&str], environment: &[(String, String)]) {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "300"]).arg(interpreter).arg("tests/reference/package.py").args(checks);
    let output = command.current_dir(root()).envs(environment.iter().cloned()).output().expect("timeout(1) runs");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{checks:?}: {said}");
}

/// The package is typed, as its marker says; its pyproject.toml names the packages that are not.
#[test]
fn the_package_is_typed() {
    let Some(interpreter) = need::models_python() else { return };
    let fixture = Fixture::new();
    let mut command = Command::new(interpreter);
    command.args(["-m", "mypy", "--strict", "--cache-dir", &fixture.text("cache")]);
    let output = command.current_dir(root().join("launch/python")).output().expect("mypy runs");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

/// numpy's bf16, of a package that numpy knows nothing of.
#[test]
fn a_writer_takes_bf16_of_numpy() {
    let Some(interpreter) = need::models_python() else { return };
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("bfloat16")).expect("a folder");
    checked(&interpreter, &["bfloat16", &fixture.text("bfloat16")], &[]);
}

/// Rows of every format, those that are refused, and each once however often its writer was killed.
#[test]
fn a_writer_takes_what_there_is_and_refuses_the_rest() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::new();
    let [formats, refusals, columns, places, killed] =
        ["formats", "refusals", "columns", "places", "killed"].map(|name| {
            fs::create_dir(fixture.path(name)).expect("a folder");
            fixture.text(name)
        });
    let refusals = ["formats", &formats, "--", "refusals", &refusals, "--", "columns", &columns];
    checked(&interpreter, &[&refusals[..], &["--", "places", &places, "--", "killed", &killed, "5"]].concat(), &[]);
    // The loader verifies the checksums, and finds the columns.
    for folder in ["killed/whole", "killed/killed", "formats/own-bits", "formats/torch-f32"] {
        let report = sae::run(&["inspect", &fixture.text(folder), "--json"]).exits(0).json();
        assert_eq!(report["manifest"], "verified", "{folder}: {report}");
    }
    // Bits that changed are noticed by what the manifest has of them.
    let shard = fixture.path("killed/whole/shard-000007.parquet");
    let mut bytes = fs::read(&shard).expect("a shard");
    bytes[3000] ^= 1;
    fs::write(&shard, bytes).expect("written");
    sae::run(&["inspect", &fixture.text("killed/whole")]).exits(65).says(&["shard-000007.parquet"]);
}

/// The same rows in the same files train to the same bits, whether Rust has written them or Python.
#[test]
fn rows_from_python_train_to_the_same_bits() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::new();
    // Marked as shuffled, so that they come in their order; and rows whose order is drawn.
    let spec = synth::Spec { features: 128, width: 32, rows: 15_401, shards: 3, active: 4.0, ..Default::default() };
    fixture.synth("synth", &spec);
    write_shards(&fixture.path("plain"), 32, &plain_rows(9000, 32, 6), Dtype::F16, 3500);
    // Of several pages and row groups.
    write_shards(&fixture.path("wide"), 16_384, &plain_rows(1300, 16_384, 7), Dtype::F16, 1200);
    for of in ["synth", "plain", "wide"] {
        let again = format!("{of}-python");
        checked(&interpreter, &["rewrite", &fixture.text(of), &fixture.text(&again)], &[]);
        assert_eq!(chunks(&fixture, of), chunks(&fixture, &again), "{of}: other pages, or other checksums of them");
        if of == "wide" {
            assert_eq!(chunks(&fixture, of).len(), 3, "row groups");
            sae::run(&["inspect", &fixture.text(&again)]).exits(0);
            continue;
        }
        // The order of rows depends on names.
        for number in 0..3 {
            let [from, to] = [format!("{of}/shard-{number:05}.parquet"), format!("{of}/shard-{number:06}.parquet")];
            fs::rename(fixture.path(from), fixture.path(to)).expect("renamed");
        }
        fs::remove_file(fixture.path(of).join("manifest.json")).expect("removed");
        let (rust, python) = (trained(&fixture, of), trained(&fixture, &again));
        assert_eq!(rust.0, python.0, "metrics");
        assert_eq!(checkpoints::differing(&rust.1, &python.1), [""; 0]);
    }
}

/// The same of rows that `sae harvest` has made of a model, in the order that is drawn for them.
#[test]
fn rows_of_a_harvest_train_to_the_same_bits() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::new();
    let [model, text, out] = ["tiny", "text.jsonl", "harvest"].map(|name| fixture.text(name));
    tiny::model(Path::new(&model), true);
    fs::write(&text, tiny::json_lines(&tiny::documents(700, 30, 3))).expect("written");
    let what = ["harvest", &model, "--text", &text, "--out", &out, "--layer", "2"];
    // Without BOS every context is full, so that all shards have as many rows.
    let form = ["--context", "16", "--dtype", "f16", "--shard-rows", "3000", "--bos", "never"];
    sae::run(&[&what[..], &form].concat()).exits(0);
    checked(&interpreter, &["rewrite", &out, &fixture.text("harvest-python")], &[]);
    assert!(chunks(&fixture, "harvest").len() > 2, "several shards");
    assert_eq!(chunks(&fixture, "harvest"), chunks(&fixture, "harvest-python"), "other rows");
    let (rust, python) = (trained(&fixture, "harvest"), trained(&fixture, "harvest-python"));
    assert_eq!(rust.0, python.0, "metrics");
    assert_eq!(checkpoints::differing(&rust.1, &python.1), [""; 0]);
}

/// What a manifest says of each row group's activations: rows, bytes, and checksums of pieces.
fn chunks(fixture: &Fixture, data: &str) -> Vec<[String; 3]> {
    let manifest = fixture.json(&format!("{data}/manifest.json"));
    let shards = manifest["shards"].as_array().expect("shards").iter();
    let groups = shards.flat_map(|shard| shard["row_groups"].as_array().expect("row groups").clone());
    groups.map(|group| ["rows", "length", "pieces"].map(|key| group[key].to_string())).collect()
}

/// Losses and the last checkpoint of a run on a folder of shards.
fn trained(fixture: &Fixture, data: &str) -> (Vec<[String; 4]>, checkpoints::Tensors) {
    let mut recipe = fixture.recipe(&format!("run-{data}"));
    recipe.data.train = vec![fixture.text(data)];
    sae::run(&["train", &fixture.save(data, &recipe)]).exits(0);
    let run = fixture.path(format!("run-{data}"));
    let of = |line: serde_json::Value| ["step", "loss", "l0", "gradient_norm"].map(|key| line[key].to_string());
    let lines: Vec<_> = json_lines(&run.join("metrics.jsonl")).into_iter().map(of).collect();
    assert!(lines.len() > 3 && lines.iter().all(|line| line[1] != "null"), "{lines:?}");
    (lines, checkpoints::last(&run))
}

/// A recipe of which several checkpoints stay; features end inside a tile.
fn recipe(fixture: &Fixture, run: &str, adam: Adam) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.data.eval = vec![fixture.text("eval")];
    recipe.sae.features = 300;
    recipe.sae.bias_init = BiasInit::Calibrated;
    recipe.sae.bias_init_l0 = 8.0;
    recipe.train.adam = adam;
    recipe.checkpoint.every = Every::Steps(20);
    recipe.checkpoint.keep = 9;
    recipe.eval.every = 20;
    recipe
}

/// Weights are those of the export, bit by bit: of a run, of a step, in parts, with unit norms; also where updates are owed.
#[test]
fn a_run_is_read_as_it_is_exported() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::with_data();
    let mut checks: Vec<String> = Vec::new();
    let mut check = |words: &[&str]| {
        checks.extend(words.iter().map(|&word| word.to_owned()));
        checks.push("--".into());
    };
    for (run, adam) in [("dense", Adam::Dense), ("owing", Adam::Catchup)] {
        let mut recipe = recipe(&fixture, run, adam);
        if adam == Adam::Catchup {
            // So few rows that not every feature fires in the last batch.
            (recipe.train.batch, recipe.sae.bias_init_l0) = (16, 1.0);
            (recipe.checkpoint.every, recipe.train.tokens) = (Every::Steps(40), Some(1600));
        }
        sae::run(&["train", &fixture.save(run, &recipe)]).exits(0);
        for (name, options, which) in [
            ("all", &[][..], ""),
            ("unit", &["--unit-norm"], "unit_norm"),
            ("best", &["--checkpoint", "best"], "best"),
            ("step", &["--checkpoint", "40"], "40"),
            ("parts", &["--max-shard-size", "26000"], ""),
        ] {
            let [from, to] = [fixture.text(run), fixture.text(&format!("{run}-{name}"))];
            sae::run(&[&["export", &from, "--out", &to], options].concat()).exits(0);
            check(&["loads", &from, &to, which]);
        }
    }
    let [dense, narrow, export, damaged, hostile, train] =
        ["dense", "narrow", "dense-all", "damaged", "hostile", "train"].map(|name| fixture.text(name));
    sae::run(&["export", &dense, "--out", &narrow, "--dtype", "bf16"]).exits(0);
    check(&["loads", &narrow, &narrow]);
    let older = text(&root().join("tests/fixtures/format-1/run"));
    sae::run(&["export", &older, "--out", &fixture.text("older")]).exits(0);
    check(&["loads", &older, &fixture.text("older")]);
    checkpoints::copy(&fixture.path("dense"), Path::new(&damaged));
    checkpoints::copy(Path::new(&export), Path::new(&hostile));
    check(&["encodes", &dense, &export, &train]);
    check(&["scaled", &export, "--", "chosen", &export, &train]);
    check(&["damage", &damaged]);
    check(&["hostile_exports", &hostile]);
    let words: Vec<&str> = checks.iter().map(String::as_str).collect();
    checked(&interpreter, &words[..words.len() - 1], &[]);
}

/// Models of `transformers`: rows are their hidden states, tokens those of the texts, and every row comes once.
#[test]
fn a_harvest_is_the_hidden_states_of_transformers() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::new();
    let [llama, bert, again, shared, others, classes] =
        ["llama", "bert", "again", "shared", "others", "classes"].map(|name| fixture.text(name));
    let checks = ["harvests", &llama, "--", "special_tokens", &bert, "--", "harvest_again", &again];
    checked(
        &interpreter,
        &[&checks[..], &["--", "shared_parts", &shared, "--", "other_tokens", &others, "--", "classes", &classes]]
            .concat(),
        &[("TRANSFORMERS_OFFLINE".into(), "1".into())],
    );
    for folder in ["again/whole/layer-1", "again/whole/layer-3", "llama/0"] {
        let report = sae::run(&["inspect", &fixture.text(folder), "--json"]).exits(0).json();
        assert_eq!(report["manifest"], "verified", "{folder}: {report}");
    }
}

/// The same on an S3 server, where files have no names of the disk.
#[test]
fn shards_and_runs_may_lie_in_object_storage() {
    let Some(interpreter) = need::python() else { return };
    let fixture = Fixture::with_data();
    let s3 = S3::start(&interpreter);
    let environment = s3.environment();
    let pairs: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut recipe = recipe(&fixture, "run", Adam::Dense);
    recipe.run.dir = "s3://bucket/some/run".into();
    sae::run_with(&["train", &fixture.save("recipe", &recipe)], &pairs).exits(0);
    let local = fixture.text("export");
    for out in [local.as_str(), "s3://bucket/some/export"] {
        sae::run_with(&["export", &recipe.run.dir, "--out", out], &pairs).exits(0);
    }
    checked(&interpreter, &["remote", "s3://bucket/some", &local], &environment);
    let report = sae::run_with(&["inspect", "s3://bucket/some/written", "--json"], &pairs).exits(0).json();
    assert_eq!((report["manifest"].as_str(), report["rows"].as_u64()), (Some("verified"), Some(5000)), "{report}");
}
