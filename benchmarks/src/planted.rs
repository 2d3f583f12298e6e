//! Planted batches, and the operations of a step on them.
//!
//! A token is a sum of a few of the true directions (Zipf frequencies) and noise, and W_enc points near them; one bias makes
//! L0 about right.

use std::time::Instant;

use kernels::{
    AdamMode, AdamUpdate, Device, Dictionary, LearningRate, Path, Report, RowDtype, Shape, Tensor, Training,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

const LAMBDA: f32 = 1.0;
/// Without a learning rate every repeat is the same step.
pub const UPDATE: AdamUpdate =
    AdamUpdate { step: 10, lr: LearningRate { base: 0.0, decay_from: 1e9, steps: 2e9 }, clip: 1.0, tokens: 1, seed: 0 };
/// Few enough that there is work for every processor.
const ROWS_OF_A_SEED: usize = 4096;

/// An operation of a step, in the order of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Stored rows → x.
    Normalize,
    /// x → active features.
    Encode,
    /// Active features → x̂.
    Decode,
    /// x̂ → g and the sums of the report.
    Residual,
    /// The gradient as far as clipping needs it.
    Backward,
    /// Sums for metrics.
    Count,
    /// The update.
    Adam,
}

impl Operation {
    /// All of a step.
    pub const ALL: [Operation; 7] = [
        Operation::Normalize,
        Operation::Encode,
        Operation::Decode,
        Operation::Residual,
        Operation::Backward,
        Operation::Count,
        Operation::Adam,
    ];

    /// As the kernels call it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Normalize => "normalize",
            Operation::Encode => "encode",
            Operation::Decode => "decode",
            Operation::Residual => "residual",
            Operation::Backward => "backward",
            Operation::Count => "count",
            Operation::Adam => "adam",
        }
    }
}

/// Rows of one batch.
pub struct Batch {
    /// How many.
    pub rows: usize,
    /// Directions in each, and the L0 to calibrate for.
    pub l0: usize,
    x_bf16: Vec<u8>,
}

/// Weights of a dictionary that half knows the directions of its batches.
pub struct Planted {
    /// D.
    pub width: usize,
    /// F.
    pub features: usize,
    w_fd: Vec<f32>,
    /// In the order in which they were asked for.
    pub batches: Vec<Batch>,
}

impl Planted {
    /// For batches of so many rows with about so many directions each.
    pub fn new(width: usize, features: usize, batches: &[(usize, usize)]) -> Planted {
        let scale = 1.0 / (width as f32).sqrt();
        let mut w_fd = vec![0.0; features * width];
        add_normal(&mut w_fd, width, scale, 1);
        let make = |&(rows, l0)| Batch { rows, l0, x_bf16: planted_rows(&w_fd, (width, features), rows, l0) };
        let batches = batches.iter().map(make).collect();
        add_normal(&mut w_fd, width, 0.5 * scale, 2);
        Planted { width, features, w_fd, batches }
    }

    /// What a dictionary for any of the batches is made for.
    pub fn shape(&self) -> Shape {
        let batch = self.batches.iter().map(|batch| batch.rows).max().unwrap_or(1);
        Shape { width: self.width, features: self.features, batch, dense_bytes: 1 << 30 }
    }
}

fn normal(scale: f32, rng: &mut ChaCha8Rng) -> f32 {
    let value: f32 = StandardNormal.sample(rng);
    value * scale
}

/// Adds noise to rows of `width` values: the same whatever the number of processors.
fn add_normal(values: &mut [f32], width: usize, scale: f32, seed: u64) {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let pieces: Vec<(usize, &mut [f32])> = values.chunks_mut(ROWS_OF_A_SEED * width).enumerate().collect();
    let pieces = std::sync::Mutex::new(pieces);
    let work = || {
        while let Some((piece, values)) = pieces.lock().ok().and_then(|mut pieces| pieces.pop()) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed << 32 | piece as u64);
            values.iter_mut().for_each(|value| *value += normal(scale, &mut rng));
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

fn planted_rows(directions_fd: &[f32], (width, features): (usize, usize), rows: usize, l0: usize) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64((rows << 16 | l0) as u64);
    let scale = 1.0 / (width as f32).sqrt();
    let mut x = vec![0.0_f32; rows * width];
    for x in x.chunks_exact_mut(width) {
        for _ in 0..l0 {
            // Log-uniform: a Zipf law over ranks.
            let direction = (features as f64).powf(rng.random::<f64>()) as usize % features;
            let size = 1.0 + normal(0.3, &mut rng).abs();
            x.iter_mut().zip(&directions_fd[direction * width..]).for_each(|(x, d)| *x += size * d);
        }
        x.iter_mut().for_each(|x| *x += normal(scale, &mut rng));
    }
    x.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// A device's objects for planted batches.
pub struct Run<'a, D: Device> {
    device: &'a D,
    staging: D::Staging,
    /// With the weights that were planted.
    pub dictionary: D::Training,
    /// The batch, and room for those in flight behind it.
    x: Vec<D::Rows>,
    tally: D::Tally,
    /// Rows of the batch.
    rows: usize,
    /// What clocks say of features that fired in it.
    tokens: u64,
}

impl<'a, D: Device> Run<'a, D> {
    /// A dictionary with its weights that `mode` trains, and no batch yet.
    ///
    /// # Panics
    /// Without memory.
    pub fn new(device: &'a D, of: &Planted, mode: AdamMode) -> Self {
        let shape = of.shape();
        let memory = "enough memory for the benchmark";
        let mut dictionary = device.training(shape, mode).expect(memory);
        for first in (0..of.features).step_by(ROWS_OF_A_SEED) {
            let rows = first..of.features.min(first + ROWS_OF_A_SEED);
            let values = &of.w_fd[rows.start * of.width..rows.end * of.width];
            dictionary.write(Tensor::EncoderWeight, rows.clone(), values);
            dictionary.write(Tensor::DecoderWeight, rows, values);
        }
        let x = (0..=D::AHEAD).map(|_| device.rows(shape.batch, of.width).expect(memory)).collect();
        let staging = device.staging(2 * shape.batch * of.width).expect(memory);
        let tally = device.tally(of.width, of.features).expect(memory);
        Run { device, staging, dictionary, x, tally, rows: 0, tokens: 0 }
    }

    /// Takes a batch, and the bias with which its L0 is nearest to `l0`. True L0 of the batch.
    ///
    /// # Panics
    /// When the device fails.
    pub fn load(&mut self, batch: &Batch, l0: usize) -> f64 {
        self.staging.as_mut()[..batch.x_bf16.len()].copy_from_slice(&batch.x_bf16);
        (self.rows, self.tokens) = (batch.rows, self.tokens + 1);
        self.perform(Operation::Normalize, Path::Sparse);
        let features = self.dictionary.shape().features;
        let (mut low, mut high) = (-6.0, 1.0);
        for _ in 0..10 {
            let bias = (low + high) / 2.0;
            self.dictionary.write(Tensor::EncoderBias, 0..features, &vec![bias; features]);
            // Without room for the lists it is far above.
            if self.active().is_none_or(|active| active > l0 * batch.rows) { high = bias } else { low = bias }
        }
        // Below the target there is room.
        self.dictionary.write(Tensor::EncoderBias, 0..features, &vec![low; features]);
        self.active().unwrap_or(0) as f64 / batch.rows as f64
    }

    /// Active pairs of the batch; `None` without room for them.
    fn active(&mut self) -> Option<usize> {
        for operation in [Operation::Encode, Operation::Decode, Operation::Residual] {
            self.perform(operation, Path::Sparse);
        }
        let report = self.dictionary.report(0).expect("a device that works");
        self.dictionary.release();
        (!report.overflow).then_some(report.active as usize)
    }

    /// Enqueues an operation on the batch; those before it must have been, once.
    pub fn perform(&mut self, operation: Operation, path: Path) {
        self.perform_on(operation, path, 0);
    }

    fn perform_on(&mut self, operation: Operation, path: Path, slot: usize) {
        let (n, dictionary, x) = (self.rows, &mut self.dictionary, &mut self.x[slot]);
        match operation {
            Operation::Normalize => self.device.normalize(&self.staging, RowDtype::Bf16, n, n, 1.0, x),
            Operation::Encode => dictionary.encode(x, path),
            Operation::Decode => dictionary.decode(x),
            Operation::Residual => dictionary.residual(x),
            Operation::Backward => dictionary.backward(x, LAMBDA),
            Operation::Count => dictionary.count(x, &mut self.tally, 0..n),
            Operation::Adam => dictionary.adam(x, &AdamUpdate { tokens: self.tokens, ..UPDATE }),
        }
    }

    /// How many rows the batch has.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The batch and the dictionary.
    pub fn parts(&mut self) -> (&mut D::Training, &D::Rows) {
        (&mut self.dictionary, &self.x[0])
    }

    /// One step: ms of each operation, each waited for, and what it gave.
    ///
    /// # Panics
    /// When the device fails.
    pub fn step(&mut self, path: Path) -> ([f64; 7], Report) {
        let times = Operation::ALL.map(|operation| {
            let started = Instant::now();
            self.perform(operation, path);
            self.device.wait().expect("a device that works");
            started.elapsed().as_secs_f64() * 1e3
        });
        (times, self.dictionary.report(0).expect("a device that works"))
    }

    /// Best and median ms of each operation, after one step to warm up.
    ///
    /// # Panics
    /// When the device fails.
    pub fn time(&mut self, path: Path, repeats: usize) -> [[f64; 7]; 2] {
        self.step(path);
        let steps: Vec<[f64; 7]> = (0..repeats).map(|_| self.step(path).0).collect();
        let of_one = std::array::from_fn::<_, 7, _>(|operation| {
            let mut times: Vec<f64> = steps.iter().map(|step| step[operation]).collect();
            times.sort_by(f64::total_cmp);
            best_and_median(&times)
        });
        [of_one.map(|(best, _)| best), of_one.map(|(_, median)| median)]
    }

    /// Seconds of `steps` steps as a run makes them: none is waited for before the next ones are enqueued.
    ///
    /// # Panics
    /// When the device fails or refuses the batch.
    pub fn steps(&mut self, path: Path, steps: usize) -> f64 {
        self.device.wait().expect("a device that works");
        let started = Instant::now();
        for step in 0..steps {
            for operation in Operation::ALL {
                self.perform_on(operation, path, step % (D::AHEAD + 1));
            }
            if step >= D::AHEAD {
                let report = self.dictionary.report(D::AHEAD).expect("a device that works");
                assert!(report.ok, "a step that was made: {report:?}");
            }
        }
        self.device.wait().expect("a device that works");
        started.elapsed().as_secs_f64()
    }

    /// Features that have fired in a step on the batch.
    ///
    /// # Panics
    /// When the device fails.
    pub fn touched(&self) -> usize {
        let mut clocks = vec![0; self.dictionary.shape().features];
        let features = 0..clocks.len();
        let read = self.dictionary.read_clock(kernels::Clock::LastFired, features, &mut clocks);
        read.expect("a device that works");
        clocks.iter().filter(|&&clock| clock == self.tokens).count()
    }
}

/// Best and median of sorted times.
pub fn best_and_median(times: &[f64]) -> (f64, f64) {
    (times[0], times[times.len() / 2])
}
