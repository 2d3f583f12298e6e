//! Finished runs as rows: what a fit takes, which of them belong to one law, and which may not be mixed.

use std::collections::{BTreeMap, BTreeSet};

use crate::Error;
use crate::laws::Identity;

/// Budgets are one where their compute differs by less than this share.
const SAME_BUDGET: f64 = 0.05;

/// A learning rate is the sweep's where this share of its configurations was run with it.
const SHARED: f64 = 0.8;

/// Losses are smaller than this, and their squares are numbers.
const MOST: f64 = 1e100;

/// A finished run. What is not known is absent, and then not compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// How messages and plots name it: its folder, or its line in a table.
    pub id: String,
    /// F, features.
    pub features: f64,
    /// S, steps.
    pub steps: f64,
    /// Held-out loss.
    pub loss: f64,
    /// Learning rate before its decay.
    pub lr: Option<f64>,
    /// Of the first weights.
    pub seed: Option<u64>,
    /// Of the order of rows.
    pub data_seed: Option<u64>,
    /// F × steps that it was made for.
    pub budget: Option<f64>,
    /// λ.
    pub l1: Option<f64>,
    /// B, rows in a step.
    pub batch: Option<u64>,
    /// Mean active features of a row.
    pub l0: Option<f64>,
    /// Explained variance.
    pub explained_variance: Option<f64>,
    /// Share of dead features.
    pub dead_fraction: Option<f64>,
    /// Floating-point operations, as counted in the run.
    pub flops: Option<f64>,
    /// D, values in a row.
    pub width: Option<u64>,
    /// Identity of the training data.
    pub data: Option<String>,
    /// Identity of the held-out rows.
    pub eval: Option<String>,
    /// The version of what decides numbers in the program.
    pub numbers: Option<u64>,
    /// Formats that it computed in.
    pub precision: Option<String>,
    /// Keys of the recipe that are no axes of a sweep, as TOML writes their values.
    pub recipe: BTreeMap<String, String>,
}

/// Runs of one λ and one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What tells it from the others, such as `l1-5_batch-4096`; empty when it is the only one.
    pub name: String,
    /// By ascending compute, then features, then learning rate and seed.
    pub runs: Vec<Run>,
}

/// Splits runs by λ and batch: each pair has a law of its own.
pub fn groups(runs: Vec<Run>) -> Vec<Group> {
    let mut found: BTreeMap<(u64, Option<u64>), Vec<Run>> = BTreeMap::new();
    for run in runs {
        found.entry((run.l1.map_or(u64::MAX, f64::to_bits), run.batch)).or_default().push(run);
    }
    let several = found.len() > 1;
    let name = |run: &Run| {
        let l1 = run.l1.map(|l1| format!("l1-{l1}"));
        let batch = run.batch.map(|batch| format!("batch-{batch}"));
        l1.into_iter().chain(batch).collect::<Vec<_>>().join("_")
    };
    let group = |mut runs: Vec<Run>| {
        let of = |run: &Run| (run.features * run.steps, run.features, run.lr.unwrap_or_default());
        let order = |a: &Run, b: &Run| {
            let ((c, f, lr), (d, g, other)) = (of(a), of(b));
            c.total_cmp(&d).then(f.total_cmp(&g)).then(lr.total_cmp(&other)).then(a.seed.cmp(&b.seed))
        };
        runs.sort_by(order);
        let name = if several { runs.first().map(name).filter(|name| !name.is_empty()) } else { None };
        Group { name: name.unwrap_or_else(|| if several { "others".to_owned() } else { String::new() }), runs }
    };
    found.into_values().map(group).collect()
}

/// What all runs have in common.
///
/// # Errors
/// [`Error::Mixed`] for the first difference between two of them; [`Error::Number`] for numbers that no run has.
pub fn identity(runs: &[Run]) -> Result<Identity, Error> {
    for run in runs {
        for (name, value) in [("features", run.features), ("steps", run.steps)] {
            if !(value.is_finite() && value >= 1.0) {
                return Err(Error::Number { run: run.id.clone(), name, wanted: "at least 1", found: value });
            }
        }
        let positive = [Some(("loss", run.loss)), run.lr.map(|lr| ("lr", lr)), run.budget.map(|c| ("budget", c))];
        if let Some((name, found)) = positive.into_iter().flatten().find(|(_, v)| !(*v > 0.0 && *v < MOST)) {
            return Err(Error::Number { run: run.id.clone(), name, wanted: "a number above 0 and below 1e100", found });
        }
    }
    let number = |of: fn(&Run) -> Option<u64>| move |run: &Run| of(run).map(|number| number.to_string());
    Ok(Identity {
        id: String::new(),
        data: common(runs, "the training data", |run| run.data.clone())?,
        eval: common(runs, "the held-out rows", |run| run.eval.clone())?,
        width: common(runs, "the width of rows", number(|run| run.width))?.and_then(|width| width.parse().ok()),
        batch: common(runs, "the batch", number(|run| run.batch))?.and_then(|batch| batch.parse().ok()),
        l1: common(runs, "λ", |run| run.l1.map(|l1| l1.to_string()))?.and_then(|l1| l1.parse().ok()),
        numbers: common(runs, "the version of the program's numbers", number(|run| run.numbers))?
            .and_then(|numbers| numbers.parse().ok()),
        precision: common(runs, "precision", |run| run.precision.clone())?,
        recipe: recipe(runs)?,
    })
}

/// Keys of the recipe that every run has; those that some runs lack are compared among the others.
fn recipe(runs: &[Run]) -> Result<BTreeMap<String, String>, Error> {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.recipe.keys()).collect();
    let mut shared = BTreeMap::new();
    for key in keys {
        let without = |run: &&Run| !run.recipe.is_empty() && !run.recipe.contains_key(key);
        // A key that is left out where another run sets it is a difference too.
        let lacking = runs.iter().find(without);
        let of = |run: &Run| run.recipe.get(key).cloned().or_else(|| lacking.map(|_| "nothing".to_owned()));
        let of = |run: &Run| if run.recipe.is_empty() { None } else { of(run) };
        if let Some(value) = common(runs, key, of)? {
            shared.insert(key.clone(), value);
        }
    }
    Ok(shared)
}

fn common(runs: &[Run], name: &str, of: impl Fn(&Run) -> Option<String>) -> Result<Option<String>, Error> {
    let mut known = runs.iter().filter_map(|run| Some((run, of(run)?)));
    let Some((first, first_value)) = known.next() else { return Ok(None) };
    match known.find(|(_, value)| *value != first_value) {
        None => Ok(Some(first_value)),
        Some((other, other_value)) => Err(Error::Mixed {
            name: name.to_owned(),
            first: first.id.clone(),
            first_value,
            other: other.id.clone(),
            other_value,
        }),
    }
}

/// The budget of each run, in F × steps: the one that it says, or the geometric mean of runs within 5 % of the least of them.
/// Runs are sorted by compute.
pub fn budgets(runs: &[Run]) -> Vec<f64> {
    let mut found = vec![0.0; runs.len()];
    let mut open: Vec<usize> = Vec::new();
    let close = |open: &mut Vec<usize>, found: &mut Vec<f64>| {
        let mean = open.iter().map(|at| (runs[*at].features * runs[*at].steps).ln()).sum::<f64>() / open.len() as f64;
        open.drain(..).for_each(|at| found[at] = mean.exp());
    };
    for (at, run) in runs.iter().enumerate() {
        if let Some(budget) = run.budget {
            found[at] = budget;
            continue;
        }
        let compute = run.features * run.steps;
        let apart = |first: &usize| compute > runs[*first].features * runs[*first].steps * (1.0 + SAME_BUDGET);
        if open.first().is_some_and(apart) {
            close(&mut open, &mut found);
        }
        open.push(at);
    }
    if !open.is_empty() {
        close(&mut open, &mut found);
    }
    found
}

/// Numbers for clusters from 0 on: runs of one budget and seed are one, since they share what makes their noise.
pub fn clusters(runs: &[Run], budgets: &[f64]) -> Vec<usize> {
    let mut known: Vec<(u64, Option<u64>, Option<u64>)> = Vec::new();
    let of = |(run, budget): (&Run, &f64)| {
        let key = (budget.to_bits(), run.seed, run.data_seed);
        known.iter().position(|known| *known == key).unwrap_or_else(|| {
            known.push(key);
            known.len() - 1
        })
    };
    runs.iter().zip(budgets).map(of).collect()
}

/// Which runs the surface is fitted to.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// For each run, whether it is.
    pub in_surface: Vec<bool>,
    /// Where the configurations have no learning rate in common, and some were run with more of them than others: how many there are.
    pub several_rates: Option<usize>,
}

/// A sweep of learning rates at some sizes must not bend the surface: the best of seven rates is lower than a single one. So the surface
/// takes the runs of the rate that nearly all configurations have, and where there is none the best rate of each.
pub fn choose(runs: &[Run]) -> Chosen {
    let size = |run: &Run| (run.features.to_bits(), run.steps.to_bits());
    let rate = |run: &Run| run.lr.map_or(0, f64::to_bits);
    let sizes: BTreeSet<_> = runs.iter().map(size).collect();
    let mut of_rate: BTreeMap<u64, BTreeSet<_>> = BTreeMap::new();
    for run in runs {
        of_rate.entry(rate(run)).or_default().insert(size(run));
    }
    let most = of_rate.iter().max_by_key(|(_, sizes)| sizes.len());
    if let Some((shared, with)) = most
        && with.len() as f64 >= SHARED * sizes.len() as f64
    {
        return Chosen { in_surface: runs.iter().map(|run| rate(run) == *shared).collect(), several_rates: None };
    }
    let mut losses: BTreeMap<_, BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for run in runs {
        losses.entry(size(run)).or_default().entry(rate(run)).or_default().push(run.loss);
    }
    let mean = |losses: &Vec<f64>| losses.iter().sum::<f64>() / losses.len() as f64;
    let best = |size| losses[&size].iter().min_by(|a, b| mean(a.1).total_cmp(&mean(b.1))).map(|(rate, _)| *rate);
    let in_surface = runs.iter().map(|run| best(size(run)) == Some(rate(run))).collect();
    // The best of as many at each size is no better at one than at another.
    let rates: BTreeSet<usize> = losses.values().map(BTreeMap::len).collect();
    Chosen { in_surface, several_rates: (rates.len() > 1).then_some(of_rate.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str, features: f64, steps: f64) -> Run {
        Run { id: id.to_owned(), features, steps, loss: 1.0, ..Run::default() }
    }

    #[test]
    fn runs_that_differ_are_refused_with_the_difference() {
        let fact =
            |run: Run, key: &str, value: &str| Run { recipe: [(key.to_owned(), value.to_owned())].into(), ..run };
        let runs = [fact(run("a", 8.0, 9.0), "data.scale", "\"auto\""), fact(run("b", 8.0, 9.0), "data.scale", "0.5")];
        let said = identity(&runs).expect_err("a difference").to_string();
        assert!(said.contains("data.scale") && said.contains("a has \"auto\", b has 0.5"), "{said}");
        let lacking = [fact(run("a", 8.0, 9.0), "data.column", "'x'"), fact(run("b", 8.0, 9.0), "train.clip", "1")];
        assert!(identity(&lacking).expect_err("a difference").to_string().contains("b has nothing"));
        for (name, other) in [
            ("held-out rows", Run { eval: Some("2".into()), ..run("b", 8.0, 9.0) }),
            ("training data", Run { data: Some("2".into()), ..run("b", 8.0, 9.0) }),
            ("width of rows", Run { width: Some(2), ..run("b", 8.0, 9.0) }),
            ("the batch", Run { batch: Some(2), ..run("b", 8.0, 9.0) }),
            ("λ", Run { l1: Some(2.0), ..run("b", 8.0, 9.0) }),
            ("program's numbers", Run { numbers: Some(2), ..run("b", 8.0, 9.0) }),
            ("precision", Run { precision: Some("2".into()), ..run("b", 8.0, 9.0) }),
        ] {
            let first = Run {
                eval: Some("1".into()),
                data: Some("1".into()),
                width: Some(1),
                batch: Some(1),
                l1: Some(1.0),
                numbers: Some(1),
                precision: Some("1".into()),
                ..run("a", 8.0, 9.0)
            };
            let said = identity(&[first.clone(), other]).expect_err(name).to_string();
            assert!(said.contains(name) && said.contains("b has 2"), "{said}");
            assert!(identity(&[first, run("c", 8.0, 9.0)]).is_ok(), "what is not known is not compared");
        }
        let said = identity(&[run("z", 0.0, 9.0)]).expect_err("no features").to_string();
        assert!(said.contains("z: features must be at least 1, and is 0"), "{said}");
        let nan = Run { loss: f64::NAN, ..run("n", 8.0, 9.0) };
        assert!(identity(&[nan]).expect_err("no loss").to_string().contains("n: loss must be a number above 0"));
    }

    #[test]
    fn each_penalty_and_batch_has_runs_of_its_own() {
        let of = |l1, batch| Run { l1: Some(l1), batch: Some(batch), ..run("a", 8.0, 9.0) };
        let found = groups(vec![of(5.0, 64), of(2.0, 64), of(5.0, 64), of(5.0, 128)]);
        let found: Vec<_> = found.iter().map(|group| (group.name.as_str(), group.runs.len())).collect();
        assert_eq!(found, [("l1-2_batch-64", 1), ("l1-5_batch-64", 2), ("l1-5_batch-128", 1)]);
        assert_eq!(groups(vec![of(5.0, 64)])[0].name, "");
    }

    #[test]
    fn budgets_are_given_or_found() {
        let runs = [run("a", 10.0, 10.0), run("b", 4.0, 26.0), run("c", 11.0, 11.0), run("d", 20.0, 10.0)];
        let found = budgets(&runs);
        assert!((found[0] - (100.0_f64 * 104.0).sqrt()).abs() < 1e-9 && found[0] == found[1], "{found:?}");
        assert!((found[2] - 121.0).abs() < 1e-9 && (found[3] - 200.0).abs() < 1e-9, "{found:?}");
        let given = [Run { budget: Some(150.0), ..runs[0].clone() }, Run { budget: Some(150.0), ..runs[3].clone() }];
        assert_eq!(budgets(&given), [150.0, 150.0]);
        let seeded = [Run { seed: Some(1), ..runs[0].clone() }, Run { seed: Some(2), ..runs[1].clone() }];
        assert_eq!(clusters(&seeded, &[1.0, 1.0]), [0, 1]);
        let ordered = [Run { data_seed: Some(1), ..runs[0].clone() }, Run { data_seed: Some(2), ..runs[1].clone() }];
        assert_eq!(clusters(&ordered, &[1.0, 1.0]), [0, 1]);
        assert_eq!(clusters(&runs, &found), [0, 0, 1, 2]);
    }

    #[test]
    fn a_sweep_of_rates_does_not_bend_the_surface() {
        let of = |features, lr, loss| Run { lr: Some(lr), loss, ..run("a", features, 9.0) };
        let mut runs: Vec<Run> = (1..=5).map(|features| of(f64::from(features), 1e-3, 2.0)).collect();
        runs.push(of(3.0, 2e-3, 1.0));
        let chosen = choose(&runs);
        assert_eq!((chosen.in_surface, chosen.several_rates), (vec![true, true, true, true, true, false], None));
        let runs = [of(1.0, 1e-3, 2.0), of(1.0, 2e-3, 1.0), of(2.0, 3e-3, 1.0)];
        let chosen = choose(&runs);
        assert_eq!((chosen.in_surface, chosen.several_rates), (vec![false, true, true], Some(3)));
        // A law of the rate, one at each size.
        let runs = [of(1.0, 3e-3, 2.0), of(2.0, 2e-3, 1.0), of(3.0, 1e-3, 1.0)];
        assert_eq!(choose(&runs), Chosen { in_surface: vec![true; 3], several_rates: None });
    }
}
