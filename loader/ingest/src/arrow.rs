//! Arrow's IPC files, as `datasets` saves them: streams of record batches, of which ranges are read without the rest.
//!
//! A batch of a thousand contexts takes gigabytes, so no batch is read as a whole: its message says where each buffer lies, and rows are read by
//! their offsets. SAELens' activation cache is such a folder: a column by the hook's name of lists of lists, [context, width], and
//! `token_ids`. Files with a magic number around the stream (`ARROW1`) are read too.
//!
//! Not read: compressed buffers, and dictionaries, views and unions as columns that come along.

mod batch;
mod column;

use arrow_ipc::{Endianness, MessageHeader, RecordBatch, root_as_message};
use loader::{ColumnType, Error, ExtraColumn, Help, Result};
use tensors::{File, Number, flaw, flaw_of};

use crate::arrow::batch::{Batch, Place, stored};
use crate::arrow::column::{Column, Leaf, form, span};
use crate::files::Found;
use crate::numbers::{column_type, kept_as};
use crate::unit::{Choice, Contents, Shape, Unit, renamed};

/// Longest message that is believed, without its buffers.
const MAX_MESSAGE: u64 = 16 << 20;
/// Read at each message at first: holds nearly every one.
const LOOK: u64 = 8 << 10;
/// Widest rows that are believed.
const MAX_WIDTH: u64 = 1 << 20;

/// The files that a saved data set consists of, in its order; all Arrow files where it does not say.
pub(crate) fn data_files(found: &Found) -> Result<Option<Vec<String>>> {
    /// No longer one is theirs, of a million files.
    const MAX_BYTES: u64 = 64 << 20;
    if found.files.iter().any(|file| file.key() == "dataset_dict.json") {
        return Err(flaw(found.store.url(), "holds several splits of a data set: name the folder of one of them"));
    }
    let Some(file) = found.files.iter().find(|file| file.key() == "state.json") else { return Ok(None) };
    if file.size() > MAX_BYTES {
        return Err(file.flaw(format!("{} bytes are no state of a data set", file.size())));
    }
    let state: serde_json::Value = serde_json::from_slice(&file.read(0..file.size())?)
        .map_err(|e| flaw_of(file.url(), format!("is no state of a data set: {e}"), e))?;
    for key in ["_indices_files", "_indices_data_files"] {
        if state.get(key).is_some_and(|indices| indices.as_array().is_some_and(|list| !list.is_empty())) {
            return Err(file.flaw("chooses rows by indices: call flatten_indices() and save the data set again"));
        }
    }
    let Some(files) = state.get("_data_files").and_then(|files| files.as_array()) else {
        return Err(file.flaw("does not list _data_files: save the data set again by save_to_disk"));
    };
    let name = |entry: &serde_json::Value| {
        let name = entry.get("filename").and_then(|name| name.as_str());
        let name = name.filter(|name| !name.is_empty() && !name.contains(['/', '\\']) && *name != "..");
        name.map(str::to_owned).ok_or_else(|| file.flaw(format!("lists {entry}, which is no file of its folder")))
    };
    files.iter().map(name).collect::<Result<_>>().map(Some)
}

/// Finds all batches of a file, by its messages.
pub(crate) fn contents(file: &File, choice: Choice<'_>) -> Result<Contents> {
    let head = file.head(8)?;
    let mut at = if head.starts_with(b"ARROW1") { 8 } else { 0 };
    let mut schema: Option<(Schema, Option<Shape>)> = None;
    let mut units = Vec::new();
    loop {
        let start = file.read(at..(at + LOOK).min(file.size()).max(at))?;
        // The end of a stream may be left out.
        if start.is_empty() {
            break;
        }
        let Some((mark, length)) = start.get(..4).zip(start.get(4..8)) else {
            return Err(file.flaw(format!("cut off or damaged: a message begins at byte {at} and does not end")));
        };
        if mark != [0xff; 4] {
            return Err(file.flaw(format!(
                "is no Arrow stream (or one from before version 0.15): no message begins at byte {at}"
            )));
        }
        let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
        if length == 0 {
            break;
        }
        if length > MAX_MESSAGE {
            return Err(file.flaw(format!("damaged: a message at byte {at} claims {length} bytes")));
        }
        let bytes = if 8 + length <= start.len() as u64 {
            start.slice(8..8 + length as usize)
        } else {
            file.read_at(at + 8, length)?
        };
        let message =
            root_as_message(&bytes).map_err(|e| file.flaw(format!("damaged: the message at byte {at}: {e}")))?;
        let body = at + 8 + length;
        let body_length = u64::try_from(message.bodyLength()).unwrap_or(u64::MAX);
        let end = body.checked_add(body_length).filter(|&end| end <= file.size()).ok_or_else(|| {
            file.flaw(format!(
                "cut off or damaged: the message at byte {at} claims a body of {body_length} bytes of {}",
                file.size()
            ))
        })?;
        match message.header_type() {
            MessageHeader::Schema => {
                let fields = message.header_as_schema().ok_or_else(|| file.flaw("damaged: a schema that is none"))?;
                schema = Some((Schema::of(file, &fields, choice)?, None));
            }
            MessageHeader::RecordBatch => {
                let Some((schema, shape)) = &mut schema else {
                    return Err(file.flaw("damaged: a batch before the schema"));
                };
                let batch =
                    message.header_as_record_batch().ok_or_else(|| file.flaw("damaged: a batch that is none"))?;
                let place = Place { at: body, length: body_length };
                units.push(schema.unit(file, shape, &batch, place)?);
            }
            MessageHeader::DictionaryBatch => {}
            other => return Err(file.flaw(format!("damaged: a message of kind {other:?} at byte {at}"))),
        }
        at = end;
    }
    let Some((_, shape)) = schema else { return Err(file.flaw("cut off or damaged: no schema")) };
    Ok(Contents { shape, units })
}

/// What the schema says of the columns that are read.
struct Schema {
    activations: Column,
    number: Number,
    columns: Vec<(String, Column)>,
    left_out: Vec<String>,
}

impl Schema {
    fn of(file: &File, schema: &arrow_ipc::Schema<'_>, choice: Choice<'_>) -> Result<Self> {
        if schema.endianness() != Endianness::Little {
            return Err(file.flaw("is big-endian: save it on another machine"));
        }
        let (mut columns, mut nodes, mut buffers) = (Vec::new(), 0, 0);
        for field in schema.fields().into_iter().flatten() {
            let name = field.name().unwrap_or_default().to_string();
            let (lists, leaf) = form(&field);
            columns.push(Column { name: name.clone(), lists, leaf, first_node: nodes, first_buffer: buffers });
            let (of_nodes, of_buffers) = span(&field).map_err(|kind| {
                file.flaw(format!("column {name:?} is {kind}, which cannot be passed over: leave it out"))
            })?;
            (nodes, buffers) = (nodes + of_nodes, buffers + of_buffers);
        }
        let (at, number) = choose(file, &columns, choice.name)?;
        let activations = columns.remove(at);
        let nested = activations.lists.len() == 2;
        let (beside, others): (Vec<Column>, Vec<Column>) = columns
            .into_iter()
            .filter(|column| choice.takes(&column.name))
            .partition(|column| match (column.leaf, column.lists.len()) {
                (Leaf::Numbers(_) | Leaf::Bools, 0) => true,
                (Leaf::Numbers(_) | Leaf::Bools, 1) => nested,
                (Leaf::Text(_), 0) => !nested,
                _ => false,
            });
        let (columns, unnamed) = renamed(beside.into_iter().map(|column| (column.name.clone(), column)).collect());
        let left_out = others.into_iter().map(|column| column.name).chain(unnamed).collect();
        Ok(Schema { activations, number, columns, left_out })
    }

    fn shape(&self, width: u64) -> Shape {
        let kind = |column: &Column| match column.leaf {
            Leaf::Numbers(number) => column_type(number),
            Leaf::Bools => column_type(Number::Bool),
            _ => ColumnType::Text,
        };
        Shape {
            width,
            number: self.number,
            is_double: self.number == Number::F64,
            contexts: self.activations.lists.len() == 2,
            columns: self.columns.iter().map(|(name, column)| ExtraColumn::new(name, kind(column))).collect(),
            name: Some(self.activations.name.clone()),
            left_out: self.left_out.clone(),
        }
    }

    /// The unit of a batch.
    fn unit(&self, file: &File, shape: &mut Option<Shape>, batch: &RecordBatch<'_>, body: Place) -> Result<Unit> {
        let fail =
            |name: &str, problem: String| file.flaw(format!("batch at byte {}: column {name:?}: {problem}", body.at));
        if batch.compression().is_some() {
            return Err(file.flaw("its buffers are compressed: save it without compression"));
        }
        let records = u64::try_from(batch.length()).unwrap_or(u64::MAX);
        let of = |column: &Column| stored(column, batch, records, body).map_err(|problem| fail(&column.name, problem));
        let activations = of(&self.activations)?;
        let columns =
            self.columns.iter().map(|(name, column)| Ok((name.clone(), of(column)?))).collect::<Result<_>>()?;
        let unit = Batch { activations, columns };
        let range = unit.rows_of(file, 0..records)?;
        let rows = range.end - range.start;
        if rows == 0 {
            return Ok(Unit { file: 0, records, rows, what: Box::new(unit) });
        }
        let width = unit.activations.width(file, range.start)?;
        if width == 0 || width > MAX_WIDTH {
            return Err(fail(
                &self.activations.name,
                format!("has rows of {width} numbers: 1 to {MAX_WIDTH} are possible"),
            ));
        }
        let first = shape.get_or_insert_with(|| self.shape(width));
        if first.width != width {
            return Err(fail(
                &self.activations.name,
                format!("rows of {width} numbers here, of {} before", first.width),
            ));
        }
        Ok(Unit { file: 0, records, rows, what: Box::new(unit) })
    }
}

/// Which column is the activations, and their numbers.
fn choose(file: &File, columns: &[Column], wanted: Option<&str>) -> Result<(usize, Number)> {
    let fits = |column: &Column| match (column.leaf, column.lists.len()) {
        (Leaf::Numbers(number), 1 | 2) if kept_as(number).is_some() => Some(number),
        _ => None,
    };
    let fitting: Vec<(usize, Number)> = columns.iter().enumerate().filter_map(|(i, c)| Some((i, fits(c)?))).collect();
    let names =
        |which: &[usize]| which.iter().take(50).map(|&i| columns[i].name.as_str()).collect::<Vec<_>>().join(", ");
    let all: Vec<usize> = (0..columns.len()).collect();
    if let Some(wanted) = wanted {
        return fitting.iter().copied().find(|(i, _)| columns[*i].name == wanted).ok_or_else(|| {
            file.flaw(format!("no column of activations is named {wanted:?}: lists of float16, float32 or float64 are needed; there are {}", names(&all)))
        });
    }
    let fitting = match fitting.iter().any(|(i, _)| columns[*i].lists.len() == 2) {
        // One number for each row of another column stands beside it.
        true => fitting.into_iter().filter(|(i, _)| columns[*i].lists.len() == 2).collect(),
        false => fitting,
    };
    match fitting.as_slice() {
        [one] => Ok(*one),
        [] => Err(file.flaw(format!(
            "no column of activations: lists, or lists of lists, of float16, float32 or float64 are needed; there are {}",
            names(&all)
        ))),
        several => Err(Error::Data {
            location: file.url(),
            problem: format!("several columns could be the activations: {}", names(&several.iter().map(|(i, _)| *i).collect::<Vec<_>>())),
            source: None,
            help: Some(Help::Column),
        }),
    }
}
