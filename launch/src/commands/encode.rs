//! `sae encode`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{HumanBytes, HumanCount};
use kernels::{Device, Purpose, Shape};
use loader::parts::{Marker, Parts, Plan, Worker};
use loader::{Dataset, GroupOfRows, Help, Location, OpenOptions, RowFilter, Scalar, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use trainer::data::{NamedRows, named_rows, skip_list_of};
use trainer::encode::{self, Encoder, Made, Settings, Written};
use trainer::recipe::{Moments, Precision, Train};
use trainer::trained::Trained;

use crate::args::Encode;
use crate::commands::eval::check_width;
use crate::device::{self, Opened};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{signals, table, worker, world};

/// The file that says what was encoded, written last.
const MANIFEST: &str = "encoding.json";

/// What is encoded, as all workers see it.
struct Job<'a> {
    trained: &'a Trained,
    dataset: &'a Dataset,
    settings: Settings,
    ids: Option<Vec<u32>>,
    parts: Vec<Vec<GroupOfRows>>,
    feature_shards: Vec<Range<usize>>,
    /// Rows to leave out, as they were named, with their numbers.
    named: Vec<(String, Range<u64>)>,
    plan: Plan,
}

/// What a marker holds.
#[derive(Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    made: Made,
    /// Names of its rows that were to be left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skip: Vec<String>,
}

/// Encodes the worker's parts that are not there yet, and closes the folder where all are.
pub fn run(args: &Encode) -> Result<(), Failure> {
    let stop = signals::stop_on_signals(false)?;
    let worker = worker::of(args.worker, &world::environment())?;
    let trained = Trained::open(&args.run, args.checkpoint)?;
    let of_run = trained.recipe().and_then(|recipe| recipe.data.column.clone());
    let column = args.column.clone().or(of_run);
    let dataset = Dataset::open(&args.data, &OpenOptions { column, ..OpenOptions::default() })?;
    check_width(&trained, &dataset, &args.data)?;
    let train = numbers(&trained, args.precision);
    let opened = device::open_alone(args.device, &train)?;
    let on = match &opened {
        Opened::Cpu(_) => "processor".to_owned(),
        Opened::Cuda(_) => format!("GPU, {}", word(&train.precision)),
    };
    let job = Job::new(args, &trained, &dataset, &on)?;
    let out = Store::open(&args.out)?;
    refuse_inside(&out, &args.data)?;
    let parts = Parts::open(&out, &job.plan)?;
    match opened {
        Opened::Cpu(device) => job.work(&device, &parts, worker, &stop),
        Opened::Cuda(device) => job.work(&device, &parts, worker, &stop),
    }?;
    job.close(&parts, worker, args)
}

/// Refuses an output in the data: opened again they would hold pairs among their shards.
fn refuse_inside(out: &Store, data: &[String]) -> Result<(), Failure> {
    for data in data {
        if Location::resolve(data)?.reaches(out) {
            return Err(Failure::arguments(format!(
                "--out {} lies in --data {data}, which would then hold it as well: name a folder outside of it",
                out.url()
            )));
        }
    }
    Ok(())
}

/// `[train]` of the run as it concerns numbers, or what was asked for.
fn numbers(trained: &Trained, precision: Option<Precision>) -> Train {
    let train = trained.train();
    match precision {
        None => train,
        Some(Precision::F32) => Train { precision: Precision::F32, moments: Moments::F32, ..train },
        Some(precision) => Train { precision, ..train },
    }
}

/// A word of a recipe.
fn word(of: &impl Serialize) -> String {
    serde_json::to_value(of).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

impl<'a> Job<'a> {
    fn new(args: &Encode, trained: &'a Trained, dataset: &'a Dataset, on: &str) -> Result<Self, Failure> {
        let features = trained.features();
        let ids = trained.ids()?;
        let highest = ids.as_ref().and_then(|ids| ids.last().map(|&id| id as usize + 1)).unwrap_or(features);
        if u32::try_from(highest).is_err() {
            return Err(Failure::data(format!("{} has {features} features, more than 32 bits can name", args.run)));
        }
        let filter = match trained.checkpoint() {
            Some((_, found)) if !args.no_filter => {
                found.manifest.recipe.data.filter.resolve(found.manifest.norm_median)?
            }
            _ => RowFilter::default(),
        };
        let named = named_rows(dataset, &args.skip, ("--skip", "--data"))?;
        let skip = skip_list_of(&named);
        dataset.check_columns(&filter, &skip).map_err(|error| {
            Failure::data(format!("{error}: it is the run's data.filter, which --no-filter leaves aside"))
        })?;
        let columns = columns(args, dataset)?;
        let batch = trained.train().batch;
        let dictionary = dictionary(trained)?;
        let of_data = json!({ "identity": dataset.identity(), "rows": dataset.rows(), "width": dataset.width(), "column": dataset.column() });
        let text = |of: &Value, key: &str| of[key].as_str().map(str::to_owned).unwrap_or_else(|| of[key].to_string());
        let metadata = vec![
            ("sae.dictionary", text(&dictionary, "identity")),
            ("sae.step", text(&dictionary, "step")),
            ("sae.data", text(&of_data, "identity")),
        ];
        let feature_shards = encode::feature_shards(features, args.feature_shards);
        let what = json!({
            "command": "encode",
            "dictionary": dictionary,
            "data": of_data,
            "filter": of_filter(&filter),
            "columns": columns,
            "part_rows": args.part_rows,
            "feature_shards": feature_shards.len(),
            "batch": batch,
            "numbers_of": on,
        });
        let what = what.as_object().cloned().unwrap_or_default();
        Ok(Job {
            trained,
            dataset,
            settings: Settings { batch, skip, filter, columns, metadata },
            ids,
            parts: encode::parts(dataset, args.part_rows),
            feature_shards,
            named: numbered(dataset, &named),
            plan: Plan { what, folders: BTreeMap::new() },
        })
    }

    /// Units of work: each is a part of the rows and a shard of the features.
    fn units(&self) -> u64 {
        (self.parts.len() * self.feature_shards.len()) as u64
    }

    /// The part and the feature shard of a unit.
    fn of_unit(&self, unit: u64) -> (usize, usize) {
        let shards = self.feature_shards.len();
        (unit as usize / shards, unit as usize % shards)
    }

    fn rows_of(&self, part: usize) -> Range<u64> {
        let groups = &self.parts[part];
        groups.first().map_or(0, |group| group.rows.start)..groups.last().map_or(0, |group| group.rows.end)
    }

    /// Names of the rows of a part that are to be left out.
    fn skipped_in(&self, part: usize) -> Vec<String> {
        let rows = self.rows_of(part);
        let inside = |of: &Range<u64>| of.start < rows.end && rows.start < of.end;
        let mut names: Vec<String> =
            self.named.iter().filter(|(_, of)| inside(of)).map(|(name, _)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn work<D: Device>(
        &self,
        device: &D,
        parts: &Parts,
        worker: Worker,
        stop: &Arc<AtomicBool>,
    ) -> Result<(), Failure> {
        self.check_skipped(parts)?;
        let mut left = parts.left(worker, self.units())?;
        // One shard of the features after the other: each is loaded once.
        left.sort_by_key(|&unit| (self.of_unit(unit).1, unit));
        let rows = |unit: &u64| {
            let rows = self.rows_of(self.of_unit(*unit).0);
            rows.end - rows.start
        };
        let total: u64 = left.iter().map(rows).sum();
        if total == 0 {
            return Ok(());
        }
        tracing::info!(
            parts = left.len(),
            "encoding {} rows on {}, in {} parts of {}",
            HumanCount(total),
            device.describe(),
            left.len(),
            self.units()
        );
        let bar = RefCell::new(Bar::new("encoding", 0, total));
        let mut done = 0;
        for of_shard in left.chunk_by(|&a, &b| self.of_unit(a).1 == self.of_unit(b).1) {
            let features = self.feature_shards[self.of_unit(of_shard[0]).1].clone();
            self.check_room(device, &features)?;
            let mut encoder =
                Encoder::new(device, self.trained, self.dataset, &self.settings, features, self.ids.as_deref())
                    .map_err(explained)?;
            for unit in of_shard {
                if !self.make(&mut encoder, parts, *unit, stop, |rows| bar.borrow_mut().set(done + rows))? {
                    bar.borrow().clear();
                    return Err(Failure::interrupted(
                        "stopped: the part that was being made is left; the same command goes on with the parts that are not there",
                    ));
                }
                done += rows(unit);
            }
        }
        bar.borrow().finish();
        Ok(())
    }

    /// Makes a unit and commits it. False when it was stopped.
    fn make<D: Device>(
        &self,
        encoder: &mut Encoder<'_, D>,
        parts: &Parts,
        unit: u64,
        stop: &AtomicBool,
        progress: impl Fn(u64),
    ) -> Result<bool, Failure> {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let (part, shard) = self.of_unit(unit);
        let pairs = encode::pairs_file(part as u64, shard, self.feature_shards.len());
        let rows = (shard == 0).then(|| encode::rows_file(part as u64));
        let made =
            encoder.part(parts.store(), (pairs, rows), &self.parts[part], || stop.load(Ordering::Relaxed), &progress);
        let Some(made) = made.map_err(explained)? else { return Ok(false) };
        let note = Note { made, skip: self.skipped_in(part) };
        let note = serde_json::to_value(note).map_err(|error| Failure::arguments(error.to_string()))?;
        parts.commit(unit, &Marker::default().with_note(note))?;
        Ok(true)
    }

    /// Refuses rows to leave out that are in a part already.
    fn check_skipped(&self, parts: &Parts) -> Result<(), Failure> {
        if self.named.is_empty() {
            return Ok(());
        }
        for (unit, marker) in parts.committed()? {
            if unit >= self.units() {
                continue;
            }
            let note = note(parts, unit, &marker)?;
            let (part, _) = self.of_unit(unit);
            if let Some(name) = self.skipped_in(part).iter().find(|name| !note.skip.contains(name)) {
                return Err(Failure::arguments(format!(
                    "--skip {name}: part {part} was made with its rows: begin in another --out to leave them out"
                )));
            }
        }
        Ok(())
    }

    /// Says before weights are read that a device has no room for them.
    fn check_room(&self, device: &impl Device, features: &Range<usize>) -> Result<(), Failure> {
        let (width, batch) = (self.trained.width(), self.settings.batch);
        let shape = |features| Shape { width, features, batch, dense_bytes: 0 };
        let needed = |features| device.bytes(shape(features), Purpose::Evaluation).weights;
        let Some(room) = device.room().filter(|&room| needed(features.len()) > room) else { return Ok(()) };
        let fits =
            (self.feature_shards.len() + 1..=9999).find(|&shards| needed(features.len().div_ceil(shards)) <= room);
        let instead = fits.map_or_else(
            || "encode on a larger one".to_owned(),
            |shards| {
                format!(
                    "cut the dictionary along its features with --feature-shards {}",
                    shards * self.feature_shards.len()
                )
            },
        );
        Err(Failure::arguments(format!(
            "{} features of width {width} take {} of {}, which has room for {}: {instead}",
            HumanCount(features.len() as u64),
            HumanBytes(needed(features.len())),
            device.describe(),
            HumanBytes(room)
        )))
    }

    /// Writes what was encoded where all is there, and says what there is.
    fn close(&self, parts: &Parts, worker: Worker, args: &Encode) -> Result<(), Failure> {
        let markers = parts.committed()?;
        let missing = (0..self.units()).filter(|unit| !markers.contains_key(unit)).count();
        if missing > 0 {
            table::say(format!(
                "worker {worker} has made its parts; {missing} of {} are still to be made by others, and the last of them writes {MANIFEST}",
                self.units()
            ));
            return Ok(());
        }
        let mut notes = BTreeMap::new();
        for (&unit, marker) in &markers {
            if unit >= self.units() {
                return Err(Failure::data(format!(
                    "{}: part {unit} is beyond the last: empty the folder and encode again",
                    parts.store().url()
                )));
            }
            notes.insert(unit, note(parts, unit, marker)?);
        }
        let sums = Sums::of(&notes);
        let manifest = self.manifest(&notes, &sums);
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(|error| Failure::arguments(error.to_string()))?;
        parts.store().put(MANIFEST, bytes)?;
        let left_out = |count: u64, by: &str| (count > 0).then(|| format!("{} by {by}", HumanCount(count)));
        let left_out: Vec<String> =
            [left_out(sums.filtered, "data.filter"), left_out(sums.skipped, "--skip")].into_iter().flatten().collect();
        let mut rows = vec![
            ("rows", HumanCount(sums.rows).to_string()),
            ("active pairs", HumanCount(sums.pairs).to_string()),
            ("L0", table::number(sums.l0())),
            ("bytes", HumanBytes(sums.bytes).to_string()),
            ("parts", self.units().to_string()),
        ];
        if !left_out.is_empty() {
            rows.insert(1, ("rows left out", left_out.join(", ")));
        }
        table::print(&args.out, &rows);
        let pairs = format!("{}/{}", args.out.trim_end_matches('/'), encode::ACTIVATIONS);
        table::say(format!("next, in Python: import pyarrow.dataset as ds; pairs = ds.dataset({pairs:?}).to_table()"));
        Ok(())
    }

    /// What encoding.json says: a function of the plan and the markers.
    fn manifest(&self, notes: &BTreeMap<u64, Note>, sums: &Sums) -> Value {
        let mut first = 0;
        let shards: Vec<Value> = self
            .dataset
            .shards()
            .iter()
            .map(|shard| {
                let of = json!({ "path": shard.path, "rows": shard.rows, "first_row": first });
                first += shard.rows;
                of
            })
            .collect();
        let files: Vec<&Written> =
            notes.values().flat_map(|note| [Some(&note.made.pairs), note.made.columns.as_ref()]).flatten().collect();
        let skip: Vec<&String> = notes.values().flat_map(|note| &note.skip).collect();
        let mut manifest = Map::new();
        manifest.insert("format".into(), "sae-encoding".into());
        manifest.insert("version".into(), 1.into());
        for key in ["dictionary", "filter", "columns", "numbers_of"] {
            manifest.insert(key.into(), self.plan.what[key].clone());
        }
        let mut data = self.plan.what["data"].clone();
        data["shards"] = shards.into();
        manifest.insert("data".into(), data);
        manifest.insert("feature_shards".into(), json!(self.feature_shards));
        for (key, value) in [
            ("rows", sums.rows),
            ("skipped", sums.skipped),
            ("filtered", sums.filtered),
            ("pairs", sums.pairs),
            ("bytes", sums.bytes),
        ] {
            manifest.insert(key.into(), value.into());
        }
        manifest.insert("l0".into(), sums.l0().into());
        manifest.insert("skip".into(), json!(skip));
        manifest.insert("files".into(), json!(files));
        Value::Object(manifest)
    }
}

/// Sums over all parts.
#[derive(Default)]
struct Sums {
    rows: u64,
    skipped: u64,
    filtered: u64,
    pairs: u64,
    bytes: u64,
}

impl Sums {
    fn of(notes: &BTreeMap<u64, Note>) -> Self {
        let mut sums = Sums::default();
        for Note { made, .. } in notes.values() {
            sums.pairs += made.pairs.rows;
            sums.bytes += made.pairs.bytes;
            // The first shard of the features speaks for the rows.
            if let Some(columns) = &made.columns {
                sums.rows += made.encoded;
                sums.skipped += made.skipped;
                sums.filtered += made.filtered;
                sums.bytes += columns.bytes;
            }
        }
        sums
    }

    fn l0(&self) -> f64 {
        self.pairs as f64 / self.rows.max(1) as f64
    }
}

/// What a marker says of its unit.
fn note(parts: &Parts, unit: u64, marker: &Marker) -> Result<Note, Failure> {
    Note::deserialize(&marker.note).map_err(|error| {
        Failure::data(format!(
            "{}: the marker of part {unit} in parts/ is not one of sae encode ({error}): delete it, and its part is made again",
            parts.store().url()
        ))
    })
}

/// What the dictionary is, wherever it lies.
fn dictionary(trained: &Trained) -> Result<Value, Failure> {
    let mut of = json!({
        "identity": trained.identity()?,
        "step": trained.step(),
        "width": trained.width(),
        "features": trained.features(),
        "scale": trained.scale(),
    });
    if let Some((_, found)) = trained.checkpoint() {
        of["run"] = found.manifest.recipe.run.dir.clone().into();
        of["checkpoint"] = found.folder.clone().into();
        of["tokens"] = found.manifest.tokens.into();
    }
    Ok(of)
}

fn of_filter(filter: &RowFilter) -> Value {
    let RowFilter { norm_min, norm_max, finite, positions, token_ids } = filter;
    json!({ "norm_min": norm_min, "norm_max": norm_max, "finite": finite, "positions": positions, "token_ids": token_ids })
}

/// Columns that go along.
fn columns(args: &Encode, dataset: &Dataset) -> Result<Vec<Scalar>, Failure> {
    if args.no_columns {
        return Ok(Vec::new());
    }
    let mut found = dataset.scalars()?;
    if let Some(at) = found.columns.iter().position(|column| column.name() == "row") {
        found.columns.remove(at);
        found.left_out.push(("row".into(), "the number of a row is called so".into()));
    }
    if args.columns.is_empty() {
        for (name, why) in &found.left_out {
            tracing::warn!("column {name} does not go along: {why}");
        }
        return Ok(found.columns);
    }
    if let Some(name) =
        args.columns.iter().enumerate().find_map(|(i, name)| args.columns[..i].contains(name).then_some(name))
    {
        return Err(Failure::arguments(format!("--columns {name} is there twice: name each column once")));
    }
    let choose = |name: &String| {
        if let Some(column) = found.columns.iter().find(|column| column.name() == name) {
            return Ok(column.clone());
        }
        let why =
            found.left_out.iter().find(|(of, _)| of == name).map_or("the data have none", |(_, why)| why.as_str());
        let names: Vec<&str> = found.columns.iter().map(Scalar::name).collect();
        Err(Failure::arguments(format!("--columns {name}: {why}; columns that can go along: [{}]", names.join(", "))))
    };
    args.columns.iter().map(choose).collect()
}

/// Rows that were named, by their numbers in the dataset.
fn numbered(dataset: &Dataset, named: &[NamedRows]) -> Vec<(String, Range<u64>)> {
    let before = |shard: u32| dataset.shards()[..shard as usize].iter().map(|shard| shard.rows).sum::<u64>();
    let number = |of: &NamedRows| (of.name.clone(), before(of.shard) + of.rows.start..before(of.shard) + of.rows.end);
    named.iter().map(number).collect()
}

/// An error in the words of this command's flags.
fn explained(error: trainer::Error) -> Failure {
    match &error {
        trainer::Error::Loader(of_data) => match of_data.help() {
            Some(Help::Skip(name)) => {
                Failure::data(format!("{of_data}, or leave it out with --skip {}", table::quoted(&name)))
            }
            _ => error.into(),
        },
        trainer::Error::Device(full @ kernels::Error::OutOfMemory { .. }) => Failure::arguments(format!(
            "{full}: cut the dictionary along its features with --feature-shards 2, or more"
        )),
        _ => error.into(),
    }
}
