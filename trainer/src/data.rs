//! From the recipe's `[data]` to streams of rows.

pub(crate) mod calibrate;
pub mod filter;
pub mod survey;
pub mod synthesis;

use kernels::RowDtype;
use kernels::mesh::Place;
use kernels::ranks::Group;
use loader::synth::Spec;
use loader::{
    Cursor, Dataset, Dtype, OpenOptions, Partition, Positions, RowFilter, RowId, SkipList, Store, Stream, StreamOptions,
};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::ranks::together::together;
use crate::recipe::{self, Order, Recipe, Train};
use crate::schedule::Schedule;

/// In a run's folder, the manifest of the training data as the run first saw it, with the checksums of what it has read
/// since.
const TRAIN_MANIFEST: &str = "manifest-train.json";

/// The same of the held-out data.
const EVAL_MANIFEST: &str = "manifest-eval.json";

/// The data of a run, opened and checked.
#[derive(Debug)]
pub struct Data {
    /// What is trained on.
    pub train: Dataset,
    /// What is held out.
    pub eval: Option<Dataset>,
    /// Rows trained on: all that the order is made for, or `train.tokens`.
    pub rows: u64,
    /// Rows that the order is made for: `data.order_rows`, or those trained on.
    pub order_rows: u64,
    /// Their order.
    pub order: loader::Order,
    /// How they are read.
    pub reading: Reading,
}

/// What of a recipe decides how rows are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// `[data]`.
    pub data: recipe::Data,
    /// `train.batch`.
    pub batch: usize,
}

impl Reading {
    /// As `recipe` says.
    pub fn of(recipe: &Recipe) -> Self {
        Reading { data: recipe.data.clone(), batch: recipe.train.batch }
    }

    /// As it is by default, in batches of `batch` rows.
    pub fn plain(batch: usize) -> Self {
        Reading { data: recipe::Data::of_places(Vec::new()), batch }
    }

    /// The rows of `dataset` as stored, at most `limit` of them, less those that `filter` does not keep and those of `data.eval_skip`:
    /// what evaluation reads, as far as the rank at `place` brings them.
    ///
    /// # Errors
    /// Those of the loader; [`Error::Recipe`] when `data.eval_skip` names what is not there.
    pub fn eval_stream(
        &self,
        dataset: &Dataset,
        filter: RowFilter,
        place: Place,
        limit: Option<u64>,
    ) -> Result<Stream, Error> {
        let skip = skip_list(dataset, Skip::EVAL, &self.data)?;
        let options = StreamOptions { partition: partition(place), filter, skip, ..self.eval_options(limit) };
        Ok(Stream::start(dataset, options, Cursor::default())?)
    }

    /// How the rows of an evaluation are streamed, but for the filter.
    pub fn eval_options(&self, limit: Option<u64>) -> StreamOptions {
        StreamOptions {
            order: loader::Order::Sequential,
            batch: self.batch,
            limit,
            prefetch_bytes: self.data.prefetch_bytes.unwrap_or(0),
            threads: threads(&self.data),
            ..StreamOptions::default()
        }
    }
}

/// What of the data decides how much memory a run needs, and how many steps it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// `D`.
    pub width: usize,
    /// Stored format.
    pub dtype: Dtype,
    /// The order of the training rows.
    pub order: loader::Order,
    /// Rows trained on.
    pub rows: u64,
    /// Held-out rows, where there are any.
    pub eval_rows: Option<u64>,
    /// `train.batch`.
    pub batch: usize,
}

impl Extent {
    /// Of the rows that [`crate::data::synthesis`] makes of `spec`.
    ///
    /// # Errors
    /// [`Error::Recipe`] when `train.tokens` is more than there will be.
    pub fn of_synthetic(recipe: &Recipe, spec: &Spec) -> Result<Extent, Error> {
        let eval_rows = (!recipe.data.eval.is_empty()).then_some(recipe.data.synth_eval_rows);
        let Spec { width, dtype, .. } = *spec;
        // As good as shuffled.
        let (order, (_, rows)) = (order(&recipe.data, true), rows_of(recipe, spec.rows)?);
        Ok(Extent { width, dtype, order, rows, eval_rows, batch: recipe.train.batch })
    }

    /// Bytes of a stored row.
    pub fn row_bytes(&self) -> usize {
        self.width * self.dtype.size()
    }

    /// Rows of the largest batch: `train.batch`, or all there are.
    pub(crate) fn largest_batch(&self) -> usize {
        let rows = self.eval_rows.map_or(self.rows, |eval_rows| eval_rows.max(self.rows));
        self.batch.min(usize::try_from(rows).unwrap_or(usize::MAX)).max(1)
    }

    /// The run's schedules: its steps follow from rows and batch.
    pub fn schedule(&self, train: &Train) -> Schedule {
        let steps = self.rows.div_ceil(self.batch as u64);
        Schedule::new(steps, train.lr, train.l1, train.l1_warmup, train.lr_decay)
    }
}

/// The order that a recipe asks for, of rows that are shuffled already or not.
fn order(data: &recipe::Data, prepared: bool) -> loader::Order {
    match data.order {
        Order::Sequential => loader::Order::Sequential,
        Order::Striped => loader::Order::Striped,
        Order::Auto if prepared => loader::Order::Sequential,
        Order::Auto | Order::Direct => loader::Order::Direct { window_bytes: data.window_bytes },
    }
}

/// Of so many rows, those that the order is made for, and those of them that are trained on.
fn rows_of(recipe: &Recipe, rows: u64) -> Result<(u64, u64), Error> {
    let (tokens, order_rows, batch) = (recipe.train.tokens, recipe.data.order_rows, recipe.train.batch as u64);
    for (key, wanted) in [("data.order_rows", order_rows), ("train.tokens", tokens)] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted > rows) {
            return Err(Error::Recipe(format!(
                "{key} is {wanted}, but data.train has {rows} rows, and each is used once: bring more rows, or lower {key} (left out, it is all of \
                 them)"
            )));
        }
    }
    let Some(order_rows) = order_rows else {
        let rows = tokens.unwrap_or(rows);
        return Ok((rows, rows));
    };
    let tokens = tokens.unwrap_or(order_rows);
    if tokens > order_rows {
        return Err(Error::Recipe(format!(
            "train.tokens is {tokens}, more than the {order_rows} of data.order_rows: raise that, or leave it out"
        )));
    }
    if tokens < order_rows && !tokens.is_multiple_of(batch) {
        return Err(Error::Recipe(format!(
            "train.tokens is {tokens}, and with data.order_rows it takes whole batches of train.batch = {batch}: write {} or {}",
            (tokens / batch).max(1) * batch,
            ((tokens / batch + 1) * batch).min(order_rows)
        )));
    }
    Ok((order_rows, tokens))
}

impl Data {
    /// Opens the shards that the recipe names.
    ///
    /// `kept` is the folder of a run that goes on: the manifests in it hold for as long as it does, whatever is written
    /// beside the data meanwhile.
    ///
    /// # Errors
    /// Those of the loader; [`Error::Recipe`] when widths differ or `train.tokens` is more than there is.
    pub fn open(recipe: &Recipe, kept: Option<&Store>) -> Result<Data, Error> {
        let options = |manifest| OpenOptions {
            manifest: kept.map(|run| run.url_of(manifest)),
            column: recipe.data.column.clone(),
        };
        let train = Dataset::open(&recipe.data.train, &options(TRAIN_MANIFEST))?;
        let eval = match recipe.data.eval.as_slice() {
            [] => None,
            urls => Some(Dataset::open(urls, &options(EVAL_MANIFEST))?),
        };
        if let Some(eval) = eval.as_ref().filter(|eval| eval.width() != train.width()) {
            return Err(Error::Recipe(format!(
                "data.train has rows of width {} and data.eval of width {}: they must come from the same layer",
                train.width(),
                eval.width()
            )));
        }
        let filter = recipe.data.filter.without_medians();
        train.check_columns(&filter, &skip_list(&train, Skip::TRAIN, &recipe.data)?)?;
        if let Some(eval) = &eval {
            eval.check_columns(&filter, &skip_list(eval, Skip::EVAL, &recipe.data)?)?;
            check_held_out(&train, eval, kept.is_some())?;
        }
        Data::of(recipe, train, eval)
    }

    fn of(recipe: &Recipe, train: Dataset, eval: Option<Dataset>) -> Result<Data, Error> {
        let (order_rows, rows) = rows_of(recipe, train.rows())?;
        let order = order(&recipe.data, train.prepared());
        Ok(Data { train, eval, rows, order_rows, order, reading: Reading::of(recipe) })
    }

    /// Whether `recipe` has the same `[data]` and the same batch.
    pub fn is_that_of(&self, recipe: &Recipe) -> bool {
        self.reading == Reading::of(recipe)
    }

    /// The same shards for a recipe that names them too and differs in how it reads them, or in how many of their rows it trains on.
    ///
    /// # Errors
    /// [`Error::Recipe`] when these are more than there are.
    pub fn of_another(&self, recipe: &Recipe) -> Result<Data, Error> {
        Data::of(recipe, self.train.clone(), self.eval.clone())
    }

    /// As [`Data::open`], by all ranks of a run, which must see the same rows.
    ///
    /// # Errors
    /// Also [`Error::Data`] that names the ranks when they do not, and [`kernels::Error::Peer`].
    pub fn open_by_all(recipe: &Recipe, kept: Option<&Store>, ranks: &Group) -> Result<Data, Error> {
        let (data, came) = match Data::open(recipe, kept) {
            Ok(data) => {
                let seen = Seen { train: data.train.identity(), eval: data.eval_identity() };
                (Some(data), Ok(seen))
            }
            Err(error) => (None, Err(error)),
        };
        check_same(&together(ranks, "opening the data", came)?)?;
        Ok(data.expect("its error has been returned"))
    }

    /// How large it is.
    pub fn extent(&self) -> Extent {
        Extent {
            width: self.train.width(),
            dtype: self.train.dtype(),
            order: self.order,
            rows: self.rows,
            eval_rows: self.eval.as_ref().map(Dataset::rows),
            batch: self.reading.batch,
        }
    }

    /// The run's schedules.
    pub fn schedule(&self, train: &Train) -> Schedule {
        self.extent().schedule(train)
    }

    /// Identity of the held-out data, if there is any.
    pub fn eval_identity(&self) -> Option<String> {
        self.eval.as_ref().map(Dataset::identity)
    }

    /// Leaves in a run's folder the manifests of data that has none of its own, or had none when the run began: checksums
    /// of what was read so far fill in.
    ///
    /// # Errors
    /// Those of the store.
    pub fn keep_manifests(&self, run: &Store) -> Result<(), Error> {
        for (name, set) in [(TRAIN_MANIFEST, Some(&self.train)), (EVAL_MANIFEST, self.eval.as_ref())] {
            if let Some(set) = set
                && (!set.has_manifest() || run.head(name)?.is_some())
            {
                run.put(name, set.manifest().to_json())?;
            }
        }
        Ok(())
    }

    /// Which training rows the rank at `place` has in each batch.
    ///
    /// # Errors
    /// [`loader::Error::Cursor`] when `from` counts in other rows or another order.
    pub fn positions(&self, place: Place, from: &Cursor) -> Result<Positions, Error> {
        let options = StreamOptions { partition: partition(place), ..self.train_options()? };
        Ok(Stream::positions_from(&self.train, &options, from)?)
    }

    /// The training rows of the steps from `from` on and before `until` that the rank at `place` brings and `filter`, that of the recipe in
    /// norms, keeps.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn train_stream(&self, filter: RowFilter, place: Place, from: Cursor, until: u64) -> Result<Stream, Error> {
        let options =
            StreamOptions { partition: partition(place), filter, until: Some(until), ..self.train_options()? };
        Ok(Stream::start(&self.train, options, from)?)
    }

    /// The rows and row groups of `data.skip`.
    ///
    /// # Errors
    /// [`Error::Recipe`] when it names what is not there.
    pub fn skip(&self) -> Result<SkipList, Error> {
        skip_list(&self.train, Skip::TRAIN, &self.reading.data)
    }

    /// The rows and row groups of `data.eval_skip`.
    ///
    /// # Errors
    /// [`Error::Recipe`] when it names what is not there.
    pub fn eval_skip(&self) -> Result<SkipList, Error> {
        let list = |eval| skip_list(eval, Skip::EVAL, &self.reading.data);
        self.eval.as_ref().map_or_else(|| Ok(SkipList::default()), list)
    }

    /// How the training rows are streamed, but for the filter.
    ///
    /// # Errors
    /// [`Error::Recipe`] when `data.skip` names what is not there.
    pub fn train_options(&self) -> Result<StreamOptions, Error> {
        let Reading { data, batch } = &self.reading;
        Ok(StreamOptions {
            order: self.order,
            seed: data.seed,
            batch: *batch,
            limit: Some(self.order_rows),
            prefetch_bytes: data.prefetch_bytes.unwrap_or(0),
            threads: threads(data),
            skip: self.skip()?,
            ..StreamOptions::default()
        })
    }
}

/// Refuses held-out rows that are trained on. A run that goes on was begun with them, by a version that did not look.
fn check_held_out(train: &Dataset, eval: &Dataset, goes_on: bool) -> Result<(), Error> {
    if let (Some(of_train), Some(of_eval)) = (train.column(), eval.column())
        && of_train != of_eval
    {
        tracing::warn!(
            "data.train has its activations in the column {of_train} and data.eval in {of_eval}: they must come from the same layer"
        );
    }
    let Some((of_train, of_eval, by)) = train.shared_with(eval) else { return Ok(()) };
    let told = format!(
        "{of_train} of data.train and {of_eval} of data.eval are the same shard ({by}): rows that are trained on are not held out"
    );
    if goes_on {
        tracing::warn!("{told}: the run goes on as it began");
        return Ok(());
    }
    Err(Error::Data(format!("{told}: take it out of one of them")))
}

/// Identities of what a rank has opened.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    train: String,
    eval: Option<String>,
}

/// That all ranks have opened the same rows: a path may lead elsewhere on another machine.
fn check_same(seen: &[Seen]) -> Result<(), Error> {
    let Some((first, others)) = seen.split_first() else { return Ok(()) };
    let Some(other) = others.iter().find(|other| *other != first) else { return Ok(()) };
    let (key, one, another) = match other.train == first.train {
        true => ("data.eval", first.eval.as_deref(), other.eval.as_deref()),
        false => ("data.train", Some(&*first.train), Some(&*other.train)),
    };
    let ranks = |of: &Seen| {
        let ranks = seen.iter().enumerate().filter(|(_, seen)| *seen == of);
        ranks.map(|(rank, _)| rank.to_string()).collect::<Vec<_>>().join(", ")
    };
    Err(Error::Data(format!(
        "{key} is not the same on all ranks: it has the identity {} on rank {} and {} on rank {}: name shards that every rank \
         finds in one place, and compare the manifests with `sae inspect` there",
        one.unwrap_or("none"),
        ranks(first),
        another.unwrap_or("none"),
        ranks(other)
    )))
}

/// Ranks bring consecutive slices of a batch, so that those of a feature axis see consecutive ones.
fn partition(place: Place) -> Partition {
    Partition { index: place.rank as u64, count: place.mesh.ranks() as u64 }
}

/// Threads that read: `data.threads`, or as many as this machine has cores, up to 4.
pub(crate) fn threads(data: &recipe::Data) -> usize {
    let cores = || std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4));
    data.threads.unwrap_or_else(cores)
}

/// A list of rows that are left out.
struct Skip {
    /// Its key in the recipe.
    key: &'static str,
    /// The key of the shards that it speaks of.
    of: &'static str,
    entries: fn(&recipe::Data) -> &[String],
}

impl Skip {
    const TRAIN: Skip = Skip { key: "data.skip", of: "data.train", entries: |data| &data.skip };
    const EVAL: Skip = Skip { key: "data.eval_skip", of: "data.eval", entries: |data| &data.eval_skip };
}

/// Rows of a dataset that somebody has named: one, or those of a row group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRows {
    /// As they were named.
    pub name: String,
    /// Their shard.
    pub shard: u32,
    /// Their rows in the shard.
    pub rows: std::ops::Range<u64>,
    /// Their row group, where they are all of one.
    pub group: Option<u32>,
}

/// The rows that `names` of a `key` name in a dataset that is called `of`: `file.parquet:row` or `file.parquet#group`, of which the last
/// `:` or `#` counts, since the name may hold others.
///
/// # Errors
/// [`Error::Recipe`] when one names what is not there.
pub fn named_rows(dataset: &Dataset, names: &[String], (key, of): (&str, &str)) -> Result<Vec<NamedRows>, Error> {
    let find = |name: &String| {
        let at = name.rfind([':', '#'])?;
        let (path, number) = (&name[..at], name[at + 1..].parse::<u64>().ok()?);
        let shard = dataset.shards().iter().position(|shard| shard.path == path)?;
        let (found, is_row) = (&dataset.shards()[shard], name[at..].starts_with(':'));
        let (rows, group) = match is_row {
            true => ((number < found.rows).then_some(number..number + 1)?, None),
            false => {
                let group = usize::try_from(number).ok()?;
                let before: u64 = found.row_groups.get(..group)?.iter().map(|group| group.rows).sum();
                (before..before + found.row_groups.get(group)?.rows, Some(group as u32))
            }
        };
        Some(NamedRows { name: name.clone(), shard: shard as u32, rows, group })
    };
    let named = |name: &String| {
        find(name).ok_or_else(|| {
            Error::Recipe(format!(
                "{key}: \"{name}\" names no row of {of}: write file.parquet:row or file.parquet#group, with a file such as {}",
                dataset.shards().first().map_or("shard-00000.parquet", |shard| shard.path.as_str())
            ))
        })
    };
    names.iter().map(named).collect()
}

/// The list of named rows.
pub fn skip_list_of(named: &[NamedRows]) -> SkipList {
    let mut list = SkipList::default();
    for NamedRows { shard, rows, group, .. } in named {
        match group {
            Some(group) => list.add_row_group(*shard, *group),
            None => list.add_row(RowId { shard: *shard, row: rows.start }),
        }
    }
    list
}

fn skip_list(dataset: &Dataset, Skip { key, of, entries }: Skip, data: &recipe::Data) -> Result<SkipList, Error> {
    Ok(skip_list_of(&named_rows(dataset, entries(data), (key, of))?))
}

/// The loader's dtype as the device names it: the two crates know nothing of each other.
pub fn row_dtype(dtype: Dtype) -> RowDtype {
    match dtype {
        Dtype::F32 => RowDtype::F32,
        Dtype::F16 => RowDtype::F16,
        Dtype::Bf16 => RowDtype::Bf16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_see_other_rows_are_named() {
        let seen = |train: &str, eval: Option<&str>| Seen { train: train.to_owned(), eval: eval.map(str::to_owned) };
        let told = |seen: &[Seen]| check_same(seen).err().map(|error| error.to_string());
        assert_eq!(told(&[seen("a", None), seen("a", None)]), None);
        let train = told(&[seen("a", None), seen("b", None), seen("a", None), seen("b", None)]).expect("refused");
        assert!(train.contains("identity a on rank 0, 2 and b on rank 1, 3"), "{train}");
        let eval = told(&[seen("a", Some("x")), seen("a", None)]).expect("refused");
        assert!(eval.starts_with("data.eval") && eval.contains("identity x on rank 0 and none on rank 1"), "{eval}");
    }
}
