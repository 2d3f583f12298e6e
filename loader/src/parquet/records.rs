//! Files of other tools as they stand: records, the rows in each, and what lies beside the rows.
//!
//! Training reads activations alone. Here all that comes along is read too, so that it can be written beside the rows: integers, floating-point
//! numbers and text, one for each record or for each of its rows. A row group is read at once, as training reads it, and handed over in batches.

use std::ops::{ControlFlow, Range};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use bytes::Bytes;
use parquet::basic::{LogicalType, Type};
use parquet::schema::types::ColumnDescriptor;

use crate::error::Flaw;
use crate::make::columns::{ColumnType, ColumnValues, ExtraColumn};
use crate::parquet::chunks;
use crate::parquet::decode::{self, Beyond, Buffer, MORE, Sink};
use crate::parquet::footer::Footer;
use crate::parquet::metadata::check_codec;
use crate::{Dtype, Error, Result, RowGroup, Store};

/// Bytes of text in a row group that are believed, besides what many records have.
const MAX_TEXT: u64 = 1 << 30;

type Outcome<T> = std::result::Result<T, Flaw>;

/// Takes rows, the lengths of the lists around them, and how many there are.
type Hand<'a> = &'a mut dyn FnMut(&[u8], Option<&[u32]>, usize) -> Outcome<ControlFlow<()>>;

/// A Parquet file with all that stands beside its activations.
pub struct Records {
    store: Store,
    key: String,
    footer: Footer,
    width: Option<usize>,
    groups: Vec<RowGroup>,
    extras: Vec<Extra>,
    left_out: Vec<String>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Records({})", self.store.url_of(&self.key))
    }
}

/// A column beside the activations.
#[derive(Debug, Clone)]
struct Extra {
    leaf: usize,
    column: ExtraColumn,
    /// Whether its values stand in lists, one for each row of a record.
    in_lists: bool,
}

/// Rows of some records.
#[derive(Debug)]
pub struct RecordRows<'a> {
    /// As [`Records::dtype`] has them.
    pub rows: &'a [u8],
    /// Where records are sequences of rows: how many rows each has.
    pub lengths: Option<&'a [u32]>,
    /// Values of [`Records::columns`], one a row.
    pub columns: Vec<ColumnValues<'a>>,
}

impl Records {
    /// Opens a file of `size` bytes. `column` names the activations where several columns could be meant.
    ///
    /// # Errors
    /// [`Error::Data`] where it is no Parquet file, damaged or has no such column; those of the store.
    pub fn open(store: &Store, key: &str, size: u64, column: Option<&str>) -> Result<Self> {
        let footer = Footer::read(store, key, size, column)?;
        let (width, groups) = footer.shape(store, key)?;
        let (extras, left_out) = extras(&footer);
        Ok(Records { store: store.clone(), key: key.into(), footer, width, groups, extras, left_out })
    }

    /// Numbers per row; unknown where there are no rows.
    pub fn width(&self) -> Option<usize> {
        self.width
    }

    /// The format that rows are handed over in: f64 is narrowed to f32.
    pub fn dtype(&self) -> Option<Dtype> {
        self.footer.column.as_ref().map(|column| column.dtype)
    }

    /// Whether numbers are stored as f64.
    pub fn is_double(&self) -> bool {
        self.footer.column.as_ref().is_some_and(|column| column.is_double)
    }

    /// The name of the activation column.
    pub fn column(&self) -> Option<&str> {
        self.footer.column.as_ref().map(|column| column.name.as_str())
    }

    /// Whether a record is a sequence of rows.
    pub fn is_nested(&self) -> bool {
        self.footer.column.as_ref().is_some_and(|column| column.outer > 0)
    }

    /// What comes along with the rows.
    pub fn columns(&self) -> impl Iterator<Item = &ExtraColumn> {
        self.extras.iter().map(|extra| &extra.column)
    }

    /// Leaves out all columns but those of such names: they are not read.
    pub fn keep_columns(&mut self, takes: impl Fn(&str) -> bool) {
        self.extras.retain(|extra| takes(&extra.column.name));
        self.left_out.retain(|name| takes(name));
    }

    /// Columns that are not one number or text for each row, by name.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Records and rows of each row group.
    pub fn groups(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let records = self.footer.metadata.row_groups().iter().map(|group| group.num_rows() as u64);
        records.zip(self.groups.iter().map(|group| group.rows))
    }

    /// Reads a row group and hands its records over, in their order. Memory is taken for the row group as it is stored, for its columns, and
    /// for one batch of rows.
    ///
    /// # Errors
    /// [`Error::Data`] where it is damaged; those of the store and of `take`.
    pub fn read(&self, group: usize, mut take: impl FnMut(RecordRows<'_>) -> Result<()>) -> Result<()> {
        let name = format!("{}, row group {group}", self.store.url_of(&self.key));
        let fail = |flaw: Flaw| Error::data(name.clone(), flaw);
        let (rows, chunk) = (self.groups[group].rows as usize, &self.groups[group]);
        if rows == 0 {
            return Ok(());
        }
        let mut columns = Vec::new();
        for extra in &self.extras {
            columns.push(self.column_of(group, extra, rows)?);
        }
        let bytes = self.store.get_range(&self.key, chunk.offset..chunk.offset + chunk.length)?;
        // An error of the caller's passes through the reader as a break.
        let mut failed = None;
        let mut at = (0usize, 0usize);
        let mut hand = |out: &[u8], lengths: Option<&[u32]>, count: usize| -> Outcome<ControlFlow<()>> {
            let (records, first) = at;
            let of_records = lengths.map_or(count, <[u32]>::len);
            at = (records + of_records, first + count);
            let mut along = Vec::new();
            for (extra, (values, lists)) in self.extras.iter().zip(&columns) {
                let name = &extra.column.name;
                along.push(if extra.in_lists {
                    check_lists(lists, records..records + of_records, lengths.unwrap_or_default())
                        .map_err(|flaw| flaw.said(|text| format!("column {name}: {text}")))?;
                    values.slice(first..first + count)
                } else {
                    values.repeated(records, lengths, count)
                });
            }
            match take(RecordRows { rows: out, lengths, columns: along }) {
                Ok(()) => Ok(ControlFlow::Continue(())),
                Err(error) => {
                    failed = Some(error);
                    Ok(ControlFlow::Break(()))
                }
            }
        };
        let read = self.rows_of(group, bytes, rows, &mut hand);
        if let Some(error) = failed {
            return Err(error);
        }
        read.map_err(fail)?;
        if at.1 != rows {
            return Err(fail(format!("damaged: {} rows where {rows} were declared", at.1).into()));
        }
        Ok(())
    }

    /// Calls `hand` with the rows of one batch of records after the other, and the lengths of the lists around them.
    fn rows_of(&self, group: usize, bytes: Bytes, rows: usize, hand: Hand<'_>) -> Outcome<()> {
        /// Bytes that are handed over at once, about.
        const BATCH_BYTES: usize = 4 << 20;
        let column = self.footer.activations()?;
        let width = self.width.unwrap_or_default().max(1);
        let row_bytes = width * column.dtype.size();
        let codec = self.footer.metadata.row_group(group).column(column.leaf).compression();
        let limit = (rows as u64).saturating_mul(2 * row_bytes as u64 + 16) + MORE;
        let buffer = Buffer::Shared(bytes);
        decode::check_pages(&buffer, codec, limit, rows as u64)?;
        let batch = decode::records(&self.footer, group, rows, (BATCH_BYTES / row_bytes).max(1));
        let mut seen = 0;
        let mut sink = Sink::new(row_bytes, width * column.stored_size(), column.outer);
        decode::each_batch(&self.footer, column.leaf, group, buffer, batch, |array| {
            sink.clear();
            sink.append(array)?;
            if let Some(Beyond { row, number }) = sink.beyond {
                let row = seen + row;
                return Err(
                    format!("row {row}: {number:e} is no number of 32 bits: scale the rows before writing").into()
                );
            }
            let count = sink.out.len() / row_bytes;
            seen += count;
            if !sink.out.len().is_multiple_of(row_bytes) || seen > rows {
                return Err("damaged: more rows than were declared".to_string().into());
            }
            hand(&sink.out, sink.outer.first().map(Vec::as_slice), count)
        })
    }

    /// All values of a column in a row group, with the lengths of the lists that they stand in.
    fn column_of(&self, group: usize, extra: &Extra, rows: usize) -> Result<(ColumnValues<'static>, Vec<u32>)> {
        let (metadata, name) = (&self.footer.metadata, &extra.column.name);
        let fail = |flaw: Flaw| {
            let place = format!("{}, row group {group}", self.store.url_of(&self.key));
            Error::data(place, flaw.said(|text| format!("column {name}: {text}")))
        };
        let chunk = metadata.row_group(group).column(extra.leaf);
        if !self.footer.holds(chunk) {
            return Err(fail("damaged: lies outside the file".to_string().into()));
        }
        check_codec(chunk).map_err(|problem| fail(problem.into()))?;
        let place = chunks::place(chunk);
        let bytes = Buffer::Shared(self.store.get_range(&self.key, place.offset..place.offset + place.length)?);
        let records = metadata.row_group(group).num_rows() as usize;
        // A number takes eight bytes and its levels; text as much as the file has, many times over.
        let limit = match extra.column.kind {
            ColumnType::Text => place.length.saturating_mul(1024).min(MAX_TEXT) + records as u64 * 64 + MORE,
            _ => rows.max(records) as u64 * 32 + MORE,
        };
        let (mut values, mut lists) =
            (ColumnValues::none(extra.column.kind), vec![Vec::new(); usize::from(extra.in_lists)]);
        decode::check_pages(&bytes, chunk.compression(), limit, 0).map_err(fail)?;
        let batch = decode::records(&self.footer, group, rows, 8192);
        decode::each_batch(&self.footer, extra.leaf, group, bytes, batch, |array| {
            append(&decode::inside(array, &mut lists)?, &mut values)?;
            Ok(ControlFlow::Continue(()))
        })
        .map_err(fail)?;
        let wanted = if extra.in_lists { rows } else { records };
        if values.len() != wanted {
            return Err(fail(format!("{} values for {wanted}", values.len()).into()));
        }
        Ok((values, lists.pop().unwrap_or_default()))
    }
}

fn check_lists(of_column: &[u32], records: Range<usize>, of_rows: &[u32]) -> Outcome<()> {
    let lists = of_column.get(records.clone()).unwrap_or_default();
    match (0..of_rows.len()).find(|&i| lists.get(i) != of_rows.get(i)) {
        None => Ok(()),
        Some(i) => {
            let has = lists.get(i).map_or("none".to_string(), u32::to_string);
            Err(format!("record {} has {has} values, and {} rows of activations", records.start + i, of_rows[i]).into())
        }
    }
}

/// The columns that come along, and the names of those that do not.
fn extras(footer: &Footer) -> (Vec<Extra>, Vec<String>) {
    let Some(activations) = &footer.column else { return Default::default() };
    let schema = footer.metadata.file_metadata().schema_descr();
    let (mut extras, mut left_out): (Vec<Extra>, Vec<String>) = Default::default();
    for leaf in (0..schema.num_columns()).filter(|&leaf| leaf != activations.leaf) {
        let descriptor = schema.column(leaf);
        // The field that the column is called by: lists have names of their own inside.
        let name = descriptor.path().parts().first().cloned().unwrap_or_default();
        let (lists, alone) = (descriptor.max_rep_level() as usize, leaves_of(footer, &name) == 1);
        let kind = kind(&descriptor).filter(|kind| *kind != ColumnType::Text || activations.outer == 0);
        match kind {
            Some(kind) if alone && (lists == 0 || lists == activations.outer) => {
                extras.push(Extra { leaf, column: ExtraColumn::new(name, kind), in_lists: lists > 0 });
            }
            // Of the field that has the activations too it is another part.
            _ if activations.name.split('.').next() == Some(&name) => left_out.push(descriptor.path().string()),
            _ if left_out.last() != Some(&name) => left_out.push(name),
            _ => {}
        }
    }
    (extras, left_out)
}

fn leaves_of(footer: &Footer, name: &str) -> usize {
    let schema = footer.metadata.file_metadata().schema_descr();
    (0..schema.num_columns())
        .filter(|&leaf| schema.column(leaf).path().parts().first().is_some_and(|p| p == name))
        .count()
}

/// What the values of a leaf are written as.
fn kind(column: &ColumnDescriptor) -> Option<ColumnType> {
    match (column.physical_type(), column.logical_type_ref()) {
        (Type::INT32, Some(LogicalType::Integer(int))) if !int.is_signed => Some(ColumnType::U32),
        (Type::INT64, Some(LogicalType::Integer(int))) if !int.is_signed => Some(ColumnType::U64),
        (Type::INT32, None | Some(LogicalType::Integer(_))) => Some(ColumnType::I32),
        (Type::INT64, None | Some(LogicalType::Integer(_))) => Some(ColumnType::I64),
        (Type::FLOAT, None) | (Type::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Float16)) => Some(ColumnType::F32),
        (Type::DOUBLE, None) => Some(ColumnType::F64),
        // A mask, as 0 and 1.
        (Type::BOOLEAN, None) => Some(ColumnType::U32),
        (Type::BYTE_ARRAY, Some(LogicalType::String)) => Some(ColumnType::Text),
        _ => None,
    }
}

/// Appends what an array holds.
fn append(array: &ArrayRef, values: &mut ColumnValues<'static>) -> Outcome<()> {
    fn numbers<T: ArrowPrimitiveType, U>(array: &ArrayRef, to: &mut Vec<U>, as_stored: impl Fn(T::Native) -> U) {
        to.extend(array.as_primitive::<T>().values().iter().map(|&value| as_stored(value)));
    }
    if array.null_count() > 0 {
        return Err("null values: every row needs one: leave such rows or this column out".to_string().into());
    }
    match (values, array.data_type()) {
        (ColumnValues::I32(to), DataType::Int8) => numbers::<Int8Type, _>(array, to.to_mut(), i32::from),
        (ColumnValues::I32(to), DataType::Int16) => numbers::<Int16Type, _>(array, to.to_mut(), i32::from),
        (ColumnValues::I32(to), DataType::Int32) => numbers::<Int32Type, _>(array, to.to_mut(), |value| value),
        (ColumnValues::U32(to), DataType::Boolean) => {
            to.to_mut().extend(array.as_boolean().values().iter().map(u32::from))
        }
        (ColumnValues::U32(to), DataType::UInt8) => numbers::<UInt8Type, _>(array, to.to_mut(), u32::from),
        (ColumnValues::U32(to), DataType::UInt16) => numbers::<UInt16Type, _>(array, to.to_mut(), u32::from),
        (ColumnValues::U32(to), DataType::UInt32) => numbers::<UInt32Type, _>(array, to.to_mut(), |value| value),
        (ColumnValues::I64(to), DataType::Int64) => numbers::<Int64Type, _>(array, to.to_mut(), |value| value),
        (ColumnValues::U64(to), DataType::UInt64) => numbers::<UInt64Type, _>(array, to.to_mut(), |value| value),
        (ColumnValues::F32(to), DataType::Float16) => {
            numbers::<Float16Type, _>(array, to.to_mut(), |value| value.to_f32())
        }
        (ColumnValues::F32(to), DataType::Float32) => numbers::<Float32Type, _>(array, to.to_mut(), |value| value),
        (ColumnValues::F64(to), DataType::Float64) => numbers::<Float64Type, _>(array, to.to_mut(), |value| value),
        (ColumnValues::Text(to), DataType::Utf8) => {
            to.to_mut().extend(array.as_string::<i32>().iter().map(|text| text.unwrap_or_default().to_string()));
        }
        (_, other) => return Err(format!("is {other}: integers, floating-point numbers or text come along").into()),
    }
    Ok(())
}
