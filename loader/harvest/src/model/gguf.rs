//! A GGUF file: what its head says, and where its tensors lie. What a file claims is held against its length before memory is taken.

use std::collections::BTreeMap;

use loader::Store;

use super::dequantize::Kind;
use crate::error::{Error, Result};

/// Bytes of the head at most: vocabularies of a million tokens fit.
const MOST_HEAD: u64 = 256 << 20;

/// Bytes that what is kept of a head takes in memory at most: a vocabulary of two million tokens and its merges.
const MOST_HELD: u64 = 256 << 20;

/// Bytes that an entry takes besides its text.
const ENTRY: u64 = 64;

/// Bytes that are fetched at once.
const FETCHED: u64 = 1 << 20;

/// A value of the head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// Where a tensor lies, and its shape: outermost dimension first.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: Kind,
    /// Whether what lies there is the transpose of the matrix.
    pub(crate) is_transposed: bool,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) store: Store,
    pub(crate) key: String,
    pub(crate) values: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Place>,
}

impl Gguf {
    /// Reads the head.
    pub(crate) fn open(store: Store, key: String) -> Result<Self> {
        let url = store.url_of(&key);
        let size = match store.head(&key)? {
            Some(entry) => entry.size,
            None => return Err(Error::data(url, "not found")),
        };
        let mut head = Head { store: &store, key: &key, size, at: 0, block: Vec::new(), block_at: 0, held: 0 };
        let (values, tensors) = head.read().map_err(|problem| match problem {
            Problem::Flaw(problem) => Error::data(url, format!("is no GGUF file that can be read: {problem}")),
            Problem::Error(error) => error,
        })?;
        Ok(Gguf { store, key, values, tensors })
    }

    pub(crate) fn url(&self) -> String {
        self.store.url_of(&self.key)
    }

    /// A whole number of the head.
    pub(crate) fn integer(&self, key: &str) -> Option<i64> {
        match self.values.get(key) {
            Some(Value::Integer(value)) => Some(*value),
            _ => None,
        }
    }

    /// A number of the head.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.values.get(key) {
            Some(Value::Float(value)) => Some(*value),
            Some(Value::Integer(value)) => Some(*value as f64),
            _ => None,
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key) {
            Some(Value::Text(value)) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.values.get(key) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Option<&[String]> {
        match self.values.get(key) {
            Some(Value::Texts(values)) => Some(values),
            _ => None,
        }
    }
}

/// What ends the reading of a head.
enum Problem {
    Flaw(String),
    Error(Error),
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Problem::Flaw(text)
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Problem::Flaw(text.into())
    }
}

type Parsed<T> = std::result::Result<T, Problem>;

/// Types of values.
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Bytes that a value in a list takes in the file at least.
fn least(kind: u32) -> Parsed<u64> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        TEXT | 10..=12 => Ok(8),
        _ => Err(format!("a list of values of type {kind}").into()),
    }
}

/// The head while it is read, block by block.
struct Head<'a> {
    store: &'a Store,
    key: &'a str,
    size: u64,
    at: u64,
    block: Vec<u8>,
    block_at: u64,
    /// Bytes that are kept.
    held: u64,
}

impl Head<'_> {
    fn read(&mut self) -> Parsed<(BTreeMap<String, Value>, BTreeMap<String, Place>)> {
        if self.bytes(4)? != b"GGUF" {
            return Err("it does not begin with GGUF".into());
        }
        let version = self.u32()?;
        if ![2, 3].contains(&version) {
            return Err(format!("its version is {version}, and 2 and 3 are known").into());
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        self.check_count(tensors, 24)?;
        self.check_count(pairs, 13)?;
        let mut values = BTreeMap::new();
        for _ in 0..pairs {
            let key = self.string()?;
            let kind = self.u32()?;
            // Lists of others than the tokenizer are nobody's business here, and may be of any length.
            if kind == LIST && !key.starts_with("tokenizer.") {
                let (kind, count) = (self.u32()?, self.u64()?);
                self.skip(kind, count)?;
                continue;
            }
            self.hold(ENTRY + key.len() as u64)?;
            let value = self.value(kind)?;
            values.insert(key, value);
        }
        let architecture = match values.get("general.architecture") {
            Some(Value::Text(name)) => format!("{name}."),
            _ => String::new(),
        };
        let is_asked_for = |key: &str| ["general.", "tokenizer.", &architecture].iter().any(|own| key.starts_with(own));
        values.retain(|key, _| is_asked_for(key));
        let mut places = BTreeMap::new();
        for _ in 0..tensors {
            let name = self.string()?;
            self.hold(2 * ENTRY)?;
            let place = self.place().map_err(|problem| match problem {
                Problem::Flaw(text) => Problem::Flaw(format!("tensor {name:?}: {text}")),
                error => error,
            })?;
            places.insert(name, place);
        }
        let alignment = match values.get("general.alignment") {
            Some(Value::Integer(bytes)) => u64::try_from(*bytes).ok().filter(|bytes| bytes.is_power_of_two()),
            _ => Some(32),
        };
        let data = self.at.next_multiple_of(alignment.ok_or("general.alignment is no power of two")?);
        for (name, place) in &mut places {
            let start = data.checked_add(place.offset);
            let end = start.and_then(|start| start.checked_add(place.bytes));
            if end.is_none_or(|end| end > self.size) {
                return Err(format!("tensor {name:?} ends behind the file's {} bytes", self.size).into());
            }
            place.offset += data;
        }
        Ok((values, places))
    }

    fn place(&mut self) -> Parsed<Place> {
        let dimensions = self.u32()?;
        if dimensions > 4 {
            return Err(format!("it has {dimensions} dimensions").into());
        }
        let mut shape = Vec::new();
        let mut count = 1u64;
        for _ in 0..dimensions {
            let length = self.u64()?;
            count = count.checked_mul(length).filter(|count| *count < 1 << 40).ok_or("its shape is impossible")?;
            shape.push(length as usize);
        }
        // The innermost dimension stands first in the file.
        shape.reverse();
        let kind = self.u32()?;
        let kind = Kind::of(kind).ok_or_else(|| {
            format!("numbers of type {kind} cannot be read: F32, F16, BF16, Q4_0 to Q8_1 and Q2_K to Q8_K can")
        })?;
        let bytes = kind.bytes(count, shape.last().copied().unwrap_or(1)).ok_or("its rows are no whole blocks")?;
        Ok(Place { shape, kind, is_transposed: false, offset: self.u64()?, bytes })
    }

    fn value(&mut self, kind: u32) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Integer(self.bytes(1)?[0].into()),
            1 => Value::Integer(i64::from(self.bytes(1)?[0] as i8)),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.bytes(1)?[0] != 0),
            TEXT => Value::Text(self.string()?),
            LIST => {
                let (kind, count) = (self.u32()?, self.u64()?);
                self.values(kind, count)?
            }
            10 | 11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("a value of type {kind}").into()),
        })
    }

    fn values(&mut self, kind: u32, count: u64) -> Parsed<Value> {
        self.check_count(count, least(kind)?)?;
        let each = match kind {
            TEXT => size_of::<String>(),
            6 | 12 => size_of::<f32>(),
            _ => size_of::<i64>(),
        };
        self.hold(count * each as u64)?;
        match kind {
            TEXT => (0..count).map(|_| self.string()).collect::<Parsed<_>>().map(Value::Texts),
            6 | 12 => {
                let number = |value| match value {
                    Value::Float(value) => Ok(value as f32),
                    _ => Err("a list of numbers that are none".into()),
                };
                (0..count).map(|_| self.value(kind).and_then(number)).collect::<Parsed<_>>().map(Value::Floats)
            }
            _ => {
                let number = |value| match value {
                    Value::Integer(value) => Ok(value),
                    Value::Bool(value) => Ok(value.into()),
                    _ => Err("a list of whole numbers that are none".into()),
                };
                (0..count).map(|_| self.value(kind).and_then(number)).collect::<Parsed<_>>().map(Value::Integers)
            }
        }
    }

    /// Passes by the values of a list.
    fn skip(&mut self, kind: u32, count: u64) -> Parsed<()> {
        let least = least(kind)?;
        self.check_count(count, least)?;
        if kind != TEXT {
            self.at += count * least;
            return Ok(());
        }
        for _ in 0..count {
            let length = self.u64()?;
            self.check_count(length, 1)?;
            self.at += length;
        }
        Ok(())
    }

    /// Takes note of bytes that will be kept.
    fn hold(&mut self, bytes: u64) -> Parsed<()> {
        self.held = self.held.saturating_add(bytes);
        if self.held > MOST_HELD {
            return Err(format!("what its head says takes more than {} MiB", MOST_HELD >> 20).into());
        }
        Ok(())
    }

    /// Whether so many things of at least so many bytes can still follow.
    fn check_count(&self, count: u64, least: u64) -> Parsed<()> {
        let left = self.size.min(MOST_HEAD).saturating_sub(self.at);
        if count.checked_mul(least).is_none_or(|bytes| bytes > left) {
            return Err(format!("it speaks of {count} values where {left} bytes are left").into());
        }
        Ok(())
    }

    fn string(&mut self) -> Parsed<String> {
        let length = self.u64()?;
        self.check_count(length, 1)?;
        self.hold(length)?;
        let bytes = self.bytes(length as usize)?;
        String::from_utf8(bytes).map_err(|_| "a text that is not UTF-8".into())
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    fn bytes(&mut self, length: usize) -> Parsed<Vec<u8>> {
        self.check_count(length as u64, 1)?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, to: &mut [u8]) -> Parsed<()> {
        let mut done = 0;
        while done < to.len() {
            let within = (self.at - self.block_at) as usize;
            if within >= self.block.len() {
                let end = self.size.min(MOST_HEAD).min(self.at + FETCHED);
                if end <= self.at {
                    return Err("it ends inside of its head".into());
                }
                let block = self.store.get_range(self.key, self.at..end).map_err(|e| Problem::Error(e.into()))?;
                (self.block, self.block_at) = (block.to_vec(), self.at);
                continue;
            }
            let take = (self.block.len() - within).min(to.len() - done);
            to[done..done + take].copy_from_slice(&self.block[within..within + take]);
            (done, self.at) = (done + take, self.at + take as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one pair in its head: a list of `count` bytes, which are zeros.
    fn with_list(folder: &std::path::Path, key: &str, count: u64) -> Result<Gguf> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(LIST.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        let path = folder.join("model.gguf");
        std::fs::write(&path, &bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(bytes.len() as u64 + count).unwrap();
        Gguf::open(Store::open(folder.to_str().unwrap()).unwrap(), "model.gguf".into())
    }

    #[test]
    fn a_head_takes_no_more_memory_than_is_asked_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let count = 100 << 20;
        assert!(with_list(folder.path(), "other.list", count).unwrap().values.is_empty(), "nobody asks for it");
        let refused = with_list(folder.path(), "tokenizer.ggml.token_type", count).unwrap_err().to_string();
        assert!(refused.contains("256 MiB"), "eight bytes for each of one: {refused}");
        let held = with_list(folder.path(), "tokenizer.ggml.token_type", 10).unwrap();
        assert_eq!(held.values["tokenizer.ggml.token_type"], Value::Integers(vec![0; 10]));
    }
}
