//! What every format comes to: units, in their order, which are read a range of records at a time.
//!
//! A record is what a source counts: a row, or a context with its rows. Everything that can be known of a unit without its rows is known before
//! the first is read, so that parts can be cut and contexts numbered by any worker alone.

use std::ops::Range;

use loader::{ColumnValues, ExtraColumn, Result};
use tensors::{File, Number};

/// A piece of a file.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Which of the files.
    pub(crate) file: usize,
    pub(crate) records: u64,
    pub(crate) rows: u64,
    pub(crate) what: Box<dyn Records>,
}

/// Records that lie in a file in some form.
pub(crate) trait Records: std::fmt::Debug + Send + Sync {
    /// Hands the rows of some records over, in their order.
    fn read(&self, file: &File, shape: &Shape, records: Range<u64>, take: Take<'_>) -> Result<()>;

    /// Whether they can be read in ranges; all at once otherwise.
    fn is_divisible(&self) -> bool {
        true
    }
}

/// What was chosen of a file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Choice<'a> {
    /// The tensor or column of activations; nothing where it is to be found.
    pub(crate) name: Option<&'a str>,
    /// What comes along with the rows, by its name there or here; nothing where all that can does.
    pub(crate) columns: Option<&'a [String]>,
}

impl Choice<'_> {
    /// Whether a column may come along.
    pub(crate) fn takes(&self, column: &str) -> bool {
        self.columns.is_none_or(|some| some.iter().any(|name| name == column || name == column_name(column)))
    }
}

/// What all units of a file have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) width: u64,
    pub(crate) number: Number,
    /// Whether numbers are stored as f64, and handed over narrower.
    pub(crate) is_double: bool,
    /// Whether a record is a context of several rows.
    pub(crate) contexts: bool,
    /// What comes along with the rows.
    pub(crate) columns: Vec<ExtraColumn>,
    /// The name of the tensor or column of activations, if it has one.
    pub(crate) name: Option<String>,
    /// What does not come along, by name.
    pub(crate) left_out: Vec<String>,
}

/// What a format finds in a file.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Unknown where there are no rows.
    pub(crate) shape: Option<Shape>,
    /// Without the number of the file.
    pub(crate) units: Vec<Unit>,
}

/// Some rows, as they are stored.
pub(crate) struct Rows<'a> {
    pub(crate) bytes: &'a [u8],
    /// Of each row the record that it is in, counted from the beginning of the unit, and its place there.
    pub(crate) places: Option<Places>,
    /// In the order of [`Shape::columns`].
    pub(crate) columns: Vec<ColumnValues<'a>>,
}

/// Where rows lie in their contexts.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) record: Vec<u64>,
    pub(crate) pos: Vec<i32>,
}

impl Places {
    /// Of whole records from `first` on, which have so many rows each.
    pub(crate) fn of(first: u64, lengths: &[u32]) -> Self {
        let mut places = Places::default();
        for (record, &length) in (first..).zip(lengths) {
            places.record.extend(std::iter::repeat_n(record, length as usize));
            places.pos.extend(0..i32::try_from(length).unwrap_or(i32::MAX));
        }
        places
    }
}

/// Takes rows; an error ends the reading.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Rows<'_>) -> Result<()>;

/// Bytes of rows that are read at once, about.
pub(crate) const BLOCK: u64 = 4 << 20;

/// What a name becomes as a column's: the tools' names for what row filters look at have one name here.
pub(crate) fn column_name(name: &str) -> &str {
    match name {
        "token_ids" | "input_ids" | "tokens" | "token_id" => "token_id",
        "doc_ids" | "document_id" | "document_ids" | "doc_id" => "doc_id",
        "position" | "positions" | "position_ids" | "pos" => "pos",
        "context_ids" | "context_id" => "context_id",
        other => other,
    }
}

/// Columns by their names here: one whose name is taken keeps its own, or is left out where that is taken too.
pub(crate) fn renamed<T>(columns: Vec<(String, T)>) -> (Vec<(String, T)>, Vec<String>) {
    let mut named: Vec<(String, T)> = Vec::new();
    let mut left_out = Vec::new();
    for (name, column) in columns {
        let free = |wanted: &str, named: &[(String, T)]| {
            wanted != loader::COLUMN && !wanted.is_empty() && named.iter().all(|(taken, _)| taken != wanted)
        };
        let wanted = [column_name(&name).to_string(), name.clone()];
        match wanted.into_iter().find(|wanted| free(wanted, &named)) {
            Some(free) => named.push((free, column)),
            None => left_out.push(name),
        }
    }
    (named, left_out)
}
