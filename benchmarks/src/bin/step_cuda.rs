//! Time of each operation of a training step on a card, beside its floor.
//!
//!     cargo run --release -p benchmarks --bin step_cuda [small]
//!
//! The floor of an operation is the larger of the bytes that it must move over the card's rate of copying and the operations
//! that it must do over the card's rate of multiplying; both rates are measured here, in the same run: a copy of 1 GiB on the
//! card, and the dense path's product of bf16 matrices by the same code. Nothing is timed before the sparse path agrees with
//! the dense path. `small` is a shape for the emulator, where times mean nothing.

use benchmarks::planted::{OPERATIONS, Planted, Run, calibrate};
use kernels::cuda::card::{Card, Options};
use kernels::cuda::{Cost, Cuda, Moments, Precision, cost};
use kernels::{Device, Path, Shape};

/// width, features, batch, target L0.
const SHAPES: [(usize, usize, usize, usize); 6] = [
    (768, 131_072, 4096, 50),
    (768, 131_072, 8192, 100),
    (768, 131_072, 8192, 300),
    (2048, 1_048_576, 4096, 50),
    (2048, 1_048_576, 8192, 100),
    (2048, 1_048_576, 8192, 300),
];
const SMALL: [(usize, usize, usize, usize); 1] = [(72, 300, 64, 8)];
const REPEATS: usize = 9;

fn main() {
    let small = std::env::args().nth(1).is_some_and(|argument| argument == "small");
    let card = Card::open(0, Options::from_environment()).unwrap_or_else(|error| panic!("{error}"));
    let device = Cuda::new(&card, Precision::Mixed(Moments::F32)).unwrap_or_else(|error| panic!("{error}"));
    println!("{}", device.describe());
    let peaks = device.peaks(small).unwrap_or_else(|error| panic!("{error}"));
    println!("copy {:.0} GB/s, bf16 products {:.1} TFLOP/s", peaks.copy_gbs, peaks.product_gflops / 1e3);
    for &(width, features, batch, l0) in if small { &SMALL[..] } else { &SHAPES[..] } {
        let mut planted = Planted::new(width, features, batch, l0);
        if device.room().is_some_and(|room| device.bytes(planted.shape).total() > room) {
            println!("D = {width}, F = {features}, B = {batch}: does not fit into this card");
            continue;
        }
        calibrate(&device, &mut planted, l0);
        measure(&device, &planted, peaks.copy_gbs, peaks.product_gflops);
    }
}

fn measure(device: &Cuda, planted: &Planted, copy_gbs: f64, product_gflops: f64) {
    let Shape { width, features, batch, .. } = planted.shape;
    let sparse = Run::new(device, planted).step(Path::Sparse).1;
    let dense = Run::new(device, planted).step(Path::Dense).1;
    let near = |a: f64, b: f64| (a - b).abs() <= 2e-2 * b.abs();
    assert!(sparse.ok && near(sparse.squared_error, dense.squared_error), "{sparse:?}\n{dense:?}");
    assert!(near(sparse.gradient_norm, dense.gradient_norm) && near(sparse.l1, dense.l1), "{sparse:?}\n{dense:?}");
    let pairs = sparse.active as usize;
    println!("D = {width}, F = {features}, B = {batch}, L0 = {:.1}", pairs as f64 / batch as f64);
    // Dense Adam updates every row.
    let (precision, touched) = (Precision::Mixed(Moments::F32), features);
    let rows = Cost { bytes: (8 * batch * width) as u64, flop: 0 };
    let transposed = cost::transpose(features, pairs);
    let backward = cost::backward(precision, width, pairs, touched);
    let again = cost::adam(precision, width, touched);
    let floors = [
        rows,
        cost::encode(precision, batch, features, width, pairs),
        cost::decode(precision, batch, width, pairs),
        rows,
        Cost { bytes: backward.bytes + transposed.bytes, ..backward },
        rows,
        Cost { bytes: again.bytes + backward.bytes, flop: again.flop + backward.flop },
    ];
    let [best, median] = Run::new(device, planted).time(Path::Sparse, REPEATS);
    let mut floor_ms = 0.0;
    for (((name, best), median), Cost { bytes, flop }) in OPERATIONS.iter().zip(best).zip(median).zip(floors) {
        let floor = (bytes as f64 / copy_gbs / 1e6).max(flop as f64 / product_gflops / 1e6);
        floor_ms += floor;
        let (gbs, tflops) = (bytes as f64 / best / 1e6, flop as f64 / best / 1e9);
        println!(
            "  {name:<10} {best:9.3} ms (median {median:9.3})  {:5.1} % of floor  {gbs:8.1} GB/s  {tflops:8.2} TFLOP/s",
            100.0 * floor / best
        );
    }
    let total: f64 = best.iter().sum();
    let rate = batch as f64 / total * 1e3;
    println!(
        "  step       {total:9.3} ms, floor {floor_ms:.3} ms: {:.1} %  {rate:.0} tokens/s",
        100.0 * floor_ms / total
    );
}
