//! Variable projection: given (α, β), the model E + A·x^−α + B·y^−β is linear, so (E, A, B) follow from least squares with E, A, B ≥ 0,
//! and only two parameters are searched. In five dimensions the problem has a condition number near 3.5e11, in these two near 11
//! (Open-Athena, arXiv 2603.22339).
//!
//! Features and steps are divided by their geometric means first. The gradient is that of the envelope: at the best (E, A, B) their own
//! derivatives vanish, or stand at a bound, so only the explicit dependence on (α, β) is left. Residuals are summed and never averaged:
//! an optimiser that stops at a tolerance would stop early on a mean.

use crate::laws::{Loss, Parameters};

/// Most rounds of reweighting for Huber's loss; each shrinks the error by the share of runs beyond δ, so that tens do.
const MOST_ROUNDS: usize = 400;

/// Residuals below this share of the loss are rounding.
const ROUNDING: f64 = 1e-12;

/// Runs as the fit sees them: normalised inputs in logarithms.
#[derive(Clone, Debug)]
pub struct Points {
    /// ln(F / geometric mean of F).
    pub ln_x: Vec<f64>,
    /// ln(S / geometric mean of S).
    pub ln_y: Vec<f64>,
    /// Held-out loss.
    pub loss: Vec<f64>,
    /// ln of the geometric means of F and S.
    pub centre: [f64; 2],
}

/// The sum that is made least, with what it needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// ½ Σ r².
    Squares,
    /// Huber's, quadratic up to this δ.
    Huber(f64),
}

/// The best (E, A, B) at one (α, β).
#[derive(Clone, Debug)]
pub struct Projected {
    /// E, A, B of normalised inputs.
    pub linear: [f64; 3],
    /// The objective.
    pub value: f64,
    /// Its derivatives by α and β.
    pub gradient: [f64; 2],
    /// Measured minus fitted.
    pub residuals: Vec<f64>,
}

/// Whether the irreducible loss E is fitted or held at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irreducible {
    /// E ≥ 0 is fitted.
    Fitted,
    /// E = 0.
    None,
}

impl Points {
    /// Of features, steps and losses, all above 0.
    pub fn of(runs: impl Iterator<Item = (f64, f64, f64)> + Clone) -> Points {
        let n = runs.clone().count().max(1) as f64;
        let mean = |of: fn((f64, f64, f64)) -> f64| runs.clone().map(of).sum::<f64>() / n;
        let centre = [mean(|(f, ..)| f.ln()), mean(|(_, s, _)| s.ln())];
        Points {
            ln_x: runs.clone().map(|(f, ..)| f.ln() - centre[0]).collect(),
            ln_y: runs.clone().map(|(_, s, _)| s.ln() - centre[1]).collect(),
            loss: runs.map(|(.., loss)| loss).collect(),
            centre,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.loss.len()
    }

    /// Parameters of F and S themselves.
    pub fn denormalised(&self, [e, a, b]: [f64; 3], [alpha, beta]: [f64; 2]) -> Parameters {
        Parameters { e, a: a * (alpha * self.centre[0]).exp(), b: b * (beta * self.centre[1]).exp(), alpha, beta }
    }

    /// The best (E, A, B) at (α, β).
    pub fn project(&self, [alpha, beta]: [f64; 2], objective: Objective, irreducible: Irreducible) -> Projected {
        let powers = |exponent: f64, ln: &[f64]| ln.iter().map(|ln| (-exponent * ln).exp()).collect::<Vec<_>>();
        let (u, v) = (powers(alpha, &self.ln_x), powers(beta, &self.ln_y));
        let mut weights = vec![1.0; self.len()];
        let mut linear = nonnegative(&u, &v, &self.loss, &weights, irreducible);
        let residuals = |[e, a, b]: [f64; 3]| -> Vec<f64> {
            let fitted = u.iter().zip(&v).map(|(u, v)| e + a * u + b * v);
            self.loss.iter().zip(fitted).map(|(loss, fitted)| loss - fitted).collect()
        };
        let mut r = residuals(linear);
        if let Objective::Huber(delta) = objective {
            for _ in 0..MOST_ROUNDS {
                for (weight, r) in weights.iter_mut().zip(&r) {
                    *weight = if r.abs() <= delta { 1.0 } else { delta / r.abs() };
                }
                let next = nonnegative(&u, &v, &self.loss, &weights, irreducible);
                let moved = next.iter().zip(linear).map(|(next, last)| (next - last).abs()).fold(0.0, f64::max);
                linear = next;
                r = residuals(linear);
                if moved <= 1e-15 * linear.iter().sum::<f64>() {
                    break;
                }
            }
        }
        let slope = |r: f64| match objective {
            Objective::Squares => r,
            Objective::Huber(delta) => r.clamp(-delta, delta),
        };
        let derivative = |coefficient: f64, powers: &[f64], ln: &[f64]| {
            let terms = r.iter().zip(powers).zip(ln);
            coefficient * terms.map(|((r, power), ln)| slope(*r) * power * ln).sum::<f64>()
        };
        let gradient = [derivative(linear[1], &u, &self.ln_x), derivative(linear[2], &v, &self.ln_y)];
        Projected { linear, value: objective.sum(&r), gradient, residuals: r }
    }
}

impl Objective {
    /// Under `loss`; δ of Huber's is 1.345 robust standard deviations of the residuals of least squares, at which it keeps 95 % of
    /// their efficiency on normal noise. Where those are rounding alone, least squares are left as they are.
    pub fn of(loss: Loss, residuals: &[f64], size: f64) -> Objective {
        match loss {
            Loss::LeastSquares => Objective::Squares,
            Loss::Huber => {
                let mut sizes: Vec<f64> = residuals.iter().map(|r| r.abs()).collect();
                sizes.sort_by(f64::total_cmp);
                let deviation = sizes.get(sizes.len() / 2).copied().unwrap_or_default() / 0.674_489_750_196_081_7;
                if deviation > ROUNDING * size { Objective::Huber(1.345 * deviation) } else { Objective::Squares }
            }
        }
    }

    /// Of residuals.
    pub fn sum(self, residuals: &[f64]) -> f64 {
        let of = |r: f64| match self {
            Objective::Huber(delta) if r.abs() > delta => delta * (r.abs() - delta / 2.0),
            _ => r * r / 2.0,
        };
        residuals.iter().map(|r| of(*r)).sum()
    }
}

/// Weighted least squares of `loss` on (1, u, v) with no coefficient below 0: of the seven sets of coefficients that may be above 0
/// the one with the least sum whose coefficients are. Sums are centred, which keeps twice the digits where u or v hardly vary.
fn nonnegative(u: &[f64], v: &[f64], loss: &[f64], weights: &[f64], irreducible: Irreducible) -> [f64; 3] {
    let total: f64 = weights.iter().sum();
    let mean = |values: &[f64]| values.iter().zip(weights).map(|(value, w)| w * value).sum::<f64>() / total;
    // With E the columns are centred on their means; without, on 0.
    let solve = |with_e: bool, with_a: bool, with_b: bool| -> Option<([f64; 3], f64)> {
        let centre = |values: &[f64]| if with_e { mean(values) } else { 0.0 };
        let [mu, mv, ml] = [centre(u), centre(v), centre(loss)];
        let (mut uu, mut uv, mut vv, mut ul, mut vl, mut ll) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        for (((u, v), loss), w) in u.iter().zip(v).zip(loss).zip(weights) {
            let (u, v, loss) = (u - mu, v - mv, loss - ml);
            uu += w * u * u;
            uv += w * u * v;
            vv += w * v * v;
            ul += w * u * loss;
            vl += w * v * loss;
            ll += w * loss * loss;
        }
        let (a, b) = match (with_a, with_b) {
            (true, true) => {
                let determinant = uu * vv - uv * uv;
                ((ul * vv - vl * uv) / determinant, (vl * uu - ul * uv) / determinant)
            }
            (true, false) => (ul / uu, 0.0),
            (false, true) => (0.0, vl / vv),
            (false, false) => (0.0, 0.0),
        };
        let e = if with_e { ml - a * mu - b * mv } else { 0.0 };
        let sum = ll - a * ul - b * vl;
        let possible = [e, a, b].iter().all(|c| c.is_finite() && *c >= 0.0);
        possible.then_some(([e, a, b], sum))
    };
    let may = irreducible == Irreducible::Fitted;
    if let Some((all, _)) = solve(may, true, true) {
        return all;
    }
    let sets = [(true, true, false), (true, false, true), (false, true, true), (true, false, false)];
    let sets = sets.into_iter().chain([(false, true, false), (false, false, true)]).filter(|set| may || !set.0);
    let found = sets.filter_map(|(e, a, b)| solve(e, a, b)).min_by(|a, b| a.1.total_cmp(&b.1));
    found.map_or([0.0; 3], |(coefficients, _)| coefficients)
}
