//! The cross-check by IsoFLOP parabolas, and the law of the learning rate, which is parabolas too.

use std::collections::BTreeMap;

use crate::laws::{LrLaw, LrPoint, Parabola, Parabolas, Parameters};
use crate::regression::{Vertex, power_law, vertex};
use crate::run::Run;

/// One parabola in ln F for each budget with three sizes, and the power laws through their vertices.
pub fn parabolas(runs: &[&Run], budgets: &[f64], surface: &Parameters) -> Parabolas {
    let mut of_budget: BTreeMap<u64, Vec<&Run>> = BTreeMap::new();
    for (run, budget) in runs.iter().zip(budgets) {
        // Bits of positive doubles have the order of the doubles.
        of_budget.entry(budget.to_bits()).or_default().push(run);
    }
    let (coefficient, exponent) = surface.features_opt();
    let found: Vec<Parabola> = of_budget
        .values()
        .filter_map(|runs| {
            let ln_f: Vec<f64> = runs.iter().map(|run| run.features.ln()).collect();
            let losses: Vec<f64> = runs.iter().map(|run| run.loss).collect();
            let Vertex { parabola, at, value, at_edge } = vertex(&ln_f, &losses)?;
            let ln_c = runs.iter().map(|run| (run.features * run.steps).ln()).sum::<f64>() / runs.len() as f64;
            let grid = runs
                .iter()
                .fold([f64::MAX, 0.0], |[low, high], run| [f64::min(low, run.features), f64::max(high, run.features)]);
            Some(Parabola {
                compute: ln_c.exp(),
                parabola,
                features: at.clamp(0.0, 200.0).exp(),
                loss: value,
                surface_features: coefficient * ln_c.exp().powf(exponent),
                grid,
                runs: runs.len(),
                at_edge,
            })
        })
        .collect();
    let inside = || found.iter().filter(|parabola| !parabola.at_edge);
    let compute: Vec<f64> = inside().map(|parabola| parabola.compute).collect();
    let features: Vec<f64> = inside().map(|parabola| parabola.features).collect();
    let steps: Vec<f64> = inside().map(|parabola| parabola.compute / parabola.features).collect();
    let (features_opt, steps_opt) = (power_law(&compute, &features), power_law(&compute, &steps));
    Parabolas { budgets: found, features_opt, steps_opt }
}

/// The best learning rate of each size with three rates, and the power law through them where there are three.
pub fn lr_law(runs: &[Run]) -> Option<LrLaw> {
    let mut of_size: BTreeMap<(u64, u64), Vec<&Run>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.lr.is_some()) {
        of_size.entry((run.features.to_bits(), run.steps.to_bits())).or_default().push(run);
    }
    let mut points: Vec<LrPoint> = of_size
        .values()
        .filter_map(|runs| {
            let ln_lr: Vec<f64> = runs.iter().filter_map(|run| run.lr).map(f64::ln).collect();
            let losses: Vec<f64> = runs.iter().map(|run| run.loss).collect();
            let Vertex { parabola, at, value, at_edge } = vertex(&ln_lr, &losses)?;
            let (features, steps) = (runs[0].features, runs[0].steps);
            let lr = at.clamp(-200.0, 200.0).exp();
            Some(LrPoint { features, steps, compute: features * steps, lr, loss: value, parabola, at_edge })
        })
        .collect();
    points.sort_by(|a, b| a.compute.total_cmp(&b.compute));
    let inside = || points.iter().filter(|point| !point.at_edge);
    let compute: Vec<f64> = inside().map(|point| point.compute).collect();
    let lr: Vec<f64> = inside().map(|point| point.lr).collect();
    let law = power_law(&compute, &lr)?;
    let middle = (compute.iter().map(|compute| compute.ln()).sum::<f64>() / compute.len() as f64).exp();
    let from_middle: Vec<f64> = compute.iter().map(|compute| compute / middle).collect();
    let at_middle = power_law(&from_middle, &lr)?.coefficient;
    Some(LrLaw { coefficient: law.coefficient, exponent: law.exponent, middle, at_middle, points })
}
