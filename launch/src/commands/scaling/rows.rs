//! Runs to fit: from folders, or from a table.

use std::collections::{BTreeMap, BTreeSet};

use csv::StringRecord;
use loader::number;
use scaling::Run;
use serde::Deserialize;

use crate::failure::Failure;
use crate::runs::{self, PLACES, State};

/// Bytes of a table, at most: some hundred thousand runs.
const MOST_BYTES: u64 = 64 << 20;

/// Runs, and for each of them the keys of its recipe that say where things are.
pub struct Rows {
    /// What is fitted.
    pub runs: Vec<Run>,
    /// [`PLACES`] that all runs share, and every row that one of them left out.
    pub places: BTreeMap<String, String>,
}

/// Factors on rows that were estimated from other samples of the same rows differ by less than this share; of other normalisations by more.
const SAME_SCALE: f64 = 0.02;

/// Refuses runs whose rows were normalised otherwise: losses are in units of the normalised rows.
fn check_scales(scales: &[(String, f64)]) -> Result<(), Failure> {
    let by_size = |a: &&(String, f64), b: &&(String, f64)| a.1.total_cmp(&b.1);
    let (least, most) = (scales.iter().min_by(by_size), scales.iter().max_by(by_size));
    match least.zip(most) {
        Some(((first, low), (other, high))) if *high > low * (1.0 + SAME_SCALE) => Err(Failure::data(format!(
            "runs differ in normalisation, so their losses cannot be compared: {first} multiplies rows by {low}, {other} by {high}. Fit them \
             separately"
        ))),
        _ => Ok(()),
    }
}

/// Reads run folders. Those that are not done are left out, with a word.
pub fn of_folders(folders: &[String]) -> Result<Rows, Failure> {
    let found = runs::read_all(folders)?;
    for why in &found.left_out {
        tracing::warn!("left out: {why}");
    }
    let (mut all, mut places, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    for run in &found.runs {
        let loss = run.summary.as_ref().and_then(|summary| Some((summary, summary.loss?)));
        let Some((summary, loss)) = loss else {
            let why = run.cause.as_ref().map_or(String::new(), |cause| format!(": {cause}"));
            tracing::warn!("left out: {} is {}, and has no loss{why}", run.url, run.state.name());
            continue;
        };
        debug_assert_eq!(run.state, State::Done);
        if summary.evaluated_on != "eval" {
            return Err(Failure::data(format!(
                "{}: measured on its last training rows, which differ from run to run: give every run the same data.eval",
                run.url
            )));
        }
        let recipe = &run.recipe;
        let (own, facts) = split(run.keys());
        places.push(own);
        scales.push((run.url.clone(), summary.scale));
        all.push(Run {
            id: run.url.clone(),
            features: recipe.sae.features as f64,
            steps: summary.steps as f64,
            loss,
            lr: Some(recipe.train.lr),
            seed: Some(recipe.train.seed),
            data_seed: Some(recipe.data.seed),
            budget: None,
            l1: Some(recipe.train.l1),
            batch: Some(recipe.train.batch as u64),
            l0: summary.l0,
            explained_variance: summary.explained_variance,
            dead_fraction: Some(summary.dead_fraction),
            flops: summary.flops,
            width: Some(summary.width as u64),
            data: run.data.clone(),
            eval: run.eval.clone(),
            numbers: summary.numbers.map(u64::from),
            precision: summary.precision.clone(),
            recipe: facts,
        });
    }
    if all.is_empty() {
        return Err(Failure::data(format!("no finished run in {}", folders.join(", "))));
    }
    check_scales(&scales)?;
    let runs = once(all);
    warn_of_unknown(&runs);
    Ok(Rows { runs, places: shared(&places) })
}

/// Keys of a recipe: [`PLACES`], and those that all runs of a law have alike.
fn split(keys: BTreeMap<String, String>) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    keys.into_iter().partition(|(key, _)| PLACES.contains(&key.as_str()))
}

/// What all have alike. Of `data.skip` it is what any of them says: a further run would meet the bad rows again.
fn shared(places: &[BTreeMap<String, String>]) -> BTreeMap<String, String> {
    let mut found = places.first().cloned().unwrap_or_default();
    found.retain(|key, value| places.iter().all(|own| own.get(key) == Some(value)));
    let lists = places.iter().filter_map(|own| format!("skip = {}", own.get("data.skip")?).parse::<toml::Table>().ok());
    let skip: BTreeSet<String> =
        lists.filter_map(|table| table.get("skip")?.clone().try_into::<Vec<String>>().ok()).flatten().collect();
    if !skip.is_empty() {
        let list = skip.into_iter().map(toml::Value::String).collect();
        found.insert("data.skip".to_owned(), toml::Value::Array(list).to_string());
    }
    found
}

/// Each run once: the same number at the same size, seed and rate is the same run under another name, and would count as noise that is not there.
fn once(runs: Vec<Run>) -> Vec<Run> {
    let mut known: BTreeMap<Vec<u64>, String> = BTreeMap::new();
    let is_new = |run: &Run| {
        let numbers = [run.features, run.steps, run.loss, run.lr.unwrap_or(0.0), run.l1.unwrap_or(0.0)];
        let counts = [run.seed, run.data_seed, run.batch].map(|count| count.map_or(0, |count| count.wrapping_add(1)));
        let key = numbers.map(f64::to_bits).into_iter().chain(counts).collect();
        match known.get(&key) {
            Some(first) => {
                tracing::warn!("left out: {} is the run {first} once more", run.id);
                false
            }
            None => known.insert(key, run.id.clone()).is_none(),
        }
    };
    let mut runs = runs;
    runs.retain(is_new);
    runs
}

/// Losses on other rows make no law, and of these runs nobody knows.
fn warn_of_unknown(runs: &[Run]) {
    let without = runs.iter().filter(|run| run.eval.is_none()).count();
    if without > 0 {
        tracing::warn!(
            "{without} of {} runs do not say which held-out rows they were measured on, so these are not compared: older runs say it in their last \
             checkpoint, tables in a column eval",
            runs.len()
        );
    }
}

/// A line of a table.
#[derive(Deserialize)]
struct Line {
    run: Option<String>,
    features: f64,
    steps: Option<f64>,
    loss: Option<f64>,
    lr: Option<f64>,
    seed: Option<u64>,
    data_seed: Option<u64>,
    budget: Option<f64>,
    l1: Option<f64>,
    batch: Option<u64>,
    l0: Option<f64>,
    explained_variance: Option<f64>,
    dead_fraction: Option<f64>,
    flops: Option<f64>,
    width: Option<u64>,
    data: Option<String>,
    eval: Option<String>,
    numbers: Option<u64>,
    precision: Option<String>,
    evaluated_on: Option<String>,
    scale: Option<f64>,
    state: Option<String>,
}

impl Line {
    /// The first column with a number that is none: it would spread to all that follows from it.
    fn not_finite(&self) -> Option<&'static str> {
        let numbers = [
            ("features", Some(self.features)),
            ("steps", self.steps),
            ("loss", self.loss),
            ("lr", self.lr),
            ("budget", self.budget),
            ("l1", self.l1),
            ("l0", self.l0),
            ("explained_variance", self.explained_variance),
            ("dead_fraction", self.dead_fraction),
            ("flops", self.flops),
            ("scale", self.scale),
        ];
        numbers.into_iter().find(|(_, number)| number.is_some_and(|number| !number.is_finite())).map(|(name, _)| name)
    }
}

/// The record with counts that have a name, such as 34M, in digits.
fn in_digits(names: &StringRecord, record: &StringRecord) -> StringRecord {
    let cell = |(name, text): (&str, &str)| match name {
        "features" | "steps" | "batch" => number::parse_count(text).map_or(text.to_owned(), |count| count.to_string()),
        _ => text.to_owned(),
    };
    names.iter().zip(record).map(cell).collect()
}

/// Which value of a line is none of its column.
fn wrong_field(names: &StringRecord, record: &StringRecord, number: usize, error: &csv::Error) -> String {
    let csv::ErrorKind::Deserialize { err, .. } = error.kind() else { return error.to_string() };
    let field = err.field().and_then(|field| usize::try_from(field).ok());
    match field.and_then(|field| Some((names.get(field)?, record.get(field)?))) {
        Some((name, value)) => format!("line {number}: {name} cannot be \"{value}\": {}", err.kind()),
        None => error.to_string(),
    }
}

/// Reads a table with a line of names, such as `sae runs --csv` prints; a name with a point is a key of the recipe. Lines without a loss are left out, with a word.
pub fn of_table(path: &str) -> Result<Rows, Failure> {
    let failed = |why: String| Failure::arguments(format!("{path}: {why}"));
    loader::check_expanded(path).map_err(loader::Error::from)?;
    let bytes = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if bytes > MOST_BYTES {
        return Err(failed(format!("has {bytes} bytes, and a table of runs has {MOST_BYTES} at most")));
    }
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(|e| failed(e.to_string()))?;
    let names = reader.headers().map_err(|error| failed(error.to_string()))?.clone();
    for needed in ["features", "steps", "loss"] {
        if !names.iter().any(|name| name == needed) {
            let there = names.iter().collect::<Vec<_>>().join(", ");
            return Err(failed(format!(
                "there is no column {needed}, only {there}: features, steps and loss are needed"
            )));
        }
    }
    let (mut runs, mut places, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    for (at, record) in reader.records().enumerate() {
        let number = at + 2;
        let record = record.map_err(|error| failed(error.to_string()))?;
        let record = in_digits(&names, &record);
        let line: Line =
            record.deserialize(Some(&names)).map_err(|error| failed(wrong_field(&names, &record, number, &error)))?;
        let id = line.run.clone().unwrap_or_else(|| format!("line {number}"));
        if let Some(state) = line.state.as_ref().filter(|state| *state != State::Done.name()) {
            tracing::warn!("left out: {path}, line {number} ({id}) is {state}");
            continue;
        }
        if let Some(column) = line.not_finite() {
            return Err(failed(format!(
                "line {number}: {column} is NaN or infinite: correct it, or leave it empty where it is not known"
            )));
        }
        if line.features.fract() != 0.0 || line.features >= f64::from(1_u32 << 31) {
            return Err(failed(format!(
                "line {number} ({id}): features is a whole number below 2^31, and is {}",
                line.features
            )));
        }
        let (Some(steps), Some(loss)) = (line.steps, line.loss) else {
            tracing::warn!("left out: {path}, line {number} ({id}) has no steps or no loss");
            continue;
        };
        if line.evaluated_on.as_ref().is_some_and(|on| on != "eval") {
            return Err(failed(format!(
                "line {number} ({id}) was measured on its last training rows, which differ from run to run: leave it out"
            )));
        }
        scales.extend(line.scale.map(|scale| (id.clone(), scale)));
        let keys = names.iter().zip(&record).filter(|(name, value)| name.contains('.') && !value.is_empty());
        let (own, facts) = split(keys.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
        places.push(own);
        runs.push(Run {
            id,
            features: line.features,
            steps,
            loss,
            lr: line.lr,
            seed: line.seed,
            data_seed: line.data_seed,
            budget: line.budget,
            l1: line.l1,
            batch: line.batch,
            l0: line.l0,
            explained_variance: line.explained_variance,
            dead_fraction: line.dead_fraction,
            flops: line.flops,
            width: line.width,
            data: line.data,
            eval: line.eval,
            numbers: line.numbers,
            precision: line.precision,
            recipe: facts,
        });
    }
    if runs.is_empty() {
        return Err(Failure::data(format!("{path}: there is no run in it")));
    }
    check_scales(&scales)?;
    let runs = once(runs);
    warn_of_unknown(&runs);
    Ok(Rows { runs, places: shared(&places) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_one_run_left_out_is_left_out_of_those_that_follow() {
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let found = shared(&[
            of(&[("data.train", "['a']"), ("data.eval", "['b']"), ("data.skip", "['x:1', 'y:2']")]),
            of(&[("data.train", "['a']"), ("data.eval", "['c']"), ("data.skip", "['z#3', 'x:1']")]),
            of(&[("data.train", "['a']")]),
        ]);
        assert_eq!(found, of(&[("data.train", "['a']"), ("data.skip", r#"["x:1", "y:2", "z#3"]"#)]));
    }
}
