//! What a fit leaves in a folder: laws.json, the runs as a table in Parquet, and a page with its charts.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, UInt64Array};
use parquet::arrow::ArrowWriter;
use scaling::Laws;
use scaling::laws::Point;
use scaling::report::{Report, report};
use trainer::Error;

/// Names and bytes of the files of one law.
pub fn files(laws: &Laws) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let internal = |error: serde_json::Error| Error::Internal(error.into());
    let mut json = serde_json::to_vec_pretty(laws).map_err(internal)?;
    json.push(b'\n');
    let Report { html, plots } = report(laws).map_err(internal)?;
    let mut files = vec![
        ("laws.json".to_owned(), json),
        ("runs.parquet".to_owned(), parquet(&laws.runs)?),
        ("report.html".to_owned(), html.into_bytes()),
    ];
    files.extend(plots.into_iter().map(|(name, svg)| (format!("plots/{name}"), svg.into_bytes())));
    Ok(files)
}

/// One row a run, under the names of laws.json.
fn parquet(runs: &[Point]) -> Result<Vec<u8>, Error> {
    let number = |of: fn(&Point) -> f64| Arc::new(Float64Array::from_iter_values(runs.iter().map(of))) as ArrayRef;
    let some = |of: fn(&Point) -> Option<f64>| Arc::new(runs.iter().map(of).collect::<Float64Array>()) as ArrayRef;
    let columns: [(&str, ArrayRef); 17] = [
        ("id", Arc::new(StringArray::from_iter_values(runs.iter().map(|run| &run.id)))),
        ("features", number(|run| run.features)),
        ("steps", number(|run| run.steps)),
        ("compute", number(|run| run.compute)),
        ("budget", number(|run| run.budget)),
        ("seed", Arc::new(runs.iter().map(|run| run.seed).collect::<UInt64Array>())),
        ("lr", some(|run| run.lr)),
        ("loss", number(|run| run.loss)),
        ("fitted", number(|run| run.fitted)),
        ("residual", number(|run| run.residual)),
        ("in_surface", Arc::new(runs.iter().map(|run| Some(run.in_surface)).collect::<BooleanArray>())),
        ("l0", some(|run| run.l0)),
        ("explained_variance", some(|run| run.explained_variance)),
        ("dead_fraction", some(|run| run.dead_fraction)),
        ("flops_sparse", some(|run| run.flops_sparse)),
        ("flops_dense", some(|run| run.flops_dense)),
        ("gpu_hours", some(|run| run.gpu_hours)),
    ];
    let written = || -> Result<Vec<u8>, parquet::errors::ParquetError> {
        let batch = RecordBatch::try_from_iter(columns)?;
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None)?;
        writer.write(&batch)?;
        writer.into_inner()
    };
    written().map_err(|error| Error::Internal(error.into()))
}
