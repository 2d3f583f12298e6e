//! `sae ingest`.

use indicatif::HumanCount;
use ingest::{NonFinite, Options, Outcome, Refusal, Survey};
use loader::{Error, Help, Manifest, Store};

use crate::args::Ingest;
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{signals, table, worker, world};

/// Parts that are made at the same time where nobody says how many: each holds two row groups.
const MOST_THREADS: usize = 4;

/// Looks into the source, and writes the parts of this worker.
pub fn run(args: &Ingest) -> Result<(), Failure> {
    let worker = worker::of(args.worker, &world::environment())?;
    let options = Options {
        from: args.from,
        name: args.tensor.clone(),
        columns: match args.no_columns {
            true => Some(Vec::new()),
            false => (!args.columns.is_empty()).then(|| args.columns.clone()),
        },
        layer: args.layer,
        dtype: args.dtype,
        part_bytes: args.part_size << 20,
    };
    let out = Store::open(&args.out)?;
    let survey = Survey::of(&args.source, options).map_err(|refusal| match refusal {
        Refusal::Format(problem) => Failure::arguments(format!("{problem}: say which with --from")),
        Refusal::Error(error) => failure(error),
    })?;
    tell(args, &survey);
    let stop = signals::stop_on_signals(false)?;
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS));
    let mut bar = None;
    let mut progress = |done, total| bar.get_or_insert_with(|| Bar::new("ingesting", done, total)).set(done);
    let outcome = ingest::write(&survey, &out, worker, threads, &stop, &mut progress).map_err(failure);
    if let Some(bar) = &bar {
        match outcome {
            Ok(Outcome::Stopped) | Err(_) => bar.clear(),
            Ok(_) => bar.finish(),
        }
    }
    match outcome? {
        Outcome::Whole { manifest, non_finite } => {
            finished(args, &survey, &manifest, &non_finite);
            Ok(())
        }
        Outcome::Waiting(parts) => {
            table::say(format!(
                "worker {worker} is done; {parts} of {} parts are other workers': the one that sees all of them writes the manifest",
                survey.parts()
            ));
            Ok(())
        }
        Outcome::Stopped => Err(Failure::interrupted(
            "stopped; the parts that are written stay: the same command goes on with the others",
        )),
    }
}

/// What has come of it.
fn finished(args: &Ingest, survey: &Survey, manifest: &Manifest, non_finite: &NonFinite) {
    let columns = survey.columns().into_iter().map(|column| column.name).collect::<Vec<_>>().join(", ");
    let mut rows = vec![
        ("from", format!("{} ({} files)", survey.format().name(), HumanCount(survey.files() as u64))),
        ("rows", HumanCount(manifest.rows()).to_string()),
        ("width", manifest.width.to_string()),
        ("format", manifest.dtype.to_string()),
        ("columns", if columns.is_empty() { "none".into() } else { columns }),
        ("shards", manifest.shards.len().to_string()),
    ];
    if let Some(contexts) = survey.contexts() {
        rows.insert(2, ("contexts", HumanCount(contexts).to_string()));
    }
    if non_finite.rows > 0 {
        rows.push(("rows with NaN or infinity", HumanCount(non_finite.rows).to_string()));
        tracing::warn!(
            rows = non_finite.rows,
            "NaN or infinite values are in {} of {} rows, first in {}: a run would stop at the first of them that it meets; data.filter.finite = \
             true in its recipe leaves such rows out",
            HumanCount(non_finite.rows),
            HumanCount(manifest.rows()),
            non_finite.first
        );
    }
    table::print(&args.out, &rows);
    table::say(format!("next: sae inspect {}", table::quoted(&args.out)));
}

/// What is taken in, and what is not.
fn tell(args: &Ingest, survey: &Survey) {
    let name = survey.name().map(|name| format!(" of {name}")).unwrap_or_default();
    tracing::info!(
        rows = survey.rows(),
        width = survey.width(),
        parts = survey.parts(),
        "{}: {} in {} files: rows{name}, {} numbers each, as {}",
        args.source,
        survey.format().name(),
        survey.files(),
        survey.width(),
        survey.dtype()
    );
    if survey.is_narrowed() {
        tracing::warn!("float64 is narrowed to float32");
    }
    if !survey.left_out().is_empty() {
        let shown = survey.left_out().iter().take(20).cloned().collect::<Vec<_>>().join(", ");
        tracing::warn!("left out, because it is not one number or text for each row: {shown}");
    }
    if let Some((first, second)) = survey.out_of_number() {
        tracing::warn!(
            "files are read in the order of their names, {first} before {second}: where their rows have to come by number, write numbers with as many digits"
        );
    }
    if survey.ignored() > 0 {
        tracing::info!("{} other files there are not read", survey.ignored());
    }
}

/// An error in the words of this command.
fn failure(error: Error) -> Failure {
    match error.help() {
        Some(Help::Column) => Failure::data(format!("{error}: name one with --tensor (or --column)")),
        _ => error.into(),
    }
}
