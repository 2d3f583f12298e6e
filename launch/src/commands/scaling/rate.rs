//! Which learning rate a recommended run has.

use scaling::Laws;
use scaling::laws::Estimate;
use serde::Serialize;

use crate::args::Recommend;
use crate::failure::Failure;
use crate::remedy;

/// Rates of runs follow compute where a power law of it misses none of them by more than this share.
const FOLLOWS: f64 = 0.05;

/// What a learning rate is, as `--json` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// What `--set` says.
    Set,
    /// The best by the law of the rates that were swept.
    Law,
    /// The one that all runs behind the surface had.
    Runs,
    /// Those of the runs behind the surface, which follow compute, followed further.
    RunsAlongCompute,
    /// That of `--recipe`.
    Recipe,
}

impl From {
    /// In brackets behind the rate; nothing of a law, which has an interval.
    pub fn words(self) -> Option<&'static str> {
        match self {
            From::Set => Some("as set"),
            From::Law => None,
            From::Runs => Some("of the runs, not swept"),
            From::RunsAlongCompute => Some("of the runs, followed along C, not swept"),
            From::Recipe => Some("of the recipe, not swept"),
        }
    }

    /// What a recommended recipe says of it in its head.
    pub fn comment(self) -> Option<&'static str> {
        match self {
            From::Set | From::Law => None,
            From::Runs => Some(
                "The learning rate is that of the runs: it was not swept, and a larger run usually wants a lower one.",
            ),
            From::RunsAlongCompute => {
                Some("The learning rate follows those of the runs along F x steps: it was not swept.")
            }
            From::Recipe => {
                Some("The learning rate is that of the recipe that was filled in: the runs do not tell one.")
            }
        }
    }
}

/// Which rate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The best that is known.
    Best,
    /// That of the surface's runs where they tell one: a run with another would be no part of the surface.
    OfTheSurface,
}

/// The rate of a run of so much compute, in F × steps. `own` is that of the recipe, which counts where a person has written it.
///
/// # Errors
/// [`trainer::Exit::Arguments`] where nothing tells one.
pub fn learning_rate(
    args: &Recommend,
    laws: &Laws,
    own: f64,
    compute: f64,
    wanted: Wanted,
) -> Result<(Estimate, From), Failure> {
    let fixed = |value: f64, from: From| (Estimate { value, low: value, high: value }, from);
    if args.set.iter().any(|set| remedy::set_key(set) == Some("train.lr")) {
        return Ok(fixed(own, From::Set));
    }
    let law = || laws.lr_opt.as_ref().map(|law| (law.at(compute), From::Law));
    let of_runs = || {
        let one = shared(laws).map(|rate| fixed(rate, From::Runs));
        one.or_else(|| along(laws, compute).map(|rate| fixed(rate, From::RunsAlongCompute)))
    };
    let found = match wanted {
        Wanted::Best => law().or_else(of_runs),
        Wanted::OfTheSurface => of_runs().or_else(law),
    };
    found.or_else(|| args.recipe.as_ref().map(|_| fixed(own, From::Recipe))).ok_or_else(|| {
        Failure::arguments(format!(
            "{}: nothing tells the learning rate: the runs have no single one, theirs do not follow C = F × steps, and they were not swept at three \
             sizes. Say it with --set train.lr=RATE",
            args.laws
        ))
    })
}

/// The rate that all runs behind the surface had.
fn shared(laws: &Laws) -> Option<f64> {
    let mut rates = laws.runs.iter().filter(|run| run.in_surface).map(|run| run.lr);
    let first = rates.next()??;
    rates.all(|rate| rate == Some(first)).then_some(first)
}

/// The rates of the runs behind the surface at a compute: by the power law of it that they follow, or, between two budgets that have one rate each,
/// by that between these.
fn along(laws: &Laws, compute: f64) -> Option<f64> {
    let runs = laws.runs.iter().filter(|run| run.in_surface);
    let mut points: Vec<(f64, f64)> = runs.map(|run| Some((run.budget.ln(), run.lr?.ln()))).collect::<Option<_>>()?;
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    followed(&points, compute.ln()).map(f64::exp)
}

/// The same in logarithms, by ascending compute.
fn followed(points: &[(f64, f64)], at: f64) -> Option<f64> {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    let line = |at: f64| y + slope * (at - x);
    // A line goes through any two.
    let budgets = 1 + points.windows(2).filter(|pair| pair[0].0 < pair[1].0).count();
    if budgets > 2 && points.iter().all(|point| (point.1 - line(point.0)).abs() <= FOLLOWS) {
        return Some(line(at));
    }
    if points.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1) {
        return None;
    }
    let pair = points.windows(2).find(|pair| pair[0].0 < pair[1].0 && (pair[0].0..=pair[1].0).contains(&at))?;
    let ((low, first), (high, second)) = (pair[0], pair[1]);
    Some(first + (second - first) * (at - low) / (high - low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_that_follow_compute_are_followed() {
        let law = |x: f64| -1.0 - 0.3 * x;
        let points: Vec<_> = [10.0, 10.0, 12.0, 14.0].map(|x| (x, law(x))).into();
        assert!((followed(&points, 20.0).expect("a law") - law(20.0)).abs() < 1e-12);
        // A list that is none: between its budgets, and not beyond.
        let list = [(10.0, -5.0), (10.0, -5.0), (12.0, -7.0), (14.0, -6.0)];
        assert_eq!(followed(&list, 11.0), Some(-6.0));
        assert_eq!((followed(&list, 15.0), followed(&list, 9.0)), (None, None));
        // Two budgets tell no law.
        let two = [(10.0, -5.0), (10.0, -5.0), (12.0, -7.0)];
        assert_eq!([9.0, 11.0, 13.0].map(|at| followed(&two, at)), [None, Some(-6.0), None]);
        // Several rates at one budget.
        assert_eq!(followed(&[(10.0, -5.0), (10.0, -6.0), (12.0, -7.0)], 11.0), None);
        assert_eq!(followed(&[(10.0, -5.0), (10.0, -6.0)], 10.0), None);
    }
}
