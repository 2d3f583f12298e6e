//! `sae eval`.

use indicatif::HumanCount;
use kernels::Device;
use kernels::mesh::Axes;
use loader::{Dataset, OpenOptions, RowFilter};
use serde::Serialize;
use trainer::buffers::Buffers;
use trainer::centre::Centre;
use trainer::checkpoint::{self, Found, Manifest, Which};
use trainer::data::Reading;
use trainer::evaluate::Pass;
use trainer::metrics::{DensityHistogram, Metrics, dead_fraction};
use trainer::recovery::{Recovery, Truth, recovery};
use trainer::trained::Trained;

use crate::args::Eval;
use crate::device::{self, Local, Opened};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{remedy, table};

/// What is printed with `--json`: the names of summary.json where they apply.
#[derive(Serialize)]
struct Report {
    /// The checkpoint, or the folder of an export.
    checkpoint: String,
    /// Of a checkpoint.
    step: Option<u64>,
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
    /// Of the training run, as of the checkpoint; an export does not say.
    dead_fraction: Option<f64>,
    dead_window: Option<u64>,
    density: DensityHistogram,
    tokens_per_s: f64,
    wall_s: f64,
    /// Of these, waiting for data.
    stall_s: f64,
    recovered: Option<f64>,
    mmcs: Option<f64>,
}

/// Measures a dictionary on the rows, which are read once for their mean and once to be measured.
pub fn run(args: &Eval) -> Result<(), Failure> {
    let mut trained = Trained::open_verified(&args.run, Which::Last)?;
    if let (Trained::Checkpoint(_, found), false) = (&mut trained, args.data.is_empty()) {
        // It speaks of other shards.
        found.manifest.recipe.data.eval_skip.clear();
    }
    let of_run = trained.recipe().map(|recipe| recipe.data.clone());
    let urls = match &of_run {
        Some(data) if args.data.is_empty() => data.eval.clone(),
        _ => args.data.clone(),
    };
    if urls.is_empty() {
        let lacks = if of_run.is_some() { "the run has no data.eval" } else { "an export names no rows" };
        return Err(Failure::arguments(format!("{lacks}: say what to measure on with --data")));
    }
    let column = args.column.clone().or_else(|| of_run.and_then(|data| data.column));
    let dataset = Dataset::open(&urls, &OpenOptions { column, ..OpenOptions::default() })?;
    check_width(&trained, &dataset, &urls)?;
    let opened = match trained.recipe() {
        Some(recipe) => device::open(args.device, &recipe.train, Axes::alone(), Local::ALONE)?,
        None => device::open_alone(args.device, &trained.train())?,
    };
    match opened {
        Opened::Cpu(device) => measure(&device, args, &trained, (&dataset, urls)),
        Opened::Cuda(device) => measure(&device, args, &trained, (&dataset, urls)),
    }
}

/// Refuses rows of another width.
pub fn check_width(trained: &Trained, dataset: &Dataset, urls: &[String]) -> Result<(), Failure> {
    let width = trained.width();
    if dataset.width() == width {
        return Ok(());
    }
    Err(Failure::data(format!(
        "{} has rows of width {}, and the dictionary takes {width}: it was trained on another layer or model",
        urls.join(", "),
        dataset.width()
    )))
}

fn measure<D: Device>(
    device: &D,
    args: &Eval,
    trained: &Trained,
    (dataset, urls): (&Dataset, Vec<String>),
) -> Result<(), Failure> {
    let train = trained.train();
    let (width, features) = (trained.width(), trained.features());
    let rows = args.rows.unwrap_or(u64::MAX).min(dataset.rows());
    let batch = train.batch.min(usize::try_from(rows).unwrap_or(usize::MAX)).max(1);
    let mut sae = trained.load(device, 0..features, batch)?;
    let mut buffers = Buffers::new(device, batch, width, dataset.dtype().size())?;
    let mut tally = device.tally(width, features)?;
    let (filter, reading) = match trained.checkpoint() {
        Some((_, found)) => {
            let recipe = &found.manifest.recipe;
            (recipe.data.filter.resolve(found.manifest.norm_median)?, Reading::of(recipe))
        }
        None => (RowFilter::default(), Reading::plain(train.batch)),
    };
    let stream = || reading.eval_stream(dataset, filter.clone(), device.axes().place, Some(rows));
    let mut bar = Bar::new("evaluating", 0, 2 * rows);
    let mut heard = |done| {
        bar.set(done);
        Ok(())
    };
    let started = std::time::Instant::now();
    let centre = Centre::of(device, dataset, &mut buffers, &mut stream()?, || false, |done, _| heard(done))?;
    let mut stream = stream()?;
    let pass = Pass { dataset, features, scale: trained.scale(), centre: &centre };
    let memory = (&mut buffers, &mut tally);
    let measured = pass.measure(device, &mut sae, memory, &mut stream, || false, |done, _| heard(rows + done))?;
    bar.finish();
    let wall_s = started.elapsed().as_secs_f64();
    // No file of weights says what they were trained for: their loss is what they leave of the rows.
    let lambda = if trained.recipe().is_some() { train.l1 } else { 0.0 };
    let metrics = measured.metrics(lambda).ok_or_else(|| Failure::data("no row was measured"))?;
    let sums = &measured.sums;
    // As in summary.json: which directions count depends on the rows trained on, not on those measured here.
    let recovery = match trained.checkpoint() {
        Some((_, found)) => recovered(found, &sae, device)?,
        None => None,
    };
    let dead = trained.checkpoint().map(|(store, found)| {
        let (tokens, window) = (found.manifest.tokens, train.dead_window);
        let last_fired_f = checkpoint::load_clocks(store, found)?;
        Ok::<_, Failure>((dead_fraction(&last_fired_f, tokens, window, &device.axes().all)?, window.min(tokens)))
    });
    let dead = dead.transpose()?;
    let report = Report {
        checkpoint: trained.name(),
        step: trained.step(),
        data: urls,
        rows: sums.rows,
        tokens: sums.rows,
        filtered: measured.left_out.filtered,
        metrics,
        dead_fraction: dead.map(|(fraction, _)| fraction),
        dead_window: dead.map(|(_, window)| window),
        density: DensityHistogram::of(sums, &device.axes().all)?,
        tokens_per_s: sums.rows as f64 / wall_s,
        wall_s,
        stall_s: stream.stall().as_secs_f64(),
        recovered: recovery.as_ref().map(|recovery| recovery.recovered),
        mmcs: recovery.map(|recovery| recovery.mmcs),
    };
    print(args, &report)
}

/// How many of the true directions are found, where they lie beside the training rows.
fn recovered<D: Device>(found: &Found, sae: &D::Dictionary, device: &D) -> Result<Option<Recovery>, Failure> {
    let manifest = &found.manifest;
    match Truth::beside(&manifest.recipe.data.train) {
        Ok(Some(truth)) if truth.width == manifest.width => match training_rows(manifest) {
            Ok(all) => Ok(recovery(&truth, manifest.tokens as f64 / all as f64, sae, &device.axes().all)?),
            Err(error) => {
                let words = remedy::words(&error.into());
                tracing::warn!("{words}: without data.train it is not known which directions count as recovered");
                Ok(None)
            }
        },
        _ => Ok(None),
    }
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
        ("features dead in training", table::percent(report.dead_fraction)),
        ("tokens/s", HumanCount(report.tokens_per_s as u64).to_string()),
    ];
    if report.recovered.is_some() {
        rows.push(("true directions recovered", table::percent(report.recovered)));
    }
    table::print(&report.checkpoint, &rows);
    let run = table::quoted(&args.run);
    table::say(match report.step {
        Some(_) => format!("next: sae export {run} --format saelens --out exported"),
        None => format!("next: sae encode {run} --data {} --out encoded", table::quoted(&report.data[0])),
    });
    Ok(())
}
