//! Lines of metrics: means over the rows since the line before, and how fast they came.

use kernels::ranks::Group;
use kernels::{Clock, Device, Dictionary, Sums, Training};

use super::clocks::Span;
use super::run::{Event, Run};
use crate::Error;
use crate::ranks::together::together;
use crate::report::journal::{self, Line, Together, TrainLine};
use crate::report::metrics::{Metrics, dead_fraction};
use crate::schedule::is_due;

/// A rank that spends so much less of its time in exchanges than the others do on average is reported: they wait for it.
const SLOW: f64 = 0.2;

impl<D: Device> Run<'_, D> {
    /// Writes a metrics line when one is due.
    pub(super) fn log_line(&mut self) -> Result<(), Error> {
        if !is_due(self.recipe.log.every, self.state.step) && !self.is_done() {
            return Ok(());
        }
        self.drain()?;
        let step = self.state.step - 1;
        let lambda = f64::from(self.schedule.lambda(step));
        let owned = self.state.window.fired_f.len();
        let sums = std::mem::replace(&mut self.state.window, Sums::new(self.data.train.width(), owned));
        let span = self.clocks.next_line(&self.state, self.device);
        let Some(metrics) = Metrics::of(&sums, lambda) else { return Ok(()) };
        let line = TrainLine {
            time: journal::now(),
            step,
            tokens: self.state.tokens,
            metrics,
            dead_fraction: self.dead_fraction()?,
            gradient_norm: self.state.gradient_norm,
            tokens_per_s: span.tokens as f64 / span.step_s,
            tokens_per_s_wall: span.tokens as f64 / span.wall_s,
            stall_share: span.stall_s / span.wall_s,
            account: self.account(lambda, self.schedule.lr().at(step)),
            ranks: at_work(&self.device.axes().all, &span)?,
        };
        (self.start.watch)(Event::Line(&line));
        if let Some(scribe) = &mut self.scribe {
            if let Some(Together { slowest, slowest_share, exchange_share, .. }) = line.ranks
                && exchange_share - slowest_share > SLOW
            {
                tracing::warn!(
                    step,
                    slowest,
                    slowest_share,
                    exchange_share,
                    "one rank is slow: it spends less of its time in exchanges than the ranks on average, who wait for it"
                );
            }
            scribe.journal.line(&Line::Train(line))?;
        }
        Ok(())
    }

    pub(super) fn dead_fraction(&self) -> Result<f64, Error> {
        let axes = self.device.axes();
        let owned = axes.owned(self.sae.shape().features);
        let mut last_fired_f = vec![0; owned.len()];
        self.sae.read_clock(Clock::LastFired, owned, &mut last_fired_f)?;
        Ok(dead_fraction(&last_fired_f, self.state.tokens, self.recipe.train.dead_window, &axes.all)?)
    }
}

/// How the ranks worked together between two lines; nothing is said of one rank.
fn at_work(ranks: &Group, span: &Span) -> Result<Option<Together>, Error> {
    if ranks.size() == 1 {
        return Ok(None);
    }
    let own = (span.sent, span.exchanging_s / span.wall_s);
    let all: Vec<(u64, f64)> = together(ranks, "comparing speeds", Ok(own))?;
    let steps = span.steps.max(1);
    let slowest = all.iter().enumerate().min_by(|(_, a), (_, b)| a.1.total_cmp(&b.1));
    Ok(slowest.map(|(slowest, &(_, slowest_share))| Together {
        sent_bytes: all.iter().map(|(sent, _)| sent).sum::<u64>() / steps,
        exchange_share: all.iter().map(|(_, share)| share).sum::<f64>() / all.len() as f64,
        slowest,
        slowest_share,
    }))
}
