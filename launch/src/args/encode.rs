//! The command line of `sae encode`.

use loader::number;
use loader::parts::Worker;
use trainer::checkpoint::Which;
use trainer::recipe::Precision;

use super::export::which;
use super::rows;
use crate::device::DeviceChoice;

/// Write the sparse activations of a dictionary on rows, as Parquet.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  sae encode runs/quickstart --data data/quickstart/eval --out encoded/quickstart\n  sae encode \
s3://bucket/run --checkpoint best --data s3://bucket/acts --out s3://bucket/encoded --device cuda\n  sae encode exported/my --data \
acts --out encoded/my --worker 0/4        # and 1/4, 2/4, 3/4, anywhere\n\nthen in Python:\n  import pyarrow.dataset as ds\n  \
pairs = ds.dataset(\"encoded/quickstart/activations\").to_table()           # row, feature, activation\n  rows = \
ds.dataset(\"encoded/quickstart/rows\").to_table()                  # row, token_id, doc_id, …\n\nA worker that was ended goes on where it \
stood when the same command is given again."
)]
pub struct Encode {
    /// The dictionary: a run's folder, a checkpoint's, an export, or a folder of SAELens or dictionary_learning; a path or URL.
    pub run: String,
    /// Folders, files, globs or URLs of the rows.
    #[arg(long, required = true)]
    pub data: Vec<String>,
    /// New folder or URL, or one in which the same command was begun.
    #[arg(long)]
    pub out: String,
    /// Which checkpoint of a run: last, best, or the number of a step.
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = which)]
    pub checkpoint: Which,
    /// The column of activations; the run's data.column when absent.
    #[arg(long)]
    pub column: Option<String>,
    /// Columns beside the rows that go along, by name: all of one value a row when absent.
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "no_columns")]
    pub columns: Vec<String>,
    /// Leave out the columns beside the rows.
    #[arg(long)]
    pub no_columns: bool,
    /// Leave out a row (file.parquet:row) or row group (file.parquet#group). May be repeated.
    #[arg(long, value_name = "ROW")]
    pub skip: Vec<String>,
    /// Encode the rows as well that the run's data.filter leaves out.
    #[arg(long)]
    pub no_filter: bool,
    /// Where to compute: auto (the first usable GPU, else the processor), cpu, cuda, or cuda:N for GPU N, from 0.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Numbers that a GPU multiplies: that of the run when absent (auto, mixed, bf16-sr), or f32 for those of a processor.
    #[arg(long, value_parser = precision)]
    pub precision: Option<Precision>,
    /// This worker of so many that share the parts, as w/W from 0 on; told by SLURM's arrays and
    /// steps and Kubernetes' indexed jobs where absent.
    #[arg(long, value_name = "w/W")]
    pub worker: Option<Worker>,
    /// Rows of a part, about: what is lost where a worker ends.
    #[arg(long, default_value = "65536", value_parser = rows)]
    pub part_rows: u64,
    /// Cut the dictionary along its features into so many shards, where a device cannot hold all of it: each is made by itself, and has
    /// files of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = shards)]
    pub feature_shards: usize,
}

fn precision(text: &str) -> Result<Precision, &'static str> {
    match text {
        "auto" => Ok(Precision::Auto),
        "f32" => Ok(Precision::F32),
        "mixed" => Ok(Precision::Mixed),
        "bf16-sr" => Ok(Precision::Bf16Sr),
        _ => Err("write auto, f32, mixed or bf16-sr"),
    }
}

fn shards(text: &str) -> Result<usize, &'static str> {
    let count = number::parse_count(text).and_then(|count: u64| usize::try_from(count).ok());
    count.filter(|count| (1..=9999).contains(count)).ok_or("a number from 1 to 9999 is needed")
}
