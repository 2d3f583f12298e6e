//! From runs to laws.

use std::collections::BTreeSet;
use std::fmt::Write;

use xxhash_rust::xxh3::xxh3_128;

use crate::bootstrap::{self, Draws};
use crate::laws::{
    Band, Frontier, Identity, Laws, Loss, Parameters, Point, PowerLaw, Quality, Surface, VERSION, WithoutE,
};
use crate::options::Options;
use crate::predict::{flops_dense, flops_sparse, interval};
use crate::projection::Points;
use crate::run::{Chosen, Run, budgets, choose, clusters, identity};
use crate::surface::{self, Fit};
use crate::{Error, checks, cross, warnings};

/// Points of a band.
const BANDS: usize = 64;
/// How far beyond the largest compute bands go.
pub const FAR: f64 = 100.0;

/// The law of runs of one λ and one batch, sorted as [`crate::run::groups`] does.
///
/// # Errors
/// [`Error::Mixed`] for runs that differ beyond features, steps, learning rate and seed; [`Error::TooFew`], [`Error::NoOptimum`] where
/// they tell no law; [`Error::Number`] for a number that no run has.
pub fn fit(runs: &[Run], options: &Options<'_>) -> Result<Laws, Error> {
    let mut identity = identity(runs)?;
    identity.id = id(runs, &identity, options);
    let of_all = budgets(runs);
    let Chosen { in_surface, several_rates } = choose(runs);
    let chosen: Vec<usize> = (0..runs.len()).filter(|at| in_surface[*at]).collect();
    let of_surface: Vec<&Run> = chosen.iter().map(|at| &runs[*at]).collect();
    let of_budgets: Vec<f64> = chosen.iter().map(|at| of_all[*at]).collect();
    let (configurations, many_budgets) = enough(&of_surface, &of_budgets)?;
    let own: Vec<Run> = of_surface.iter().map(|run| (*run).clone()).collect();
    let of_clusters = clusters(&own, &of_budgets);

    let points = Points::of(of_surface.iter().map(|run| (run.features, run.steps, run.loss)));
    let fit = surface::fit(&points, options.loss);
    if let Some(flat) = fit.parameters.flat() {
        return Err(Error::NoOptimum(flat));
    }
    let without_e = surface::fit_without_e(&points, fit.objective);
    let draws = bootstrap::draw(&points, &fit, &without_e, &of_clusters, options.replicates, options.seed);
    let other = match options.loss {
        Loss::LeastSquares => Loss::Huber,
        Loss::Huber => Loss::LeastSquares,
    };

    let mut residuals = fit.at.residuals.iter();
    let l0 = median(runs.iter().filter_map(|run| run.l0).collect());
    let mut found = Laws {
        version: VERSION,
        loss: options.loss,
        surface: of_surface_with(&fit.parameters, &draws.with_e),
        other_loss: surface::fit(&points, other).parameters,
        frontier: frontier(&fit, &without_e, &draws),
        features_opt: power_law(&fit.parameters, &draws.with_e, Parameters::features_opt),
        steps_opt: power_law(&fit.parameters, &draws.with_e, Parameters::steps_opt),
        lr_opt: cross::lr_law(runs),
        parabolas: cross::parabolas(&of_surface, &of_budgets, &fit.parameters),
        quality: quality(&points, &fit, configurations, many_budgets, &of_clusters, options.replicates),
        curvature: checks::curvature(&points, &fit, &of_clusters),
        leave_out: checks::leave_out(&of_surface, &of_budgets, &of_clusters, &fit.parameters, options),
        trends: checks::trends(&of_surface, &of_clusters),
        gpu: options.gpu.as_ref().map(|(name, _)| name.clone()),
        l0,
        bands: Vec::new(),
        runs: (0..runs.len())
            .map(|at| {
                let residual = if in_surface[at] { residuals.next().copied() } else { None };
                point(&runs[at], of_all[at], &fit.parameters, residual, &identity, options)
            })
            .collect(),
        warnings: Vec::new(),
        draws: draws.with_e,
        identity,
    };
    found.bands = bands(&found, options);
    found.warnings = warnings::of(&found, several_rates);
    Ok(found)
}

/// How many configurations and budgets there are.
fn enough(runs: &[&Run], budgets: &[f64]) -> Result<(usize, usize), Error> {
    let different = |of: &dyn Fn(&Run) -> (u64, u64)| runs.iter().map(|run| of(run)).collect::<BTreeSet<_>>().len();
    let configurations = different(&|run| (run.features.to_bits(), run.steps.to_bits()));
    let features = different(&|run| (run.features.to_bits(), 0));
    let steps = different(&|run| (run.steps.to_bits(), 0));
    let budgets = budgets.iter().map(|budget| budget.to_bits()).collect::<BTreeSet<_>>().len();
    if configurations < 6 || budgets < 2 || features < 3 || steps < 3 {
        return Err(Error::TooFew { configurations, budgets, features, steps });
    }
    Ok((configurations, budgets))
}

fn of_surface_with(parameters: &Parameters, draws: &[Parameters]) -> Surface {
    let of = |value: fn(&Parameters) -> f64| interval(value(parameters), draws, value);
    Surface { e: of(|p| p.e), a: of(|p| p.a), b: of(|p| p.b), alpha: of(|p| p.alpha), beta: of(|p| p.beta) }
}

fn power_law(parameters: &Parameters, draws: &[Parameters], of: fn(&Parameters) -> (f64, f64)) -> PowerLaw {
    PowerLaw {
        coefficient: interval(of(parameters).0, draws, |draw| of(draw).0),
        exponent: interval(of(parameters).1, draws, |draw| of(draw).1),
    }
}

fn frontier(fit: &Fit, without_e: &Fit, draws: &Draws) -> Frontier {
    let with = power_law(&fit.parameters, &draws.with_e, Parameters::frontier);
    let rss = |fit: &Fit| fit.at.residuals.iter().map(|r| r * r).sum::<f64>();
    let plain = || {
        let PowerLaw { coefficient, exponent } =
            power_law(&without_e.parameters, &draws.without_e, Parameters::frontier);
        // Runs without noise leave nothing to divide by.
        WithoutE { coefficient, exponent, rss_ratio: (rss(without_e) / rss(fit).max(f64::MIN_POSITIVE)).min(f64::MAX) }
    };
    Frontier {
        e: interval(fit.parameters.e, &draws.with_e, |draw| draw.e),
        coefficient: with.coefficient,
        exponent: with.exponent,
        without_e: without_e.parameters.flat().is_none().then(plain),
    }
}

fn quality(
    points: &Points,
    fit: &Fit,
    configurations: usize,
    budgets: usize,
    clusters: &[usize],
    replicates: usize,
) -> Quality {
    let runs = points.len();
    let rss: f64 = fit.at.residuals.iter().map(|r| r * r).sum();
    let mean = points.loss.iter().sum::<f64>() / runs as f64;
    let spread: f64 = points.loss.iter().map(|loss| (loss - mean).powi(2)).sum();
    Quality {
        runs,
        configurations,
        budgets,
        clusters: clusters.iter().max().map_or(0, |most| most + 1),
        rss,
        residual_sd: if runs > 5 { (rss / (runs - 5) as f64).sqrt() } else { 0.0 },
        unexplained: if spread > 0.0 { rss / spread } else { 0.0 },
        starts: fit.starts,
        agreeing: fit.agreeing,
        condition: fit.condition(points),
        replicates,
    }
}

fn point(
    run: &Run,
    budget: f64,
    surface: &Parameters,
    residual: Option<f64>,
    identity: &Identity,
    options: &Options<'_>,
) -> Point {
    let fitted = surface.loss(run.features, run.steps);
    let Costs { sparse, dense, hours } = costs(identity, options, run.l0, run.features, run.steps);
    Point {
        id: run.id.clone(),
        features: run.features,
        steps: run.steps,
        compute: run.features * run.steps,
        budget,
        seed: run.seed,
        lr: run.lr,
        loss: run.loss,
        fitted,
        residual: residual.unwrap_or(run.loss - fitted),
        in_surface: residual.is_some(),
        l0: run.l0,
        explained_variance: run.explained_variance,
        dead_fraction: run.dead_fraction,
        flops_sparse: run.flops.or(sparse),
        flops_dense: dense,
        gpu_hours: hours,
    }
}

/// Compute in other units.
struct Costs {
    sparse: Option<f64>,
    dense: Option<f64>,
    hours: Option<f64>,
}

fn costs(identity: &Identity, options: &Options<'_>, l0: Option<f64>, features: f64, steps: f64) -> Costs {
    let of_rows = identity.width.zip(identity.batch).map(|(width, batch)| (width as f64, batch as f64));
    Costs {
        sparse: of_rows.zip(l0).map(|((width, batch), l0)| flops_sparse(width, batch, l0, features, steps)),
        dense: of_rows.map(|(width, batch)| flops_dense(width, batch, features, steps)),
        hours: options.gpu.as_ref().and_then(|(_, hours)| hours(features, steps)),
    }
}

fn bands(laws: &Laws, options: &Options<'_>) -> Vec<Band> {
    let largest = laws.largest_compute();
    let least = laws.runs.iter().map(|run| run.compute).fold(largest, f64::min);
    let (low, high) = (least.ln(), (FAR * largest).ln());
    (0..BANDS)
        .map(|at| {
            let compute = (low + (high - low) * at as f64 / (BANDS - 1) as f64).exp();
            let best = laws.optimum(compute);
            let Costs { sparse, dense, hours } =
                costs(&laws.identity, options, laws.l0, best.features.value, best.steps.value);
            Band {
                compute,
                flops_sparse: sparse,
                flops_dense: dense,
                gpu_hours: hours,
                loss: best.loss,
                one_run: best.one_run,
                features: best.features,
                steps: best.steps,
                extrapolated: compute > largest,
            }
        })
        .collect()
}

/// The median of those that are finite; `None` of none.
pub fn median(values: Vec<f64>) -> Option<f64> {
    let finite: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    (!finite.is_empty()).then(|| bootstrap::quantile(finite, 0.5))
}

/// A hash of the runs' numbers, of what they have in common and of how they are fitted.
fn id(runs: &[Run], identity: &Identity, options: &Options<'_>) -> String {
    let mut text = format!("{VERSION} {identity:?} {:?} {} {}", options.loss, options.replicates, options.seed);
    for run in runs {
        let Run { features, steps, loss, lr, seed, budget, .. } = run;
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{features:?} {steps:?} {loss:?} {lr:?} {seed:?} {budget:?}");
    }
    format!("{:032x}", xxh3_128(text.as_bytes()))
}
