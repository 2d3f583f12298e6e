//! Which column of a file holds the activations, and how its numbers are stored.

use parquet::arrow::parquet_to_arrow_schema;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type};
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use crate::error::Flaw;
use crate::parquet::metadata::{guarded, key_value, schema_text};
use crate::{Dtype, Help};

/// Columns of integers that are known beside the activations.
pub(crate) const TOKENS: [&str; 3] = ["token_id", "doc_id", "pos"];

type Outcome<T> = std::result::Result<T, Flaw>;

/// The activation column of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    /// Its leaf.
    pub(crate) leaf: usize,
    /// Its name: that of the column, and of the fields inside it that lead to the rows (`acts.layer3`).
    pub(crate) name: String,
    /// The format that rows are handed over in.
    pub(crate) dtype: Dtype,
    /// Whether numbers are stored as f64, and narrowed when they are read.
    pub(crate) is_double: bool,
    /// Lists around a row: 1 where a record of the file is a sequence of rows.
    pub(crate) outer: usize,
    /// Numbers per row where the type says so, as that of FixedSizeBinary does.
    pub(crate) width: Option<usize>,
}

impl Column {
    /// Bytes of a number as the file stores it.
    pub(crate) fn stored_size(&self) -> usize {
        if self.is_double { 8 } else { self.dtype.size() }
    }
}

/// What a leaf may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Lists of numbers: (format, whether it is narrowed to that).
    Lists(Dtype, bool),
    /// A row in so many bytes.
    Binary(i32),
}

fn form(c: &ColumnDescriptor) -> Option<Form> {
    match (c.physical_type(), c.logical_type_ref(), c.max_rep_level()) {
        (Type::FLOAT, _, 1..) => Some(Form::Lists(Dtype::F32, false)),
        (Type::DOUBLE, _, 1..) => Some(Form::Lists(Dtype::F32, true)),
        (Type::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Float16), 1..) => Some(Form::Lists(Dtype::F16, false)),
        (Type::FIXED_LEN_BYTE_ARRAY, None, _) => Some(Form::Binary(c.type_length())),
        _ => None,
    }
}

/// Whether nothing has to be made of the rows: no narrowing, no lists around them.
fn is_simple(c: &ColumnDescriptor) -> bool {
    match form(c) {
        Some(Form::Lists(_, is_double)) => c.max_rep_level() == 1 && !is_double,
        Some(Form::Binary(_)) => c.max_rep_level() == 0,
        None => false,
    }
}

/// Finds the activation column: the one that is `wanted`; else the one called `activation` or `act`, the only one that fits, or the
/// only one that is read as it stands.
pub(crate) fn find(metadata: &ParquetMetaData, wanted: Option<&str>) -> Outcome<Column> {
    let schema = metadata.file_metadata().schema_descr();
    let fitting: Vec<usize> = (0..schema.num_columns()).filter(|&i| form(&schema.column(i)).is_some()).collect();
    let names = |leaves: &[usize]| leaves.iter().map(|&i| name(schema, i)).collect::<Vec<_>>().join(", ");
    let leaf = match wanted {
        Some(wanted) => {
            let named: Vec<usize> = fitting.iter().copied().filter(|&i| is_called(schema, i, wanted)).collect();
            match named.as_slice() {
                [leaf] => *leaf,
                [] => {
                    return Err(format!(
                        "no activation column named {wanted}: FixedSizeBinary or lists of float16/float32/float64 here are: [{}]",
                        names(&fitting)
                    ).into());
                }
                several => {
                    let text = format!("several columns lie under {wanted} ({})", names(several));
                    return Err(Flaw::from(text).with(Help::Column));
                }
            }
        }
        None => choose(schema, &fitting).ok_or_else(|| {
            if fitting.is_empty() {
                Flaw::from(format!(
                    "no activation column: FixedSizeBinary or a list of float16/float32/float64 is needed; the file has: {}",
                    schema_text(metadata).replace('\n', ", ")
                ))
            } else {
                let text = format!("several columns could be the activations ({})", names(&fitting));
                Flaw::from(text).with(Help::Column)
            }
        })?,
    };
    let descriptor = schema.column(leaf);
    let lists = descriptor.max_rep_level() as usize;
    let name = name(schema, leaf);
    match form(&descriptor) {
        Some(Form::Binary(bytes)) => {
            let root = descriptor.path().parts().first().cloned().unwrap_or_default();
            let (dtype, is_double, width) = binary_shape(metadata, &root, bytes)?;
            Ok(Column { leaf, name, dtype, is_double, outer: lists, width: Some(width) })
        }
        Some(Form::Lists(dtype, is_double)) => {
            Ok(Column { leaf, name, dtype, is_double, outer: lists - 1, width: None })
        }
        None => Err(format!("column {name} holds no activations").into()),
    }
}

/// The one that nobody has named.
fn choose(schema: &SchemaDescriptor, fitting: &[usize]) -> Option<usize> {
    let only = |of: &mut dyn Iterator<Item = usize>| of.next().filter(|_| of.next().is_none());
    let root = |i: usize| schema.column(i).path().parts().first().cloned().unwrap_or_default();
    if let Some(usual) = fitting.iter().map(|&i| root(i)).find(|root| matches!(root.as_str(), "activation" | "act")) {
        // Of several fields inside it none is more likely than another.
        return only(&mut fitting.iter().copied().filter(|&i| root(i) == usual));
    }
    only(&mut fitting.iter().copied())
        .or_else(|| only(&mut fitting.iter().copied().filter(|&i| is_simple(&schema.column(i)))))
}

/// Whether a leaf is meant by a name: its own, that of a column or field it lies in, or its whole path.
fn is_called(schema: &SchemaDescriptor, leaf: usize, wanted: &str) -> bool {
    let column = schema.column(leaf);
    let parts = column.path().parts();
    (1..=parts.len()).any(|n| parts[..n].join(".") == wanted)
}

/// The name of a leaf without what every list adds to it.
pub(crate) fn name(schema: &SchemaDescriptor, leaf: usize) -> String {
    let column = schema.column(leaf);
    let mut fields = schema.root_schema().get_fields();
    let mut name: Vec<&str> = Vec::new();
    for part in column.path().parts() {
        name.push(part);
        let Some(node) = fields.iter().find(|field| field.name() == part) else { break };
        let info = node.get_basic_info();
        let is_list =
            info.converted_type() == ConvertedType::LIST || info.logical_type_ref() == Some(&LogicalType::List);
        let is_repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
        if is_list || is_repeated || !node.is_group() {
            break;
        }
        fields = node.get_fields();
    }
    name.join(".")
}

/// Format, whether it is narrowed, and width of a FixedSizeBinary column, from metadata.
fn binary_shape(metadata: &ParquetMetaData, root: &str, bytes: i32) -> Outcome<(Dtype, bool, usize)> {
    let bytes = usize::try_from(bytes).map_err(|_| "damaged: negative type length")?;
    let Some(name) = annotation(metadata, root, "sae.dtype") else {
        return Err(format!(
            "column {root} is FixedSizeBinary({bytes}) and nothing says what the bytes are: add the metadata sae.dtype \
             (f32, f16 or bf16) and sae.width to the file or the field"
        )
        .into());
    };
    let is_double = matches!(name.to_ascii_lowercase().as_str(), "f64" | "float64" | "double");
    let dtype = if is_double { Some(Dtype::F32) } else { Dtype::parse(&name) };
    let dtype = dtype.ok_or_else(|| format!("sae.dtype is {name:?}: f32, f16, bf16 or f64 are understood"))?;
    let size = if is_double { 8 } else { dtype.size() };
    let width = bytes / size;
    let stated = annotation(metadata, root, "sae.width");
    if bytes % size != 0 || stated.as_ref().is_some_and(|w| w.parse() != Ok(width)) {
        return Err(format!(
            "column {root} has {bytes} bytes a row, which are not {} numbers of {}",
            stated.unwrap_or_else(|| "whole".into()),
            if is_double { "f64" } else { dtype.name() }
        )
        .into());
    }
    Ok((dtype, is_double, width))
}

/// A value from the file's metadata or, failing that, from the field's.
fn annotation(metadata: &ParquetMetaData, root: &str, key: &str) -> Option<String> {
    key_value(metadata, key).or_else(|| {
        let file = metadata.file_metadata();
        let schema = guarded(|| {
            parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())
                .map_err(|e| Flaw::of(e.to_string(), e))
        });
        schema.ok()?.field_with_name(root).ok()?.metadata().get(key).cloned()
    })
}

/// The leaves that lie in the column of this name.
pub(crate) fn leaves(metadata: &ParquetMetaData, wanted: &str) -> Vec<usize> {
    let schema = metadata.file_metadata().schema_descr();
    (0..schema.num_columns()).filter(|&i| name(schema, i) == wanted).collect()
}
