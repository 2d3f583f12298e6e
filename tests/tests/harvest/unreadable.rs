//! Text that cannot be read: it ends a harvest, or is left out and counted, by every worker the same.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use tests::sae;
use tests::tiny::{self, tree};

use super::{Bench, tokens};

const SKIP: &str = "--skip-unreadable";

impl Bench {
    /// What the manifest of a harvest says of what was left out.
    fn skipped(&self, out: &str) -> Value {
        let manifest = std::fs::read(self.path(out).join("manifest.json")).expect("a manifest");
        serde_json::from_slice::<Value>(&manifest).expect("JSON")["source"]["skipped"].clone()
    }
}

#[test]
fn documents_that_cannot_be_read_are_left_out_and_counted() {
    let bench = Bench::new(true);
    let good = tiny::documents(12, 20, 21);
    let line = |document: &String| json!({ "text": document }).to_string().into_bytes();
    let plain = |document: &String| document.clone().into_bytes();
    // What a good document looks like in a file, what bad ones do, and what stands behind each.
    type Layout<'a> = (&'a str, &'a str, &'a dyn Fn(&String) -> Vec<u8>, Vec<&'a [u8]>, &'a str);
    let layouts: [Layout<'_>; 3] = [
        ("a.jsonl", "file", &line, vec![b"{\"text\"", b"{\"body\": \"w1\"}", b"{\"text\": \"w1 \xff\"}", b"[1]"], "\n"),
        ("a.txt", "lines", &plain, vec![b"w1 \xe9 w2", b"\xff"], "\n"),
        ("a.md", "paragraphs", &plain, vec![b"w1\nw2 \xe9\nw3", b"\xff"], "\n\n"),
    ];
    for (name, split, written, bad, end) in layouts {
        let (mut bytes, mut expected, mut first) = (Vec::new(), Vec::new(), None);
        let (mut number, mut left) = (0, bad.iter());
        for document in &good {
            expected.push((number, tokens(document)));
            bytes.extend([&written(document), end.as_bytes()].concat());
            number += 1;
            if let Some(bad) = left.next() {
                first.get_or_insert(bytes.len());
                bytes.extend([bad, end.as_bytes()].concat());
                number += 1;
            }
        }
        let text = bench.write(name, bytes);
        let (out, place) = (format!("out-{name}"), format!("byte {}", first.expect("a bad one")));
        let more = if name.ends_with("jsonl") { vec![] } else { vec!["--split", split] };
        let words = [&["--layer", "1", "--by-document"], &more[..]].concat();
        let refused = sae::run(&bench.words(&text, &out, &words)).exits(65);
        refused.says(&[name, if name == "a.jsonl" { &place } else { "not UTF-8" }, SKIP]);
        let done = sae::run(&bench.words(&text, &out, &[&words[..], &[SKIP]].concat())).exits(0);
        let done = done.says(&[name, "is left out"]);
        assert!(done.stdout.contains(&format!("{} documents", bad.len())), "{}", done.stdout);
        assert_eq!(done.stderr.matches(name).count(), 1, "once for a file: {}", done.stderr);
        let found = tests::tiny::harvested(&bench.path(&out), &bench.path(&out));
        let mut held: Vec<(i64, Vec<u32>)> = Vec::new();
        for (document, tokens) in found.contexts.into_values() {
            match held.last_mut().filter(|(last, _)| *last == document) {
                Some((_, all)) => all.extend(&tokens[1..]),
                None => held.push((document, tokens[1..].to_vec())),
            }
        }
        assert_eq!(held, expected, "the others, by their numbers in {name}");
        assert_eq!(bench.skipped(&out), json!({ "documents": bad.len(), "files": 0 }));
    }
}

/// A folder of which three files are damaged from somewhere on, and two have bad documents.
fn damaged_corpus(bench: &Bench, last: &[String]) {
    let documents = |seed: u64| tiny::documents(120, 20, seed);
    let lines = |seed: u64| tiny::json_lines(&documents(seed));
    std::fs::create_dir(bench.path("corpus")).expect("a folder");
    let mut bad = lines(31).into_bytes();
    bad.extend(b"{\"text\": 3}\n\n{\n");
    bad.extend(lines(32).into_bytes());
    bench.write("corpus/1.jsonl", bad);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(lines(33).as_bytes()).expect("memory");
    let gz = gz.finish().expect("memory");
    bench.write("corpus/2.jsonl.gz", &gz[..gz.len() * 2 / 3]);
    bench.write("corpus/3.txt", [documents(34).join("\n").as_bytes(), b"\n\xe9\nw1 w2\n"].concat());
    let column: [(&str, ArrayRef); 1] = [("text", Arc::new(StringArray::from_iter_values(documents(35))))];
    let batch = RecordBatch::try_from_iter(column).expect("a column");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(20)).set_dictionary_enabled(false);
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties.build())).expect("a writer");
    writer.write(&batch).expect("rows");
    let mut parquet = writer.into_inner().expect("a file");
    let middle = parquet.len() / 2;
    parquet[middle..middle + 60].fill(0xff);
    bench.write("corpus/4.parquet", parquet);
    let mut zst = zstd::encode_all(lines(36).as_bytes(), 1).expect("memory");
    let middle = zst.len() / 2;
    zst[middle..middle + 20].fill(0xff);
    bench.write("corpus/5.jsonl.zst", zst);
    bench.write("corpus/6.jsonl", tiny::json_lines(last));
}

#[test]
fn every_worker_leaves_out_the_same() {
    let bench = Bench::new(true);
    let last = tiny::documents(40, 20, 37);
    damaged_corpus(&bench, &last);
    let text = bench.text("corpus");
    let words = |out: &str, more: &[&str]| {
        let always = ["--layer", "1", "--shard-rows", "64", "--split", "lines"];
        bench.words(&text, out, &[&always, more].concat())
    };
    let done = sae::run(&words("whole", &[SKIP])).exits(0);
    let done = done.says(&["1.jsonl, byte", "2.jsonl.gz: cannot be decompressed", "3.txt", "4.parquet", "5.jsonl.zst"]);
    let done = done.says(&["Nothing more of this file is read"]);
    assert!(done.stdout.contains("3 documents, all or the rest of 3 files"), "{}", done.stdout);
    assert_eq!(bench.skipped("whole"), json!({ "documents": 3, "files": 3 }));
    let whole = tree(&bench.path("whole"));
    assert!(whole.keys().filter(|name| name.starts_with("parts/0")).count() > 50, "{:?}", whole.keys());

    // What was made before the damage stays, and the same command goes on.
    sae::run(&words("stopped", &[])).exits(65).says(&["1.jsonl, byte", "is no text", SKIP]);
    let before = tree(&bench.path("stopped"));
    assert!(before.keys().filter(|name| name.starts_with("parts/0")).count() > 5, "{:?}", before.keys());
    assert!(!before.contains_key("manifest.json"));
    sae::run(&words("stopped", &[SKIP])).exits(0);
    assert!(tree(&bench.path("stopped")) == whole);
    // Behind the damage nobody has to ask for it any more.
    let again = sae::run(&words("stopped", &[])).exits(0);
    assert!(again.stdout.contains("3 documents"), "{}", again.stdout);
    for worker in ["2/3", "0/3", "1/3"] {
        sae::run(&words("shared", &[SKIP, "--worker", worker])).exits(0);
    }
    assert!(tree(&bench.path("shared")) == whole);

    // Some of a damaged file lies before its damage, and all of the last file is there.
    let found = tests::tiny::harvested(&bench.path("whole"), &bench.path("whole"));
    let mut held = std::collections::BTreeMap::<i64, Vec<u32>>::new();
    for row in &found.rows {
        held.entry(row.document).or_default().push(row.token as u32);
    }
    assert!(held.len() > 120 + 120 + 10 + 120 + 20 + 40, "{}", held.len());
    let end: Vec<Vec<u32>> = held.into_values().rev().take(last.len()).collect();
    assert_eq!(end, last.iter().rev().map(|document| tokens(document)).collect::<Vec<_>>());
}

#[test]
fn a_text_of_which_nothing_is_left_is_refused_and_one_behind_the_rows_is_not_looked_at() {
    let bench = Bench::new(true);
    let bad = bench.write("bad.jsonl", "{\n{\"body\": \"w1\"}\n");
    let words = ["--layer", "1", SKIP];
    let left = "no text that gives a row; left out, because it cannot be read: ";
    let says = [&format!("{left}2 documents"), "--column"];
    sae::run(&bench.words(&bad, "bad", &words)).exits(65).says(&says);
    let latin = bench.write("latin.txt", b"w1 \xe9");
    let refused = sae::run(&bench.words(&latin, "latin", &words)).exits(65);
    let refused = refused.says(&[&format!("{left}all or the rest of 1 file")]);
    assert!(!refused.stderr.contains("--column"), "{}", refused.stderr);
    // A column that is not there is no damage, beside text that has one either.
    let body: ArrayRef = Arc::new(StringArray::from(vec!["w1"]));
    let batch = RecordBatch::try_from_iter([("body", body)]).expect("a batch");
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("rows");
    let other = bench.write("other.parquet", writer.into_inner().expect("Parquet"));
    let refused = sae::run(&bench.words(&other, "other", &words)).exits(65);
    let refused = refused.says(&["has no column \"text\"", "it has body", "--column"]);
    assert!(!refused.stderr.contains(SKIP), "{}", refused.stderr);
    let late = bench.write("late.jsonl", tiny::json_lines(&tiny::documents(30, 20, 41)) + "{\n");
    sae::run(&bench.words(&late, "late", &["--layer", "1", "--rows", "100"])).exits(0);
    sae::run(&bench.words(&late, "all", &["--layer", "1"])).exits(65).says(&["is no line of JSON"]);
}
