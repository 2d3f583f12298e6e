//! `sae ingest`.

use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use ingest::Format;
use loader::Dtype;
use loader::parts::Worker;

use super::dtype;

/// Turn activations that another tool has written into shards.
///
/// Files are streamed in parts; a part that is written stays, so the same command goes on where it was stopped, and several workers share one
/// source: each makes every W-th part.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae ingest activations.npy --out data/layer12\n  sae ingest hf/my-dataset --column \
blocks.12.hook_resid_post --out s3://bucket/layer12\n  sae ingest s3://bucket/hidden --from vllm --layer 2 --out data/layer24 --worker 0/8"
)]
pub struct Ingest {
    /// A file, or a folder of files of one format; path or URL.
    pub source: String,
    /// Folder or URL for the shards: an empty one, or one in which this command was stopped.
    #[arg(long)]
    pub out: String,
    /// The format; guessed from names and first bytes when absent.
    #[arg(long, value_parser = format())]
    pub from: Option<Format>,
    /// The tensor or column of activations, where several could be meant.
    #[arg(long, visible_alias = "column", value_name = "NAME")]
    pub tensor: Option<String>,
    /// Columns beside the rows that go along, by name: all of one value a row when absent.
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "no_columns")]
    pub columns: Vec<String>,
    /// Leave out the columns beside the rows.
    #[arg(long)]
    pub no_columns: bool,
    /// Of vLLM's hidden states, which hold several layers: the place of one among them, from 0 on.
    #[arg(long, value_name = "PLACE")]
    pub layer: Option<u64>,
    /// Stored format: f16, bf16 or f32; that of the source when absent (f64 becomes f32).
    #[arg(long, value_parser = dtype)]
    pub dtype: Option<Dtype>,
    /// MiB of a part, which is a shard: what is done again when a worker dies.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = RangedU64ValueParser::<u64>::new().range(1..=65_536))]
    pub part_size: u64,
    /// This worker of W, as w/W, from 0 on, where several take in one source. The arrays and steps of SLURM and indexed Jobs say it by
    /// their variables.
    #[arg(long, value_name = "w/W")]
    pub worker: Option<Worker>,
    /// Parts that are made at the same time; by default as many as there are cores, at most 4.
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
    pub threads: Option<usize>,
}

/// A format by its name; they are listed with what they are.
fn format() -> impl TypedValueParser<Value = Format> {
    let listed = Format::ALL.map(|format| PossibleValue::new(format.name()).help(format.about()));
    PossibleValuesParser::new(listed).try_map(|name| name.parse::<Format>())
}
