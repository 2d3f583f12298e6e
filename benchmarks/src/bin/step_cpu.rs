//! Time of each operation of a training step on the processor, as a share of what the machine can do.
//!
//!     cargo run --release -p benchmarks --bin step_cpu [threads]
//!
//! Data are planted: a token is a sum of a few of the true directions (Zipf frequencies) and noise, and W_enc points
//! near them; one bias makes L0 about right. Traffic and work are modelled as each operation's file states them. Nothing
//! is timed before the sparse path agrees with the dense path and every screen gives the same bits.

use benchmarks::planted::{Operation, Planted, Run};
use kernels::cpu::{Cpu, Options, Peaks, ScreenDtype};
use kernels::{AdamMode, Device, Path, Report};

/// width, features, batch, target L0.
const SHAPES: [(usize, usize, usize, usize); 3] =
    [(384, 4096, 2048, 40), (384, 16384, 1024, 50), (768, 32768, 2048, 50)];
const REPEATS: usize = 9;

/// Panics when the paths or the screens disagree.
fn check(run: &mut Run<'_, Cpu>, threads: usize, planted: &Planted) -> Report {
    let (_, sparse) = run.step(Path::Sparse);
    let (_, dense) = run.step(Path::Dense);
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
    assert!(near(sparse.squared_error, dense.squared_error) && near(sparse.gradient_norm, dense.gradient_norm));
    assert!(near(sparse.l1, dense.l1) && sparse.ok);
    for screen in
        [ScreenDtype::Int8, ScreenDtype::Bf16, ScreenDtype::F32].into_iter().filter(|screen| screen.available())
    {
        let other = Cpu::with(Options { threads: Some(threads), screen: Some(screen), isa: None }).expect("threads");
        let mut run = Run::new(&other, planted, AdamMode::Dense);
        run.load(&planted.batches[0], planted.batches[0].l0);
        assert!(run.step(Path::Sparse).1 == sparse, "{screen:?} gives the same bits");
    }
    sparse
}

/// Shares are of the best times: peaks are the best of several tries too, and other load on the machine spoils medians.
fn print_step(planted: &Planted, report: &Report, peaks: &Peaks, [times, medians]: [[f64; 7]; 2]) {
    let (width, features, batch) = (planted.width, planted.features, report.rows);
    let (bdf, n) = ((batch * width * features) as f64, report.active as f64);
    let nd = n * width as f64;
    let (fma, narrow) = (peaks.fma_gflops, peaks.int8_gops.or(peaks.bf16_gflops).unwrap_or(peaks.gemm_gflops));
    let bytes_of_rows = 4.0 * (batch * width) as f64;
    // Least time in ms, and what bounds it.
    let floors = [
        (1.5 * bytes_of_rows / peaks.copy_gbs / 1e6, "copy"),
        (2.0 * bdf / narrow / 1e6 + 2.0 * nd / fma / 1e6, "GEMMs"),
        (2.0 * nd / fma / 1e6, "fma"),
        (3.0 * bytes_of_rows / peaks.copy_gbs / 1e6, "copy"),
        (6.0 * nd / fma / 1e6, "fma"),
        (bytes_of_rows / peaks.copy_gbs / 1e6, "copy"),
        (25.0 * 2.0 * (width * features) as f64 / peaks.copy_gbs / 1e6, "copy"),
    ];
    let total: f64 = times.iter().sum();
    for (((operation, time), median), (floor, bound)) in Operation::ALL.iter().zip(times).zip(medians).zip(floors) {
        let (of_step, of_peak) = (100.0 * time / total, 100.0 * floor / time);
        println!(
            "  {:<10} {time:9.3} ms (median {median:9.3})  {of_step:5.1} % of the step  {of_peak:5.1} % of peak ({bound})",
            operation.name()
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
        let planted = Planted::new(width, features, &[(batch, l0)]);
        let mut run = Run::new(&device, &planted, AdamMode::Dense);
        run.load(&planted.batches[0], l0);
        let report = check(&mut run, threads, &planted);
        println!("D = {width}, F = {features}, B = {batch}, L0 = {:.1}", report.active as f64 / batch as f64);
        print_step(&planted, &report, &peaks, run.time(Path::Sparse, REPEATS));
        for screen in
            [ScreenDtype::Int8, ScreenDtype::Bf16, ScreenDtype::F32].into_iter().filter(|screen| screen.available())
        {
            let other =
                Cpu::with(Options { threads: Some(threads), screen: Some(screen), isa: None }).expect("threads");
            let mut run = Run::new(&other, &planted, AdamMode::Dense);
            run.load(&planted.batches[0], l0);
            let encode = run.time(Path::Sparse, 5)[0][1];
            let rate = 2.0 * (batch * width * features) as f64 / encode / 1e6;
            println!("  encode with {} screen: {encode:.3} ms, {rate:.0} Gop/s", screen.name());
        }
    }
    crossover(&device, &peaks);
}

/// Step times of both paths as the density grows.
fn crossover(device: &Cpu, peaks: &Peaks) {
    let (width, features, batch, l0) = SHAPES[0];
    let planted = Planted::new(width, features, &[(batch, l0)]);
    let mut run = Run::new(device, &planted, AdamMode::Dense);
    for density in [0.05, 0.1, 0.2, 0.3, 0.4, 0.5] {
        run.load(&planted.batches[0], (density * features as f64) as usize);
        let [sparse, dense] = [Path::Sparse, Path::Dense].map(|path| run.time(path, 5)[0]);
        let [sparse_ms, dense_ms] = [&sparse, &dense].map(|times| times.iter().sum::<f64>());
        let gemms = dense[1] + dense[2] + dense[4];
        let rate = 10.0 * (batch * width * features) as f64 / gemms / 1e6;
        println!(
            "density {density}: sparse {sparse_ms:.1} ms, dense {dense_ms:.1} ms ({rate:.0} GFLOP/s, {:.0} % of gemm); sparse {sparse:.1?}",
            100.0 * rate / peaks.gemm_gflops
        );
    }
}
