//! The clocks of a run: since it began, over all its starts, and since the last metrics line.

use std::time::{Duration, Instant};

use kernels::Device;

use crate::checkpoint::State;

/// Since this start of the run began, and since its last metrics line.
pub(super) struct Clocks {
    began: Instant,
    /// By the clock, of the starts before.
    before_s: f64,
    line: LineClock,
}

/// What a rank knew at the last metrics line.
struct LineClock {
    since: Instant,
    step: u64,
    step_s: f64,
    tokens: u64,
    stall: Duration,
    sent: u64,
    exchanging: Duration,
}

/// What went on between two metrics lines.
pub(super) struct Span {
    pub(super) steps: u64,
    pub(super) tokens: u64,
    /// Seconds in steps.
    pub(super) step_s: f64,
    /// Seconds by the clock.
    pub(super) wall_s: f64,
    /// Seconds of waiting for rows.
    pub(super) stall_s: f64,
    /// Bytes that this rank has sent to others.
    pub(super) sent: u64,
    /// Seconds that it has spent in exchanges.
    pub(super) exchanging_s: f64,
}

impl LineClock {
    fn start(state: &State, device: &impl Device) -> Self {
        let (sent, exchanging) = device.exchanged();
        let State { step, step_s, tokens, .. } = *state;
        LineClock { since: Instant::now(), step, step_s, tokens, stall: Duration::ZERO, sent, exchanging }
    }
}

impl Clocks {
    /// Of a run that `began` and goes on from `state`.
    pub(super) fn start(began: Instant, state: &State, device: &impl Device) -> Self {
        Clocks { began, before_s: state.wall_s, line: LineClock::start(state, device) }
    }

    /// Seconds by the clock, over all starts of the run.
    pub(super) fn wall_s(&self) -> f64 {
        self.before_s + self.began.elapsed().as_secs_f64()
    }

    /// The run has waited for rows.
    pub(super) fn waited(&mut self, stall: Duration) {
        self.line.stall += stall;
    }

    /// What went on since the last call, or the start.
    pub(super) fn next_line(&mut self, state: &State, device: &impl Device) -> Span {
        let now = LineClock::start(state, device);
        let before = std::mem::replace(&mut self.line, now);
        let now = &self.line;
        Span {
            steps: now.step - before.step,
            tokens: now.tokens - before.tokens,
            step_s: now.step_s - before.step_s,
            wall_s: (now.since - before.since).as_secs_f64(),
            stall_s: before.stall.as_secs_f64(),
            sent: now.sent - before.sent,
            exchanging_s: (now.exchanging - before.exchanging).as_secs_f64(),
        }
    }
}
