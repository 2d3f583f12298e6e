//! The synthetic shards that `[data.synth]` asks for: whether there are some to be made, and their making.
//!
//! In each folder synth.json, which says what the rows are made from, is written first and manifest.json last. So with both the shards are
//! whole; with synth.json alone they are the rest of a start that was interrupted, and only then may anything be removed; with the manifest
//! alone they are somebody's own, which `[data.synth]` leaves as they are.

use loader::synth::{self, Spec};
use loader::{Store, is_shard_name};

use crate::Error;
use crate::data::threads;
use crate::recipe::Recipe;

/// The file beside synthetic shards that says what they were made from.
const SPEC: &str = "synth.json";

/// Shards that are yet to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Making<'a> {
    /// The key that names their place.
    pub key: &'static str,
    /// Their place.
    pub url: &'a str,
    /// What they are made from.
    pub spec: Spec,
    /// Bytes that an interrupted start has left there, which go.
    pub left_behind: u64,
}

impl Making<'_> {
    /// Bytes of the rows and of the true directions: what is written is a little more.
    pub fn bytes(&self) -> u64 {
        let Spec { rows, width, features, dtype, .. } = self.spec;
        let rows = rows.saturating_mul((width * dtype.size()) as u64);
        rows.saturating_add((features * (4 * width + 24)) as u64)
    }
}

/// The rows that `[data.synth]` asks for and that are yet to be made: nothing where the recipe has none, or names shards of one's own.
///
/// # Errors
/// [`Error::Recipe`] and those of the loader when they cannot be made as asked for, or what lies there is something else;
/// [`Error::Data`] when the recipe asks for columns that they do not have.
pub fn to_make(recipe: &Recipe) -> Result<Vec<Making<'_>>, Error> {
    let (Some(spec), Some(train)) = (&recipe.data.synth, recipe.data.train.first()) else { return Ok(Vec::new()) };
    spec.validate()?;
    let train = match look("data.train", train, spec.clone())? {
        Place::Own => {
            tracing::info!("{train} holds shards of its own: [data.synth] makes none");
            return Ok(Vec::new());
        }
        Place::Made => None,
        Place::Open(making) => Some(making),
    };
    let eval_rows = recipe.data.synth_eval_rows;
    let eval = Spec { set: spec.set + 1, rows: eval_rows, shards: 1, ..spec.clone() };
    let eval = match recipe.data.eval.first() {
        Some(_) if eval_rows == 0 => {
            return Err(Error::Recipe("data.synth_eval_rows must be at least 1, and is 0".to_owned()));
        }
        Some(url) => match look("data.eval", url, eval)? {
            Place::Open(making) => Some(making),
            Place::Own | Place::Made => None,
        },
        None => None,
    };
    let making: Vec<_> = train.into_iter().chain(eval).collect();
    if !making.is_empty() {
        check_columns(recipe)?;
    }
    Ok(making)
}

/// Makes them. `progress` hears of which key rows were written, how many so far, and how many there will be.
///
/// # Errors
/// Those of the loader.
pub fn make(
    recipe: &Recipe,
    making: &[Making<'_>],
    progress: &mut dyn FnMut(&'static str, u64, u64),
) -> Result<(), Error> {
    for Making { key, url, spec, .. } in making {
        let store = Store::open(url)?;
        if store.head(SPEC)?.is_some() {
            tidy(&store)?;
        }
        let json = serde_json::to_vec_pretty(spec).map_err(|error| Error::Internal(error.into()))?;
        store.put(SPEC, json)?;
        synth::write(spec, &store, threads(&recipe.data), &mut |rows| progress(key, rows, spec.rows))?;
    }
    Ok(())
}

/// Removes half-written files of a making that stops here: the process ends without tidying up.
///
/// # Errors
/// Those of the store.
pub fn forget_unfinished(making: &[Making<'_>]) -> Result<(), Error> {
    Ok(making.iter().try_for_each(|making| Store::open(making.url)?.forget_unfinished())?)
}

/// Removes what an interrupted start has left, half-written files too: nobody else writes here.
fn tidy(store: &Store) -> Result<(), Error> {
    store.forget_unfinished()?;
    Ok(store.list("")?.into_iter().filter(|entry| entry.key != SPEC).try_for_each(|entry| store.delete(&entry.key))?)
}

/// What a place holds.
enum Place<'a> {
    /// Whole shards of this spec.
    Made,
    /// Whole shards that were not made for a recipe.
    Own,
    /// Nothing, or the rest of an interrupted start.
    Open(Making<'a>),
}

fn look<'a>(key: &'static str, url: &'a str, spec: Spec) -> Result<Place<'a>, Error> {
    let store = Store::open(url)?;
    let made = match store.get(SPEC) {
        Ok(bytes) => Some(serde_json::from_slice::<Spec>(&bytes).ok()),
        Err(loader::Error::NotFound { .. }) => None,
        Err(other) => return Err(other.into()),
    };
    let whole = store.head(loader::MANIFEST)?.is_some();
    // A server without listing is written to by nobody.
    let entries = if whole || !store.lists() { Vec::new() } else { store.list("")? };
    let has_shards = entries.iter().any(|entry| is_shard_name(&entry.key));
    match made {
        Some(Some(made)) if made != spec && (whole || has_shards) => Err(Error::Recipe(format!(
            "{key}: {url} holds synthetic rows of another [data.synth] ({} directions, width {}, {} rows, …): name another \
             folder, or delete that one",
            made.features, made.width, made.rows
        ))),
        Some(None) if !whole && has_shards => Err(Error::Recipe(format!(
            "{key}: {url} holds shards and a {SPEC} that this version cannot read: name another folder, or delete that one"
        ))),
        Some(_) if whole => Ok(Place::Made),
        None if whole => Ok(Place::Own),
        None if has_shards => Err(Error::Recipe(format!(
            "{key}: {url} already holds shards, of which no {} says what they are: leave [data.synth] out to train on them, or name an \
             empty folder",
            loader::MANIFEST
        ))),
        made => {
            let left_behind = if made.is_some() { entries.iter().map(|entry| entry.size).sum() } else { 0 };
            Ok(Place::Open(Making { key, url, spec, left_behind }))
        }
    }
}

/// That the recipe asks for no column which synthetic rows do not have.
fn check_columns(recipe: &Recipe) -> Result<(), Error> {
    let filter = &recipe.data.filter;
    let asked =
        [("data.filter.positions", "pos", &filter.positions), ("data.filter.token_ids", "token_id", &filter.token_ids)];
    if let Some((key, column, _)) = asked.into_iter().find(|(.., values)| !values.is_empty()) {
        return Err(Error::Data(format!(
            "{key} needs the column {column}, which the rows of [data.synth] do not have: leave it out"
        )));
    }
    match recipe.data.column.as_deref() {
        Some(column) if column != synth::COLUMN => Err(Error::Data(format!(
            "data.column is {column}, and the rows of [data.synth] are in the column {}: leave it out",
            synth::COLUMN
        ))),
        _ => Ok(()),
    }
}
