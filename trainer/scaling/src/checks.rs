//! What may be wrong with a fit: how it predicts the budget that it has not seen, whether power laws bend, what else changes with size.

use nalgebra::DMatrix;

use crate::bootstrap::{self, jacobian};
use crate::laws::{Curvature, LeaveOut, LeftOut, Parameters, Trend};
use crate::options::Options;
use crate::predict::interval_of_one;
use crate::projection::Points;
use crate::regression::regress;
use crate::run::Run;
use crate::surface::{self, Fit};

/// Budgets that a fit without the largest needs, that one included.
const LEAST_BUDGETS: usize = 4;
/// Configurations that must be left.
const LEAST_CONFIGURATIONS: usize = 6;
/// Replicates behind its intervals, at most.
const REPLICATES: usize = 400;

/// The surface without the largest budget, and its predictions of that.
pub fn leave_out(
    runs: &[&Run],
    budgets: &[f64],
    clusters: &[usize],
    whole: &Parameters,
    options: &Options<'_>,
) -> Option<LeaveOut> {
    let mut different = budgets.to_vec();
    different.sort_by(f64::total_cmp);
    different.dedup();
    let largest = *different.last()?;
    let kept: Vec<usize> = (0..runs.len()).filter(|at| budgets[*at] < largest).collect();
    let sizes = |at: &usize| (runs[*at].features.to_bits(), runs[*at].steps.to_bits());
    let configurations = kept.iter().map(sizes).collect::<std::collections::BTreeSet<_>>().len();
    if different.len() < LEAST_BUDGETS || configurations < LEAST_CONFIGURATIONS {
        return None;
    }
    let points = Points::of(kept.iter().map(|at| (runs[*at].features, runs[*at].steps, runs[*at].loss)));
    let fit = surface::fit(&points, options.loss);
    let without_e = surface::fit_without_e(&points, fit.objective);
    let of_kept: Vec<usize> = kept.iter().map(|at| clusters[*at]).collect();
    let draws =
        bootstrap::draw(&points, &fit, &without_e, &of_kept, REPLICATES.min(options.replicates), options.seed).with_e;
    let room = (kept.len() as f64 / (kept.len() as f64 - 5.0).max(1.0)).sqrt();
    let noise: Vec<f64> = fit.at.residuals.iter().map(|residual| residual * room).collect();
    let left: Vec<&&Run> =
        runs.iter().zip(budgets).filter(|(_, budget)| **budget == largest).map(|(run, _)| run).collect();
    let predict = |run: &&&Run| {
        let of = |parameters: &Parameters| parameters.loss(run.features, run.steps);
        let predicted = interval_of_one(of(&fit.parameters), &draws, &noise, of);
        LeftOut { id: run.id.clone(), features: run.features, steps: run.steps, loss: run.loss, predicted }
    };
    let left: Vec<LeftOut> = left.iter().map(predict).collect();
    let mean =
        |of: fn(f64) -> f64| left.iter().map(|run| of(run.loss - run.predicted.value)).sum::<f64>() / left.len() as f64;
    let best = |(coefficient, exponent): (f64, f64)| coefficient * largest.powf(exponent);
    let ratio = best(fit.parameters.features_opt()) / best(whole.features_opt());
    Some(LeaveOut {
        compute: largest,
        surface: fit.parameters,
        error: mean(|off| off * off).sqrt(),
        bias: mean(|off| off),
        runs: left,
        features_ratio: ratio.is_finite().then_some(ratio),
    })
}

/// Squares of ln F and ln S, fitted to the residuals beside a surface that may follow them.
pub fn curvature(points: &Points, fit: &Fit, clusters: &[usize]) -> Option<Curvature> {
    let surface = jacobian(points, fit);
    let squares = DMatrix::from_fn(points.len(), 2, |run, column| [points.ln_x[run], points.ln_y[run]][column].powi(2));
    let all = DMatrix::from_fn(points.len(), 7, |run, column| match column {
        square @ 0..2 => squares[(run, square)],
        parameter => surface[(run, parameter - 2)],
    });
    let found = regress(&all, &fit.at.residuals, clusters)?;
    Some(Curvature { features: found[0], steps: found[1] })
}

/// A quantity of a run that not every run says.
type Measured = fn(&Run) -> Option<f64>;

/// L0, explained variance and dead share against ln F and ln S, where enough runs say them.
pub fn trends(runs: &[&Run], clusters: &[usize]) -> Vec<Trend> {
    let kinds: [(&str, Measured); 3] = [
        ("l0", |run| run.l0),
        ("explained_variance", |run| run.explained_variance),
        ("dead_fraction", |run| run.dead_fraction),
    ];
    let trend = |(name, of): (&str, Measured)| {
        let known: Vec<(usize, f64)> = runs.iter().enumerate().filter_map(|(at, run)| Some((at, of(run)?))).collect();
        let matrix = DMatrix::from_fn(known.len(), 3, |row, column| {
            let run = runs[known[row].0];
            [1.0, run.features.ln(), run.steps.ln()][column]
        });
        let values: Vec<f64> = known.iter().map(|(_, value)| *value).collect();
        let clusters: Vec<usize> = known.iter().map(|(at, _)| clusters[*at]).collect();
        let found = regress(&matrix, &values, &clusters)?;
        Some(Trend { name: name.to_owned(), intercept: found[0].value, per_features: found[1], per_steps: found[2] })
    };
    kinds.into_iter().filter_map(trend).collect()
}
