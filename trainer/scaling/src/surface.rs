//! The fit of L(F, S): a grid over (α, β), the lowest of its local minima as starts, L-BFGS with the projection's gradient from each.

use std::cell::RefCell;

use argmin::core::{CostFunction, Error as Stopped, Executor, Gradient};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use nalgebra::{Matrix2, SymmetricEigen, Vector2};

use crate::laws::{Loss, Parameters};
use crate::projection::{Irreducible, Objective, Points, Projected};

/// Exponents on the grid, and between which the optimiser stays: 0.02 … 4, evenly in their logarithms.
const GRID: usize = 22;
/// The least exponent that differs from 0.
pub const LEAST: f64 = 0.02;
/// The largest exponent.
pub const MOST: f64 = 4.0;
/// Local minima of the grid from which the optimiser starts, at most.
const STARTS: usize = 8;
/// Steps of the optimiser, at most; about ten are used.
const MOST_STEPS: u64 = 60;
/// The share of the objective below which a step of the optimiser is its last: Newton does the rest.
const NEARLY: f64 = 1e-13;
/// The same in a replicate: a share of 1/n would be a standard error of its exponents, so that this is less than a thousandth of one.
const NEAR: f64 = 1e-9;
/// Two starts agree where their exponents differ by no more.
const AGREE: f64 = 1e-6;

/// A fitted surface.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Of F and S themselves.
    pub parameters: Parameters,
    /// α, β.
    pub exponents: [f64; 2],
    /// E, A, B of normalised inputs, the objective, residuals.
    pub at: Projected,
    /// What was made least.
    pub objective: Objective,
    /// Where the optimiser started.
    pub starts: usize,
    /// Starts that came to this optimum.
    pub agreeing: usize,
}

/// The projection as a function of ln α and ln β, which remembers its lowest point: a line search that cannot go on at the last digit
/// is an end and no error.
struct Search<'a> {
    points: &'a Points,
    objective: Objective,
    irreducible: Irreducible,
    /// What the optimiser sees as 1: its first step would else depend on the unit of the loss.
    unit: f64,
    lowest: &'a RefCell<Option<([f64; 2], Projected)>>,
    /// The last point: a line search asks for its value and its gradient one after the other.
    last: RefCell<Option<([f64; 2], Projected)>>,
}

impl Search<'_> {
    fn at(&self, logs: &[f64]) -> Projected {
        let exponents = [bounded(logs[0]), bounded(logs[1])];
        if let Some((_, found)) = self.last.borrow().as_ref().filter(|(at, _)| *at == exponents) {
            return found.clone();
        }
        let found = self.points.project(exponents, self.objective, self.irreducible);
        let mut lowest = self.lowest.borrow_mut();
        if lowest.as_ref().is_none_or(|(_, lowest)| found.value < lowest.value) {
            *lowest = Some((exponents, found.clone()));
        }
        *self.last.borrow_mut() = Some((exponents, found.clone()));
        found
    }
}

fn bounded(ln: f64) -> f64 {
    ln.exp().clamp(LEAST, MOST)
}

impl CostFunction for Search<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, logs: &Vec<f64>) -> Result<f64, Stopped> {
        Ok(self.at(logs).value / self.unit)
    }
}

impl Gradient for Search<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, logs: &Vec<f64>) -> Result<Vec<f64>, Stopped> {
        let found = self.at(logs);
        // By ln α; 0 beyond the bounds, where the value does not change.
        let by_ln = |at: usize| {
            let inside = (LEAST.ln()..=MOST.ln()).contains(&logs[at]);
            if inside { found.gradient[at] / self.unit * logs[at].exp() } else { 0.0 }
        };
        Ok(vec![by_ln(0), by_ln(1)])
    }
}

/// Fits under `loss`. Huber's δ follows from a fit of least squares before it.
pub fn fit(points: &Points, loss: Loss) -> Fit {
    let starts = starts(points, Irreducible::Fitted);
    let squares = from_starts(points, Objective::Squares, Irreducible::Fitted, &starts);
    let size = points.loss.iter().copied().fold(0.0, f64::max);
    match Objective::of(loss, &squares.at.residuals, size) {
        Objective::Squares => squares,
        // Its valleys lie near those of least squares.
        huber => from_starts(points, huber, Irreducible::Fitted, &starts),
    }
}

/// Fits with E = 0, under the same objective.
pub fn fit_without_e(points: &Points, objective: Objective) -> Fit {
    from_starts(points, objective, Irreducible::None, &starts(points, Irreducible::None))
}

/// Fits from known exponents: replicates of a bootstrap lie near the fit that they come from, and need not be exact to the last digit.
pub fn fit_near(points: &Points, objective: Objective, irreducible: Irreducible, exponents: [f64; 2]) -> Fit {
    let (exponents, at) = descend(points, objective, irreducible, exponents, NEAR);
    of(points, objective, exponents, at, 1, 1)
}

/// Where the optimiser starts: the valleys of least squares on the grid, and four points around the deepest.
fn starts(points: &Points, irreducible: Irreducible) -> Vec<[f64; 2]> {
    let objective = Objective::Squares;
    let exponent = |at: usize| (LEAST.ln() + (MOST / LEAST).ln() * at as f64 / (GRID - 1) as f64).exp();
    let value = |a: usize, b: usize| points.project([exponent(a), exponent(b)], objective, irreducible).value;
    let values: Vec<Vec<f64>> = (0..GRID).map(|a| (0..GRID).map(|b| value(a, b)).collect()).collect();
    let mut starts: Vec<(f64, [f64; 2])> = Vec::new();
    for a in 0..GRID {
        for b in 0..GRID {
            let near = (a.saturating_sub(1)..=(a + 1).min(GRID - 1))
                .flat_map(|i| (b.saturating_sub(1)..=(b + 1).min(GRID - 1)).map(move |j| (i, j)));
            if near.clone().all(|(i, j)| values[a][b] <= values[i][j]) {
                starts.push((values[a][b], [exponent(a), exponent(b)]));
            }
        }
    }
    // Where the grid has one valley, its neighbours are starts too: agreement says nothing of a single one.
    starts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let around = [[0.3, 0.3], [0.3, 3.0], [3.0, 0.3], [3.0, 3.0]].map(|[x, y]| {
        let [alpha, beta] = starts.first().map_or([0.4, 0.4], |start| start.1);
        [(alpha * x).clamp(LEAST, MOST), (beta * y).clamp(LEAST, MOST)]
    });
    starts.into_iter().map(|start| start.1).take(STARTS - around.len()).chain(around).collect()
}

fn from_starts(points: &Points, objective: Objective, irreducible: Irreducible, starts: &[[f64; 2]]) -> Fit {
    let end = |start: [f64; 2]| {
        let (exponents, found) = descend(points, objective, irreducible, start, NEARLY);
        polished(points, objective, irreducible, exponents, found)
    };
    let ends: Vec<_> = starts.iter().map(|start| end(*start)).collect();
    let best = ends.iter().min_by(|a, b| a.1.value.total_cmp(&b.1.value)).cloned();
    let (exponents, at) = best.unwrap_or_else(|| end([0.4, 0.4]));
    let same = |end: &[f64; 2]| end.iter().zip(exponents).all(|(end, best)| (end - best).abs() <= AGREE);
    let agreeing = ends.iter().filter(|end| same(&end.0)).count();
    of(points, objective, exponents, at, starts.len(), agreeing)
}

fn of(
    points: &Points,
    objective: Objective,
    exponents: [f64; 2],
    at: Projected,
    starts: usize,
    agreeing: usize,
) -> Fit {
    Fit { parameters: points.denormalised(at.linear, exponents), exponents, at, objective, starts, agreeing }
}

/// L-BFGS from `start`, until a step changes the objective by less than this share of its first value.
fn descend(
    points: &Points,
    objective: Objective,
    irreducible: Irreducible,
    start: [f64; 2],
    share: f64,
) -> ([f64; 2], Projected) {
    let lowest = RefCell::new(None);
    let mut search = Search { points, objective, irreducible, unit: 1.0, lowest: &lowest, last: RefCell::new(None) };
    let first = search.at(&start.map(f64::ln));
    search.unit = first.value.max(f64::MIN_POSITIVE);
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), 6).with_tolerance_grad(share);
    if let Ok(solver) = solver.and_then(|solver| solver.with_tolerance_cost(share)) {
        let executor = Executor::new(search, solver)
            .configure(|state| state.param(start.map(f64::ln).to_vec()).max_iters(MOST_STEPS));
        // Its error says that a line search found nothing lower.
        drop(executor.run());
    }
    lowest.into_inner().unwrap_or((start, first))
}

/// A few steps of Newton on the gradient: values of the objective tell exponents apart only to half of the digits, the gradient to all.
fn polished(
    points: &Points,
    objective: Objective,
    irreducible: Irreducible,
    mut exponents: [f64; 2],
    mut found: Projected,
) -> ([f64; 2], Projected) {
    let size = |gradient: [f64; 2]| gradient[0].hypot(gradient[1]);
    for _ in 0..4 {
        let hessian = hessian(points, objective, irreducible, exponents);
        let Some(step) = hessian.try_inverse().map(|inverse| inverse * Vector2::from(found.gradient)) else { break };
        let next = [exponents[0] - step[0], exponents[1] - step[1]];
        if !next.iter().all(|exponent| (LEAST..=MOST).contains(exponent)) {
            break;
        }
        let there = points.project(next, objective, irreducible);
        if size(there.gradient) >= size(found.gradient) || there.value > found.value * (1.0 + 1e-9) {
            break;
        }
        (exponents, found) = (next, there);
    }
    (exponents, found)
}

/// Second derivatives of the projected objective, from differences of its gradient.
fn hessian(points: &Points, objective: Objective, irreducible: Irreducible, exponents: [f64; 2]) -> Matrix2<f64> {
    let column = |at: usize| {
        let step = 1e-5 * exponents[at];
        let moved = |by: f64| {
            let mut moved = exponents;
            moved[at] += by;
            points.project(moved, objective, irreducible).gradient
        };
        let (up, down) = (moved(step), moved(-step));
        Vector2::new(up[0] - down[0], up[1] - down[1]) / (2.0 * step)
    };
    let found = Matrix2::from_columns(&[column(0), column(1)]);
    (found + found.transpose()) / 2.0
}

impl Fit {
    /// Condition number of the objective's curvature in (α, β): infinite where a direction is flat, told as the largest double.
    pub fn condition(&self, points: &Points) -> f64 {
        let eigen = SymmetricEigen::new(hessian(points, self.objective, Irreducible::Fitted, self.exponents));
        let (least, most) = (eigen.eigenvalues.min(), eigen.eigenvalues.max());
        if least > 0.0 { (most / least).min(f64::MAX) } else { f64::MAX }
    }
}
