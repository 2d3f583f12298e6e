//! What laws say of a size or a budget, with intervals from the replicates of the bootstrap.

use crate::bootstrap::quantile;
use crate::laws::{Estimate, Laws, Parameters, Point};
use crate::surface::{LEAST, MOST};

/// A size, its compute, and the loss that is expected of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimum {
    /// F × S.
    pub compute: f64,
    /// F.
    pub features: Estimate,
    /// S.
    pub steps: Estimate,
    /// Mean over seeds.
    pub loss: Estimate,
    /// Of a single run: its noise is in the interval.
    pub one_run: Estimate,
}

/// The 95 % interval of what follows from the parameters. Replicates in which it is not finite, those of a term that is 0, are left out: of many of
/// them [`crate::laws::Warning`] tells.
pub fn interval(value: f64, draws: &[Parameters], of: impl Fn(&Parameters) -> f64) -> Estimate {
    ends(value, draws.iter().map(of))
}

/// The same for a single run whose noise is like one of `noise`, picked for each replicate in a fixed order.
pub fn interval_of_one(value: f64, draws: &[Parameters], noise: &[f64], of: impl Fn(&Parameters) -> f64) -> Estimate {
    // Steps of the golden section visit all residuals about as often.
    let pick = |at: usize| noise[((at as f64 * 0.618_033_988_749_894_9).fract() * noise.len() as f64) as usize];
    let noise = |at: usize| if noise.is_empty() { 0.0 } else { pick(at) };
    let of_one = ends(value, draws.iter().enumerate().map(|(at, draw)| of(draw) + noise(at)));
    // A single run is known no better than the mean, whatever quantiles of so many replicates say.
    let mean = ends(value, draws.iter().map(of));
    Estimate { value, low: of_one.low.min(mean.low), high: of_one.high.max(mean.high) }
}

fn ends(value: f64, replicates: impl Iterator<Item = f64>) -> Estimate {
    let finite: Vec<f64> = replicates.filter(|value| value.is_finite()).collect();
    if finite.is_empty() {
        return Estimate { value, low: value, high: value };
    }
    Estimate { value, low: quantile(finite.clone(), 0.025), high: quantile(finite, 0.975) }
}

/// Noise of a single run: residuals of the surface, as large as five fitted parameters have left room for.
pub fn noise(runs: &[Point]) -> Vec<f64> {
    let residuals: Vec<f64> = runs.iter().filter(|run| run.in_surface).map(|run| run.residual).collect();
    let n = residuals.len() as f64;
    residuals.iter().map(|residual| residual * (n / (n - 5.0).max(1.0)).sqrt()).collect()
}

/// The best size at a compute, by parameters and replicates.
pub fn optimum(parameters: &Parameters, draws: &[Parameters], noise: &[f64], compute: f64) -> Optimum {
    let power = |(coefficient, exponent): (f64, f64)| coefficient * compute.powf(exponent);
    let features = |parameters: &Parameters| power(parameters.features_opt());
    let steps = |parameters: &Parameters| power(parameters.steps_opt());
    let loss = |parameters: &Parameters| parameters.e + power(parameters.frontier());
    Optimum {
        compute,
        features: interval(features(parameters), draws, features),
        steps: interval(steps(parameters), draws, steps),
        loss: interval(loss(parameters), draws, loss),
        one_run: interval_of_one(loss(parameters), draws, noise, loss),
    }
}

impl Laws {
    /// The best size at a compute, in F × steps.
    pub fn optimum(&self, compute: f64) -> Optimum {
        optimum(&self.surface.parameters(), &self.draws, &noise(&self.runs), compute)
    }

    /// Loss of a size that need not be the best at its compute: the mean over seeds, and of a single run.
    pub fn loss_of(&self, features: f64, steps: f64) -> (Estimate, Estimate) {
        let of = |parameters: &Parameters| parameters.loss(features, steps);
        let value = of(&self.surface.parameters());
        (interval(value, &self.draws, of), interval_of_one(value, &self.draws, &noise(&self.runs), of))
    }

    /// The compute at which so many features are best.
    pub fn compute_of_features(&self, features: f64) -> f64 {
        inverse(self.surface.parameters().features_opt(), features)
    }

    /// The compute at which so many steps are best.
    pub fn compute_of_steps(&self, steps: f64) -> f64 {
        inverse(self.surface.parameters().steps_opt(), steps)
    }

    /// Exponents that stand at a bound of the fit, as `α = 0.02`: the runs do not tell them, nor what lies beyond the runs.
    pub fn exponents_at_bounds(&self) -> Vec<String> {
        let at_bound = |exponent: f64| exponent <= LEAST * 1.001 || exponent >= MOST * 0.999;
        let exponents = [("α", self.surface.alpha.value), ("β", self.surface.beta.value)];
        let at_bounds = exponents.into_iter().filter(|(_, exponent)| at_bound(*exponent));
        at_bounds.map(|(name, exponent)| format!("{name} = {exponent}")).collect()
    }

    /// The largest compute of a run behind the surface, in F × steps.
    pub fn largest_compute(&self) -> f64 {
        self.runs.iter().filter(|run| run.in_surface).map(|run| run.compute).fold(0.0, f64::max)
    }
}

/// The x at which coefficient · x^exponent is `value`.
fn inverse((coefficient, exponent): (f64, f64), value: f64) -> f64 {
    (value / coefficient).powf(1.0 / exponent)
}

/// FLOPs of the sparse path: 2·D·F a row for the encoder's GEMM and 8·D for each active feature, of which there are `l0`, and no more than F.
pub fn flops_sparse(width: f64, batch: f64, l0: f64, features: f64, steps: f64) -> f64 {
    2.0 * width * batch * features * steps + 8.0 * width * batch * steps * l0.min(features)
}

/// FLOPs of the dense path: five GEMMs of D × F a row.
pub fn flops_dense(width: f64, batch: f64, features: f64, steps: f64) -> f64 {
    10.0 * width * batch * features * steps
}
