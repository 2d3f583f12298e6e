//! A record batch of an Arrow file, of which rows are read by their offsets.

use std::ops::Range;

use arrow_ipc::RecordBatch;
use loader::{ColumnValues, Error, Result};
use tensors::{File, Number, flaw_of};

use crate::arrow::column::{Column, Leaf, List};
use crate::numbers::values;
use crate::unit::{BLOCK, Places, Records, Rows, Shape, Take};

type Outcome<T> = std::result::Result<T, String>;

/// A buffer of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) at: u64,
    pub(crate) length: u64,
}

/// Lists of a batch around values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    Offsets { place: Place, size: u64, lists: u64, elements: u64 },
    Fixed { length: u64 },
}

/// A column of a batch.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) levels: Vec<Level>,
    pub(crate) leaf: Leaf,
    pub(crate) data: Place,
}

/// A record batch whose buffers lie in the file.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) activations: Stored,
    pub(crate) columns: Vec<(String, Stored)>,
}

/// Where the buffers of a column lie in a batch, held against its body.
pub(crate) fn stored(column: &Column, batch: &RecordBatch<'_>, records: u64, body: Place) -> Outcome<Stored> {
    let missing = || "damaged: the batch lacks its buffers".to_string();
    let (nodes, buffers) = (batch.nodes().ok_or_else(missing)?, batch.buffers().ok_or_else(missing)?);
    let mut at = (column.first_node, column.first_buffer);
    let length_of = |node: usize| -> Outcome<u64> {
        if node >= nodes.len() {
            return Err(missing());
        }
        let node = nodes.get(node);
        if node.null_count() != 0 {
            return Err(
                "null values: every row needs all of it: leave such records out, or the column if it only comes along"
                    .into(),
            );
        }
        u64::try_from(node.length()).map_err(|_| "damaged: a negative length".to_string())
    };
    let buffer = |buffer: usize, needed: Option<u64>| -> Outcome<Place> {
        if buffer >= buffers.len() {
            return Err(missing());
        }
        let buffer = buffers.get(buffer);
        let number = |n: i64| u64::try_from(n).ok();
        let place = number(buffer.offset()).zip(number(buffer.length()));
        let inside = place.filter(|(offset, length)| offset.checked_add(*length).is_some_and(|end| end <= body.length));
        let (offset, length) = inside.ok_or("damaged: a buffer lies outside the batch")?;
        if needed.is_none_or(|needed| needed > length) {
            return Err(format!("damaged: a buffer of {length} bytes for more values"));
        }
        Ok(Place { at: body.at + offset, length })
    };
    let mut levels = Vec::new();
    let mut length = length_of(at.0)?;
    if length != records {
        return Err(format!("damaged: {length} values in a batch of {records}"));
    }
    for list in &column.lists {
        let elements = length_of(at.0 + 1)?;
        match *list {
            List::Offsets(size) => {
                let needed =
                    if length == 0 { Some(0) } else { length.checked_add(1).and_then(|n| n.checked_mul(size)) };
                let place = buffer(at.1 + 1, needed)?;
                levels.push(Level::Offsets { place, size, lists: length, elements });
                at = (at.0 + 1, at.1 + 2);
            }
            List::Fixed(of_each) => {
                if length.checked_mul(of_each).is_none_or(|needed| needed > elements) {
                    return Err(format!("damaged: {elements} values for {length} lists of {of_each}"));
                }
                levels.push(Level::Fixed { length: of_each });
                at = (at.0 + 1, at.1 + 1);
            }
        }
        length = elements;
    }
    let data = match column.leaf {
        Leaf::Numbers(number) => buffer(at.1 + 1, length.checked_mul(number.size()))?,
        Leaf::Bools => buffer(at.1 + 1, Some(length.div_ceil(8)))?,
        Leaf::Text(size) => {
            let needed = if length == 0 { Some(0) } else { length.checked_add(1).and_then(|n| n.checked_mul(size)) };
            let place = buffer(at.1 + 1, needed)?;
            let data = buffer(at.1 + 2, Some(0))?;
            levels.push(Level::Offsets { place, size, lists: length, elements: data.length });
            data
        }
        Leaf::Other => return Err("is of a type that is not read".into()),
    };
    Ok(Stored { levels, leaf: column.leaf, data })
}

impl Level {
    /// Where the elements of lists lie: one more number than there are lists.
    fn bounds(&self, file: &File, lists: Range<u64>) -> Result<Vec<u64>> {
        match *self {
            Level::Fixed { length } => Ok((lists.start..=lists.end).map(|list| list * length).collect()),
            Level::Offsets { lists: 0, .. } => Ok(vec![0]),
            Level::Offsets { place, size, elements, .. } => {
                let bytes = file.read_at(place.at + lists.start * size, (lists.end - lists.start + 1) * size)?;
                let bounds: Vec<u64> = match size {
                    4 => bytes.as_chunks::<4>().0.iter().map(|b| u64::from(u32::from_le_bytes(*b))).collect(),
                    _ => bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
                };
                let ascend = bounds.windows(2).all(|pair| pair[0] <= pair[1]);
                if !ascend || bounds.last().is_some_and(|&last| last > elements) {
                    return Err(file.flaw(format!("damaged: offsets of lists at byte {} lead nowhere", place.at)));
                }
                Ok(bounds)
            }
        }
    }
}

impl Stored {
    fn number(&self) -> Number {
        match self.leaf {
            Leaf::Numbers(number) => number,
            _ => Number::U8,
        }
    }

    /// Elements of the innermost lists, or of none.
    fn data(&self, file: &File, elements: Range<u64>) -> Result<bytes::Bytes> {
        let size = self.number().size();
        let (start, end) = (elements.start.saturating_mul(size), elements.end.saturating_mul(size));
        if end > self.data.length {
            return Err(file.flaw(format!("damaged: values at byte {} end too early", self.data.at)));
        }
        file.read(self.data.at + start..self.data.at + end)
    }

    /// The same as values of a column.
    fn values(&self, file: &File, elements: Range<u64>) -> Result<ColumnValues<'static>> {
        if self.leaf != Leaf::Bools {
            return Ok(values(self.number(), &self.data(file, elements)?));
        }
        // Eight to a byte, the lowest bit first.
        let bytes = elements.start / 8..elements.end.div_ceil(8);
        let first = 8 * bytes.start;
        let bytes = self.data(file, bytes)?;
        let bit = |at: u64| bytes[((at - first) / 8) as usize] >> ((at - first) % 8) & 1;
        let bools: Vec<u8> = elements.map(bit).collect();
        Ok(values(Number::Bool, &bools))
    }

    /// Numbers of the row of this place.
    pub(crate) fn width(&self, file: &File, row: u64) -> Result<u64> {
        let bounds = self.levels.last().map(|level| level.bounds(file, row..row + 1)).transpose()?.unwrap_or_default();
        Ok(bounds.get(1).zip(bounds.first()).map_or(0, |(end, start)| end - start))
    }
}

impl Batch {
    /// The rows of some records.
    pub(crate) fn rows_of(&self, file: &File, records: Range<u64>) -> Result<Range<u64>> {
        match self.activations.levels.as_slice() {
            [outer, _] if records.start < records.end => {
                let first = outer.bounds(file, records.start..records.start)?[0];
                let last = outer.bounds(file, records.end..records.end)?[0];
                if first > last { Err(file.flaw("damaged: offsets of lists fall")) } else { Ok(first..last) }
            }
            _ => Ok(records),
        }
    }

    fn read_some(&self, file: &File, shape: &Shape, records: Range<u64>, take: Take<'_>) -> Result<()> {
        let row_bytes = shape.width * shape.number.size();
        let (inner, lengths, rows) = match self.activations.levels.as_slice() {
            [outer, inner] => {
                let bounds = outer.bounds(file, records.clone())?;
                let lengths: Vec<u32> =
                    bounds.windows(2).map(|pair| u32::try_from(pair[1] - pair[0]).unwrap_or(u32::MAX)).collect();
                (inner, Some(lengths), bounds[0]..bounds[bounds.len() - 1])
            }
            [inner] => (inner, None, records.clone()),
            _ => return Err(file.flaw("damaged: rows without lists")),
        };
        let count = rows.end - rows.start;
        let places = lengths.as_ref().map(|lengths| Places::of(records.start, lengths));
        let columns = self.columns.iter().map(|(name, column)| {
            beside(file, column, records.clone(), lengths.as_deref(), count as usize).map_err(|e| {
                if let Error::Data { location, problem, source, help } = e {
                    Error::Data { location, problem: format!("column {name:?}: {problem}"), source, help }
                } else {
                    e
                }
            })
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let block = (BLOCK / row_bytes).max(1);
        let mut first = rows.start;
        while first < rows.end {
            let some = first..(first + block).min(rows.end);
            let bounds = inner.bounds(file, some.clone())?;
            if let Some(pair) = bounds.windows(2).find(|pair| pair[1] - pair[0] != shape.width) {
                return Err(file.flaw(format!(
                    "lists of {} and of {} values: every row needs the same width",
                    shape.width,
                    pair[1] - pair[0]
                )));
            }
            let bytes = self.activations.data(file, bounds[0]..bounds[bounds.len() - 1])?;
            let within = (some.start - rows.start) as usize..(some.end - rows.start) as usize;
            let places = places.as_ref().map(|places| Places {
                record: places.record[within.clone()].to_vec(),
                pos: places.pos[within.clone()].to_vec(),
            });
            let columns = columns.iter().map(|column| column.slice(within.clone())).collect();
            take(Rows { bytes: &bytes, places, columns })?;
            first = some.end;
        }
        Ok(())
    }
}

impl Records for Batch {
    fn read(&self, file: &File, shape: &Shape, records: Range<u64>, take: Take<'_>) -> Result<()> {
        let row_bytes = shape.width * shape.number.size();
        let all = self.rows_of(file, records.clone())?;
        let of_each = (all.end - all.start).div_ceil((records.end - records.start).max(1)).max(1);
        let at_once = (BLOCK / row_bytes / of_each).max(1);
        let mut first = records.start;
        while first < records.end {
            let some = first..(first + at_once).min(records.end);
            self.read_some(file, shape, some.clone(), take)?;
            first = some.end;
        }
        Ok(())
    }
}

/// The values of a column for the rows of some records.
fn beside(
    file: &File,
    column: &Stored,
    records: Range<u64>,
    lengths: Option<&[u32]>,
    rows: usize,
) -> Result<ColumnValues<'static>> {
    let owned = |values: &ColumnValues<'_>| {
        let mut all = ColumnValues::none(values.kind());
        all.append(values, 0..values.len());
        all
    };
    match (column.leaf, column.levels.as_slice()) {
        (Leaf::Numbers(_) | Leaf::Bools, []) => {
            let of_records = column.values(file, records)?;
            Ok(owned(&of_records.repeated(0, lengths, rows)))
        }
        (Leaf::Numbers(_) | Leaf::Bools, [lists]) => {
            let bounds = lists.bounds(file, records.clone())?;
            let differs = |(pair, length): (&[u64], &u32)| pair[1] - pair[0] != u64::from(*length);
            if let Some(i) = bounds.windows(2).zip(lengths.unwrap_or_default()).position(differs) {
                let (has, of) = (bounds[i + 1] - bounds[i], lengths.unwrap_or_default()[i]);
                return Err(file.flaw(format!(
                    "record {} has {has} values, and {of} rows of activations",
                    records.start + i as u64
                )));
            }
            column.values(file, bounds[0]..bounds[bounds.len() - 1])
        }
        (Leaf::Text(_), [offsets]) => {
            let bounds = offsets.bounds(file, records)?;
            let bytes = column.data(file, bounds[0]..bounds[bounds.len() - 1])?;
            let text = |pair: &[u64]| {
                let part = &bytes[(pair[0] - bounds[0]) as usize..(pair[1] - bounds[0]) as usize];
                std::str::from_utf8(part)
                    .map(str::to_owned)
                    .map_err(|e| flaw_of(file.url(), "damaged: text that is not UTF-8", e))
            };
            Ok(bounds.windows(2).map(text).collect::<Result<Vec<String>>>()?.into())
        }
        _ => Err(file.flaw("damaged: another form than the schema's")),
    }
}
