//! The command line of `sae harvest`.

use clap::builder::RangedU64ValueParser;
use harvest::{Bos, Split};
use loader::Dtype;
use loader::parts::Worker;

use super::{dtype, rows};

/// Make activation shards from a language model and text, on the processor.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae harvest SmolLM2-135M/ --text corpus/ --layer 15 --out data/smol-15\n  sae harvest model.gguf --text \
's3://bucket/text/*.parquet' --layer 8,15,22 --rows 1e6 --out s3://bucket/acts\n  sae harvest all-MiniLM-L6-v2/ --text notes.jsonl.zst \
--by-document --layer 3 --out data/minilm\n  sae harvest model.gguf --text corpus/ --layer 15 --out data/a --worker 0/4   # and 1/4, \
2/4, 3/4, anywhere\n\n--layer L is hidden_states[L] of transformers, the stream behind L blocks and before the model's last norm. A worker \
that\nwas ended goes on where it stood when the same command is given again. launch/README.md#from-a-model-to-shards says more."
)]
pub struct Harvest {
    /// The model: a folder with config.json, tokenizer.json and safetensors or pytorch_model.bin, or a .gguf file; a path or URL.
    pub model: String,
    /// Files, folders, globs or URLs of text: Parquet, JSON lines or plain text, also .gz or .zst.
    #[arg(long, required = true, num_args = 1..)]
    pub text: Vec<String>,
    /// Layers whose rows are written: into --out itself, or of several into a folder for each.
    #[arg(long, required = true, value_name = "L,…", value_delimiter = ',', allow_hyphen_values = true, value_parser = layer)]
    pub layer: Vec<usize>,
    /// New folder or URL, or one in which the same command was begun.
    #[arg(long)]
    pub out: String,
    /// Stop behind so many rows.
    #[arg(long, value_parser = rows)]
    pub rows: Option<u64>,
    /// Tokens of a context.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = context)]
    pub context: usize,
    /// One document a context, and several contexts for a long one, instead of documents packed one after the other.
    #[arg(long)]
    pub by_document: bool,
    /// The token in front of a context: auto (as the Python tokenizer has it), always or never.
    #[arg(long, default_value = "auto", value_name = "WHEN")]
    pub bos: Bos,
    /// Keep the rows of attention sinks, which are left out otherwise: the first of each context, and those of BOS before later
    /// documents. In many models they carry a hundred times the norm of the others.
    #[arg(long)]
    pub keep_first: bool,
    /// Numbers of the rows: bf16, f16 or f32.
    #[arg(long, default_value = "bf16", value_parser = dtype)]
    pub dtype: Dtype,
    /// The column of Parquet, and the key of JSON lines, that holds the text: text when absent.
    #[arg(long)]
    pub column: Option<String>,
    /// What is a document in a plain file: file (all of it; when absent), lines or paragraphs.
    #[arg(long, value_name = "AT")]
    pub split: Option<Split>,
    /// Leave out what cannot be read, and count it: a line, paragraph or row by itself, of a damaged file the rest. Without
    /// it that ends the command, and the same command with it goes on.
    #[arg(long)]
    pub skip_unreadable: bool,
    /// A tokenizer.json in place of the model's own tokenizer.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<String>,
    /// What other tools call the model, for the manifest and exports; the name of its folder or file when absent.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Contexts that a thread computes at once: 512 tokens of them when absent.
    #[arg(long, value_name = "CONTEXTS", value_parser = batch)]
    pub batch: Option<usize>,
    /// Rows of a shard, about: what is lost where a worker ends. About a minute's or 32 MiB when absent.
    #[arg(long, value_parser = rows)]
    pub shard_rows: Option<u64>,
    /// Threads, which make a batch each; as many as there are cores when absent.
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub threads: Option<usize>,
    /// This worker of so many that share the parts, as w/W from 0 on; told by SLURM's arrays and
    /// steps and Kubernetes' indexed jobs where absent.
    #[arg(long, value_name = "w/W")]
    pub worker: Option<Worker>,
}

fn layer(text: &str) -> Result<usize, &'static str> {
    let problem = "a layer is a number from 0 (the embeddings) to the number of the model's blocks, and several are written 8,15,22";
    text.trim().parse().map_err(|_| problem)
}

fn context(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|&tokens| tokens > 1).ok_or("a whole number above 1 is needed")
}

fn batch(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|&count| count > 0).ok_or("a whole number above 0 is needed")
}
