//! From models and text to shards: rows beside those of transformers, tokens beside those of Python's tokenizers, contexts, formats of
//! text, and workers that are killed. What is compared with Python needs the environment of `tests/reference/venv.sh models`.

#[path = "harvest/beside_python.rs"]
mod beside_python;
#[path = "harvest/unreadable.rs"]
mod unreadable;
#[path = "harvest/workers.rs"]
mod workers;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::EnabledStatistics;
use serde_json::{Value, json};
use tests::s3::S3;
use tests::tiny::{self, Harvested, Row, harvested, tree};
use tests::{need, sae};

/// A folder with the tiny model and a text.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(begins: bool) -> Bench {
        let folder = tempfile::tempdir().expect("a temporary folder");
        tiny::model(&folder.path().join("tiny"), begins);
        Bench { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).expect("a file");
        self.text(name)
    }

    /// The words of a harvest of the tiny model.
    fn words(&self, text: &str, out: &str, more: &[&str]) -> Vec<String> {
        let (model, out) = (self.text("tiny"), self.text(out));
        let words = ["harvest", &model, "--text", text, "--out", &out, "--context", "16", "--dtype", "f32"];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }

    fn harvest(&self, text: &str, out: &str, more: &[&str]) -> Harvested {
        sae::run(&self.words(text, out, more)).exits(0);
        harvested(&self.path(out), &self.path(out))
    }
}

/// The tokens of a document of words.
fn tokens(document: &str) -> Vec<u32> {
    let word = |word: &str| if word == "<s>" { 0 } else { word[1..].parse::<u32>().expect("a word") + 3 };
    document.split_whitespace().map(word).collect()
}

#[test]
fn packed_contexts_hold_every_token_once_and_begin_with_one_bos() {
    let bench = Bench::new(true);
    let mut documents = tiny::documents(40, 30, 1);
    documents[3] = String::new();
    documents[5].insert_str(0, "<s> ");
    let text = bench.write("text.jsonl", tiny::json_lines(&documents));
    let found = bench.harvest(&text, "packed", &["--layer", "2", "--keep-first"]);
    let all: Vec<u32> =
        documents.iter().flat_map(|document| tokens(document)).filter(|&token| token != tiny::BOS).collect();
    let contexts: Vec<&Vec<u32>> = found.contexts.values().map(|(_, tokens)| tokens).collect();
    let held: Vec<u32> =
        contexts.iter().flat_map(|tokens| tokens.iter().copied()).filter(|&token| token != tiny::BOS).collect();
    assert_eq!(held, all, "every token once, in order");
    let (last, whole) = contexts.split_last().expect("contexts");
    // One is a token shorter where BOS would have been its last.
    assert!(whole.iter().all(|tokens| [15, 16].contains(&tokens.len())), "{contexts:?}");
    assert!((2..=16).contains(&last.len()), "{contexts:?}");
    for tokens in &contexts {
        assert_eq!(tokens[0], tiny::BOS, "{tokens:?}");
        assert!(tokens.windows(2).all(|pair| pair != [tiny::BOS, tiny::BOS]), "never two: {tokens:?}");
    }
    // A document that begins inside of a context has its own.
    let inside = contexts.iter().flat_map(|tokens| &tokens[1..]).filter(|&&token| token == tiny::BOS).count();
    assert!(inside > 10, "{inside}");
    // Rows name their context, position, document and token.
    assert_eq!(found.rows.len(), contexts.iter().map(|tokens| tokens.len()).sum::<usize>());
    for row in &found.rows {
        assert_eq!(found.contexts[&row.context].1[row.pos as usize], row.token as u32, "{row:?}");
    }
    let mut in_document = vec![Vec::new(); documents.len()];
    found
        .rows
        .iter()
        .filter(|row| row.token != 0)
        .for_each(|row| in_document[row.document as usize].push(row.token as u32));
    for (document, found) in documents.iter().zip(&in_document) {
        let expected: Vec<u32> = tokens(document).into_iter().filter(|&token| token != tiny::BOS).collect();
        assert_eq!(found, &expected, "{document}");
    }

    // The first row of each context and those of BOS inside of it are left out unless they are asked for, and the others are the same.
    let usual = bench.harvest(&text, "usual", &["--layer", "2"]);
    let is_kept = |row: &Row| row.pos > 0 && row.token != tiny::BOS as i32;
    let kept: Vec<usize> = (0..found.rows.len()).filter(|&at| is_kept(&found.rows[at])).collect();
    assert_eq!(usual.rows, kept.iter().map(|&at| found.rows[at].clone()).collect::<Vec<_>>());
    assert_eq!(usual.stored, kept.iter().map(|&at| found.stored[at].clone()).collect::<Vec<_>>());
    assert_eq!(usual.contexts, found.contexts);
    // Of which so many are the first of all.
    let rows = kept.len() / 2;
    let some = bench.harvest(&text, "some", &["--layer", "2", "--rows", &rows.to_string(), "--shard-rows", "64"]);
    assert_eq!((&some.rows[..], &some.stored[..]), (&usual.rows[..rows], &usual.stored[..rows]));
}

/// Texts that bring BOS of their own, several times, at their end and where a context ends; and a document for which a context has no room
/// behind BOS.
#[test]
fn no_two_bos_stand_between_documents() {
    let bench = Bench::new(true);
    let twelve = ["w1"; 12].join(" ");
    let documents =
        ["<s> <s> w0 w1 w2 w3 w4 w5 w6 <s>", "w10 w11 w12 w13 w14", "<s> <s> <s> w20 w21", &twelve, "w2 w3", "<s>"];
    let text = bench.write("text.jsonl", tiny::json_lines(&documents.map(str::to_owned)));
    let found = bench.harvest(&text, "out", &["--layer", "1"]);
    let contexts: Vec<Vec<u32>> = found.contexts.into_values().map(|(_, tokens)| tokens).collect();
    let expected = [
        vec![0, 3, 4, 5, 6, 7, 8, 9, 0, 13, 14, 15, 16, 17, 0, 23],
        vec![0, 24, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4],
        vec![0, 5, 6],
    ];
    assert_eq!(contexts, expected);

    let fifteen = ["w1"; 15].join(" ");
    let documents = [format!("{fifteen} <s> w10"), format!("{} <s>", ["w1"; 13].join(" ")), "w11".to_owned()];
    let text = bench.write("cut.jsonl", tiny::json_lines(&documents));
    let found = bench.harvest(&text, "cut", &["--layer", "1", "--keep-first"]);
    let first = [vec![0], vec![4; 15]].concat();
    let second = [vec![0, 13, 0], vec![4; 13]].concat();
    let expected = [(0, first.clone()), (0, second), (2, vec![0, 14])];
    assert_eq!(found.contexts.into_values().collect::<Vec<_>>(), expected);
    let found = bench.harvest(&text, "cut-by-document", &["--layer", "1", "--keep-first", "--by-document"]);
    let second = [vec![0], vec![4; 13], vec![0]].concat();
    let expected = [(0, first), (0, vec![0, 13]), (1, second), (2, vec![0, 14])];
    assert_eq!(found.contexts.into_values().collect::<Vec<_>>(), expected);
    let text = bench.write("end.jsonl", tiny::json_lines(&[format!("{fifteen} <s>")]));
    for (out, more) in [("end", &[][..]), ("end-by-document", &["--by-document"])] {
        let found = bench.harvest(&text, out, &[&["--layer", "1", "--keep-first"], more].concat());
        assert_eq!(found.contexts.into_values().collect::<Vec<_>>(), [(0, [vec![0], vec![4; 15]].concat())], "{out}");
    }
}

#[test]
fn bos_is_what_was_asked_for() {
    let bench = Bench::new(false);
    let documents = tiny::documents(6, 40, 2);
    let text = bench.write("text.jsonl", tiny::json_lines(&documents));
    let first = |out: &str, bos: &str| {
        let found = bench.harvest(&text, out, &["--layer", "1", "--by-document", "--bos", bos]);
        let begin = found.contexts.values().filter(|(_, tokens)| tokens[0] == tiny::BOS).count();
        (begin, found.contexts.len())
    };
    // Its tokenizer puts none, and token 0 is a token like any other.
    assert_eq!(first("auto", "auto").0, 0);
    assert_eq!(first("never", "never").0, 0);
    let (begin, all) = first("always", "always");
    assert_eq!(begin, all);
    let begins = Bench::new(true);
    let text = begins.write("text.jsonl", tiny::json_lines(&documents));
    for (bos, begin) in [("auto", true), ("always", true), ("never", false)] {
        let found = begins.harvest(&text, bos, &["--layer", "0", "--by-document", "--bos", bos]);
        assert!(found.contexts.values().all(|(_, tokens)| (tokens[0] == tiny::BOS) == begin), "{bos}");
    }
    // A context of one document, cut where it is long, nothing of another in it.
    let found = begins.harvest(&text, "documents", &["--layer", "1", "--by-document"]);
    let mut held = vec![Vec::new(); documents.len()];
    for (document, tokens) in found.contexts.values() {
        assert!(tokens.len() <= 16, "{tokens:?}");
        held[*document as usize].extend_from_slice(&tokens[1..]);
    }
    assert_eq!(held, documents.iter().map(|document| tokens(document)).collect::<Vec<_>>());
}

/// Causal rows depend on what stands before them alone, so a document's first context is the same wherever the document stands.
#[test]
fn rows_follow_from_their_context() {
    let bench = Bench::new(true);
    let documents = tiny::documents(20, 60, 3);
    let whole = bench.write("whole.jsonl", tiny::json_lines(&documents));
    let one = bench.write("one.jsonl", tiny::json_lines(&documents[7..8]));
    let words = ["--layer", "3", "--by-document"];
    let (whole, one) = (bench.harvest(&whole, "whole", &words), bench.harvest(&one, "one", &words));
    let of = |found: &Harvested, document: i64| -> Vec<Vec<f32>> {
        let rows = found.rows.iter().zip(&found.stored).filter(|(row, _)| row.document == document);
        rows.map(|(_, stored)| stored.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            .collect()
    };
    let (among, alone) = (of(&whole, 7), of(&one, 0));
    assert_eq!(among.len(), alone.len());
    for (among, alone) in among.iter().flatten().zip(alone.iter().flatten()) {
        assert!((among - alone).abs() <= 1e-4 * alone.abs().max(1.0), "{among} and {alone}");
    }
}

#[test]
fn every_format_of_text_gives_the_same_rows() {
    let bench = Bench::new(true);
    let documents = tiny::documents(50, 20, 4);
    let lines = tiny::json_lines(&documents);
    let plain = documents.join("\n") + "\n";
    let gz = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    // Two members one after the other are one file.
    let (front, rest) = lines.as_bytes().split_at(500);
    let mut members = gz(front);
    members.extend(gz(rest));
    let columns: [(&str, ArrayRef); 2] = [
        ("id", Arc::new(arrow::array::Int32Array::from_iter_values(0..50))),
        ("body", Arc::new(StringArray::from_iter_values(&documents))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("columns");
    let properties =
        parquet::file::properties::WriterProperties::builder().set_max_row_group_row_count(Some(7)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("rows");
    let parquet = writer.into_inner().expect("a file");
    let text = [
        (bench.write("a.jsonl", &lines), vec![]),
        (bench.write("b.ndjson.gz", members), vec![]),
        (bench.write("c.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).expect("memory")), vec![]),
        (bench.write("d.txt", &plain), vec!["--split", "lines"]),
        (bench.write("e.md.gz", gz(documents.join("\n\n").as_bytes())), vec!["--split", "paragraphs"]),
        (bench.write("f.parquet", parquet), vec!["--column", "body"]),
        (bench.write("g.rst", &plain), vec!["--split", "lines"]),
    ];
    let mut first: Option<Harvested> = None;
    for (number, (text, more)) in text.iter().enumerate() {
        // Several workers begin inside of the text.
        for worker in ["0/2", "1/2", "0/2"] {
            let words = [&["--layer", "1", "--shard-rows", "64", "--worker", worker], more.as_slice()].concat();
            sae::run(&bench.words(text, &format!("out-{number}"), &words)).exits(0);
        }
        let out = bench.path(&format!("out-{number}"));
        let found = harvested(&out, &out);
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!((&found.rows, &found.stored), (&first.rows, &first.stored), "{text}");
        assert_eq!(found.contexts, first.contexts, "{text}");
    }
    // A folder has its files in the order of their names, and a plain file is one document.
    std::fs::create_dir_all(bench.path("corpus/_hidden")).expect("a folder");
    bench.write("corpus/2.txt", &documents[1]);
    bench.write("corpus/1.txt", &documents[0]);
    bench.write("corpus/_hidden/3.txt", &documents[2]);
    bench.write("corpus/4.bin", [0xff]);
    let found = bench.harvest(&bench.text("corpus"), "folder", &["--layer", "1", "--by-document"]);
    let held: Vec<i64> = found.contexts.values().map(|(document, _)| *document).collect();
    let all: Vec<u32> = found.contexts.values().flat_map(|(_, tokens)| tokens[1..].to_vec()).collect();
    assert_eq!(all, [tokens(&documents[0]), tokens(&documents[1])].concat());
    assert!(held.iter().all(|document| [0, 1].contains(document)));
}

#[test]
fn several_layers_and_several_workers_give_the_same_bytes() {
    let bench = Bench::new(true);
    let text = bench.write("text.jsonl", tiny::json_lines(&tiny::documents(200, 40, 5)));
    let words = ["--layer", "1,3", "--rows", "2_345", "--shard-rows", "200"];
    sae::run(&bench.words(&text, "one", &[&words[..], &["--threads", "1"]].concat())).exits(0);
    let one = tree(&bench.path("one"));
    assert!(one.keys().filter(|name| name.starts_with("parts/0")).count() > 10, "{:?}", one.keys());
    // Three workers, the last of which begins first.
    for worker in ["2/3", "0/3", "1/3"] {
        let done = sae::run(&bench.words(&text, "three", &[&words[..], &["--worker", worker]].concat())).exits(0);
        assert_eq!(done.stdout.contains("parts of other workers are missing"), worker != "1/3", "{}", done.stdout);
    }
    let three = tree(&bench.path("three"));
    assert_eq!(one.keys().collect::<Vec<_>>(), three.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(*bytes == three[name], "{name}");
    }
    for layer in [1, 3] {
        let folder = format!("layer-{layer}-alone");
        let words = ["--layer", &layer.to_string(), "--rows", "2345", "--shard-rows", "200"];
        let alone = bench.harvest(&text, &folder, &words);
        let together = harvested(&bench.path(&format!("one/layer-{layer}")), &bench.path("one"));
        assert_eq!(together.rows.len(), 2345);
        assert_eq!((&alone.rows, &alone.stored), (&together.rows, &together.stored), "layer {layer}");
        // It is one model, whichever of its layers are read.
        let [alone, together] = [&tree(&bench.path(&folder))["manifest.json"], &one["layer-1/manifest.json"]]
            .map(|json| serde_json::from_slice::<Value>(json).expect("JSON")["source"]["model_hash"].clone());
        assert!(alone == together && alone.is_string(), "layer {layer}: {alone} and {together}");
    }
    // What was done is not done again, and other options are refused with what differs.
    let again = sae::run(&bench.words(&text, "one", &words)).exits(0);
    assert!(again.stdout.contains("0 of "), "{}", again.stdout);
    let other = |from: &str, to: &str, says: &str| {
        let given = bench.words(&text, "one", &words).join(" ").replace(from, to);
        let given: Vec<&str> = given.split(' ').collect();
        sae::run(&given).exits(64).says(&["other options or data", says, "or name an empty folder"]);
    };
    other("--rows", "--keep-first --rows", "(keep first: no there, yes here)");
    other("2_345", "9", "(rows: 2345 there, 9 here)");
    other("1,3", "2", "(layers: [1,3] there, [2] here)");
    other("f32", "bf16", "(dtype: f32 there, bf16 here)");
    other("--context 16", "--context 32", "(context size: 16 there, 32 here)");
    other("--shard-rows 200", "--shard-rows 320", "(shard rows: 192 there, 320 here)");
    // A text of the same name and size is another one.
    let lines = std::fs::read_to_string(&text).expect("the text");
    bench.write("text.jsonl", lines.replacen("\"w", "\"x", 1));
    other("", "", "(text text.jsonl first and last bytes: ");
    bench.write("text.jsonl", lines.clone() + &lines);
    other("", "", &format!("(text text.jsonl bytes: {} there, {} here)", lines.len(), 2 * lines.len()));
    bench.write("text.jsonl", &lines);
    // The manifest says where the rows come from, and the shards are a data set like any other.
    let manifest: Value = serde_json::from_slice(&one["layer-3/manifest.json"]).expect("JSON");
    let source = &manifest["source"];
    assert_eq!(source["hook_name"], "blocks.2.hook_resid_post");
    assert_eq!(
        (&source["layer"], &source["context_size"], &source["prepend_bos"]),
        (&3.into(), &16.into(), &true.into())
    );
    assert_eq!(source["model"], "tiny");
    // An export takes it over.
    let recipe = format!(
        "[data]\ntrain = {:?}\n[sae]\nfeatures = 64\n[train]\nbatch = 64\nlr = 1e-3\nl1 = 1.0\n[run]\ndir = {:?}\n",
        bench.text("one/layer-3"),
        bench.text("run")
    );
    sae::run(&["train", &bench.write("recipe.toml", recipe), "--device", "cpu"]).exits(0);
    sae::run(&["export", &bench.text("run"), "--out", &bench.text("exported"), "--dataset", "words"]).exits(0);
    let config = std::fs::read(bench.path("exported/cfg.json")).expect("cfg.json");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let of = |key: &str| config["metadata"][key].clone();
    assert_eq!((of("model_name"), of("hook_name")), ("tiny".into(), "blocks.2.hook_resid_post".into()));
    assert_eq!((of("context_size"), of("prepend_bos"), of("dataset_path")), (16.into(), true.into(), "words".into()));
    // Of two layers no hook is known, and the rest is.
    let recipe = format!(
        "[data]\ntrain = [{:?}, {:?}]\n[sae]\nfeatures = 64\n[train]\nbatch = 64\nlr = 1e-3\nl1 = 1.0\n[run]\ndir = {:?}\n",
        bench.text("one/layer-1"),
        bench.text("one/layer-3"),
        bench.text("both")
    );
    let exported = |run: &str, out: &str| {
        sae::run(&["export", &bench.text(run), "--out", &bench.text(out)]).exits(0);
        let config = std::fs::read(bench.path(out).join("cfg.json")).expect("cfg.json");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        [config["metadata"]["model_name"].clone(), config["metadata"]["hook_name"].clone()]
    };
    sae::run(&["train", &bench.write("both.toml", recipe), "--device", "cpu"]).exits(0);
    assert_eq!(exported("both", "exported-both"), ["tiny", "unknown"]);
    let inspected = sae::run(&["inspect", &bench.text("one/layer-3"), "--json"]).exits(0).json();
    assert_eq!((&inspected["rows"], &inspected["width"]), (&2345.into(), &tiny::WIDTH.into()));
    // The run keeps what it was trained on, whatever becomes of the rows.
    std::fs::remove_dir_all(bench.path("one/layer-3")).expect("a folder");
    std::fs::rename(bench.path("one/layer-1"), bench.path("one/layer-3")).expect("a folder");
    assert_eq!(exported("run", "exported-later"), ["tiny", "blocks.2.hook_resid_post"]);
}

/// Model, text and shards in object storage: the bytes of local ones.
#[test]
fn any_store_will_do() {
    let Some(python) = need::python() else { return };
    let bench = Bench::new(true);
    let documents = tiny::documents(60, 40, 10);
    let (front, back) = (tiny::json_lines(&documents[..20]), tiny::json_lines(&documents[20..]));
    std::fs::create_dir(bench.path("text")).expect("a folder");
    bench.write("text/1.jsonl", &front);
    bench.write("text/2.jsonl.zst", zstd::encode_all(back.as_bytes(), 1).expect("memory"));
    let words = ["--layer", "2", "--shard-rows", "300"];
    sae::run(&bench.words(&bench.text("text"), "local", &words)).exits(0);
    let s3 = S3::start(&python);
    for folder in ["tiny", "text"] {
        tree(&bench.path(folder)).iter().for_each(|(name, bytes)| s3.put(&format!("{folder}/{name}"), bytes));
    }
    let environment = s3.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    for (text, out) in [("s3://bucket/text/", "folder"), ("s3://bucket/text/*.js*", "glob")] {
        let place = format!("s3://bucket/{out}");
        let given =
            ["harvest", "s3://bucket/tiny", "--text", text, "--out", &place, "--context", "16", "--dtype", "f32"];
        sae::run_with(&[&given[..], &words].concat(), &environment).exits(0);
        let local = tree(&bench.path("local"));
        assert!(local.len() > 8, "{:?}", local.keys());
        for (name, bytes) in local.iter().filter(|(name, _)| name.ends_with(".parquet")) {
            assert!(s3.get(&format!("{out}/{name}")) == *bytes, "{out}/{name}");
        }
    }
}

/// The tiny model's tokenizer, which puts a token behind a text too.
fn framed_tokenizer(bench: &Bench) -> String {
    let json = std::fs::read(bench.path("tiny/tokenizer.json")).expect("a tokenizer");
    let mut json: Value = serde_json::from_slice(&json).expect("JSON");
    let frame = &mut json["post_processor"];
    frame["single"].as_array_mut().expect("a template").push(json!({"SpecialToken": {"id": "</s>", "type_id": 0}}));
    frame["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [1], "tokens": ["</s>"]});
    json.to_string()
}

#[test]
fn what_cannot_be_used_is_refused_with_what_to_do() {
    let bench = Bench::new(true);
    let text = bench.write("text.jsonl", tiny::json_lines(&tiny::documents(10, 20, 9)));
    let refused = |model: &str, text: &str, more: &[&str], code: i32, says: &[&str]| {
        let out = bench.text("refused");
        let words = [&["harvest", model, "--text", text, "--out", &out][..], more].concat();
        sae::run(&words).exits(code).says(says);
        assert!(!bench.path("refused/manifest.json").exists());
        let _ = std::fs::remove_dir_all(bench.path("refused"));
    };
    let tiny = bench.text("tiny");
    let layer = ["--layer", "1"];
    refused(&bench.text("absent"), &text, &layer, 64, &["is no model", "config.json"]);
    refused(
        &tiny,
        &text,
        &["--layer", "4"],
        64,
        &["has 3 blocks, so layers 0 (the embeddings) to 3", "layer 4", "--layer"],
    );
    for layers in ["-1", "1-3", "1..3", "one", "1,,2"] {
        refused(&tiny, &text, &["--layer", layers], 64, &["0 (the embeddings)", "8,15,22"]);
    }
    for context in ["0", "1"] {
        refused(&tiny, &text, &["--layer", "1", "--context", context], 64, &["--context", "above 1"]);
    }
    let framed = bench.write("framed.json", framed_tokenizer(&bench));
    let framed = ["--layer", "1", "--tokenizer", &framed, "--context", "2"];
    refused(&tiny, &text, &framed, 64, &["at least 3 tokens, of which 2 stand around the text", "--context"]);
    let plain = bench.write("plain.txt", "w1 w2");
    refused(&tiny, &plain, &["--layer", "1", "--column", "body"], 64, &["plain", "leave out --column"]);
    refused(&tiny, &text, &["--layer", "1", "--split", "lines"], 64, &["line of JSON", "leave out --split"]);
    // A file of text is read once.
    let twice = |first: &str, second: &str, says: &[&str]| {
        let again = ["--layer", "1", "--text", second];
        refused(&tiny, first, &again, 64, says);
    };
    std::fs::create_dir(bench.path("folder")).expect("a folder");
    std::fs::hard_link(&text, bench.path("folder/linked.jsonl")).expect("a link");
    twice(&text, &text, &["text.jsonl is named twice"]);
    twice(&bench.text("*.jsonl"), &bench.text("t*.jsonl"), &["text.jsonl is named twice"]);
    twice(&bench.text("folder"), &bench.text("folder/linked.jsonl"), &["linked.jsonl is named twice"]);
    twice(&text, &bench.text("folder"), &["linked.jsonl is the same file as ", "text.jsonl"]);
    // What is written in the text would be text, by a pattern too.
    for (text, out) in
        [("folder", "folder/out"), ("**/*.jsonl", "folder/out"), ("folder/*.jsonl", "folder"), ("folder", "")]
    {
        let [text, out] = [text, out].map(|name| bench.text(name));
        let said = sae::run(&["harvest", &tiny, "--layer", "1", "--text", &text, "--out", out.trim_end_matches('/')]);
        said.exits(64).says(&["lie in each other", "another folder"]);
    }
    refused(&tiny, &bench.text("absent"), &layer, 65, &["no text there"]);
    refused(&tiny, &text, &["--layer", "1", "--column", "body"], 65, &["byte 0", "it has text", "--column"]);
    let broken = bench.write("broken.jsonl", "{\"text\": \"w1\"}\n{\"text\n");
    refused(&tiny, &broken, &layer, 65, &["byte 15", "is no line of JSON", "--skip-unreadable"]);
    let latin = bench.write("latin.txt", b"caf\xe9");
    refused(&tiny, &latin, &layer, 65, &["not UTF-8 at byte 3", "--skip-unreadable"]);
    let long = bench.write("long.txt", vec![b'a'; 40 << 20]);
    refused(&tiny, &long, &layer, 65, &["32 MiB", "--split"]);
    let cut = bench.write("cut.txt.gz", [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 75]);
    refused(&tiny, &cut, &layer, 65, &["cannot be decompressed", "--skip-unreadable"]);
    let empty = bench.write("empty.txt", "");
    refused(&tiny, &empty, &layer, 65, &["no text that gives a row"]);
    let table = bench.write("none.parquet", [b"PAR1".as_slice(), &[0xff; 64], b"PAR1"].concat());
    refused(&tiny, &table, &layer, 65, &["none.parquet", "damaged", "--skip-unreadable"]);
    // A few KB that become a text, or a page, of more than there may be.
    let of_one_text = |name: &str, bytes: usize| {
        let column: ArrayRef = Arc::new(StringArray::from_iter_values(["w1".to_owned(), "a".repeat(bytes)]));
        let batch = RecordBatch::try_from_iter([("text", column)]).expect("a column");
        let codec = parquet::basic::Compression::ZSTD(Default::default());
        let properties = parquet::file::properties::WriterProperties::builder().set_compression(codec);
        let properties = properties.set_dictionary_enabled(false).set_statistics_enabled(EnabledStatistics::None);
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties.build())).expect("a writer");
        writer.write(&batch).expect("rows");
        let file = writer.into_inner().expect("a file");
        assert!(file.len() < 64 << 10, "{}", file.len());
        bench.write(name, file)
    };
    refused(&tiny, &of_one_text("text.parquet", 40 << 20), &layer, 65, &["row 1", "32 MiB"]);
    refused(&tiny, &of_one_text("page.parquet", 150 << 20), &layer, 65, &["page.parquet", "128 MiB"]);

    // A head that claims more than there is, and one that is cut off.
    let copy = |name: &str, file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        tiny::model(&bench.path(name), true);
        let path = bench.path(name).join(file);
        let bytes = std::fs::read(&path).expect("a file");
        std::fs::write(path, change(bytes)).expect("a file");
        bench.text(name)
    };
    let lies = copy("lies", "model.safetensors", &|mut bytes| {
        bytes[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        bytes
    });
    refused(&lies, &text, &layer, 65, &["model.safetensors", "claims"]);
    // Words of a million: no fault of the model's.
    let loud = copy("loud", "model.safetensors", &|mut bytes| {
        let head = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let words = (tiny::WORDS + 3) * tiny::WIDTH;
        bytes[8 + head..8 + head + 4 * words].as_chunks_mut::<4>().0.fill(1e6f32.to_le_bytes());
        bytes
    });
    refused(&loud, &text, &["--layer", "0", "--dtype", "f16"], 64, &["layer 0", "65504", "--dtype bf16"]);
    let mute = copy("mute", "tokenizer.json", &|bytes| bytes);
    std::fs::remove_file(bench.path("mute/tokenizer.json")).expect("a file");
    refused(&mute, &text, &layer, 65, &["not found: save the tokenizer", "of transformers. Name a tokenizer.json"]);
    let short = copy("short", "model.safetensors", &|bytes| bytes[..bytes.len() - 4000].to_vec());
    refused(&short, &text, &layer, 65, &["model.safetensors", "tensor"]);
    let wide = copy("wide", "config.json", &|bytes| {
        String::from_utf8(bytes).expect("text").replace("\"hidden_size\":32", "\"hidden_size\":64").into_bytes()
    });
    refused(&wide, &text, &layer, 65, &["tensor", "configuration asks for"]);
    for (from, to, says) in [
        ("\"llama\"", "\"mamba\"", "model_type"),
        ("\"silu\"", "\"relu\"", "hidden_act"),
        ("\"rms_norm_eps\"", "\"rope_scaling\":{\"rope_type\":\"yarn\"},\"rms_norm_eps\"", "yarn"),
    ] {
        let other = copy("other", "config.json", &|bytes| {
            String::from_utf8(bytes).expect("text").replace(from, to).into_bytes()
        });
        refused(&other, &text, &layer, 65, &["config.json", says]);
    }
    let windowed = copy("windowed", "config.json", &|bytes| {
        String::from_utf8(bytes)
            .expect("text")
            .replace("\"rms_norm_eps\"", "\"sliding_window\":64,\"rms_norm_eps\"")
            .into_bytes()
    });
    refused(&windowed, &text, &layer, 64, &["sliding window of 64", "--context"]);

    // GGUF: what is no such file, a head that claims a count, and a tokenizer that nobody knows.
    let head = |pairs: &[(&str, &str)]| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend((pairs.len() as u64).to_le_bytes());
        for (key, value) in pairs {
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key.as_bytes());
            bytes.extend(8u32.to_le_bytes());
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value.as_bytes());
        }
        bytes
    };
    let none = bench.write("none.gguf", b"GGML....");
    refused(&none, &text, &layer, 65, &["does not begin with GGUF"]);
    let mut many = head(&[]);
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&bench.write("many.gguf", many), &text, &layer, 65, &["it speaks of"]);
    let mut long = head(&[("general.architecture", "llama")]);
    let at = long.len() - 13;
    long[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    refused(&bench.write("long.gguf", long), &text, &layer, 65, &["it speaks of"]);
    refused(
        &bench.write("bare.gguf", head(&[("general.architecture", "llama")])),
        &text,
        &layer,
        65,
        &["tokenizer", "--tokenizer"],
    );
}
