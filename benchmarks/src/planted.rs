//! A planted batch, and the time of each operation on it.
//!
//! A token is a sum of a few of the true directions (Zipf frequencies) and noise, and W_enc points near them; one bias makes
//! L0 about right.

use std::time::Instant;

use kernels::{AdamMode, AdamUpdate, Device, Dictionary, LearningRate, Path, Report, RowDtype, Shape, Slot, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Names of the operations in the order of their times.
pub const OPERATIONS: [&str; 7] = ["normalize", "encode", "decode", "residual", "backward", "count", "adam"];

const LAMBDA: f32 = 1.0;
const UPDATE: AdamUpdate = AdamUpdate {
    step: 10,
    lr: LearningRate { base: 1e-7, decay_from: 1e9, steps: 2e9 },
    clip: 1.0,
    tokens: 1,
    seed: 0,
};

/// Planted rows and the weights of a dictionary that half knows their directions.
pub struct Planted {
    /// Of the dictionary.
    pub shape: Shape,
    x_bf16: Vec<u8>,
    w_fd: Vec<f32>,
    bias: f32,
}

impl Planted {
    /// Rows of about `l0` directions, and a dictionary of `features`.
    pub fn new(width: usize, features: usize, batch: usize, l0: usize) -> Planted {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let scale = 1.0 / (width as f32).sqrt();
        let normal = |scale: f32, rng: &mut ChaCha8Rng| -> f32 {
            let value: f32 = StandardNormal.sample(rng);
            value * scale
        };
        let directions: Vec<f32> = (0..features * width).map(|_| normal(scale, &mut rng)).collect();
        let mut x = vec![0.0_f32; batch * width];
        for x in x.chunks_exact_mut(width) {
            for _ in 0..l0 {
                // Log-uniform: a Zipf law over ranks.
                let direction = (features as f64).powf(rng.random::<f64>()) as usize % features;
                let size = 1.0 + normal(0.3, &mut rng).abs();
                x.iter_mut().zip(&directions[direction * width..]).for_each(|(x, d)| *x += size * d);
            }
            x.iter_mut().for_each(|x| *x += normal(scale, &mut rng));
        }
        let w_fd = directions.iter().map(|d| d + normal(0.5 * scale, &mut rng)).collect();
        let x_bf16 = x.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
        let shape = Shape { width, features, batch, adam: Some(AdamMode::Dense), dense_bytes: 1 << 30 };
        Planted { shape, x_bf16, w_fd, bias: 0.0 }
    }
}

/// A device's objects for a planted batch.
pub struct Run<'a, D: Device> {
    device: &'a D,
    staging: D::Staging,
    dictionary: D::Dictionary,
    x: D::Rows,
    tally: D::Tally,
}

impl<'a, D: Device> Run<'a, D> {
    /// # Panics
    /// Without memory.
    pub fn new(device: &'a D, of: &Planted) -> Self {
        let Shape { width, features, batch, .. } = of.shape;
        let memory = "enough memory for the benchmark";
        let mut staging = device.staging(of.x_bf16.len()).expect(memory);
        staging.as_mut().copy_from_slice(&of.x_bf16);
        let mut dictionary = device.dictionary(of.shape).expect(memory);
        dictionary.write(Tensor::EncoderWeight, Slot::Value, 0..features, &of.w_fd);
        dictionary.write(Tensor::DecoderWeight, Slot::Value, 0..features, &of.w_fd);
        dictionary.write(Tensor::EncoderBias, Slot::Value, 0..features, &vec![of.bias; features]);
        let x = device.rows(batch, width).expect(memory);
        Run { device, staging, dictionary, x, tally: device.tally(width, features).expect(memory) }
    }

    /// One step: ms of each operation, and what it gave.
    ///
    /// # Panics
    /// When the device fails.
    pub fn step(&mut self, path: Path) -> ([f64; 7], Report) {
        let n = self.dictionary.shape().batch;
        let mut clock = Instant::now();
        let mut lap = || {
            self.device.wait().expect("a device that works");
            std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64() * 1e3
        };
        self.device.normalize(&self.staging, RowDtype::Bf16, n, n, 1.0, &mut self.x);
        let normalize = lap();
        self.dictionary.encode(&self.x, path);
        let encode = lap();
        self.dictionary.decode(&self.x);
        let decode = lap();
        self.dictionary.residual(&self.x);
        let residual = lap();
        self.dictionary.backward(&self.x, LAMBDA);
        let backward = lap();
        self.dictionary.count(&self.x, &mut self.tally, 0..n);
        let count = lap();
        self.dictionary.adam(&self.x, &UPDATE);
        (
            [normalize, encode, decode, residual, backward, count, lap()],
            self.dictionary.report(0).expect("a device that works"),
        )
    }

    /// Best and median of each operation, after one step to warm up.
    pub fn time(&mut self, path: Path, repeats: usize) -> [[f64; 7]; 2] {
        self.step(path);
        let times: Vec<[f64; 7]> = (0..repeats).map(|_| self.step(path).0).collect();
        [0, repeats / 2].map(|rank| {
            std::array::from_fn(|operation| {
                let mut of_one: Vec<f64> = times.iter().map(|times| times[operation]).collect();
                of_one.sort_by(f64::total_cmp);
                of_one[rank]
            })
        })
    }
}

/// Sets the bias with which L0 is nearest to the target.
///
/// # Panics
/// When the device fails.
pub fn calibrate(device: &impl Device, planted: &mut Planted, l0: usize) {
    let (mut low, mut high) = (-6.0, 0.0);
    let shape = planted.shape;
    planted.shape.adam = None;
    let mut run = Run::new(device, planted);
    run.device.normalize(&run.staging, RowDtype::Bf16, shape.batch, shape.batch, 1.0, &mut run.x);
    for _ in 0..9 {
        planted.bias = (low + high) / 2.0;
        let biases = vec![planted.bias; shape.features];
        run.dictionary.write(Tensor::EncoderBias, Slot::Value, 0..shape.features, &biases);
        let mut active = |path| {
            run.dictionary.encode(&run.x, path);
            run.dictionary.decode(&run.x);
            run.dictionary.residual(&run.x);
            let report = run.dictionary.report(0).expect("a device that works");
            run.dictionary.release();
            (!report.overflow).then_some(report.active as usize)
        };
        // Without room for the lists it is far above.
        if active(Path::Sparse).is_none_or(|active| active > l0 * shape.batch) {
            high = planted.bias
        } else {
            low = planted.bias
        }
    }
    planted.shape = shape;
}
