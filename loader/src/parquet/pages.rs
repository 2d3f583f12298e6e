//! Pages of a column chunk: where their values lie, without copying them.
//!
//! Three layouts need no general decoder. `raw`: required FixedSizeBinary, PLAIN, uncompressed: the page is the rows. With
//! levels in front of the values (optional columns, lists): the same once the levels were checked to say that nothing is null
//! and every list has the one width. Everything else goes through the arrow reader (`decode.rs`).

use crate::parquet::thrift::{Outcome, Reader, kind};

/// A page in a chunk's bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Page {
    /// Where the header begins.
    pub(crate) start: usize,
    /// Where the data begins.
    pub(crate) data: usize,
    /// Where the page ends.
    pub(crate) end: usize,
    /// 0 data, 2 dictionary, 3 data v2.
    pub(crate) kind: i64,
    pub(crate) uncompressed: i64,
    pub(crate) values: i64,
    pub(crate) encoding: i64,
    /// Bytes of levels in front of v2 data.
    pub(crate) levels: i64,
    /// Whether v2 data were left as they are, where compressing them gained nothing.
    pub(crate) is_stored: bool,
}

impl Page {
    pub(crate) fn is_dictionary(&self) -> bool {
        self.kind == 2
    }

    pub(crate) fn is_plain_data(&self) -> bool {
        (self.kind == 0 || self.kind == 3) && self.encoding == 0
    }
}

/// A run of rows whose bytes are contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// Byte in the buffer.
    pub(crate) at: usize,
}

/// Reads the headers of all pages in `chunk` and checks their sizes.
pub(crate) fn scan(chunk: &[u8], max_uncompressed: u64) -> Outcome<Vec<Page>> {
    let mut pages = Vec::new();
    let (mut at, mut uncompressed) = (0, 0u64);
    while at < chunk.len() {
        let mut page = header(&chunk[at..])?;
        page.start = at;
        page.data += at;
        page.end += at;
        if page.end > chunk.len() {
            return Err("a page is longer than its chunk");
        }
        uncompressed += page.uncompressed.max(0) as u64;
        if page.uncompressed < 0 || uncompressed > max_uncompressed {
            return Err("pages declare more data than the rows can have");
        }
        at = page.end;
        pages.push(page);
    }
    Ok(pages)
}

/// How many of the first bytes of a chunk are whole pages.
pub(crate) fn whole_pages(start: &[u8]) -> usize {
    let mut at = 0;
    while at < start.len() {
        match header(&start[at..]) {
            Ok(page) if page.end <= start.len() - at => at += page.end,
            _ => break,
        }
    }
    at
}

/// The page whose header `bytes` begin with, counted from there.
pub(crate) fn header(bytes: &[u8]) -> Outcome<Page> {
    let mut r = Reader::new(bytes);
    let (mut page, mut compressed, mut last) = (Page { kind: -1, ..Page::default() }, -1, 0);
    while let Some((id, kind)) = r.field(&mut last)? {
        match (id, kind) {
            (1, kind::I32) => page.kind = r.int()?,
            (2, kind::I32) => page.uncompressed = r.int()?,
            (3, kind::I32) => compressed = r.int()?,
            (5 | 7 | 8, kind::STRUCT) => data_header(&mut r, id == 8, &mut page)?,
            _ => r.skip(kind, 0)?,
        }
    }
    if compressed < 0 || page.values < 0 || page.levels < 0 {
        return Err("a page header has negative sizes");
    }
    page.data = r.at;
    page.end = r.at.checked_add(compressed as usize).ok_or("a page is too long")?;
    Ok(page)
}

fn data_header(r: &mut Reader<'_>, v2: bool, page: &mut Page) -> Outcome<()> {
    let mut last = 0;
    while let Some((id, kind)) = r.field(&mut last)? {
        match (id, kind, v2) {
            (1, kind::I32, _) => page.values = r.int()?,
            (2, kind::I32, false) | (4, kind::I32, true) => page.encoding = r.int()?,
            (7, kind::TRUE | kind::FALSE, true) => page.is_stored = kind == kind::FALSE,
            (5 | 6, kind::I32, true) => page.levels = page.levels.saturating_add(r.int()?),
            _ => r.skip(kind, 1)?,
        }
    }
    Ok(())
}

/// Runs of rows in raw pages.
pub(crate) fn raw_runs(chunk: &[u8], rows: usize, row_bytes: usize) -> Outcome<Vec<Run>> {
    let mut runs = Vec::new();
    let mut first_row = 0;
    for page in scan(chunk, chunk.len() as u64)? {
        let in_page = page.values as usize;
        if !page.is_plain_data() || page.levels != 0 || in_page.checked_mul(row_bytes) != Some(page.end - page.data) {
            return Err("a page is not plain rows");
        }
        runs.push(Run { first_row, rows: in_page, at: page.data });
        first_row += in_page;
    }
    if first_row == rows { Ok(runs) } else { Err("pages hold another number of rows than the row group") }
}

/// What a column's levels must look like for its values to be the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    /// 1 for a list, 0 otherwise.
    pub(crate) max_rep: u8,
    pub(crate) max_def: u8,
    /// Values per row: the width of a list, 1 for FixedSizeBinary.
    pub(crate) per_row: usize,
}

/// Runs of rows in PLAIN, uncompressed pages with levels. `Ok(None)`: valid perhaps, but not in this simple form.
pub(crate) fn level_runs(chunk: &[u8], rows: usize, row_bytes: usize, levels: Levels) -> Outcome<Option<Vec<Run>>> {
    let value_bytes = row_bytes / levels.per_row;
    let (mut runs, mut first_row) = (Vec::new(), 0);
    for page in scan(chunk, chunk.len() as u64)? {
        let values = page.values as usize;
        if page.kind != 0 || page.encoding != 0 || !values.is_multiple_of(levels.per_row) {
            return Ok(None);
        }
        let mut at = page.data;
        if levels.max_rep > 0
            && !check_levels(section(chunk, &mut at, page.end)?, values, 1, |i| u8::from(i % levels.per_row != 0))?
        {
            return Ok(None);
        }
        let bits = 8 - levels.max_def.leading_zeros();
        if levels.max_def > 0 && !check_levels(section(chunk, &mut at, page.end)?, values, bits, |_| levels.max_def)? {
            return Ok(None);
        }
        if values.checked_mul(value_bytes) != Some(page.end - at) {
            return Err("a page holds another number of values than it declares");
        }
        runs.push(Run { first_row, rows: values / levels.per_row, at });
        first_row += values / levels.per_row;
    }
    if first_row == rows { Ok(Some(runs)) } else { Err("pages hold another number of rows than the row group") }
}

/// A block of levels: its length in four bytes, then runs.
fn section<'a>(chunk: &'a [u8], at: &mut usize, end: usize) -> Outcome<&'a [u8]> {
    let start = at.checked_add(4).filter(|&s| s <= end).ok_or("a page ends inside its levels")?;
    let length = u32::from_le_bytes([chunk[*at], chunk[*at + 1], chunk[*at + 2], chunk[*at + 3]]) as usize;
    *at = start.checked_add(length).filter(|&e| e <= end).ok_or("a page ends inside its levels")?;
    Ok(&chunk[start..*at])
}

/// Whether the hybrid of runs and packed bits holds exactly so many levels, each as `expected`.
fn check_levels(bytes: &[u8], levels: usize, bits: u32, expected: impl Fn(usize) -> u8) -> Outcome<bool> {
    let (mut at, mut i) = (0usize, 0usize);
    let header = |at: &mut usize| -> Outcome<u64> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let b = *bytes.get(*at).ok_or("levels end too early")?;
            *at += 1;
            value |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("levels have an endless number")
    };
    while i < levels {
        let h = header(&mut at)?;
        let count = usize::try_from(h >> 1).map_err(|_| "levels are too many")?;
        if count == 0 {
            return Err("levels have an empty run");
        }
        if h & 1 == 0 {
            let level = *bytes.get(at).ok_or("levels end too early")?;
            at += 1;
            let end = i.saturating_add(count).min(levels);
            if (i..end).any(|k| expected(k) != level) {
                return Ok(false);
            }
            i = end;
        } else {
            let packed = count.checked_mul(bits as usize).ok_or("levels are too many")?;
            let block = bytes.get(at..at.saturating_add(packed)).ok_or("levels end too early")?;
            at += packed;
            let end = i.saturating_add(count.saturating_mul(8)).min(levels);
            let mask = (1u16 << bits) - 1;
            for k in i..end {
                let bit = (k - i) * bits as usize;
                let pair = u16::from(block[bit / 8]) | u16::from(*block.get(bit / 8 + 1).unwrap_or(&0)) << 8;
                if ((pair >> (bit % 8)) & mask) as u8 != expected(k) {
                    return Ok(false);
                }
            }
            i = end;
        }
    }
    Ok(true)
}
