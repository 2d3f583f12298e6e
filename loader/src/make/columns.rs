//! Columns beside the activations in shards that are written here: one value a row.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use parquet::basic::{LogicalType, Type};
use parquet::column::writer::ColumnWriterImpl;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::Result as ParquetResult;
use parquet::file::writer::SerializedColumnWriter;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A column beside the activations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraColumn {
    /// Its name.
    pub name: String,
    /// What its values are.
    #[serde(rename = "type")]
    pub kind: ColumnType,
}

/// What the values of a column are. No value is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Signed integers of 32 bits.
    I32,
    /// Signed integers of 64 bits.
    I64,
    /// Integers of 32 bits without a sign.
    U32,
    /// Integers of 64 bits without a sign.
    U64,
    /// Floating-point numbers of 32 bits.
    F32,
    /// Floating-point numbers of 64 bits.
    F64,
    /// Text in UTF-8.
    Text,
}

/// Columns that a data set may have besides its activations, and no more: each has to be written with every row.
pub(crate) const MOST_COLUMNS: usize = 1024;

impl ExtraColumn {
    /// A column of this name and type.
    pub fn new(name: impl Into<String>, kind: ColumnType) -> Self {
        ExtraColumn { name: name.into(), kind }
    }

    /// `token_id`, `doc_id` and `pos`, which row filters look at, as integers of 32 bits.
    pub fn tokens() -> Vec<Self> {
        ["token_id", "doc_id", "pos"].map(|name| ExtraColumn::new(name, ColumnType::I32)).to_vec()
    }

    /// Refuses columns that cannot stand beside each other and beside `activations`.
    pub(crate) fn check(columns: &[ExtraColumn], activations: &str) -> Result<()> {
        if columns.len() > MOST_COLUMNS {
            let text = format!("{} columns beside the activations: {MOST_COLUMNS} at most are written", columns.len());
            return Err(Error::Arguments(text));
        }
        let mut names = BTreeSet::from([activations]);
        for ExtraColumn { name, .. } in columns {
            if name.is_empty() || !names.insert(name) {
                return Err(Error::Arguments(format!(
                    "a column named {name:?} cannot be written: names are not empty, each is there once, and \
                     {activations:?} is that of the activations"
                )));
            }
        }
        Ok(())
    }
}

impl ColumnType {
    /// Its name, as a manifest of parts has it: `i32`, `text`, …
    pub fn name(self) -> &'static str {
        match self {
            ColumnType::I32 => "i32",
            ColumnType::I64 => "i64",
            ColumnType::U32 => "u32",
            ColumnType::U64 => "u64",
            ColumnType::F32 => "f32",
            ColumnType::F64 => "f64",
            ColumnType::Text => "text",
        }
    }

    pub(crate) fn physical(self) -> (Type, Option<LogicalType>) {
        match self {
            ColumnType::I32 => (Type::INT32, None),
            ColumnType::I64 => (Type::INT64, None),
            ColumnType::U32 => (Type::INT32, Some(LogicalType::integer(32, false))),
            ColumnType::U64 => (Type::INT64, Some(LogicalType::integer(64, false))),
            ColumnType::F32 => (Type::FLOAT, None),
            ColumnType::F64 => (Type::DOUBLE, None),
            ColumnType::Text => (Type::BYTE_ARRAY, Some(LogicalType::String)),
        }
    }

    pub(crate) fn arrow(self) -> arrow::datatypes::DataType {
        use arrow::datatypes::DataType;
        match self {
            ColumnType::I32 => DataType::Int32,
            ColumnType::I64 => DataType::Int64,
            ColumnType::U32 => DataType::UInt32,
            ColumnType::U64 => DataType::UInt64,
            ColumnType::F32 => DataType::Float32,
            ColumnType::F64 => DataType::Float64,
            ColumnType::Text => DataType::Utf8,
        }
    }
}

/// Values of a column for some rows, one each.
#[derive(Debug, Clone, PartialEq)]
pub enum ColumnValues<'a> {
    /// Of a column [`ColumnType::I32`].
    I32(Cow<'a, [i32]>),
    /// Of a column [`ColumnType::I64`].
    I64(Cow<'a, [i64]>),
    /// Of a column [`ColumnType::U32`].
    U32(Cow<'a, [u32]>),
    /// Of a column [`ColumnType::U64`].
    U64(Cow<'a, [u64]>),
    /// Of a column [`ColumnType::F32`].
    F32(Cow<'a, [f32]>),
    /// Of a column [`ColumnType::F64`].
    F64(Cow<'a, [f64]>),
    /// Of a column [`ColumnType::Text`].
    Text(Cow<'a, [String]>),
}

/// Slices, arrays and vectors of numbers and text are values.
macro_rules! values_from {
    ($($number:ty => $variant:ident),* $(,)?) => {$(
        impl<'a> From<&'a [$number]> for ColumnValues<'a> {
            fn from(values: &'a [$number]) -> Self {
                ColumnValues::$variant(Cow::Borrowed(values))
            }
        }
        impl<'a, const N: usize> From<&'a [$number; N]> for ColumnValues<'a> {
            fn from(values: &'a [$number; N]) -> Self {
                ColumnValues::$variant(Cow::Borrowed(values))
            }
        }
        impl<'a> From<&'a Vec<$number>> for ColumnValues<'a> {
            fn from(values: &'a Vec<$number>) -> Self {
                ColumnValues::$variant(Cow::Borrowed(values))
            }
        }
        impl From<Vec<$number>> for ColumnValues<'_> {
            fn from(values: Vec<$number>) -> Self {
                ColumnValues::$variant(Cow::Owned(values))
            }
        }
    )*};
}
values_from!(i32 => I32, i64 => I64, u32 => U32, u64 => U64, f32 => F32, f64 => F64, String => Text);

/// The same for the values of every type.
macro_rules! of_each {
    ($values:expr, $each:ident => $do:expr) => {
        match $values {
            ColumnValues::I32($each) => $do,
            ColumnValues::I64($each) => $do,
            ColumnValues::U32($each) => $do,
            ColumnValues::U64($each) => $do,
            ColumnValues::F32($each) => $do,
            ColumnValues::F64($each) => $do,
            ColumnValues::Text($each) => $do,
        }
    };
}

impl ColumnValues<'_> {
    /// None of this type.
    pub fn none(kind: ColumnType) -> ColumnValues<'static> {
        match kind {
            ColumnType::I32 => Vec::<i32>::new().into(),
            ColumnType::I64 => Vec::<i64>::new().into(),
            ColumnType::U32 => Vec::<u32>::new().into(),
            ColumnType::U64 => Vec::<u64>::new().into(),
            ColumnType::F32 => Vec::<f32>::new().into(),
            ColumnType::F64 => Vec::<f64>::new().into(),
            ColumnType::Text => Vec::<String>::new().into(),
        }
    }

    /// The type of the column that they are of.
    pub fn kind(&self) -> ColumnType {
        match self {
            ColumnValues::I32(_) => ColumnType::I32,
            ColumnValues::I64(_) => ColumnType::I64,
            ColumnValues::U32(_) => ColumnType::U32,
            ColumnValues::U64(_) => ColumnType::U64,
            ColumnValues::F32(_) => ColumnType::F32,
            ColumnValues::F64(_) => ColumnType::F64,
            ColumnValues::Text(_) => ColumnType::Text,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        of_each!(self, values => values.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A range of them.
    pub fn slice(&self, range: Range<usize>) -> ColumnValues<'_> {
        fn part<T: Clone>(values: &[T], range: Range<usize>) -> Cow<'_, [T]> {
            Cow::Borrowed(&values[range])
        }
        match self {
            ColumnValues::I32(values) => ColumnValues::I32(part(values, range)),
            ColumnValues::I64(values) => ColumnValues::I64(part(values, range)),
            ColumnValues::U32(values) => ColumnValues::U32(part(values, range)),
            ColumnValues::U64(values) => ColumnValues::U64(part(values, range)),
            ColumnValues::F32(values) => ColumnValues::F32(part(values, range)),
            ColumnValues::F64(values) => ColumnValues::F64(part(values, range)),
            ColumnValues::Text(values) => ColumnValues::Text(part(values, range)),
        }
    }

    /// One for each of `count` rows, where there is one for each record: from record `first` on, as often as the record has rows; once where
    /// records are rows.
    pub fn repeated(&self, first: usize, lengths: Option<&[u32]>, count: usize) -> ColumnValues<'_> {
        let Some(lengths) = lengths else { return self.slice(first..first + count) };
        let mut rows = ColumnValues::none(self.kind());
        for (i, &length) in lengths.iter().enumerate() {
            let one = self.slice(first + i..first + i + 1);
            (0..length).for_each(|_| rows.append(&one, 0..1));
        }
        rows
    }

    /// Takes all away.
    pub(crate) fn clear(&mut self) {
        of_each!(self, values => values.to_mut().clear());
    }

    /// Appends a range of others, which are of the same type.
    pub fn append(&mut self, others: &ColumnValues<'_>, range: Range<usize>) {
        match (self, others) {
            (ColumnValues::I32(to), ColumnValues::I32(from)) => to.to_mut().extend_from_slice(&from[range]),
            (ColumnValues::I64(to), ColumnValues::I64(from)) => to.to_mut().extend_from_slice(&from[range]),
            (ColumnValues::U32(to), ColumnValues::U32(from)) => to.to_mut().extend_from_slice(&from[range]),
            (ColumnValues::U64(to), ColumnValues::U64(from)) => to.to_mut().extend_from_slice(&from[range]),
            (ColumnValues::F32(to), ColumnValues::F32(from)) => to.to_mut().extend_from_slice(&from[range]),
            (ColumnValues::F64(to), ColumnValues::F64(from)) => to.to_mut().extend_from_slice(&from[range]),
            (ColumnValues::Text(to), ColumnValues::Text(from)) => to.to_mut().extend_from_slice(&from[range]),
            (to, from) => debug_assert!(false, "{:?} are no {:?}", from.kind(), to.kind()),
        }
    }

    /// Writes all as the chunk of a row group.
    pub(crate) fn write(&self, mut column: SerializedColumnWriter<'_>) -> ParquetResult<()> {
        match self {
            ColumnValues::I32(values) => all::<Int32Type>(column.typed(), values)?,
            ColumnValues::U32(values) => all::<Int32Type>(column.typed(), bytemuck::cast_slice(values))?,
            ColumnValues::I64(values) => all::<Int64Type>(column.typed(), values)?,
            ColumnValues::U64(values) => all::<Int64Type>(column.typed(), bytemuck::cast_slice(values))?,
            ColumnValues::F32(values) => all::<FloatType>(column.typed(), values)?,
            ColumnValues::F64(values) => all::<DoubleType>(column.typed(), values)?,
            ColumnValues::Text(values) => {
                let values: Vec<ByteArray> = values.iter().map(|text| ByteArray::from(text.as_str())).collect();
                all::<ByteArrayType>(column.typed(), &values)?;
            }
        }
        column.close()
    }
}

fn all<T: parquet::data_type::DataType>(column: &mut ColumnWriterImpl<'_, T>, values: &[T::T]) -> ParquetResult<()> {
    column.write_batch(values, None, None).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_cannot_stand_beside_each_other_are_refused() {
        let named = |names: &[&str]| {
            let columns: Vec<_> = names.iter().map(|name| ExtraColumn::new(*name, ColumnType::U64)).collect();
            ExtraColumn::check(&columns, "activation")
        };
        assert!(named(&["a", "b"]).is_ok());
        for names in [&["a", "a"][..], &[""], &["activation"]] {
            assert!(matches!(named(names), Err(Error::Arguments(_))), "{names:?}");
        }
        assert!(ExtraColumn::check(&vec![ExtraColumn::new("a", ColumnType::I32); MOST_COLUMNS + 1], "x").is_err());
    }

    #[test]
    fn values_of_every_type_are_appended_in_ranges() {
        let text = ["a", "b", "c"].map(str::to_owned);
        let all: [ColumnValues<'_>; 7] = [
            (&[1i32, 2, 3]).into(),
            (&[1i64, 2, 3]).into(),
            (&[1u32, 2, 3]).into(),
            (&[1u64, 2, 3]).into(),
            (&[1f32, 2.0, 3.0]).into(),
            (&[1f64, 2.0, 3.0]).into(),
            (&text).into(),
        ];
        for values in all {
            let mut some = ColumnValues::none(values.kind());
            assert!(some.is_empty());
            some.append(&values, 1..3);
            some.append(&values, 0..1);
            assert_eq!((some.len(), some.kind()), (3, values.kind()));
            let mut two = ColumnValues::none(values.kind());
            two.append(&some, 2..3);
            two.append(&some, 0..2);
            assert_eq!(two, values);
            two.clear();
            assert!(two.is_empty());
        }
    }
}
