//! Sparse activations of a trained dictionary, as Parquet: a row for each pair of a row of the data and a feature that is active on it.
//!
//! The operation is that of evaluation, with the scale of the run on every row, so `activation` is what the dictionary of `sae export`
//! gives on raw rows, up to rounding: folding the scale into W_enc and b_dec changes no feature activation.
//!
//! ```text
//! activations/part-000000.parquet   row u64, feature u32, activation f32: ascending by row, then by feature
//! rows/part-000000.parquet          row u64, and the columns that came beside the rows: every row that was encoded, active or not
//! encoding.json                     what of, and what is in it; written last
//! parts/                            the plan, and a marker for each part: loader::parts
//! ```
//!
//! Columns lie in files of their own: beside the pairs they would be repeated once for every active feature, and rows on which none is
//! active would be lost. `row` is the number of a row in the data: shards in the order of their paths, from 0 on, the rows that a filter
//! or a skip list leaves out counted as well. encoding.json says with which number each shard begins.
//!
//! **Parts.** A part is some row groups that follow each other. Its bytes follow from the plan and its number: it begins with the same
//! batches in any worker, and takes nothing from the part before. Where features are rare, a processor gives the same bits however rows are cut.
//!
//! **Feature shards.** A dictionary that no device holds is cut along its features, each shard with files of its own
//! (`activations/part-000000-02.parquet`), which a device makes one after the other, or several at once. Encoding exchanges nothing
//! between features, so these need no mesh: ranks that met for it would only wait for each other. A row's pairs then lie in as many files.
//!
//! **Density.** Lists of pairs on the sparse path grow with what is active, so a dense dictionary must not meet it unawares: of each
//! part a few rows go the dense path first, which takes no more memory whatever is active, and their density decides. They are then
//! encoded again with the others, so that the same rows give the same bits.

use std::ops::Range;

use kernels::mesh::TILE;
use kernels::{Device, Dictionary, Path, Report};
use loader::{
    Cells, Dataset, GroupOfRows, Help, InSequence, RowFilter, Scalar, SkipList, Store, TableColumn, TableWriter,
    Wanted, WrittenTable,
};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::data::row_dtype;
use crate::step::with_room;
use crate::trained::Trained;

/// Rows that go the dense path first, to see how dense they are.
const PROBE: usize = 64;

/// Pairs that the host holds of a batch at most, unless a single row has more.
const MOST_PAIRS: u64 = 4 << 20;

/// The folder of pairs.
pub const ACTIVATIONS: &str = "activations";

/// The folder of rows.
pub const ROWS: &str = "rows";

/// What is encoded, besides the dictionary and the data.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rows of a batch, at most.
    pub batch: usize,
    /// Rows left out.
    pub skip: SkipList,
    /// Rows not wanted.
    pub filter: RowFilter,
    /// Columns that go along.
    pub columns: Vec<Scalar>,
    /// What the footer of each file says.
    pub metadata: Vec<(&'static str, String)>,
}

/// Cuts the rows of a dataset into parts of row groups that follow each other, of at most `rows` rows unless one row group has more.
pub fn parts(dataset: &Dataset, rows: u64) -> Vec<Vec<GroupOfRows>> {
    let mut parts: Vec<Vec<GroupOfRows>> = Vec::new();
    let mut held = 0;
    for group in dataset.row_groups() {
        let count = group.rows.end - group.rows.start;
        match parts.last_mut() {
            Some(part) if held + count <= rows => part.push(group),
            _ => {
                parts.push(vec![group]);
                held = 0;
            }
        }
        held += count;
    }
    parts
}

/// The features of each of `shards` shards of a dictionary: whole tiles, as even as these are.
pub fn feature_shards(features: usize, shards: usize) -> Vec<Range<usize>> {
    let tiles = features.div_ceil(TILE);
    let shards = shards.clamp(1, tiles.max(1));
    let end = |shard: usize| (shard * tiles / shards * TILE).min(features);
    (0..shards).map(|shard| end(shard)..end(shard + 1)).collect()
}

/// The file of a part's pairs, of the `shard`-th of `shards` shards of features.
pub fn pairs_file(part: u64, shard: usize, shards: usize) -> String {
    match shards {
        1 => format!("{ACTIVATIONS}/part-{part:06}.parquet"),
        _ => format!("{ACTIVATIONS}/part-{part:06}-{shard:02}.parquet"),
    }
}

/// The file of a part's rows.
pub fn rows_file(part: u64) -> String {
    format!("{ROWS}/part-{part:06}.parquet")
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its key.
    pub file: String,
    /// Its rows.
    pub rows: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Its xxh3-64, in hexadecimal.
    pub checksum: String,
}

impl Written {
    fn of(file: String, table: WrittenTable) -> Self {
        let WrittenTable { rows, bytes, checksum } = table;
        Written { file, rows, bytes, checksum }
    }
}

/// What a part has come to, of some features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Rows of the data in it, from the first to behind the last.
    pub rows: Range<u64>,
    /// Features whose pairs are in it.
    pub features: Range<usize>,
    /// Rows that were encoded.
    pub encoded: u64,
    /// Rows that the skip list left out.
    pub skipped: u64,
    /// Rows that the filter left out.
    pub filtered: u64,
    /// Its pairs.
    pub pairs: Written,
    /// Its rows; with the first features of a dictionary alone.
    pub columns: Option<Written>,
}

/// Some features of a dictionary on a device, ready to encode.
pub struct Encoder<'a, D: Device> {
    device: &'a D,
    dataset: &'a Dataset,
    settings: &'a Settings,
    features: Range<usize>,
    /// What each feature is called; its number where there is no map.
    ids: Option<&'a [u32]>,
    scale: f32,
    sae: D::Dictionary,
    staging: D::Staging,
    x: D::Rows,
}

impl<D: Device> std::fmt::Debug for Encoder<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoder({:?})", self.features)
    }
}

/// The rows of a batch that is being filled.
struct Batch {
    numbers: Vec<u64>,
    /// Share of the pairs of the last batch that were active, once one was encoded.
    density: Option<f64>,
}

impl<'a, D: Device> Encoder<'a, D> {
    /// Loads some features. `ids` says what each feature of the dictionary is called.
    ///
    /// # Errors
    /// Those of [`Trained::load`].
    pub fn new(
        device: &'a D,
        trained: &Trained,
        dataset: &'a Dataset,
        settings: &'a Settings,
        features: Range<usize>,
        ids: Option<&'a [u32]>,
    ) -> Result<Self, Error> {
        let batch = settings.batch;
        Ok(Encoder {
            sae: trained.load(device, features.clone(), batch)?,
            staging: device.staging(batch * dataset.row_bytes())?,
            x: device.rows(batch, dataset.width())?,
            scale: trained.scale(),
            device,
            dataset,
            settings,
            features,
            ids,
        })
    }

    /// Writes a part to `out`: its pairs to the file `pairs`, and its rows to `rows` if that is given. `None` when `stop` says that it is
    /// to be left. `progress` hears how many rows were read so far.
    ///
    /// # Errors
    /// Those of the store; [`loader::Error::Data`] naming a row that is not finite.
    pub fn part(
        &mut self,
        out: &Store,
        (pairs, rows): (String, Option<String>),
        groups: &[GroupOfRows],
        stop: impl Fn() -> bool,
        mut progress: impl FnMut(u64),
    ) -> Result<Option<Made>, Error> {
        let Settings { skip, filter, columns, metadata, batch } = self.settings;
        let of_pairs = [TableColumn::u64("row"), TableColumn::u32("feature"), TableColumn::f32("activation")];
        let mut pairs_table = TableWriter::create(out, &pairs, &of_pairs, metadata)?;
        let of_rows: Vec<TableColumn> =
            [TableColumn::u64("row")].into_iter().chain(columns.iter().map(TableColumn::scalar)).collect();
        let table = |file: &String| TableWriter::create(out, file, &of_rows, metadata);
        let mut rows_table = rows.as_ref().map(table).transpose()?;
        let scalars = if rows.is_some() { columns.clone() } else { Vec::new() };
        let wanted = Wanted { skip: skip.clone(), filter: filter.clone(), scalars };
        let mut pieces = InSequence::start(self.dataset, groups.to_vec(), wanted)?;
        let (mut encoded, mut skipped, mut filtered) = (0, 0, 0);
        let mut held = Batch { numbers: Vec::with_capacity(*batch), density: None };
        let row_bytes = self.dataset.row_bytes();
        while let Some(piece) = pieces.read()? {
            skipped += piece.skipped;
            filtered += piece.filtered;
            if let Some(table) = &mut rows_table {
                let numbers = [Cells::U64(&piece.numbers)].into_iter();
                table.write(&numbers.chain(piece.scalars.iter().map(Cells::Scalar)).collect::<Vec<_>>())?;
            }
            for (kept, &number) in piece.numbers.iter().enumerate() {
                let at = held.numbers.len() * row_bytes;
                self.staging.as_mut()[at..at + row_bytes].copy_from_slice(piece.row(kept));
                held.numbers.push(number);
                if held.numbers.len() == *batch {
                    self.encode(&mut held, &mut pairs_table)?;
                    if stop() {
                        return Ok(None);
                    }
                    progress(encoded + kept as u64 + 1 + skipped + filtered);
                }
            }
            encoded += piece.numbers.len() as u64;
        }
        self.encode(&mut held, &mut pairs_table)?;
        progress(encoded + skipped + filtered);
        let first = groups.first().map_or(0, |group| group.rows.start);
        let end = groups.last().map_or(0, |group| group.rows.end);
        let columns = match (rows_table, rows) {
            (Some(table), Some(file)) => Some(Written::of(file, table.finish()?)),
            _ => None,
        };
        let pairs = Written::of(pairs, pairs_table.finish()?);
        Ok(Some(Made { rows: first..end, features: self.features.clone(), encoded, skipped, filtered, pairs, columns }))
    }

    /// Encodes the rows that are held and writes their pairs.
    fn encode(&mut self, held: &mut Batch, table: &mut TableWriter) -> Result<(), Error> {
        let rows = held.numbers.len();
        if rows == 0 {
            return Ok(());
        }
        if held.density.is_none() {
            let probed = self.run(rows.min(PROBE), Path::Dense, &held.numbers)?;
            held.density = Some(self.density(&probed));
        }
        let is_dense = held.density.is_some_and(|density| density > self.device.dense_above());
        let report = self.run(rows, if is_dense { Path::Dense } else { Path::Sparse }, &held.numbers)?;
        held.density = Some(self.density(&report));
        let at_once = rows_at_once(rows, report.active, self.features.len());
        for start in (0..rows).step_by(at_once) {
            let some = start..(start + at_once).min(rows);
            let pairs = self.sae.active_pairs(&self.x, some.clone())?;
            let counts = pairs.start_r.windows(2).map(|ends| ends[1] - ends[0]);
            let numbers = held.numbers[some].iter().zip(counts);
            let row_p: Vec<u64> = numbers.flat_map(|(&number, count)| std::iter::repeat_n(number, count)).collect();
            let called = |&feature: &u32| match self.ids {
                Some(ids) => ids[self.features.start + feature as usize],
                None => self.features.start as u32 + feature,
            };
            let feature_p: Vec<u32> = pairs.feature_p.iter().map(called).collect();
            table.write(&[Cells::U64(&row_p), Cells::U32(&feature_p), Cells::F32(&pairs.activation_p)])?;
        }
        held.numbers.clear();
        Ok(())
    }

    fn density(&self, report: &Report) -> f64 {
        report.active as f64 / (report.rows.max(1) * self.features.len().max(1)) as f64
    }

    /// The operations of evaluation on the first `rows` rows that are staged.
    fn run(&mut self, rows: usize, path: Path, numbers: &[u64]) -> Result<Report, Error> {
        let Encoder { device, dataset, sae, staging, x, .. } = self;
        device.normalize(staging, row_dtype(dataset.dtype()), rows, rows, self.scale, x);
        let report = with_room(sae, path, |sae, path| {
            sae.encode(x, path);
            sae.decode(x);
            sae.residual(x);
        })?;
        if report.ok {
            return Ok(report);
        }
        sae.release();
        let bad = report.non_finite_rows.first().and_then(|&row| dataset.row_of(*numbers.get(row)?));
        let name = bad.map_or_else(|| "a row".to_owned(), |row| dataset.row_name(row));
        Err(loader::Error::Data {
            location: name.clone(),
            problem: "the row holds a value that is NaN or infinite: mend the data".into(),
            source: None,
            help: Some(Help::Skip(name)),
        }
        .into())
    }
}

/// Rows whose pairs are taken from the device at once, of a batch of `rows` with `active` pairs: so many that these are few, whichever
/// rows have most of them.
fn rows_at_once(rows: usize, active: u64, features: usize) -> usize {
    if active <= MOST_PAIRS {
        return rows.max(1);
    }
    usize::try_from(MOST_PAIRS / features.max(1) as u64).unwrap_or(rows).clamp(1, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards of features are whole tiles, follow each other and hold all.
    #[test]
    fn feature_shards_are_whole_tiles() {
        for (features, shards) in [(1000, 1), (1000, 3), (1024, 8), (100, 4), (128, 1)] {
            let cut = feature_shards(features, shards);
            assert_eq!(cut.len(), shards.min(features.div_ceil(TILE)), "{features} in {shards}");
            assert_eq!((cut[0].start, cut.last().map(|last| last.end)), (0, Some(features)));
            for pair in cut.windows(2) {
                assert!(pair[0].end == pair[1].start && pair[0].end % TILE == 0 && !pair[0].is_empty(), "{cut:?}");
            }
        }
    }

    /// However pairs are spread over the rows, no more than the bound are taken at once, unless a row alone has more.
    #[test]
    fn pairs_taken_at_once_are_bounded() {
        assert_eq!(rows_at_once(4096, 400_000, 1 << 25), 4096, "few");
        for (rows, features) in [(4096, 1 << 16), (4096, 1 << 20), (512, 1 << 25)] {
            let at_once = rows_at_once(rows, rows as u64 * features as u64 / 2, features);
            assert!(at_once == 1 || at_once as u64 * features as u64 <= MOST_PAIRS, "{rows}, {features}");
        }
    }
}
