//! The documents of some files, one after the other, from any position on.

use std::io::{BufRead, BufReader, Read};

use loader::TextRows;
use serde_json::Value as Json;

use super::file::{File, Files, Format, MOST_BYTES};
use super::{Position, Split, TextOptions, rows};
use crate::error::{Error, Help, Result};

/// A document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it begins.
    pub at: Position,
    /// What it says; it may be empty.
    pub text: String,
}

/// Reads documents.
pub struct Documents {
    files: Files,
    options: TextOptions,
    /// Where the next document begins.
    at: Position,
    open: Option<Open>,
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Documents({} files, at {:?})", self.files.files.len(), self.at)
    }
}

enum Open {
    Rows(Box<TextRows>),
    Bytes(BufReader<Box<dyn Read + Send>>),
}

impl Documents {
    /// From a position on, which is that of a document or `Position::default()`.
    pub fn new(files: Files, options: TextOptions, at: Position) -> Documents {
        Documents { files, options, at, open: None }
    }

    /// Where the next document begins.
    pub fn at(&self) -> Position {
        self.at
    }

    /// Goes to a position.
    pub fn seek(&mut self, at: Position) {
        (self.at, self.open) = (at, None);
    }

    /// The next document; nothing behind the last.
    ///
    /// # Errors
    /// Where a file is damaged, lacks the column, or a document is too long; and those of the store.
    pub fn read(&mut self) -> Result<Option<Document>> {
        while let Some(file) = self.files.files.get(self.at.file as usize) {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => open_at(file, &self.options, self.at.offset)?,
            };
            let found = match &mut open {
                Open::Rows(rows) => rows.next_text()?.map(|text| (text, 1)),
                Open::Bytes(bytes) => document(file, &self.options, self.at.offset, bytes)?,
            };
            match found {
                Some((text, advance)) => {
                    let document = Document { at: self.at, text };
                    (self.at.offset, self.at.document) = (self.at.offset + advance, self.at.document + 1);
                    self.open = Some(open);
                    return Ok(Some(document));
                }
                None => (self.at.file, self.at.offset) = (self.at.file + 1, 0),
            }
        }
        Ok(None)
    }
}

fn open_at(file: &File, options: &TextOptions, offset: u64) -> Result<Open> {
    match file.format {
        Format::Parquet => rows::open(file, &options.column, offset).map(|rows| Open::Rows(Box::new(rows))),
        Format::JsonLines | Format::Plain => file.read_from(offset).map(Open::Bytes),
    }
}

type Bytes = BufReader<Box<dyn Read + Send>>;

/// A document of a file of lines or plain text, and the bytes that it took, what was skipped before it included.
fn document(file: &File, options: &TextOptions, offset: u64, bytes: &mut Bytes) -> Result<Option<(String, u64)>> {
    let mut taken = 0;
    match (file.format, options.split) {
        (Format::JsonLines, _) => loop {
            let at = offset + taken;
            let Some(line) = line(file, bytes, at)? else { return Ok(None) };
            taken += line.len() as u64;
            if !line.trim_ascii().is_empty() {
                return Ok(Some((value(file, &options.column, at, &line)?, taken)));
            }
        },
        (_, Split::File) => {
            let mut whole = Vec::new();
            bytes.take(MOST_BYTES + 1).read_to_end(&mut whole).map_err(|e| file.failed(e))?;
            check_length(file, offset, whole.len())?;
            let length = whole.len() as u64;
            if length == 0 { Ok(None) } else { Ok(Some((utf8(file, offset, whole)?, length))) }
        }
        (_, Split::Lines) => loop {
            let Some(line) = line(file, bytes, offset + taken)? else { return Ok(None) };
            let at = offset + taken;
            taken += line.len() as u64;
            let text = utf8(file, at, line)?;
            if !text.trim().is_empty() {
                return Ok(Some((text.trim_end_matches(['\r', '\n']).to_owned(), taken)));
            }
        },
        (_, Split::Paragraphs) => {
            let mut paragraph = String::new();
            while let Some(line) = line(file, bytes, offset + taken)? {
                let at = offset + taken;
                taken += line.len() as u64;
                let text = utf8(file, at, line)?;
                if !text.trim().is_empty() {
                    paragraph.push_str(&text);
                    check_length(file, offset, paragraph.len())?;
                } else if !paragraph.is_empty() {
                    break;
                }
            }
            paragraph.truncate(paragraph.trim_end_matches(['\r', '\n']).len());
            Ok((!paragraph.is_empty()).then_some((paragraph, taken)))
        }
    }
}

/// A line with its end; nothing behind the last.
fn line(file: &File, bytes: &mut Bytes, at: u64) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    bytes.take(MOST_BYTES + 1).read_until(b'\n', &mut line).map_err(|e| file.failed(e))?;
    check_length(file, at, line.len())?;
    Ok((!line.is_empty()).then_some(line))
}

/// The text of a line of JSON.
fn value(file: &File, column: &str, at: u64, line: &[u8]) -> Result<String> {
    let fail = |problem: String| Error::data(format!("{}, byte {at}", file.url()), problem);
    let json: Json = serde_json::from_slice(line).map_err(|e| fail(format!("is no line of JSON: {e}")))?;
    match json.get(column) {
        Some(Json::String(text)) => Ok(text.clone()),
        Some(Json::Null) => Ok(String::new()),
        Some(_) => Err(fail(format!("its key {column:?} is no text")).with(Help::Column)),
        None => {
            let keys: Vec<&str> =
                json.as_object().into_iter().flatten().take(20).map(|(key, _)| key.as_str()).collect();
            Err(fail(format!("has no key {column:?}; it has {}", keys.join(", "))).with(Help::Column))
        }
    }
}

fn check_length(file: &File, at: u64, length: usize) -> Result<()> {
    if length as u64 <= MOST_BYTES {
        return Ok(());
    }
    let problem = format!("the document at byte {at} has more than {} MiB: cut it into several", MOST_BYTES >> 20);
    let error = Error::data(file.url(), problem);
    Err(if file.format == Format::Plain { error.with(Help::Split) } else { error })
}

fn utf8(file: &File, at: u64, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = at + e.utf8_error().valid_up_to() as u64;
        Error::data(file.url(), format!("is not UTF-8 at byte {at}: convert it, or leave it out"))
    })
}
