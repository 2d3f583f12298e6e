//! What is shown of a sweep while it is worked on: a line for the whole and one for each configuration that trains here. Where there is no
//! terminal, a message for each that begins or ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use trainer::train::Event;

use super::claim::Progress;
use crate::progress::{Bar, Measured};

/// A configuration while it trains: its bar, and what its claim says of it.
pub struct Shown {
    label: String,
    progress: Arc<Mutex<Progress>>,
    bar: Option<Bar>,
    evaluating: Option<Bar>,
    rate: Option<Rate>,
}

/// Rows a second by the clock, since a process began with a run: what `tokens_per_s_wall` is of a run that is done.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    from: u64,
    since: Instant,
}

impl Rate {
    /// Of a run that has trained on so many rows and goes on now.
    pub fn begin(tokens: u64) -> Rate {
        Rate { from: tokens, since: Instant::now() }
    }

    /// When so many were trained on; nothing as long as that would be the clock's doing.
    pub fn per_s(&self, tokens: u64) -> Option<f64> {
        let seconds = self.since.elapsed().as_secs_f64();
        (seconds > 0.1).then(|| tokens.saturating_sub(self.from) as f64 / seconds)
    }
}

impl Shown {
    /// One that has not begun.
    pub fn new(label: String, progress: Arc<Mutex<Progress>>) -> Shown {
        Shown { label, progress, bar: None, evaluating: None, rate: None }
    }

    /// Takes note of what a run tells.
    pub fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Start { step, steps, tokens, rows, .. } => {
                self.rate = Some(Rate::begin(tokens));
                self.note(|progress| *progress = Progress { step, steps, tokens, rows, ..Progress::default() });
                self.bar = Some(Bar::quiet(self.label.clone(), tokens, rows));
            }
            Event::Step { step, tokens, loss, l0 } => {
                let per_s = self.rate.and_then(|rate| rate.per_s(tokens));
                self.note(|progress| {
                    (progress.step, progress.tokens, progress.tokens_per_s_wall) = (step, tokens, per_s);
                    (progress.loss, progress.l0) = (Some(loss), Some(l0));
                });
                if let Some(bar) = &mut self.bar {
                    let (explained_variance, dead_fraction, stall_share) = (None, None, None);
                    let step = step.saturating_sub(1);
                    bar.measured(Measured { step, loss, l0, explained_variance, dead_fraction, stall_share });
                    bar.set(tokens);
                }
            }
            Event::Evaluating(done, rows) => {
                let label = &self.label;
                let bar = self.evaluating.get_or_insert_with(|| Bar::quiet(format!("{label}, evaluating"), 0, rows));
                bar.set(done);
            }
            Event::Evaluated(_) => {
                if let Some(bar) = self.evaluating.take() {
                    bar.clear();
                }
            }
            Event::Done | Event::NotBegun => self.end(),
            Event::Line(_) | Event::Saved(_) => {}
        }
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes its bars away.
    pub fn end(&self) {
        self.bar.iter().chain(&self.evaluating).for_each(Bar::clear);
    }
}
