//! The tokens around a text, and what the files beside a tokenizer.json say of them.

use loader::Store;
use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::model::weights::small;

/// Tokens that stand around a text, as far as they are known.
#[derive(Default)]
pub(super) struct Special {
    /// The one that begins a context.
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// What is put around a text, where that is not for the tokenizer's own rules to say.
    pub(super) adds: Option<(bool, bool)>,
}

/// What the files beside a tokenizer.json say of its special tokens.
pub(super) fn configured(store: &Store, tokenizer: &[u8]) -> Result<Special> {
    let read = |key: &str| -> Result<Json> {
        let Some(json) = small(store, key)? else { return Ok(Json::Null) };
        serde_json::from_slice(&json).map_err(|e| Error::data(store.url_of(key), format!("is no JSON: {e}")))
    };
    let (config, model) = (read("tokenizer_config.json")?, read("config.json")?);
    let tokenizer: Json = serde_json::from_slice(tokenizer).unwrap_or_default();
    // A token stands there as itself, or as an object with its settings.
    let token = |name: &str| {
        let token = config.get(name)?;
        let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
        id(&tokenizer, text)
    };
    let numbered = |name: &str| model.get(name).and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
    let bos = token("bos_token").or_else(|| token("cls_token")).or_else(|| numbered("bos_token_id"));
    let eos = token("eos_token").or_else(|| token("sep_token")).or_else(|| numbered("eos_token_id"));
    // As transformers does it: what tokenizer.json puts around a text stands, whatever add_bos_token and add_eos_token say.
    Ok(Special { bos, eos, adds: None })
}

/// The number of a token in a tokenizer.json.
fn id(tokenizer: &Json, text: &str) -> Option<u32> {
    let added = tokenizer.get("added_tokens").and_then(Json::as_array).into_iter().flatten();
    let of_added = added.filter(|token| token.get("content").and_then(Json::as_str) == Some(text));
    let mut ids = of_added.filter_map(|token| token.get("id")?.as_u64());
    let id = ids.next().or_else(|| tokenizer.get("model")?.get("vocab")?.get(text)?.as_u64());
    id.and_then(|id| u32::try_from(id).ok())
}
