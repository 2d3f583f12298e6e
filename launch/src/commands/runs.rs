//! `sae runs`.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::HumanCount;
use serde::Serialize;

use crate::args::Runs;
use crate::failure::Failure;
use crate::runs::{self, Line, PLACES};
use crate::table::{self, Column};

/// Prints a table of run folders.
pub fn run(args: &Runs) -> Result<(), Failure> {
    let found = runs::read_all(&args.folders)?;
    if found.runs.is_empty() {
        return Err(Failure::data(format!(
            "no run to show: {}. Name run folders, or folders that hold some",
            found.left_out.join("; ")
        )));
    }
    for why in &found.left_out {
        tracing::warn!("left out: {why}");
    }
    let lines: Vec<Line> = found.runs.iter().map(Line::from).collect();
    if args.json {
        #[derive(Serialize)]
        struct WithKeys<'a> {
            #[serde(flatten)]
            line: &'a Line,
            #[serde(flatten)]
            keys: &'a BTreeMap<String, String>,
        }
        let lines: Vec<_> = lines.iter().map(|line| WithKeys { line, keys: &line.keys }).collect();
        let json = serde_json::to_string_pretty(&lines).map_err(|error| trainer::Error::Internal(error.into()))?;
        table::say(json);
    } else if args.csv {
        table::say(csv(&lines)?.trim_end());
    } else {
        show(&lines);
    }
    Ok(())
}

/// The line's own names, then every key that one of the runs sets.
fn csv(lines: &[Line]) -> Result<String, Failure> {
    let internal = |error: Box<dyn std::error::Error + Send + Sync>| trainer::Error::Internal(error);
    let mut writer = csv::Writer::from_writer(Vec::new());
    lines.iter().try_for_each(|line| writer.serialize(line)).map_err(|error| internal(error.into()))?;
    let own = writer.into_inner().map_err(|error| internal(error.to_string().into()))?;
    let keys: BTreeSet<&String> = lines.iter().flat_map(|line| line.keys.keys()).collect();
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(own.as_slice());
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (at, record) in reader.records().enumerate() {
        let mut record = record.map_err(|error| internal(error.into()))?;
        let line = at.checked_sub(1).and_then(|at| lines.get(at));
        let cell = |key: &String| line.map_or(Some(key.clone()), |line| line.keys.get(key).cloned());
        keys.iter().for_each(|key| record.push_field(&cell(key).unwrap_or_default()));
        writer.write_record(&record).map_err(|error| internal(error.into()))?;
    }
    let bytes = writer.into_inner().map_err(|error| internal(error.to_string().into()))?;
    Ok(String::from_utf8(bytes).map_err(|error| internal(error.into()))?)
}

/// Titles and cells of what else tells the runs apart; where their files are does not.
fn differing(lines: &[Line]) -> Vec<(String, Vec<String>)> {
    let all = |of: &dyn Fn(&Line) -> Option<String>| -> Vec<String> {
        lines.iter().map(|line| of(line).unwrap_or_else(|| "–".to_owned())).collect()
    };
    let mut found = vec![
        ("batch".to_owned(), all(&|line| Some(line.batch.to_string()))),
        ("seed".to_owned(), all(&|line| Some(line.seed.to_string()))),
        ("data.seed".to_owned(), all(&|line| Some(line.data_seed.to_string()))),
    ];
    let keys: BTreeSet<&String> = lines.iter().flat_map(|line| line.keys.keys()).collect();
    let decide = keys.into_iter().filter(|key| !PLACES.contains(&key.as_str()));
    found.extend(decide.map(|key| (key.clone(), all(&|line| line.keys.get(key).cloned()))));
    found.retain(|(_, cells)| cells.iter().any(|cell| *cell != cells[0]));
    found
}

/// What a person looks for first; the rest is in CSV and JSON.
fn show(lines: &[Line]) {
    let some = |value: Option<f64>| value.map_or("–".to_owned(), table::number);
    let count = |value: Option<u64>| value.map_or("–".to_owned(), |value| HumanCount(value).to_string());
    // Where all lie in one folder, its name is said once.
    let parent = |line: &Line| line.run.rsplit_once('/').map(|(parent, _)| parent.to_owned());
    let common =
        lines.first().and_then(parent).filter(|first| lines.iter().all(|line| parent(line).as_ref() == Some(first)));
    let name = |line: &Line| match &common {
        Some(parent) => line.run[parent.len() + 1..].to_owned(),
        None => line.run.clone(),
    };
    let lr = |lr: f64| {
        let exact = format!("{lr:e}");
        if exact.len() > 8 { format!("{lr:.2e}") } else { exact }
    };
    let rows: Vec<[String; 11]> = lines
        .iter()
        .map(|line| {
            [
                name(line),
                line.state.name().to_owned(),
                HumanCount(line.features as u64).to_string(),
                count(line.steps),
                lr(line.lr),
                format!("{}", line.l1),
                some(line.loss),
                line.l0.map_or("–".to_owned(), |l0| format!("{l0:.1}")),
                table::percent(line.explained_variance),
                line.flops.map_or("–".to_owned(), |flops| format!("{flops:.2e}")),
                line.wall_s.map_or("–".to_owned(), |seconds| format!("{seconds:.1} s")),
            ]
        })
        .collect();
    let titles = ["run", "state", "features", "steps", "lr", "λ", "loss", "L0", "EV", "FLOP", "time"];
    let mut columns = table::columns_of(&titles, &rows);
    let differing = differing(lines);
    let mut spare = vec!["time", "FLOP"];
    spare.extend(differing.iter().rev().map(|(title, _)| title.as_str()));
    spare.extend(["EV", "L0"]);
    columns.extend(differing.iter().map(|(title, cells)| Column::of(title, cells.iter().cloned())));
    table::in_room(columns, &spare);
    if let Some(parent) = &common {
        table::say(format!("runs in {parent}"));
    }
    for line in lines {
        if let Some(cause) = &line.cause {
            table::say(format!("{}: {cause}", line.run));
        }
    }
}
