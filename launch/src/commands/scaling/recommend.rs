//! `sae scaling recommend`: the best run of a budget as a recipe.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};

use indicatif::{HumanBytes, HumanCount};
use loader::{Dataset, OpenOptions};
use scaling::laws::{Estimate, Identity};
use scaling::{FAR, Laws, flops_dense, flops_sparse};
use serde::Serialize;
use trainer::NUMBERS;
use trainer::recipe::Recipe;

use super::cost::{self, OnGpus};
use super::fit::{estimate, significant};
use super::rate::{self, Wanted, learning_rate};
use crate::args::Recommend;
use crate::budget::duration;
use crate::failure::Failure;
use crate::gpus::print_fewest;
use crate::runs::PLACES;
use crate::{laws, recipes, table};

/// Features come in whole tiles, where there are many: ranks share them so.
const TILE: f64 = 128.0;

/// What is recommended, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Recommended {
    /// Id of the laws.
    laws: String,
    features: u64,
    tokens: u64,
    steps: u64,
    batch: u64,
    lr: Estimate,
    /// What that is.
    lr_from: rate::From,
    /// λ.
    l1: Option<f64>,
    /// Mean over seeds.
    loss: Estimate,
    /// Of a single run.
    loss_of_one_run: Estimate,
    /// Intervals of the best size at this compute.
    features_opt: Estimate,
    steps_opt: Estimate,
    /// Where the recipe has its run.
    run_dir: String,
    /// F × steps.
    compute: f64,
    /// Over the largest compute of the runs.
    times_largest: f64,
    flops_sparse: f64,
    flops_dense: f64,
    #[serde(flatten)]
    on_gpus: OnGpus,
    /// Warnings of the laws.
    warnings: Vec<String>,
}

/// Recommends.
pub fn run(args: &Recommend) -> Result<(), Failure> {
    let laws = laws::read(&args.laws)?;
    let (base, rows) = base(args, &laws)?;
    let (found, recipe) = recommend(args, &laws, base, rows)?;
    let text = head(args, &laws, &found) + &recipe.to_toml();
    if let Some(out) = &args.out {
        write(out, &text)?;
    }
    if args.json {
        let json = serde_json::to_string_pretty(&found).map_err(|error| trainer::Error::Internal(error.into()))?;
        table::say(json);
        return Ok(());
    }
    show(&found);
    for warning in &found.warnings {
        table::say(format!("warning: {warning}"));
    }
    match &args.out {
        Some(out) => table::say(format!(
            "next: sae plan {0} --gpus {1} --gpu {2}, then sae train {0}",
            table::quoted(out),
            found.on_gpus.gpus,
            found.on_gpus.gpu
        )),
        None => table::say("next: the same with --out recipe.toml, which sae train takes"),
    }
    Ok(())
}

/// Writes what was asked for to a local file, and over none that says something else.
pub fn write(out: &str, text: &str) -> Result<(), Failure> {
    loader::check_expanded(out).map_err(loader::Error::from)?;
    if out.contains("://") {
        return Err(Failure::arguments(format!("--out {out}: a local file is needed")));
    }
    let written = File::create_new(out).and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => match fs::read(out) {
            Ok(there) if there == text.as_bytes() => Ok(()),
            _ => Err(Failure::arguments(format!(
                "{out} is there already, with something else in it: choose another --out"
            ))),
        },
        written => written.map_err(|error| {
            // The beginning of a recipe would be in the way of the next.
            let _ = fs::remove_file(out);
            Failure::cannot_write(format!("{out}: {error}"))
        }),
    }
}

/// The beginning of the id of laws, for names of what follows from them.
pub fn short_id(laws: &Laws) -> String {
    laws.identity.id.chars().take(8).collect()
}

/// The folder of a recommended run: one of its own beside that of the recipe, unless `--set` has named it.
fn run_dir(args: &Recommend, laws: &Laws, recipe: &Recipe, tokens: u64) -> String {
    let dir = recipe.run.dir.trim_end_matches('/');
    let is_set = |set: &String| set.split_once('=').is_some_and(|(key, _)| key.trim() == "run.dir");
    match args.set.iter().any(is_set) {
        true => dir.to_owned(),
        false => format!("{dir}-f{}-t{tokens}-{}", recipe.sae.features, short_id(laws)),
    }
}

/// The recipe that is filled in: the one that was given, if its runs would be of the same law, or what the laws' runs have in common. With the rows of
/// its data, where they are there.
pub fn base(args: &Recommend, laws: &Laws) -> Result<(Recipe, Option<u64>), Failure> {
    let identity = &laws.identity;
    let (place, recipe) = match &args.recipe {
        Some(path) => (path.as_str(), recipes::read(path, &args.set)?),
        None => (args.laws.as_str(), from_identity(args, identity)?),
    };
    let differs = |name: &str, theirs: String, own: String| {
        Failure::arguments(format!(
            "{place}: the laws are of runs with {name} = {theirs}, and the recipe has {own}: they say nothing of it. Set it to {theirs}, or \
             fit runs with {own}"
        ))
    };
    if let Some(batch) = identity.batch.filter(|batch| *batch != recipe.train.batch as u64) {
        return Err(differs("train.batch", batch.to_string(), recipe.train.batch.to_string()));
    }
    if let Some(l1) = identity.l1.filter(|l1| *l1 != recipe.train.l1) {
        return Err(differs("train.l1", l1.to_string(), recipe.train.l1.to_string()));
    }
    let own = recipe.keys_of_a_new_run();
    for (key, theirs) in identity.recipe.iter().filter(|(key, _)| !PLACES.contains(&key.as_str())) {
        let own = own.get(key).map_or("nothing", String::as_str);
        if own != theirs {
            return Err(differs(key, theirs.clone(), own.to_owned()));
        }
    }
    let shards = [("data.train", &recipe.data.train, &identity.data), ("data.eval", &recipe.data.eval, &identity.eval)];
    let mut rows = None;
    for (key, urls, theirs) in shards.into_iter().filter(|(_, urls, _)| !urls.is_empty()) {
        let options = OpenOptions { column: recipe.data.column.clone(), ..OpenOptions::default() };
        match Dataset::open(urls, &options) {
            Ok(data) => {
                rows.get_or_insert(data.rows());
                if let Some(width) = identity.width.filter(|width| *width != data.width() as u64) {
                    return Err(differs("D", width.to_string(), data.width().to_string()));
                }
                if let Some(theirs) = theirs.as_ref().filter(|theirs| **theirs != data.identity()) {
                    return Err(differs(&format!("{key} of identity"), theirs.clone(), data.identity()));
                }
            }
            Err(error) => {
                tracing::warn!("{key} could not be compared with the laws': {}", crate::remedy::words(&error.into()))
            }
        }
    }
    Ok((recipe, rows))
}

/// The recipe that the laws' runs have in common, with what `--set` says.
fn from_identity(args: &Recommend, identity: &Identity) -> Result<Recipe, Failure> {
    let mut sections: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let add = |key: &str, value: &str, sections: &mut BTreeMap<&str, Vec<String>>| {
        let (section, _) = key.split_once('.').unwrap_or((key, ""));
        let section = ["data", "sae", "train", "run", "checkpoint", "eval", "log"].into_iter().find(|s| *s == section);
        if let (Some(section), Some((_, name))) = (section, key.split_once('.')) {
            sections.entry(section).or_default().push(format!("{name} = {value}"));
        }
    };
    for (key, value) in &identity.recipe {
        add(key, value, &mut sections);
    }
    if !identity.recipe.contains_key("data.train") {
        return Err(Failure::arguments(
            "the laws do not say which recipe or data their runs had: name a recipe to fill in with --recipe"
                .to_owned(),
        ));
    }
    if let Some(batch) = identity.batch {
        add("train.batch", &batch.to_string(), &mut sections);
    }
    if let Some(l1) = identity.l1 {
        add("train.l1", &format!("{l1:?}"), &mut sections);
    }
    add("sae.features", "1", &mut sections);
    add("run.dir", "'runs/recommended'", &mut sections);
    let text: String = sections.iter().map(|(name, keys)| format!("[{name}]\n{}\n", keys.join("\n"))).collect();
    let other = |error: toml::de::Error| {
        Failure::data(format!(
            "the recipe in the laws is none of this version: {}: name one with --recipe",
            error.message()
        ))
    };
    let recipe = toml::from_str(&text).map_err(other)?;
    if args.set.is_empty() {
        return Ok(recipe);
    }
    recipes::of_table(&args.laws, text.parse().map_err(other)?, &args.set)
}

fn recommend(
    args: &Recommend,
    laws: &Laws,
    mut recipe: Recipe,
    rows: Option<u64>,
) -> Result<(Recommended, Recipe), Failure> {
    let width = match (laws.identity.width, recipe.data.synth.as_ref()) {
        (Some(width), _) => width as usize,
        (None, Some(spec)) => spec.width,
        (None, None) => {
            return Err(Failure::arguments(
                "the laws do not say D: give their table of runs a column width".to_owned(),
            ));
        }
    };
    let batch = recipe.train.batch as f64;
    let l0 = cost::l0_of(laws.l0);
    let largest = laws.largest_compute();
    let compute = compute(args, laws, &recipe, width, l0)?;
    let times_largest = compute / largest;
    if !(compute.is_finite() && compute >= 1.0) {
        return Err(Failure::arguments("the budget is below one feature and one step: ask for more".to_owned()));
    }
    if times_largest > FAR * (1.0 + 1e-9) && !args.force {
        return Err(Failure::arguments(format!(
            "that is {} × the largest compute of the laws' runs, and beyond {FAR} × nothing supports it: run something in between \
             (--next says what), or go on with --force",
            significant(times_largest)
        )));
    }
    let at_bounds = laws.exponents_at_bounds();
    if times_largest > 1.0 && !at_bounds.is_empty() && !args.force {
        return Err(Failure::arguments(format!(
            "{} stands at a bound of the fit, so what these laws say beyond their largest run is a guess: run sizes further apart (--next says \
             which), or go on with --force",
            at_bounds.join(", ")
        )));
    }
    let best = laws.optimum(compute);
    let features = args.features.map_or_else(|| in_tiles(best.features.value), |features| features as f64);
    if features >= f64::from(1_u32 << 31) {
        return Err(Failure::arguments(format!(
            "the best F is {}, and a dictionary has fewer than 2^31",
            significant(features)
        )));
    }
    let tokens = match args.tokens {
        Some(tokens) => whole_batches(tokens, batch),
        None if args.features.is_some() => best.steps.value.round().max(1.0) * batch,
        // What rounding has added to the features is taken from the steps.
        None => (compute / features).floor().max(1.0) * batch,
    };
    let steps = tokens / batch;
    let (lr, lr_from) = learning_rate(args, laws, recipe.train.lr, compute, Wanted::Best)?;
    let (loss, loss_of_one_run) = laws.loss_of(features, steps);
    recipe.sae.features = features as usize;
    recipe.train.tokens = Some(tokens as u64);
    // The rows come in the order in which the laws' runs saw them, as far as that goes.
    recipe.data.order_rows = recipe.data.order_rows.filter(|rows| tokens as u64 <= *rows);
    recipe.train.lr = lr.value;
    recipe.train.l1 = laws.identity.l1.unwrap_or(recipe.train.l1);
    recipe.run.dir = run_dir(args, laws, &recipe, tokens as u64);
    recipe.validate()?;
    let on_gpus = cost::on_gpus(&recipe, width, l0, &args.gpu, args.gpus)?;
    let times = features * steps / largest;
    let found = Recommended {
        laws: laws.identity.id.clone(),
        features: features as u64,
        tokens: tokens as u64,
        steps: steps as u64,
        batch: recipe.train.batch as u64,
        lr,
        lr_from,
        l1: Some(recipe.train.l1),
        loss,
        loss_of_one_run,
        features_opt: best.features,
        steps_opt: best.steps,
        run_dir: recipe.run.dir.clone(),
        compute: features * steps,
        times_largest: times,
        flops_sparse: flops_sparse(width as f64, batch, l0, features, steps),
        flops_dense: flops_dense(width as f64, batch, features, steps),
        on_gpus,
        warnings: warnings(laws, tokens, times, rows),
    };
    Ok((found, recipe))
}

/// What speaks against the run, first what is its own.
fn warnings(laws: &Laws, tokens: f64, times_largest: f64, rows: Option<u64>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(rows) = rows.filter(|rows| tokens > *rows as f64) {
        found.push(format!(
            "the run wants {} rows, and data.train has {}: bring more before it can begin",
            HumanCount(tokens as u64),
            HumanCount(rows)
        ));
    }
    if times_largest > FAR * (1.0 + 1e-9) {
        found.push(format!(
            "beyond {FAR} × the largest compute that was run nothing supports this prediction, nor its interval"
        ));
    }
    if let Some(numbers) = laws.identity.numbers.filter(|numbers| *numbers != u64::from(NUMBERS)) {
        found.push(format!(
            "the laws are of runs of version {numbers} of the program's numbers, and this is version {NUMBERS}: a run of it comes to another loss"
        ));
    }
    found.extend(laws.warnings.iter().map(|warning| format!("the laws ({}): {}", warning.kind, warning.text)));
    found
}

/// A number of features that a run has: whole tiles where there are many.
pub fn in_tiles(features: f64) -> f64 {
    if features >= 16.0 * TILE { (features / TILE).round() * TILE } else { features.round().max(1.0) }
}

/// Of so many tokens those that fill whole batches, one at least: with `data.order_rows` a run that sees fewer rows takes no others.
fn whole_batches(tokens: u64, batch: f64) -> f64 {
    (tokens as f64 / batch).floor().max(1.0) * batch
}

/// F × steps of what was asked.
fn compute(args: &Recommend, laws: &Laws, recipe: &Recipe, width: usize, l0: f64) -> Result<f64, Failure> {
    let batch = recipe.train.batch as f64;
    if let Some(features) = args.features {
        return Ok(laws.compute_of_features(features as f64));
    }
    if let Some(tokens) = args.tokens {
        return Ok(laws.compute_of_steps(whole_batches(tokens, batch) / batch));
    }
    let parameters = laws.surface.parameters();
    let size = |compute: f64| {
        let power = |(coefficient, exponent): (f64, f64)| coefficient * compute.powf(exponent);
        (power(parameters.features_opt()), power(parameters.steps_opt()))
    };
    if let Some(flops) = args.flops {
        return Ok(rising(flops, |compute| {
            let (features, steps) = size(compute);
            Some(flops_sparse(width as f64, batch, l0, features, steps))
        }));
    }
    // As they are told of the recipe in the end: with checkpoints, on as many GPUs as were asked for.
    Ok(rising(args.gpu_hours.unwrap_or_default(), |compute| {
        let (features, steps) = size(compute);
        let mut recipe = recipe.clone();
        recipe.sae.features = features.round().clamp(1.0, 2_147_483_647.0) as usize;
        recipe.train.tokens = Some((steps * batch).round().max(1.0) as u64);
        cost::on_gpus(&recipe, width, l0, &args.gpu, args.gpus).ok().map(|on_gpus| on_gpus.gpu_hours)
    }))
}

/// The compute at which a rising cost is as asked, by halving in ln C; where the cost is not known it is taken to be more. 0 where one feature and
/// one step cost more.
fn rising(asked: f64, cost: impl Fn(f64) -> Option<f64>) -> f64 {
    if cost(1.0).is_none_or(|least| least > asked) {
        return 0.0;
    }
    let (mut low, mut high) = (0.0_f64, 1e36_f64.ln());
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if cost(middle.exp()).is_some_and(|cost| cost <= asked) { low = middle } else { high = middle }
    }
    low.exp()
}

/// What stands above a recommended recipe, as comments.
fn head(args: &Recommend, laws: &Laws, found: &Recommended) -> String {
    let asked = match (args.flops, args.gpu_hours, args.tokens, args.features) {
        (Some(flops), ..) => format!("{flops:e} FLOP"),
        (_, Some(hours), ..) => format!("{hours} hours of {}", args.gpu.name),
        (_, _, Some(tokens), _) => format!("{tokens} tokens"),
        (.., Some(features)) => format!("{features} features"),
        _ => String::new(),
    };
    let mut lines = vec![
        format!(
            "Recommended by sae scaling for {asked}, from laws {} of {} runs.",
            laws.identity.id, laws.quality.runs
        ),
        format!("Predicted loss {}; of a single run {}.", estimate(found.loss), estimate(found.loss_of_one_run)),
        format!(
            "F x steps = {:.4e}, {} x the largest of the laws' runs.",
            found.compute,
            significant(found.times_largest)
        ),
    ];
    if found.times_largest > FAR * (1.0 + 1e-9) {
        lines.push(format!(
            "FORCED: beyond {FAR} x the largest compute that was run nothing supports this prediction, nor its interval."
        ));
    }
    lines.extend(found.lr_from.comment().map(str::to_owned));
    lines.extend(found.warnings.iter().map(|warning| format!("Warning: {warning}.")));
    lines.iter().map(|line| format!("# {line}\n")).collect::<String>() + "\n"
}

fn show(found: &Recommended) {
    let on_gpus = &found.on_gpus;
    let lr = match found.lr_from.words() {
        None => estimate(found.lr),
        Some(words) => format!("{} ({words})", found.lr.value),
    };
    table::print(
        "the best run of this budget",
        &[
            ("features F", HumanCount(found.features).to_string()),
            ("best F at this compute", estimate(found.features_opt)),
            ("tokens, in whole batches", HumanCount(found.tokens).to_string()),
            ("steps", format!("{} of {} rows", HumanCount(found.steps), HumanCount(found.batch))),
            ("lr", lr),
            ("λ", found.l1.map_or("–".to_owned(), |l1| l1.to_string())),
            ("predicted loss", estimate(found.loss)),
            ("of a single run", estimate(found.loss_of_one_run)),
            ("F × steps", format!("{:.4e}, {} × the largest run", found.compute, significant(found.times_largest))),
            ("FLOP, sparse and dense", format!("{:.3e}, {:.3e}", found.flops_sparse, found.flops_dense)),
            ("GPUs", format!("{} {} as a mesh of {}", on_gpus.gpus, on_gpus.gpu, on_gpus.mesh)),
            ("time", format!("{}, {} GPU-hours", duration(3600.0 * on_gpus.hours), significant(on_gpus.gpu_hours))),
            ("read from storage", HumanBytes(on_gpus.read_bytes).to_string()),
            ("a checkpoint", HumanBytes(on_gpus.checkpoint_bytes).to_string()),
            ("run.dir", found.run_dir.clone()),
        ],
    );
    print_fewest(on_gpus.gpu, &on_gpus.memory_modes);
    table::say("Time is estimated from data sheets and counts of bytes; no kernel has been timed for it.");
}
