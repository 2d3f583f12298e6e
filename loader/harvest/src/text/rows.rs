//! Text from a column of Parquet, row by row.

use loader::{Text, TextRows, Texts};

use super::file::{File, MOST_BYTES};
use crate::error::{Error, Help, Result};

/// The rows of a file from a row on.
pub(super) fn open(file: &File, column: &str, row: u64) -> Result<TextRows> {
    let texts = Texts::open(&file.store, &file.key, file.size).map_err(of_text)?;
    file.length.set(texts.row_count());
    let is_text = texts.columns().find(|(name, _)| *name == column).map(|(_, is_text)| is_text);
    match is_text {
        Some(true) => texts.rows(column, row, MOST_BYTES as usize).map_err(of_text),
        Some(false) => Err(Error::data(file.url(), format!("its column {column:?} is no text")).with(Help::Column)),
        None => {
            let names: Vec<&str> = texts.columns().take(20).map(|(name, _)| name).collect();
            let problem = format!("has no column {column:?} of text; it has {}", names.join(", "));
            Err(Error::data(file.url(), problem).with(Help::Column))
        }
    }
}

/// The next row; nothing behind the last.
pub(super) fn next(rows: &mut TextRows) -> Result<Option<Text>> {
    rows.next_text().map_err(of_text)
}

/// Damage is the text's, and everything else the store's.
fn of_text(error: loader::Error) -> Error {
    match error {
        loader::Error::Data { location, problem, .. } => Error::data(location, problem),
        error => Error::Loader(error),
    }
}
