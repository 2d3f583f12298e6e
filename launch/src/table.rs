//! What a command says on standard output: a table, and the next command.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

/// Writes a line to standard output. When nobody reads on (`sae eval … | head`), the rest is not said.
pub fn say(line: impl Display) {
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        std::process::exit(if error.kind() == io::ErrorKind::BrokenPipe { 0 } else { 73 });
    }
}

/// Prints names and values in two columns.
pub fn print(title: &str, rows: &[(&str, String)]) {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header([title, ""]);
    for (name, value) in rows {
        table.add_row([*name, value]);
    }
    if let Some(values) = table.column_mut(1) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    say(table);
}

/// A path or URL as a shell takes it.
pub fn quoted(path: &str) -> String {
    shlex::try_quote(path).map_or_else(|_| path.to_owned(), Into::into)
}

/// Prints rows under titles; columns of numbers stand to the right.
pub fn columns<const N: usize>(titles: &[&str; N], rows: &[[String; N]]) {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(titles).add_rows(rows);
    for (at, column) in table.column_iter_mut().enumerate() {
        if rows.iter().all(|row| row[at].starts_with(|first: char| first.is_ascii_digit())) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    say(table);
}

/// A share as a percentage, `–` where it is not defined.
pub fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.2} %", 100.0 * share))
}

/// A number in the digits that a person wants to see.
pub fn number(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("runs/a"), "runs/a");
        assert_eq!(quoted("my runs/a"), "'my runs/a'");
    }
}
