//! The tokenizer inside of a GGUF file, as a tokenizer.json.
//!
//! The file has tokens, their types and either merges (`gpt2`: BPE over bytes) or scores (`llama`: SentencePiece). How a text is cut before
//! BPE stands there by a name alone, `tokenizer.ggml.pre`. A name that is not known is refused: another cut gives other tokens for a word
//! in ten, and nothing would tell.

use serde_json::{Value as Json, json};

use super::special::Special;
use crate::error::{Error, Help, Result};
use crate::model::gguf::{Gguf, Value};

/// What a token is; the types that matter.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER: i64 = 4;

/// Cuts before BPE, by the names that GGUF files have for them.
enum Cut {
    /// GPT-2's expression.
    Gpt2,
    /// Digits one by one, then GPT-2's expression.
    Digits,
    /// Llama 3's and Qwen 2's expression: at most so many digits together.
    Words(u8),
}

impl Cut {
    fn of(name: &str) -> Option<Cut> {
        Some(match name {
            "gpt-2" | "gpt2" => Cut::Gpt2,
            "smollm" => Cut::Digits,
            "llama-bpe" | "llama3" | "llama-v3" => Cut::Words(3),
            "qwen2" => Cut::Words(1),
            _ => return None,
        })
    }

    fn json(&self) -> Json {
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex});
        match self {
            Cut::Gpt2 => bytes(true),
            Cut::Digits => {
                json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true)]})
            }
            Cut::Words(digits) => {
                let digits = if *digits == 1 { r"\p{N}" } else { r"\p{N}{1,3}" };
                let contraction = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
                let word = r"[^\r\n\p{L}\p{N}]?\p{L}+";
                let signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*";
                let spaces = r"\s*[\r\n]+|\s+(?!\S)|\s+";
                let regex = [contraction, word, digits, signs, spaces].join("|");
                let split =
                    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
                json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
            }
        }
    }
}

/// A tokenizer.json, and the special tokens.
pub(super) fn of_gguf(gguf: &Gguf) -> Result<(Vec<u8>, Special)> {
    let url = gguf.url();
    let fail = |problem: String| Error::data(&url, problem).with(Help::Tokenizer);
    let lacks = |what: &str| fail(format!("has no tokenizer: it lacks tokenizer.ggml.{what}"));
    let tokens = gguf.texts("tokenizer.ggml.tokens").ok_or_else(|| lacks("tokens"))?;
    let types = match gguf.values.get("tokenizer.ggml.token_type") {
        Some(Value::Integers(types)) if types.len() == tokens.len() => types.as_slice(),
        None => &[],
        Some(_) => return Err(fail("has other token types than tokens".into())),
    };
    let is = |token: usize, kind: i64| types.get(token).copied().unwrap_or(NORMAL) == kind;
    let model = gguf.text("tokenizer.ggml.model").ok_or_else(|| lacks("model"))?;
    let vocabulary: serde_json::Map<String, Json> =
        tokens.iter().enumerate().rev().map(|(id, token)| (token.clone(), id.into())).collect();
    let id = |name: &str| {
        let id = gguf.integer(&format!("tokenizer.ggml.{name}_token_id")).and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < tokens.len())
    };
    let (normalizer, cut, bpe, begins) = match model {
        "gpt2" => {
            let name = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
            let cut = Cut::of(name).ok_or_else(|| {
                fail(format!(
                    "its tokenizer cuts texts by the rule {name:?} (tokenizer.ggml.pre), which is not known here: smollm, gpt-2, llama-bpe \
                     and qwen2 are"
                ))
            })?;
            let merges = gguf.texts("tokenizer.ggml.merges").ok_or_else(|| lacks("merges"))?;
            // Qwen's texts are composed first; Llama 3 takes a whole word that is a token without merging.
            let normalizer = if name == "qwen2" { json!({"type": "NFC"}) } else { Json::Null };
            let whole = matches!(cut, Cut::Words(3));
            let bpe = json!({"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": whole});
            (normalizer, cut.json(), bpe, whole)
        }
        "llama" => {
            let merges = merges_of_scores(gguf, tokens, &is).ok_or_else(|| lacks("scores"))?;
            let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
            let normalizers = match gguf.flag("tokenizer.ggml.add_space_prefix") {
                Some(false) => vec![spaces],
                _ => vec![json!({"type": "Prepend", "prepend": "▁"}), spaces],
            };
            let unknown = id("unknown").map_or("<unk>", |id| tokens[id as usize].as_str());
            let bpe = json!({
                "type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
            });
            (json!({"type": "Sequence", "normalizers": normalizers}), Json::Null, bpe, true)
        }
        other => {
            return Err(fail(format!(
                "its tokenizer is of the kind {other:?}, which is not known here: gpt2 and llama are"
            )));
        }
    };
    let added: Vec<Json> = (0..tokens.len())
        .filter(|&token| is(token, CONTROL) || is(token, USER))
        .map(|token| {
            json!({
                "id": token, "content": tokens[token], "special": is(token, CONTROL),
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": cut,
        "post_processor": null, "decoder": null, "model": bpe,
    });
    let json = serde_json::to_vec(&json).map_err(|e| fail(format!("its tokenizer: {e}")))?;
    let begins = gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(begins);
    let ends = gguf.flag("tokenizer.ggml.add_eos_token").unwrap_or(false);
    Ok((json, Special { bos: id("bos"), eos: id("eos"), adds: Some((begins, ends)) }))
}

/// SentencePiece joins the two neighbours whose whole has the best score: BPE, with every way to put a token together from two as a merge
/// of that token's rank.
fn merges_of_scores(gguf: &Gguf, tokens: &[String], is: &dyn Fn(usize, i64) -> bool) -> Option<Vec<[String; 2]>> {
    let Some(Value::Floats(scores)) = gguf.values.get("tokenizer.ggml.scores") else { return None };
    if scores.len() != tokens.len() {
        return None;
    }
    let known: std::collections::HashSet<&str> =
        tokens.iter().enumerate().filter(|(token, _)| is(*token, NORMAL)).map(|(_, text)| text.as_str()).collect();
    let mut order: Vec<usize> = (0..tokens.len()).filter(|&token| is(token, NORMAL)).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut merges = Vec::new();
    for token in order {
        let text = tokens[token].as_str();
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let halves = cuts.filter(|(left, right)| known.contains(left) && known.contains(right));
        merges.extend(halves.map(|(left, right)| [left.to_owned(), right.to_owned()]));
    }
    Some(merges)
}
