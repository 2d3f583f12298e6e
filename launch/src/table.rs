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
    say(fitted(&columns_of(titles, rows), width()));
}

/// The columns of rows under titles.
pub fn columns_of<const N: usize>(titles: &[&str; N], rows: &[[String; N]]) -> Vec<Column> {
    let columns = titles.iter().enumerate();
    columns.map(|(at, title)| Column::of(title, rows.iter().map(|row| row[at].clone()))).collect()
}

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    title: String,
    cells: Vec<String>,
}

impl Column {
    /// Cells under a title.
    pub fn of(title: &str, cells: impl Iterator<Item = String>) -> Column {
        Column { title: title.to_owned(), cells: cells.collect() }
    }

    fn width(&self) -> usize {
        self.cells.iter().chain([&self.title]).map(|text| text.chars().count()).max().unwrap_or_default()
    }

    fn is_of_numbers(&self) -> bool {
        // Some may not be known.
        self.cells.iter().all(|cell| cell == "–" || cell.starts_with(|first: char| first.is_ascii_digit()))
    }
}

/// Prints columns, of which those called like one of `spare` are left out, the first of these first, as long as there is no room for all.
pub fn in_room(columns: Vec<Column>, spare: &[&str]) {
    let width = width();
    say(fitted(&with_room(columns, spare, usize::from(width)), width));
}

fn with_room(mut columns: Vec<Column>, spare: &[&str], width: usize) -> Vec<Column> {
    for title in spare {
        // A blank on either side, one between columns, and the frame.
        if columns.iter().map(|column| column.width() + 3).sum::<usize>() < width {
            break;
        }
        columns.retain(|column| column.title != *title);
    }
    columns
}

/// Columns that a table may take.
fn width() -> u16 {
    let terminal = Table::new().width().filter(|&terminal| terminal >= NARROWEST);
    terminal.map_or(WIDEST, |terminal| terminal.min(WIDEST))
}

fn fitted(columns: &[Column], width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(columns.iter().map(|column| &column.title));
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or_default();
    table.add_rows((0..rows).map(|row| columns.iter().filter_map(move |column| column.cells.get(row))));
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    for (column, _) in table.column_iter_mut().zip(columns).filter(|(_, own)| own.is_of_numbers()) {
        column.set_cell_alignment(CellAlignment::Right);
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
        let columns =
            [["check", "ranks", "data"], ["", "ok", "failed"], ["found", "rank 0 of 1", &"missing ".repeat(40)]];
        let columns =
            columns.map(|[title, first, second]| Column::of(title, [first, second].map(str::to_owned).into_iter()));
        let shown = fitted(&columns, WIDEST).to_string();
        assert!(shown.lines().all(|line| line.chars().count() <= usize::from(WIDEST)), "{shown}");
        assert!(shown.contains("ranks   ok       rank 0 of 1 ") && shown.matches("missing").count() == 40, "{shown}");
    }

    #[test]
    fn columns_that_can_be_spared_make_room() {
        let column = |title: &str, width: usize| Column::of(title, ["9".repeat(width)].into_iter());
        let all = || vec![column("run", 10), column("rate", 10), column("loss", 10)];
        for (width, titles) in [(40, "run rate loss"), (39, "run loss"), (26, "run"), (5, "run")] {
            let left = with_room(all(), &["rate", "loss"], width);
            let shown = left.iter().map(|column| column.title.as_str()).collect::<Vec<_>>().join(" ");
            assert_eq!(shown, titles, "{width}");
            let widest = fitted(&left, width as u16).to_string().lines().map(|line| line.chars().count()).max();
            assert!(width < 20 || widest <= Some(width), "{width}: {widest:?}");
        }
    }

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("runs/a"), "runs/a");
        assert_eq!(quoted("my runs/a"), "'my runs/a'");
    }
}
