//! `sae ingest`: what other tools have written comes over bit for bit, by any number of workers, whatever is killed; what is damaged or hostile is refused
//! with one message.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::fixture::{Fixture, Numbers, json, text};
use tests::s3::S3;
use tests::{need, root, sae};

/// The sources that tests/reference/ingest.py makes.
struct Made {
    fixture: Fixture,
    cases: Value,
}

/// Two looks at the same files, which take Python long to make.
#[test]
fn files_of_other_tools() {
    let Some(interpreter) = need::models_python() else { return };
    let fixture = Fixture::new();
    python(&interpreter, &["make", &fixture.text("sources")]);
    let cases = json(&fixture.path("sources/cases.json"));
    let made = Made { fixture, cases };
    hostile_files_are_refused_and_nothing_of_them_is_executed(&made);
    every_format_comes_over_as_its_own_tool_wrote_it(&made, &interpreter);
    object_storage_gives_and_takes_the_same_bytes(&made, &interpreter);
}

/// Ranges of objects instead of files, and parts that are objects.
fn object_storage_gives_and_takes_the_same_bytes(Made { fixture, cases }: &Made, interpreter: &Path) {
    let s3 = S3::start(interpreter);
    let pairs = s3.environment();
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for name in ["npy", "safetensors", "arrow-ragged", "parquet", "torch-dict"] {
        for (key, bytes) in below(&fixture.path(format!("sources/{name}"))) {
            s3.put(&format!("sources/{name}{key}"), &bytes);
        }
        let (source, out) = (format!("s3://bucket/sources/{name}"), format!("s3://bucket/shards/{name}"));
        let mut call = vec!["ingest", &source, "--out", &out, "--part-size", "1"];
        call.extend(arguments(&cases["cases"][name]));
        sae::run_with(&call, &pairs).exits(0);
        for (key, bytes) in below(&fixture.path(format!("shards/{name}"))) {
            assert!(s3.get(&format!("shards/{name}{key}")) == bytes, "{name}{key} is another in object storage");
        }
    }
}

fn python(interpreter: &Path, arguments: &[&str]) {
    let mut command = Command::new(interpreter);
    let output =
        command.arg("tests/reference/ingest.py").args(arguments).current_dir(root()).output().expect("Python runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn arguments(case: &Value) -> impl Iterator<Item = &str> {
    case["arguments"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Files of a folder with their bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".loader-tmp-")) {
            found.insert(text(&path), fs::read(&path).expect("a file"));
        }
    }
    found
}

/// The same by names below the folder.
fn below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let prefix = text(folder);
    files(folder).into_iter().map(|(path, bytes)| (path[prefix.len()..].to_owned(), bytes)).collect()
}

fn every_format_comes_over_as_its_own_tool_wrote_it(Made { fixture, cases }: &Made, interpreter: &Path) {
    for (name, case) in cases["cases"].as_object().expect("cases") {
        let (source, out) = (fixture.text(&format!("sources/{name}")), fixture.text(&format!("shards/{name}")));
        let mut call = vec!["ingest", &source, "--out", &out, "--part-size", "1"];
        call.extend(arguments(case));
        let ended = sae::run(&call).exits(0);
        assert!(
            ended.stdout.contains("next: sae inspect") && !ended.stderr.contains("panicked"),
            "{name}: {}",
            ended.stderr
        );
        // The format that is guessed is the one that its name begins with.
        let from = json(Path::new(&out).join("manifest.json").as_path())["source"]["format"].clone();
        let kind = if name == "saelens" { "arrow" } else { name.split('-').next().unwrap_or_default() };
        assert_eq!(from, kind, "{name}");
    }
    python(interpreter, &["check", &fixture.text("sources"), &fixture.text("shards")]);
    // What comes out is a data set, and says where it is from.
    let inspected = sae::run(&["inspect", &fixture.text("shards/saelens"), "--json"]).exits(0).json();
    assert_eq!((&inspected["rows"], &inspected["manifest"]), (&Value::from(144), &Value::from("verified")));
    let source = &json(&fixture.path("shards/saelens/manifest.json"))["source"];
    assert_eq!(
        (&source["hook_name"], &source["context_size"]),
        (&Value::from("blocks.3.hook_resid_post"), &Value::from(8))
    );
    assert!(source["non_finite_rows"].as_u64() > Some(0) && source["non_finite_rows"] == inspected["non_finite"]);

    // A choice that is not made, or made wrong.
    let several = fixture.text("sources/safetensors-named");
    let refused = |extra: &[&str], code: i32, says: &[&str]| {
        let out = fixture.text("refused");
        sae::run(&[&["ingest", "--out", &out], extra].concat()).exits(code).says(says);
        assert!(!Path::new(&out).exists(), "nothing is written");
    };
    refused(&[&several], 65, &["layer.1 (float32 [60, 4])", "--tensor"]);
    refused(&[&several, "--tensor", "layer.3"], 65, &["no tensor is named \"layer.3\"", "layer.2"]);
    refused(&[&fixture.text("sources/vllm")], 65, &["holds 3 layers", "from 0 to 2"]);
    refused(&[&fixture.text("sources/vllm"), "--layer", "3"], 65, &["no layer of place 3"]);
    refused(&[&fixture.text("sources/npy"), "--layer", "0"], 64, &["vLLM"]);
    refused(&[&fixture.text("sources/npy"), "--from", "torch"], 65, &["no files of the format torch"]);
    refused(&[&fixture.text("sources")], 64, &["several formats", "--from"]);
    refused(&[&fixture.text("absent")], 65, &["not found"]);
    for format in ["arrow", "parquet"] {
        let source = fixture.text(&format!("sources/{format}-nulls"));
        let nulls = [format, "source", "null values", "column"];
        sae::run(&["ingest", &source, "--out", &fixture.text("nulls")]).exits(65).says(&nulls);
        fs::remove_dir_all(fixture.path("nulls")).ok();
        refused(&[&source, "--columns", "tokens,label"], 64, &["no column label comes along", "[token_id]"]);
    }
    refused(&[&fixture.text("sources/npy"), "--dtype", "f8"], 64, &["'f8' for '--dtype", "write bf16, f16 or f32"]);
    // A store that lost a shard.
    fs::remove_file(fixture.path("sources/bionemo/shard_00001.parquet")).expect("a shard goes");
    refused(&[&fixture.text("sources/bionemo")], 65, &["not the whole store", "250 rows of 12 in 3 shards"]);
    fs::remove_file(fixture.path("sources/saelens/data-00001-of-00003.arrow")).expect("a file goes");
    refused(&[&fixture.text("sources/saelens")], 65, &["lists data-00001-of-00003.arrow, which is not there"]);
}

/// Runs `sae ingest` where memory is short: what a file claims must not be taken.
fn in_little_memory(arguments: &[&str]) -> (Option<i32>, String) {
    /// KiB of addresses: threads and the allocator take half of it.
    const LIMIT: &str = "ulimit -v 3000000; exec timeout --signal=KILL 60 \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", LIMIT, "bash"]).arg(sae::binary()).args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    let output = command.output().expect("bash runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn hostile_files_are_refused_and_nothing_of_them_is_executed(Made { fixture, cases }: &Made) {
    for (name, says) in cases["hostile"].as_object().expect("files") {
        let (source, out) = (fixture.text(&format!("sources/hostile/{name}")), fixture.text("out"));
        let (code, said) = in_little_memory(&["ingest", &source, "--out", &out]);
        assert_eq!(code, Some(65), "{name}: {said}");
        assert!(said.contains(says.as_str().unwrap_or("?")) && said.contains(name), "{name}: {said}");
        assert!(said.matches("ERROR").count() <= 1 && !said.contains("panicked"), "{name}: {said}");
        assert!(!fixture.path("out/manifest.json").exists(), "{name}");
        let _ = fs::remove_dir_all(fixture.path("out"));
    }
    assert!(!root().join("executed").exists() && !Path::new("executed").exists(), "nothing was executed");

    // Cut off anywhere, or with a byte that is another: a refusal, or rows of the same number, and never a crash.
    let mut numbers = Numbers::new(3);
    let whole = [
        "npy/a.npy",
        "safetensors/a.safetensors",
        "vllm/cmpl-0.safetensors",
        "arrow-ragged/a.arrow",
        "arrow-rows/a.arrow",
        "parquet-rows/a.parquet",
        "torch-dict/a.pt",
        "bionemo/shard_00000.parquet",
    ];
    for path in whole {
        let (bytes, extension) = (
            fs::read(fixture.path(format!("sources/{path}"))).expect("a source"),
            path.rsplit('.').next().unwrap_or_default(),
        );
        for try_at in 0..24 {
            let mut damaged = bytes.clone();
            let cut = try_at % 2 == 0;
            if cut {
                damaged.truncate(numbers.below(bytes.len()));
            } else {
                // Heads are where files claim things.
                let within = if try_at % 4 == 1 { bytes.len().min(400) } else { bytes.len() };
                damaged[numbers.below(within)] ^= 1 << numbers.below(8);
            }
            let source = fixture.text(&format!("damaged.{extension}"));
            fs::write(&source, &damaged).expect("a file");
            let (code, said) = in_little_memory(&["ingest", &source, "--out", &fixture.text("out"), "--threads", "1"]);
            let expected: &[i32] = if cut { &[64, 65] } else { &[0, 64, 65] };
            assert!(code.is_some_and(|code| expected.contains(&code)), "{path} {try_at}: {code:?}: {said}");
            // The reader of Parquet panics on some damage, and that is caught.
            assert!(path.contains("parquet") || !said.contains("panicked at"), "{path} {try_at}: {said}");
            let _ = fs::remove_dir_all(fixture.path("out"));
        }
    }
}

/// An .npy file, with whatever its header says.
fn npy(path: &Path, header: &str, rows: &[u8]) {
    let header = format!("{header}\n");
    let length = u16::try_from(header.len()).expect("a short header").to_le_bytes();
    let bytes = [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), rows].concat();
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, bytes).expect("a file is written");
}

/// An array of rows of two numbers, of the type that a `descr` names.
fn rows_of_two<const N: usize>(path: &Path, descr: &str, numbers: &[[u8; N]]) {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}, 2), }}", numbers.len() / 2);
    npy(path, &header, &numbers.concat());
}

/// Rows that no run takes come over, since a filter may leave them out, and are told of once, by the worker that sees all parts.
#[test]
fn rows_that_are_not_finite_are_counted_and_the_first_is_named() {
    let fixture = Fixture::new();
    let (nan, infinite, one) = (f32::NAN.to_le_bytes(), f32::NEG_INFINITY.to_le_bytes(), 1f32.to_le_bytes());
    rows_of_two(&fixture.path("plain/a.npy"), "<f4", &[one; 6]);
    rows_of_two(&fixture.path("plain/b.npy"), "<f4", &[one, one, nan, one, one, infinite, nan, nan]);
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 2), }";
    npy(&fixture.path("contexts/a.npy"), header, &[[one; 4], [one, one, infinite, one]].concat().concat());
    for (source, count, first) in [("plain", 3, "row 1 of b.npy"), ("contexts", 1, "row 1 of context 1 of a.npy")] {
        let out = fixture.text(&format!("{source}-shards"));
        let worker = |which: &str| {
            sae::run(&["ingest", &fixture.text(source), "--out", &out, "--part-size", "1", "--worker", which]).exits(0)
        };
        assert!(!worker("1/2").stderr.contains("NaN"));
        let last = worker("0/2").says(&[
            &format!("in {count} of"),
            &format!("first in {first}:"),
            "data.filter.finite = true",
        ]);
        assert!(last.stdout.contains("rows with NaN or infinity"), "{}", last.stdout);
        let inspected = sae::run(&["inspect", &out, "--json"]).exits(0).json();
        assert_eq!(inspected["non_finite"], Value::from(count));
        assert_eq!(json(&Path::new(&out).join("manifest.json"))["source"]["non_finite_rows"], inspected["non_finite"]);
    }
    // Files come by their names.
    for (folder, names, says) in [
        ("numbered", ["part-2.npy", "part-10.npy"], Some("part-10.npy before part-2.npy")),
        ("padded", ["part-02.npy", "part-10.npy"], None),
        ("named", ["10-b.npy", "2-a.npy"], None),
    ] {
        fs::create_dir_all(fixture.path(folder)).expect("a folder");
        for name in names {
            rows_of_two(&fixture.path(format!("{folder}/{name}")), "<f4", &[[0; 4]; 4]);
        }
        let out = fixture.text(&format!("{folder}-shards"));
        let ended = sae::run(&["ingest", &fixture.text(folder), "--out", &out]).exits(0);
        assert_eq!(ended.stderr.contains("in the order of their names"), says.is_some(), "{}", ended.stderr);
        ended.says(&[says.unwrap_or_default()]);
    }
    // All are finite, and nothing is said.
    let whole = fixture.text("plain/a.npy");
    let ended = sae::run(&["ingest", &whole, "--out", &fixture.text("whole")]).exits(0);
    assert!(!ended.stderr.contains("NaN") && !ended.stdout.contains("NaN"));
    assert!(json(&fixture.path("whole/manifest.json"))["source"]["non_finite_rows"].is_null());
    // What would become infinite is refused, with a format that holds it where there is one.
    let large = |number: f64| number.to_le_bytes();
    rows_of_two(&fixture.path("f64.npy"), "<f8", &[1.0, 1.0, 1.0, 1e39].map(large));
    rows_of_two(&fixture.path("f32.npy"), "<f4", &[1f32, 1.0, -70_000.0, 1.0].map(f32::to_le_bytes));
    for (source, more, says) in [
        ("f64.npy", &[][..], "row 1 holds 1e39, which f32 does not: no format of a shard does: scale the rows"),
        ("f32.npy", &["--dtype", "f16"], "row 1 holds -7e4, which f16 does not: store bf16 or f32"),
    ] {
        let call = ["ingest", &fixture.text(source), "--out", &fixture.text("refused")];
        sae::run(&[&call[..], more].concat()).exits(65).says(&[source, says]);
    }
}

/// A source that cannot be read by the name that it was given is called by that name, with what helps.
#[test]
fn sources_that_are_none_are_named() {
    let fixture = Fixture::new();
    let put = |name: &str, bytes: &[u8]| {
        fs::create_dir_all(fixture.path(name).parent().expect("a folder")).expect("a folder");
        fs::write(fixture.path(name), bytes).expect("a file is written");
    };
    put("empty", b"");
    put("notes/a.txt", b"text");
    put("zip/a.npz", b"PK\x03\x04");
    put("hidden/.a.npy", b"");
    rows_of_two(&fixture.path("twice/a.npy"), "<f4", &[[0; 4]; 4]);
    std::os::unix::fs::symlink("a.npy", fixture.path("twice/b.npy")).expect("a link");
    put("listed/a.arrow", b"");
    put("listed/state.json", br#"{"_data_files": [{"filename": "a.arrow"}, {"filename": "a.arrow"}]}"#);
    for (source, code, says) in [
        ("empty", 65, &["empty: is empty"][..]),
        ("notes/a.txt", 64, &["notes/a.txt holds no files of a known format", "--from"]),
        ("notes", 64, &["notes holds no files of a known format: 1 of .txt"]),
        ("zip/a.npz", 65, &["zip/a.npz: is a zip of NumPy's arrays", "numpy.load", "numpy.save"]),
        ("zip", 65, &["zip/a.npz: is a zip of NumPy's arrays"]),
        ("hidden", 65, &["hidden: holds nothing but files and folders whose names begin with . or _"]),
        ("twice", 65, &["twice/b.npy: is one file with", "twice/a.npy", "would come twice"]),
        ("listed", 65, &["listed/a.arrow: is listed twice"]),
    ] {
        let ended = sae::run(&["ingest", &fixture.text(source), "--out", &fixture.text("out")]).exits(code).says(says);
        assert!(
            !ended.stderr.contains("--column") && (code == 64) == ended.stderr.contains("--from"),
            "{}",
            ended.stderr
        );
    }
    let named = sae::run(&["ingest", &fixture.text("zip"), "--from", "torch", "--out", &fixture.text("out")]);
    named.exits(65).says(&["zip/a.npz: is a zip of NumPy's arrays"]);

    // What is written would be read by the next start.
    rows_of_two(&fixture.path("source/a.npy"), "<f4", &[[0; 4]; 4]);
    std::os::unix::fs::symlink(fixture.path("source"), fixture.path("link")).expect("a link");
    for out in ["source", "source/shards", "link/shards/of/it", "source/../link"] {
        sae::run(&["ingest", &fixture.text("source"), "--out", &fixture.text(out)])
            .exits(64)
            .says(&["lies in the source", "name a folder outside of it"]);
        assert_eq!(below(&fixture.path("source")).len(), 1, "something was written");
    }
    // A file has nothing below it, so its own folder will do.
    for (source, out) in [("source", "source-shards"), ("source/a.npy", "source")] {
        sae::run(&["ingest", &fixture.text(source), "--out", &fixture.text(out)]).exits(0);
    }
}

const WIDTH: usize = 64;

/// Three files of 48 MiB in all: with parts of 1 MiB many are made in one run.
fn large(fixture: &Fixture) -> String {
    for file in 0..3u32 {
        let rows = 65_536;
        let bytes: Vec<u8> = (0..rows * WIDTH as u32).flat_map(|i| ((i ^ file << 28) as f32).to_le_bytes()).collect();
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {WIDTH}), }}");
        npy(&fixture.path(format!("large/{file}.npy")), &header, &bytes);
    }
    fixture.text("large")
}

#[test]
fn files_that_lie_about_their_size_take_no_memory() {
    let fixture = Fixture::new();
    let huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }";
    let large = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1024), }";
    let wide = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1099511627776), }";
    let short = "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 4), }";
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("a.npy", npy_bytes(huge, 64), "more bytes than can be counted"),
        ("b.npy", npy_bytes(large, 64), "cut off"),
        ("c.npy", npy_bytes(wide, 64), "cut off"),
        ("d.npy", npy_bytes(short, 79), "cut off"),
        ("e.npy", npy_bytes(short, 160), "more than one array"),
        ("f.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), "claims a header"),
        ("g.safetensors", [&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "claims a header"),
        (
            "h.safetensors",
            safetensors(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,64]}}"#, 64),
            "safetensors",
        ),
        ("i.safetensors", safetensors(r#"{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}"#, 63), "cut off"),
    ];
    for (name, bytes, says) in cases {
        fs::write(fixture.path(name), bytes).expect("a file");
        let (code, said) = in_little_memory(&["ingest", &fixture.text(name), "--out", &fixture.text("out")]);
        assert_eq!(code, Some(65), "{name}: {said}");
        assert!(said.contains(says) && said.contains(name), "{name}: {said}");
    }
    // A message of Arrow that claims what is not there.
    for (name, bytes) in [
        ("j.arrow", [&[0xff; 4], &0x00ff_ffffu32.to_le_bytes()[..], &[0; 32]].concat()),
        ("k.arrow", [&[0xff; 4], &0xffff_ffffu32.to_le_bytes()[..], &[0; 32]].concat()),
        ("l.arrow", vec![0; 64]),
        ("m.arrow", Vec::new()),
        ("n.pt", b"PK\x03\x04".to_vec()),
        ("o.pt", Vec::new()),
        ("p.npy", Vec::new()),
        ("q.parquet", b"PAR1".to_vec()),
    ] {
        fs::write(fixture.path(name), bytes).expect("a file");
        let (code, said) = in_little_memory(&["ingest", &fixture.text(name), "--out", &fixture.text("out")]);
        assert!(code == Some(65) && said.contains(name) && !said.contains("panicked"), "{name}: {code:?} {said}");
    }
    // A saved data set that names files elsewhere.
    for name in ["../secret.arrow", "/etc/passwd", "..", ""] {
        let state = serde_json::json!({ "_data_files": [{ "filename": name }] }).to_string();
        fs::create_dir_all(fixture.path("set")).expect("a folder");
        fs::write(fixture.path("set/state.json"), state).expect("a file");
        sae::run(&["ingest", &fixture.text("set"), "--out", &fixture.text("out")])
            .exits(65)
            .says(&["no file of its folder"]);
    }
    assert!(!fixture.path("out").exists(), "nothing is written of what is refused");
}

fn npy_bytes(header: &str, rows: usize) -> Vec<u8> {
    let length = u16::try_from(header.len()).expect("a short header").to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &vec![0; rows]].concat()
}

fn safetensors(header: &str, rows: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; rows]].concat()
}

#[test]
fn killed_workers_and_any_number_of_them_write_the_same_bytes() {
    let fixture = Fixture::new();
    let source = large(&fixture);
    let call = |out: &str, more: &[&str]| -> Vec<String> {
        let all = [&["ingest", &source, "--out", out, "--part-size", "1"], more].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let undisturbed = fixture.text("undisturbed");
    sae::binary();
    let started = Instant::now();
    sae::run(&call(&undisturbed, &["--threads", "1"])).exits(0);
    let wall = started.elapsed();
    let expected = below(Path::new(&undisturbed));
    assert_eq!(expected.len(), 2 * 48 + 2, "48 shards with their markers, the plan and the manifest");

    // Three workers: an array of SLURM, an indexed Job, and one by hand. None is the last by itself but the last.
    let three = fixture.text("three");
    let first =
        sae::run_with(&call(&three, &[]), &[("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_TASK_COUNT", "3")]).exits(0);
    assert!(first.stdout.contains("worker 1/3 is done; 32 of 48 parts"), "{}", first.stdout);
    sae::run_with(&call(&three, &[]), &[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "3")]).exits(0);
    assert!(!Path::new(&three).join("manifest.json").exists());
    sae::run(&call(&three, &["--worker", "2/3", "--threads", "4"])).exits(0);
    assert!(below(Path::new(&three)) == expected, "three workers write the same bytes");

    // Two workers that are killed at any moment, and begun again until both are done.
    let killed = fixture.text("killed");
    let (mut numbers, mut kills, mut starts) = (Numbers::new(5), 0, 0);
    while kills < 20 || !Path::new(&killed).join("manifest.json").exists() {
        if Path::new(&killed).join("manifest.json").exists() {
            assert!(below(Path::new(&killed)) == expected, "after {kills} kills the same bytes");
            fs::remove_dir_all(&killed).expect("the folder goes");
        }
        starts += 1;
        assert!(starts < 400, "{kills} kills");
        let worker = if starts % 2 == 0 { "0/2" } else { "1/2" };
        let mut child = sae::sae(&call(&killed, &["--worker", worker, "--threads", "2"]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sae starts");
        let until = Instant::now() + wall.mul_f64(0.6 * f64::from(numbers.unit().abs()));
        while Instant::now() < until && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        let status = child.wait().expect("a child ends");
        kills += u32::from(status.signal() == Some(9));
        assert!(status.success() || status.signal() == Some(9), "{status:?}");
    }
    assert!(below(Path::new(&killed)) == expected, "after {kills} kills the same bytes");

    // Two at once, of which one is killed; each with parts of its own, and both with all of them.
    for (out, workers) in [("two", ["0/2", "1/2"]), ("twice", ["0/1", "0/1"])] {
        let out = fixture.text(out);
        let of = |worker| sae::sae(&call(&out, &["--worker", worker, "--threads", "1"]));
        sae::kill_one_of_two(workers.map(of), || Path::new(&out).join("parts/000001.json").exists());
        assert_eq!(Path::new(&out).join("manifest.json").exists(), workers[0] == workers[1], "{workers:?}");
        sae::run(&call(&out, &["--worker", workers[0]])).exits(0);
        assert!(below(Path::new(&out)) == expected, "{workers:?} leave other bytes");
    }

    // Asked to stop, it leaves what is whole, says so by its code, and goes on.
    let stopped = fixture.text("stopped");
    let mut child = sae::sae(&call(&stopped, &["--threads", "1"]))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("sae starts");
    while !Path::new(&stopped).join("parts/000003.json").exists() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    sae::signal(&child, "TERM");
    assert_eq!(child.wait().expect("a child ends").code(), Some(75));
    let there = below(Path::new(&stopped));
    assert!(there.len() < expected.len() && !there.contains_key("/manifest.json"), "{} files", there.len());
    sae::run(&call(&stopped, &[])).exits(0);
    assert!(below(Path::new(&stopped)) == expected);

    // Another source, or another format, does not mix with it.
    sae::run(&call(&stopped, &["--dtype", "bf16"]))
        .exits(64)
        .says(&["other options or data", "dtype: f32 there, bf16 here"]);
    fs::remove_file(fixture.path("large/2.npy")).expect("a file goes");
    sae::run(&call(&stopped, &[])).exits(64).says(&["other options or data", "source files: 3 there, 2 here"]);
    assert!(below(Path::new(&stopped)) == expected, "nothing has changed");
}
