//! What a source holds, found out before anything is read or written: files, rows, columns, and the parts that they are cut into.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use loader::parts::Plan;
use loader::{ColumnType, Dtype, Error, ExtraColumn, Result, Source, Store, WriteOptions};
use serde_json::{Value, json};
use tensors::{File, flaw};
use xxhash_rust::xxh3::Xxh3;

use crate::files::{self, Found};
use crate::finite::NonFinite;
use crate::format::{self, Format};
use crate::numbers::kept_as;
use crate::unit::{Choice, Contents, Shape, Unit, column_name};
use crate::{apart, arrow, npy, parquet, safetensors, torch};

/// Files that are looked into at the same time.
const THREADS: usize = 16;
/// Files that a plan names: of more it has a hash alone.
const NAMED: usize = 100;

/// How a source is read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its format, where it cannot be guessed or is guessed wrong.
    pub from: Option<Format>,
    /// The tensor or column of activations, where several could be meant.
    pub name: Option<String>,
    /// What comes along with the rows, by name; all that can when absent.
    pub columns: Option<Vec<String>>,
    /// Of vLLM's hidden states of several layers the place of one among them, from 0 on.
    pub layer: Option<u64>,
    /// The format of the shards; that of the source when absent (f64 becomes f32).
    pub dtype: Option<Dtype>,
    /// Bytes of a part, about: what is lost when a worker dies, and the size of a shard.
    pub part_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { from: None, name: None, columns: None, layer: None, dtype: None, part_bytes: 256 << 20 }
    }
}

/// Records of a unit that belong to a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) unit: usize,
    pub(crate) records: Range<u64>,
    /// The number of the unit's first record among all.
    pub(crate) first_record: u64,
}

/// A source that was looked into.
#[derive(Debug)]
pub struct Survey {
    format: Format,
    /// What was named, a file or a folder.
    url: String,
    folder: Option<Store>,
    pub(crate) files: Vec<File>,
    pub(crate) shape: Shape,
    pub(crate) units: Vec<Unit>,
    pub(crate) parts: Vec<Vec<Slice>>,
    dtype: Dtype,
    options: Options,
    identity: String,
    ignored: usize,
}

/// Why a source cannot be surveyed.
#[derive(Debug)]
pub enum Refusal {
    /// Its format cannot be guessed, for this reason: the caller has to name one.
    Format(String),
    /// Anything else.
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Error(error)
    }
}

impl Survey {
    /// Looks into a file or folder, by path or URL.
    ///
    /// # Errors
    /// [`Error::Data`] for files that are damaged, lie about themselves or do not fit together; [`Error::Arguments`] for options that do not fit the
    /// format; those of the store.
    pub fn of(source: &str, options: Options) -> std::result::Result<Survey, Refusal> {
        let found = files::find(source)?;
        let named = Store::open(source)?;
        // A file is found in the folder around it.
        let is_folder = found.store.url() == named.url();
        let url = named.url().to_string();
        format::refuse_archives(&found)?;
        let format = match options.from {
            Some(format) => format,
            None => format::guess(&found, &url)?.map_err(Refusal::Format)?,
        };
        if options.layer.is_some() && format != Format::Vllm {
            return Err(Error::Arguments(format!(
                "a layer is chosen by its place in vLLM's hidden states alone, not in {}",
                format.name()
            ))
            .into());
        }
        if options.name.is_some() && format == Format::Npy {
            return Err(
                Error::Arguments("an .npy file holds one array without a name: none can be chosen".into()).into()
            );
        }
        let (all, bionemo) = (found.files.len(), parquet::bionemo(&found)?);
        let files = of_format(found, format, &url)?;
        apart::refuse_twice(&files)?;
        let ignored = all - files.len();
        let survey = Survey::looked_into(url, is_folder.then_some(named), format, files, options, ignored)?;
        if format == Format::Bionemo {
            let url = &survey.url;
            let metadata = bionemo.ok_or_else(|| {
                flaw(url, "is no store of BioNeMo's: it has no metadata.json with n_samples, hidden_dim and n_shards (as Parquet it may be read)")
            })?;
            metadata.check(url, survey.files.len() as u64, survey.rows(), survey.shape.width)?;
        }
        Ok(survey)
    }

    fn looked_into(
        url: String,
        folder: Option<Store>,
        format: Format,
        files: Vec<File>,
        options: Options,
        ignored: usize,
    ) -> Result<Survey> {
        let look = |file: &File| -> Result<(Contents, u64)> {
            let mut hash = Xxh3::new();
            files::identify(file, &mut hash)?;
            Ok((contents(file, format, &options)?, hash.digest()))
        };
        let looked = each(&files, look)?;
        let mut identity = Xxh3::new();
        let (mut first, mut units): (Option<(usize, Shape)>, Vec<Unit>) = (None, Vec::new());
        for (i, (contents, hash)) in looked.into_iter().enumerate() {
            identity.update(&hash.to_le_bytes());
            match (contents.shape, &first) {
                (Some(shape), Some((of, other))) => same(&files[i], &shape, &files[*of], other)?,
                (Some(shape), None) => first = Some((i, shape)),
                (None, _) => {}
            }
            units.extend(contents.units.into_iter().map(|unit| Unit { file: i, ..unit }));
        }
        let Some((_, shape)) = first.filter(|_| units.iter().any(|unit| unit.rows > 0)) else {
            return Err(flaw(&url, format!("no rows in {} files", files.len())));
        };
        for wanted in options.columns.iter().flatten() {
            let known = |column: &&ExtraColumn| column.name == *wanted || column.name == column_name(wanted);
            if shape.columns.iter().find(known).is_none() {
                let names: Vec<&str> = shape.columns.iter().map(|column| column.name.as_str()).collect();
                return Err(Error::Arguments(format!(
                    "{url}: no column {wanted} comes along with its rows; of those that were chosen there are [{}]",
                    names.join(", ")
                )));
            }
        }
        let kept = kept_as(shape.number).unwrap_or(Dtype::F32);
        let dtype = options.dtype.unwrap_or(kept);
        let parts = cut(&units, shape.width * dtype.size() as u64, options.part_bytes.max(1));
        let identity = format!("{:032x}", identity.digest128());
        Ok(Survey { format, url, folder, files, shape, units, parts, dtype, options, identity, ignored })
    }

    /// The format of the source.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Files beside them that are not read.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// Two files of which the first is read before the second, though the number in its name is higher.
    pub fn out_of_number(&self) -> Option<(&str, &str)> {
        files::out_of_number(&self.files)
    }

    /// Rows in all.
    pub fn rows(&self) -> u64 {
        self.units.iter().map(|unit| unit.rows).sum()
    }

    /// Contexts in all, where records are contexts.
    pub fn contexts(&self) -> Option<u64> {
        self.shape.contexts.then(|| self.units.iter().fold(0u64, |sum, unit| sum.saturating_add(unit.records)))
    }

    /// Numbers per row.
    pub fn width(&self) -> usize {
        self.shape.width as usize
    }

    /// The format of the shards.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Whether f64 is narrowed to f32.
    pub fn is_narrowed(&self) -> bool {
        self.shape.is_double && self.dtype == Dtype::F32
    }

    /// The tensor or column of activations, where it has a name.
    pub fn name(&self) -> Option<&str> {
        self.shape.name.as_deref()
    }

    /// Tensors and columns that do not come along, by name.
    pub fn left_out(&self) -> &[String] {
        &self.shape.left_out
    }

    /// How many parts there will be.
    pub fn parts(&self) -> u64 {
        self.parts.len() as u64
    }

    /// Rows of a part.
    pub fn rows_of(&self, part: u64) -> u64 {
        let rows = |slice: &Slice| {
            let unit = &self.units[slice.unit];
            let records = slice.records.end - slice.records.start;
            // Of lists of several lengths it is their mean.
            (u128::from(unit.rows) * u128::from(records) / u128::from(unit.records.max(1))) as u64
        };
        self.parts.get(part as usize).map_or(0, |slices| slices.iter().map(rows).sum())
    }

    /// Columns beside the activations.
    pub fn columns(&self) -> Vec<ExtraColumn> {
        let own = [("context_id", ColumnType::U64), ("pos", ColumnType::I32)];
        let own = own.into_iter().filter(|(name, _)| self.makes(name)).map(|(name, kind)| ExtraColumn::new(name, kind));
        own.chain(self.shape.columns.iter().cloned()).collect()
    }

    /// Whether a column follows from where rows lie; the source's own go before.
    pub(crate) fn makes(&self, name: &str) -> bool {
        self.shape.contexts && self.shape.columns.iter().all(|column| column.name != name)
    }

    /// A row as messages call it: by its number in its file, or by that of its context and its place there. `record` is counted from the
    /// beginning of a unit.
    pub(crate) fn row_name(&self, unit: usize, record: u64, pos: Option<i32>) -> String {
        let before = self.units[..unit].iter().rev().take_while(|before| before.file == self.units[unit].file);
        let number = before.fold(record, |number, unit| number.saturating_add(unit.records));
        match pos {
            Some(pos) => format!("row {pos} of context {number}"),
            None => format!("row {number}"),
        }
    }

    /// Refuses an output that lies in the source.
    pub(crate) fn refuse_inside(&self, out: &Store) -> Result<()> {
        self.folder.as_ref().map_or(Ok(()), |folder| apart::refuse_inside(folder, out))
    }

    /// What decides the bytes of the shards.
    pub fn plan(&self) -> Plan {
        let what = json!({
            "command": "ingest",
            "from": self.format.name(),
            "name": self.shape.name,
            "layer": self.options.layer,
            "part_bytes": self.options.part_bytes,
            "source": {
                "identity": self.identity,
                "files": self.files.len(),
                "rows": self.rows(),
                "first_files": self.files.iter().take(NAMED).map(|file| json!([file.key(), file.size()])).collect::<Vec<_>>(),
            },
        });
        let options = WriteOptions { columns: self.columns(), ..WriteOptions::new(self.width(), self.dtype) };
        let what = if let Value::Object(what) = what { what } else { Source::new() };
        Plan { what, folders: BTreeMap::from([(String::new(), options)]) }
    }

    /// What the manifest says of where the rows come from, and what is known of them.
    pub(crate) fn source(&self, non_finite: &NonFinite) -> Source {
        let mut source = Source::new();
        let mut say = |key: &str, value: Value| drop(source.insert(key.into(), value));
        say("tool", "sae ingest".into());
        say("format", self.format.name().into());
        say("files", self.files.len().into());
        if let Some(name) = &self.shape.name {
            say("tensor", name.as_str().into());
            // SAELens' cache names its column by the hook.
            if name.starts_with("blocks.") && name.contains(".hook_") {
                say("hook_name", name.as_str().into());
            }
        }
        if let Some(contexts) = self.contexts() {
            say("contexts", contexts.into());
            let rows = self.rows();
            if rows.is_multiple_of(contexts.max(1))
                && self.units.iter().all(|unit| Some(unit.rows) == unit.records.checked_mul(rows / contexts.max(1)))
            {
                say("context_size", (rows / contexts.max(1)).into());
            }
        }
        if let Some(layer) = self.options.layer {
            say("layer_place", layer.into());
        }
        if non_finite.rows > 0 {
            say("non_finite_rows", non_finite.rows.into());
        }
        source
    }
}

/// The files of a format in a source of this name.
fn of_format(found: Found, format: Format, url: &str) -> Result<Vec<File>> {
    let Found { files, store } = &found;
    if format == Format::Arrow
        && let Some(listed) = arrow::data_files(&found)?
    {
        let named = |name: String| {
            let file = files.iter().find(|file| file.key() == name).cloned();
            file.ok_or_else(|| {
                flaw(store.url_of("state.json"), format!("lists {name}, which is not there: copy the data set again"))
            })
        };
        return listed.into_iter().map(named).collect();
    }
    let fitting: Vec<File> = files.iter().filter(|file| format.has(&files::extension(file))).cloned().collect();
    // One file may be called as it likes.
    let fitting = if fitting.is_empty() && files.len() == 1 { files.clone() } else { fitting };
    if fitting.is_empty() {
        return Err(flaw(url, format!("no files of the format {}", format.name())));
    }
    Ok(fitting)
}

fn contents(file: &File, format: Format, options: &Options) -> Result<Contents> {
    let choice = Choice { name: options.name.as_deref(), columns: options.columns.as_deref() };
    match format {
        Format::Npy => npy::contents(file),
        Format::Safetensors => safetensors::contents(file, choice),
        Format::Vllm => safetensors::contents_of_vllm(file, choice, options.layer),
        Format::Arrow => arrow::contents(file, choice),
        Format::Parquet | Format::Bionemo => parquet::contents(file, choice),
        Format::Torch => torch::contents(file, choice),
    }
}

/// What `look` finds in each file, several at a time; the first error in their order.
fn each<T: Send + Sync>(files: &[File], look: impl Fn(&File) -> Result<T> + Sync) -> Result<Vec<T>> {
    let cells: Vec<OnceLock<Result<T>>> = files.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..files.len().clamp(1, THREADS) {
            let work = || {
                while let Some((file, cell)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| files.get(i).zip(cells.get(i)))
                {
                    // Set once: each number is handed out once.
                    let _ = cell.set(look(file));
                }
            };
            std::thread::Builder::new().spawn_scoped(scope, work).map_err(|e| Error::Threads(e.into()))?;
        }
        Ok::<(), Error>(())
    })?;
    let lost = || Err(Error::Arguments("a thread that looks into files died".into()));
    cells.into_iter().map(|cell| cell.into_inner().unwrap_or_else(lost)).collect()
}

/// Refuses a file whose rows are others than those of the first.
fn same(file: &File, shape: &Shape, first: &File, other: &Shape) -> Result<()> {
    let described = |shape: &Shape| {
        let name = shape.name.as_ref().map_or(String::new(), |name| format!(" in {name:?}"));
        let of = if shape.contexts { "contexts of " } else { "" };
        let columns = shape
            .columns
            .iter()
            .map(|column| format!("{} {}", column.name, column.kind.name()))
            .collect::<Vec<_>>()
            .join(", ");
        format!("{of}rows of {} × {}{name}, with the columns [{columns}]", shape.width, shape.number.name())
    };
    let one = |shape: &Shape| {
        (shape.width, shape.number, shape.is_double, shape.contexts, shape.columns.clone(), shape.name.clone())
    };
    if one(shape) == one(other) {
        return Ok(());
    }
    let problem = format!(
        "{}; {} holds {}: all files need one shape and the same columns: take the others out, or take them in by themselves",
        described(shape),
        first.url(),
        described(other)
    );
    Err(file.flaw(problem))
}

/// Cuts units into parts of about so many bytes: whole records, in their order.
fn cut(units: &[Unit], row_bytes: u64, part_bytes: u64) -> Vec<Vec<Slice>> {
    let (mut parts, mut part, mut bytes, mut first_record) = (Vec::new(), Vec::new(), 0u64, 0u64);
    for (at, unit) in units.iter().enumerate() {
        let total = unit.rows.saturating_mul(row_bytes);
        let of_each = total.div_ceil(unit.records.max(1)).max(1);
        // What has no rows adds nothing but its number of records, whatever it claims.
        let mut done = if unit.rows == 0 { unit.records } else { 0 };
        while done < unit.records {
            let left = unit.records - done;
            let room = part_bytes.saturating_sub(bytes) / of_each;
            let take = match unit.what.is_divisible() {
                true if room == 0 && bytes == 0 => 1,
                true => left.min(room),
                false => left,
            };
            if take > 0 {
                part.push(Slice { unit: at, records: done..done + take, first_record });
                done += take;
                bytes = bytes.saturating_add(take.saturating_mul(of_each));
            }
            if take == 0 || bytes >= part_bytes {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
        }
        first_record = first_record.saturating_add(unit.records);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::{Records, Take};

    #[derive(Debug)]
    struct Blank(bool);

    impl Records for Blank {
        fn read(&self, _: &File, _: &Shape, _: Range<u64>, _: Take<'_>) -> Result<()> {
            Ok(())
        }

        fn is_divisible(&self) -> bool {
            self.0
        }
    }

    fn parts(units: &[(u64, u64, bool)], part_bytes: u64) -> Vec<Vec<(usize, Range<u64>, u64)>> {
        let unit = |&(records, rows, divisible): &(u64, u64, bool)| Unit {
            file: 0,
            records,
            rows,
            what: Box::new(Blank(divisible)),
        };
        let units: Vec<Unit> = units.iter().map(unit).collect();
        let parts = cut(&units, 10, part_bytes);
        parts.into_iter().map(|part| part.into_iter().map(|s| (s.unit, s.records, s.first_record)).collect()).collect()
    }

    /// Every record once, in order, in parts of about the size that is asked for.
    #[test]
    fn parts_are_whole_records_in_their_order() {
        assert_eq!(parts(&[(7, 7, true)], 30), [[(0, 0..3, 0)], [(0, 3..6, 0)], [(0, 6..7, 0)]]);
        // Several small files are one part; what a part has no room for begins the next.
        assert_eq!(
            parts(&[(1, 2, true), (1, 2, true), (1, 2, true)], 40),
            [vec![(0, 0..1, 0), (1, 0..1, 1)], vec![(2, 0..1, 2)]]
        );
        // A record that is larger than a part is one; what cannot be divided is not.
        assert_eq!(parts(&[(2, 20, true)], 30), [[(0, 0..1, 0)], [(0, 1..2, 0)]]);
        assert_eq!(parts(&[(u64::MAX / 2, 0, true), (1, 1, true)], 30), [[(1, 0..1, u64::MAX / 2)]]);
        assert_eq!(parts(&[(9, 9, false), (2, 2, true)], 30), [[(0, 0..9, 0)], [(1, 0..2, 9)]]);
        for part_bytes in 1..200 {
            let units = [(5, 15, true), (1, 1, true), (4, 4, false), (17, 17, true)];
            let all: Vec<_> = parts(&units, part_bytes).concat();
            let mut next = [0; 4];
            for (unit, records, first) in all {
                assert_eq!((records.start, first), (next[unit], [0, 5, 6, 10][unit]), "{part_bytes}");
                next[unit] = records.end;
            }
            assert_eq!(next, [5, 1, 4, 17], "{part_bytes}");
        }
    }
}
