//! Which runs would narrow the intervals most.
//!
//! At the fit the parameters have the information J'J/σ², J the surface's derivatives at the runs; a further run adds its own row. Of
//! candidates the one is taken next that shrinks the variances of ln F_opt and of the loss at the target most, as a product; then the
//! next, with that one counted as run (greedy design of experiments). Costs do not enter: candidates are bounded by the largest compute
//! allowed.

use nalgebra::{SMatrix, SVector};

use crate::laws::{Laws, Parameters};

/// A run that is worth making.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// F.
    pub features: f64,
    /// S.
    pub steps: f64,
    /// What is left of the standard error of ln F_opt at the target with it and those before it, as a share of what it is now.
    pub features_left: f64,
    /// The same of the loss at the target.
    pub loss_left: f64,
}

type Information = SMatrix<f64, 5, 5>;
type Row = SVector<f64, 5>;

/// Budgets of candidates, from the least compute of a run to the most allowed, evenly in ln C.
const BUDGETS: usize = 9;
/// Sizes at each, from a quarter of the best F to four times it.
const SIZES: [f64; 7] = [0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0];

impl Laws {
    /// The `count` next runs of at most `most` compute (F × steps), for predictions at `target` compute.
    pub fn next(&self, count: usize, most: f64, target: f64) -> Vec<Candidate> {
        let parameters = self.surface.parameters();
        let centre = self.centre();
        let mut information = Information::zeros();
        for run in self.runs.iter().filter(|run| run.in_surface) {
            let row = row(&parameters, centre, run.features, run.steps);
            information += row * row.transpose();
        }
        let gradients = [
            gradient(&parameters, centre, |p| p.features_opt().0.ln() + p.features_opt().1 * target.ln()),
            gradient(&parameters, centre, |p| p.e + p.frontier().0 * target.powf(p.frontier().1)),
        ];
        let Some(now) = errors(&information, &gradients) else { return Vec::new() };
        let candidates = self.candidates(most);
        let mut found = Vec::new();
        for _ in 0..count {
            let with = |&(features, steps): &(f64, f64)| {
                let row = row(&parameters, centre, features, steps);
                let information = information + row * row.transpose();
                Some((errors(&information, &gradients)?, information, features, steps))
            };
            let best =
                candidates.iter().filter_map(with).min_by(|a, b| (a.0[0] * a.0[1]).total_cmp(&(b.0[0] * b.0[1])));
            let Some((left, with, features, steps)) = best else { break };
            information = with;
            let [features_left, loss_left] = [left[0] / now[0], left[1] / now[1]];
            found.push(Candidate { features, steps, features_left, loss_left });
        }
        found
    }

    /// Sizes that may be run, at whole numbers of features and steps.
    fn candidates(&self, most: f64) -> Vec<(f64, f64)> {
        let least = self.runs.iter().map(|run| run.compute).fold(most, f64::min);
        let budget = |at: usize| least * (most / least).powf(at as f64 / (BUDGETS - 1) as f64);
        let sizes = |compute: f64| {
            let best = self.features_opt.at(compute);
            SIZES.map(|size| {
                let features = (best * size).round().max(1.0);
                (features, (compute / features).round().max(1.0))
            })
        };
        (0..BUDGETS).map(budget).flat_map(sizes).collect()
    }

    /// Means of ln F and ln S, about which parameters depend on each other less.
    fn centre(&self) -> [f64; 2] {
        let n = self.runs.len().max(1) as f64;
        let mean = |of: fn(&crate::laws::Point) -> f64| self.runs.iter().map(of).sum::<f64>() / n;
        [mean(|run| run.features.ln()), mean(|run| run.steps.ln())]
    }
}

/// The surface's derivatives by E, ln A, ln B, α, β, with A and B at the centre.
fn row(p: &Parameters, centre: [f64; 2], features: f64, steps: f64) -> Row {
    let (u, v) = (p.a * features.powf(-p.alpha), p.b * steps.powf(-p.beta));
    Row::new(1.0, u, v, -u * (features.ln() - centre[0]), -v * (steps.ln() - centre[1]))
}

/// Derivatives of a quantity by the same parameters, from differences.
fn gradient(p: &Parameters, centre: [f64; 2], of: impl Fn(&Parameters) -> f64) -> Row {
    let moved = |at: usize, by: f64| {
        let mut m = *p;
        match at {
            0 => m.e += by,
            1 => m.a *= by.exp(),
            2 => m.b *= by.exp(),
            3 => {
                m.alpha += by;
                m.a *= (by * centre[0]).exp();
            }
            _ => {
                m.beta += by;
                m.b *= (by * centre[1]).exp();
            }
        }
        of(&m)
    };
    Row::from_fn(|at, _| (moved(at, 1e-5) - moved(at, -1e-5)) / 2e-5)
}

/// Standard errors of quantities, in units of the noise.
fn errors(information: &Information, gradients: &[Row; 2]) -> Option<[f64; 2]> {
    let covariance = information.try_inverse()?;
    let of = |gradient: &Row| (gradient.transpose() * covariance * gradient)[(0, 0)];
    let variances = [of(&gradients[0]), of(&gradients[1])];
    variances.iter().all(|variance| *variance > 0.0 && variance.is_finite()).then(|| variances.map(f64::sqrt))
}
