//! `sae encode`: what it writes against NumPy on an export, the same bytes however they come about, and what it refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use loader::{Dtype, synth};
use tests::fixture::{Fixture, Numbers, json, plain_rows, text, write_shards};
use tests::pairs::pairs;
use tests::processes::wait_for;
use tests::s3::S3;
use tests::{checkpoints, need, root, sae};
use trainer::recipe::{BiasInit, Every, Recipe};

/// A run on rows of width 32 with about eight features active on each.
fn trained(fixture: &Fixture, change: impl Fn(&mut Recipe)) -> Recipe {
    let mut recipe = fixture.recipe("run");
    recipe.sae.features = 300;
    (recipe.sae.bias_init, recipe.sae.bias_init_l0) = (BiasInit::Calibrated, 8.0);
    recipe.checkpoint.every = Every::Steps(1000);
    change(&mut recipe);
    sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
    recipe
}

fn encode(arguments: &[&str]) -> sae::Finished {
    sae::run(&[&["encode"], arguments, &["--device", "cpu"]].concat())
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut all, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(of) = folders.pop() {
        for entry in fs::read_dir(&of).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = text(path.strip_prefix(folder).expect("below"));
                all.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    all
}

#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let differ: Vec<&String> =
        one.iter().filter(|(name, bytes)| other[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(differ.is_empty(), "{differ:?} differ");
}

/// The same, but for what a kill left half written: it has a name that nothing reads.
#[track_caller]
fn assert_same_but_for_temporary(whole: &Path, killed: &Path) {
    let written = files(whole);
    for name in files(killed).into_keys().filter(|name| !written.contains_key(name)) {
        assert!(name.rsplit('/').next().is_some_and(|name| name.starts_with('.')), "{name}");
        fs::remove_file(killed.join(name)).expect("removed");
    }
    assert_same(whole, killed);
}

/// How many parts are committed.
fn markers(folder: &Path) -> usize {
    let names = fs::read_dir(folder.join("parts")).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with(|c: char| c.is_ascii_digit())).count()
}

/// What is written is what NumPy makes of the export, with the columns that came along: of a run, of its export, of an export in the
/// layout of dictionary_learning, of one of features that are alive, which keep their numbers; with a filter, in shards of features, and
/// of a dictionary of which half the features fire.
#[test]
fn pairs_are_those_of_numpy_on_the_export() {
    let Some(interpreter) = need::python() else { return };
    let python = |arguments: &[&str]| {
        let mut command = Command::new(&interpreter);
        let output = command.arg("tests/reference/encoded.py").args(arguments).current_dir(root()).output();
        let output = output.expect("Python runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
    };
    let fixture = Fixture::new();
    let data = fixture.text("train");
    python(&["make", &data]);
    let rows: Vec<String> = (0..3).map(|shard| format!("{data}/part-{shard}.parquet")).collect();
    let recipe = trained(&fixture, |recipe| {
        recipe.train.batch = 100;
        recipe.train.dead_window = 1;
        recipe.train.l1 = 5.0;
        recipe.data.filter.positions = vec![0];
    });
    let run = &recipe.run.dir;
    for (name, options) in
        [("saelens", &[][..]), ("dictionary", &["--format", "dictionary-learning"]), ("alive", &["--alive-only"])]
    {
        sae::run(&[&["export", run, "--out", &fixture.text(name)], options].concat()).exits(0);
    }
    let check = |encoded: &str, export: &str, more: &[&str]| {
        let (encoded, export) = (fixture.text(encoded), fixture.text(export));
        let mut arguments = vec!["check", "--encoded", &encoded, "--export", &export, "--rows"];
        arguments.extend(rows.iter().map(String::as_str));
        arguments.extend(more);
        python(&arguments);
    };
    let encoded = |from: &str, out: &str, more: &[&str]| {
        encode(&[&[from, "--data", &data, "--out", &fixture.text(out)], more].concat()).exits(0)
    };
    encoded(run, "of-run", &["--part-rows", "300"]).says(&["column neighbours does not go along", "it holds lists"]);
    check("of-run", "saelens", &["--drop-position", "0"]);
    encoded(run, "all-rows", &["--no-filter"]);
    check("all-rows", "saelens", &[]);
    for (export, more) in [("saelens", &[][..]), ("dictionary", &[]), ("alive", &["--ids"])] {
        let out = format!("of-{export}");
        encoded(&fixture.text(export), &out, &[]);
        check(&out, export, more);
    }
    encoded(run, "cut", &["--no-filter", "--feature-shards", "3"]);
    let bits = |of: &str| pairs(&fixture.path(of)).into_iter().map(|(pair, value)| (pair, value.to_bits()));
    assert!(bits("cut").eq(bits("all-rows")), "shards of features hold the same bits");
    assert!(fixture.path("cut/activations/part-000000-02.parquet").exists());

    let dense = trained(&fixture, |recipe| {
        recipe.sae.bias_init = BiasInit::Zero;
        (recipe.train.lr, recipe.train.batch) = (1e-6, 100);
        recipe.run.dir = fixture.text("dense");
    });
    sae::run(&["export", &dense.run.dir, "--out", &fixture.text("dense-export")]).exits(0);
    encoded(&dense.run.dir, "of-dense", &["--part-rows", "300"]);
    assert!(fixture.json("of-dense/encoding.json")["l0"].as_f64().expect("a number") > 100.0);
    check("of-dense", "dense-export", &[]);
}

/// A dictionary that dictionary_learning's own trainer has made, in the formats in which its folders are read: the activations are its own.
#[test]
fn dictionaries_of_dictionary_learning_encode_as_they_do_there() {
    let Some(interpreter) = need::models_python() else { return };
    let fixture = Fixture::with_data();
    let python = |arguments: &[&str]| {
        let mut command = Command::new(&interpreter);
        let output = command.arg("tests/reference/dictionaries.py").args(arguments).current_dir(root()).output();
        let output = output.expect("Python runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let [theirs, train, eval] = ["theirs", "train", "eval"].map(|name| fixture.text(name));
    python(&["make", &theirs, &train]);
    for format in ["safetensors", "pickle"] {
        let out = fixture.text(format);
        encode(&[&format!("{theirs}/{format}"), "--data", &eval, "--out", &out]).exits(0);
        python(&["check", &theirs, &eval, &out]);
    }
}

/// One worker, three workers, and workers that are killed again and again leave the same bytes, each pair once.
#[test]
fn workers_and_kills_leave_the_same_bytes() {
    let fixture = Fixture::new();
    let spec = synth::Spec { features: 128, width: 32, rows: 12_000, shards: 5, active: 4.0, ..Default::default() };
    fixture.synth("train", &spec);
    let recipe = trained(&fixture, |_| {});
    let data = fixture.text("train");
    // As many parts as shards: a part holds whole row groups.
    let on = |data: &str, out: &str, more: &[&str]| {
        let out = fixture.text(out);
        let words = ["encode", &recipe.run.dir, "--data", data, "--out", &out, "--part-rows", "500", "--device", "cpu"];
        sae::sae(&[&words[..], more].concat())
    };
    let ends = |mut command: Command| {
        let output = command.output().expect("sae runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let command = |out: &str, more: &[&str]| on(&data, out, more);
    let run = |out: &str, more: &[&str]| ends(command(out, more));
    let started = Instant::now();
    let said = run("whole", &[]);
    let wall = started.elapsed();
    assert!(said.contains("L0") && said.contains("next, in Python"), "{said}");
    let whole = fixture.path("whole");
    let says = fixture.json("whole/encoding.json");
    assert_eq!((says["rows"].as_u64(), says["data"]["rows"].as_u64()), (Some(12_000), Some(12_000)));
    let parts = says["files"].as_array().expect("files").len() / 2;
    assert!(parts >= 5, "{parts} parts");

    assert!(run("three", &["--worker", "0/3"]).contains("are still to be made by others"));
    assert!(!fixture.path("three/encoding.json").exists());
    run("three", &["--worker", "2/3"]);
    assert!(run("three", &["--worker", "1/3"]).contains("L0"), "the last closes the folder");
    assert_same(&whole, &fixture.path("three"));
    run("three", &[]);
    assert_same(&whole, &fixture.path("three"));

    let mut array = command("array", &[]);
    array.envs([("SLURM_ARRAY_TASK_ID", "4"), ("SLURM_ARRAY_TASK_MIN", "3"), ("SLURM_ARRAY_TASK_COUNT", "2")]);
    assert!(array.output().expect("sae runs").status.success());
    assert_eq!(fs::read_dir(fixture.path("array/rows")).expect("its parts").count(), parts / 2, "every other part");

    let mut numbers = Numbers::new(3);
    let mut kills = 0;
    while !fixture.path("killed/encoding.json").exists() {
        let mut child = command("killed", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sae starts");
        if kills < 20 {
            std::thread::sleep(wall.mul_f64(f64::from(numbers.unit().abs())));
            let _ = child.kill();
        }
        kills += u32::from(child.wait().expect("it ends").code().is_none());
    }
    assert_same_but_for_temporary(&whole, &fixture.path("killed"));

    // In many parts, so that no worker is done before anything could happen to it. Two at once, of which one is killed; each with parts of
    // its own, and both with all of them.
    fixture.synth("in-many", &synth::Spec { shards: 24, ..spec });
    let in_many = fixture.text("in-many");
    let many = |out: &str, more: &[&str]| on(&in_many, out, more);
    ends(many("many", &[]));
    let whole = fixture.path("many");
    assert!(markers(&whole) >= 24, "{} parts", markers(&whole));
    for (out, workers) in [("two", ["0/2", "1/2"]), ("twice", ["0/1", "0/1"])] {
        let of = |worker| many(out, &["--worker", worker]);
        sae::kill_one_of_two(workers.map(of), || markers(&fixture.path(out)) >= 2);
        assert_eq!(fixture.path(out).join("encoding.json").exists(), workers[0] == workers[1], "{workers:?}");
        ends(many(out, &["--worker", workers[0]]));
        assert_same_but_for_temporary(&whole, &fixture.path(out));
    }

    // A signal leaves the part that is being made, and says how to go on.
    let child = many("stopped", &[]).stderr(Stdio::piped()).spawn().expect("sae starts");
    wait_for("a part", || (markers(&fixture.path("stopped")) >= 1).then_some(()));
    sae::signal(&child, "TERM");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("the same command goes on"), "{said}");
    assert!(!fixture.path("stopped/encoding.json").exists() && markers(&fixture.path("stopped")) < markers(&whole));
    ends(many("stopped", &[]));
    assert_same(&whole, &fixture.path("stopped"));
}

/// Rows that are not finite, rows of another width, another plan, columns that are not there: one message each, with what to do.
#[test]
fn what_cannot_be_encoded_is_explained() {
    let fixture = Fixture::new();
    let mut rows = plain_rows(600, 32, 3);
    write_shards(&fixture.path("train"), 32, &rows, Dtype::F32, 300);
    let recipe = trained(&fixture, |recipe| recipe.train.batch = 64);
    let run = &recipe.run.dir;
    rows[450 * 32 + 7] = f32::NAN;
    write_shards(&fixture.path("bad"), 32, &rows, Dtype::F32, 200);
    let (bad, out) = (fixture.text("bad"), fixture.text("out"));
    let of_bad = [run, "--data", &bad, "--out", &out, "--part-rows", "200"];
    encode(&of_bad).exits(65).says(&["shard-00002.parquet:50", "NaN or infinite", "--skip shard-00002.parquet:50"]);
    // What is there stays, and the row alone is left out.
    encode(&[&of_bad[..], &["--skip", "shard-00002.parquet:50"]].concat()).exits(0);
    let says = fixture.json("out/encoding.json");
    assert_eq!((says["rows"].as_u64(), says["skipped"].as_u64()), (Some(599), Some(1)));
    assert_eq!(says["skip"], serde_json::json!(["shard-00002.parquet:50"]));
    let encoded: BTreeSet<u64> = pairs(&fixture.path("out")).into_keys().map(|(row, _)| row).collect();
    assert!(!encoded.contains(&450) && encoded.contains(&449) && encoded.len() > 500);
    let later = [&of_bad[..], &["--skip", "shard-00000.parquet:1"]].concat();
    encode(&later).exits(64).says(&["--skip shard-00000.parquet:1", "part 0 was made with its rows"]);
    encode(&[&of_bad[..], &["--skip", "shard-00009.parquet:1"]].concat()).exits(64).says(&["names no row of --data"]);

    let (train, fresh) = (fixture.text("train"), fixture.text("fresh"));
    encode(&[run, "--data", &train, "--out", &out])
        .exits(64)
        .says(&["other options or data", "part rows: 200 there, 65536 here"]);
    for (data, inside) in
        [("train", "train"), ("train", "train/encoded"), ("train/*.parquet", "train"), ("tr*/*.parquet", "train/x")]
    {
        let out = fixture.text(inside);
        encode(&[run, "--data", &fixture.text(data), "--out", &out])
            .exits(64)
            .says(&["lies in --data", "outside of it"]);
    }
    let of_fresh = [run, "--data", &train, "--out", &fresh];
    encode(&[&of_fresh[..], &["--columns", "token_id"]].concat())
        .exits(64)
        .says(&["--columns token_id", "the data have none"]);
    encode(&[&of_fresh[..], &["--columns", "token_id,doc_id,token_id"]].concat())
        .exits(64)
        .says(&["--columns token_id is there twice"]);
    encode(&[&of_fresh[..], &["--checkpoint", "7"]].concat()).exits(64).says(&["no committed checkpoint of step 7"]);
    encode(&[&of_fresh[..], &["--worker", "3/3"]].concat()).exits(64).says(&["worker 3 of 3"]);
    write_shards(&fixture.path("narrow"), 16, &plain_rows(100, 16, 1), Dtype::F32, 300);
    let narrow = fixture.text("narrow");
    encode(&[run, "--data", &narrow, "--out", &fresh]).exits(65).says(&["rows of width 16", "takes 32"]);
    encode(&[&train, "--data", &train, "--out", &fresh]).exits(65).says(&["holds no committed checkpoint"]);
    assert!(!fixture.path("fresh").exists(), "nothing is begun that cannot be done");

    // A damaged file of weights is named before a part is made.
    let attempt = checkpoints::committed(Path::new(run)).pop().expect("a checkpoint");
    let weights = attempt.join("weights-000000.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).expect("written");
    encode(&of_fresh).exits(65).says(&["weights-000000.safetensors"]);
}

/// A folder with several dictionaries below it, as one of the Hugging Face Hub has, names them; one of them is evaluated and encoded.
#[test]
fn a_folder_of_several_dictionaries_names_them() {
    let fixture = Fixture::with_data();
    let recipe = trained(&fixture, |recipe| recipe.train.tokens = Some(2560));
    for hook in ["blocks.3.hook_resid_post", "blocks.7.hook_resid_post"] {
        let out = fixture.text(&format!("hub/{hook}"));
        sae::run(&["export", &recipe.run.dir, "--out", &out, "--hook", hook]).exits(0);
    }
    let (hub, eval) = (fixture.text("hub"), fixture.text("eval"));
    for command in ["eval", "encode"] {
        let out = fixture.text("none");
        let more = if command == "encode" { &["--out", &out][..] } else { &[] };
        let said = sae::run(&[&[command, &hub, "--data", &eval], more].concat()).exits(65);
        said.says(&["2 dictionaries below it", "blocks.3.hook_resid_post, blocks.7.hook_resid_post"]);
    }
    // Those of dictionary_learning, in safetensors and in its own archive.
    for name in ["trainer_0", "trainer_1", "unnamed"] {
        let out = fixture.text(&format!("theirs/{name}"));
        sae::run(&["export", &recipe.run.dir, "--out", &out, "--format", "dictionary-learning"]).exits(0);
    }
    let theirs = fixture.path("theirs");
    fs::rename(theirs.join("trainer_1/ae.safetensors"), theirs.join("trainer_1/ae.pt")).expect("renamed");
    fs::remove_file(theirs.join("unnamed/config.json")).expect("removed");
    let said = sae::run(&["eval", &fixture.text("theirs"), "--data", &eval]).exits(65);
    said.says(&["2 dictionaries below it", "trainer_0, trainer_1"]);
    let one = format!("{hub}/blocks.7.hook_resid_post");
    let of_run = sae::run(&["eval", &recipe.run.dir, "--data", &eval, "--json"]).exits(0).json();
    let of_export = sae::run(&["eval", &one, "--data", &eval, "--json"]).exits(0).json();
    for key in ["explained_variance", "explained_variance_rows", "normalized_mse", "l0"] {
        let (a, b) = (of_run[key].as_f64().expect("a number"), of_export[key].as_f64().expect("a number"));
        assert!((a - b).abs() <= 1e-4 * b.abs(), "{key}: {a} of the run, {b} of its export");
    }
    assert!(of_export["step"].is_null() && of_export["dead_fraction"].is_null());
    assert_eq!(of_export["loss"], of_export["mse"], "no λ is known");
    encode(&[&one, "--data", &eval, "--out", &fixture.text("encoded")]).exits(0);
    let says = json(&fixture.path("encoded/encoding.json"));
    assert!((says["l0"].as_f64().expect("a number") - of_export["l0"].as_f64().expect("a number")).abs() < 1e-6);
}

/// Run, data and pairs in object storage: the bytes of local ones. A folder there that has dictionaries below it names them.
#[test]
fn any_store_will_do() {
    let Some(python) = need::python() else { return };
    let s3 = S3::start(&python);
    let fixture = Fixture::new();
    let spec = synth::Spec { features: 128, width: 32, rows: 4000, shards: 2, active: 4.0, ..Default::default() };
    fixture.synth("train", &spec);
    let recipe = trained(&fixture, |recipe| recipe.train.tokens = Some(2560));
    let environment = s3.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let on_s3 = |words: &[&str]| sae::run_with(words, &environment);
    for (name, bytes) in files(&fixture.path("train")) {
        s3.put(&format!("train/{name}"), &bytes);
    }
    for (name, bytes) in files(Path::new(&recipe.run.dir)) {
        s3.put(&format!("run/{name}"), &bytes);
    }
    let words = |run: &str, data: &str, out: &str| {
        ["encode", run, "--data", data, "--out", out, "--part-rows", "1000", "--device", "cpu"].map(str::to_owned)
    };
    let encoded = |run: &str, data: &str, out: &str, workers: &[&str]| {
        for worker in workers {
            let words = words(run, data, out);
            on_s3(&[&words.each_ref().map(String::as_str)[..], &["--worker", worker]].concat()).exits(0);
        }
    };
    encoded(&recipe.run.dir, &fixture.text("train"), &fixture.text("local"), &["0/1"]);
    encoded("s3://bucket/run", "s3://bucket/train", "s3://bucket/encoded", &["1/2", "0/2"]);
    let local = files(&fixture.path("local"));
    assert!(local.len() >= 8, "{:?}", local.keys());
    for (name, bytes) in local {
        assert!(s3.get(&format!("encoded/{name}")) == bytes, "{name}");
    }

    for hook in ["blocks.3.hook_resid_post", "blocks.7.hook_resid_post"] {
        let out = format!("s3://bucket/hub/{hook}");
        on_s3(&["export", &recipe.run.dir, "--out", &out, "--hook", hook]).exits(0);
    }
    on_s3(&["eval", "s3://bucket/hub", "--data", "s3://bucket/train"])
        .exits(65)
        .says(&["2 dictionaries below it", "blocks.3.hook_resid_post, blocks.7.hook_resid_post"]);
    on_s3(&["eval", "s3://bucket/hub/blocks.7.hook_resid_post", "--data", "s3://bucket/train"]).exits(0);
}
