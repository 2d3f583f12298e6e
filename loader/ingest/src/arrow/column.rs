//! Columns as the schema of an Arrow file has them: lists around values, and which of a batch's buffers are theirs.

use arrow_ipc::{Field, Precision, Type};
use tensors::Number;

/// Lists around values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// Offsets of so many bytes.
    Offsets(u64),
    /// All of one length.
    Fixed(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    Numbers(Number),
    /// One bit each.
    Bools,
    /// With offsets of so many bytes.
    Text(u64),
    Other,
}

/// A column as the schema has it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// From the outermost on.
    pub(crate) lists: Vec<List>,
    pub(crate) leaf: Leaf,
    pub(crate) first_node: usize,
    pub(crate) first_buffer: usize,
}

/// Lists around the values of a field, and these.
pub(crate) fn form(field: &Field<'_>) -> (Vec<List>, Leaf) {
    if field.dictionary().is_some() {
        return (Vec::new(), Leaf::Other);
    }
    let inside = |list: List| {
        let (mut lists, leaf) =
            field.children().filter(|c| c.len() == 1).map_or((Vec::new(), Leaf::Other), |c| form(&c.get(0)));
        lists.insert(0, list);
        (lists, leaf)
    };
    let number = |number| (Vec::new(), Leaf::Numbers(number));
    match field.type_type() {
        Type::List => inside(List::Offsets(4)),
        Type::LargeList => inside(List::Offsets(8)),
        Type::FixedSizeList => {
            let length = field.type_as_fixed_size_list().map_or(0, |list| list.listSize());
            inside(List::Fixed(u64::try_from(length).unwrap_or(0)))
        }
        Type::FloatingPoint => match field.type_as_floating_point().map(|float| float.precision()) {
            Some(Precision::HALF) => number(Number::F16),
            Some(Precision::SINGLE) => number(Number::F32),
            Some(Precision::DOUBLE) => number(Number::F64),
            _ => (Vec::new(), Leaf::Other),
        },
        Type::Int => match field.type_as_int().map(|int| (int.bitWidth(), int.is_signed())) {
            Some((8, true)) => number(Number::I8),
            Some((16, true)) => number(Number::I16),
            Some((32, true)) => number(Number::I32),
            Some((64, true)) => number(Number::I64),
            Some((8, false)) => number(Number::U8),
            Some((16, false)) => number(Number::U16),
            Some((32, false)) => number(Number::U32),
            Some((64, false)) => number(Number::U64),
            _ => (Vec::new(), Leaf::Other),
        },
        Type::Bool => (Vec::new(), Leaf::Bools),
        Type::Utf8 => (Vec::new(), Leaf::Text(4)),
        Type::LargeUtf8 => (Vec::new(), Leaf::Text(8)),
        _ => (Vec::new(), Leaf::Other),
    }
}

/// Nodes and buffers that a field has in a batch, with all that is in it.
pub(crate) fn span(field: &Field<'_>) -> Result<(usize, usize), String> {
    if field.dictionary().is_some() {
        return Ok((1, 2));
    }
    let own = match field.type_type() {
        Type::Null => return Ok((1, 0)),
        Type::Int
        | Type::FloatingPoint
        | Type::Decimal
        | Type::Date
        | Type::Time
        | Type::Timestamp
        | Type::Interval
        | Type::Duration
        | Type::Bool
        | Type::FixedSizeBinary => return Ok((1, 2)),
        Type::Utf8 | Type::Binary | Type::LargeUtf8 | Type::LargeBinary => return Ok((1, 3)),
        Type::List | Type::LargeList | Type::Map => (1, 2),
        Type::FixedSizeList | Type::Struct_ => (1, 1),
        other => return Err(format!("of type {other:?}")),
    };
    field.children().into_iter().flatten().try_fold(own, |(nodes, buffers), child| {
        let (of_nodes, of_buffers) = span(&child)?;
        Ok((nodes + of_nodes, buffers + of_buffers))
    })
}
