//! What a fit comes to: the content of laws.json, under the same names. All numbers are in full precision, since rounded parameters
//! predict wrongly. Compute `C` is F × steps throughout; FLOPs and GPU-hours stand beside it.
//!
//! > L(F, S) = E + A·F^−α + B·S^−β
//!
//! F features, S steps. At F·S = C the least loss is at F = G·C^(β/(α+β)), S = C^(α/(α+β))/G with G = (αA/βB)^(1/(α+β)), and is
//! E + K·C^−γ with γ = αβ/(α+β) and K = A·G^−α + B·G^β.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of laws.json that this crate writes and reads.
pub const VERSION: u32 = 1;

/// A number with its 95 % interval. `low ≤ high`; all three are finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The fit's.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

/// coefficient · C^exponent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerLaw {
    /// The value at C = 1.
    pub coefficient: Estimate,
    /// Its power of C.
    pub exponent: Estimate,
}

/// Which sum over residuals r a fit makes least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Σ r².
    #[default]
    LeastSquares,
    /// Huber's: Σ r²/2 where |r| ≤ δ, else δ·(|r| − δ/2). Single bad runs pull less.
    Huber,
}

/// The five parameters of L(F, S), each with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Surface {
    /// The loss that neither features nor steps reduce.
    #[serde(rename = "E")]
    pub e: Estimate,
    /// Of F^−α.
    #[serde(rename = "A")]
    pub a: Estimate,
    /// Of S^−β.
    #[serde(rename = "B")]
    pub b: Estimate,
    /// α.
    pub alpha: Estimate,
    /// β.
    pub beta: Estimate,
}

/// The parameters of L(F, S) alone: of a draw of the bootstrap, of a fit under another loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// The loss that neither features nor steps reduce.
    #[serde(rename = "E")]
    pub e: f64,
    /// Of F^−α.
    #[serde(rename = "A")]
    pub a: f64,
    /// Of S^−β.
    #[serde(rename = "B")]
    pub b: f64,
    /// α.
    pub alpha: f64,
    /// β.
    pub beta: f64,
}

/// The least loss at a compute: E + coefficient · C^exponent, the exponent below 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frontier {
    /// As the surface's.
    #[serde(rename = "E")]
    pub e: Estimate,
    /// K.
    pub coefficient: Estimate,
    /// −γ.
    pub exponent: Estimate,
    /// The same of a surface that is fitted with E = 0, as a plain power law; null where one of its terms is 0, so that it has no best size.
    #[serde(rename = "without_E")]
    pub without_e: Option<WithoutE>,
}

/// coefficient · C^exponent, and how much worse the runs are met.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WithoutE {
    /// K.
    pub coefficient: Estimate,
    /// −γ.
    pub exponent: Estimate,
    /// Sum of squared residuals over that of the surface with E; at least 1 up to rounding.
    pub rss_ratio: f64,
}

/// lr = coefficient · C^exponent, through the best learning rate of each size that was swept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LrLaw {
    /// The learning rate at C = 1.
    pub coefficient: Estimate,
    /// Its power of C.
    pub exponent: Estimate,
    /// The compute in the middle of the points, by its logarithm: there the law is known best.
    pub middle: f64,
    /// The learning rate there, whose interval hardly depends on that of the exponent.
    pub at_middle: Estimate,
    /// One for each size, by ascending compute.
    pub points: Vec<LrPoint>,
}

impl LrLaw {
    /// The best learning rate at a compute, with its interval.
    pub fn at(&self, compute: f64) -> Estimate {
        let off = (compute / self.middle).ln();
        let value = self.at_middle.value * (self.exponent.value * off).exp();
        let side = |middle: f64, exponent: f64| {
            let (of_middle, of_exponent) =
                ((middle / self.at_middle.value).ln(), (exponent - self.exponent.value) * off);
            of_middle.hypot(of_exponent)
        };
        // Both intervals are symmetric in the logarithm.
        let half = side(self.at_middle.high, self.exponent.high);
        Estimate { value, low: value * (-half).exp(), high: value * half.exp() }
    }
}

/// The best learning rate at one size: vertex of a parabola a + b·ln lr + c·(ln lr)² through the loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LrPoint {
    /// F.
    pub features: f64,
    /// S.
    pub steps: f64,
    /// F × S.
    pub compute: f64,
    /// The vertex.
    pub lr: f64,
    /// The parabola's loss there.
    pub loss: f64,
    /// `[a, b, c]`.
    pub parabola: [f64; 3],
    /// Whether the vertex lies outside the rates that were tried, or there is none: the law leaves such a point out.
    pub at_edge: bool,
}

/// IsoFLOP parabolas, the cross-check of the surface: biased even without noise, and noisier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parabolas {
    /// One for each budget with at least three sizes, by ascending compute.
    pub budgets: Vec<Parabola>,
    /// F_opt(C) through their vertices; absent with fewer than three.
    pub features_opt: Option<PowerLaw>,
    /// steps_opt(C) through the same.
    pub steps_opt: Option<PowerLaw>,
}

/// Loss against features at one compute: a + b·ln F + c·(ln F)².
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parabola {
    /// F × steps, the geometric mean over its runs.
    pub compute: f64,
    /// `[a, b, c]`.
    pub parabola: [f64; 3],
    /// The best F: the vertex.
    pub features: f64,
    /// The parabola's loss there.
    pub loss: f64,
    /// The surface's best F at this compute.
    pub surface_features: f64,
    /// The least and the largest F that were tried.
    pub grid: [f64; 2],
    /// Runs behind it.
    pub runs: usize,
    /// Whether the vertex lies outside the grid, or there is none: the laws leave such a budget out.
    pub at_edge: bool,
}

/// How well the runs are met, and how sure the optimiser is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Runs behind the surface.
    pub runs: usize,
    /// Different pairs (F, S) among them.
    pub configurations: usize,
    /// Budgets among them.
    pub budgets: usize,
    /// Clusters of the bootstrap.
    pub clusters: usize,
    /// Σ r².
    pub rss: f64,
    /// √(Σ r²/(n − 5)), in units of loss; 0 with five runs or fewer.
    pub residual_sd: f64,
    /// Share of the loss's variance that the surface leaves.
    pub unexplained: f64,
    /// Where the optimiser was started.
    pub starts: usize,
    /// How many of the starts came to the same (α, β) within 1e-6.
    pub agreeing: usize,
    /// Condition number of the objective's curvature in (α, β) at the optimum.
    pub condition: f64,
    /// Replicates of the bootstrap.
    pub replicates: usize,
}

/// What a term in (ln F)² or (ln S)² besides the surface would be, in units of loss: one power law holds where the interval has 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curvature {
    /// Of (ln F)², centred.
    pub features: Estimate,
    /// Of (ln S)², centred.
    pub steps: Estimate,
}

/// The fit without the largest budget, and what it says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaveOut {
    /// The budget left out, F × steps.
    pub compute: f64,
    /// The fit to the others.
    pub surface: Parameters,
    /// Each run of that budget.
    pub runs: Vec<LeftOut>,
    /// Root of the mean squared error over them, in units of loss.
    pub error: f64,
    /// Mean of measured minus predicted, in units of loss.
    pub bias: f64,
    /// Best F at that budget by the fit without it, over that of the whole fit; null where a term of the fit without it is 0.
    pub features_ratio: Option<f64>,
}

/// A run that was predicted from smaller budgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// As in [`Point`].
    pub id: String,
    /// F.
    pub features: f64,
    /// S.
    pub steps: f64,
    /// Measured.
    pub loss: f64,
    /// Predicted for one run, with its interval.
    pub predicted: Estimate,
}

/// The frontier and the allocation at one compute, for plots: 64 points, evenly in ln C, from the least C of a run to 100 × the
/// largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// F × steps.
    pub compute: f64,
    /// FLOPs of the sparse path at the optimum; absent without D, batch or L0.
    pub flops_sparse: Option<f64>,
    /// FLOPs of the dense path; absent without D or batch.
    pub flops_dense: Option<f64>,
    /// Of one GPU, by the estimate of a plan; absent where it is unknown.
    pub gpu_hours: Option<f64>,
    /// The frontier: interval of the mean over seeds.
    pub loss: Estimate,
    /// The same value, interval of a single run.
    pub one_run: Estimate,
    /// F_opt.
    pub features: Estimate,
    /// steps_opt.
    pub steps: Estimate,
    /// Whether C is above that of every run.
    pub extrapolated: bool,
}

/// A quantity against size: intercept + per_features·ln F + per_steps·ln S, by least squares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// `l0`, `explained_variance` or `dead_fraction`.
    pub name: String,
    /// At F = S = 1.
    pub intercept: f64,
    /// Change with ln F.
    pub per_features: Estimate,
    /// Change with ln S.
    pub per_steps: Estimate,
}

/// A run of the fit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The run's folder, or its line in a table.
    pub id: String,
    /// F.
    pub features: f64,
    /// S.
    pub steps: f64,
    /// F × S.
    pub compute: f64,
    /// The budget that it belongs to, in F × steps: given, or the geometric mean of runs within 5 % of each other.
    pub budget: f64,
    /// Of the first weights.
    pub seed: Option<u64>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// Held-out loss.
    pub loss: f64,
    /// The surface's loss.
    pub fitted: f64,
    /// Measured minus fitted.
    pub residual: f64,
    /// Whether the surface was fitted to it; runs of other learning rates are there for the law of lr alone.
    pub in_surface: bool,
    /// Mean active features of a row.
    pub l0: Option<f64>,
    /// Explained variance.
    pub explained_variance: Option<f64>,
    /// Share of dead features.
    pub dead_fraction: Option<f64>,
    /// FLOPs of the sparse path.
    pub flops_sparse: Option<f64>,
    /// FLOPs of the dense path.
    pub flops_dense: Option<f64>,
    /// Of one GPU, by the estimate of a plan.
    pub gpu_hours: Option<f64>,
}

/// What a reader should know before trusting the laws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// One word for programs: `edge`, `off_centre`, `few_configurations`, `unequal_exponents`, `dead_rises`, `curvature`, `starts`,
    /// `leave_out`, `few_clusters`, `bound`, `zero_term`, `learning_rates`, `other_rates`.
    pub kind: String,
    /// A sentence with the figures behind it and what to do.
    pub text: String,
}

/// What all runs of a law have in common: a recommendation for anything else is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// A hash of the runs and of how they were fitted; stands in the head of recommended recipes.
    pub id: String,
    /// Identity of the training data.
    pub data: Option<String>,
    /// Identity of the held-out rows.
    pub eval: Option<String>,
    /// D, values in a row.
    pub width: Option<u64>,
    /// B, rows in a step.
    pub batch: Option<u64>,
    /// λ.
    pub l1: Option<f64>,
    /// The version of what decides numbers in the program; laws that are older do not say it.
    pub numbers: Option<u64>,
    /// Formats that the runs were computed in, likewise.
    pub precision: Option<String>,
    /// Every other key of the recipe that all runs share, as TOML writes its value.
    pub recipe: BTreeMap<String, String>,
}

/// Content of laws.json: one law, of runs that differ in features, steps, learning rate and seed alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Laws {
    /// [`VERSION`].
    pub version: u32,
    /// What the runs have in common.
    pub identity: Identity,
    /// What the surface makes least.
    pub loss: Loss,
    /// L(F, S).
    pub surface: Surface,
    /// The same runs under the other loss; far from `surface` where single runs decide. Its A or B may be 0, and then there is a warning.
    pub other_loss: Parameters,
    /// L(C).
    pub frontier: Frontier,
    /// F_opt(C), from the surface.
    pub features_opt: PowerLaw,
    /// steps_opt(C), from the surface.
    pub steps_opt: PowerLaw,
    /// lr_opt(C); absent where learning rates were not swept at three sizes or more.
    pub lr_opt: Option<LrLaw>,
    /// The cross-check.
    pub parabolas: Parabolas,
    /// Residuals and the optimiser in figures.
    pub quality: Quality,
    /// Deviations from power laws.
    pub curvature: Option<Curvature>,
    /// The largest budget, predicted from the others; absent with fewer than four budgets.
    pub leave_out: Option<LeaveOut>,
    /// L0, explained variance and dead share.
    pub trends: Vec<Trend>,
    /// The GPU of `gpu_hours`.
    pub gpu: Option<String>,
    /// Median L0 of the runs, for FLOPs of the sparse path.
    pub l0: Option<f64>,
    /// For plots.
    pub bands: Vec<Band>,
    /// All runs, by ascending compute, then features.
    pub runs: Vec<Point>,
    /// Most severe first.
    pub warnings: Vec<Warning>,
    /// Parameters in each replicate of the bootstrap: intervals of whatever else follows from them.
    pub draws: Vec<Parameters>,
}

impl Parameters {
    /// L(F, S).
    pub fn loss(&self, features: f64, steps: f64) -> f64 {
        self.e + self.a * features.powf(-self.alpha) + self.b * steps.powf(-self.beta)
    }

    /// What the loss does not fall with, where A or B is 0: then no allocation is best.
    pub fn flat(&self) -> Option<&'static str> {
        match (self.a > 0.0, self.b > 0.0) {
            (true, true) => None,
            (false, true) => Some("features"),
            (true, false) => Some("steps"),
            (false, false) => Some("features or steps"),
        }
    }

    /// G = (αA/βB)^(1/(α+β)); NaN, and all that follows from it, where no allocation is best.
    fn ratio(&self) -> f64 {
        let ratio = (self.alpha * self.a / (self.beta * self.b)).powf(1.0 / (self.alpha + self.beta));
        if self.flat().is_none() { ratio } else { f64::NAN }
    }

    /// Coefficient and exponent of F_opt(C).
    pub fn features_opt(&self) -> (f64, f64) {
        (self.ratio(), self.beta / (self.alpha + self.beta))
    }

    /// Coefficient and exponent of steps_opt(C).
    pub fn steps_opt(&self) -> (f64, f64) {
        (1.0 / self.ratio(), self.alpha / (self.alpha + self.beta))
    }

    /// K and −γ of the frontier.
    pub fn frontier(&self) -> (f64, f64) {
        let ratio = self.ratio();
        let coefficient = self.a * ratio.powf(-self.alpha) + self.b * ratio.powf(self.beta);
        (coefficient, -self.alpha * self.beta / (self.alpha + self.beta))
    }
}

impl Surface {
    /// Without their intervals.
    pub fn parameters(&self) -> Parameters {
        Parameters { e: self.e.value, a: self.a.value, b: self.b.value, alpha: self.alpha.value, beta: self.beta.value }
    }
}

impl PowerLaw {
    /// The value at `compute`, in F × steps.
    pub fn at(&self, compute: f64) -> f64 {
        self.coefficient.value * compute.powf(self.exponent.value)
    }
}
