//! safetensors, of which vLLM's extracted hidden states are some.
//!
//! vLLM's connector writes one file for a request, with `hidden_states` [positions, layers, width] and `token_ids` [positions]: a context each.
//! Which layers these are stands in vLLM's configuration and not in the file, so one is chosen by its place among them.

use loader::Result;
use tensors::{File, Format, Tensor};

use crate::tensor::{self, Three};
use crate::unit::{Choice, Contents};

pub(crate) fn contents(file: &File, choice: Choice<'_>) -> Result<Contents> {
    tensor::contents(file, tensors(file)?, choice, Three::Contexts)
}

pub(crate) fn contents_of_vllm(file: &File, choice: Choice<'_>, layer: Option<u64>) -> Result<Contents> {
    let tensors = tensors(file)?;
    if choice.name.is_none() && !is_vllm(&tensors) {
        return Err(file.flaw(
            "does not hold hidden_states and token_ids, as vLLM's extracted hidden states do: name its tensor, or take it as safetensors",
        ));
    }
    let choice = Choice { name: choice.name.or(Some("hidden_states")), ..choice };
    tensor::contents(file, tensors, choice, Three::Layers(layer))
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

fn tensors(file: &File) -> Result<Vec<(String, Tensor)>> {
    Ok(Format::Safetensors.read(file)?.named)
}
