//! What cases are made of: a dictionary with a batch, on a device, and how near a number must come.

use std::ops::Range;

use kernels::{
    AdamMode, AdamUpdate, Clock, Device, Dictionary, LearningRate, Moment, Path, Report, RowDtype, Shape, Sums, Tensor,
    Training,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::reference::{self, Parameters};
use crate::tolerance::Numbers;

/// All tensors.
pub const TENSORS: [Tensor; 4] =
    [Tensor::EncoderWeight, Tensor::EncoderBias, Tensor::DecoderWeight, Tensor::DecoderBias];

/// Both paths.
pub const PATHS: [Path; 2] = [Path::Sparse, Path::Dense];

/// Constant, then falling over the last 40 of 240 steps.
pub(super) const LR: LearningRate = LearningRate { base: 1e-3, decay_from: 160.0, steps: 240.0 };

/// A dictionary, a batch, and what a step on them needs.
#[derive(Clone)]
pub struct Case {
    /// Of the dictionary.
    pub shape: Shape,
    /// Which of its rows Adam updates.
    pub mode: AdamMode,
    /// Its parameters.
    pub p: Parameters,
    /// Rows.
    pub x: Vec<Vec<f64>>,
    /// λ.
    pub lambda: f32,
}

/// Values that the device holds exactly, so that both sides start from the same numbers.
pub(super) fn exact(numbers: Numbers, values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    values.into_iter().map(|v| numbers.nearest(v)).collect()
}

pub(super) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let sum: f64 = (0..12).map(|_| rng.random::<f64>()).sum();
    sum - 6.0
}

impl Case {
    /// Weights, biases around `bias` and rows, all of a seed.
    pub fn new(numbers: Numbers, width: usize, features: usize, batch: usize, bias: f64, seed: u64) -> Case {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut row = |scale: f64| exact(numbers, (0..width).map(|_| scale * normal(&mut rng)));
        let scale = 1.0 / (width as f64).sqrt();
        let p = Parameters {
            w_enc: (0..features).map(|_| row(scale)).collect(),
            b_enc: exact(numbers, (0..features).map(|f| bias + 0.1 * (f as f64).sin())),
            w_dec: (0..features).map(|_| row(scale)).collect(),
            b_dec: row(0.1),
        };
        let x = (0..batch).map(|_| row(1.0)).collect();
        let shape = Shape { width, features, batch, dense_bytes: usize::MAX };
        Case { shape, mode: AdamMode::Dense, p, x, lambda: 0.7 }
    }

    /// With ragged ends everywhere, of which some features fire.
    pub(super) fn ragged(numbers: Numbers, bias: f64) -> Case {
        Case::new(numbers, 21, 130, 40, bias, 2)
    }

    /// The same with biases moved until no pre-activation is so near 0 that a device may see either sign.
    pub(super) fn apart(mut self, numbers: Numbers) -> Case {
        for f in 0..self.shape.features {
            let near = |b: f64, x: &Vec<f64>| {
                let (sum, bound) = reference::pre_activation(numbers, (&self.p.w_enc[f], b), x);
                (sum.abs() < bound).then_some(bound)
            };
            // Each move goes past the bound of the one that was near, and what moves is small beside what biases are.
            while let Some(bound) = self.x.iter().find_map(|x| near(self.p.b_enc[f], x)) {
                self.p.b_enc[f] = f64::from((self.p.b_enc[f] + 2.5 * bound) as f32);
            }
        }
        self
    }

    pub(super) fn with_adam(self, mode: AdamMode) -> Case {
        Case { mode, ..self }
    }
}

pub(super) fn flat(p: &Parameters, tensor: Tensor) -> Vec<f64> {
    match tensor {
        Tensor::EncoderWeight => p.w_enc.concat(),
        Tensor::EncoderBias => p.b_enc.clone(),
        Tensor::DecoderWeight => p.w_dec.concat(),
        Tensor::DecoderBias => p.b_dec.clone(),
    }
}

pub(super) fn rows_of(tensor: Tensor, shape: &Shape) -> usize {
    if tensor == Tensor::DecoderBias { 1 } else { shape.features }
}

/// As many values as a tensor has, none of them a number: a device that writes nothing is caught.
pub(super) fn room_for(tensor: Tensor, shape: &Shape) -> Vec<f32> {
    let columns = if tensor == Tensor::EncoderBias { 1 } else { shape.width };
    vec![f32::NAN; rows_of(tensor, shape) * columns]
}

/// All of a tensor of a dictionary.
///
/// # Panics
/// When the device fails.
pub fn read<S: Dictionary>(dictionary: &S, tensor: Tensor) -> Vec<f32> {
    let shape = dictionary.shape();
    let mut out = room_for(tensor, &shape);
    dictionary.read(tensor, 0..rows_of(tensor, &shape), &mut out).expect("a device that works");
    out
}

/// All of a moment of a tensor.
///
/// # Panics
/// When the device fails.
pub fn read_moment<S: Training>(dictionary: &S, tensor: Tensor, moment: Moment) -> Vec<f32> {
    let shape = dictionary.shape();
    let mut out = room_for(tensor, &shape);
    dictionary.read_moment(tensor, moment, 0..rows_of(tensor, &shape), &mut out).expect("a device that works");
    out
}

/// A tensor, its first and its second moment.
///
/// # Panics
/// When the device fails.
pub fn read_arrays<S: Training>(dictionary: &S, tensor: Tensor) -> [Vec<f32>; 3] {
    let [first, second] = [Moment::First, Moment::Second].map(|moment| read_moment(dictionary, tensor, moment));
    [read(dictionary, tensor), first, second]
}

/// A clock of every feature.
pub(super) fn clock<S: Training>(dictionary: &S, clock: Clock) -> Vec<u64> {
    let features = dictionary.shape().features;
    // What no clock shows: a device that writes nothing is caught.
    let mut out = vec![u64::MAX; features];
    dictionary.read_clock(clock, 0..features, &mut out).expect("a device that works");
    out
}

/// A device with a dictionary that holds a case's parameters, and its batch. The dictionary is one that is trained, unless it is
/// `settled`.
pub struct Run<'a, D: Device, S = <D as Device>::Training> {
    pub(crate) device: &'a D,
    /// The dictionary.
    pub dictionary: S,
    pub(super) x: D::Rows,
    pub(crate) tally: D::Tally,
}

impl<'a, D: Device> Run<'a, D> {
    /// # Panics
    /// When there is no memory.
    pub fn new(device: &'a D, case: &Case) -> Self {
        Run::with(device, case, device.training(case.shape, case.mode).expect("memory"))
    }

    /// After so many steps on the sparse path.
    pub(super) fn after(device: &'a D, case: &Case, steps: u64) -> Self {
        let mut run = Run::new(device, case);
        for step in 0..steps {
            assert!(run.step(Path::Sparse, case.lambda, &update(step)).ok);
        }
        run
    }

    /// A dictionary that cannot train and holds what this one is owed at `step`, and the case's batch.
    pub(super) fn settled(&self, case: &Case, step: u64) -> Run<'a, D, D::Dictionary> {
        let mut settled = Run::with(self.device, case, self.device.dictionary(case.shape).expect("memory"));
        self.dictionary.settle_into(&update(step), &mut settled.dictionary);
        settled
    }

    /// A whole step, all rows counted.
    ///
    /// # Panics
    /// When the device fails.
    pub fn step(&mut self, path: Path, lambda: f32, update: &AdamUpdate) -> Report {
        self.forward(path);
        self.dictionary.backward(&self.x, lambda);
        self.count(0..usize::MAX);
        self.dictionary.adam(&self.x, update);
        self.dictionary.report(0).expect("a device that works")
    }

    /// Every parameter, moment and clock.
    ///
    /// # Panics
    /// When the device fails.
    pub fn state(&self) -> (Vec<u32>, Vec<u64>) {
        let arrays = TENSORS.into_iter().flat_map(|tensor| read_arrays(&self.dictionary, tensor));
        let clocks = [Clock::LastUpdate, Clock::LastFired].map(|which| clock(&self.dictionary, which));
        (arrays.flatten().map(f32::to_bits).collect(), clocks.concat())
    }
}

impl<'a, D: Device, S: Dictionary<Rows = D::Rows, Tally = D::Tally>> Run<'a, D, S> {
    /// With a fresh dictionary.
    pub(super) fn with(device: &'a D, case: &Case, mut dictionary: S) -> Self {
        let Shape { width, features, batch, .. } = case.shape;
        for tensor in TENSORS {
            let values: Vec<f32> = flat(&case.p, tensor).iter().map(|&v| v as f32).collect();
            dictionary.write(tensor, 0..rows_of(tensor, &case.shape), &values);
        }
        let x = device.rows(batch, width).expect("memory");
        let tally = device.tally(width, features).expect("memory");
        let mut run = Run { device, dictionary, x, tally };
        run.load(&case.x);
        run
    }

    pub(super) fn load(&mut self, x: &[Vec<f64>]) {
        let bytes: Vec<u8> = x.iter().flatten().flat_map(|&v| (v as f32).to_le_bytes()).collect();
        let mut staging = self.device.staging(bytes.len()).expect("memory");
        staging.as_mut().copy_from_slice(&bytes);
        self.device.normalize(&staging, RowDtype::F32, x.len(), x.len(), 1.0, &mut self.x);
    }

    /// Encodes, decodes, and makes the residual.
    pub fn forward(&mut self, path: Path) {
        self.dictionary.encode(&self.x, path);
        self.dictionary.decode(&self.x);
        self.dictionary.residual(&self.x);
    }

    pub(super) fn count(&mut self, counted: Range<usize>) {
        self.dictionary.count(&self.x, &mut self.tally, counted);
    }

    pub(super) fn sums(&mut self) -> Sums {
        self.device.take_sums(&mut self.tally).expect("a device that works")
    }
}

/// The update of a step.
pub fn update(step: u64) -> AdamUpdate {
    AdamUpdate { step, lr: LR, clip: 1.0, tokens: 100 * (step + 1), seed: 7 }
}

/// Relative, and absolute for small sums: an activation is a difference of numbers of order 1.
///
/// # Panics
/// When `got` is farther from `want` than that.
pub fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    let error = (got - want).abs() / want.abs().max(0.1);
    assert!(error <= tolerance, "{what}: {got} instead of {want}, off by {error:.2e}");
}

/// `‖got − want‖ / ‖want‖`.
pub(super) fn distance(got: &[f32], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).powi(2)).sum();
    let size: f64 = want.iter().map(|want| want * want).sum();
    error.sqrt() / size.sqrt().max(1e-30)
}
