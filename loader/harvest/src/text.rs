//! Text, document by document: Parquet, JSON lines and plain files, also compressed, from any store. A position is small, says where a
//! document begins, and can be opened again.

mod documents;
mod file;
mod rows;

use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::documents::{Document, Documents};
pub use self::file::{Files, Format};

/// What is a document in a plain file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// The whole file.
    #[default]
    File,
    /// A line; empty ones are none.
    Lines,
    /// What stands between empty lines.
    Paragraphs,
}

impl Split {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Split::File => "file",
            Split::Lines => "lines",
            Split::Paragraphs => "paragraphs",
        }
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = [Split::File, Split::Lines, Split::Paragraphs];
        known.into_iter().find(|split| split.name() == text).ok_or_else(|| "file, lines or paragraphs is needed".into())
    }
}

/// How text is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// The column of Parquet files, and the key of JSON lines: by default `text`.
    pub column: Option<String>,
    /// What is a document in a plain file: by default the file.
    pub split: Option<Split>,
    /// Whether text that cannot be read is left out and counted: a document, or the rest of a file where nobody knows where its next
    /// document begins. By default it is an error.
    pub skip_unreadable: bool,
}

impl TextOptions {
    /// The column of Parquet files, and the key of JSON lines.
    pub fn column(&self) -> &str {
        self.column.as_deref().unwrap_or("text")
    }

    /// What is a document in a plain file.
    pub fn split(&self) -> Split {
        self.split.unwrap_or_default()
    }
}

/// Text that was left out, because it cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Skipped {
    /// Documents by themselves.
    pub documents: u64,
    /// Files, from a document on.
    pub files: u64,
}

impl Skipped {
    /// Whether nothing was.
    pub fn is_none(&self) -> bool {
        *self == Skipped::default()
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Skipped { documents, files } = self;
        let count = |count: &u64, of: &str| format!("{count} {of}{}", if *count == 1 { "" } else { "s" });
        let said = [
            (documents, count(documents, "document")),
            (files, format!("all or the rest of {}", count(files, "file"))),
        ];
        let said: Vec<String> = said.into_iter().filter(|(count, _)| **count > 0).map(|(_, said)| said).collect();
        f.write_str(&said.join(", "))
    }
}

/// Where a document begins. Those of a set of files are in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The file, in the order of [`Files`].
    pub file: u64,
    /// Bytes of the file, decompressed, or rows of Parquet.
    pub offset: u64,
    /// Number of the document among all, from 0 on. One that was left out has a number too.
    pub document: u64,
    /// What was left out before.
    #[serde(default, skip_serializing_if = "Skipped::is_none")]
    pub skipped: Skipped,
}
