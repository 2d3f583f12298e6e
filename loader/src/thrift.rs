//! Enough of Thrift's compact protocol to check a footer before a general reader sees it, and to read page headers.
//!
//! The Parquet reader reserves memory for a list by its declared size: a flipped bit there asks for gigabytes and aborts the
//! process. Here every list must fit into the bytes that are left, and nesting is bounded.

const MAX_DEPTH: u32 = 24;

/// Why bytes are not what they should be.
pub(crate) type Outcome<T> = std::result::Result<T, &'static str>;

/// A bounds-checked reader.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    pub(crate) at: usize,
}

/// Types of the compact protocol that matter here.
pub(crate) mod kind {
    pub(crate) const TRUE: u8 = 1;
    pub(crate) const FALSE: u8 = 2;
    pub(crate) const BYTE: u8 = 3;
    pub(crate) const I32: u8 = 5;
    pub(crate) const STRUCT: u8 = 12;
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
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

    fn skip_struct(&mut self, depth: u32) -> Outcome<()> {
        let mut last = 0;
        while let Some((_, kind)) = self.field(&mut last)? {
            self.skip(kind, depth + 1)?;
        }
        Ok(())
    }

    fn skip_list(&mut self, depth: u32) -> Outcome<()> {
        let b = self.byte()?;
        let (short, element) = (u64::from(b >> 4), b & 0x0f);
        let n = if short == 15 { self.varint()? } else { short };
        // No element takes less than one byte, and no struct of this format less than three.
        let least = if element == kind::STRUCT { 3 } else { 1 };
        if n.saturating_mul(least) > (self.bytes.len() - self.at) as u64 {
            return Err("declares a longer list than it has");
        }
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

/// Checks that bytes are one struct whose declared sizes all fit.
pub(crate) fn validate(bytes: &[u8]) -> Outcome<()> {
    Reader::new(bytes).skip(kind::STRUCT, 0)
}
