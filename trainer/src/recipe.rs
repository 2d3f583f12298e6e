//! The recipe: everything about a run that is written in its TOML file. `launch/recipes/README.md` lists every key for
//! users; a test holds the two together.
//!
//! What a run uses of a machine (device, ranks, mesh) is not in here: it comes from the command line, so that one recipe
//! runs anywhere with the same result.

mod resume;

use loader::number;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Error;
use crate::data::filter::Filter;

pub use resume::Differing;

/// A whole recipe with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `[data]`: which activations, in which order.
    pub data: Data,
    /// `[sae]`: the dictionary.
    pub sae: Sae,
    /// `[train]`: the optimisation.
    #[serde(default)]
    pub train: Train,
    /// `[run]`: where results go.
    pub run: Run,
    /// `[checkpoint]`: how often, and how many are kept.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// `[eval]`: held-out evaluation during training.
    #[serde(default)]
    pub eval: Eval,
    /// `[log]`: metrics.
    #[serde(default)]
    pub log: Log,
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Folders, files, globs or URLs of the training shards.
    #[serde(deserialize_with = "one_or_many")]
    pub train: Vec<String>,
    /// The column of activations, where its name or type does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Held-out shards; without them the last training rows are measured before they are trained on.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub eval: Vec<String>,
    /// Order of rows.
    #[serde(default)]
    pub order: Order,
    /// Bytes of rows held to permute them in order `direct`; part of the order.
    #[serde(default = "default_window_bytes", deserialize_with = "number::bytes")]
    pub window_bytes: u64,
    /// Seed of the order.
    #[serde(default)]
    pub seed: u64,
    /// Rows that the order is made for, of which `train.tokens` takes the first: so runs of different lengths see the same rows. Those trained
    /// on when absent.
    #[serde(default, deserialize_with = "number::some_count", skip_serializing_if = "Option::is_none")]
    pub order_rows: Option<u64>,
    /// Factor on every row.
    #[serde(default)]
    pub scale: Scale,
    /// Most bytes of rows held, windows included; what the order needs and some to read ahead when absent.
    #[serde(default, deserialize_with = "number::some_bytes", skip_serializing_if = "Option::is_none")]
    pub prefetch_bytes: Option<u64>,
    /// Threads that decode shards; as many as the machine has cores, at most 4, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Rows (`file.parquet:row`) and row groups (`file.parquet#group`) left out. May grow when a run is resumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// As `skip`, of the held-out shards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eval_skip: Vec<String>,
    /// `[data.filter]`: rows left out by their content.
    #[serde(default, skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    /// Synthetic shards, made at `data.train` (and `data.eval`) when nothing is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synth: Option<loader::synth::Spec>,
    /// Held-out rows made at `data.eval` from the same directions.
    #[serde(default = "default_synth_eval_rows", deserialize_with = "number::count")]
    pub synth_eval_rows: u64,
}

impl Data {
    /// Training rows at some places, and every other key at its default.
    pub fn of_places(train: Vec<String>) -> Self {
        let keys = toml::Table::from_iter([("train".to_owned(), train.into())]);
        keys.try_into().expect("every other key has a default")
    }
}

/// `[sae]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sae {
    /// `F`, features of the dictionary.
    #[serde(deserialize_with = "number::count")]
    pub features: usize,
    /// Norm of the decoder's rows at the start; the encoder starts as its transpose.
    #[serde(default = "default_decoder_norm")]
    pub decoder_norm: f32,
    /// Encoder bias at the start.
    #[serde(default)]
    pub bias_init: BiasInit,
    /// Mean active features a row at the start, for `bias_init = "calibrated"`.
    #[serde(default = "default_bias_init_l0")]
    pub bias_init_l0: f64,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Rows trained on; the whole epoch when absent.
    #[serde(default, deserialize_with = "number::some_count", skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// `B`, rows in a step.
    #[serde(default = "default_batch", deserialize_with = "number::count")]
    pub batch: usize,
    /// Adam's learning rate before its decay.
    #[serde(default = "default_lr")]
    pub lr: f64,
    /// λ, weight of the L1 penalty after its warm-up.
    #[serde(default = "default_l1")]
    pub l1: f64,
    /// Share of the steps over which λ rises from 0.
    #[serde(default = "default_l1_warmup")]
    pub l1_warmup: f64,
    /// Share of the steps, at the end, over which the learning rate falls to 0.
    #[serde(default = "default_lr_decay")]
    pub lr_decay: f64,
    /// Greatest norm of the gradient; a longer one is scaled down to it.
    #[serde(default = "default_clip")]
    pub clip: f64,
    /// Seed of the initial weights, and of what is rounded stochastically.
    #[serde(default)]
    pub seed: u64,
    /// Which rows Adam updates.
    #[serde(default)]
    pub adam: Adam,
    /// The precision of GEMMs and weights.
    #[serde(default)]
    pub precision: Precision,
    /// The precision of Adam's moments.
    #[serde(default)]
    pub moments: Moments,
    /// A run, a checkpoint, an export, a SAELens folder or a safetensors file of weights to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// Which activations the weights in a file take that has nothing beside it to say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_space: Option<InitSpace>,
    /// A feature that is silent over this many tokens is dead.
    #[serde(default = "default_dead_window", deserialize_with = "number::count")]
    pub dead_window: u64,
    /// Threads of the step on a CPU; as many as the machine has cores when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Bytes that the dense path may take to keep a batch's activations.
    #[serde(default = "default_dense_bytes", deserialize_with = "number::bytes")]
    pub dense_bytes: u64,
}

impl Default for Train {
    fn default() -> Self {
        toml::from_str("").expect("every key has a default")
    }
}

/// `[run]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// A new or resumed folder, or a URL.
    pub dir: String,
}

/// `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps (`1000`) or time (`"10min"`) between checkpoints; one is always made at the end.
    pub every: Every,
    /// How many of the newest are kept.
    pub keep: usize,
    /// Saves whenever an evaluation during training finds the least held-out loss so far, and keeps that one besides.
    pub best: bool,
    /// Bytes that a rank keeps of a checkpoint while it is stored and training goes on. Of a larger part training
    /// waits until no more than this, and the few files that are being stored, are left. What its host can spare when absent.
    #[serde(deserialize_with = "number::some_bytes", skip_serializing_if = "Option::is_none")]
    pub buffer_bytes: Option<u64>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint { every: Every::Minutes(10.0), keep: 2, best: true, buffer_bytes: None }
    }
}

/// `[eval]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Steps between evaluations on `data.eval`; 0: only at the end.
    pub every: u64,
    /// Rows of `data.eval` used during training, by which the best checkpoint is chosen; all of them at the end.
    #[serde(deserialize_with = "number::count")]
    pub rows: u64,
}

impl Default for Eval {
    fn default() -> Self {
        Eval { every: 0, rows: 65_536 }
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Steps between lines of metrics.jsonl.
    pub every: u64,
    /// Writes the id of every row trained on to rows.jsonl, step by step.
    pub rows: bool,
}

impl Default for Log {
    fn default() -> Self {
        Log { every: 50, rows: false }
    }
}

/// `data.order`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// `sequential` for data that says it has been shuffled, else `direct`.
    #[default]
    Auto,
    /// Row groups permuted, read as 64 streams, rows permuted inside windows.
    Direct,
    /// As stored.
    Sequential,
    /// As stored, read as 64 streams: for shuffled data that many ranks read.
    Striped,
}

/// `sae.bias_init`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasInit {
    /// 0, as published: about half of the features fire at the start.
    #[default]
    Zero,
    /// From a sample's quantiles, so that `sae.bias_init_l0` features fire on a row.
    Calibrated,
}

/// `train.adam`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Adam {
    /// Every row at every step.
    #[default]
    Dense,
    /// Touched rows, with the steps that they missed made up for in closed form.
    Catchup,
    /// Touched rows only.
    Touched,
}

/// `train.precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// `mixed` on a GPU, `f32` on the processor.
    #[default]
    Auto,
    /// 32-bit floating point throughout.
    F32,
    /// Weights in 32 bits; GEMMs of bf16 copies with 32-bit sums. On a GPU only.
    Mixed,
    /// The same GEMMs; weights in bf16 alone, which Adam rounds stochastically. On a GPU only.
    Bf16Sr,
}

/// `train.moments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// 32-bit floating point.
    #[default]
    F32,
    /// bf16, rounded stochastically. On a GPU only.
    Bf16,
    /// 8 bits with a scale for each block of 128 columns, rounded stochastically. On a GPU only.
    Int8,
}

/// `train.init_space`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitSpace {
    /// Rows as stored, as exports do.
    Raw,
    /// Rows times `data.scale`, as training does.
    Normalized,
}

/// `data.scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// From a sample, so that E‖x‖² = D.
    #[default]
    Auto,
    /// This factor.
    Fixed(f64),
}

impl Serialize for Scale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Scale::Auto => serializer.serialize_str("auto"),
            Scale::Fixed(factor) => serializer.serialize_f64(*factor),
        }
    }
}

/// What TOML may hold where a number or a word is allowed.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrWord {
    Integer(i64),
    Number(f64),
    Word(String),
}

impl<'de> Deserialize<'de> for Scale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let factor = match NumberOrWord::deserialize(deserializer)? {
            NumberOrWord::Word(word) if word == "auto" => return Ok(Scale::Auto),
            NumberOrWord::Word(word) => return Err(de::Error::custom(format!("\"auto\" or a number, not \"{word}\""))),
            NumberOrWord::Integer(integer) => integer as f64,
            NumberOrWord::Number(number) => number,
        };
        Ok(Scale::Fixed(factor))
    }
}

/// A cadence: steps, or minutes of wall-clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    /// Whenever the step is a multiple.
    Steps(u64),
    /// When this much time has passed.
    Minutes(f64),
}

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Every::Steps(steps) => serializer.serialize_u64(*steps),
            Every::Minutes(minutes) => serializer.serialize_str(&format!("{minutes}min")),
        }
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "steps above 0, such as 1000, or minutes, such as \"10min\"";
        match NumberOrWord::deserialize(deserializer)? {
            NumberOrWord::Integer(steps) if steps > 0 => Ok(Every::Steps(steps as u64)),
            NumberOrWord::Word(word) => match word.strip_suffix("min").map(|number| number.trim().parse::<f64>()) {
                Some(Ok(minutes)) if minutes > 0.0 && minutes.is_finite() => Ok(Every::Minutes(minutes)),
                _ => Err(de::Error::custom(format!("{expected}; found \"{word}\""))),
            },
            NumberOrWord::Integer(steps) => Err(de::Error::custom(format!("{expected}; found {steps}"))),
            NumberOrWord::Number(number) => Err(de::Error::custom(format!("{expected}; found {number}"))),
        }
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    match OneOrMany::deserialize(deserializer) {
        Ok(OneOrMany::One(one)) => Ok(vec![one]),
        Ok(OneOrMany::Many(many)) => Ok(many),
        Err(_) => Err(de::Error::custom("a path or URL, or a list of them")),
    }
}

fn default_window_bytes() -> u64 {
    1 << 30
}
fn default_synth_eval_rows() -> u64 {
    16_384
}
fn default_decoder_norm() -> f32 {
    0.1
}
fn default_bias_init_l0() -> f64 {
    100.0
}
fn default_batch() -> usize {
    4096
}
fn default_lr() -> f64 {
    5e-5
}
fn default_l1() -> f64 {
    5.0
}
fn default_l1_warmup() -> f64 {
    0.05
}
fn default_lr_decay() -> f64 {
    0.2
}
fn default_clip() -> f64 {
    1.0
}
fn default_dead_window() -> u64 {
    10_000_000
}
fn default_dense_bytes() -> u64 {
    512 << 20
}

impl Recipe {
    /// Checks what the types cannot: ranges, and keys that exclude each other.
    ///
    /// # Errors
    /// [`Error::Recipe`] that names the key and what it may be.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |key: &str, wanted: &str, found: String| {
            Err(Error::Recipe(format!("{key} must be {wanted}, and is {found}")))
        };
        if self.data.train.is_empty() {
            return refuse("data.train", "a path or URL, or a list of them", "empty".into());
        }
        let mut urls =
            self.data.train.iter().chain(&self.data.eval).chain(&self.train.init_from).chain([&self.run.dir]);
        if urls.any(|url| loader::has_query(url)) {
            return Err(Error::Recipe(
                "a URL carries a query, such as a signature: credentials belong in the environment".into(),
            ));
        }
        let is_empty = |url: &String| url.trim().is_empty();
        for (key, urls, or) in [
            ("data.train", self.data.train.as_slice(), ""),
            ("data.eval", &self.data.eval, ", or [] for none"),
            ("train.init_from", self.train.init_from.as_slice(), ", or left out"),
            ("run.dir", std::slice::from_ref(&self.run.dir), ""),
        ] {
            if urls.iter().any(is_empty) {
                return refuse(key, &format!("a path or URL{or}"), "empty".into());
            }
        }
        if self.eval.every > 0 && self.data.eval.is_empty() {
            return refuse(
                "eval.every",
                "left out where there is no data.eval to evaluate on",
                self.eval.every.to_string(),
            );
        }
        let at_least_one = [
            ("sae.features", self.sae.features as u64),
            ("train.batch", self.train.batch as u64),
            ("train.tokens", self.train.tokens.unwrap_or(1)),
            ("data.order_rows", self.data.order_rows.unwrap_or(1)),
            ("train.dead_window", self.train.dead_window),
            ("train.threads", self.train.threads.unwrap_or(1) as u64),
            ("data.threads", self.data.threads.unwrap_or(1) as u64),
            ("data.window_bytes", self.data.window_bytes),
            ("data.prefetch_bytes", self.data.prefetch_bytes.unwrap_or(1)),
            ("checkpoint.keep", self.checkpoint.keep as u64),
            ("eval.rows", self.eval.rows),
            ("log.every", self.log.every),
        ];
        if let Some((key, value)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return refuse(key, "at least 1", value.to_string());
        }
        let at_most_2_31 = [("sae.features", self.sae.features), ("train.batch", self.train.batch)];
        if let Some((key, value)) = at_most_2_31.into_iter().find(|(_, value)| *value >= 1 << 31) {
            return refuse(key, "below 2147483648", value.to_string());
        }
        let threads = [("train.threads", self.train.threads), ("data.threads", self.data.threads)];
        if let Some((key, value)) = threads.into_iter().find(|(_, value)| value.is_some_and(|threads| threads > 1024)) {
            return refuse(key, "at most 1024", value.unwrap_or_default().to_string());
        }
        let above_zero = [
            ("train.lr", self.train.lr),
            ("train.clip", self.train.clip),
            ("sae.decoder_norm", f64::from(self.sae.decoder_norm)),
            ("sae.bias_init_l0", self.sae.bias_init_l0),
            ("data.scale", if let Scale::Fixed(factor) = self.data.scale { factor } else { 1.0 }),
        ];
        if let Some((key, value)) = above_zero.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            return refuse(key, "a number above 0", value.to_string());
        }
        if !(self.train.l1.is_finite() && self.train.l1 >= 0.0) {
            return refuse("train.l1", "a number, at least 0", self.train.l1.to_string());
        }
        self.data.filter.validate()?;
        let shares = [("train.l1_warmup", self.train.l1_warmup), ("train.lr_decay", self.train.lr_decay)];
        if let Some((key, value)) = shares.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return refuse(key, "a share between 0 and 1", value.to_string());
        }
        if self.sae.bias_init == BiasInit::Calibrated && self.sae.bias_init_l0 > self.sae.features as f64 {
            return refuse("sae.bias_init_l0", "at most sae.features", self.sae.bias_init_l0.to_string());
        }
        if self.train.init_space.is_some() && self.train.init_from.is_none() {
            return Err(Error::Recipe("train.init_space says what train.init_from names, and there is none".into()));
        }
        if self.sae.bias_init == BiasInit::Calibrated && self.train.init_from.is_some() {
            return Err(Error::Recipe(
                "train.init_from brings its own biases: leave out sae.bias_init = \"calibrated\"".into(),
            ));
        }
        if self.train.precision == Precision::F32 && self.train.moments != Moments::F32 {
            return Err(Error::Recipe(
                "train.moments must be \"f32\" where train.precision is: narrower ones go with \"mixed\" and \"bf16-sr\"".into(),
            ));
        }
        Ok(())
    }

    /// The recipe as TOML, every key spelled out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe has only string keys and plain values")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_be_a_glob_and_carries_no_query() {
        let with = |url: &str| {
            let text = format!("[data]\ntrain = '{url}'\n[sae]\nfeatures = 8\n[run]\ndir = 'run'\n");
            toml::from_str::<Recipe>(&text).expect("a recipe").validate()
        };
        with("s3://b/part-?/layer=12/*.parquet").expect("a glob");
        assert!(with("s3://b/part-0?sig=x").expect_err("a query").to_string().contains("carries a query"));
    }
}
