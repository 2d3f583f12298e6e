//! Run folders, read back: what was trained, what came of it, and what it took. Tables of runs are made of this, and points for fits.
//!
//! A run folder is one that has a config.toml. What it came to, and on which data, stands in summary.json (in an older one not the data: then
//! the manifest of its last checkpoint has it); why it ended before, in error-RANK.json. Nothing is written, and files that no run has left
//! are not read at any length.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use loader::{Cursor, Store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use trainer::Exit;
use trainer::note::{self, Note};
use trainer::recipe::Recipe;

use crate::failure::Failure;

/// Bytes of a recipe, a summary or a note, at most: a thousand times what runs write.
const MOST_BYTES: u64 = 4 << 20;

/// Bytes of a checkpoint's manifest, at most: that of 34 million features has 9 MiB.
const MOST_MANIFEST_BYTES: u64 = 256 << 20;

/// Folders that are read at the same time: object stores answer after a while, and many at once.
const AT_ONCE: usize = 16;

/// The recipe of a run.
const CONFIG: &str = "config.toml";

/// Keys of a recipe that tables of runs have under a name of their own.
const NAMED: [&str; 7] =
    ["sae.features", "train.tokens", "train.lr", "train.l1", "train.batch", "train.seed", "data.seed"];

/// Keys that decide no result, or none by themselves, and that a further run like these takes over.
pub const PLACES: [&str; 5] = ["data.train", "data.eval", "data.order_rows", "data.skip", "checkpoint.every"];

/// What became of a run, as its folder says. Whether somebody trains it now is not in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has a summary.
    Done,
    /// It was begun, and has come neither to its end nor to an error.
    Begun,
    /// It ended with an error.
    Failed,
    /// It ended with NaN or infinity.
    Diverged,
}

impl State {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            State::Done => "done",
            State::Begun => "begun",
            State::Failed => "failed",
            State::Diverged => "diverged",
        }
    }
}

/// A run folder, read.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder, as it was named.
    pub url: String,
    /// What became of it.
    pub state: State,
    /// As it was first started.
    pub recipe: Recipe,
    /// What summary.json says, of a run that is done.
    pub summary: Option<Summary>,
    /// Identity of the training data: of an older run that is done where its last checkpoint is still there.
    pub data: Option<String>,
    /// Identity of the held-out data, likewise.
    pub eval: Option<String>,
    /// Why it ended before its end.
    pub cause: Option<String>,
}

/// What is read of a summary.json. The trainer's own [`trainer::summary::Summary`] says what each number is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Summary {
    /// Null where no row was measured.
    pub loss: Option<f64>,
    /// Mean squared error, a row.
    pub mse: Option<f64>,
    /// Active features of a row.
    pub l0: Option<f64>,
    /// 1 − FVU.
    pub explained_variance: Option<f64>,
    /// `eval` or `last_training_rows`.
    pub evaluated_on: String,
    /// Share of features silent over `dead_window` rows.
    pub dead_fraction: f64,
    /// Rows trained on.
    pub tokens: u64,
    /// Steps made.
    pub steps: u64,
    /// `D`.
    pub width: usize,
    /// Seconds in steps.
    pub step_s: f64,
    /// Seconds by the clock.
    pub wall_s: f64,
    /// Floating-point operations of all steps; null where they were not counted.
    pub flops: Option<f64>,
    /// Rows a second, in steps.
    pub tokens_per_s: f64,
    /// Factor on every row.
    pub scale: f64,
    /// Commit of the program.
    pub commit: String,
    /// [`trainer::NUMBERS`] of the program; older summaries do not say it, nor what follows but for the checkpoint.
    pub numbers: Option<u32>,
    /// Formats of GEMMs, weights and moments.
    pub precision: Option<String>,
    /// Identity of the training data.
    data: Option<String>,
    /// Identity of the held-out data.
    eval: Option<String>,
    /// Folder of the last checkpoint.
    checkpoint: String,
}

/// A run as a line of a table: under these names in CSV and JSON. What is not known is empty there.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The run's folder.
    pub run: String,
    /// What became of it.
    pub state: State,
    /// `F`.
    pub features: usize,
    /// `D`.
    pub width: Option<usize>,
    /// `B`.
    pub batch: usize,
    /// Steps made.
    pub steps: Option<u64>,
    /// Rows trained on; before the end those of the recipe.
    pub tokens: Option<u64>,
    /// `train.lr`.
    pub lr: f64,
    /// λ, `train.l1`.
    pub l1: f64,
    /// `train.seed`.
    pub seed: u64,
    /// `data.seed`.
    pub data_seed: u64,
    /// Loss on `evaluated_on`.
    pub loss: Option<f64>,
    /// Mean squared error there.
    pub mse: Option<f64>,
    /// L0 there.
    pub l0: Option<f64>,
    /// Explained variance there.
    pub explained_variance: Option<f64>,
    /// Share of dead features.
    pub dead_fraction: Option<f64>,
    /// `eval` or `last_training_rows`.
    pub evaluated_on: Option<String>,
    /// Floating-point operations of all steps.
    pub flops: Option<f64>,
    /// Seconds in steps.
    pub step_s: Option<f64>,
    /// Seconds by the clock.
    pub wall_s: Option<f64>,
    /// Rows a second, in steps.
    pub tokens_per_s: Option<f64>,
    /// Factor on every row.
    pub scale: Option<f64>,
    /// Identity of the training data.
    pub data: Option<String>,
    /// Identity of the held-out data.
    pub eval: Option<String>,
    /// [`trainer::NUMBERS`] of the program.
    pub numbers: Option<u32>,
    /// Formats of GEMMs, weights and moments.
    pub precision: Option<String>,
    /// Commit of the program.
    pub commit: Option<String>,
    /// Why it ended before its end.
    pub cause: Option<String>,
    /// Further keys of the recipe: see [`Run::keys`].
    #[serde(skip)]
    pub keys: BTreeMap<String, String>,
}

impl From<&Run> for Line {
    fn from(run: &Run) -> Self {
        let (recipe, summary) = (&run.recipe, run.summary.as_ref());
        Line {
            run: run.url.clone(),
            state: run.state,
            features: recipe.sae.features,
            width: summary.map(|summary| summary.width),
            batch: recipe.train.batch,
            steps: summary.map(|summary| summary.steps),
            tokens: summary.map(|summary| summary.tokens).or(recipe.train.tokens),
            lr: recipe.train.lr,
            l1: recipe.train.l1,
            seed: recipe.train.seed,
            data_seed: recipe.data.seed,
            loss: summary.and_then(|summary| summary.loss),
            mse: summary.and_then(|summary| summary.mse),
            l0: summary.and_then(|summary| summary.l0),
            explained_variance: summary.and_then(|summary| summary.explained_variance),
            dead_fraction: summary.map(|summary| summary.dead_fraction),
            evaluated_on: summary.map(|summary| summary.evaluated_on.clone()),
            flops: summary.and_then(|summary| summary.flops),
            step_s: summary.map(|summary| summary.step_s),
            wall_s: summary.map(|summary| summary.wall_s),
            tokens_per_s: summary.map(|summary| summary.tokens_per_s),
            scale: summary.map(|summary| summary.scale),
            data: run.data.clone(),
            eval: run.eval.clone(),
            numbers: summary.and_then(|summary| summary.numbers),
            precision: summary.and_then(|summary| summary.precision.clone()),
            commit: summary.map(|summary| summary.commit.clone()),
            cause: run.cause.clone(),
            keys: run.keys(),
        }
    }
}

impl Run {
    /// `section.key → value`, as TOML writes it, of what decides the result and has no name of its own in a [`Line`], and of [`PLACES`].
    pub fn keys(&self) -> BTreeMap<String, String> {
        let places = self.recipe.keys().into_iter().filter(|(key, _)| PLACES.contains(&key.as_str()));
        let all = self.recipe.keys_of_a_new_run().into_iter().chain(places);
        all.filter(|(key, value)| value != "[]" && !NAMED.contains(&key.as_str())).collect()
    }

    /// Reads a run folder; nothing where there is none.
    ///
    /// # Errors
    /// [`Exit::Data`] when a file of it cannot be understood; those of the store.
    pub fn read(store: &Store) -> Result<Option<Run>, Failure> {
        let Some(config) = get(store, CONFIG, MOST_BYTES)? else { return Ok(None) };
        let recipe: Recipe = toml::from_slice(&config).map_err(|error| {
            let text = error.message().to_owned();
            unread(store, CONFIG, &format!("cannot be read, by this version at least: {text}"))
        })?;
        let summary: Option<Summary> = json(store, "summary.json", MOST_BYTES)?;
        let mut run = Run {
            url: store.url().to_owned(),
            state: State::Begun,
            recipe,
            summary: None,
            data: None,
            eval: None,
            cause: None,
        };
        match summary {
            Some(summary) => run.is_done(store, summary)?,
            None => run.has_ended(store)?,
        }
        Ok(Some(run))
    }

    fn is_done(&mut self, store: &Store, summary: Summary) -> Result<(), Failure> {
        /// What is read of the manifest of a checkpoint.
        #[derive(Deserialize)]
        struct Kept {
            cursor: Cursor,
            eval: Option<String>,
        }
        self.state = State::Done;
        let manifest = format!("{}/manifest.json", summary.checkpoint);
        if summary.data.is_some() {
            (self.data, self.eval) = (summary.data.clone(), summary.eval.clone());
        } else if let Some(Kept { cursor, eval }) = json(store, &manifest, MOST_MANIFEST_BYTES)? {
            self.data = cursor.origin.map(|origin| origin.identity);
            self.eval = eval;
        }
        self.summary = Some(summary);
        Ok(())
    }

    /// What the notes of its ranks say. Most runs have one rank; where there are more, that whose own failure it was speaks.
    fn has_ended(&mut self, store: &Store) -> Result<(), Failure> {
        let first: Option<Note> = json(store, &note::name(0), MOST_BYTES)?;
        let Some(first) = first else { return Ok(()) };
        let own = first.peer.map(|peer| json(store, &note::name(peer), MOST_BYTES)).transpose()?.flatten();
        let note: Note = own.unwrap_or(first);
        self.state = if note.exit_code == Exit::Divergence.code() { State::Diverged } else { State::Failed };
        self.cause = Some(note.error);
        Ok(())
    }
}

/// What run folders there are, and which could not be read.
#[derive(Debug, Default)]
pub struct Found {
    /// By the order of the folders that were named, and in each by name.
    pub runs: Vec<Run>,
    /// Why others are not among them, a sentence each.
    pub left_out: Vec<String>,
}

/// Reads the run folders that `urls` name: those themselves, and those that lie in one.
///
/// # Errors
/// Those of stores that do not answer; what cannot be understood is left out and said.
pub fn read_all(urls: &[String]) -> Result<Found, Failure> {
    let (mut found, mut seen) = (Found::default(), BTreeSet::new());
    for url in urls {
        let store = Store::open(url)?;
        let folders = folders(&store)?;
        if folders.is_empty() {
            found.left_out.push(format!("{url}: no run folder is there, nor one that holds any"));
        }
        let new: Vec<Store> = folders.into_iter().filter(|folder| seen.insert(folder.url().to_owned())).collect();
        for read in at_once(&new, Run::read)? {
            match read {
                Ok(run) => found.runs.extend(run),
                Err(failure) if failure.is_of_data() => found.left_out.push(failure.message().to_owned()),
                Err(other) => return Err(other),
            }
        }
    }
    Ok(found)
}

/// Reads many things of a store, some at the same time; what came of each, in their order.
///
/// # Errors
/// When the system gives no threads.
pub fn at_once<T: Sync, R: Send>(things: &[T], read: impl Fn(&T) -> R + Sync) -> Result<Vec<R>, Failure> {
    let read = &read;
    let ended = |_| Failure::hardware("a thread that read from the store has ended");
    let mut all = Vec::new();
    for some in things.chunks(AT_ONCE) {
        let some = thread::scope(|scope| {
            let reading: Vec<_> = some.iter().map(|thing| scope.spawn(move || read(thing))).collect();
            reading.into_iter().map(|thread| thread.join().map_err(ended)).collect::<Result<Vec<R>, Failure>>()
        })?;
        all.extend(some);
    }
    Ok(all)
}

/// The folder itself where it is a run's, else the run folders in it.
fn folders(store: &Store) -> Result<Vec<Store>, Failure> {
    if store.head(CONFIG)?.is_some() {
        return Ok(vec![store.clone()]);
    }
    let mut folders: Vec<Store> = Vec::new();
    for entry in store.list("")? {
        if let Some(folder) = entry.key.strip_suffix(CONFIG).and_then(|folder| folder.strip_suffix('/')) {
            folders.push(store.join(folder)?);
        }
    }
    Ok(folders)
}

/// An object of at most so many bytes, if it is there.
fn get(store: &Store, key: &str, most: u64) -> Result<Option<Vec<u8>>, Failure> {
    let Some(entry) = store.head(key)? else { return Ok(None) };
    if entry.size > most {
        return Err(unread(store, key, &format!("has {} bytes, and no run writes more than {most}", entry.size)));
    }
    match store.get(key) {
        Ok(bytes) => Ok(Some(bytes.to_vec())),
        Err(loader::Error::NotFound { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

fn json<T: DeserializeOwned>(store: &Store, key: &str, most: u64) -> Result<Option<T>, Failure> {
    let Some(bytes) = get(store, key, most)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| unread(store, key, &format!("cannot be read: {error}")))
}

fn unread(store: &Store, key: &str, problem: &str) -> Failure {
    Failure::data(format!("{}: {problem}", store.url_of(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "[data]\ntrain = 'x'\n[sae]\nfeatures = 8\n[train]\nlr = 0.5\n[run]\ndir = 'y'\n";
    const SUMMARY: &str = r#"{"loss": 1.5, "mse": 1.0, "l0": 3.0, "explained_variance": null, "evaluated_on": "eval",
        "dead_fraction": 0.25, "tokens": 100, "steps": 10, "width": 4, "step_s": 1.0, "wall_s": 2.0, "flops": 1e6,
        "tokens_per_s": 100.0, "scale": 0.5, "commit": "unknown", "checkpoint": "checkpoints/step-0000000010/attempt-1"}"#;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let url = folder.path().display().to_string();
        (folder, url)
    }

    fn note(exit_code: u8, peer: Option<usize>, error: &str) -> String {
        let (operation, time) = ("training".to_owned(), String::new());
        let note = Note { rank: 0, time, step: 3, operation, exit_code, error: error.to_owned(), peer };
        serde_json::to_string(&note).expect("JSON")
    }

    #[test]
    fn a_folder_of_runs_is_read_by_what_each_has_come_to() {
        let (failed, diverged) = (note(71, Some(1), "rank 1 failed"), note(70, None, "NaN"));
        let manifest = r#"{"cursor": {"step": 10, "of": {"identity": "abc", "order_version": 1, "order": "o", "seed": 0,
            "epoch": 0, "batch": 10, "rows": 100}}, "eval": "def", "files": []}"#;
        let (_folder, url) = folder(&[
            ("a/config.toml", RECIPE),
            ("a/summary.json", SUMMARY),
            ("a/checkpoints/step-0000000010/attempt-1/manifest.json", manifest),
            ("b/config.toml", RECIPE),
            ("c/config.toml", RECIPE),
            ("c/error-0.json", &failed),
            ("c/error-1.json", &note(65, None, "a damaged shard")),
            ("d/config.toml", RECIPE),
            ("d/error-0.json", &diverged),
            ("e/config.toml", "[data"),
            ("f/config.toml", RECIPE),
            ("f/summary.json", "{}"),
            ("g/notes.txt", "no run"),
        ]);
        let found = read_all(&[url.clone(), format!("{url}/a"), format!("{url}/g")]).expect("read");
        let states: Vec<_> = found.runs.iter().map(|run| (run.state, run.cause.as_deref())).collect();
        let (failed, diverged) = (Some("a damaged shard"), Some("NaN"));
        assert_eq!(
            states,
            [(State::Done, None), (State::Begun, None), (State::Failed, failed), (State::Diverged, diverged)]
        );
        let line = Line::from(&found.runs[0]);
        assert_eq!((line.features, line.lr, line.loss, line.flops), (8, 0.5, Some(1.5), Some(1e6)));
        assert_eq!((line.data.as_deref(), line.eval.as_deref()), (Some("abc"), Some("def")));
        let [e, f, g] = found.left_out.as_slice() else { panic!("{:?}", found.left_out) };
        assert!(e.contains("e/config.toml: cannot be read"), "{e}");
        assert!(f.contains("f/summary.json: cannot be read"), "{f}");
        assert!(g.contains("g: no run folder is there"), "{g}");
    }

    #[test]
    fn a_summary_says_its_data_where_the_checkpoints_are_gone() {
        let more = r#""data": "abc", "eval": "def", "numbers": 1, "precision": "f32", "checkpoint""#;
        let summary = SUMMARY.replace(r#""checkpoint""#, more);
        let (_folder, url) = folder(&[("config.toml", RECIPE), ("summary.json", &summary)]);
        let line = Line::from(&read_all(&[url]).expect("read").runs[0]);
        assert_eq!((line.data.as_deref(), line.eval.as_deref()), (Some("abc"), Some("def")));
        assert_eq!((line.numbers, line.precision.as_deref()), (Some(1), Some("f32")));
    }

    #[test]
    fn a_file_that_no_run_writes_is_not_read() {
        let (folder, url) = folder(&[("config.toml", RECIPE)]);
        let summary = std::fs::File::create(folder.path().join("summary.json")).expect("a file");
        summary.set_len(MOST_BYTES + 1).expect("a size");
        let found = read_all(&[url]).expect("read");
        assert!(found.left_out[0].contains("no run writes more than"), "{:?}", found.left_out);
    }
}
