//! Tensors that lie in a file as they are: their rows are read in ranges, whatever file it is.

use std::ops::Range;

use loader::{ColumnValues, Error, ExtraColumn, Help, Result};
use tensors::{File, Number, Tensor};

use crate::numbers::{column_type, kept_as, values};
use crate::unit::{BLOCK, Choice, Contents, Places, Records, Rows, Shape, Take, Unit, renamed};

/// Widest rows that are believed.
const MAX_WIDTH: u64 = 1 << 20;

type Outcome<T> = std::result::Result<T, String>;

pub(crate) fn is_activations(tensor: &Tensor) -> bool {
    (2..=3).contains(&tensor.shape.len()) && tensor.number.as_ref().is_ok_and(|&number| kept_as(number).is_some())
}

/// Rows at equal distances.
#[derive(Debug)]
pub(crate) struct Slab {
    /// Of the first row.
    offset: u64,
    /// Bytes from one row to the next.
    stride: u64,
    rows_per_record: u64,
    columns: Vec<Strip>,
}

/// A column of one number a record or a row.
#[derive(Debug)]
struct Strip {
    offset: u64,
    number: Number,
    per_record: bool,
}

/// How a tensor of three dimensions is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Three {
    /// Contexts, positions, numbers.
    Contexts,
    /// Positions of one context, layers, numbers: the layer of this index, which may be missing where there is one.
    Layers(Option<u64>),
}

/// Names that activations go by, where several tensors could be meant: the first that is there.
const USUAL: [&str; 8] =
    ["activation", "activations", "act", "acts", "hidden_states", "states", "resid", "residual_stream"];

/// Chooses the activations among tensors, and makes of them and of what fits beside them the contents of a file.
pub(crate) fn contents(
    file: &File,
    tensors: Vec<(String, Tensor)>,
    choice: Choice<'_>,
    three: Three,
) -> Result<Contents> {
    let at = choose(file, &tensors, choice.name)?;
    let (name, tensor) = (tensors[at].0.clone(), tensors[at].1.clone());
    let fail = |problem: String| file.flaw(format!("tensor {name:?}: {problem}"));
    let number = match &tensor.number {
        Ok(number) if kept_as(*number).is_some() => *number,
        _ => {
            return Err(fail(format!(
                "is {}: float16, bfloat16, float32 or float64 are activations",
                tensor.described()
            )));
        }
    };
    let (records, rows_per_record, layers, layer, width) = axes(&tensor, three).map_err(fail)?;
    let rows = records.checked_mul(rows_per_record).ok_or_else(|| fail("has more rows than can be counted".into()))?;
    let row_bytes = width * number.size();
    let stride = layers * row_bytes;
    let contexts = tensor.shape.len() == 3 || matches!(three, Three::Layers(_));

    let mut left_out = Vec::new();
    let mut beside: Vec<(String, Strip)> = Vec::new();
    let leading = if matches!(three, Three::Layers(_)) {
        vec![rows_per_record]
    } else {
        tensor.shape[..tensor.shape.len() - 1].to_vec()
    };
    let others = tensors.into_iter().enumerate().filter(|(i, _)| *i != at).map(|(_, other)| other);
    for (name, other) in others.filter(|(name, _)| choice.takes(name)) {
        let per_row = other.shape == leading;
        let per_record = contexts && other.shape == [records] && !per_row;
        match other.number {
            Ok(number) if per_row || per_record => {
                beside.push((name, Strip { offset: other.offset, number, per_record }))
            }
            _ => left_out.push(format!("{name} ({})", other.described())),
        }
    }
    let (beside, unnamed) = renamed(beside);
    left_out.extend(unnamed);
    let columns = beside.iter().map(|(name, strip)| ExtraColumn::new(name, column_type(strip.number))).collect();
    let slab = Slab {
        offset: tensor.offset + layer * row_bytes,
        stride,
        rows_per_record,
        columns: beside.into_iter().map(|(_, strip)| strip).collect(),
    };
    let name = (!name.is_empty()).then_some(name);
    let is_double = number == Number::F64;
    let shape = Shape { width, number, is_double, contexts, columns, name, left_out };
    Ok(Contents { shape: Some(shape), units: vec![Unit { file: 0, records, rows, what: Box::new(slab) }] })
}

/// Records, rows of each, layers, the layer that is meant, numbers per row.
fn axes(tensor: &Tensor, three: Three) -> Outcome<(u64, u64, u64, u64, u64)> {
    let axes = match (tensor.shape.as_slice(), three) {
        (&[rows, width], Three::Contexts) => (rows, 1, 1, 0, width),
        (&[contexts, positions, width], Three::Contexts) => (contexts, positions, 1, 0, width),
        (&[positions, width], Three::Layers(None | Some(0))) => (1, positions, 1, 0, width),
        (&[positions, 1, width], Three::Layers(None)) => (1, positions, 1, 0, width),
        (&[_, layers, _], Three::Layers(None)) => {
            return Err(format!(
                "holds {layers} layers: choose one by its place among them, from 0 to {}",
                layers.saturating_sub(1)
            ));
        }
        (&[positions, layers, width], Three::Layers(Some(layer))) if layer < layers => {
            (1, positions, layers, layer, width)
        }
        (shape, Three::Layers(Some(layer))) => {
            return Err(format!("has no layer of place {layer}: its shape is {shape:?}"));
        }
        (shape, _) => {
            return Err(format!(
                "has the shape {shape:?}: activations are [rows, width] or [contexts, positions, width]"
            ));
        }
    };
    let width = axes.4;
    if width == 0 || width > MAX_WIDTH {
        return Err(format!("has rows of {width} numbers: 1 to {MAX_WIDTH} are possible"));
    }
    Ok(axes)
}

/// Which of the tensors are the activations.
fn choose(file: &File, tensors: &[(String, Tensor)], wanted: Option<&str>) -> Result<usize> {
    let list = |which: &[usize]| {
        let named = |&i: &usize| format!("{} ({})", tensors[i].0, tensors[i].1.described());
        let shown = which.iter().take(20).map(named).collect::<Vec<_>>().join(", ");
        if which.len() > 20 { format!("{shown} and {} more", which.len() - 20) } else { shown }
    };
    let all: Vec<usize> = (0..tensors.len()).collect();
    if let Some(wanted) = wanted {
        let found = all.iter().copied().find(|&i| tensors[i].0 == wanted);
        return found.ok_or_else(|| file.flaw(format!("no tensor is named {wanted:?}: there are {}", list(&all))));
    }
    let fitting: Vec<usize> = all.iter().copied().filter(|&i| is_activations(&tensors[i].1)).collect();
    // One number for each row of a larger tensor stands beside it.
    let beside = |&i: &usize| {
        let shape = &tensors[i].1.shape;
        shape.len() == 2
            && fitting.iter().any(|&of| tensors[of].1.shape.len() == 3 && tensors[of].1.shape[..2] == shape[..])
    };
    let candidates: Vec<usize> = fitting.iter().copied().filter(|i| !beside(i)).collect();
    let usual = || USUAL.iter().find_map(|usual| candidates.iter().copied().find(|&i| tensors[i].0 == *usual));
    match candidates.as_slice() {
        [one] => Ok(*one),
        [] => Err(file.flaw(format!(
            "no tensor of activations: float16, bfloat16, float32 or float64 of shape [rows, width] or [contexts, positions, width] is needed; \
             there are: {}",
            if all.is_empty() { "none".into() } else { list(&all) }
        ))),
        several => usual().ok_or_else(|| Error::Data {
            location: file.url(),
            problem: format!("several tensors could be the activations: {}", list(several)),
            source: None,
            help: Some(Help::Column),
        }),
    }
}

impl Records for Slab {
    fn read(&self, file: &File, shape: &Shape, records: Range<u64>, take: Take<'_>) -> Result<()> {
        let row_bytes = shape.width * shape.number.size();
        let end = records.end * self.rows_per_record;
        let mut first = records.start * self.rows_per_record;
        let block = (BLOCK / self.stride).max(1);
        while first < end {
            let rows = first..(first + block).min(end);
            let start = self.offset + rows.start * self.stride;
            let length = (rows.end - rows.start - 1) * self.stride + row_bytes;
            let stored = file.read_at(start, length)?;
            let picked: Vec<u8>;
            let bytes: &[u8] = if self.stride == row_bytes {
                &stored
            } else {
                picked =
                    stored.chunks(self.stride as usize).flat_map(|row| &row[..row_bytes as usize]).copied().collect();
                &picked
            };
            let columns = self.columns.iter().map(|strip| self.column(file, strip, rows.clone()));
            let columns = columns.collect::<Result<Vec<_>>>()?;
            let places = shape.contexts.then(|| Places {
                record: rows.clone().map(|row| row / self.rows_per_record).collect(),
                pos: rows.clone().map(|row| i32::try_from(row % self.rows_per_record).unwrap_or(i32::MAX)).collect(),
            });
            take(Rows { bytes, places, columns })?;
            first = rows.end;
        }
        Ok(())
    }
}

impl Slab {
    fn column(&self, file: &File, strip: &Strip, rows: Range<u64>) -> Result<ColumnValues<'static>> {
        let size = strip.number.size();
        if !strip.per_record {
            return Ok(values(
                strip.number,
                &file.read_at(strip.offset + rows.start * size, (rows.end - rows.start) * size)?,
            ));
        }
        let records = rows.start / self.rows_per_record..(rows.end - 1) / self.rows_per_record + 1;
        let bytes = file.read_at(strip.offset + records.start * size, (records.end - records.start) * size)?;
        let of_records = values(strip.number, &bytes);
        let mut of_rows = ColumnValues::none(of_records.kind());
        for row in rows {
            let record = (row / self.rows_per_record - records.start) as usize;
            of_rows.append(&of_records, record..record + 1);
        }
        Ok(of_rows)
    }
}
