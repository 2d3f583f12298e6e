//! The command line of `sae export`.

use clap::ValueEnum;
use loader::number;
use trainer::checkpoint::Which;

/// Write a dictionary in the format of another tool.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae export runs/quickstart --format saelens --out exported/quickstart\n  sae export runs/a --checkpoint best \
--unit-norm --dtype bf16 --out exported/a\n  sae export s3://bucket/run --max-shard-size 4GB --out s3://bucket/exported\n\nthen in Python:\n  \
from sae_lens import SAE\n  sae = SAE.load_from_disk(\"exported/quickstart\")\n  features = sae.encode(activations)"
)]
pub struct Export {
    /// A run's folder or a checkpoint's: a checkpoints/step-… folder, or a copy of an attempt; or an export, or a folder of SAELens or
    /// dictionary_learning, to be written in another form; a path or URL.
    pub run: String,
    /// Which checkpoint of a run: last, best (the least held-out loss of those evaluated during training), or the number of a step.
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = which)]
    pub checkpoint: Which,
    /// The format.
    #[arg(long, value_enum, default_value_t = Format::Saelens)]
    pub format: Format,
    /// New folder or URL.
    #[arg(long)]
    pub out: String,
    /// Numbers of the exported weights.
    #[arg(long, value_enum, default_value_t = Numbers::F32)]
    pub dtype: Numbers,
    /// Scale decoder rows to norm 1, and encoder rows and biases so that reconstructions stay the same.
    #[arg(long)]
    pub unit_norm: bool,
    /// Write a dictionary that takes more in parts of at most so many bytes (such as 4GB), each a folder for some of the features.
    /// A part is held twice in memory.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub max_shard_size: Option<u64>,
    /// Leave out features that are dead: silent over train.dead_window, or over all rows trained on where these are fewer.
    /// features.safetensors says which the others are, and sae encode calls them by these numbers.
    #[arg(long)]
    pub alive_only: bool,
    /// Model that the activations came from; when absent, what the manifest of the training rows says, as of the four below.
    #[arg(long, alias = "model-name")]
    pub model: Option<String>,
    /// Class by which TransformerLens and SAELens load it.
    #[arg(long, value_name = "CLASS", default_value = "HookedTransformer")]
    pub model_class_name: String,
    /// Hook that they were taken at.
    #[arg(long, alias = "hook-name")]
    pub hook: Option<String>,
    /// Head of the hook that they are of, if of one.
    #[arg(long, value_name = "HEAD")]
    pub hook_head_index: Option<usize>,
    /// Data set that the model read.
    #[arg(long, alias = "dataset-path")]
    pub dataset: Option<String>,
    /// Tokens in a context.
    #[arg(long)]
    pub context_size: Option<usize>,
    /// Whether contexts began with the token for that: true or false.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub prepend_bos: Option<bool>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The folder that sae-lens 6 loads.
    Saelens,
    /// The folder of dictionary_learning, with ae.safetensors in place of a pickle.
    DictionaryLearning,
}

impl From<Format> for trainer::export::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Saelens => trainer::export::Format::Saelens,
            Format::DictionaryLearning => trainer::export::Format::DictionaryLearning,
        }
    }
}

/// `--dtype` of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Numbers {
    /// 32-bit floating point, as trained.
    F32,
    /// bfloat16, rounded to the nearest: half of the bytes.
    Bf16,
}

impl From<Numbers> for loader::Dtype {
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::F32 => loader::Dtype::F32,
            Numbers::Bf16 => loader::Dtype::Bf16,
        }
    }
}

pub(super) fn which(text: &str) -> Result<Which, &'static str> {
    match text {
        "last" => Ok(Which::Last),
        "best" => Ok(Which::Best),
        step => number::parse_count(step).map(Which::Step).ok_or("last, best or the number of a step is needed"),
    }
}

fn bytes(text: &str) -> Result<u64, &'static str> {
    number::parse_bytes(text).filter(|&bytes| bytes > 0).ok_or("a whole number of bytes, or one such as 4GB, is needed")
}
