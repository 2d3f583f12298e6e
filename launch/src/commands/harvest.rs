//! `sae harvest`.

use std::sync::{Mutex, PoisonError};

use harvest::{Done, Event, Heavy, Options, Progress, TextOptions};
use indicatif::HumanCount;

use crate::args::Harvest;
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{signals, table, worker, world};

/// Makes what is missing of this worker's parts.
pub fn run(args: &Harvest) -> Result<(), Failure> {
    let worker = worker::of(args.worker, &world::environment())?;
    let options = Options {
        model: args.model.clone(),
        name: args.model_name.clone(),
        tokenizer: args.tokenizer.clone(),
        text: args.text.clone(),
        reading: TextOptions { column: args.column.clone(), split: args.split, skip_unreadable: args.skip_unreadable },
        layers: args.layer.clone(),
        out: args.out.clone(),
        context: args.context,
        by_document: args.by_document,
        bos: args.bos,
        keep_first: args.keep_first,
        dtype: args.dtype,
        rows: args.rows,
        batch: args.batch,
        shard_rows: args.shard_rows,
        threads: args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        worker,
    };
    let stop = signals::stop_on_signals(false)?;
    let shown: Mutex<Option<Shown>> = Mutex::new(None);
    let tell = |event: Event| match event {
        Event::Read { .. } => begin(&event, args),
        Event::Heavy(layers) => layers.iter().for_each(|heavy| warn(heavy, args.keep_first)),
        Event::Progress(progress) => {
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            if shown.is_none() {
                *shown = progress.total.map(|total| Shown::new(progress.reached, total));
            }
            if let Some(shown) = &mut *shown {
                shown.set(&progress);
            }
        }
    };
    let done = harvest::harvest(&options, &stop, &tell)?;
    if let Some(shown) = shown.into_inner().unwrap_or_else(PoisonError::into_inner) {
        shown.bar.finish();
    }
    close(&done, args);
    Ok(())
}

/// The bar, once it is known how many rows there will be.
struct Shown {
    bar: Bar,
    /// When the norm was last said.
    norm_at: u64,
}

impl Shown {
    fn new(reached: u64, total: u64) -> Shown {
        Shown { bar: Bar::new("harvesting", reached, total), norm_at: 0 }
    }

    fn set(&mut self, progress: &Progress) {
        // A guess by how much of the text is behind, which gets better.
        self.bar.set_total(progress.total.unwrap_or_default().max(progress.reached));
        self.bar.set(progress.reached);
        if progress.rows > 10 * self.norm_at.max(1000) {
            self.norm_at = progress.rows;
            let mean = progress.mean_norm.map_or("–".into(), table::number);
            tracing::info!(
                rows = progress.rows,
                tokens = progress.tokens,
                mean_norm = progress.mean_norm,
                "mean norm so far: {mean}"
            );
        }
    }
}

/// Says what is about to be done.
fn begin(event: &Event, args: &Harvest) {
    let Event::Read { architecture, blocks, width, around, part_rows, committed } = event else { return };
    let tokens = |of: &[u32]| match of {
        [] => "nothing".to_owned(),
        of => format!("token {}", of.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
    };
    let around = format!("{} before each and {} behind", tokens(&around.0), tokens(&around.1));
    let sinks = if args.keep_first { "kept" } else { "left out" };
    tracing::info!(
        "{architecture}: {} of {} blocks, width {width}; contexts of {} tokens, {around}, attention sinks {sinks}; shards of about {} rows, {committed} there already",
        blocks.0,
        blocks.1,
        args.context,
        HumanCount(*part_rows)
    );
    if blocks.0 == blocks.1 && architecture != "bert" {
        tracing::info!(
            "layer {} is the stream before the model's last norm; hidden_states[{}] of transformers is behind it",
            blocks.0,
            blocks.0
        );
    }
}

/// A share of E‖x‖² above which a hundredth of the rows carry too much.
const TOO_MUCH: f64 = 0.2;

/// Says which rows carry most of E‖x‖².
fn warn(heavy: &Heavy, keep_first: bool) {
    let Heavy { layer, rows, sinks, medians, top } = heavy;
    let share = |share: f64| format!("{:.1} %", 100.0 * share);
    if *sinks > TOO_MUCH {
        let what = format!(
            "layer {layer}: attention sinks, the first rows of contexts and those of BOS, carry {} of E‖x‖² (median norm {} beside {} of the \
             others, over {rows} rows)",
            share(*sinks),
            table::number(medians.0),
            table::number(medians.1)
        );
        match keep_first {
            true => tracing::warn!(
                "{what}, and are kept: leave them out without --keep-first, or train without them (data.filter.positions and data.filter.token_ids)"
            ),
            false => tracing::info!("{what}, and are left out"),
        }
    }
    if *top > TOO_MUCH && (!keep_first || *sinks <= TOO_MUCH) {
        tracing::warn!(
            "layer {layer}: the largest hundredth of the rows that are kept carries {} of E‖x‖²: train with data.filter.norm_max = \"10x\", \
             and see what sae inspect says of all rows",
            share(*top)
        );
    }
}

fn close(done: &Done, args: &Harvest) {
    let per_s = if done.seconds > 0.0 { done.tokens as f64 / done.seconds } else { 0.0 };
    let mut rows = vec![
        ("rows made now", HumanCount(done.rows).to_string()),
        ("tokens computed", HumanCount(done.tokens).to_string()),
        ("tokens a second", if done.tokens > 0 { table::number(per_s) } else { "–".into() }),
        ("parts made now, of all", format!("{} of {}", done.parts, done.total)),
    ];
    let norms: Vec<String> = done
        .norms
        .iter()
        .filter_map(|(layer, norms)| {
            Some(format!("{layer}: {} · {}", table::number(norms.mean()?), table::number(norms.most)))
        })
        .collect();
    if !norms.is_empty() {
        rows.push(("mean and largest norm of layer", norms.join(", ")));
    }
    if !done.skipped.is_none() {
        rows.push(("left out, unreadable", done.skipped.to_string()));
    }
    if let Some((_, manifest)) = done.manifests.first() {
        rows.push(("rows of all", HumanCount(manifest.rows()).to_string()));
        rows.push(("width", manifest.width.to_string()));
    }
    table::print(&args.out, &rows);
    let Some((folder, _)) = done.manifests.last() else {
        let missing = done.missing;
        table::say(format!(
            "{missing} parts of other workers are missing: whichever worker ends last writes the manifest"
        ));
        return;
    };
    let data =
        if folder.is_empty() { args.out.clone() } else { format!("{}/{folder}", args.out.trim_end_matches('/')) };
    table::say(format!("next: sae train my.toml --set {}", table::quoted(&format!("data.train={data}"))));
}
