//! The definition of a training step: plain loops in float64, for every operation of the device seam.
//!
//! Nothing here is fast or clever. A device is right when it agrees with this file.

use kernels::{AdamMode, LearningRate};

use crate::tolerance::Numbers;

/// A dictionary: `w_enc[f][d]`, `b_enc[f]`, `w_dec[f][d]`, `b_dec[d]`. Gradients and moments have the same shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// `W_enc [F, D]`.
    pub w_enc: Vec<Vec<f64>>,
    /// `b_enc [F]`.
    pub b_enc: Vec<f64>,
    /// `W_dec [F, D]`.
    pub w_dec: Vec<Vec<f64>>,
    /// `b_dec [D]`.
    pub b_dec: Vec<f64>,
}

impl Parameters {
    /// All zeros.
    pub fn zeros(width: usize, features: usize) -> Self {
        let rows = vec![vec![0.0; width]; features];
        Parameters { w_enc: rows.clone(), b_enc: vec![0.0; features], w_dec: rows, b_dec: vec![0.0; width] }
    }

    /// Every value: W_enc, b_enc, W_dec, b_dec.
    pub fn values(&self) -> impl Iterator<Item = &f64> {
        self.w_enc.iter().flatten().chain(&self.b_enc).chain(self.w_dec.iter().flatten()).chain(&self.b_dec)
    }

    /// Every value, in the order of [`Parameters::values`].
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        let rows = self.w_enc.iter_mut().flatten().chain(&mut self.b_enc);
        rows.chain(self.w_dec.iter_mut().flatten()).chain(&mut self.b_dec)
    }
}

/// `x · y`.
pub fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// `‖x‖`.
pub fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// `a[t][f] = ReLU(W_enc[f]·x[t] + b_enc[f])`.
pub fn encode(p: &Parameters, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let features = 0..p.b_enc.len();
    x.iter().map(|x| features.clone().map(|f| (dot(&p.w_enc[f], x) + p.b_enc[f]).max(0.0)).collect()).collect()
}

/// `x̂[t] = b_dec + Σ_f a[t][f] W_dec[f]`.
pub fn decode(p: &Parameters, a: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut x_hat = vec![p.b_dec.clone(); a.len()];
    for (x_hat, a) in x_hat.iter_mut().zip(a) {
        for (f, a) in a.iter().enumerate() {
            for (x_hat, w) in x_hat.iter_mut().zip(&p.w_dec[f]) {
                *x_hat += a * w;
            }
        }
    }
    x_hat
}

/// The sums of a step's report.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// `Σ_t ‖x_t − x̂_t‖²`.
    pub squared_error: f64,
    /// `Σ_t Σ_f a_tf ‖W_dec[f]‖`.
    pub l1: f64,
    /// `Σ_t #{f : a_tf > 0}`.
    pub active: u64,
    /// Tokens on which each feature fired.
    pub fired: Vec<u64>,
}

/// `‖x_t − x̂_t‖²`.
pub fn errors(p: &Parameters, x: &[Vec<f64>]) -> Vec<f64> {
    let x_hat = decode(p, &encode(p, x));
    let error = |(x, x_hat): (&Vec<f64>, &Vec<f64>)| x.iter().zip(x_hat).map(|(x, x_hat)| (x - x_hat).powi(2)).sum();
    x.iter().zip(&x_hat).map(error).collect()
}

/// The sums over a batch.
pub fn report(p: &Parameters, x: &[Vec<f64>]) -> Report {
    let a = encode(p, x);
    let fired: Vec<u64> = (0..p.b_enc.len()).map(|f| a.iter().filter(|a| a[f] > 0.0).count() as u64).collect();
    Report {
        squared_error: errors(p, x).iter().sum(),
        l1: a.iter().map(|a| a.iter().zip(&p.w_dec).map(|(a, w)| a * norm(w)).sum::<f64>()).sum(),
        active: fired.iter().sum(),
        fired,
    }
}

/// `w·x + b`, and the most that a device in `numbers` may be off there.
pub fn pre_activation(numbers: Numbers, (w, b): (&[f64], f64), x: &[f64]) -> (f64, f64) {
    let magnitude = w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum::<f64>() + b.abs();
    (dot(w, x) + b, numbers.product(x.len(), magnitude))
}

/// On how many tokens each feature fires, at least and at most: a pre-activation nearer to 0 than a device can see may count.
pub fn fired(numbers: Numbers, p: &Parameters, x: &[Vec<f64>]) -> (Vec<u64>, Vec<u64>) {
    let count = |f: usize, counts: fn(f64, f64) -> bool| {
        let of = |x: &&Vec<f64>| {
            let (sum, bound) = pre_activation(numbers, (&p.w_enc[f], p.b_enc[f]), x);
            counts(sum, bound)
        };
        x.iter().filter(of).count() as u64
    };
    let features = 0..p.b_enc.len();
    let least = features.clone().map(|f| count(f, |sum, bound| sum > bound)).collect();
    (least, features.map(|f| count(f, |sum, bound| sum > -bound)).collect())
}

/// How far sums may be off because activations are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slack {
    /// Of `Σ_t ‖x_t − x̂_t‖²`.
    pub squared_error: f64,
    /// Of `‖x_t − x̂_t‖²`, on the token on which it is most.
    pub row: f64,
    /// Of `Σ_t Σ_f a_tf ‖W_dec[f]‖`.
    pub l1: f64,
}

/// Of a device in `numbers`, by the triangle inequality: x̂_t is off by at most δ = Σ_f δa_tf ‖W_dec[f]‖ over active features, and its
/// squared error by 2 ‖x_t − x̂_t‖ δ + δ².
pub fn slack(numbers: Numbers, p: &Parameters, x: &[Vec<f64>]) -> Slack {
    let norms: Vec<f64> = p.w_dec.iter().map(|w| norm(w)).collect();
    let mut slack = Slack::default();
    for (x, error) in x.iter().zip(errors(p, x)) {
        let of = |f: usize| {
            let (sum, bound) = pre_activation(numbers, (&p.w_enc[f], p.b_enc[f]), x);
            if sum > -bound { bound * norms[f] } else { 0.0 }
        };
        let delta: f64 = (0..norms.len()).map(of).sum();
        let row = 2.0 * error.sqrt() * delta + delta * delta;
        slack = Slack { squared_error: slack.squared_error + row, row: slack.row.max(row), l1: slack.l1 + delta };
    }
    slack
}

/// `mean ‖x − x̂‖² + λ · mean Σ a ‖W_dec‖`.
pub fn loss(p: &Parameters, x: &[Vec<f64>], lambda: f64) -> f64 {
    let report = report(p, x);
    (report.squared_error + lambda * report.l1) / x.len() as f64
}

/// `∂ loss`.
pub fn gradient(p: &Parameters, x: &[Vec<f64>], lambda: f64) -> Parameters {
    let (b, width) = (x.len() as f64, p.b_dec.len());
    let a = encode(p, x);
    let x_hat = decode(p, &a);
    let mut gradient = Parameters::zeros(width, p.b_enc.len());
    for (t, x) in x.iter().enumerate() {
        let g: Vec<f64> = (0..width).map(|d| 2.0 * (x_hat[t][d] - x[d]) / b).collect();
        gradient.b_dec.iter_mut().zip(&g).for_each(|(sum, g)| *sum += g);
        for f in (0..p.b_enc.len()).filter(|&f| a[t][f] > 0.0) {
            let decoder_norm = norm(&p.w_dec[f]);
            let da = dot(&g, &p.w_dec[f]) + lambda / b * decoder_norm;
            gradient.b_enc[f] += da;
            for d in 0..width {
                // A decoder row of zeros has no direction: 0 is the subgradient taken.
                let direction = if decoder_norm > 0.0 { p.w_dec[f][d] / decoder_norm } else { 0.0 };
                gradient.w_dec[f][d] += a[t][f] * (g[d] + lambda / b * direction);
                gradient.w_enc[f][d] += da * x[d];
            }
        }
    }
    gradient
}

/// Adam with the modes of the seam.
pub struct Adam {
    /// Which rows are updated.
    pub mode: AdamMode,
    /// First moments.
    pub first: Parameters,
    /// Second moments.
    pub second: Parameters,
    /// One more than the step of each feature's last update.
    pub last_update: Vec<u64>,
}

/// What a value and its moments go through at a step.
struct Change {
    lr: LearningRate,
    step: u64,
    clip: f64,
    /// The step after the last update, when steps were skipped and are to be caught up.
    resume: Option<u64>,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

impl Adam {
    /// Before the first step.
    pub fn new(mode: AdamMode, p: &Parameters) -> Self {
        let zeros = Parameters::zeros(p.b_dec.len(), p.b_enc.len());
        Adam { mode, first: zeros.clone(), second: zeros, last_update: vec![0; p.b_enc.len()] }
    }

    /// One update; `fired[f]` says whether feature f fired in the batch.
    pub fn update(
        &mut self,
        p: &mut Parameters,
        gradient: &Parameters,
        fired: &[bool],
        step: u64,
        lr: LearningRate,
        clip: f64,
    ) {
        let clip = (clip / (norm(&gradient.values().copied().collect::<Vec<_>>()) + 1e-6)).min(1.0);
        for (f, &fired) in fired.iter().enumerate() {
            if !fired && self.mode != AdamMode::Dense {
                continue;
            }
            let skipped = self.mode == AdamMode::Catchup && self.last_update[f] > 0 && self.last_update[f] < step;
            let change = Change { lr, step, clip, resume: skipped.then_some(self.last_update[f]) };
            for d in 0..p.b_dec.len() {
                let (m, v) = (&mut self.first, &mut self.second);
                change.apply(&mut p.w_enc[f][d], &mut m.w_enc[f][d], &mut v.w_enc[f][d], gradient.w_enc[f][d]);
                change.apply(&mut p.w_dec[f][d], &mut m.w_dec[f][d], &mut v.w_dec[f][d], gradient.w_dec[f][d]);
            }
            change.apply(&mut p.b_enc[f], &mut self.first.b_enc[f], &mut self.second.b_enc[f], gradient.b_enc[f]);
            self.last_update[f] = step + 1;
        }
        let change = Change { lr, step, clip, resume: None };
        for d in 0..p.b_dec.len() {
            change.apply(&mut p.b_dec[d], &mut self.first.b_dec[d], &mut self.second.b_dec[d], gradient.b_dec[d]);
        }
    }

    /// The parameters with all skipped steps made, as of before `step`.
    pub fn settled(&self, p: &Parameters, step: u64, lr: LearningRate) -> Parameters {
        let mut settled = p.clone();
        for f in (0..p.b_enc.len()).filter(|&f| self.last_update[f] > 0) {
            let change = Change { lr, step, clip: 1.0, resume: Some(self.last_update[f]) };
            let (mut m, mut v) = (self.first.clone(), self.second.clone());
            for d in 0..p.b_dec.len() {
                change.catch_up(&mut settled.w_enc[f][d], &mut m.w_enc[f][d], &mut v.w_enc[f][d]);
                change.catch_up(&mut settled.w_dec[f][d], &mut m.w_dec[f][d], &mut v.w_dec[f][d]);
            }
            change.catch_up(&mut settled.b_enc[f], &mut m.b_enc[f], &mut v.b_enc[f]);
        }
        settled
    }
}

impl Change {
    fn apply(&self, w: &mut f64, m: &mut f64, v: &mut f64, gradient: f64) {
        self.catch_up(w, m, v);
        let g = gradient * self.clip;
        *m = BETA1 * *m + (1.0 - BETA1) * g;
        *v = BETA2 * *v + (1.0 - BETA2) * g * g;
        *w -= self.lr.at(self.step) * direction(*m, *v, self.step + 1);
    }

    /// The steps with a gradient of zero from `resume` to the one before `step`: each moves on by β1/√β2 times the one
    /// before it.
    fn catch_up(&self, w: &mut f64, m: &mut f64, v: &mut f64) {
        let Some(resume) = self.resume else { return };
        let mut step_size = self.lr.at(resume) * direction(*m, *v, resume);
        for _ in resume..self.step {
            step_size *= BETA1 / BETA2.sqrt();
            *w -= step_size;
            *m *= BETA1;
            *v *= BETA2;
        }
    }
}

/// `m̂ / (√v̂ + ε)` after `n` updates.
fn direction(m: f64, v: f64, n: u64) -> f64 {
    let (c1, c2) = (1.0 - BETA1.powf(n as f64), 1.0 - BETA2.powf(n as f64));
    (m / c1) / ((v / c2).sqrt() + EPSILON)
}
