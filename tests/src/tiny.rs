//! A language model of a few thousand numbers, with a tokenizer of whole words, as a Hugging Face folder: what harvesting needs where no
//! Python is at hand. Its streams are compared with those of transformers elsewhere; here they only have to be the same again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::fixture::Numbers;

/// Numbers of a row.
pub const WIDTH: usize = 32;
/// Blocks.
pub const BLOCKS: usize = 3;
/// Words that the tokenizer knows: `w0`, `w1`, …; word `wN` is token `N + 3`.
pub const WORDS: usize = 61;
/// The token that begins a context, when one does; its text is `<s>`.
pub const BOS: u32 = 0;

/// Writes the model into a folder. With `begins` its tokenizer puts BOS before a text.
///
/// # Panics
/// When the folder cannot be written.
pub fn model(folder: &Path, begins: bool) {
    fs::create_dir_all(folder).expect("a folder");
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": WORDS + 3, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("config.json");
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![WORDS + 3, WIDTH])];
    for block in 0..BLOCKS {
        let parts = [
            ("self_attn.q_proj", vec![WIDTH, WIDTH]),
            ("self_attn.k_proj", vec![WIDTH / 2, WIDTH]),
            ("self_attn.v_proj", vec![WIDTH / 2, WIDTH]),
            ("self_attn.o_proj", vec![WIDTH, WIDTH]),
            ("mlp.gate_proj", vec![48, WIDTH]),
            ("mlp.up_proj", vec![48, WIDTH]),
            ("mlp.down_proj", vec![WIDTH, 48]),
            ("input_layernorm", vec![WIDTH]),
            ("post_attention_layernorm", vec![WIDTH]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{block}.{name}.weight"), shape)));
    }
    let mut numbers = Numbers::new(11);
    let values: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape)| {
            let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
            let count = shape.iter().product::<usize>();
            (0..count).flat_map(|_| (offset + 0.3 * numbers.unit()).to_le_bytes()).collect()
        })
        .collect();
    let tensors = shapes.iter().zip(&values).map(|((name, shape), values)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), values).expect("numbers of that shape"))
    });
    let bytes = safetensors::serialize(tensors, None).expect("tensors");
    fs::write(folder.join("model.safetensors"), bytes).expect("model.safetensors");
    fs::write(folder.join("tokenizer.json"), tokenizer(begins).to_string()).expect("tokenizer.json");
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("tokenizer_config.json");
}

fn tokenizer(begins: bool) -> serde_json::Value {
    let special = ["<s>", "</s>", "<unk>"];
    let words = (0..WORDS).map(|word| format!("w{word}"));
    let vocabulary: BTreeMap<String, usize> =
        special.map(str::to_owned).into_iter().chain(words).enumerate().map(|(id, word)| (word, id)).collect();
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({
                "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    json!({
        "version": "1.0", "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}, "padding": null,
        "added_tokens": added, "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": if begins { template } else { serde_json::Value::Null }, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    })
}

/// Documents of words, of lengths from 1 to `longest`.
pub fn documents(count: usize, longest: usize, seed: u64) -> Vec<String> {
    let mut numbers = Numbers::new(seed);
    let mut document = || {
        let words: Vec<String> = (0..=numbers.below(longest)).map(|_| format!("w{}", numbers.below(WORDS))).collect();
        words.join(" ")
    };
    (0..count).map(|_| document()).collect()
}

/// Documents as lines of JSON.
pub fn json_lines(documents: &[String]) -> String {
    documents.iter().map(|text| format!("{}\n", json!({"text": text}))).collect()
}

/// A row of a harvest, without its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Number of the context.
    pub context: u64,
    /// Position in it.
    pub pos: i32,
    /// The document.
    pub document: i64,
    /// The token.
    pub token: i32,
}

/// What a harvest has written.
#[derive(Clone, Debug, Default)]
pub struct Harvested {
    /// The rows in their order.
    pub rows: Vec<Row>,
    /// Their numbers as they are stored.
    pub stored: Vec<Vec<u8>>,
    /// Contexts by their numbers: the first document, and the tokens.
    pub contexts: BTreeMap<u64, (i64, Vec<u32>)>,
}

/// Reads the shards of a folder, and the contexts, which lie beside those of the output `out`.
///
/// # Panics
/// When there are none, or they are not as harvests write them.
pub fn harvested(folder: &Path, out: &Path) -> Harvested {
    let mut found = Harvested::default();
    for file in parquet_files(folder) {
        let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(file).expect("a shard")).expect("Parquet");
        for batch in reader.build().expect("rows") {
            let batch = batch.expect("rows");
            let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
            let (contexts, positions) = (column("context_id"), column("pos"));
            let (documents, tokens, stored) = (column("doc_id"), column("token_id"), column("activation"));
            for at in 0..batch.num_rows() {
                found.rows.push(Row {
                    context: contexts.as_primitive::<UInt64Type>().value(at),
                    pos: positions.as_primitive::<Int32Type>().value(at),
                    document: documents.as_primitive::<Int64Type>().value(at),
                    token: tokens.as_primitive::<Int32Type>().value(at),
                });
                found.stored.push(stored.as_fixed_size_binary().value(at).to_vec());
            }
        }
    }
    for file in parquet_files(&out.join("_contexts")) {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(fs::File::open(file).expect("contexts")).expect("Parquet");
        for batch in reader.build().expect("contexts") {
            let batch = batch.expect("contexts");
            let (ids, documents) =
                (batch.column(0).as_primitive::<UInt64Type>(), batch.column(1).as_primitive::<Int64Type>());
            let tokens = batch.column(2).as_list::<i32>();
            for at in 0..batch.num_rows() {
                let tokens = tokens.value(at);
                let tokens = tokens.as_primitive::<UInt32Type>();
                assert_eq!(tokens.null_count(), 0);
                found.contexts.insert(ids.value(at), (documents.value(at), tokens.values().to_vec()));
            }
        }
    }
    found
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "parquet")).collect();
    files.sort();
    files
}

/// All files below a folder with their bytes.
///
/// # Panics
/// When they cannot be read.
pub fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}
