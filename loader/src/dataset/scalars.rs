//! Columns of one value a row beside the activations, whatever they hold: token ids, and anything else that a writer has put there.
//!
//! They go along with what is made of the rows, so one rule decides which: a column that every shard has at its top, under one name
//! and in one type. Where records are sequences of rows it has to be nested as they are, and hold integers. All others are left out
//! by name, with the reason. Values may be absent.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, BooleanArray, new_empty_array};
use arrow::compute::filter;
use arrow::datatypes::DataType;
use parquet::basic::Type;
use serde::{Deserialize, Serialize};

use crate::dataset::tokens::{self, each_footer};
use crate::error::Flaw;
use crate::parquet::chunks;
use crate::parquet::column;
use crate::parquet::decode;
use crate::parquet::footer::Footer;
use crate::parquet::metadata::{check_codec, groups_with_rows};
use crate::{Dataset, Error, Result};

/// A column beside the activations that every shard has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scalar {
    name: String,
    #[serde(rename = "type", with = "kind")]
    data_type: DataType,
}

impl Scalar {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn data_type(&self) -> &DataType {
        &self.data_type
    }
}

/// Names of the types that values may have: as a plan keeps them.
mod kind {
    use arrow::datatypes::{DataType, TimeUnit};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) const KNOWN: [(&str, DataType); 22] = [
        ("bool", DataType::Boolean),
        ("i8", DataType::Int8),
        ("i16", DataType::Int16),
        ("i32", DataType::Int32),
        ("i64", DataType::Int64),
        ("u8", DataType::UInt8),
        ("u16", DataType::UInt16),
        ("u32", DataType::UInt32),
        ("u64", DataType::UInt64),
        ("f32", DataType::Float32),
        ("f64", DataType::Float64),
        ("string", DataType::Utf8),
        ("binary", DataType::Binary),
        ("date", DataType::Date32),
        ("time_s", DataType::Time32(TimeUnit::Second)),
        ("time_ms", DataType::Time32(TimeUnit::Millisecond)),
        ("time_us", DataType::Time64(TimeUnit::Microsecond)),
        ("time_ns", DataType::Time64(TimeUnit::Nanosecond)),
        ("timestamp_s", DataType::Timestamp(TimeUnit::Second, None)),
        ("timestamp_ms", DataType::Timestamp(TimeUnit::Millisecond, None)),
        ("timestamp_us", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ("timestamp_ns", DataType::Timestamp(TimeUnit::Nanosecond, None)),
    ];

    pub(super) fn is_known(data_type: &DataType) -> bool {
        KNOWN.iter().any(|(_, known)| known == data_type)
    }

    pub(super) fn name(data_type: &DataType) -> String {
        let known = KNOWN.iter().find(|(_, known)| known == data_type);
        known.map_or_else(|| data_type.to_string(), |(name, _)| (*name).to_owned())
    }

    pub(super) fn serialize<S: Serializer>(data_type: &DataType, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&name(data_type))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DataType, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = KNOWN.into_iter().find(|(name, _)| *name == text);
        known.map(|(_, data_type)| data_type).ok_or_else(|| D::Error::custom(format!("no type of values: {text}")))
    }
}

/// What there is beside the activations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scalars {
    /// Columns that go along, by name.
    pub columns: Vec<Scalar>,
    /// Columns that do not, and why.
    pub left_out: Vec<(String, String)>,
}

/// Values of a column for some rows.
#[derive(Debug, Clone)]
pub struct Values(ArrayRef);

impl Values {
    /// No values of a column.
    pub(crate) fn none(scalar: &Scalar) -> Self {
        Values(new_empty_array(&scalar.data_type))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn array(&self) -> &ArrayRef {
        &self.0
    }

    pub(crate) fn slice(&self, from: usize, count: usize) -> Values {
        Values(self.0.slice(from, count))
    }

    /// The values of the rows that are kept.
    pub(crate) fn kept(&self, is_kept: &BooleanArray) -> std::result::Result<Values, Flaw> {
        filter(&self.0, is_kept).map(Values).map_err(|error| Flaw::of(error.to_string(), error))
    }
}

/// What a file has at its top beside the activations: for each name its type, or why it cannot go along.
type Found = BTreeMap<String, std::result::Result<DataType, String>>;

impl Dataset {
    /// The columns of one value a row that every shard with rows has, in one type. Reads all footers.
    ///
    /// # Errors
    /// Those of the store, and of a footer that cannot be read.
    pub fn scalars(&self) -> Result<Scalars> {
        let found = each_footer(self, None, found)?;
        let mut names = BTreeSet::new();
        found.iter().for_each(|(_, found)| names.extend(found.keys().cloned()));
        let mut all = Scalars::default();
        for name in names {
            let mut agreed: Option<DataType> = None;
            let mut why_not = None;
            for (shard, found) in &found {
                let path = &self.shards()[*shard as usize].path;
                match found.get(&name) {
                    None => why_not = Some(format!("{path} has no such column")),
                    Some(Err(reason)) => why_not = Some(format!("{path}: {reason}")),
                    Some(Ok(data_type)) => match &agreed {
                        Some(agreed) if agreed != data_type => {
                            let (here, there) = (kind::name(data_type), kind::name(agreed));
                            why_not = Some(format!("it is {here} in {path}, and {there} in others"));
                        }
                        _ => agreed = Some(data_type.clone()),
                    },
                }
                if why_not.is_some() {
                    break;
                }
            }
            match (why_not, agreed) {
                (None, Some(data_type)) => all.columns.push(Scalar { name, data_type }),
                (why_not, _) => all.left_out.push((name, why_not.unwrap_or_default())),
            }
        }
        Ok(all)
    }

    /// The values of a column for all rows of a row group, in lists as long as `outer` says where rows are in lists.
    pub(crate) fn scalar_values(&self, scalar: &Scalar, shard: u32, group: u32) -> Result<Values> {
        let footer = self.footer(shard)?;
        let (store, key) = self.source(shard);
        let name = &scalar.name;
        let fail =
            |flaw: Flaw| Error::data(self.group_name(shard, group), flaw.said(|text| format!("column {name}: {text}")));
        let changed = || fail("is no longer what it was when the data were opened".into());
        if found(&footer).get(name) != Some(&Ok(scalar.data_type.clone())) {
            return Err(changed());
        }
        let leaf = *column::leaves(&footer.metadata, name).first().ok_or_else(changed)?;
        let rows = self.shards()[shard as usize].row_groups[group as usize].rows as usize;
        let place = chunks::place(footer.metadata.row_group(group as usize).column(leaf));
        let bytes = store.get_range(key, place.offset..place.offset + place.length)?;
        let array = match footer.activations().map_err(fail)?.outer {
            0 => decode::scalar_column(&footer, leaf, group as usize, bytes, rows),
            _ => {
                let beside = decode::Beside { rows, outer: None };
                decode::int_column(&footer, leaf, group as usize, bytes, beside).map(decode::i64_array)
            }
        };
        let array = array.map_err(fail)?;
        // A column of chunks without a value may come as another type.
        if *array.data_type() == scalar.data_type { Ok(Values(array)) } else { Err(changed()) }
    }
}

/// The columns of a file beside its activations.
fn found(footer: &Footer) -> Found {
    let Some(activations) = &footer.column else { return Found::new() };
    let schema = footer.metadata.file_metadata().schema_descr();
    let arrow = decode::arrow_fields(footer);
    let mut all = Found::new();
    for leaf in (0..schema.num_columns()).filter(|&leaf| leaf != activations.leaf) {
        let (descriptor, name) = (schema.column(leaf), column::name(schema, leaf));
        let of_one = |footer: &Footer| -> std::result::Result<DataType, String> {
            if column::leaves(&footer.metadata, &name).len() > 1 || name.contains('.') {
                return Err("it lies in a struct".into());
            }
            if activations.outer > 0 {
                let leaf = tokens::leaf(footer, &name).map_err(|flaw| flaw.to_string())?;
                return leaf.map(|_| DataType::Int64).ok_or_else(|| "it is no column of integers".into());
            }
            if descriptor.max_rep_level() > 0 {
                return Err("it holds lists".into());
            }
            if descriptor.physical_type() == Type::FIXED_LEN_BYTE_ARRAY {
                return Err("it holds bytes of a fixed length".into());
            }
            let data_type = arrow.get(&name).cloned().ok_or_else(|| "its type is not known".to_owned())?;
            if !kind::is_known(&data_type) {
                return Err(format!("it holds {data_type}"));
            }
            for (_, group) in groups_with_rows(&footer.metadata) {
                let chunk = group.column(leaf);
                check_codec(chunk)?;
                if !chunks::is_named(chunk, footer.data_end) {
                    return Err("the footer does not say where it begins".into());
                }
            }
            Ok(data_type)
        };
        all.insert(name.clone(), of_one(footer));
    }
    all
}
