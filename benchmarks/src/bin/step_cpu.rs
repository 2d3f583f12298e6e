//! Time of each operation of a training step on the processor, as a share of what the machine can do.
//!
//!     cargo run --release -p benchmarks --bin step_cpu [threads]
//!
//! Data are planted: a token is a sum of a few of the true directions (Zipf frequencies) and noise, and W_enc points
//! near them; one bias makes L0 about right. Traffic and work are modelled as each operation's file states them. Nothing
//! is timed before the sparse path agrees with the dense path and every screen gives the same bits.

use kernels::cpu::{Cpu, CpuDictionary, Options, Peaks, Screen};
use kernels::{AdamMode, AdamUpdate, Device, Dictionary, LearningRate, Path, Report, RowDtype, Shape, Slot, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::time::Instant;

/// width, features, batch, target L0.
const SHAPES: [(usize, usize, usize, usize); 3] =
    [(384, 4096, 2048, 40), (384, 16384, 1024, 50), (768, 32768, 2048, 50)];
const REPEATS: usize = 9;
const LAMBDA: f32 = 1.0;
const UPDATE: AdamUpdate =
    AdamUpdate { step: 10, lr: LearningRate { base: 1e-7, decay_from: 1e9, steps: 2e9 }, clip: 1.0, tokens: 1 };

/// Planted rows and the weights of a dictionary that half knows their directions.
struct Planted {
    shape: Shape,
    x_bf16: Vec<u8>,
    w_fd: Vec<f32>,
    bias: f32,
}

fn plant(width: usize, features: usize, batch: usize, l0: usize) -> Planted {
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

/// A device's objects for a planted batch.
struct Run<'a> {
    device: &'a Cpu,
    staging: <Cpu as Device>::Staging,
    dictionary: CpuDictionary,
    x: <Cpu as Device>::Rows,
    tally: <Cpu as Device>::Tally,
}

impl<'a> Run<'a> {
    fn new(device: &'a Cpu, of: &Planted) -> Self {
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

    fn step(&mut self, path: Path) -> ([f64; 7], Report) {
        let n = self.dictionary.shape().batch;
        let mut clock = Instant::now();
        let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64() * 1e3;
        self.device.normalize(&self.staging, RowDtype::Bf16, n, 1.0, &mut self.x);
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
        ([normalize, encode, decode, residual, backward, count, lap()], self.dictionary.report().expect("a processor"))
    }

    /// Best and median of each operation, after one step to warm up.
    fn time(&mut self, path: Path, repeats: usize) -> [[f64; 7]; 2] {
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

/// The bias with which L0 is nearest to the target.
fn calibrate(device: &Cpu, planted: &mut Planted, l0: usize) {
    let (mut low, mut high) = (-6.0, 0.0);
    let shape = planted.shape;
    planted.shape.adam = None;
    let mut run = Run::new(device, planted);
    run.device.normalize(&run.staging, RowDtype::Bf16, shape.batch, 1.0, &mut run.x);
    for _ in 0..9 {
        planted.bias = (low + high) / 2.0;
        let biases = vec![planted.bias; shape.features];
        run.dictionary.write(Tensor::EncoderBias, Slot::Value, 0..shape.features, &biases);
        run.dictionary.encode(&run.x, Path::Sparse);
        run.dictionary.decode(&run.x);
        run.dictionary.residual(&run.x);
        if run.dictionary.report().expect("a processor").active as usize > l0 * shape.batch {
            high = planted.bias
        } else {
            low = planted.bias
        }
    }
    planted.shape = shape;
}

/// Panics when the paths or the screens disagree.
fn check(device: &Cpu, threads: usize, planted: &Planted) -> Report {
    let (_, sparse) = Run::new(device, planted).step(Path::Sparse);
    let (_, dense) = Run::new(device, planted).step(Path::Dense);
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
    assert!(near(sparse.squared_error, dense.squared_error) && near(sparse.gradient_norm, dense.gradient_norm));
    assert!(near(sparse.l1, dense.l1) && sparse.ok);
    for screen in [Screen::Int8, Screen::Bf16, Screen::F32].into_iter().filter(|screen| screen.available()) {
        let other = Cpu::with(Options { threads: Some(threads), screen: Some(screen), isa: None }).expect("threads");
        assert!(Run::new(&other, planted).step(Path::Sparse).1 == sparse, "{screen:?} gives the same bits");
    }
    sparse
}

/// Shares are of the best times: peaks are the best of several tries too, and other load on the machine spoils medians.
fn print_step(planted: &Planted, report: &Report, peaks: &Peaks, [times, medians]: [[f64; 7]; 2]) {
    let Shape { width, features, batch, .. } = planted.shape;
    let (bdf, n) = ((batch * width * features) as f64, report.active as f64);
    let nd = n * width as f64;
    let (fma, narrow) = (peaks.fma_gflops, peaks.int8_gops.or(peaks.bf16_gflops).unwrap_or(peaks.gemm_gflops));
    let bytes_of_rows = 4.0 * (batch * width) as f64;
    // Least time in ms, and what bounds it.
    let floors = [
        (1.5 * bytes_of_rows / peaks.copy_gbs / 1e6, "copy"),
        (2.0 * bdf / narrow / 1e6 + 2.0 * nd / fma / 1e6, "products"),
        (2.0 * nd / fma / 1e6, "fma"),
        (3.0 * bytes_of_rows / peaks.copy_gbs / 1e6, "copy"),
        (6.0 * nd / fma / 1e6, "fma"),
        (bytes_of_rows / peaks.copy_gbs / 1e6, "copy"),
        (25.0 * 2.0 * (width * features) as f64 / peaks.copy_gbs / 1e6, "copy"),
    ];
    let total: f64 = times.iter().sum();
    let names = ["normalize", "encode", "decode", "residual", "backward", "count", "adam"];
    for (((name, time), median), (floor, bound)) in names.iter().zip(times).zip(medians).zip(floors) {
        let (of_step, of_peak) = (100.0 * time / total, 100.0 * floor / time);
        println!(
            "  {name:<10} {time:9.3} ms (median {median:9.3})  {of_step:5.1} % of the step  {of_peak:5.1} % of peak ({bound})"
        );
    }
    let median: f64 = medians.iter().sum();
    println!("  step       {total:9.3} ms (median {median:9.3})  {:.0} tokens/s", batch as f64 / total * 1e3);
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let device = Cpu::new(Some(threads)).expect("threads");
    println!("{}", device.describe());
    let peaks = device.peaks();
    println!("{peaks:.0?}");
    for (width, features, batch, l0) in SHAPES {
        let mut planted = plant(width, features, batch, l0);
        calibrate(&device, &mut planted, l0);
        let report = check(&device, threads, &planted);
        println!("D = {width}, F = {features}, B = {batch}, L0 = {:.1}", report.active as f64 / batch as f64);
        let times = Run::new(&device, &planted).time(Path::Sparse, REPEATS);
        print_step(&planted, &report, &peaks, times);
        for screen in [Screen::Int8, Screen::Bf16, Screen::F32].into_iter().filter(|screen| screen.available()) {
            let other =
                Cpu::with(Options { threads: Some(threads), screen: Some(screen), isa: None }).expect("threads");
            let encode = Run::new(&other, &planted).time(Path::Sparse, 5)[0][1];
            let rate = 2.0 * (batch * width * features) as f64 / encode / 1e6;
            println!("  encode with {} screen: {encode:.3} ms, {rate:.0} Gop/s", screen.name());
        }
    }
    crossover(&device, &peaks);
}

/// Step times of both paths as the density grows.
fn crossover(device: &Cpu, peaks: &Peaks) {
    let (width, features, batch, l0) = SHAPES[0];
    let mut planted = plant(width, features, batch, l0);
    for density in [0.05, 0.1, 0.2, 0.3, 0.4, 0.5] {
        calibrate(device, &mut planted, (density * features as f64) as usize);
        let [sparse, dense] = [Path::Sparse, Path::Dense].map(|path| Run::new(device, &planted).time(path, 5)[0]);
        let [sparse_ms, dense_ms] = [&sparse, &dense].map(|times| times.iter().sum::<f64>());
        let products = dense[1] + dense[2] + dense[4];
        let rate = 10.0 * (batch * width * features) as f64 / products / 1e6;
        println!(
            "density {density}: sparse {sparse_ms:.1} ms, dense {dense_ms:.1} ms ({rate:.0} GFLOP/s, {:.0} % of gemm); sparse {sparse:.1?}",
            100.0 * rate / peaks.gemm_gflops
        );
    }
}
