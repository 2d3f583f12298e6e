//! `sae eval`.

use indicatif::HumanCount;
use kernels::Device;
use kernels::mesh::Axes;
use loader::{Dataset, OpenOptions, Store};
use serde::Serialize;
use trainer::buffers::Buffers;
use trainer::centre::Centre;
use trainer::checkpoint;
use trainer::checkpoint::{Found, Manifest};
use trainer::data::Reading;
use trainer::evaluate::{self, Pass};
use trainer::metrics::{DensityHistogram, Metrics, dead_fraction};
use trainer::recovery::{Truth, recovery};

use crate::args::Eval;
use crate::device::{self, Local, Opened};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{remedy, table};

/// What is printed with `--json`: the names of summary.json where they apply.
#[derive(Serialize)]
struct Report {
    checkpoint: String,
    step: u64,
    /// What was measured on, as it was named.
    data: Vec<String>,
    /// Rows measured.
    rows: u64,
    /// The same number, under its first name: programs read it.
    tokens: u64,
    /// Rows that data.filter left out.
    filtered: u64,
    #[serde(flatten)]
    metrics: Metrics,
    /// Of the training run, as of the checkpoint.
    dead_fraction: f64,
    dead_window: u64,
    density: DensityHistogram,
    tokens_per_s: f64,
    wall_s: f64,
    /// Of these, waiting for data.
    stall_s: f64,
    recovered: Option<f64>,
    mmcs: Option<f64>,
}

/// Measures a checkpoint on the rows, which are read once for their mean and once to be measured.
pub fn run(args: &Eval) -> Result<(), Failure> {
    let (store, mut found) = checkpoint::open(&args.run)?;
    if !args.data.is_empty() {
        // It speaks of other shards.
        found.manifest.recipe.data.eval_skip.clear();
    }
    let recipe = found.manifest.recipe.clone();
    let urls = if args.data.is_empty() { recipe.data.eval.clone() } else { args.data.clone() };
    if urls.is_empty() {
        return Err(Failure::arguments("the run has no data.eval: say what to measure on with --data"));
    }
    let column = args.column.clone().or_else(|| recipe.data.column.clone());
    let dataset = Dataset::open(&urls, &OpenOptions { column, ..OpenOptions::default() })?;
    let width = found.manifest.width;
    if dataset.width() != width {
        return Err(Failure::data(format!(
            "{} has rows of width {}, and the dictionary takes {width}: it was trained on another layer or model",
            urls.join(", "),
            dataset.width()
        )));
    }
    match device::open(args.device, &recipe.train, Axes::alone(), Local::ALONE)? {
        Opened::Cpu(device) => measure(&device, args, (&store, &found), (&dataset, urls)),
        Opened::Cuda(device) => measure(&device, args, (&store, &found), (&dataset, urls)),
    }
}

fn measure<D: Device>(
    device: &D,
    args: &Eval,
    (store, found): (&Store, &Found),
    (dataset, urls): (&Dataset, Vec<String>),
) -> Result<(), Failure> {
    let recipe = &found.manifest.recipe;
    let (width, features) = (found.manifest.width, found.manifest.features);
    let rows = args.rows.unwrap_or(u64::MAX).min(dataset.rows());
    let batch = recipe.train.batch.min(usize::try_from(rows).unwrap_or(usize::MAX)).max(1);
    let mut sae = evaluate::load(device, store, found, batch)?;
    let mut buffers = Buffers::new(device, batch, width, dataset.dtype().size())?;
    let mut tally = device.tally(width, features)?;
    let filter = recipe.data.filter.resolve(found.manifest.norm_median)?;
    let reading = Reading::of(recipe);
    let stream = || reading.eval_stream(dataset, filter.clone(), device.axes().place, Some(rows));
    let mut bar = Bar::new("evaluating", 0, 2 * rows);
    let mut heard = |done| {
        bar.set(done);
        Ok(())
    };
    let started = std::time::Instant::now();
    let centre = Centre::of(device, dataset, &mut buffers, &mut stream()?, || false, |done, _| heard(done))?;
    let mut stream = stream()?;
    let pass = Pass { dataset, features, scale: found.manifest.scale, centre: &centre };
    let memory = (&mut buffers, &mut tally);
    let measured = pass.measure(device, &mut sae, memory, &mut stream, || false, |done, _| heard(rows + done))?;
    bar.finish();
    let wall_s = started.elapsed().as_secs_f64();
    let metrics = measured.metrics(recipe.train.l1).ok_or_else(|| Failure::data("no row was measured"))?;
    let sums = &measured.sums;
    // As in summary.json: which directions count depends on the rows trained on, not on those measured here.
    let recovery = match Truth::beside(&recipe.data.train) {
        Ok(Some(truth)) if truth.width == width => match training_rows(&found.manifest) {
            Ok(all) => recovery(&truth, found.manifest.tokens as f64 / all as f64, &sae, &device.axes().all)?,
            Err(error) => {
                let words = remedy::words(&error.into());
                tracing::warn!("{words}: without data.train it is not known which directions count as recovered");
                None
            }
        },
        _ => None,
    };
    let last_fired_f = checkpoint::load_clocks(store, found)?;
    let report = Report {
        checkpoint: store.url_of(&found.folder),
        step: found.manifest.step,
        data: urls,
        rows: sums.rows,
        tokens: sums.rows,
        filtered: measured.left_out.filtered,
        metrics,
        dead_fraction: dead_fraction(
            &last_fired_f,
            found.manifest.tokens,
            recipe.train.dead_window,
            &device.axes().all,
        )?,
        dead_window: recipe.train.dead_window.min(found.manifest.tokens),
        density: DensityHistogram::of(sums, &device.axes().all)?,
        tokens_per_s: sums.rows as f64 / wall_s,
        wall_s,
        stall_s: stream.stall().as_secs_f64(),
        recovered: recovery.map(|recovery| recovery.recovered),
        mmcs: recovery.map(|recovery| recovery.mmcs),
    };
    print(args, &report)
}

/// Rows of data.train. The checkpoint knows them, unless train.tokens takes a part of them.
fn training_rows(manifest: &Manifest) -> loader::Result<u64> {
    let data = &manifest.recipe.data;
    match &manifest.cursor.origin {
        Some(origin) if manifest.recipe.train.tokens.is_none() => Ok(origin.rows),
        _ => {
            let options = OpenOptions { column: data.column.clone(), ..OpenOptions::default() };
            Dataset::open(&data.train, &options).map(|train| train.rows())
        }
    }
}

fn print(args: &Eval, report: &Report) -> Result<(), Failure> {
    if args.json {
        let json = serde_json::to_string_pretty(report).map_err(|error| Failure::arguments(error.to_string()))?;
        table::say(json);
        return Ok(());
    }
    let mut rows = vec![
        ("rows", HumanCount(report.rows).to_string()),
        ("rows left out by data.filter", HumanCount(report.filtered).to_string()),
        ("loss", table::number(report.metrics.loss)),
        ("explained variance", table::percent(report.metrics.explained_variance)),
        ("explained variance, mean of rows", table::percent(report.metrics.explained_variance_rows)),
        ("normalised MSE", report.metrics.normalized_mse.map_or("–".into(), table::number)),
        ("L0", table::number(report.metrics.l0)),
        ("features silent on these rows", HumanCount(report.density.silent).to_string()),
        ("features dead in training", table::percent(Some(report.dead_fraction))),
        ("tokens/s", HumanCount(report.tokens_per_s as u64).to_string()),
    ];
    if report.recovered.is_some() {
        rows.push(("true directions recovered", table::percent(report.recovered)));
    }
    table::print(&report.checkpoint, &rows);
    table::say(format!("next: sae export {} --format saelens --out exported", table::quoted(&args.run)));
    Ok(())
}
