//! What checkpoints and evaluations add to a run: how many there are, what they write, and how long training waits for them.
//!
//! A run is gone through from one of them to the next, by the rules of [`crate::train`]:
//!
//! - a checkpoint of the cadence keeps training waiting until it is copied, or until no more is left to store than the buffer holds; the
//!   rest is stored beside the steps. The next one waits for it;
//! - by the clock one is due when that much time has passed since the last was copied, and none is on its way;
//! - where `checkpoint.best` is set an evaluation waits for the checkpoint that is on its way, and is followed by one of its own, for which
//!   training waits until it is stored. Every evaluation is taken to be the best so far, so that is a bound from above, and a near one;
//! - where both are due at a step there is one checkpoint; the last step always makes one.
//!
//! Not estimated: that rows are read more slowly while a checkpoint is stored, the start of a run, and what failures cost.
//!
//! It is gone through, instead of times being divided, because how many checkpoints there are and how long training waits for them
//! depends on each other. A test holds the numbers to a real run's.

use std::ops::Range;

use kernels::mesh::{Mesh, Place};

use crate::checkpoint;
use crate::recipe::{Every, Recipe};

/// Bytes a second at which a rank is taken to copy what it owns to the host's memory, by one thread: assumed, where it was not measured.
pub const COPY: f64 = 5e9;

/// Most of the time that training may wait for checkpoints where [`recommended_s`] says how often there should be one.
pub const MOST_WAITING: f64 = 0.02;

/// A checkpoint of a mesh: sizes in bytes, times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// Of all ranks.
    pub all: u64,
    /// Of the rank with the most.
    pub part: u64,
    /// Host memory that this part takes while it is stored, at most.
    pub host: u64,
    /// How long training waits for it.
    pub copied_s: f64,
    /// From its beginning until it is committed.
    pub stored_s: f64,
}

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// At which a rank copies its part to host memory.
    pub copy: f64,
    /// That a store takes of all ranks.
    pub storage: f64,
}

impl Sizes {
    /// Of a rank that keeps `buffer` bytes of it.
    pub fn of(recipe: &Recipe, mesh: Mesh, width: usize, buffer: u64, rates: Rates) -> Sizes {
        let owned = |rank| Place { mesh, rank }.owned(recipe.sae.features).len();
        let owned = (0..mesh.ranks()).map(owned).max().unwrap_or_default();
        let (all, part) = (checkpoint::bytes(width, recipe.sae.features), checkpoint::bytes(width, owned));
        let copy_s = part as f64 / rates.copy;
        let rest_s = part.saturating_sub(buffer) as f64 * mesh.ranks() as f64 / rates.storage;
        Sizes {
            all,
            part,
            host: checkpoint::staging_bytes(width, owned, buffer),
            copied_s: copy_s.max(rest_s),
            stored_s: copy_s.max(all as f64 / rates.storage),
        }
    }
}

/// Seconds that the parts of a run take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A step.
    pub step_s: f64,
    /// An evaluation during training.
    pub evaluation_s: f64,
    /// The evaluation at the end.
    pub last_evaluation_s: f64,
    /// See [`Sizes::copied_s`].
    pub copied_s: f64,
    /// See [`Sizes::stored_s`].
    pub stored_s: f64,
}

/// What a run does besides its steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overhead {
    /// Checkpoints written, at most.
    pub checkpoints: u64,
    /// Those of them that are written for an evaluation.
    pub for_evaluations: u64,
    /// Most checkpoints that are there at once.
    pub at_once: u64,
    /// Evaluations, with the one at the end.
    pub evaluations: u64,
    /// Seconds that training waits for checkpoints.
    pub checkpoints_s: f64,
    /// Seconds of evaluations, without their checkpoints.
    pub evaluations_s: f64,
}

impl Overhead {
    /// Of these steps of a run, up to its last one.
    pub fn of(recipe: &Recipe, of_run: Range<u64>, pace: &Pace) -> Overhead {
        let mut run = Walk { pace: *pace, now: 0.0, saved_at: 0.0, on_its_way: 0.0, sum: Overhead::default() };
        let held_out = !recipe.data.eval.is_empty();
        let evaluates = if held_out { recipe.eval.every } else { 0 };
        let multiple_behind = |step: u64, every: u64| (step / every + 1).saturating_mul(every);
        let Range { start: from, end: steps } = of_run;
        let mut step = from;
        while step < steps {
            let evaluation = if evaluates > 0 { multiple_behind(step, evaluates) } else { u64::MAX };
            let save = match recipe.checkpoint.every {
                Every::Steps(every) => multiple_behind(step, every),
                Every::Minutes(minutes) => step.saturating_add(run.steps_until(60.0 * minutes)),
            };
            let next = evaluation.min(save).min(steps);
            run.now += (next - step) as f64 * pace.step_s;
            step = next;
            if step < steps && step == evaluation {
                run.evaluate(recipe.checkpoint.best);
            }
            if step < steps && step == save && !(step == evaluation && recipe.checkpoint.best) {
                run.save();
            }
        }
        run.end(held_out);
        let besides = u64::from(recipe.checkpoint.best && evaluates > 0);
        let kept = (recipe.checkpoint.keep as u64).saturating_add(besides);
        // Of a run that goes on those before are there too.
        let most = if from > 0 { u64::MAX } else { run.sum.checkpoints };
        Overhead { at_once: most.min(kept.saturating_add(1)), ..run.sum }
    }
}

/// A run on its way.
struct Walk {
    pace: Pace,
    now: f64,
    /// When the last checkpoint was copied.
    saved_at: f64,
    /// When it is stored.
    on_its_way: f64,
    sum: Overhead,
}

impl Walk {
    /// Steps until a checkpoint by the clock is made: it is asked for before a step, and made behind it.
    fn steps_until(&self, every_s: f64) -> u64 {
        let due = (self.saved_at + every_s).max(self.on_its_way);
        (((due - self.now).max(0.0) / self.pace.step_s).ceil() as u64).saturating_add(1)
    }

    fn wait(&mut self) {
        let waited = (self.on_its_way - self.now).max(0.0);
        self.sum.checkpoints_s += waited;
        self.now += waited;
    }

    /// Begins a checkpoint.
    fn save(&mut self) {
        self.wait();
        self.on_its_way = self.now + self.pace.stored_s;
        self.now += self.pace.copied_s;
        self.saved_at = self.now;
        self.sum.checkpoints += 1;
        self.sum.checkpoints_s += self.pace.copied_s;
    }

    fn evaluate(&mut self, saves: bool) {
        self.sum.evaluations += 1;
        self.sum.evaluations_s += self.pace.evaluation_s;
        self.now += self.pace.evaluation_s;
        if saves {
            self.save();
            self.wait();
            self.sum.for_evaluations += 1;
        }
    }

    fn end(&mut self, held_out: bool) {
        self.save();
        self.wait();
        if held_out {
            self.sum.evaluations += 1;
            self.sum.evaluations_s += self.pace.last_evaluation_s;
        }
    }
}

/// The time between checkpoints that loses least, when training waits `waited_s` for each and a failure comes every `failures_s`: Young's
/// √(2 · waited · failures). Not less than three times what storing one takes, so that the store has time for rows too, and so
/// that training waits at most [`MOST_WAITING`] of the time. In whole minutes, and coarser where it is long.
pub fn recommended_s(sizes: &Sizes, failures_s: f64) -> f64 {
    let Sizes { copied_s, stored_s, .. } = *sizes;
    let seconds = (2.0 * copied_s * failures_s).sqrt().max(3.0 * stored_s).max(copied_s / MOST_WAITING);
    let minutes = (seconds / 60.0).max(1.0);
    let unit = if minutes <= 15.0 { 1.0 } else { 15.0 };
    60.0 * unit * (minutes / unit).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(extra: &str) -> Recipe {
        let text = format!("[data]\ntrain = 'x'\neval = 'e'\n[sae]\nfeatures = 4096\n[run]\ndir = 'y'\n{extra}");
        toml::from_str(&text).expect("a recipe")
    }

    const PACE: Pace = Pace { step_s: 2.0, evaluation_s: 5.0, last_evaluation_s: 50.0, copied_s: 3.0, stored_s: 11.0 };

    /// Against a run that goes step by step, with nothing of the loop above but the rules.
    #[test]
    fn a_walk_from_one_to_the_next_is_a_walk_step_by_step() {
        for extra in [
            "[checkpoint]\nevery = 7\n[eval]\nevery = 5",
            "[checkpoint]\nevery = 7\nbest = false\n[eval]\nevery = 5",
            "[checkpoint]\nevery = 3\n",
            "[checkpoint]\nevery = '1min'\n[eval]\nevery = 40",
            "[checkpoint]\nevery = '0.1min'\nbest = false\n[eval]\nevery = 9",
        ] {
            for (steps, pace) in
                [(1, PACE), (35, PACE), (200, PACE), (201, Pace { copied_s: 30.0, stored_s: 31.0, ..PACE })]
            {
                let recipe = recipe(extra);
                let plan = Overhead::of(&recipe, 0..steps, &pace);
                let (mut now, mut copied, mut until) = (0.0, 0.0, 0.0_f64);
                let (mut waited, mut written, mut for_evaluations) = (0.0, 0, 0);
                for step in 1..steps {
                    let asked = match recipe.checkpoint.every {
                        Every::Steps(every) => step % every == 0,
                        Every::Minutes(minutes) => now >= until && now - copied >= 60.0 * minutes,
                    };
                    now += pace.step_s;
                    let mut saved = false;
                    if recipe.eval.every > 0 && step % recipe.eval.every == 0 {
                        now += pace.evaluation_s;
                        let from = now;
                        if recipe.checkpoint.best {
                            now = now.max(until);
                            copied = now + pace.copied_s;
                            now += pace.stored_s;
                            until = now;
                            (written, for_evaluations, saved) = (written + 1, for_evaluations + 1, true);
                        }
                        waited += now - from;
                    }
                    if asked && !saved {
                        let from = now;
                        let begun = now.max(until);
                        now = begun + pace.copied_s;
                        (copied, until, written) = (now, begun + pace.stored_s, written + 1);
                        waited += now - from;
                    }
                }
                now += pace.step_s;
                waited += now.max(until) + pace.stored_s - now;
                assert_eq!((plan.checkpoints, plan.for_evaluations), (written + 1, for_evaluations), "{extra} {steps}");
                assert!((plan.checkpoints_s - waited).abs() < 1e-6, "{extra} {steps}: {plan:?} {waited}");
            }
        }
    }

    #[test]
    fn where_both_are_due_there_is_one_checkpoint() {
        let count = |extra: &str| {
            let plan = Overhead::of(&recipe(extra), 0..100, &PACE);
            (plan.checkpoints, plan.for_evaluations, plan.evaluations, plan.at_once)
        };
        // At 10, 20, …, 90 and the end; evaluations at 20, 40, 60, 80 and the end.
        assert_eq!(count("[checkpoint]\nevery = 10\n[eval]\nevery = 20"), (10, 4, 5, 4));
        // At 15, 30, … 90 besides.
        assert_eq!(count("[checkpoint]\nevery = 15\n[eval]\nevery = 20"), (6 + 4 - 1 + 1, 4, 5, 4));
        assert_eq!(count("[checkpoint]\nevery = 15\nbest = false\n[eval]\nevery = 20"), (7, 0, 5, 3));
        assert_eq!(count("[checkpoint]\nevery = 1000\nkeep = 5\n"), (1, 0, 1, 1));
        // From 45 on: at 50, 60, 70, 80, 90 and the end; evaluations at 60, 80 and the end.
        let rest = Overhead::of(&recipe("[checkpoint]\nevery = 10\n[eval]\nevery = 20"), 45..100, &PACE);
        assert_eq!((rest.checkpoints, rest.for_evaluations, rest.evaluations), (6, 2, 3));
    }

    #[test]
    fn the_time_between_checkpoints_is_youngs_within_bounds() {
        let sizes = |copied_s, stored_s| Sizes { all: 0, part: 0, host: 0, copied_s, stored_s };
        // √(2 · 10 · 720,000) = 3,795 s = 63.2 min, in steps of 15.
        assert_eq!(recommended_s(&sizes(10.0, 20.0), 720_000.0), 75.0 * 60.0);
        // Three times 40 min.
        assert_eq!(recommended_s(&sizes(10.0, 2400.0), 720_000.0), 120.0 * 60.0);
        // Failures so often that training would wait for more than 2 % of the time: 50 times 60 s.
        assert_eq!(recommended_s(&sizes(60.0, 60.0), 3600.0), 60.0 * 60.0);
        assert_eq!(recommended_s(&sizes(0.0, 0.0), 1e9), 60.0);
    }

    #[test]
    fn training_waits_for_what_the_buffer_does_not_hold() {
        let recipe = recipe("");
        let mesh = Mesh { data: 1, feature: 4 };
        let of = |buffer| Sizes::of(&recipe, mesh, 256, buffer, Rates { copy: 1e9, storage: 1e8 });
        // 3 · 4 · (2 · 256 + 1) bytes a feature and 40 of clocks and firings; b_dec once.
        let (all, part) = (4096 * (12 * 513 + 40) + 12 * 256, 1024 * (12 * 513 + 40) + 12 * 256);
        let held = of(1 << 30);
        assert_eq!((held.all, held.part), (all, part));
        assert!((held.copied_s - part as f64 / 1e9).abs() < 1e-9 && (held.stored_s - all as f64 / 1e8).abs() < 1e-9);
        // A quarter of 100 MB/s is this rank's.
        assert!((of(1_000_000).copied_s - (part - 1_000_000) as f64 / 2.5e7).abs() < 1e-9);
    }
}
