//! Parquet of any writer, with contexts or rows as records; BioNeMo's stores are such files.
//!
//! BioNeMo writes `shard_00000.parquet`, … with the column `act`, a list of float32 of one row each, and metadata.json that says how many there are
//! (`n_samples`, `hidden_dim`, `n_shards`).

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use loader::{RecordRows, Result};
use serde::Deserialize;
use tensors::{File, Number, flaw};

use crate::files::Found;
use crate::unit::{Choice, Contents, Places, Records, Rows, Shape, Take, Unit, renamed};

pub(crate) fn contents(file: &File, choice: Choice<'_>) -> Result<Contents> {
    let mut records = loader::Records::open(file.store(), file.key(), file.size(), choice.name)?;
    records.keep_columns(|name| choice.takes(name));
    let records = Arc::new(records);
    let groups = records.groups().enumerate();
    let of = |group| Group { records: Arc::clone(&records), group };
    let units =
        groups.map(|(group, (records, rows))| Unit { file: 0, records, rows, what: Box::new(of(group)) }).collect();
    let Some((width, dtype)) = records.width().zip(records.dtype()) else {
        return Ok(Contents { shape: None, units });
    };
    let (columns, unnamed) = renamed(named(&records));
    let shape = Shape {
        width: width as u64,
        number: Number::from(dtype),
        is_double: records.is_double(),
        contexts: records.is_nested(),
        columns: columns.into_iter().map(|(name, (_, kind))| loader::ExtraColumn::new(name, kind)).collect(),
        name: records.column().map(str::to_owned),
        left_out: records.left_out().iter().cloned().chain(unnamed).collect(),
    };
    Ok(Contents { shape: Some(shape), units })
}

/// Columns with their numbers and types.
fn named(records: &loader::Records) -> Vec<(String, (usize, loader::ColumnType))> {
    records.columns().enumerate().map(|(i, column)| (column.name.clone(), (i, column.kind))).collect()
}

/// A row group of a file that is open.
#[derive(Debug)]
pub(crate) struct Group {
    records: Arc<loader::Records>,
    group: usize,
}

impl Records for Group {
    fn is_divisible(&self) -> bool {
        false
    }

    fn read(&self, _file: &File, _shape: &Shape, _all: Range<u64>, take: Take<'_>) -> Result<()> {
        let kept: BTreeSet<usize> = renamed(named(&self.records)).0.into_iter().map(|(_, (i, _))| i).collect();
        let mut first = 0;
        self.records.read(self.group, |RecordRows { rows, lengths, columns }| {
            let places = lengths.map(|lengths| Places::of(first, lengths));
            first += lengths.map_or(0, |lengths| lengths.len() as u64);
            let columns = columns.into_iter().enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, values)| values);
            take(Rows { bytes: rows, places, columns: columns.collect() })
        })
    }
}

/// What BioNeMo says of a store.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    n_samples: u64,
    hidden_dim: u64,
    n_shards: u64,
}

/// Its metadata.json, if it is a store of BioNeMo's.
pub(crate) fn bionemo(found: &Found) -> Result<Option<Metadata>> {
    /// No longer one is theirs.
    const MAX_BYTES: u64 = 1 << 20;
    match found.files.iter().find(|file| file.key() == "metadata.json") {
        Some(file) if file.size() <= MAX_BYTES => Ok(serde_json::from_slice(&file.read(0..file.size())?).ok()),
        _ => Ok(None),
    }
}

impl Metadata {
    /// Refuses a store that is not whole: it is copied shard by shard.
    pub(crate) fn check(&self, place: &str, files: u64, rows: u64, width: u64) -> Result<()> {
        let there = (rows, width, files);
        if there == (self.n_samples, self.hidden_dim, self.n_shards) {
            return Ok(());
        }
        Err(flaw(
            place,
            format!(
                "not the whole store: metadata.json says {} rows of {} in {} shards, and there are {rows} of {width} in {files}: copy it again",
                self.n_samples, self.hidden_dim, self.n_shards
            ),
        ))
    }
}
