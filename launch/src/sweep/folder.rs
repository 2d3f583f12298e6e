//! The folder of a sweep.
//!
//! | key | what it is |
//! |---|---|
//! | `sweep.toml` | the sweep as it was first submitted, with its base recipe, and points in place of presets |
//! | `data.json` | the identity of its data, where they are those of the base recipe |
//! | `configurations/ID.toml` | the recipe of each configuration that was ever submitted |
//! | `ID/` | its run folder, from its start on |
//! | `claims/ID/OWNER.json` | who trains it: see `claim.rs` |
//! | `done/ID.json` | its summary, from its end on: so it is known when its run folder is gone |
//!
//! Each is written whole and never changed but for claims, so one that comes later adds to what is there.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::HumanCount;
use loader::{Entry, Store};
use serde::{Deserialize, Serialize};
use trainer::Exit;
use trainer::note::{self, Note};
use trainer::recipe::Recipe;

use super::claim::{self, CLAIMS};
use super::id::{self, Identities};
use super::spec::Spec;
use crate::failure::Failure;
use crate::runs::at_once;

const SWEEP: &str = "sweep.toml";
const DATA: &str = "data.json";
const CONFIGURATIONS: &str = "configurations";
const DONE: &str = "done";

/// Bytes of sweep.toml and of a configuration, at most.
const MOST_BYTES: u64 = 16 << 20;

/// A configuration.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// What distinguishes it from others.
    pub id: String,
    /// Its recipe, with `run.dir` at its own folder.
    pub recipe: Recipe,
}

impl Configuration {
    /// What it takes, up to a factor that is the same for all of one width: features times rows.
    pub fn work(&self) -> f64 {
        // One without tokens of its own is trained on all rows of the order, which each configuration has.
        let rows = self.recipe.train.tokens.or(self.recipe.data.order_rows);
        self.recipe.sae.features as f64 * rows.unwrap_or(0) as f64
    }
}

/// What became of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody trains it.
    Pending,
    /// Somebody does.
    Running,
    /// It has its summary.
    Done,
    /// It ended with an error.
    Failed,
    /// It ended with NaN or infinity.
    Diverged,
}

impl State {
    /// All, in the order in which they are counted.
    pub const ALL: [State; 5] = [State::Pending, State::Running, State::Done, State::Failed, State::Diverged];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
            State::Diverged => "diverged",
        }
    }
}

/// What lies in the folder for one configuration.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Its recipe.
    pub is_submitted: bool,
    /// A run was begun.
    pub is_begun: bool,
    /// The run has come to its end.
    pub has_summary: bool,
    /// It was done once.
    pub was_done: bool,
    /// Ranks that left a note of how they failed.
    pub notes: Vec<String>,
    /// Who trains it, or did.
    pub claims: Vec<Entry>,
}

/// The folder of a sweep.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The folder.
    pub store: Store,
}

/// Content of data.json: the identities of what the base recipe names. What configurations set for themselves is in their ids.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    train: Option<String>,
    eval: Option<String>,
}

impl Kept {
    fn of(spec: &Spec, data: &mut Identities) -> Result<Kept, Failure> {
        let mut of = |recipe: &Option<Recipe>| recipe.as_ref().map(|recipe| data.of(recipe)).transpose();
        let (train, eval) = (of(&spec.on_base_train)?, of(&spec.on_base_eval)?);
        Ok(Kept { train: train.map(|data| data.train), eval: eval.map(|data| data.eval) })
    }
}

impl Folder {
    /// The folder at a path or URL.
    ///
    /// # Errors
    /// Those of the address.
    pub fn open(dir: &str) -> Result<Folder, Failure> {
        let store = Store::open(dir)?;
        if !store.lists() {
            return Err(Failure::arguments(format!(
                "{dir}: a sweep lies in a folder or a bucket: this server says not what it holds"
            )));
        }
        Ok(Folder { store })
    }

    /// That the sweep which lies here, if there is one, has the same base recipe.
    ///
    /// # Errors
    /// [`Exit::Arguments`] that shows what differs.
    pub fn check(&self, spec: &Spec) -> Result<(), Failure> {
        let Some(kept) = self.get(SWEEP)? else { return Ok(()) };
        let differing = spec.differs(&kept).map_err(|problem| {
            Failure::data(format!("{}: cannot be read, by this version at least: {problem}", self.store.url_of(SWEEP)))
        })?;
        if differing.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = differing
            .iter()
            .map(|differing| {
                format!("  {}: it has {}, the recipe says {}", differing.key, differing.then, differing.now)
            })
            .collect();
        Err(Failure::arguments(format!(
            "{} holds a sweep of another base recipe; these keys decide its results:\n{}\nset them back, make axes of them, or name another \
             dir. Nothing was changed",
            self.store.url(),
            lines.join("\n")
        )))
    }

    /// The configurations of a sweep, whose data are there, with their ids.
    ///
    /// # Errors
    /// Those of opening the data; [`Exit::Arguments`] where two differ in nothing that decides results, or one wants more rows than there are.
    pub fn configurations(&self, spec: &Spec, data: &mut Identities) -> Result<Vec<Configuration>, Failure> {
        let mut known: BTreeMap<String, Recipe> = BTreeMap::new();
        let mut configurations = Vec::new();
        for recipe in &spec.configurations {
            let data = data.of(recipe)?;
            check_rows(recipe, data.rows)?;
            let recipe = &with_one_order(recipe, data.rows);
            let id = id::id(recipe, &data);
            if let Some(same) = known.insert(id.clone(), recipe.clone()) {
                let (now, then) = (recipe.keys(), same.keys());
                let differing: Vec<&str> = now
                    .iter()
                    .filter(|(key, value)| then.get(*key) != Some(*value))
                    .map(|(key, _)| key.as_str())
                    .collect();
                return Err(Failure::arguments(format!(
                    "two configurations differ in {} alone, by which they are not told apart: leave it out of the axes and points",
                    differing.join(", ")
                )));
            }
            let mut recipe = recipe.clone();
            recipe.run.dir = self.store.url_of(&id);
            configurations.push(Configuration { id, recipe });
        }
        Ok(configurations)
    }

    /// All configurations that were ever submitted here.
    ///
    /// # Errors
    /// [`Exit::Data`] where there are none, or none can be read; those of the store.
    pub fn submitted(&self) -> Result<Vec<Configuration>, Failure> {
        let files = self.look()?;
        let ids: Vec<&String> = files.iter().filter(|(_, files)| files.is_submitted).map(|(id, _)| id).collect();
        if ids.is_empty() {
            return Err(self.has_no_sweep());
        }
        let (mut found, mut unread) = (Vec::new(), None);
        for read in at_once(&ids, |id| self.configuration(id))? {
            match read {
                Ok(configuration) => found.extend(configuration),
                Err(failure) if failure.is_of_data() => {
                    tracing::warn!("left out: {}", failure.message());
                    unread = Some(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        unread.filter(|_| found.is_empty()).map_or(Ok(found), Err)
    }

    /// What to say where nothing was submitted.
    pub fn has_no_sweep(&self) -> Failure {
        Failure::data(format!(
            "{}: no sweep is there: sae sweep SWEEP.toml begins one, in the folder that it names",
            self.store.url()
        ))
    }

    /// That configurations which are not done would be trained on what they were submitted for.
    ///
    /// # Errors
    /// [`Exit::Arguments`] that names one which would not; those of opening the data and of the store.
    pub fn check_submitted(&self, submitted: &[Configuration], data: &mut Identities) -> Result<(), Failure> {
        let files = self.look()?;
        let is_left = |one: &&Configuration| files.get(&one.id).is_none_or(|files| !files.has_summary);
        for Configuration { id, recipe } in submitted.iter().filter(is_left) {
            if id::id(recipe, &data.of(recipe)?) != *id {
                return Err(Failure::arguments(format!(
                    "{}: its data, or the version of this program, are not those of {id} when it was submitted: put back what was there, or \
                     submit the sweep's file again, with another dir. Nothing was changed",
                    self.store.url()
                )));
            }
        }
        Ok(())
    }

    /// Leaves the sweep in its folder: what is there already stays as it is.
    ///
    /// # Errors
    /// [`Exit::Arguments`] where the folder has a sweep of another base recipe or on other data; those of the store.
    pub fn submit(&self, spec: &Spec, configurations: &[Configuration], data: &mut Identities) -> Result<(), Failure> {
        self.store.put_new(SWEEP, spec.to_toml().into_bytes())?;
        // Another may have been faster.
        self.check(spec)?;
        let kept = serde_json::to_vec_pretty(&Kept::of(spec, data)?);
        self.store.put_new(DATA, kept.map_err(|error| trainer::Error::Internal(error.into()))?)?;
        self.check_data(spec, data)?;
        let there = self.look()?;
        for Configuration { id, recipe } in configurations {
            // Rows that are left out are no part of an id, and become more.
            let is_kept = there.get(id).is_some_and(|files| files.is_submitted)
                && (recipe.data.skip.is_empty() || self.keeps_skip(id, recipe)?);
            if is_kept {
                continue;
            }
            self.store.put(&format!("{CONFIGURATIONS}/{id}.toml"), recipe.to_toml().into_bytes())?;
        }
        Ok(())
    }

    /// Whether a configuration was submitted with the rows that are left out now. What cannot be read is written again.
    fn keeps_skip(&self, id: &str, recipe: &Recipe) -> Result<bool, Failure> {
        match self.configuration(id) {
            Ok(kept) => Ok(kept.is_some_and(|kept| kept.recipe.data.skip == recipe.data.skip)),
            Err(failure) if failure.is_of_data() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// That the sweep which lies here, if there is one, was begun on the same data.
    ///
    /// # Errors
    /// [`Exit::Arguments`] that shows what differs; those of opening the data.
    pub fn check_data(&self, spec: &Spec, data: &mut Identities) -> Result<(), Failure> {
        let now = Kept::of(spec, data)?;
        let Some(kept) = self.get(DATA)?.and_then(|text| serde_json::from_str::<Kept>(&text).ok()) else {
            return Ok(());
        };
        for (key, then, now) in [("data.train", kept.train, &now.train), ("data.eval", kept.eval, &now.eval)] {
            if let (Some(then), Some(now)) = (then, now)
                && then != *now
            {
                return Err(Failure::arguments(format!(
                    "{}: {key} is not what the sweep was begun on: it had the identity {then} and has {now} (a manifest that sae inspect \
                     has written since adds checksums to it): put back what was there, or name another dir. Nothing was changed",
                    self.store.url()
                )));
            }
        }
        Ok(())
    }

    /// What lies here, by configuration: those that were submitted, and any others of which there is something.
    ///
    /// # Errors
    /// Those of the store.
    pub fn look(&self) -> Result<BTreeMap<String, Files>, Failure> {
        let mut found: BTreeMap<String, Files> = BTreeMap::new();
        for entry in self.store.list("")? {
            let Some((folder, rest)) = entry.key.split_once('/') else { continue };
            let (id, rest) = match folder {
                CONFIGURATIONS => (rest.strip_suffix(".toml"), CONFIGURATIONS),
                DONE => (rest.strip_suffix(".json"), DONE),
                CLAIMS => (claim::parse(&entry.key).map(|(id, _)| id), CLAIMS),
                id => (Some(id), rest),
            };
            let Some(id) = id.filter(|id| id::is_id(id)) else { continue };
            let (id, rest) = (id.to_owned(), rest.to_owned());
            let files = found.entry(id).or_default();
            match rest.as_str() {
                CONFIGURATIONS => files.is_submitted = true,
                DONE => files.was_done = true,
                CLAIMS => files.claims.push(entry),
                "config.toml" => files.is_begun = true,
                "summary.json" => files.has_summary = true,
                name if note::is_note(name) => files.notes.push(rest),
                _ => {}
            }
        }
        Ok(found)
    }

    /// A configuration that was submitted by anybody.
    ///
    /// # Errors
    /// Those of the store; [`Exit::Data`] when its recipe cannot be read.
    pub fn configuration(&self, id: &str) -> Result<Option<Configuration>, Failure> {
        let key = format!("{CONFIGURATIONS}/{id}.toml");
        let Some(text) = self.get(&key)? else { return Ok(None) };
        let mut recipe: Recipe = toml::from_str(&text).map_err(|error| {
            Failure::data(format!(
                "{}: cannot be read, by this version at least: {}",
                self.store.url_of(&key),
                error.message()
            ))
        })?;
        // The folder may be named from elsewhere, or have been moved.
        recipe.run.dir = self.store.url_of(id);
        Ok(Some(Configuration { id: id.to_owned(), recipe }))
    }

    /// The folder of a run.
    ///
    /// # Errors
    /// Those of the store.
    pub fn run(&self, id: &str) -> Result<Store, Failure> {
        Ok(self.store.join(id)?)
    }

    /// Keeps the summary of a run that is done, besides the one in its folder.
    ///
    /// # Errors
    /// Those of the store.
    pub fn keep_summary(&self, id: &str, summary: Vec<u8>) -> Result<(), Failure> {
        Ok(self.store.put(&format!("{DONE}/{id}.json"), summary)?)
    }

    /// How a run ended that has left notes: the rank that failed by itself speaks.
    ///
    /// # Errors
    /// Those of the store.
    pub fn note(&self, id: &str, files: &Files) -> Result<Option<Note>, Failure> {
        let mut first: Option<Note> = None;
        for name in &files.notes {
            let text = self.get(&format!("{id}/{name}"))?;
            let Some(note) = text.and_then(|text| serde_json::from_str::<Note>(&text).ok()) else { continue };
            if first.is_none() || note.peer.is_none() {
                first = Some(note);
            }
        }
        Ok(first)
    }

    /// Removes the notes of how a run failed, so that it is pending again.
    ///
    /// # Errors
    /// Those of the store.
    pub fn forget_failure(&self, id: &str) -> Result<(), Failure> {
        let run = self.run(id)?;
        for entry in run.list("")?.iter().filter(|entry| note::is_note(&entry.key)) {
            run.delete(&entry.key)?;
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<String>, Failure> {
        let Some(entry) = self.store.head(key)? else { return Ok(None) };
        if entry.size > MOST_BYTES {
            return Err(Failure::data(format!(
                "{}: has {} bytes: no sweep writes that",
                self.store.url_of(key),
                entry.size
            )));
        }
        match self.store.get(key) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(loader::Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }
}

/// The state that a note speaks of.
pub fn state_of(note: &Note) -> State {
    if note.exit_code == Exit::Divergence.code() { State::Diverged } else { State::Failed }
}

/// The keys in which configurations differ.
pub fn varying(configurations: &[Configuration]) -> Vec<String> {
    let all: Vec<BTreeMap<String, String>> = configurations.iter().map(|one| one.recipe.keys()).collect();
    let keys: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let differs = |key: &&String| all.iter().any(|own| own.get(*key) != all[0].get(*key));
    keys.into_iter().filter(|key| *key != "run.dir").filter(differs).cloned().collect()
}

/// A run is one pass: refuses one of more rows than there are, before others of its sweep are trained for hours.
fn check_rows(recipe: &Recipe, rows: u64) -> Result<(), Failure> {
    let wanted = recipe.train.tokens.max(recipe.data.order_rows).unwrap_or(0);
    if wanted <= rows {
        return Ok(());
    }
    Err(Failure::arguments(format!(
        "a configuration of {} features wants {} rows, and {} has {}: a run is one pass, so bring more rows, or take smaller budgets or \
         fewer tokens. Nothing was changed",
        HumanCount(recipe.sae.features as u64),
        HumanCount(wanted),
        recipe.data.train.join(", "),
        HumanCount(rows)
    )))
}

/// With an order of all rows, of which each configuration takes the first: so those of different lengths share a stream, and another that is
/// added later sees the same rows. One that ends inside a batch has an order of its own.
pub fn with_one_order(recipe: &Recipe, rows: u64) -> Recipe {
    let mut recipe = recipe.clone();
    let whole = |tokens: u64| tokens == rows || tokens.is_multiple_of(recipe.train.batch as u64);
    if recipe.train.tokens.is_none_or(whole) {
        recipe.data.order_rows.get_or_insert(rows);
    }
    recipe
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that are trained on all rows have a size too: by it the largest begins, and the time is known that is left.
    #[test]
    fn work_is_features_times_rows() {
        let text = "data = { train = 'a' }\nsae.features = 100\nrun.dir = 'x'\n[train]\nbatch = 10\n";
        for (tokens, work) in [("", 90_000.0), ("tokens = 50", 5000.0)] {
            let recipe: Recipe = toml::from_str(&format!("{text}{tokens}")).expect("a recipe");
            let one = Configuration { id: String::new(), recipe: with_one_order(&recipe, 900) };
            assert_eq!(one.work(), work, "{tokens}");
        }
    }
}
