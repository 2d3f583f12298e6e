//! Enough of Thrift's compact protocol to check a footer before a general reader sees it, and to read page headers.
//!
//! The Parquet reader reserves memory for a list by its declared size: a flipped bit there asks for gigabytes and aborts the
//! process. Here every list must fit into the bytes that are left, and nesting is bounded. So it is with columns inside columns,
//! which the reader descends by recursion, and with the number of all parts, each of which takes more memory than bytes.

const MAX_DEPTH: u32 = 24;
/// Columns inside columns that are believed.
const MAX_SCHEMA_DEPTH: usize = 64;
/// Structs of a footer that are believed: 100,000 row groups of ten columns with their statistics of encodings.
const MAX_STRUCTS: u64 = 4_000_000;

/// Why bytes are not what they should be.
pub(crate) type Outcome<T> = std::result::Result<T, &'static str>;

/// A bounds-checked reader.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    pub(crate) at: usize,
    /// Structs walked over so far.
    structs: u64,
}

/// Types of the compact protocol that matter here.
pub(crate) mod kind {
    pub(crate) const TRUE: u8 = 1;
    pub(crate) const FALSE: u8 = 2;
    pub(crate) const BYTE: u8 = 3;
    pub(crate) const I32: u8 = 5;
    pub(crate) const LIST: u8 = 9;
    pub(crate) const STRUCT: u8 = 12;
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0, structs: 0 }
    }

    fn byte(&mut self) -> Outcome<u8> {
        let b = *self.bytes.get(self.at).ok_or("ends too early")?;
        self.at += 1;
        Ok(b)
    }

    fn varint(&mut self) -> Outcome<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            value |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("has an endless number")
    }

    /// A zigzag number.
    pub(crate) fn int(&mut self) -> Outcome<i64> {
        let v = self.varint()?;
        Ok((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    /// The next field of a struct: (id, type); `None` at its end.
    pub(crate) fn field(&mut self, last: &mut i64) -> Outcome<Option<(i64, u8)>> {
        let b = self.byte()?;
        if b == 0 {
            return Ok(None);
        }
        let delta = i64::from(b >> 4);
        *last = if delta == 0 { self.int()? } else { last.checked_add(delta).ok_or("has a bad field")? };
        Ok(Some((*last, b & 0x0f)))
    }

    fn take(&mut self, n: u64) -> Outcome<()> {
        if n > (self.bytes.len() - self.at) as u64 {
            return Err("declares more bytes than it has");
        }
        self.at += n as usize;
        Ok(())
    }

    /// Walks over a value, checking it.
    pub(crate) fn skip(&mut self, kind: u8, depth: u32) -> Outcome<()> {
        if depth > MAX_DEPTH {
            return Err("is nested too deeply");
        }
        match kind {
            kind::TRUE | kind::FALSE => Ok(()),
            kind::BYTE => self.take(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.take(8),
            8 => {
                let n = self.varint()?;
                self.take(n)
            }
            9 | 10 => self.skip_list(depth),
            11 => self.skip_map(depth),
            kind::STRUCT => self.skip_struct(depth),
            13 => self.take(16),
            _ => Err("has an unknown type"),
        }
    }

    fn count_struct(&mut self) -> Outcome<()> {
        self.structs += 1;
        if self.structs > MAX_STRUCTS { Err("has millions of parts") } else { Ok(()) }
    }

    fn skip_struct(&mut self, depth: u32) -> Outcome<()> {
        self.count_struct()?;
        let mut last = 0;
        while let Some((_, kind)) = self.field(&mut last)? {
            self.skip(kind, depth + 1)?;
        }
        Ok(())
    }

    /// The head of a list: how many elements of which type, which have room in the bytes that are left.
    fn list(&mut self) -> Outcome<(u64, u8)> {
        let b = self.byte()?;
        let (short, element) = (u64::from(b >> 4), b & 0x0f);
        let n = if short == 15 { self.varint()? } else { short };
        // No element takes less than one byte, and no struct of this format less than three.
        let least = if element == kind::STRUCT { 3 } else { 1 };
        if n.saturating_mul(least) > (self.bytes.len() - self.at) as u64 {
            return Err("declares a longer list than it has");
        }
        Ok((n, element))
    }

    fn skip_list(&mut self, depth: u32) -> Outcome<()> {
        let (n, element) = self.list()?;
        for _ in 0..n {
            match element {
                kind::TRUE | kind::FALSE => self.take(1)?,
                other => self.skip(other, depth + 1)?,
            }
        }
        Ok(())
    }

    fn skip_map(&mut self, depth: u32) -> Outcome<()> {
        let n = self.varint()?;
        if n == 0 {
            return Ok(());
        }
        let kinds = self.byte()?;
        if n > (self.bytes.len() - self.at) as u64 {
            return Err("declares a longer map than it has");
        }
        for _ in 0..n {
            self.skip(kinds >> 4, depth + 1)?;
            self.skip(kinds & 0x0f, depth + 1)?;
        }
        Ok(())
    }
}

/// Checks that bytes are the struct of a footer whose declared sizes all fit.
pub(crate) fn validate(bytes: &[u8]) -> Outcome<()> {
    let (mut r, mut last) = (Reader::new(bytes), 0);
    while let Some((id, kind)) = r.field(&mut last)? {
        match (id, kind) {
            (2, kind::LIST) => schema(&mut r)?,
            _ => r.skip(kind, 1)?,
        }
    }
    Ok(())
}

/// Walks over the elements of a schema: each follows its parent, which says how many children it has.
fn schema(r: &mut Reader<'_>) -> Outcome<()> {
    let (n, element) = r.list()?;
    if element != kind::STRUCT {
        return Err("has no schema");
    }
    // How many children of each ancestor are still to come.
    let mut open: Vec<i64> = Vec::new();
    for i in 0..n {
        r.count_struct()?;
        let (mut children, mut last) = (0, 0);
        while let Some((id, kind)) = r.field(&mut last)? {
            match (id, kind) {
                (5, kind::I32) => children = r.int()?,
                _ => r.skip(kind, 2)?,
            }
        }
        if children < 0 || children as u64 > n - i - 1 {
            return Err("declares more columns than it has");
        }
        if let Some(parent) = open.last_mut() {
            *parent -= 1;
        }
        open.push(children);
        while open.last() == Some(&0) {
            open.pop();
        }
        if open.len() > MAX_SCHEMA_DEPTH {
            return Err("has columns nested too deeply");
        }
    }
    Ok(())
}

/// A number above or at 0 as the protocol writes signed ones, for pages that tests make.
#[cfg(test)]
pub(crate) fn integer(number: u64) -> Vec<u8> {
    let (mut left, mut out) = (number << 1, Vec::new());
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer whose schema has elements with so many children each.
    fn footer(children: &[u8]) -> Vec<u8> {
        // Version 1; a list of structs with name "a" and num_children.
        let mut bytes = vec![0x15, 2, 0x19, 0xfc];
        let (mut n, mut varint) = (children.len(), Vec::new());
        while n >= 0x80 {
            varint.push(n as u8 | 0x80);
            n >>= 7;
        }
        varint.push(n as u8);
        bytes.extend(varint);
        children.iter().for_each(|c| bytes.extend([0x48, 1, b'a', 0x15, 2 * c, 0]));
        bytes.push(0);
        bytes
    }

    #[test]
    fn schemas_that_would_exhaust_the_reader_are_refused() {
        assert_eq!(validate(&footer(&[2, 0, 1, 0])), Ok(()));
        assert_eq!(validate(&footer(&[2, 0, 2, 0])), Err("declares more columns than it has"));
        assert_eq!(validate(&footer(&[1; 50].into_iter().chain([0]).collect::<Vec<_>>())), Ok(()));
        let deep: Vec<u8> = [1; 100_000].into_iter().chain([0]).collect();
        assert_eq!(validate(&footer(&deep)), Err("has columns nested too deeply"));
    }

    #[test]
    fn a_footer_of_millions_of_parts_is_refused() {
        // A list of empty structs, five million of them, each padded to the least size.
        let n = 5_000_000u32;
        let mut bytes = vec![0x49, 0xfc];
        bytes.extend([n as u8 & 0x7f | 0x80, (n >> 7) as u8 | 0x80, (n >> 14) as u8 | 0x80, (n >> 21) as u8]);
        (0..n).for_each(|_| bytes.extend([0x15, 0, 0]));
        bytes.push(0);
        assert_eq!(validate(&bytes), Err("has millions of parts"));
    }
}
