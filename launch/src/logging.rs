//! Messages go to standard error, above the progress bar; results go to standard output.
//!
//! Whatever a message says in numbers stands in fields of its own: a collector of logs reads them, and a person sees them behind the
//! words.

use std::fmt;
use std::io::IsTerminal;

use indicatif::HumanCount;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::args::Log;
use crate::progress::{self, AboveBars};

/// Installs the writer of messages. `RUST_LOG` chooses what is shown; by default this program's from `info` up, and its
/// libraries' warnings. Of many runs at once (`is_sweep`) each one's own words would drown those on all of them.
pub fn start(log: Log, is_sweep: bool) {
    let trainer = if is_sweep { "warn" } else { "info" };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,sae=info,trainer={trainer},loader=info,kernels=info")));
    if log == Log::Json {
        progress::hide_bars();
    }
    let writer = || AboveBars;
    let layer = tracing_subscriber::fmt::layer();
    let messages = match log {
        Log::Json => layer.json().with_writer(writer).boxed(),
        Log::Pretty => {
            let colours = std::io::stderr().is_terminal();
            let layer = layer.without_time().with_target(false).compact().fmt_fields(ForPeople);
            layer.with_ansi(colours).with_writer(writer).boxed()
        }
    };
    tracing_subscriber::registry().with(messages).with(filter).init();
}

/// Fields that say to programs what the message says to people.
const FOR_PROGRAMS: [&str; 3] = ["exit_code", "cause", "run"];

/// A message and behind it its fields, numbers in the digits that a person wants to see.
#[derive(Debug)]
struct ForPeople;

impl<'w> FormatFields<'w> for ForPeople {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut words = Words { writer, result: Ok(()), empty: true };
        fields.record(&mut words);
        words.result
    }
}

struct Words<'w> {
    writer: Writer<'w>,
    result: fmt::Result,
    empty: bool,
}

impl Words<'_> {
    fn put(&mut self, field: &Field, value: &str) {
        if FOR_PROGRAMS.contains(&field.name()) {
            return;
        }
        let space = if std::mem::take(&mut self.empty) { "" } else { " " };
        let name = if field.name() == "message" { String::new() } else { format!("{}=", field.name()) };
        let written = write!(self.writer, "{space}{name}{}", visible(value));
        self.result = self.result.and(written);
    }
}

impl Visit for Words<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, &digits(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &HumanCount(value).to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let one_word = field.name() == "message" || !(value.is_empty() || value.contains([' ', '"', '=']));
        self.put(field, &if one_word { value.to_owned() } else { format!("{value:?}") });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

/// A number in four significant digits or so.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e15).contains(&size) => format!("{value:.3e}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// Text without what would steer a terminal: names of files may hold anything.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_a_person_wants() {
        let shown = [0.0, 5e-5, 0.712_345, 12.3456, 123.456, 12_345.6, 2.2e21].map(digits);
        assert_eq!(shown, ["0", "5.000e-5", "0.712", "12.346", "123.5", "12346", "2.200e21"]);
    }

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\nc");
    }
}
