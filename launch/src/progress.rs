//! Progress bars with rate and time left. Where they cannot be seen, or a program reads along, a message now and then
//! instead.

use std::borrow::Cow;
use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::{self, Bars, Messages};

/// Every bar there is, so that they and messages do not draw over each other. Hidden where there is no terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    let terminal = Bars::on_terminal();
    let target = terminal.map(|terminal| ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWN_HZ));
    MultiProgress::with_draw_target(target.unwrap_or_else(ProgressDrawTarget::hidden))
});

/// How often a second bars are drawn, at most.
const DRAWN_HZ: u8 = 20;

/// From now on messages come instead of bars, on a terminal too.
pub fn hide_bars() {
    BARS.set_draw_target(ProgressDrawTarget::hidden());
}

/// Standard error, with the bars out of the way while something is written.
#[derive(Debug)]
pub struct AboveBars;

impl io::Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::Write::write(&mut Messages, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut Messages)
    }
}

/// What is known of training besides its rows. All of it is over the same rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The last step of those rows, counted from 0.
    pub step: u64,
    pub loss: f64,
    pub l0: f64,
    /// Not known of a single step, like the two below.
    pub explained_variance: Option<f64>,
    pub dead_fraction: Option<f64>,
    pub stall_share: Option<f64>,
}

/// A bar over some number of rows.
#[derive(Debug)]
pub struct Bar {
    /// Nothing where there is no terminal.
    bar: Option<ProgressBar>,
    started: Instant,
    /// When a message was last written in place of the bar.
    told: Instant,
    is_quiet: bool,
    shown: Shown,
}

/// Time between messages where there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

impl Bar {
    /// Starts at `from` of `total` rows.
    pub fn new(what: impl Into<Cow<'static, str>>, from: u64, total: u64) -> Self {
        let (what, bar) = (what.into(), line(|bar| BARS.add(bar)));
        let now = Instant::now();
        let pace = Pace { at: Duration::ZERO, position: from, per_s: 0.0, weight: 0.0 };
        Bar {
            bar,
            started: now,
            told: now,
            is_quiet: false,
            shown: Shown { what, position: from, total, pace, measured: None },
        }
    }

    /// The same, which is silent where there is no terminal.
    pub fn quiet(what: impl Into<Cow<'static, str>>, from: u64, total: u64) -> Self {
        Bar { is_quiet: true, ..Bar::new(what, from, total) }
    }

    /// Moves to `position`.
    pub fn set(&mut self, position: u64) {
        self.shown.position = position;
        self.shown.pace.see(self.started.elapsed(), position, position >= self.shown.total);
        match &self.bar {
            Some(bar) => bar.set_message(self.shown.line(terminal::width())),
            None if !self.is_quiet && self.told.elapsed() >= QUIET => {
                self.told = Instant::now();
                self.shown.tell();
            }
            None => {}
        }
    }

    /// Replaces the number of rows, where it was a guess.
    pub fn set_total(&mut self, total: u64) {
        self.shown.total = total;
    }

    /// Replaces what is shown besides rows.
    pub fn measured(&mut self, measured: Measured) {
        self.shown.measured = Some(measured);
    }

    /// Takes the bar away, and says nothing in its place.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Takes the bar away; in its place the last message is written.
    pub fn finish(&self) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => self.shown.tell(),
        }
    }
}

/// A line of text above all bars, where there is a terminal.
#[derive(Debug)]
pub struct Headline {
    bar: Option<ProgressBar>,
}

impl Headline {
    /// An empty one.
    pub fn new() -> Self {
        Headline { bar: line(|bar| BARS.insert(0, bar)) }
    }

    /// Replaces the text.
    pub fn set(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.chars().take(terminal::width()).collect::<String>());
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line of a terminal that shows whatever it is given; nothing where there is no terminal.
fn line(add: impl FnOnce(ProgressBar) -> ProgressBar) -> Option<ProgressBar> {
    (!BARS.is_hidden()).then(|| {
        let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        add(ProgressBar::new(1).with_style(style))
    })
}

/// What there is to show.
#[derive(Debug)]
struct Shown {
    what: Cow<'static, str>,
    position: u64,
    total: u64,
    pace: Pace,
    measured: Option<Measured>,
}

impl Shown {
    fn seconds_left(&self) -> Option<f64> {
        let rows = self.total.saturating_sub(self.position) as f64;
        self.pace.per_s().filter(|&per_s| per_s > 0.0).map(|per_s| rows / per_s)
    }

    fn tell(&self) {
        let measured = self.measured.as_ref();
        tracing::info!(
            rows = self.position,
            total_rows = self.total,
            rows_per_s = self.pace.per_s(),
            left_s = self.seconds_left(),
            step = measured.map(|measured| measured.step),
            loss = measured.map(|measured| measured.loss),
            l0 = measured.map(|measured| measured.l0),
            explained_variance = measured.and_then(|measured| measured.explained_variance),
            dead_fraction = measured.and_then(|measured| measured.dead_fraction),
            stall_share = measured.and_then(|measured| measured.stall_share),
            "{}",
            self.what
        );
    }

    /// A line of at most `width` columns: the parts that matter least are left out where there is no room.
    fn line(&self, width: usize) -> String {
        let done = self.position.min(self.total) as f64 / self.total.max(1) as f64;
        let per_s = self.pace.per_s().map_or("–/s".to_owned(), rate);
        let left = self.seconds_left().map_or("–".to_owned(), duration);
        // Each with what it is left out by: the highest first.
        let mut parts = vec![
            (0, format!("{} {:.0}%", self.what, (100.0 * done).floor())),
            (5, drawn(done, 10)),
            (4, format!("{}/{} rows", HumanCount(self.position), HumanCount(self.total))),
            (3, per_s),
            (2, format!("{left} left")),
        ];
        if let Some(Measured { loss, l0, explained_variance, dead_fraction, stall_share, .. }) = self.measured {
            parts.extend([(1, format!("loss {}", short(loss))), (1, format!("L0 {}", short(l0)))]);
            let percent = |name: &str, share: f64| format!("{name} {:.1}%", 100.0 * share);
            parts.extend(explained_variance.map(|share| (1, percent("EV", share))));
            parts.extend(dead_fraction.map(|share| (6, percent("dead", share))));
            parts.extend(stall_share.map(|share| (7, percent("stall", share))));
        }
        loop {
            let line = parts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" · ");
            let last = parts.iter().map(|(order, _)| *order).max().unwrap_or_default();
            if line.chars().count() <= width || last == 0 {
                return line;
            }
            parts.retain(|(order, _)| *order < last);
        }
    }
}

/// How many rows a second go by now: those of this process alone, of which what was half a minute ago counts for little.
#[derive(Debug)]
struct Pace {
    at: Duration,
    position: u64,
    per_s: f64,
    weight: f64,
}

/// Seconds over which the rate is taken.
const MEMORY_S: f64 = 30.0;
/// Over less the clock, and a batch that was counted just now, would make the rate.
const LEAST_S: f64 = 0.2;

/// What takes less has no rate that means anything.
const NO_TIME_S: f64 = 0.01;

impl Pace {
    /// Takes note of a position; what is over sooner than a rate is known has that of all its time, unless that was no time at all.
    fn see(&mut self, at: Duration, position: u64, is_last: bool) {
        let seconds = at.saturating_sub(self.at).as_secs_f64();
        if seconds >= LEAST_S || (is_last && self.weight == 0.0 && seconds >= NO_TIME_S) {
            let new = -(-seconds / MEMORY_S).exp_m1();
            let per_s = position.saturating_sub(self.position) as f64 / seconds;
            self.per_s += new * (per_s - self.per_s);
            self.weight += new * (1.0 - self.weight);
            (self.at, self.position) = (at, position);
        }
    }

    fn per_s(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.per_s / self.weight)
    }
}

fn drawn(done: f64, cells: usize) -> String {
    let full = (done * cells as f64) as usize;
    "█".repeat(full) + &"░".repeat(cells - full)
}

/// A rate in the digits that stay still long enough to be read.
fn rate(per_s: f64) -> String {
    if per_s < 10.0 { format!("{per_s:.1}/s") } else { format!("{}/s", HumanCount(per_s as u64)) }
}

/// A number that takes little room.
fn short(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// A time in the two units that matter.
pub fn duration(seconds: f64) -> String {
    // What is left of the slowest runs is some number of days as well.
    let seconds = seconds.min(1e9).round() as u64;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, ..) => format!("{d}d{h:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Shown {
        let mut pace = Pace { at: Duration::ZERO, position: 3_000_000_000, per_s: 0.0, weight: 0.0 };
        pace.see(Duration::from_secs(10), 3_000_123_450, false);
        let measured = Measured {
            step: 9,
            loss: 1874.25,
            l0: 103.7,
            explained_variance: Some(0.712_34),
            dead_fraction: Some(0.02),
            stall_share: Some(0.001),
        };
        Shown { what: "training".into(), position: pace.position, total: 8_000_000_000, pace, measured: Some(measured) }
    }

    /// Loss, L0 and explained variance are seen in the narrowest terminal, and more as there is room.
    #[test]
    fn a_line_has_what_matters_at_every_width() {
        let shown = shown();
        for (width, line) in [
            (60, "training 37% · 4d16h left · loss 1874 · L0 103.7 · EV 71.2%"),
            (80, "training 37% · 12,345/s · 4d16h left · loss 1874 · L0 103.7 · EV 71.2%"),
            (
                120,
                "training 37% · ███░░░░░░░ · 3,000,123,450/8,000,000,000 rows · 12,345/s · 4d16h left · loss 1874 · \
                 L0 103.7 · EV 71.2%",
            ),
            (
                200,
                "training 37% · ███░░░░░░░ · 3,000,123,450/8,000,000,000 rows · 12,345/s · 4d16h left · loss 1874 · \
                 L0 103.7 · EV 71.2% · dead 2.0% · stall 0.1%",
            ),
        ] {
            assert_eq!(shown.line(width), line, "{width} columns");
        }
    }

    /// A run that goes on at a billion rows has made none of them in this process.
    #[test]
    fn the_rate_is_that_of_this_process() {
        let mut pace = Pace { at: Duration::ZERO, position: 1_000_000_000, per_s: 0.0, weight: 0.0 };
        pace.see(Duration::from_millis(1), 1_000_000_256, false);
        assert_eq!(pace.per_s(), None);
        for second in 1..=20 {
            pace.see(Duration::from_secs(second), 1_000_000_000 + 500 * second, false);
            assert!(pace.per_s().is_some_and(|per_s| (per_s - 500.0).abs() < 1e-6), "{pace:?}");
        }
        // What is over at once has no rate.
        for (time, per_s) in [(Duration::from_nanos(27), None), (Duration::from_millis(100), Some(20_000.0))] {
            let mut short = Pace { at: Duration::ZERO, position: 0, per_s: 0.0, weight: 0.0 };
            short.see(time, 2000, true);
            assert_eq!(short.per_s().map(f64::round), per_s);
        }
        // Another pace takes over.
        let mut position = pace.position;
        for second in 21..=200 {
            position += 5000;
            pace.see(Duration::from_secs(second), position, false);
        }
        assert!(pace.per_s().is_some_and(|per_s| (per_s - 5000.0).abs() < 20.0), "{pace:?}");
    }

    #[test]
    fn rates_and_times_have_the_digits_that_can_be_read() {
        assert_eq!([2087.0475, 12.9, 0.25].map(rate), ["2,087/s", "12/s", "0.2/s"]);
        assert_eq!([7.4, 247.0, 11_040.0, 403_000.0].map(duration), ["7s", "4m07s", "3h04m", "4d15h"]);
        assert_eq!(drawn(1.0, 4), "████");
    }
}
