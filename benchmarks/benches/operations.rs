//! Time of each operation of a step on a GPU, beside its floor and a naive version.
//!
//!     cargo bench -p benchmarks --bench operations [-- [small] [--json FILE] [--ceilings FILE]]
//!
//! Times are between two events on the GPU, with the cache flushed before and everything enqueued ahead, so they hold no
//! launch from the host; best and median of the repeats. normalize waits for the copy of its rows from the host, some of which goes
//! on while the cache is flushed, and which a run hides behind the step before. GB/s and TFLOP/s follow from each operation's model of traffic and work, and the share is that of
//! its floor, by the rates of a copy and of cuBLAS. Nothing is timed before the sparse path agrees with the dense one, and each operation with the naive version.
//!
//! Naive versions (naive.cu): a thread an output, with all of a written, for encode (of some tokens: its time is then scaled to
//! all of them); a block a token for decode; atomics into matrices like the weights for backward; dense Adam a tensor at a time.
//! `small` is a shape for the emulator, where times mean nothing.

use std::process::ExitCode;

use benchmarks::asked::{self, Asked, Lines};
use benchmarks::ceiling::Ceiling;
use benchmarks::floor::Work;
use benchmarks::planted::{Operation, Planted, Run, UPDATE, best_and_median};
use kernels::cuda::gpu::Gpu;
use kernels::cuda::naive::Naive;
use kernels::cuda::{Cost, Cuda, Moments, Precision, Stopwatch};
use kernels::{AdamMode, AdamUpdate, Device, Dictionary, Error, LearningRate, Moment, Path, Purpose, Tensor, Training};
use serde_json::json;

const PRECISION: Precision = Precision::Mixed(Moments::F32);
const REPEATS: usize = 9;
/// Of what takes seconds.
const NAIVE_REPEATS: usize = 3;
/// Tokens of the naive encode.
const NAIVE_TOKENS: usize = 64;
/// Tokens whose results are compared.
const COMPARED: usize = 16;
/// Largest difference from the naive version, of the largest value: both sum products of bf16 in binary32, in other orders.
const TOLERANCE: f64 = 1e-3;

/// A dictionary and its batches: width, features, (rows, target L0).
type Shapes = (usize, usize, &'static [(usize, usize)]);

const SHAPES: [Shapes; 2] = [
    (768, 131_072, &[(4096, 50), (8192, 100), (8192, 300)]),
    (2048, 1_048_576, &[(4096, 50), (8192, 100), (8192, 300)]),
];
const SMALL: [Shapes; 1] = [(72, 300, &[(64, 8), (40, 20)])];

fn main() -> ExitCode {
    asked::main(&[], |asked, gpu| {
        let mut lines = asked.lines()?;
        measure_all(asked, gpu, &mut lines)
    })
}

fn measure_all(asked: &Asked, gpu: &Gpu, lines: &mut Lines) -> Result<(), String> {
    let words = |error: Error| error.to_string();
    let device = Cuda::beside_naive(gpu, PRECISION).map_err(words)?;
    println!("{}", device.describe());
    for &(width, features, batches) in if asked.small { &SMALL[..] } else { &SHAPES[..] } {
        let planted = Planted::new(width, features, batches);
        let shape = planted.shape();
        // Memory that was given back is there again when the GPU was waited for.
        device.wait().map_err(words)?;
        let room = device.room().unwrap_or(u64::MAX);
        let bytes = device.bytes(shape, Purpose::Training).total();
        if bytes > room {
            println!("D = {width}, F = {features}: does not fit into this GPU");
            continue;
        }
        let mut run = Run::new(&device, &planted, AdamMode::Dense);
        let mut bench =
            Bench { asked, device: &device, watch: Stopwatch::new(&device, asked.small).map_err(words)?, lines };
        let fits = bytes + Naive::bytes(shape, NAIVE_TOKENS) + (1 << 30) < room;
        let mut naive = if fits { Some(Naive::new(&device, shape, NAIVE_TOKENS).map_err(words)?) } else { None };
        if naive.is_none() {
            println!("D = {width}, F = {features}: no room for naive versions");
        }
        for batch in &planted.batches {
            run.load(batch, batch.l0);
            bench.measure(&mut run, naive.as_mut(), batch.rows)?;
        }
    }
    Ok(())
}

struct Bench<'a> {
    asked: &'a Asked,
    device: &'a Cuda,
    watch: Stopwatch,
    lines: &'a mut Lines,
}

/// µs.
struct Times {
    best: f64,
    median: f64,
}

impl Bench<'_> {
    fn measure(&mut self, run: &mut Run<'_, Cuda>, naive: Option<&mut Naive>, rows: usize) -> Result<(), String> {
        let (_, dense) = run.step(Path::Dense);
        let (_, sparse) = run.step(Path::Sparse);
        let near = |a: f64, b: f64| (a - b).abs() <= 2e-2 * b.abs();
        let agree = near(sparse.squared_error, dense.squared_error) && near(sparse.l1, dense.l1);
        if !sparse.ok || !agree || !near(sparse.gradient_norm, dense.gradient_norm) {
            return Err(format!("the paths disagree:\n{sparse:?}\n{dense:?}"));
        }
        let (width, features) = (run.dictionary.shape().width, run.dictionary.shape().features);
        let (pairs, touched) = (sparse.active as usize, run.touched());
        let work = Work { precision: PRECISION, mode: AdamMode::Dense, width, features, rows, pairs, touched };
        let l0 = pairs as f64 / rows as f64;
        println!("D = {width}, F = {features}, B = {rows}, L0 = {l0:.1}, {touched} features touched");
        let ceiling = Ceiling::measure(self.device, run, self.asked, self.lines)?;
        let naive_us = naive.map(|naive| self.naive(run, naive, rows)).transpose()?;
        let shape = json!({ "what": "operation", "width": width, "features": features, "batch": rows, "l0": l0 });
        for operation in Operation::ALL {
            if operation == Operation::Backward {
                let times = self.transpose(run)?;
                let floor_us = Some(work.floor_of_transpose_us(&ceiling));
                self.print("transpose", &times, work.cost_of_transpose(), (floor_us, None), &shape)?;
            }
            let times = self.repeat(REPEATS, || run.perform(operation, Path::Sparse))?;
            let naive_us = naive_us.as_ref().and_then(|of| of.iter().find(|(of, _)| *of == operation));
            let beside = (work.floor_us(operation, &ceiling), naive_us.map(|(_, us)| *us));
            self.print(operation.name(), &times, work.cost(operation), beside, &shape)?;
        }
        Ok(())
    }

    fn repeat(&mut self, repeats: usize, mut operation: impl FnMut()) -> Result<Times, String> {
        operation();
        (0..repeats).try_for_each(|_| self.watch.time(&mut operation)).map_err(|error| error.to_string())?;
        self.take()
    }

    fn take(&mut self) -> Result<Times, String> {
        let (best, median) = best_and_median(&self.watch.take().map_err(|error| error.to_string())?);
        Ok(Times { best, median })
    }

    /// Runs are made once a batch, so every repeat begins one.
    fn transpose(&mut self, run: &mut Run<'_, Cuda>) -> Result<Times, String> {
        for _ in 0..REPEATS {
            for operation in [Operation::Encode, Operation::Decode, Operation::Residual] {
                run.perform(operation, Path::Sparse);
            }
            self.watch.time(|| run.dictionary.need_runs()).map_err(|error| error.to_string())?;
        }
        self.take()
    }

    /// µs of the naive versions of a batch on which a step was made, after a comparison with what that gave.
    fn naive(
        &mut self,
        run: &mut Run<'_, Cuda>,
        naive: &mut Naive,
        rows: usize,
    ) -> Result<Vec<(Operation, f64)>, String> {
        let words = |error: Error| error.to_string();
        let tokens = COMPARED.min(rows);
        let (of, x) = run.parts();
        let encode = self.repeat(NAIVE_REPEATS, || naive.encode(of, x))?.best;
        agrees("encode", naive.differs_in_encode(of, tokens).map_err(words)?)?;
        let decode = self.repeat(NAIVE_REPEATS, || naive.decode(of, x))?.best;
        agrees("decode", naive.differs_in_decode(of, tokens).map_err(words)?)?;
        let backward = self.repeat(NAIVE_REPEATS, || naive.backward(of, x))?.best;
        agrees("backward", naive.differs_in_backward(of).map_err(words)?)?;
        agrees("adam", differs_in_adam(run, naive).map_err(words)?)?;
        let adam = self.repeat(NAIVE_REPEATS, || naive.adam(run.parts().0, &UPDATE))?.best;
        let share = rows as f64 / NAIVE_TOKENS.min(rows) as f64;
        Ok(vec![
            (Operation::Encode, encode * share),
            (Operation::Decode, decode),
            (Operation::Backward, backward),
            (Operation::Adam, adam),
        ])
    }

    fn print(
        &mut self,
        name: &str,
        times: &Times,
        cost: Cost,
        (floor_us, naive_us): (Option<f64>, Option<f64>),
        shape: &serde_json::Value,
    ) -> Result<(), String> {
        let Times { best, median } = *times;
        let (gbs, tflops) = (cost.bytes as f64 / best / 1e3, cost.flop as f64 / best / 1e6);
        let share = floor_us.map(|us| us / best);
        let of_floor = share.map_or(String::new(), |share| format!("  {:5.1} % of the floor's rate", 100.0 * share));
        let of_naive = naive_us.map_or(String::new(), |us| format!("  {:7.2} x naive", us / best));
        println!(
            "  {name:<10} {best:11.1} us (median {median:11.1})  {gbs:8.1} GB/s  {tflops:8.2} TFLOP/s{of_floor}{of_naive}"
        );
        let mut line = shape.clone();
        for (key, value) in [
            ("operation", json!(name)),
            ("best_us", json!(best)),
            ("median_us", json!(median)),
            ("gbs", json!(gbs)),
            ("tflops", json!(tflops)),
            ("share_of_floor", json!(share)),
            ("naive_us", json!(naive_us)),
        ] {
            line[key] = value;
        }
        self.lines.add(&line)
    }
}

fn agrees(operation: &str, difference: f64) -> Result<(), String> {
    if difference <= TOLERANCE {
        return Ok(());
    }
    Err(format!("{operation} differs from the naive version by {difference:.2e} of the largest value: not timed"))
}

/// The largest difference in weights and moments of some features after the same update, as a share of the largest value.
/// Leaves these as they were, and all others one or two updates further.
fn differs_in_adam(run: &mut Run<'_, Cuda>, naive: &mut Naive) -> Result<f64, Error> {
    let update = AdamUpdate { lr: LearningRate::constant(1e-3), ..UPDATE };
    let (of, x) = run.parts();
    let before = some_rows(of)?;
    of.adam(x, &update);
    let own = some_rows(of)?;
    write_rows(of, &before);
    naive.adam(of, &update);
    let others = some_rows(of)?;
    write_rows(of, &before);
    let mut difference = 0.0_f64;
    for ((own, other), before) in own.iter().zip(&others).zip(&before) {
        let magnitude = own.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let changed = own.iter().zip(before).any(|(a, b)| a != b);
        for (own, other) in own.iter().zip(other) {
            let of_largest = f64::from((own - other).abs()) / f64::from(magnitude);
            // What was not updated at all, or is not a number, is as far off as can be.
            difference = difference.max(if changed && !of_largest.is_nan() { of_largest } else { f64::INFINITY });
        }
    }
    Ok(difference)
}

/// Tensors and, where one is named, which of their moments.
const ARRAYS: [(Tensor, Option<Moment>); 6] = [
    (Tensor::EncoderWeight, None),
    (Tensor::EncoderWeight, Some(Moment::First)),
    (Tensor::EncoderWeight, Some(Moment::Second)),
    (Tensor::DecoderWeight, None),
    (Tensor::DecoderWeight, Some(Moment::First)),
    (Tensor::DecoderWeight, Some(Moment::Second)),
];
/// The first features are those that fire most.
const ROWS: std::ops::Range<usize> = 0..64;

fn some_rows(of: &impl Training) -> Result<Vec<Vec<f32>>, Error> {
    let read = |(tensor, moment): (Tensor, Option<Moment>)| {
        let mut values = vec![0.0; ROWS.len() * of.shape().width];
        match moment {
            None => of.read(tensor, ROWS, &mut values),
            Some(moment) => of.read_moment(tensor, moment, ROWS, &mut values),
        }
        .map(|()| values)
    };
    ARRAYS.into_iter().map(read).collect()
}

fn write_rows(of: &mut impl Training, values: &[Vec<f32>]) {
    for ((tensor, moment), values) in ARRAYS.into_iter().zip(values) {
        match moment {
            None => of.write(tensor, ROWS, values),
            Some(moment) => of.write_moment(tensor, moment, ROWS, values),
        }
    }
}
