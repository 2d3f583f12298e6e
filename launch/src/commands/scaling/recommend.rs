//! `sae scaling recommend`: the best run of a budget as a recipe.

use std::collections::BTreeMap;

use indicatif::{HumanBytes, HumanCount};
use loader::{Dataset, OpenOptions};
use scaling::laws::{Estimate, Identity};
use scaling::{FAR, Laws, flops_dense, flops_sparse};
use serde::Serialize;
use trainer::recipe::Recipe;

use super::cost::{self, OnGpus};
use super::fit::{estimate, significant};
use crate::args::Recommend;
use crate::budget::duration;
use crate::failure::Failure;
use crate::gpus::print_fewest;
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
    /// Whether it is from the law of the learning rate, and not what all runs had.
    lr_from_law: bool,
    /// λ.
    l1: Option<f64>,
    /// Mean over seeds.
    loss: Estimate,
    /// Of a single run.
    loss_of_one_run: Estimate,
    /// Intervals of the best size at this compute.
    features_opt: Estimate,
    steps_opt: Estimate,
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
    let base = base(args, &laws)?;
    let (found, recipe) = recommend(args, &laws, base)?;
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
    for warning in &laws.warnings {
        table::say(format!("warning of the laws ({}): {}", warning.kind, warning.text));
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

/// Writes what was asked for to a local file.
pub fn write(out: &str, text: &str) -> Result<(), Failure> {
    loader::check_expanded(out).map_err(loader::Error::from)?;
    std::fs::write(out, text).map_err(|error| Failure::cannot_write(format!("{out}: {error}")))
}

/// The recipe that is filled in: the one that was given, if its runs would be of the same law, or what the laws' runs have in common.
pub fn base(args: &Recommend, laws: &Laws) -> Result<Recipe, Failure> {
    let Some(path) = &args.recipe else { return from_identity(&laws.identity) };
    let recipe = recipes::read(path, &args.set)?;
    let identity = &laws.identity;
    let differs = |name: &str, theirs: String, own: String| {
        Failure::arguments(format!(
            "{path}: the laws are of runs with {name} = {theirs}, and the recipe has {own}: they say nothing of it. Set it to {theirs}, or \
             fit runs with {own}"
        ))
    };
    if let Some(batch) = identity.batch.filter(|batch| *batch != recipe.train.batch as u64) {
        return Err(differs("train.batch", batch.to_string(), recipe.train.batch.to_string()));
    }
    if let Some(l1) = identity.l1.filter(|l1| *l1 != recipe.train.l1) {
        return Err(differs("train.l1", l1.to_string(), recipe.train.l1.to_string()));
    }
    let own = recipe.deciding_keys();
    for (key, theirs) in identity.recipe.iter().filter(|(key, _)| !super::rows::PLACES.contains(&key.as_str())) {
        let own = own.get(key).map_or("nothing", String::as_str);
        if own != theirs {
            return Err(differs(key, theirs.clone(), own.to_owned()));
        }
    }
    let options = OpenOptions { column: recipe.data.column.clone(), ..OpenOptions::default() };
    match Dataset::open(&recipe.data.train, &options) {
        Ok(data) => {
            if let Some(width) = identity.width.filter(|width| *width != data.width() as u64) {
                return Err(differs("D", width.to_string(), data.width().to_string()));
            }
            if let Some(theirs) = identity.data.as_ref().filter(|theirs| **theirs != data.identity()) {
                return Err(differs("data.train of identity", theirs.clone(), data.identity()));
            }
        }
        Err(error) => {
            tracing::warn!("data.train could not be compared with the laws': {}", crate::remedy::words(&error.into()))
        }
    }
    Ok(recipe)
}

/// The recipe that the laws' runs have in common.
fn from_identity(identity: &Identity) -> Result<Recipe, Failure> {
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
    toml::from_str(&text).map_err(|error| {
        Failure::data(format!(
            "the recipe in the laws is none of this version: {}: name one with --recipe",
            error.message()
        ))
    })
}

fn recommend(args: &Recommend, laws: &Laws, mut recipe: Recipe) -> Result<(Recommended, Recipe), Failure> {
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
    let identity =
        Identity { width: Some(width as u64), batch: Some(recipe.train.batch as u64), ..laws.identity.clone() };
    let largest = laws.largest_compute();
    let compute = compute(args, laws, &identity, l0)?;
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
    let best = laws.optimum(compute);
    let features = match args.features {
        Some(features) => features as f64,
        None if best.features.value >= 16.0 * TILE => (best.features.value / TILE).round() * TILE,
        None => best.features.value.round().max(1.0),
    };
    if features >= f64::from(1_u32 << 31) {
        return Err(Failure::arguments(format!(
            "the best F is {}, and a dictionary has fewer than 2^31",
            significant(features)
        )));
    }
    let tokens = match args.tokens {
        Some(tokens) => tokens as f64,
        None => (best.steps.value.round().max(1.0)) * batch,
    };
    let steps = (tokens / batch).ceil();
    let (lr, lr_from_law) = learning_rate(laws, &recipe, compute);
    let (loss, loss_of_one_run) = laws.loss_of(features, steps);
    recipe.sae.features = features as usize;
    recipe.train.tokens = Some(tokens as u64);
    recipe.train.lr = lr.value;
    recipe.train.l1 = laws.identity.l1.unwrap_or(recipe.train.l1);
    recipe.validate()?;
    let on_gpus = cost::on_gpus(&recipe, width, l0, &args.gpu, args.gpus)?;
    let found = Recommended {
        laws: laws.identity.id.clone(),
        features: features as u64,
        tokens: tokens as u64,
        steps: steps as u64,
        batch: recipe.train.batch as u64,
        lr,
        lr_from_law,
        l1: Some(recipe.train.l1),
        loss,
        loss_of_one_run,
        features_opt: best.features,
        steps_opt: best.steps,
        compute: features * steps,
        times_largest: features * steps / largest,
        flops_sparse: flops_sparse(width as f64, batch, l0, features, steps),
        flops_dense: flops_dense(width as f64, batch, features, steps),
        on_gpus,
        warnings: laws.warnings.iter().map(|warning| warning.text.clone()).collect(),
    };
    Ok((found, recipe))
}

/// F × steps of what was asked.
fn compute(args: &Recommend, laws: &Laws, identity: &Identity, l0: f64) -> Result<f64, Failure> {
    let (width, batch) = (identity.width.unwrap_or(1) as f64, identity.batch.unwrap_or(1) as f64);
    if let Some(features) = args.features {
        return Ok(laws.compute_of_features(features as f64));
    }
    if let Some(tokens) = args.tokens {
        return Ok(laws.compute_of_steps((tokens as f64 / batch).ceil()));
    }
    let parameters = laws.surface.parameters();
    let size = |compute: f64| {
        let power = |(coefficient, exponent): (f64, f64)| coefficient * compute.powf(exponent);
        (power(parameters.features_opt()), power(parameters.steps_opt()))
    };
    if let Some(flops) = args.flops {
        return Ok(rising(flops, |compute| {
            let (features, steps) = size(compute);
            Some(flops_sparse(width, batch, l0, features, steps))
        }));
    }
    let hours = args.gpu_hours.unwrap_or_default();
    let found = rising(hours, |compute| {
        let (features, steps) = size(compute);
        cost::gpu_hours(identity, &args.gpu, l0, features, steps)
    });
    Ok(found)
}

/// The compute at which a rising cost is as asked, by halving in ln C; where the cost is not known it is taken to be more.
fn rising(asked: f64, cost: impl Fn(f64) -> Option<f64>) -> f64 {
    let (mut low, mut high) = (0.0_f64, 1e36_f64.ln());
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if cost(middle.exp()).is_some_and(|cost| cost <= asked) { low = middle } else { high = middle }
    }
    low.exp()
}

/// The learning rate by its law, or that of the runs.
pub fn learning_rate(laws: &Laws, recipe: &Recipe, compute: f64) -> (Estimate, bool) {
    let fixed = |value: f64| Estimate { value, low: value, high: value };
    let Some(law) = &laws.lr_opt else {
        let rates: Vec<f64> = laws.runs.iter().filter(|run| run.in_surface).filter_map(|run| run.lr).collect();
        let shared = rates.first().copied().filter(|first| rates.iter().all(|rate| rate == first));
        return (fixed(shared.unwrap_or(recipe.train.lr)), false);
    };
    // The interval of the exponent about the middle of the points: ends of both coefficients never meet.
    let inside = law.points.iter().filter(|point| !point.at_edge);
    let (sum, count) = inside.fold((0.0, 0.0), |(sum, count), point| (sum + point.compute.ln(), count + 1.0));
    let middle: f64 = sum / f64::max(count, 1.0);
    let value = law.coefficient.value * compute.powf(law.exponent.value);
    let off = compute.ln() - middle;
    let ends =
        [law.exponent.low, law.exponent.high].map(|exponent| value * ((exponent - law.exponent.value) * off).exp());
    (Estimate { value, low: ends[0].min(ends[1]), high: ends[0].max(ends[1]) }, true)
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
    if !found.lr_from_law {
        lines.push(
            "The learning rate is that of the runs: it was not swept, and a larger run usually wants a lower one."
                .to_owned(),
        );
    }
    lines.extend(laws.warnings.iter().map(|warning| format!("Warning of the laws: {}.", warning.text)));
    lines.iter().map(|line| format!("# {line}\n")).collect::<String>() + "\n"
}

fn show(found: &Recommended) {
    let on_gpus = &found.on_gpus;
    let lr =
        if found.lr_from_law { estimate(found.lr) } else { format!("{} (of the runs, not swept)", found.lr.value) };
    table::print(
        "the best run of this budget",
        &[
            ("features F", HumanCount(found.features).to_string()),
            ("best F at this compute", estimate(found.features_opt)),
            ("tokens", HumanCount(found.tokens).to_string()),
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
        ],
    );
    print_fewest(on_gpus.gpu, &on_gpus.memory_modes);
    table::say("Time is estimated from data sheets and counts of bytes; no kernel has been timed for it.");
}
