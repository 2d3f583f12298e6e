//! Where weights come from: the files of a Hugging Face folder, safetensors or PyTorch's, or a GGUF file, by the names of the former. A tensor is
//! read at a time and becomes f32.

use std::collections::BTreeMap;

use loader::Store;
use rayon::prelude::*;
use serde_json::Value as Json;
use tensors::{File, Format, Number, Tensor};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::dequantize::Kind;
use super::gguf::{Gguf, Place};
use crate::error::{Error, Result};

/// Bytes of a configuration or an index at most.
const MOST_JSON: u64 = 256 << 20;

/// Bytes of a tensor that stand for it in a model's hash: those in its middle.
const SAMPLE: u64 = 4 << 10;

/// An open model.
pub(crate) enum Weights {
    Folder {
        store: Store,
        prefix: &'static str,
        tensors: BTreeMap<String, (String, Place)>,
        /// What is not read, such as tables of positions: what each is.
        others: BTreeMap<String, String>,
    },
    Gguf(Gguf),
}

impl Weights {
    /// The tensors of a folder.
    ///
    /// # Errors
    /// Where it has no files of weights, or they are no such files.
    pub(crate) fn of_folder(store: Store) -> Result<Weights> {
        let (mut tensors, mut others) = (BTreeMap::new(), BTreeMap::new());
        for key in files(&store)? {
            let file = File::find(&store, &key)?.ok_or_else(|| Error::data(store.url_of(&key), "not found"))?;
            let format = if key.ends_with(".bin") { Format::Torch } else { Format::Safetensors };
            for (name, tensor) in format.read(&file)?.named {
                match Place::of(&tensor) {
                    Some(place) => drop(tensors.insert(name, (key.clone(), place))),
                    None => drop(others.insert(name, tensor.described())),
                }
            }
        }
        // Models with a head keep what is below it under a name of its own.
        let known = ["model.", "bert.", ""];
        let has = |prefix: &str| {
            ["embed_tokens.weight", "embeddings.word_embeddings.weight"]
                .iter()
                .any(|name| tensors.contains_key(&format!("{prefix}{name}")))
        };
        let prefix = known.into_iter().find(|prefix| has(prefix)).unwrap_or("");
        Ok(Weights::Folder { store, prefix, tensors, others })
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<(&Store, &str, &Place)> {
        match self {
            Weights::Folder { store, prefix, tensors, .. } => {
                let (file, place) = tensors.get(&format!("{prefix}{name}"))?;
                Some((store, file, place))
            }
            Weights::Gguf(gguf) => Some((&gguf.store, &gguf.key, gguf.tensors.get(&in_gguf(name)?)?)),
        }
    }

    /// What a tensor is that is not read.
    fn other(&self, name: &str) -> Option<&str> {
        match self {
            Weights::Folder { prefix, others, .. } => others.get(&format!("{prefix}{name}")).map(String::as_str),
            Weights::Gguf(_) => None,
        }
    }

    fn url(&self) -> String {
        match self {
            Weights::Folder { store, .. } => store.url().to_owned(),
            Weights::Gguf(gguf) => gguf.url(),
        }
    }

    /// A tensor of this shape, as f32, appended to `to`.
    ///
    /// # Errors
    /// Where it is absent or has another shape, and those of the store.
    pub(crate) fn append(&self, name: &str, shape: &[usize], to: &mut Vec<f32>) -> Result<()> {
        let Some((store, file, place)) = self.find(name) else {
            let problem = match self.other(name) {
                Some(described) => {
                    format!("tensor {name} is {described}: it has to be float32, float16 or bfloat16, in one piece")
                }
                None => format!("lacks the tensor {name}"),
            };
            return Err(Error::data(self.url(), problem));
        };
        if place.shape != shape {
            let problem = format!("tensor {name} is {:?}, and the configuration asks for {shape:?}", place.shape);
            return Err(Error::data(store.url_of(file), problem));
        }
        let stored = store.get_range(file, place.offset..place.offset + place.bytes)?;
        let values = place.kind.to_f32(&stored);
        match (place.is_transposed, shape) {
            (true, &[rows, columns]) => to.extend(transposed(&values, columns, rows)),
            _ => to.extend(values),
        }
        Ok(())
    }

    /// The same by itself.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.append(name, shape, &mut values)?;
        Ok(values)
    }

    /// A matrix [out, in] as [in, out]: the GEMM reads weights in their order then, where it would copy them in another one for each batch,
    /// which was a tenth of the time.
    pub(crate) fn matrix(&self, name: &str, out: usize, width: usize) -> Result<Vec<f32>> {
        self.read(name, &[out, width]).map(|matrix| transposed(&matrix, out, width))
    }

    /// The same where it is there.
    pub(crate) fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        self.has(name).then(|| self.read(name, shape)).transpose()
    }

    /// A hash that tells this model from any other, its fine-tuned ones included, whichever of its layers are read: of the names and shapes of its
    /// tensors and of some bytes of each, 32 hex digits.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) fn hash(&self) -> Result<String> {
        let all: Vec<(&String, &Store, &str, &Place)> = match self {
            Weights::Folder { store, tensors, .. } => {
                tensors.iter().map(|(name, (file, place))| (name, store, file.as_str(), place)).collect()
            }
            Weights::Gguf(gguf) => {
                gguf.tensors.iter().map(|(name, place)| (name, &gguf.store, gguf.key.as_str(), place)).collect()
            }
        };
        let sample = |&(_, store, file, place): &(&String, &Store, &str, &Place)| -> Result<u64> {
            let (start, length) = (place.offset + place.bytes.saturating_sub(SAMPLE) / 2, place.bytes.min(SAMPLE));
            Ok(if length == 0 { 0 } else { xxh3_64(&store.get_range(file, start..start + length)?) })
        };
        let samples = all.par_iter().map(sample).collect::<Result<Vec<u64>>>()?;
        let mut hash = Xxh3::new();
        for ((name, _, _, place), sample) in all.iter().zip(samples) {
            hash.update(format!("{name} {:?} {:?} {sample:016x}\n", place.kind, place.shape).as_bytes());
        }
        Ok(format!("{:032x}", hash.digest128()))
    }
}

/// The transpose of a matrix, in squares that caches hold.
pub(crate) fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const SQUARE: usize = 32;
    let mut out = vec![0.0; matrix.len()];
    for row in (0..rows).step_by(SQUARE) {
        for column in (0..columns).step_by(SQUARE) {
            for at in row..rows.min(row + SQUARE) {
                for to in column..columns.min(column + SQUARE) {
                    out[to * rows + at] = matrix[at * columns + to];
                }
            }
        }
    }
    out
}

/// The divisors of rotary angles, which GGUF files alone have.
pub(crate) const ROTARY_DIVISORS: &str = "rotary_divisors";

/// What GGUF calls a tensor of a decoder.
fn in_gguf(name: &str) -> Option<String> {
    match name {
        "embed_tokens.weight" => return Some("token_embd.weight".into()),
        ROTARY_DIVISORS => return Some("rope_freqs.weight".into()),
        _ => {}
    }
    let (block, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{block}.{part}.{kind}"))
}

/// A small file of a folder, if it is there.
pub(crate) fn small(store: &Store, key: &str) -> Result<Option<Vec<u8>>> {
    match store.head(key)? {
        None => Ok(None),
        Some(entry) if entry.size > MOST_JSON => Err(Error::data(
            store.url_of(key),
            format!("has {} bytes, and {MOST_JSON} are the most of such a file", entry.size),
        )),
        Some(_) => Ok(Some(store.get(key)?.to_vec())),
    }
}

/// The files of weights of a folder: those that an index names, or the one there is; safetensors where it has both kinds.
fn files(store: &Store) -> Result<Vec<String>> {
    const KINDS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
    for one in KINDS {
        let index = format!("{one}.index.json");
        if let Some(json) = small(store, &index)? {
            return of_index(&json).map_err(|problem| Error::data(store.url_of(&index), problem));
        }
        if store.head(one)?.is_some() {
            return Ok(vec![one.into()]);
        }
    }
    let problem = format!(
        "has no {} and no {}, nor an index of several such files: save the model with save_pretrained of transformers",
        KINDS[0], KINDS[1]
    );
    Err(Error::data(store.url(), problem))
}

/// The files that an index names, each beside it.
fn of_index(json: &[u8]) -> std::result::Result<Vec<String>, String> {
    let index: Json = serde_json::from_slice(json).map_err(|e| format!("is no JSON: {e}"))?;
    let map = index.get("weight_map").and_then(Json::as_object).ok_or("lacks weight_map")?;
    let mut files: Vec<String> = map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    match files.iter().find(|file| file.contains(['/', '\\']) || file.as_str() == "..") {
        Some(file) => Err(format!("names {file:?}, which is no file beside it")),
        None => Ok(files),
    }
}

impl Place {
    /// That of a tensor, where it is read.
    fn of(tensor: &Tensor) -> Option<Place> {
        let kind = match tensor.number.as_ref().ok().copied().or(tensor.transposed)? {
            Number::F32 => Kind::F32,
            Number::F16 => Kind::F16,
            Number::Bf16 => Kind::Bf16,
            _ => return None,
        };
        let shape =
            tensor.shape.iter().map(|&length| usize::try_from(length)).collect::<std::result::Result<_, _>>().ok()?;
        let is_transposed = tensor.transposed.is_some();
        Some(Place { shape, kind, is_transposed, offset: tensor.offset, bytes: tensor.bytes()? })
    }
}
