//! Where weights come from: the safetensors of a Hugging Face folder, or a GGUF file, by the names of the former. A tensor is read at a
//! time and becomes f32; a hash of what was read says afterwards which weights they were.

use std::collections::BTreeMap;

use loader::Store;
use serde::Deserialize;
use serde_json::Value as Json;
use xxhash_rust::xxh3::Xxh3;

use super::dequantize::Kind;
use super::gguf::{Gguf, Place};
use crate::error::{Error, Result};

/// Bytes of a head or an index at most.
const MOST_JSON: u64 = 256 << 20;

/// An open model.
pub(crate) struct Weights {
    source: Source,
    hash: Xxh3,
}

enum Source {
    Folder { store: Store, prefix: &'static str, tensors: BTreeMap<String, (String, Place)> },
    Gguf(Gguf),
}

impl Weights {
    /// The tensors of a folder.
    ///
    /// # Errors
    /// Where it has no safetensors, or their heads are no such heads.
    pub(crate) fn of_folder(store: Store) -> Result<Weights> {
        let mut tensors = BTreeMap::new();
        for file in files(&store)? {
            for (name, place) in head(&store, &file)? {
                tensors.insert(name, (file.clone(), place));
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
        Ok(Weights { source: Source::Folder { store, prefix, tensors }, hash: Xxh3::new() })
    }

    /// The tensors of a GGUF file.
    pub(crate) fn of_gguf(gguf: Gguf) -> Weights {
        Weights { source: Source::Gguf(gguf), hash: Xxh3::new() }
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<(&Store, &str, &Place)> {
        match &self.source {
            Source::Folder { store, prefix, tensors } => {
                let (file, place) = tensors.get(&format!("{prefix}{name}"))?;
                Some((store, file, place))
            }
            Source::Gguf(gguf) => Some((&gguf.store, &gguf.key, gguf.tensors.get(&in_gguf(name)?)?)),
        }
    }

    fn url(&self) -> String {
        match &self.source {
            Source::Folder { store, .. } => store.url().to_owned(),
            Source::Gguf(gguf) => gguf.url(),
        }
    }

    /// A tensor of this shape, as f32, appended to `to`.
    ///
    /// # Errors
    /// Where it is absent or has another shape, and those of the store.
    pub(crate) fn append(&mut self, name: &str, shape: &[usize], to: &mut Vec<f32>) -> Result<()> {
        let Some((store, file, place)) = self.find(name) else {
            return Err(Error::data(self.url(), format!("lacks the tensor {name}")));
        };
        if place.shape != shape {
            let problem = format!("tensor {name} is {:?}, and the configuration asks for {shape:?}", place.shape);
            return Err(Error::data(store.url_of(file), problem));
        }
        let stored = store.get_range(file, place.offset..place.offset + place.bytes)?;
        to.extend(place.kind.to_f32(&stored));
        self.hash.update(name.as_bytes());
        self.hash.update(&stored);
        Ok(())
    }

    /// The same by itself.
    pub(crate) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.append(name, shape, &mut values)?;
        Ok(values)
    }

    /// A matrix [out, in] as [in, out]: the GEMM reads weights in their order then, where it would copy them in another one for each batch,
    /// which was a tenth of the time.
    pub(crate) fn matrix(&mut self, name: &str, out: usize, width: usize) -> Result<Vec<f32>> {
        self.read(name, &[out, width]).map(|matrix| transposed(&matrix, out, width))
    }

    /// The same where it is there.
    pub(crate) fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        self.has(name).then(|| self.read(name, shape)).transpose()
    }

    /// A hash of all that was read so far, 32 hex digits.
    pub(crate) fn hash(&self) -> String {
        format!("{:032x}", self.hash.digest128())
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

/// What GGUF calls a tensor of a decoder.
fn in_gguf(name: &str) -> Option<String> {
    if name == "embed_tokens.weight" {
        return Some("token_embd.weight".into());
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

/// The safetensors of a folder: those that an index names, or the one there is.
fn files(store: &Store) -> Result<Vec<String>> {
    const INDEX: &str = "model.safetensors.index.json";
    if let Some(json) = small(store, INDEX)? {
        let fail = |problem: String| Error::data(store.url_of(INDEX), problem);
        let index: Json = serde_json::from_slice(&json).map_err(|e| fail(format!("is no JSON: {e}")))?;
        let map = index.get("weight_map").and_then(Json::as_object).ok_or_else(|| fail("lacks weight_map".into()))?;
        let mut files: Vec<String> = map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect();
        files.sort();
        files.dedup();
        if let Some(file) = files.iter().find(|file| file.contains(['/', '\\']) || file.as_str() == "..") {
            return Err(fail(format!("names {file:?}, which is no file beside it")));
        }
        return Ok(files);
    }
    if store.head("model.safetensors")?.is_some() {
        return Ok(vec!["model.safetensors".into()]);
    }
    let has_pickle = store.head("pytorch_model.bin")?.is_some();
    let also = if has_pickle {
        " (pytorch_model.bin is a pickle, which runs code when it is read: not read here)"
    } else {
        ""
    };
    Err(Error::data(
        store.url(),
        format!("has no model.safetensors and no {INDEX}{also}: save the model with save_pretrained of transformers"),
    ))
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The tensors of a file, where each lies in it.
fn head(store: &Store, file: &str) -> Result<Vec<(String, Place)>> {
    let fail = |problem: String| {
        Error::data(store.url_of(file), format!("is no safetensors file that can be read: {problem}"))
    };
    let size = store.head(file)?.ok_or_else(|| Error::data(store.url_of(file), "not found"))?.size;
    if size < 8 {
        return Err(fail(format!("it has {size} bytes")));
    }
    let length = store.get_range(file, 0..8)?;
    let length = u64::from_le_bytes(<[u8; 8]>::try_from(&length[..]).map_err(|_| fail("it ends".into()))?);
    if length > MOST_JSON || length > size - 8 {
        return Err(fail(format!("its head claims {length} bytes of {size}")));
    }
    let json = store.get_range(file, 8..8 + length)?;
    let entries: BTreeMap<String, Json> = serde_json::from_slice(&json).map_err(|e| fail(format!("its head: {e}")))?;
    let mut places = Vec::new();
    for (name, entry) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
        let info: Info = serde_json::from_value(entry).map_err(|e| fail(format!("tensor {name}: {e}")))?;
        let kind = match info.dtype.as_str() {
            "F32" => Kind::F32,
            "F16" => Kind::F16,
            "BF16" => Kind::Bf16,
            // Others may stand beside the weights, such as tables of positions.
            _ => continue,
        };
        let count = info.shape.iter().try_fold(1u64, |count, &length| count.checked_mul(length as u64));
        let bytes = count.and_then(|count| kind.bytes(count, 1)).filter(|&bytes| bytes <= size);
        let (from, to) = info.data_offsets;
        if bytes.is_none() || to.checked_sub(from) != bytes || to > size - 8 - length {
            return Err(fail(format!("tensor {name} of {} {:?} lies at {from} to {to}", info.dtype, info.shape)));
        }
        places.push((name, Place { shape: info.shape, kind, offset: 8 + length + from, bytes: to - from }));
    }
    Ok(places)
}
