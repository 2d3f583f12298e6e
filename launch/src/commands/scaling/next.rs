//! `sae scaling recommend --next`: which runs would narrow the intervals most, and a sweep of them.

use indicatif::HumanCount;
use scaling::{Candidate, FAR, Laws};
use serde::Serialize;
use toml::{Table, Value};

use super::fit::significant;
use super::rate::{Wanted, learning_rate};
use super::recommend::{base, in_tiles, short_id, write};
use crate::args::Recommend;
use crate::failure::Failure;
use crate::{laws, table};

/// Compute of further runs over the largest so far, at most.
const NEXT: f64 = 8.0;

/// Says which runs would narrow the intervals most, and writes a sweep of them.
///
/// # Errors
/// [`trainer::Exit::Data`] where the runs of the laws do not tell its parameters; those of writing.
pub fn run(args: &Recommend, count: usize) -> Result<(), Failure> {
    let laws = &laws::read(&args.laws)?;
    let largest = laws.largest_compute();
    let found = laws.next(count, NEXT * largest, FAR * largest);
    if found.is_empty() {
        return Err(Failure::data(format!(
            "{}: its runs do not tell all five parameters, so that no further run can be weighed: run other sizes",
            args.laws
        )));
    }
    if let Some(out) = &args.out {
        write(out, &sweep(args, laws, &found)?)?;
    }
    #[derive(Serialize)]
    struct Next {
        features: f64,
        steps: f64,
        tokens: Option<f64>,
        compute: f64,
        features_interval_left: f64,
        loss_interval_left: f64,
    }
    let of = |run: &Candidate| Next {
        features: run.features,
        steps: run.steps,
        tokens: laws.identity.batch.map(|batch| run.steps * batch as f64),
        compute: run.features * run.steps,
        features_interval_left: run.features_left,
        loss_interval_left: run.loss_left,
    };
    let found: Vec<Next> = found.iter().map(of).collect();
    if args.json {
        let json = serde_json::to_string_pretty(&found).map_err(|error| trainer::Error::Internal(error.into()))?;
        table::say(json);
        return Ok(());
    }
    let rows: Vec<[String; 6]> = found
        .iter()
        .map(|run| {
            [
                HumanCount(run.features as u64).to_string(),
                HumanCount(run.steps as u64).to_string(),
                run.tokens.map_or("–".to_owned(), |tokens| HumanCount(tokens as u64).to_string()),
                significant(run.compute / largest),
                table::percent(Some(run.features_interval_left)),
                table::percent(Some(run.loss_interval_left)),
            ]
        })
        .collect();
    let titles = ["features", "steps", "tokens", "C / largest", "interval of best F", "interval of loss"];
    table::columns(&titles, &rows);
    table::say(format!(
        "What is left of each interval at {FAR} × the largest compute, with that run and those above it. Of runs of at most {NEXT} × the largest \
         compute."
    ));
    table::say(match &args.out {
        Some(out) => {
            format!("next: sae sweep {}, then sae scaling fit of its folder and those before it", table::quoted(out))
        }
        None => "next: the same with --out sweep.toml, which sae sweep takes".to_owned(),
    });
    Ok(())
}

/// A sweep of these runs, with what all runs of the laws have in common as its base recipe.
fn sweep(args: &Recommend, laws: &Laws, found: &[Candidate]) -> Result<String, Failure> {
    let (mut recipe, rows) = base(args, laws)?;
    // A sweep makes an order of all rows by itself.
    recipe.data.order_rows = None;
    let batch = recipe.train.batch as u64;
    let internal = |error: String| Failure::from(trainer::Error::Internal(error.into()));
    let mut base: Table = recipe.to_toml().parse().map_err(|error: toml::de::Error| internal(error.to_string()))?;
    base.remove("run");
    // Two runs of one size tell more than one where their seeds differ, from those of the laws' runs too.
    let first_seed =
        laws.runs.iter().filter_map(|run| run.seed).max().map_or(recipe.train.seed, |seed| seed.saturating_add(1));
    let point = |(at, run): (usize, &Candidate)| {
        let features = in_tiles(run.features);
        let steps = (run.features * run.steps / features).floor().max(1.0) as u64;
        let seed = first_seed.saturating_add(at as u64);
        let mut point = Table::new();
        let mut set = |section: &str, key: &str, value: Value| {
            let section = point.entry(section).or_insert_with(|| Value::Table(Table::new()));
            section.as_table_mut().map(|section| section.insert(key.to_owned(), value));
        };
        set("sae", "features", Value::Integer(features as i64));
        set("train", "tokens", Value::Integer(steps.saturating_mul(batch) as i64));
        set("train", "seed", Value::Integer(seed as i64));
        let (lr, _) = learning_rate(args, laws, recipe.train.lr, run.features * run.steps, Wanted::OfTheSurface)?;
        set("train", "lr", Value::Float(lr.value));
        Ok(Value::Table(point))
    };
    let points = found.iter().enumerate().map(point).collect::<Result<Vec<Value>, Failure>>()?;
    let most = found.iter().map(|run| run.steps).fold(0.0, f64::max) * batch as f64;
    if let Some(rows) = rows.filter(|rows| most > *rows as f64) {
        tracing::warn!(
            "the longest run wants {} rows, and data.train has {}: bring more before the sweep can begin",
            HumanCount(most as u64),
            HumanCount(rows)
        );
    }
    let mut whole = Table::new();
    whole.insert("dir".to_owned(), Value::String(format!("sweeps/next-{}", short_id(laws))));
    whole.insert("points".to_owned(), Value::Array(points));
    whole.insert("base".to_owned(), Value::Table(base));
    let text = toml::to_string_pretty(&whole).map_err(|error| internal(error.to_string()))?;
    Ok(format!(
        "# Runs that would narrow the intervals of laws {} most, the one that does so most first.\n\n{text}",
        laws.identity.id
    ))
}
