//! Keys of every kind on every store: what a user types, what is stored and what is listed are the same text.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use kernels::cpu::Cpu;
use loader::{Dataset, Dtype, InspectOptions, OpenOptions, ShardWriter, Store, WriteOptions, inspect};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use tests::fixture::{Fixture, json_lines, plain_rows, text, write_shards};
use tests::s3::{S3, spool};
use tests::sae::{self, Finished};
use tests::{checkpoints, need};
use trainer::recipe::{Every, Recipe};
use trainer::train::{Event, Start, train};
use trainer::{checkpoint, evaluate};

/// What people and programs put into names, and what means something to a URL, a shell, a pattern or XML.
const PIECES: [&str; 24] = [
    "a", "%3A", "%20", "%", "~", "[0]", "]", "#", "?", "*", " ", "ü", "層", "🌊", "\\", "{}", "\"", "'", "<&>", "=",
    "+", ":1", "_", ".",
];

/// A part of a key.
fn part() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(&PIECES[..]).prop_map(str::to_owned),
        // Behind `$` a name would be a variable, unless a folder is called so: `NASTY` is.
        1 => any::<char>().prop_filter("a key can have it", |c| !c.is_control() && !"/$".contains(*c)).prop_map(String::from),
    ];
    let part = prop::collection::vec(piece, 1..5).prop_map(|pieces| pieces.concat());
    // A file's name ends with .x, so that no folder is in the way of one.
    part.prop_filter("a folder can have it", |part| part != "." && part != ".." && !part.ends_with(".x"))
}

/// Takes random keys below `root`, which takes so many cases, through writing, listing and reading, as text and back.
fn keys_go_in_and_out(root: &str, cases: u32) {
    let number = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let folders = prop::collection::vec(part(), 0..3);
    let strategy = (part(), prop::collection::btree_set((folders, part()), 1..4));
    let result = runner.run(&strategy, |(top, keys)| {
        number.set(number.get() + 1);
        let outer = Store::open(&format!("{root}/{}", number.get())).expect("a folder");
        let store = Store::open(&outer.url_of(&top)).expect("a folder");
        let keys: Vec<String> =
            keys.iter().map(|(folders, name)| [&folders[..], &[format!("{name}.x")]].concat().join("/")).collect();
        for (i, key) in keys.iter().enumerate() {
            match i % 2 {
                0 => store.put(key, key.clone().into_bytes()).expect("stored"),
                _ => {
                    let (folder, name) = Store::open_file(&store.url_of(key)).expect("a file");
                    assert!(folder.put_new(&name, key.clone().into_bytes()).expect("stored"));
                }
            }
        }
        let mut sorted = keys.clone();
        sorted.sort();
        let listed =
            |store: &Store| store.list("").expect("listed").into_iter().map(|entry| entry.key).collect::<Vec<_>>();
        prop_assert_eq!(listed(&store), sorted.clone());
        prop_assert_eq!(listed(&outer), sorted.iter().map(|key| format!("{top}/{key}")).collect::<Vec<_>>());
        for key in &keys {
            let (folder, name) = Store::open_file(&outer.url_of(&format!("{top}/{key}"))).expect("a file");
            prop_assert_eq!(&folder.get(&name).expect("read")[..], key.as_bytes());
            let size = store.head(key).expect("asked").expect("there").size;
            prop_assert_eq!(&store.get_range(key, 1..size).expect("read")[..], &key.as_bytes()[1..]);
        }
        store.delete(&keys[0]).expect("removed");
        sorted.retain(|key| *key != keys[0]);
        prop_assert_eq!(listed(&store), sorted);
        let folder = outer.url_of(&format!("{top}/{}", keys[0]));
        rows_go_in_and_out(&folder, &format!("s{top}"));
        a_run_goes_on_and_is_read(&folder, &outer.url_of(&format!("{top}/r{}", keys[0])));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Shards of any name in a folder of any name are a data set, by the folder, by a file and by a pattern.
fn rows_go_in_and_out(folder: &str, name: &str) {
    let store = Store::open(folder).expect("a folder");
    let options = WriteOptions { prefix: name.to_owned(), ..WriteOptions::new(8, Dtype::F16) };
    let mut writer = ShardWriter::create(&store, options).expect("a writer");
    // Numbers from 1 on.
    let rows: Vec<u8> = (0..5 * 8).flat_map(|i| (0x3c00 + i as u16).to_le_bytes()).collect();
    writer.write(&rows, &[]).expect("rows are written");
    writer.finish().expect("a manifest is written");
    let shard =
        store.list("").expect("listed").into_iter().find(|entry| entry.key.starts_with(name)).expect("a shard").key;
    for text in [store.url().to_owned(), store.url_of(&shard), format!("{}/*.parquet", store.url())] {
        let rows = Dataset::open(std::slice::from_ref(&text), &OpenOptions::default())
            .unwrap_or_else(|error| panic!("{error}"))
            .rows();
        assert_eq!(rows, 5, "{text}");
        assert_eq!(
            inspect(std::slice::from_ref(&text), InspectOptions::default()).expect("read").looked_at,
            5,
            "{text}"
        );
    }
}

/// A run in a folder of any name, on data in another: it is stopped, goes on, and its end is found and read.
fn a_run_goes_on_and_is_read(data: &str, run: &str) {
    // One for each start: what ends one tells its device.
    let device = || Cpu::new(Some(1)).expect("threads");
    let mut recipe: Recipe =
        toml::from_str("[data]\ntrain = ''\n[sae]\nfeatures = 128\n[run]\ndir = ''\n").expect("a recipe");
    (recipe.data.train, recipe.data.eval, recipe.run.dir) = (vec![data.to_owned()], Vec::new(), run.to_owned());
    (recipe.train.batch, recipe.train.threads) = (2, Some(1));
    let start = |resume, stop_at| {
        let (stop, mut from) = (AtomicBool::new(false), None);
        let watch = Box::new(|event: Event<'_>| match event {
            Event::Start { step, .. } => from = Some(step),
            Event::Step { step, .. } => stop.store(step == stop_at, Ordering::Relaxed),
            _ => {}
        });
        let store = &Store::open(&recipe.run.dir).expect("a folder");
        let done = train(
            &device(),
            &recipe,
            Start { store, resume, commit: "", stop: &stop, host_ranks: 1, words: ToString::to_string, watch },
        );
        (from, done.map(|summary| summary.steps))
    };
    let stopped = start(false, 1);
    assert!(matches!(stopped, (Some(0), Err(trainer::Error::Interrupted { .. }))), "{stopped:?} in {run}");
    let again = start(false, 1);
    assert!(matches!(&again, (None, Err(error)) if error.to_string().contains("already holds a run")), "{again:?}");
    let (from, steps) = start(true, 0);
    let from = from.expect("it begins");
    assert!(from > 0 && from < 3 && steps.expect("its end") == 3, "{run} goes on from {from}");
    let (store, found) = checkpoint::open(run).expect("a checkpoint");
    assert_eq!((store.url(), found.manifest.step), (Store::open(run).expect("a folder").url(), 3));
    evaluate::load(&device(), &store, &found, 2).expect("its weights");
}

#[test]
fn keys_go_in_and_out_of_folders_and_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = text(folder.path());
    keys_go_in_and_out(&path, 24);
    keys_go_in_and_out(&format!("file://{path}/a%20b"), 8);
    keys_go_in_and_out("memory://keys", 24);
}

/// Credentials come from the environment, which a process does not change for itself: another one runs with it.
#[test]
fn keys_go_in_and_out_of_s3() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let mut inside = Command::new(std::env::current_exe().expect("a process knows its file"));
    let output = inside
        .args(["--exact", "inside_s3", "--ignored", "--nocapture"])
        .envs(s3.environment())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "keys_go_in_and_out_of_s3 starts it, with the environment of its server"]
fn inside_s3() {
    keys_go_in_and_out("s3://bucket/keys", 12);
}

/// A folder with all that a name may have, and its file names; each of them was another key, a pattern, cut or refused somewhere.
const NASTY: &str = "n%3A~ü層 [0]#1?=*\\%20'$a";

/// Rows in shards with such names, in `train` and `eval` below a folder with another.
fn nasty_data(fixture: &Fixture) -> String {
    let root = fixture.path(NASTY);
    std::fs::create_dir(&root).expect("a folder");
    for (set, rows, seed) in [("train", 4096, 3), ("eval", 512, 4)] {
        let folder = root.join(set);
        write_shards(&folder, 16, &plain_rows(rows, 16, seed), Dtype::F32, 2048);
        std::fs::remove_file(folder.join("manifest.json")).expect("removed");
        for (i, shard) in shards(&folder).into_iter().enumerate() {
            std::fs::rename(shard, folder.join(format!("a#{i}:b{NASTY}.parquet"))).expect("renamed");
        }
    }
    text(&root)
}

fn shards(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "parquet"));
    files.sort();
    files
}

fn nasty_recipe(fixture: &Fixture, root: &str) -> Recipe {
    let mut recipe = fixture.recipe("");
    (recipe.data.train, recipe.data.eval) = (vec![format!("{root}/train")], vec![format!("{root}/eval")]);
    recipe.data.skip = vec![format!("a#0:b{NASTY}.parquet:7"), format!("a#1:b{NASTY}.parquet:0")];
    recipe.run.dir = format!("{root}/run#1");
    (recipe.train.batch, recipe.checkpoint.every, recipe.log.every) = (16, Every::Steps(20), 1);
    recipe.sae.features = 128;
    recipe
}

/// Trains, stops, goes on, looks at the data and at the run under such names; gives what the run measured at its end.
fn nasty_run(fixture: &Fixture, root: &str, environment: &[(&str, &str)]) -> Value {
    let recipe = nasty_recipe(fixture, root);
    let path = fixture.save("nasty", &recipe);
    let sae = |args: &[&str]| sae::run_with(args, environment);
    let temporary = environment.iter().find(|(name, _)| *name == "TMPDIR").map(|(_, folder)| Path::new(*folder));
    stop(&path, environment, || match temporary {
        Some(temporary) => spool(temporary).map(|folder| folder.join("metrics.jsonl")),
        None => Some(Path::new(&recipe.run.dir).join("metrics.jsonl")),
    });
    sae(&["train", &path]).exits(64).says(&["already holds a run"]);
    sae(&["train", &path, "--resume"]).exits(0);
    sae(&["train", &path, "--resume-or-start"]).exits(0);

    let shard = format!("{root}/train/a#1:b{NASTY}.parquet");
    let rows = |finished: Finished| finished.exits(0).json()["rows"].as_u64();
    assert_eq!(rows(sae(&["inspect", &shard, "--json"])), Some(2048));
    assert_eq!(
        rows(sae(&["inspect", &format!("{root}/train/*1:b*.parquet"), "--json"])),
        Some(2048),
        "a pattern in a literal folder"
    );
    assert_eq!(rows(sae(&["inspect", &format!("{root}/train"), "--json"])), Some(4096));
    // What is printed can be typed again.
    let measured = sae(&["eval", &recipe.run.dir, "--json"]).exits(0).json();
    let checkpoint = measured["checkpoint"].as_str().expect("a checkpoint");
    assert!(checkpoint.starts_with(&recipe.run.dir), "{checkpoint}");
    let again = sae(&["eval", checkpoint, "--data", &format!("{root}/eval"), "--json"]).exits(0).json();
    assert_eq!(measured["loss"], again["loss"]);
    let out = format!("{root}/out[1]");
    sae(&["export", &recipe.run.dir, "--format", "saelens", "--out", &out]).exits(0);
    sae(&["export", &recipe.run.dir, "--format", "saelens", "--out", &out])
        .exits(64)
        .says(&["already holds an export", &out]);
    measured
}

/// Starts a run and stops it at its 30th metrics line, behind a checkpoint.
fn stop(recipe: &str, environment: &[(&str, &str)], metrics: impl Fn() -> Option<std::path::PathBuf>) {
    let mut command = sae::sae(&["train", recipe]);
    let mut child = command
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sae starts");
    let lines = || metrics().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default().lines().count();
    while lines() < 30 && child.try_wait().expect("a child has a state").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    sae::signal(&child, "TERM");
    assert_eq!(child.wait().expect("a child can be waited for").code(), Some(75));
}

#[test]
fn a_run_and_its_data_may_have_any_name() {
    let fixture = Fixture::new();
    let root = nasty_data(&fixture);
    let here = nasty_run(&fixture, &root, &[]);
    let lines = json_lines(&Path::new(&root).join("run#1/metrics.jsonl"));
    assert!(lines.len() > 200, "each step has its line, once: {}", lines.len());

    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let temporary = fixture.path("tmp");
    std::fs::create_dir(&temporary).expect("a folder is made");
    let mut environment = s3.environment();
    environment.push(("TMPDIR".into(), text(&temporary)));
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    for set in ["train", "eval"] {
        for shard in shards(&Path::new(&root).join(set)) {
            let name = shard.file_name().and_then(|name| name.to_str()).expect("a name");
            s3.put(&format!("{NASTY}/{set}/{name}"), &std::fs::read(&shard).expect("read"));
        }
    }
    let there = nasty_run(&fixture, &format!("s3://bucket/{NASTY}"), &environment);
    assert_eq!(there["loss"], here["loss"]);
    // The keys are the text, to a client that is not ours.
    let folder = checkpoints_of(&s3);
    for (name, bytes) in checkpoints::last(&Path::new(&root).join("run#1")) {
        assert!(s3.get(&format!("{NASTY}/run#1/{folder}/{name}")) == bytes, "{name} differs");
    }
    assert!(s3.find(&format!("{NASTY}/out[1]/cfg.json")).is_some());

    // As plain HTTP, where a URL is encoded.
    let shard = format!("a#1:b{NASTY}.parquet");
    let url = Store::open(&s3.publish()).expect("a folder").url_of(&format!("{NASTY}/train/{shard}"));
    assert!(url.contains("n%253A~ü層%20%5B0%5D%231%3F=%2A%5C%2520'$a/train"), "{url}");
    let found = sae::run(&["inspect", &url, "--json"]).exits(0).json();
    assert_eq!(found["rows"].as_u64(), Some(2048));
    sae::run(&["inspect", &url.replace("%23", "#")]).exits(64).says(&["write %23"]);
}

fn checkpoints_of(s3: &S3) -> String {
    let summary: Value = serde_json::from_slice(&s3.get(&format!("{NASTY}/run#1/summary.json"))).expect("a summary");
    summary["checkpoint"].as_str().expect("a checkpoint").to_owned()
}

/// Keys that the client cannot name hide no others, and are named once.
#[test]
fn keys_that_cannot_be_named_are_told_and_hide_no_others() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::start(&interpreter);
    let environment = s3.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let fixture = Fixture::new();
    write_shards(&fixture.path("data"), 8, &plain_rows(12 * 64, 8, 1), Dtype::F32, 64);
    // Each is another: the same shard twice is refused.
    let mut different = shards(&fixture.path("data")).into_iter().map(|path| std::fs::read(path).expect("a shard"));
    let bad = ["d/b//x.parquet", "d/b//y.parquet", "d/c/../x.parquet", "d/m\u{1}.parquet", "/lead.parquet", "d/n/./y"];
    for key in ["lead.parquet", "d/a.parquet", "d/b/x.parquet", "d/c/z.parquet", "d/z.parquet", "d/q/z.parquet"]
        .iter()
        .chain(&bad)
    {
        s3.put(key, &different.next().expect("as many shards as keys"));
    }
    for (url, rows) in [("s3://bucket/d", 5 * 64), ("s3://bucket/d/*/z.parquet", 2 * 64), ("s3://bucket", 6 * 64)] {
        let found = sae::run_with(&["inspect", url, "--json", "--no-write"], &environment).exits(0);
        assert_eq!(found.json()["rows"].as_u64(), Some(rows), "{url}");
        let warnings: Vec<&str> = found.stderr.lines().filter(|line| line.contains("left out")).collect();
        assert_eq!(warnings.len(), 1, "{}", found.stderr);
        let named = ["s3://bucket/d/b//", "s3://bucket/d/c/../", "s3://bucket/d/m\\u{1}.parquet", "s3://bucket/d/n/./"];
        assert!(named.iter().all(|name| warnings[0].contains(name)), "{}", warnings[0]);
        assert_eq!(warnings[0].contains("s3://bucket//"), url == "s3://bucket", "{}", warnings[0]);
    }
    let refused = sae::run_with(&["inspect", "s3://bucket/d/b//x.parquet"], &environment).exits(64);
    refused.says(&["s3://bucket/d/b//x.parquet", "a part of the key is empty"]);
}

/// A listing of less than a page, of a page, of one key more, and of several pages. The server's have ten keys.
#[test]
fn every_page_of_a_listing_is_read() {
    let Some(interpreter) = need::python() else { return };
    let s3 = S3::with_pages(&interpreter, 10);
    let environment = s3.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let fixture = Fixture::new();
    write_shards(&fixture.path("data"), 8, &plain_rows(35 * 16, 8, 1), Dtype::F32, 16);
    for (i, shard) in shards(&fixture.path("data")).into_iter().enumerate() {
        s3.put(&format!("d/{i:02}.parquet"), &std::fs::read(shard).expect("a shard"));
        if [9, 10, 11, 20, 21, 35].contains(&(i + 1)) {
            let found =
                sae::run_with(&["inspect", "s3://bucket/d", "--json", "--no-write"], &environment).exits(0).json();
            let expected = (Some(i as u64 + 1), Some(16 * (i as u64 + 1)));
            assert_eq!((found["shards"].as_u64(), found["rows"].as_u64()), expected);
        }
    }
}
