//! What belongs to a run's data: shown, the same on an S3 server, found again behind links and in copies, and held out for good.

use std::fs;
use std::os::unix::fs::symlink;

use loader::Dtype;
use tests::fixture::{Fixture, plain_rows, write_shards};
use tests::s3::S3;
use tests::{checkpoints, need, sae};

/// Rows that are trained on say nothing about others: refused before the start, with both names.
#[test]
fn shards_that_are_trained_on_are_not_held_out() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    checkpoints::copy(&fixture.path("train"), &fixture.path("copy"));
    fs::create_dir(fixture.path("links")).expect("a folder");
    symlink(fixture.path("train/shard-00001.parquet"), fixture.path("links/other.parquet")).expect("a link");
    let both = |eval: &str, by: &str| {
        let eval = format!("data.eval={}", fixture.text(eval));
        for dry in [&["--dry-run"][..], &[]] {
            let words = [&["train", &path, "--set", &eval], dry].concat();
            sae::run(&words).exits(65).says(&[
                "train/shard-0000",
                "of data.train and",
                "of data.eval are the same shard",
                by,
            ]);
        }
    };
    both("train", "one file");
    both("train/*1.parquet", "one file");
    both("links", "one file");
    both("copy", "checksums");
    assert!(!fixture.path("run/config.toml").exists(), "nothing began");
    sae::run(&["inspect", &fixture.text("train"), &fixture.text("copy")]).exits(65).says(&["the same shard as"]);
}

/// Shards that are links, with a manifest that `sae inspect` wrote beside them: no command is locked out later.
#[test]
fn a_manifest_beside_links_locks_nobody_out() {
    let fixture = Fixture::with_data();
    for (name, shards) in [("train", 3), ("eval", 1)] {
        let links = fixture.path(format!("linked-{name}"));
        fs::create_dir(&links).expect("a folder");
        // The last shard by way of a folder.
        symlink(fixture.path(name), links.join("there")).expect("a link");
        let report = sae::run(&["inspect", &fixture.text(&format!("linked-{name}")), "--json"]).exits(0).json();
        assert_eq!((report["manifest"].as_str(), report["shards"].as_u64()), (Some("written"), Some(shards)));
    }
    let mut recipe = fixture.recipe("run");
    recipe.data.train = vec![fixture.text("linked-train")];
    recipe.data.eval = vec![fixture.text("linked-eval")];
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path, "--dry-run"]).exits(0);
    sae::run(&["train", &path]).exits(0);
    sae::run(&["train", &path, "--resume"]).exits(0);
    sae::run(&["eval", &fixture.text("run"), "--json"]).exits(0);
    sae::run(&["inspect", &fixture.text("linked-train")]).exits(0);
}

/// A copy that came without its manifest is not known by its checksums: the message says what makes it known.
#[test]
fn a_copy_without_its_manifest_is_made_known_by_inspect() {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe("run");
    recipe.data.eval = vec![fixture.text("eval")];
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path]).exits(0);
    for name in ["train", "eval"] {
        let moved = format!("moved-{name}");
        checkpoints::copy(&fixture.path(name), &fixture.path(&moved));
        fs::remove_file(fixture.path(&moved).join("manifest.json")).expect("removed");
        let resume = || {
            let data = format!("data.{name}={}", fixture.text(&moved));
            sae::run(&["train", &path, "--resume", "--set", &data])
        };
        let remedy = format!("`sae inspect {}`", fixture.text(&moved));
        resume().exits(64).says(&["no manifest lies beside the data now", &remedy]);
        sae::run(&["inspect", &fixture.text(&moved)]).exits(0);
        resume().exits(0);
    }
}

/// Folders, shards, and what was left out and why; on an S3 server as on a disk.
#[test]
fn what_belongs_is_shown_and_the_same_on_s3() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let environment = s3.environment();
    let pairs: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let fixture = Fixture::new();
    let mut seen = Vec::new();
    for root in [fixture.text("acts"), "s3://bucket/acts".to_owned()] {
        let run = |words: &[&str]| sae::run_with(words, &pairs);
        for (folder, rows) in [("layer=0", "500"), ("_layer=1", "600"), ("_temporary/0", "700"), (".trash", "800")] {
            let out = format!("{root}/{folder}");
            let shape = ["--features", "64", "--width", "16", "--rows", rows, "--active", "4", "--shards", "1"];
            run(&[&["synth", "--out", &out][..], &shape].concat()).exits(0);
        }
        let report = run(&["inspect", &root, "--json", "--no-write"]).exits(0).json();
        assert_eq!((report["rows"].as_u64(), report["shards"].as_u64()), (Some(1100), Some(2)), "{report}");
        let text = report.to_string().replace(&root, "ROOT");
        let folders = r#""folders":[{"folder":"ROOT/_layer=1","rows":600,"shards":1},{"folder":"ROOT/layer=0","rows":500,"shards":1}]"#;
        assert!(text.contains(folders), "{text}");
        let hidden = r#"{"count":2,"first":["ROOT/.trash/","ROOT/_temporary/"],"why":"hidden"}"#;
        assert!(text.contains(hidden) && text.contains("\"why\":\"other-name\""), "{text}");
        let shown = run(&["inspect", &root, "--no-write"]).exits(0).stdout;
        let hidden =
            format!("left out of the data: 2 whose names begin with . or _: {root}/.trash/, {root}/_temporary/");
        assert!(shown.contains(&hidden) && shown.contains("layer=0"), "{shown}");
        let mut recipe = fixture.recipe("run");
        recipe.data.train = vec![root.clone()];
        let dry = run(&["train", &fixture.save("recipe", &recipe), "--dry-run"]).exits(0).stdout;
        assert!(dry.contains("left out of data.train: 2 whose names") && dry.contains("layer=0"), "{dry}");
        seen.push(report["identity"].clone());
    }
    assert_eq!(seen[0], seen[1], "one rule, one data set");
}

/// Held-out rows that are not finite are known at the start, and named at the evaluation that they end; a list of them, which may grow
/// later, brings the run to its end.
#[test]
fn a_held_out_row_that_is_not_finite_can_be_left_out() {
    let fixture = Fixture::new();
    let mut rows = plain_rows(900, 16, 2);
    write_shards(&fixture.path("train"), 16, &plain_rows(3000, 16, 1), Dtype::F32, 1000);
    rows[16 * 345 + 3] = f32::NAN;
    write_shards(&fixture.path("eval"), 16, &rows, Dtype::F32, 300);
    let mut recipe = fixture.recipe("run");
    recipe.data.eval = vec![fixture.text("eval")];
    let path = fixture.save("recipe", &recipe);
    let warned = "1 of 900 sampled rows of data.eval hold NaN or infinite values";
    sae::run(&["train", &path, "--dry-run"]).exits(0).says(&[warned, "data.eval_skip"]);
    let row = "shard-00001.parquet:45";
    sae::run(&["train", &path]).exits(65).says(&[warned, &format!("held-out row {row}"), "data.eval_skip"]);
    let resume = |skip: &str| sae::run(&["train", &path, "--resume", "--set", &format!("data.eval_skip=[\"{skip}\"]")]);
    resume("shard-00009.parquet:45").exits(64).says(&["data.eval_skip: ", "names no row of data.eval"]);
    resume(row).exits(0);
    assert_eq!(fixture.json("run/summary.json")["evaluated_on"], "eval");
    sae::run(&["train", &path, "--resume"]).exits(64).says(&["data.eval_skip may only grow"]);
    // Evaluations leave it out too, where they are of these rows.
    let run = fixture.text("run");
    assert_eq!(sae::run(&["eval", &run, "--json"]).exits(0).json()["rows"], 899);
    sae::run(&["eval", &run, "--data", &fixture.text("train")]).exits(0);
    // A filter does as well, from the start.
    let filtered = ["--set", "data.filter.finite=true", "--set", &format!("run.dir={}", fixture.text("filtered"))];
    let finished = sae::run(&[&["train", &path][..], &filtered].concat()).exits(0);
    assert!(!finished.stderr.contains("not finite") && !finished.stderr.contains(warned), "{}", finished.stderr);
}
