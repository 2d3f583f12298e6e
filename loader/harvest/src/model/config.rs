//! What a model is: its shape, from config.json of a Hugging Face folder or from the head of a GGUF file. What this crate does not compute
//! is refused by name: a stream that is nearly right would be worse than none.

use serde_json::Value as Json;

use super::gguf::Gguf;
use crate::error::{Error, Result};

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Llama, Mistral, Qwen2, Qwen3: norms before, causal, rotary positions, gated MLP.
    Decoder,
    /// BERT: norms behind, attention both ways, learned positions.
    Encoder,
}

/// The numbers of a model.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// As its own tools call it: `llama`, `qwen3`, `bert`.
    pub(crate) architecture: String,
    pub(crate) class: Class,
    pub(crate) width: usize,
    pub(crate) blocks: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) hidden: usize,
    pub(crate) vocabulary: usize,
    pub(crate) epsilon: f32,
    /// Tokens of a context at most: learned positions end there, and a sliding window changes nothing up to its length.
    pub(crate) most_tokens: Option<usize>,
    /// Tokens for which it was trained.
    pub(crate) trained_tokens: Option<usize>,
    /// Angle per position of each pair of a head; empty for learned positions.
    pub(crate) frequencies: Vec<f32>,
    /// Whether pair `i` of a head is `(i, i + n/2)`.
    pub(crate) halves: bool,
}

/// Sizes that no model has, against files that lie.
const MOST: usize = 1 << 24;

impl Shape {
    /// From config.json, which stands at `url`.
    pub(crate) fn of_config(json: &[u8], url: &str) -> Result<Shape> {
        let fail = |problem: String| Error::data(url, problem);
        let config: Json = serde_json::from_slice(json).map_err(|e| fail(format!("is no JSON: {e}")))?;
        let config = Config { json: &config, url };
        let architecture = config.text("model_type").unwrap_or_default().to_owned();
        match architecture.as_str() {
            "llama" | "mistral" | "qwen2" | "qwen3" => config.decoder(architecture),
            "bert" => config.encoder(architecture),
            other => Err(fail(format!(
                "model_type is {other:?}, and llama (with SmolLM2), mistral, qwen2, qwen3 and bert are computed here"
            ))),
        }
    }

    /// Slows rotary positions down, each pair by a divisor of its own, as GGUF files tell scaling that depends on the pair.
    pub(crate) fn divide_frequencies(&mut self, divisors: &[f32], url: &str) -> Result<()> {
        if let Some(divisor) = divisors.iter().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
            return Err(Error::data(url, format!("divides rotary angles by {divisor}: it is damaged")));
        }
        self.frequencies.iter_mut().zip(divisors).for_each(|(frequency, divisor)| *frequency /= divisor);
        Ok(())
    }

    /// From the head of a GGUF file.
    pub(crate) fn of_gguf(gguf: &Gguf) -> Result<Shape> {
        let fail = |problem: String| Error::data(gguf.url(), problem);
        let architecture = gguf.text("general.architecture").unwrap_or_default().to_owned();
        if !["llama", "qwen2", "qwen3"].contains(&architecture.as_str()) {
            return Err(fail(format!(
                "general.architecture is {architecture:?}, and llama (with Mistral and SmolLM2), qwen2 and qwen3 are computed here"
            )));
        }
        let key = |name: &str| format!("{architecture}.{name}");
        let size = |name: &str| {
            let value = gguf.integer(&key(name)).and_then(|value| usize::try_from(value).ok());
            value.filter(|&value| value > 0 && value < MOST).ok_or_else(|| fail(format!("lacks {}", key(name))))
        };
        if gguf.integer(&key("expert_count")).is_some_and(|count| count > 0) {
            return Err(fail("has experts, and only dense models are computed here".into()));
        }
        let scaling = gguf.text(&key("rope.scaling.type")).unwrap_or("none");
        let factor = match scaling {
            "none" => 1.0,
            "linear" => gguf.number(&key("rope.scaling.factor")).unwrap_or(1.0),
            other => return Err(fail(format!("scales rotary positions by {other}, which is not computed here"))),
        };
        let (width, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_width = size("attention.key_length").or_else(|error| even(width, heads).ok_or(error))?;
        if gguf.integer(&key("rope.dimension_count")).is_some_and(|n| n != head_width as i64) {
            return Err(fail("rotates a part of each head alone, which is not computed here".into()));
        }
        let base = gguf.number(&key("rope.freq_base")).unwrap_or(10_000.0);
        let vocabulary = gguf.tensors.get("token_embd.weight").and_then(|place| place.shape.first()).copied();
        let window = gguf.integer(&key("attention.sliding_window")).and_then(|n| usize::try_from(n).ok());
        let shape = Shape {
            class: Class::Decoder,
            width,
            blocks: size("block_count")?,
            heads,
            kv_heads: size("attention.head_count_kv").unwrap_or(heads),
            head_width,
            hidden: size("feed_forward_length")?,
            vocabulary: vocabulary.ok_or_else(|| fail("lacks token_embd.weight".into()))?,
            epsilon: gguf.number(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5) as f32,
            most_tokens: window.filter(|&window| window > 0),
            trained_tokens: size("context_length").ok(),
            frequencies: frequencies(base, head_width, |angle| angle / factor),
            halves: architecture != "llama",
            architecture,
        };
        shape.checked(&gguf.url())
    }

    fn checked(self, url: &str) -> Result<Shape> {
        let fits = self.heads.checked_mul(self.head_width).is_some_and(|all| all < MOST)
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head_width.is_multiple_of(2);
        if !fits {
            let Shape { heads, kv_heads, head_width, .. } = self;
            return Err(Error::data(
                url,
                format!("has {heads} heads of {head_width} and {kv_heads} for keys, which do not fit"),
            ));
        }
        Ok(self)
    }
}

/// What `heads` heads have each of `width`.
fn even(width: usize, heads: usize) -> Option<usize> {
    width.is_multiple_of(heads).then(|| width / heads)
}

/// Angles per position, from the fastest pair to the slowest.
fn frequencies(base: f64, head_width: usize, scale: impl Fn(f64) -> f64) -> Vec<f32> {
    (0..head_width / 2).map(|pair| scale(base.powf(-2.0 * pair as f64 / head_width as f64)) as f32).collect()
}

/// config.json while it is read.
struct Config<'a> {
    json: &'a Json,
    url: &'a str,
}

impl Config<'_> {
    fn fail(&self, problem: impl Into<String>) -> Error {
        Error::data(self.url, problem)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.json.get(key)?.as_str()
    }

    fn size(&self, key: &str) -> Result<usize> {
        let value = self.json.get(key).and_then(Json::as_u64).map(|value| value as usize);
        value.filter(|&value| value > 0 && value < MOST).ok_or_else(|| self.fail(format!("lacks {key}")))
    }

    /// A size that may be absent or null.
    fn optional(&self, key: &str) -> Result<Option<usize>> {
        match self.json.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(_) => self.size(key).map(Some),
        }
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.json.get(key).and_then(Json::as_f64).unwrap_or(default)
    }

    /// That `key`, if it is there, is one of `known`.
    fn check(&self, key: &str, known: &[&str]) -> Result<()> {
        match self.json.get(key) {
            Some(Json::String(value)) if !known.contains(&value.as_str()) => {
                Err(self.fail(format!("{key} is {value:?}, and {} is computed here", known.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    fn decoder(&self, architecture: String) -> Result<Shape> {
        self.check("hidden_act", &["silu", "swish"])?;
        let (width, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let head_width = match self.optional("head_dim")? {
            Some(width) => width,
            None => even(width, heads).ok_or_else(|| self.fail("lacks head_dim"))?,
        };
        // Qwen's configurations have a window that is used only where they say so.
        let has_window = match self.json.get("use_sliding_window").and_then(Json::as_bool) {
            Some(used) => used,
            None => !architecture.starts_with("qwen"),
        };
        let shape = Shape {
            class: Class::Decoder,
            width,
            blocks: self.size("num_hidden_layers")?,
            heads,
            kv_heads: self.optional("num_key_value_heads")?.unwrap_or(heads),
            head_width,
            hidden: self.size("intermediate_size")?,
            vocabulary: self.size("vocab_size")?,
            epsilon: self.number("rms_norm_eps", 1e-6) as f32,
            most_tokens: if has_window { self.optional("sliding_window")? } else { None },
            trained_tokens: self.optional("max_position_embeddings")?,
            frequencies: self.rope(head_width)?,
            halves: true,
            architecture,
        };
        shape.checked(self.url)
    }

    fn encoder(&self, architecture: String) -> Result<Shape> {
        self.check("hidden_act", &["gelu"])?;
        self.check("position_embedding_type", &["absolute"])?;
        if self.json.get("is_decoder").and_then(Json::as_bool) == Some(true) {
            return Err(self.fail("is a BERT that attends one way, which is not computed here"));
        }
        let (width, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let positions = self.size("max_position_embeddings")?;
        let shape = Shape {
            class: Class::Encoder,
            width,
            blocks: self.size("num_hidden_layers")?,
            heads,
            kv_heads: heads,
            head_width: even(width, heads).ok_or_else(|| self.fail("its heads do not divide its width"))?,
            hidden: self.size("intermediate_size")?,
            vocabulary: self.size("vocab_size")?,
            epsilon: self.number("layer_norm_eps", 1e-12) as f32,
            most_tokens: Some(positions),
            trained_tokens: Some(positions),
            frequencies: Vec::new(),
            halves: true,
            architecture,
        };
        shape.checked(self.url)
    }

    /// Rotary angles: `rope_parameters` as version 5 of transformers writes them, or `rope_theta` and `rope_scaling` as earlier ones.
    fn rope(&self, head_width: usize) -> Result<Vec<f32>> {
        let none = Json::Null;
        let parameters = self.json.get("rope_parameters").or_else(|| self.json.get("rope_scaling")).unwrap_or(&none);
        let number = |key: &str| parameters.get(key).and_then(Json::as_f64);
        let base = number("rope_theta").unwrap_or_else(|| self.number("rope_theta", 10_000.0));
        if number("partial_rotary_factor").or_else(|| self.json.get("partial_rotary_factor")?.as_f64()).unwrap_or(1.0)
            != 1.0
        {
            return Err(self.fail("rotates a part of each head alone, which is not computed here"));
        }
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Json::as_str);
        let need = |key: &str| number(key).ok_or_else(|| self.fail(format!("scales rotary positions and lacks {key}")));
        Ok(match kind.unwrap_or("default") {
            "default" => frequencies(base, head_width, |angle| angle),
            "linear" => {
                let factor = need("factor")?;
                frequencies(base, head_width, |angle| angle / factor)
            }
            "llama3" => {
                let (factor, slow, fast) = (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
                let trained = need("original_max_position_embeddings")?;
                // Pairs that turn often within the length once trained on stay; those that turn seldom slow down; between, both.
                frequencies(base, head_width, |angle| {
                    let turns = trained * angle / std::f64::consts::TAU;
                    let share = ((turns - slow) / (fast - slow)).clamp(0.0, 1.0);
                    (1.0 - share) * angle / factor + share * angle
                })
            }
            other => return Err(self.fail(format!("scales rotary positions by {other:?}, which is not computed here"))),
        })
    }
}
