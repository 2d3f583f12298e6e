//! What a command says on standard output: a table, and the next command.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use rustix::io::Errno;
use trainer::Exit;

/// Writes a line to standard output. When nobody reads on (`sae eval … | head`, a terminal that is closed), the rest is not said.
pub fn say(line: impl Display) {
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        let is_left =
            error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::IO.raw_os_error());
        std::process::exit(if is_left { 0 } else { Exit::CannotWrite.code().into() });
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

/// Characters of a line that a table takes at most, also where there is no terminal: logs are read on one too.
const WIDEST: u16 = 100;

/// A narrower terminal has no width: that of mpirun says 0.
const NARROWEST: u16 = 40;

/// Prints rows under titles, wrapped where they are wider than a terminal; columns of numbers stand to the right.
pub fn columns<const N: usize>(titles: &[&str; N], rows: &[[String; N]]) {
    say(fitted(titles, rows));
}

fn fitted<const N: usize>(titles: &[&str; N], rows: &[[String; N]]) -> Table {
    let mut table = Table::new();
    let terminal = table.width().filter(|&terminal| terminal >= NARROWEST);
    let width = terminal.map_or(WIDEST, |terminal| terminal.min(WIDEST));
    table.load_style(UTF8_BORDERS_ONLY).set_header(titles).add_rows(rows);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    for (at, column) in table.column_iter_mut().enumerate() {
        if rows.iter().all(|row| row[at].starts_with(|first: char| first.is_ascii_digit())) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
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
    fn columns_fit_and_short_ones_keep_their_lines() {
        let rows = [["ranks", "ok", "rank 0 of 1"], ["data", "failed", &"missing ".repeat(40)]];
        let shown = fitted(&["check", "", "found"], &rows.map(|row| row.map(str::to_owned))).to_string();
        assert!(shown.lines().all(|line| line.chars().count() <= usize::from(WIDEST)), "{shown}");
        assert!(shown.contains("ranks   ok       rank 0 of 1 ") && shown.matches("missing").count() == 40, "{shown}");
    }

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("runs/a"), "runs/a");
        assert_eq!(quoted("my runs/a"), "'my runs/a'");
    }
}
