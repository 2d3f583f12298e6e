//! What a run takes of time, storage and money, as `sae plan` and a dry run say it.

use std::ops::Range;

use indicatif::{HumanBytes, HumanCount};
use kernels::mesh::Mesh;
use serde::Serialize;
use trainer::overhead::{MOST_WAITING, Overhead, Pace, Rates, Sizes, recommended_s};
use trainer::recipe::{Every, Recipe};

use crate::job;

/// What a budget follows from.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The run.
    pub recipe: &'a Recipe,
    /// Its ranks.
    pub mesh: Mesh,
    /// Values in a row.
    pub width: usize,
    /// Bytes of a stored row.
    pub row_bytes: f64,
    /// Steps that are made already.
    pub steps_done: u64,
    /// Rows trained on behind them.
    pub rows: u64,
    /// Rows held out, where that is known.
    pub eval_rows: Option<u64>,
    /// Seconds of a step's computation.
    pub step_s: f64,
    /// Seconds of a batch that is looked at and not trained on.
    pub forward_s: f64,
    /// Bytes a second at which a rank copies a checkpoint.
    pub copy: f64,
    /// Bytes a second that all machines read from storage, or write to it.
    pub storage: f64,
    /// Bytes of a checkpoint that a rank keeps while training goes on.
    pub buffer: u64,
    /// Hours between failures of a device.
    pub mtbf: f64,
    /// Price of a device an hour.
    pub price: Option<f64>,
}

/// What a run takes besides memory.
#[derive(Clone, Debug, Serialize)]
pub struct Budget {
    /// Steps.
    pub steps: u64,
    /// Rows a second in steps.
    pub tokens_per_s: f64,
    /// Seconds.
    pub time: Time,
    /// Hours of all devices.
    pub device_hours: f64,
    /// Price of a device an hour.
    pub price: Option<f64>,
    /// Of the whole run, in the price's currency.
    pub cost: Option<f64>,
    /// What is saved.
    pub checkpoints: Checkpoints,
    /// What is measured on held-out rows.
    pub evaluations: Evaluations,
}

/// Seconds of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Time {
    /// In steps.
    pub steps_s: f64,
    /// In evaluations.
    pub evaluations_s: f64,
    /// Waiting for checkpoints.
    pub checkpoints_s: f64,
    /// Altogether.
    pub total_s: f64,
}

/// Checkpoints of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Checkpoints {
    /// Written, at most.
    pub count: u64,
    /// Those of them that `checkpoint.best = false` would not write: of evaluations that are the best so far, where no other is due.
    pub best_count: u64,
    /// Bytes of one.
    pub bytes: u64,
    /// Bytes written, at most.
    pub total_bytes: u64,
    /// Bytes that are there at once, at most.
    pub peak_bytes: u64,
    /// Bytes of a rank's part.
    pub part_bytes: u64,
    /// Bytes of it kept in memory while training goes on.
    pub buffer_bytes: u64,
    /// Host memory that a rank takes for it, at most.
    pub host_bytes: u64,
    /// Seconds from its beginning until it is committed.
    pub stored_s: f64,
    /// Seconds for which training waits at one of the cadence.
    pub waited_s: f64,
    /// Seconds that a scheduler should give a run to save.
    pub save_s: u32,
    /// `checkpoint.every` as it is.
    pub every: Every,
    /// `checkpoint.every` as it should be.
    pub recommended_every: Every,
    /// Seconds that `checkpoint.best = false` would save, at most.
    pub best_s: f64,
}

/// Evaluations of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluations {
    /// With the one at the end.
    pub count: u64,
    /// Rows of each during training.
    pub rows: u64,
    /// Rows of the last.
    pub last_rows: u64,
}

impl Budget {
    /// Of a run on these terms.
    pub fn of(terms: &Terms<'_>) -> Budget {
        let Terms { recipe, mesh, width, row_bytes, steps_done, rows, step_s, copy, storage, buffer, .. } = *terms;
        let batch = recipe.train.batch as f64;
        let steps = rows.div_ceil(recipe.train.batch as u64);
        let read_s = batch * row_bytes / storage;
        let sizes = Sizes::of(recipe, mesh, width, buffer, Rates { copy, storage });
        // Where it is not known how many rows are held out, those of an evaluation during training stand for all.
        let (last_rows, held_out) = (terms.eval_rows.unwrap_or(recipe.eval.rows), !recipe.data.eval.is_empty());
        let last_rows = if held_out { last_rows } else { 0 };
        let evaluated = recipe.eval.rows.min(last_rows);
        let looking_s = |rows: u64| rows as f64 / batch * terms.forward_s.max(read_s);
        let pace = Pace {
            step_s: step_s.max(read_s),
            evaluation_s: looking_s(evaluated),
            // Other rows than those of the evaluations before: they are read once more, for their mean.
            last_evaluation_s: looking_s(last_rows) + last_rows as f64 / batch * read_s,
            copied_s: sizes.copied_s,
            stored_s: sizes.stored_s,
        };
        let of_run = steps_done..steps_done + steps;
        let overhead = Overhead::of(recipe, of_run.clone(), &pace);
        let plain = without_best(recipe, of_run, &pace);
        let steps_s = rows as f64 / batch * pace.step_s;
        let Overhead { checkpoints_s, evaluations_s, .. } = overhead;
        let total_s = steps_s + checkpoints_s + evaluations_s;
        let device_hours = mesh.ranks() as f64 * total_s / 3600.0;
        let every_s = recommended_s(&sizes, 3600.0 * terms.mtbf / mesh.ranks() as f64);
        Budget {
            steps,
            tokens_per_s: batch / pace.step_s,
            time: Time { steps_s, evaluations_s, checkpoints_s, total_s },
            device_hours,
            price: terms.price,
            cost: terms.price.map(|price| price * device_hours),
            checkpoints: Checkpoints {
                count: overhead.checkpoints,
                best_count: overhead.checkpoints.saturating_sub(plain.checkpoints),
                bytes: sizes.all,
                total_bytes: sizes.all.saturating_mul(overhead.checkpoints),
                peak_bytes: sizes.all.saturating_mul(overhead.at_once),
                part_bytes: sizes.part,
                buffer_bytes: buffer,
                host_bytes: sizes.host,
                stored_s: sizes.stored_s,
                waited_s: sizes.copied_s,
                save_s: job::save_s(sizes.stored_s),
                every: recipe.checkpoint.every,
                recommended_every: Every::Minutes(every_s / 60.0),
                best_s: checkpoints_s - plain.checkpoints_s,
            },
            evaluations: Evaluations { count: overhead.evaluations, rows: evaluated, last_rows },
        }
    }

    /// How long the run takes, and of what.
    pub fn of_time(&self) -> Vec<(&'static str, String)> {
        let Time { steps_s, evaluations_s, checkpoints_s, total_s } = self.time;
        let Evaluations { count, rows, last_rows } = self.evaluations;
        let mut lines = vec![("steps", format!("{} in {}", HumanCount(self.steps), duration(steps_s)))];
        if count > 0 {
            let during = match count - 1 {
                0 => String::new(),
                during => format!("{} of {} rows, ", HumanCount(during), HumanCount(rows)),
            };
            let last = format!("one of {} at the end", HumanCount(last_rows));
            lines.push(("evaluations", format!("{during}{last}: {}", duration(evaluations_s))));
        }
        lines.push(("waiting for checkpoints, at most", duration(checkpoints_s)));
        lines.push(("altogether", duration(total_s)));
        lines
    }

    /// What the run writes.
    pub fn of_storage(&self) -> Vec<(&'static str, String)> {
        let Checkpoints { count, best_count, bytes, total_bytes, peak_bytes, .. } = self.checkpoints;
        let mut lines = vec![("checkpoints, at most", format!("{} of {}", HumanCount(count), HumanBytes(bytes)))];
        if best_count > 0 {
            let best = format!("{}: checkpoint.best = false writes none of them", HumanCount(best_count));
            lines.push(("of these for evaluations alone", best));
        }
        lines.push(("written in all, at most", HumanBytes(total_bytes).to_string()));
        lines.push(("there at once, at most", HumanBytes(peak_bytes).to_string()));
        lines
    }

    /// How often to save, and why; whether evaluations should.
    pub fn advice(&self, mtbf: f64) -> Vec<String> {
        let Checkpoints { waited_s, stored_s, recommended_every, best_count, best_s, .. } = &self.checkpoints;
        let mut advice = vec![format!(
            "checkpoint.every = \"{}\"{} is recommended: Young's √(2·C·M), C the {} for which training waits, M the time between failures \
             when each device fails once in {} hours (--mtbf); at least {:.0} times C, and three times the {} of storing one",
            words(*recommended_every),
            in_words(*recommended_every).strip_prefix(&words(*recommended_every)).unwrap_or_default(),
            duration(*waited_s),
            HumanCount(mtbf as u64),
            1.0 / MOST_WAITING,
            duration(*stored_s),
        )];
        if *best_count > 0 && *best_s > MOST_WAITING * self.time.total_s {
            advice.push(format!(
                "checkpoint.best = false saves up to {}: each evaluation that is the best so far writes a checkpoint, for which training \
                 waits",
                duration(*best_s)
            ));
        }
        advice
    }
}

/// The run with `checkpoint.best = false`.
fn without_best(recipe: &Recipe, of_run: Range<u64>, pace: &Pace) -> Overhead {
    let mut recipe = recipe.clone();
    recipe.checkpoint.best = false;
    Overhead::of(&recipe, of_run, pace)
}

/// A cadence as a recipe has it, without its quotes.
pub fn words(every: Every) -> String {
    match every {
        Every::Steps(steps) => steps.to_string(),
        Every::Minutes(minutes) => format!("{minutes}min"),
    }
}

/// A cadence in words: of long ones also what they are in hours or days.
pub fn in_words(every: Every) -> String {
    match every {
        Every::Minutes(minutes) if minutes > 120.0 => format!("{} ({})", words(every), duration(60.0 * minutes)),
        every => words(every),
    }
}

/// Seconds as a person says them.
pub fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 0.1 => format!("{:.1} ms", 1e3 * seconds),
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        seconds if seconds < 3600.0 => format!("{:.1} min", seconds / 60.0),
        seconds if seconds < 48.0 * 3600.0 => format!("{:.1} hours", seconds / 3600.0),
        seconds => format!("{:.1} days", seconds / 86400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_cadences_are_said_in_hours_too() {
        let said = [Every::Steps(7), Every::Minutes(90.0), Every::Minutes(180.0), Every::Minutes(8190.0)].map(in_words);
        assert_eq!(said, ["7", "90min", "180min (3.0 hours)", "8190min (5.7 days)"]);
    }

    /// A run of eleven steps, gone through by hand.
    #[test]
    fn a_budget_is_the_sum_of_its_parts() {
        let recipe: Recipe = toml::from_str(
            "[data]\ntrain = 'x'\neval = 'e'\n[sae]\nfeatures = 4096\n[train]\nbatch = 1000\n[run]\ndir = 'y'\n\
             [eval]\nevery = 4\nrows = 2000\n[checkpoint]\nevery = 5\nkeep = 1\nbest = false\n",
        )
        .expect("a recipe");
        let terms = Terms {
            recipe: &recipe,
            mesh: Mesh { data: 2, feature: 2 },
            width: 256,
            row_bytes: 512.0,
            rows: 10_500,
            steps_done: 0,
            eval_rows: Some(5000),
            step_s: 2.0,
            forward_s: 0.5,
            copy: 1e9,
            storage: 1e6,
            buffer: 1 << 30,
            mtbf: 1000.0,
            price: Some(3.0),
        };
        let budget = Budget::of(&terms);
        let near = |name: &str, found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-9 * expected.abs(), "{name}: {found} and {expected}");
        };
        assert_eq!((budget.steps, budget.tokens_per_s), (11, 500.0));
        // Ten steps and half a batch.
        near("steps", budget.time.steps_s, 21.0);
        // Rows come at 1,000 in 0.512 s, slower than the 0.5 s of looking at them: 2,000 twice; 5,000, which are read once more.
        near("evaluations", budget.time.evaluations_s, 2.0 * 1.024 + 2.0 * 2.56);
        assert_eq!((budget.evaluations.count, budget.evaluations.rows, budget.evaluations.last_rows), (3, 2000, 5000));
        // Twelve bytes a parameter and 40 a feature; a rank owns 1,024 features.
        let (all, part) = (4096 * (12 * 513 + 40) + 12 * 256, 1024 * (12 * 513 + 40) + 12 * 256);
        let saved = &budget.checkpoints;
        assert_eq!((saved.count, saved.best_count, saved.bytes, saved.part_bytes), (3, 0, all, part));
        assert_eq!((saved.total_bytes, saved.peak_bytes), (3 * all, 2 * all));
        let (copied, stored) = (part as f64 / 1e9, all as f64 / 1e6);
        near("copied", saved.waited_s, copied);
        near("stored", saved.stored_s, stored);
        // After steps 5, 10 and 11: the second waits for the first, five steps and an evaluation after its copy; the last for the second,
        // a step after its copy, and until it is stored itself.
        let waited = copied + (stored - copied - 5.0 * 2.0 - 1.024) + copied + (stored - copied - 2.0) + stored;
        near("waiting", budget.time.checkpoints_s, waited);
        let total = 21.0 + 2.0 * 1.024 + 2.0 * 2.56 + waited;
        near("altogether", budget.time.total_s, total);
        near("hours", budget.device_hours, 4.0 * total / 3600.0);
        near("cost", budget.cost.unwrap_or_default(), 12.0 * total / 3600.0);
        // A failure of one of four devices every 250 hours: √(2 · 6.3 ms · 900,000 s) = 107 s; three times 25.4 s is less. In minutes.
        assert_eq!(saved.recommended_every, Every::Minutes(2.0));
        // Reading bounds a step where it is slower.
        let slow = Budget::of(&Terms { storage: 1e5, ..terms });
        near("bound by storage", slow.tokens_per_s, 1000.0 / 5.12);
        near("steps", slow.time.steps_s, 10.5 * 5.12);
    }
}
