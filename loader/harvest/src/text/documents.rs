//! The documents of some files, one after the other, from any position on.
//!
//! Text that cannot be read is left out, if that is asked for: the document alone where the next one's beginning is known (a line, a
//! paragraph), else the rest of its file. What is left out follows from the files alone and is counted in each position behind it, so that who begins at a
//! position sees what one sees who comes there from the front. A store that fails says nothing of the text, and always is an error.

use std::io::{BufRead, BufReader, Read};

use loader::{Text, TextRows};
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
    /// The file of which it was said last that a document is left out.
    said: Option<u64>,
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Documents({} files, at {:?})", self.files.files.len(), self.at)
    }
}

enum Open {
    Rows(Box<TextRows>),
    Bytes(Bytes),
}

type Bytes = BufReader<Box<dyn Read + Send>>;

/// A text, and how far behind the position of its document the next one begins; nothing behind a file's last.
type Found = std::result::Result<Option<(String, u64)>, Unreadable>;

/// Why a document cannot be read.
struct Unreadable {
    error: Error,
    /// How far behind its position the next one begins, where that is known.
    length: Option<u64>,
}

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Unreadable { error, length: None }
    }
}

impl Documents {
    /// From a position on, which is that of a document or `Position::default()`.
    pub fn new(files: Files, options: TextOptions, at: Position) -> Documents {
        Documents { files, options, at, open: None, said: None }
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
    /// Where a file is damaged, lacks the column, or a document is too long, unless such are left out; and those of the store.
    pub fn read(&mut self) -> Result<Option<Document>> {
        while let Some(file) = self.files.files.get(self.at.file as usize) {
            match next(file, &self.options, self.at.offset, &mut self.open) {
                Ok(Some((text, length))) => {
                    let document = Document { at: self.at, text };
                    (self.at.offset, self.at.document) = (self.at.offset + length, self.at.document + 1);
                    return Ok(Some(document));
                }
                Ok(None) => self.leave_file(),
                Err(unreadable) => self.skip(unreadable)?,
            }
        }
        Ok(None)
    }

    fn leave_file(&mut self) {
        (self.at.file, self.at.offset, self.open) = (self.at.file + 1, 0, None);
    }

    /// Leaves out a document, or the rest of its file.
    fn skip(&mut self, Unreadable { error, length }: Unreadable) -> Result<()> {
        // A column that is not there is a matter of what was asked for.
        let is_damage =
            matches!(error, Error::Data { .. }) && (length.is_some() || !error.help().contains(&Help::Column));
        if !is_damage {
            return Err(error);
        }
        if !self.options.skip_unreadable {
            return Err(error.with(Help::SkipUnreadable));
        }
        self.at.document += 1;
        match length {
            Some(length) => {
                self.at.offset += length;
                self.at.skipped.documents += 1;
                if self.said != Some(self.at.file) {
                    self.said = Some(self.at.file);
                    tracing::warn!(
                        "{error}. This document is left out, and so are others of the file that cannot be read"
                    );
                }
            }
            None => {
                tracing::warn!("{error}. Nothing more of this file is read");
                self.at.skipped.files += 1;
                self.leave_file();
            }
        }
        Ok(())
    }
}

/// What stands at a position of a file, which is opened there unless it is open.
fn next(file: &File, options: &TextOptions, offset: u64, open: &mut Option<Open>) -> Found {
    let open = match open {
        Some(open) => open,
        None => open.insert(match file.format {
            Format::Parquet => Open::Rows(Box::new(rows::open(file, options.column(), offset)?)),
            Format::JsonLines | Format::Plain => Open::Bytes(file.read_from(offset)?),
        }),
    };
    match open {
        Open::Rows(rows) => match rows::next(rows)? {
            Some(Text::Whole(text)) => Ok(Some((text, 1))),
            Some(Text::TooLong) => Err(Unreadable { error: too_long(file, offset), length: Some(1) }),
            None => Ok(None),
        },
        Open::Bytes(bytes) if file.format == Format::Plain && options.split() == Split::File => {
            whole(file, offset, bytes)
        }
        Open::Bytes(bytes) => piece(file, options, offset, bytes),
    }
}

/// All of a file, or what is left of it.
fn whole(file: &File, offset: u64, bytes: &mut Bytes) -> Found {
    let mut whole = Vec::new();
    bytes.take(MOST_BYTES + 1).read_to_end(&mut whole).map_err(|e| file.failed(e))?;
    let length = whole.len() as u64;
    if length > MOST_BYTES {
        return Err(too_long(file, offset).with(Help::Split).into());
    }
    Ok(if length == 0 { None } else { Some((utf8(file, offset, whole)?, length)) })
}

/// A document of several in a file: a line, or the lines up to an empty one. Empty lines before it are passed over.
fn piece(file: &File, options: &TextOptions, offset: u64, bytes: &mut Bytes) -> Found {
    let is_paragraph = file.format == Format::Plain && options.split() == Split::Paragraphs;
    let (mut piece, mut begin, mut end) = (Vec::new(), offset, offset);
    loop {
        let mut line = Vec::new();
        bytes.by_ref().take(MOST_BYTES + 1).read_until(b'\n', &mut line).map_err(|e| file.failed(e))?;
        end += line.len() as u64;
        let is_empty = std::str::from_utf8(&line).is_ok_and(|line| line.trim().is_empty());
        if line.is_empty() || is_empty && !piece.is_empty() {
            break;
        }
        if is_empty {
            begin = end;
            continue;
        }
        let ends = !is_paragraph && line.ends_with(b"\n");
        if piece.len() as u64 <= MOST_BYTES {
            piece.append(&mut line);
        }
        // The end of one that is too long is looked for by who goes on behind it.
        if ends || piece.len() as u64 > MOST_BYTES && !options.skip_unreadable {
            break;
        }
    }
    let text = match file.format {
        _ if piece.is_empty() => return Ok(None),
        _ if piece.len() as u64 > MOST_BYTES => Err(too_long(file, begin)),
        Format::JsonLines => value(file, options.column(), begin, piece.trim_ascii_end()),
        _ => utf8(file, begin, piece).map(|text| text.trim_end_matches(['\r', '\n']).to_owned()),
    };
    let length = end - offset;
    text.map(|text| Some((text, length))).map_err(|error| Unreadable { error, length: Some(length) })
}

/// What some editors and spreadsheets put in front of a file of UTF-8; JSON has none.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The text of a line of JSON.
fn value(file: &File, column: &str, at: u64, line: &[u8]) -> Result<String> {
    let line = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| at == 0).unwrap_or(line);
    let fail = |problem: String| Error::data(format!("{}, byte {at}", file.url()), problem);
    if line.trim_ascii_start().starts_with(b"[") {
        let problem = "is a JSON array, and a line is one object: jq -c '.[]' writes the objects of an array so";
        return Err(fail(problem.into()));
    }
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

fn too_long(file: &File, at: u64) -> Error {
    let unit = if file.format == Format::Parquet { "row" } else { "byte" };
    let problem = format!("the document at {unit} {at} has more than {} MiB: cut it into several", MOST_BYTES >> 20);
    Error::data(file.url(), problem)
}

fn utf8(file: &File, at: u64, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = at + e.utf8_error().valid_up_to() as u64;
        Error::data(file.url(), format!("is not UTF-8 at byte {at}: convert it"))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;

    use super::*;

    const SKIP: TextOptions = TextOptions { column: None, split: None, skip_unreadable: true };

    fn files(path: &Path) -> Files {
        Files::find(&[path.display().to_string()]).unwrap()
    }

    fn rest(files: &Files, options: &TextOptions, at: Position) -> (Vec<Document>, Position) {
        let mut documents = Documents::new(files.clone(), options.clone(), at);
        let read = std::iter::from_fn(|| documents.read().unwrap()).collect();
        (read, documents.at())
    }

    /// Lines that compress well: what a decoder is given at once becomes more than it is asked for.
    fn lines(count: u64) -> Vec<u8> {
        let word = |at: u64| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&at.to_le_bytes())).repeat(6);
        (0..count).flat_map(|at| format!("{{\"text\": \"{}\"}}\n", word(at)).into_bytes()).collect()
    }

    #[test]
    fn documents_before_damage_are_the_same_from_wherever_they_are_read() {
        let folder = tempfile::tempdir().unwrap();
        // Behind what is whole a block follows of a kind that there is none.
        let gz = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).and_then(|()| encoder.flush()).unwrap();
            [encoder.get_ref(), &[0xff; 100][..]].concat()
        };
        let zst = |bytes: &[u8]| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.write_all(bytes).and_then(|()| encoder.flush()).unwrap();
            [encoder.get_ref(), &[0xff; 100][..]].concat()
        };
        // What a decoder gives before damage depends on where in its steps it meets it.
        for count in [10_000, 10_300, 10_600, 10_900] {
            for (name, bytes) in [("a.jsonl.gz", gz(&lines(count))), ("a.jsonl.zst", zst(&lines(count)))] {
                let path = folder.path().join(name);
                std::fs::write(&path, bytes).unwrap();
                let files = files(&path);
                let (all, end) = rest(&files, &SKIP, Position::default());
                assert!((5_000..=count as usize).contains(&all.len()), "{name}: {} of {count}", all.len());
                assert_eq!((end.file, end.skipped.files), (1, 1), "{name}");
                for at in [2_000, all.len() - 100] {
                    let (found, found_end) = rest(&files, &SKIP, all[at].at);
                    let counts = (found.len(), all.len() - at);
                    assert!(found == all[at..] && found_end == end, "{name} of {count}, from {at}: {counts:?}");
                }
            }
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let line = "{\"text\": \"w\"}\n";
        std::fs::write(&path, format!("\u{feff}{line}{line}\u{feff}{line}")).unwrap();
        let (read, end) = rest(&files(&path), &SKIP, Position::default());
        assert_eq!((read.len(), end.skipped.documents), (2, 1), "only in front of the file");
    }

    /// How much of the text is behind is known about, in whatever file it lies.
    #[test]
    fn the_share_that_is_behind_is_guessed_inside_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let number = |at: u64| xxhash_rust::xxh3::xxh3_128(&at.to_le_bytes());
        let line = |at: u64| {
            format!("{{\"text\": \"{:x} {:x} {:x}\"}}\n", number(3 * at), number(3 * at + 1), number(3 * at + 2))
        };
        let lines: Vec<u8> = (0..40_000).flat_map(|at| line(at).into_bytes()).collect();
        let texts = StringArray::from_iter_values((0..40_000).map(|at| format!("{at} of 40,000")));
        let batch = RecordBatch::try_from_iter([("text", Arc::new(texts) as ArrayRef)]).unwrap();
        let mut table = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        table.write(&batch).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&lines).unwrap();
        for (name, bytes) in [
            ("a.jsonl.gz", gz.finish().unwrap()),
            ("a.jsonl.zst", zstd::encode_all(&lines[..], 1).unwrap()),
            ("a.parquet", table.into_inner().unwrap()),
            ("a.jsonl", lines),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let files = files(&path);
            let mut documents = Documents::new(files.clone(), SKIP, Position::default());
            for quarter in 1..4 {
                (0..10_000).for_each(|_| drop(documents.read().unwrap()));
                let (share, expected) = (files.share(documents.at()).unwrap(), f64::from(quarter) / 4.0);
                assert!((share - expected).abs() < 0.1, "{name}: {share} where {expected} is behind");
            }
        }
    }

    #[test]
    fn a_document_that_is_too_long_is_left_out_alone() {
        let folder = tempfile::tempdir().unwrap();
        let long = vec![b'x'; MOST_BYTES as usize + 100];
        for (name, split, bytes) in [
            ("a.txt", Split::Lines, [b"a\n", &long[..], b"\nb\n"].concat()),
            ("b.txt", Split::Paragraphs, [b"a\n\nc\n", &long[..], b"\nd\n\nb\n"].concat()),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let options = TextOptions { split: Some(split), ..SKIP };
            let (read, end) = rest(&files(&path), &options, Position::default());
            let read: Vec<(&str, u64)> =
                read.iter().map(|document| (&document.text[..], document.at.document)).collect();
            assert_eq!(read, [("a", 0), ("b", 2)], "{name}");
            assert_eq!((end.document, end.skipped.documents, end.skipped.files), (3, 1, 0), "{name}");
            let mut strict =
                Documents::new(files(&path), TextOptions { skip_unreadable: false, ..options }, Position::default());
            strict.read().unwrap();
            let error = strict.read().unwrap_err();
            assert!(error.to_string().contains("32 MiB") && error.help() == [Help::SkipUnreadable], "{error}");
        }
    }

    /// What a store does not give is not left out: it may come back.
    #[test]
    fn a_store_that_fails_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.txt", "a.jsonl.gz", "a.parquet"] {
            let path = folder.path().join(name);
            std::fs::write(&path, [b"PAR1".as_slice(), &[0; 100], b"PAR1"].concat()).unwrap();
            let files = files(&path);
            std::fs::remove_file(&path).unwrap();
            let error = Documents::new(files, SKIP, Position::default()).read().unwrap_err();
            assert!(matches!(error, Error::Loader(loader::Error::NotFound { .. })), "{name}: {error}");
        }
    }
}
