//! Which files are text, in which format, and their bytes one after the other.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use loader::{Location, Resolver, Store};
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::{Position, TextOptions};
use crate::error::{Error, Help, Result};

/// Bytes of a document at most. Tokenizing takes fifty times as much memory.
pub(super) const MOST_BYTES: u64 = 32 << 20;

/// How text lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Parquet, with a column of text.
    Parquet,
    /// A JSON object a line.
    JsonLines,
    /// The text itself.
    Plain,
}

/// How bytes of a file are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    None,
    Gzip,
    Zstd,
}

/// A file of text.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) store: Store,
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) format: Format,
    codec: Codec,
    pub(super) length: Length,
}

/// Where a file ends, as offsets of a [`Position`] have it, as far as that is known: of Parquet once it is open, of a compressed file by how much what was
/// read of it has given.
#[derive(Clone, Debug, Default)]
pub(super) struct Length(Arc<AtomicU64>);

impl Length {
    pub(super) fn set(&self, length: u64) {
        self.0.store(length, Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&length| length > 0)
    }
}

/// The files of a text, in the order in which they are read: as they were named, those of a folder by their paths.
#[derive(Clone, Debug)]
pub struct Files {
    pub(super) files: Vec<File>,
}

impl Files {
    /// Looks for the files at paths, globs or URLs. In a folder and behind a glob files of a known kind are taken, by their names: `.parquet`,
    /// `.pq`, `.jsonl`, `.ndjson`, `.json`, `.txt`, `.text` and `.md`, with `.gz`, `.zst` or neither behind; a file that is named itself
    /// is plain text when it is none of these.
    ///
    /// # Errors
    /// Where there are none, or one comes twice, and those of the store.
    pub fn find(places: &[String]) -> Result<Files> {
        let mut files: Vec<File> = Vec::new();
        let (mut found, mut resolver) = (HashMap::new(), Resolver::default());
        for place in places {
            let location = Location::resolve(place)?;
            let before = files.len();
            for (store, entry) in location.files()? {
                let is_named = location.names_file(&entry);
                let hidden = entry.key.split('/').any(|part| part.starts_with(['.', '_']));
                let kind = kind(&entry.key).or_else(|| is_named.then_some((Format::Plain, Codec::None)));
                let Some((format, codec)) = kind.filter(|_| is_named || !hidden) else { continue };
                let length = Length::default();
                if codec == Codec::None && format != Format::Parquet {
                    length.set(entry.size);
                }
                let file = File { store, key: entry.key, size: entry.size, format, codec, length };
                if let Some(first) = found.insert(resolver.place(&file.store, &file.key), files.len()) {
                    return Err(twice(&files[first], &file));
                }
                files.push(file);
            }
            if files.len() == before {
                return Err(Error::data(
                    place,
                    "no text there: name files, or folders with .parquet, .jsonl, .txt or .md files, also .gz or .zst",
                ));
            }
        }
        Ok(Files { files })
    }

    /// Whether none has columns or keys.
    pub(crate) fn are_plain(&self) -> bool {
        self.files.iter().all(|file| file.format == Format::Plain)
    }

    /// Refuses options that change nothing, because none of the files has a format that they are for.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self, options: &TextOptions) -> Result<()> {
        if options.column.is_some() && self.are_plain() {
            return Err(Error::arguments("the text is plain and has neither columns nor keys").with(Help::NoColumn));
        }
        if options.split.is_some() && self.files.iter().all(|file| file.format != Format::Plain) {
            let problem = "no file of the text is plain: a document is a row of Parquet or a line of JSON";
            return Err(Error::arguments(problem).with(Help::NoSplit));
        }
        Ok(())
    }

    /// What decides the text: each file's name and size, and a hash of its beginning and end.
    ///
    /// # Errors
    /// Those of the store.
    pub fn identity(&self) -> Result<Vec<(String, u64, String)>> {
        let of = |file: &File| -> Result<(String, u64, String)> {
            let (first, last) = file.store.ends(&file.key, file.size)?;
            let mut hash = Xxh3::new();
            hash.update(&first);
            hash.update(&last);
            Ok((file.key.clone(), file.size, format!("{:016x}", hash.digest())))
        };
        self.files.par_iter().map(of).collect()
    }

    /// What share of the bytes lies before a position, about: inside of a compressed file, as if all of it were compressed alike, and inside of Parquet as if
    /// all rows were alike.
    pub fn share(&self, at: Position) -> Option<f64> {
        let all: u64 = self.files.iter().map(|file| file.size).sum();
        let before: u64 = self.files.iter().take(at.file as usize).map(|file| file.size).sum();
        let within = self.files.get(at.file as usize).and_then(|file| {
            let length = file.length.get()?;
            Some(at.offset.min(length) as f64 / length as f64 * file.size as f64)
        });
        (all > 0).then(|| (before as f64 + within.unwrap_or_default()) / all as f64)
    }
}

fn twice(first: &File, second: &File) -> Error {
    let (first, second) = (first.url(), second.url());
    let problem = match first == second {
        true => "is named twice, and would be read twice: name it once".to_owned(),
        false => format!("is the same file as {first}, and would be read twice: name or keep one of them"),
    };
    Error::arguments(format!("{second} {problem}"))
}

/// Format and codec by a name's end.
fn kind(key: &str) -> Option<(Format, Codec)> {
    let name = key.to_lowercase();
    let codecs = [(".gz", Codec::Gzip), (".zst", Codec::Zstd)];
    let (name, codec) = codecs
        .iter()
        .find_map(|(end, codec)| Some((name.strip_suffix(end)?, *codec)))
        .unwrap_or((name.as_str(), Codec::None));
    let format = match name.rsplit_once('.')?.1 {
        "parquet" | "pq" if codec == Codec::None => Format::Parquet,
        "jsonl" | "ndjson" | "json" => Format::JsonLines,
        "txt" | "text" | "md" => Format::Plain,
        _ => return None,
    };
    Some((format, codec))
}

/// Bytes that are fetched at once.
const FETCHED: u64 = 4 << 20;

/// Bytes that are decompressed at once. As much may be lost before damage.
const STEP: usize = 64 << 10;

/// What is decompressed, with an eye on how much it is of how much.
struct Decompressed<R> {
    bytes: R,
    given: u64,
    /// Compressed bytes that were taken for it, of `size`.
    taken: Arc<AtomicU64>,
    size: u64,
    length: Length,
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(to)?;
        self.given += count as u64;
        let taken = self.taken.load(Ordering::Relaxed).max(1);
        self.length.set((self.given as f64 * self.size as f64 / taken as f64) as u64);
        Ok(count)
    }
}

/// An object, read from the front.
struct Object {
    store: Store,
    key: String,
    size: u64,
    at: u64,
    block: bytes::Bytes,
    /// Bytes that were handed over.
    taken: Arc<AtomicU64>,
}

impl Read for Object {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.block.is_empty() && self.at < self.size {
            let end = self.size.min(self.at + FETCHED);
            self.block = self.store.get_range(&self.key, self.at..end).map_err(io::Error::other)?;
            self.at = end;
        }
        let count = self.block.len().min(to.len());
        to[..count].copy_from_slice(&self.block.split_to(count));
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl File {
    pub(super) fn url(&self) -> String {
        self.store.url_of(&self.key)
    }

    /// The file's bytes, decompressed, from `offset` on.
    pub(super) fn read_from(&self, offset: u64) -> Result<BufReader<Box<dyn Read + Send>>> {
        let start = if self.codec == Codec::None { offset } else { 0 };
        let (store, key, size) = (self.store.clone(), self.key.clone(), self.size);
        let taken = Arc::<AtomicU64>::default();
        let object = Object { store, key, size, at: start, block: bytes::Bytes::new(), taken: Arc::clone(&taken) };
        let decompressed = |bytes: Box<dyn Read + Send>| {
            Box::new(Decompressed { bytes, given: 0, taken, size, length: self.length.clone() })
        };
        let bytes: Box<dyn Read + Send> = match self.codec {
            Codec::None => Box::new(object),
            Codec::Gzip => decompressed(Box::new(MultiGzDecoder::new(object))),
            Codec::Zstd => {
                decompressed(Box::new(zstd::stream::read::Decoder::new(object).map_err(|e| self.failed(e))?))
            }
        };
        // How much a decoder gives before damage depends on how much it is asked for at a time: always this much, from the front on, for
        // the same documents to be read from wherever one begins. What is compressed has no other way to its middle anyway.
        let mut bytes = BufReader::with_capacity(STEP, bytes);
        io::copy(&mut bytes.by_ref().take(offset - start), &mut io::sink()).map_err(|e| self.failed(e))?;
        Ok(bytes)
    }

    /// What a failure of reading is: the store's, or damage.
    pub(super) fn failed(&self, error: io::Error) -> Error {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<loader::Error>()) {
            Some(error) => Error::Loader(error.clone()),
            None => Error::data(self.url(), format!("cannot be decompressed: {error}: make it again")),
        }
    }
}
