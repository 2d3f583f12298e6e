//! Text, document by document: Parquet, JSON lines and plain files, also compressed, from any store. A position is small, says where a
//! document begins, and can be opened again.

mod documents;
mod file;
mod rows;

use std::str::FromStr;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The column of Parquet files, and the key of JSON lines.
    pub column: String,
    /// What is a document in a plain file.
    pub split: Split,
}

impl Default for TextOptions {
    fn default() -> Self {
        TextOptions { column: "text".into(), split: Split::File }
    }
}

/// Where a document begins. Those of a set of files are in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The file, in the order of [`Files`].
    pub file: u64,
    /// Bytes of the file, decompressed, or rows of Parquet.
    pub offset: u64,
    /// Number of the document among all, from 0 on.
    pub document: u64,
}
