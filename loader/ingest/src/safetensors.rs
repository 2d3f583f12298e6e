//! safetensors: a header in JSON with the place of each tensor, then their bytes. vLLM's extracted hidden states are such files.
//!
//! vLLM's connector writes one file for a request, with `hidden_states` [positions, layers, width] and `token_ids` [positions]: a context each.
//! Which layers these are stands in vLLM's configuration and not in the file, so one is chosen by its place among them.

use loader::Result;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::files::{File, flaw_of};
use crate::numbers::Number;
use crate::tensor::{self, Tensor, Three};
use crate::unit::Contents;

/// The longest header that the format has.
const MAX_HEADER: u64 = 100_000_000;

pub(crate) fn contents(file: &File, wanted: Option<&str>) -> Result<Contents> {
    tensor::contents(file, tensors(file)?, wanted, Three::Contexts)
}

pub(crate) fn contents_of_vllm(file: &File, wanted: Option<&str>, layer: Option<u64>) -> Result<Contents> {
    let tensors = tensors(file)?;
    if wanted.is_none() && !is_vllm(&tensors) {
        return Err(file.flaw(
            "does not hold hidden_states and token_ids, as vLLM's extracted hidden states do: name its tensor, or take it as safetensors",
        ));
    }
    tensor::contents(file, tensors, wanted.or(Some("hidden_states")), Three::Layers(layer))
}

/// Whether a file is one that vLLM's connector writes.
pub(crate) fn looks_like_vllm(file: &File) -> Result<bool> {
    Ok(is_vllm(&tensors(file)?))
}

fn is_vllm(tensors: &[(String, Tensor)]) -> bool {
    let shape =
        |wanted: &str| tensors.iter().find(|(name, _)| name == wanted).map(|(_, tensor)| tensor.shape.as_slice());
    match (shape("hidden_states"), shape("token_ids")) {
        (Some([positions, .., _]), Some([tokens])) => tensors.len() == 2 && positions == tokens,
        _ => false,
    }
}

/// All tensors by name, held against the size of the file.
fn tensors(file: &File) -> Result<Vec<(String, Tensor)>> {
    let head = file.head(8)?;
    let Ok(length) = <[u8; 8]>::try_from(&head[..]).map(u64::from_le_bytes) else {
        return Err(file.flaw(format!("is no safetensors file (or cut off): it has {} bytes", file.size)));
    };
    if length > MAX_HEADER || length > file.size - 8 {
        return Err(file.flaw(format!(
            "is no safetensors file, or damaged: claims a header of {length} bytes in a file of {}",
            file.size
        )));
    }
    let header = file.read(8..8 + length)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| flaw_of(file.url(), format!("is no safetensors file, or damaged: {e}"), e))?;
    let (start, named) = (8 + length, metadata.tensors());
    let mut tensors = Vec::new();
    let mut end = 0;
    for (name, info) in named {
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let shape = info.shape.iter().map(|&n| n as u64).collect();
        let tensor = Tensor { offset: start.saturating_add(from), number: number(info.dtype), shape };
        if tensor.number.is_ok() && tensor.bytes() != to.checked_sub(from) {
            return Err(file.flaw(format!("damaged: tensor {name:?} does not take the bytes that it claims")));
        }
        end = end.max(to);
        tensors.push((name, tensor));
    }
    if start.checked_add(end) != Some(file.size) {
        let problem = format!(
            "cut off or damaged: its tensors end at byte {end} behind the header, and {} follow it",
            file.size - start
        );
        return Err(file.flaw(problem));
    }
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(tensors)
}

fn number(dtype: Dtype) -> std::result::Result<Number, String> {
    Ok(match dtype {
        Dtype::F16 => Number::F16,
        Dtype::BF16 => Number::Bf16,
        Dtype::F32 => Number::F32,
        Dtype::F64 => Number::F64,
        Dtype::I8 => Number::I8,
        Dtype::I16 => Number::I16,
        Dtype::I32 => Number::I32,
        Dtype::I64 => Number::I64,
        Dtype::U8 => Number::U8,
        Dtype::U16 => Number::U16,
        Dtype::U32 => Number::U32,
        Dtype::U64 => Number::U64,
        other => return Err(format!("{other:?}")),
    })
}
