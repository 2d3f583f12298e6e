//! Progress bars with rate and time left. Where they cannot be seen, or a program reads along, a message now and then
//! instead.

use std::fmt::Write;
use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::terminal::{Bars, Messages};

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

/// A bar over some number of rows.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    what: &'static str,
    total: u64,
    plain: Option<Plain>,
}

/// Messages in place of a bar.
#[derive(Debug)]
struct Plain {
    started: Instant,
    from: u64,
    last: Instant,
}

/// Time between messages where there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

impl Bar {
    /// Starts at `from` of `total` rows.
    pub fn new(what: &'static str, from: u64, total: u64) -> Self {
        if BARS.is_hidden() {
            let now = Instant::now();
            return Bar {
                bar: ProgressBar::hidden(),
                what,
                total,
                plain: Some(Plain { started: now, from, last: now }),
            };
        }
        let style = ProgressStyle::with_template(
            "{prefix} {bar:24} {human_pos}/{human_len} rows · {rate} · {eta} left{wide_msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            // A bar without its rate is still a bar.
            let _ = out.write_str(&rate(state.per_sec()));
        });
        let bar = BARS.add(ProgressBar::new(total).with_style(style).with_prefix(what).with_position(from));
        bar.reset_eta();
        Bar { bar, what, total, plain: None }
    }

    /// Moves to `position`, with what else is known.
    pub fn set(&mut self, position: u64, message: &str) {
        let Some(plain) = &mut self.plain else {
            self.bar.set_position(position);
            self.bar.set_message(format!(" · {message}").trim_end_matches(" · ").to_owned());
            return;
        };
        if plain.last.elapsed() < QUIET {
            return;
        }
        plain.last = Instant::now();
        let per_s = position.saturating_sub(plain.from) as f64 / plain.started.elapsed().as_secs_f64();
        let left = Duration::from_secs_f64((self.total.saturating_sub(position) as f64 / per_s.max(1e-9)).min(1e9));
        tracing::info!(
            "{}: {} of {} rows, {}, {} s left{}{message}",
            self.what,
            HumanCount(position),
            HumanCount(self.total),
            rate(per_s),
            left.as_secs(),
            if message.is_empty() { "" } else { ", " },
        );
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A rate in the digits that stay still long enough to be read.
fn rate(per_s: f64) -> String {
    if per_s < 10.0 { format!("{per_s:.1}/s") } else { format!("{}/s", HumanCount(per_s as u64)) }
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn rates_have_the_digits_that_can_be_read() {
        assert_eq!([2087.0475, 12.9, 0.25].map(rate), ["2,087/s", "12/s", "0.2/s"]);
    }
}
