//! Whole steps on a card, in every way to keep weights and moments, beside their floor; and where the paths cross.
//!
//!     cargo bench -p benchmarks --bench step [-- [small] [--json FILE]]
//!
//! Steps are enqueued as a run enqueues them, none waited for before the next one, and timed by the clock from the first to the
//! end of the last: rows are copied from the host meanwhile, and no batch is read from storage. The breakdown is that of the
//! operations by themselves, with the cache flushed before each. The floor is the sum of theirs, from rates measured in the same
//! run. The last lines say at which density a step takes as long on either path: what `Device::dense_above` should be.
//! `small` is a shape for the emulator, where times mean nothing.

use std::process::ExitCode;

use benchmarks::asked::{self, Asked, Lines};
use benchmarks::floor::Work;
use benchmarks::planted::{Operation, Planted, Run, best_and_median};
use kernels::cuda::card::Card;
use kernels::cuda::{Cuda, Moments, Precision, Stopwatch};
use kernels::{AdamMode, Device, Dictionary, Error, Path};
use serde_json::json;

/// As a recipe names them, the default first; that one is measured with every batch.
const PRECISIONS: [(&str, &str, Precision); 6] = [
    ("mixed", "f32", Precision::Mixed(Moments::F32)),
    ("mixed", "bf16", Precision::Mixed(Moments::Bf16)),
    ("mixed", "int8", Precision::Mixed(Moments::Int8)),
    ("bf16-sr", "f32", Precision::Bf16Sr(Moments::F32)),
    ("bf16-sr", "bf16", Precision::Bf16Sr(Moments::Bf16)),
    ("bf16-sr", "int8", Precision::Bf16Sr(Moments::Int8)),
];
const MODES: [(&str, AdamMode); 2] = [("dense", AdamMode::Dense), ("touched", AdamMode::Touched)];

/// width, features, (rows, target L0); precisions but the first are measured with one batch alone.
type Shapes = (usize, usize, &'static [(usize, usize)]);

const SHAPES: [Shapes; 2] = [
    (768, 131_072, &[(8192, 100), (4096, 50), (8192, 50), (8192, 300)]),
    (2048, 1_048_576, &[(8192, 100), (4096, 50), (8192, 50), (8192, 300)]),
];
const SMALL: [Shapes; 1] = [(72, 300, &[(64, 8), (40, 20)])];

/// width, features and rows of the search for the density where the paths cross. Where lists have no
/// room for a density, the most that they have room for is measured.
const CROSSINGS: [(usize, usize, usize); 2] = [(768, 16_384, 4096), (2048, 65_536, 4096)];
const SMALL_CROSSINGS: [(usize, usize, usize); 1] = [(72, 300, 64)];
const DENSITIES: [f64; 7] = [0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06];

/// Steps are made for about so long.
const SECONDS: f64 = 0.5;
const STEPS: std::ops::RangeInclusive<usize> = 4..=200;
const REPEATS: usize = 5;

fn main() -> ExitCode {
    asked::main(|asked, card| {
        let mut lines = asked.lines()?;
        let (shapes, crossings) = match asked.small {
            true => (&SMALL[..], &SMALL_CROSSINGS[..]),
            false => (&SHAPES[..], &CROSSINGS[..]),
        };
        for shapes in shapes {
            measure_shapes(asked, card, shapes, &mut lines)?;
        }
        crossings.iter().try_for_each(|&shape| crossing(asked, card, shape, &mut lines))
    })
}

fn words(error: Error) -> String {
    error.to_string()
}

fn measure_shapes(asked: &Asked, card: &Card, shapes: &Shapes, lines: &mut Lines) -> Result<(), String> {
    let &(width, features, batches) = shapes;
    let planted = Planted::new(width, features, batches);
    for (at, (precision, moments, numbers)) in PRECISIONS.into_iter().enumerate() {
        let device = Cuda::new(card, numbers).map_err(words)?;
        let peaks = device.peaks(asked.small).map_err(words)?;
        println!("{}", device.describe());
        for (adam, mode) in MODES {
            let shape = planted.shape(mode);
            // Memory that was given back is there again when the card was waited for.
            device.wait().map_err(words)?;
            if device.bytes(shape).total() > device.room().unwrap_or(u64::MAX) {
                println!("D = {width}, F = {features}, {adam} Adam: does not fit into this card");
                continue;
            }
            let mut run = Run::new(&device, &planted, shape);
            let measured = if at == 0 { planted.batches.len() } else { 1 };
            for batch in &planted.batches[..measured] {
                run.load(batch, batch.l0);
                let Measured { work, step_us, operations } = measure(&device, &mut run, (numbers, mode), asked.small)?;
                let floor_us = work.floor_us(&peaks);
                let (rows, l0) = (work.rows, work.pairs as f64 / work.rows as f64);
                println!(
                    "D = {width}, F = {features}, B = {rows}, L0 = {l0:.1}, {adam} Adam: {:.3} ms, {:.0} tokens/s, {:.1} % of the floor's rate ({:.3} ms)",
                    step_us / 1e3,
                    rows as f64 / step_us * 1e6,
                    100.0 * floor_us / step_us,
                    floor_us / 1e3,
                );
                let all: f64 = operations.iter().map(|(_, us)| us).sum();
                let share = |(operation, us): &(Operation, f64)| {
                    format!("{} {:.3} ms ({:.0} %)", operation.name(), us / 1e3, 100.0 * us / all)
                };
                println!("  {}", operations.iter().map(share).collect::<Vec<_>>().join("  "));
                let operations: serde_json::Map<_, _> =
                    operations.iter().map(|(operation, us)| (operation.name().to_owned(), json!(us))).collect();
                lines.add(&json!({
                    "what": "step", "width": width, "features": features, "batch": rows, "l0": l0, "adam": adam,
                    "precision": precision, "moments": moments, "step_us": step_us, "floor_us": floor_us,
                    "tokens_per_s": rows as f64 / step_us * 1e6, "touched": work.touched, "operations_us": operations,
                }))?;
            }
        }
    }
    Ok(())
}

struct Measured {
    work: Work,
    step_us: f64,
    /// Best of each.
    operations: Vec<(Operation, f64)>,
}

fn measure(
    device: &Cuda,
    run: &mut Run<'_, Cuda>,
    (precision, mode): (Precision, AdamMode),
    small: bool,
) -> Result<Measured, String> {
    let report = run.step(Path::Sparse).1;
    if !report.ok {
        return Err(format!("a step was refused: {report:?}"));
    }
    let (width, features) = (run.dictionary.shape().width, run.dictionary.shape().features);
    let (rows, pairs, touched) = (report.rows, report.active as usize, run.touched());
    let work = Work { precision, mode, width, features, rows, pairs, touched };
    let step_us = step_us(run, Path::Sparse, small);
    let mut watch = Stopwatch::new(device, small).map_err(words)?;
    let mut of_one = |operation: Operation| {
        for _ in 0..REPEATS {
            // A batch has its runs made once: backward's time is to hold that.
            if operation == Operation::Backward {
                let before = [Operation::Encode, Operation::Decode, Operation::Residual];
                before.into_iter().for_each(|operation| run.perform(operation, Path::Sparse));
            }
            watch.lap(|| run.perform(operation, Path::Sparse))?;
        }
        watch.take().map(|times| (operation, best_and_median(&times).0))
    };
    let operations = Operation::ALL.into_iter().map(&mut of_one).collect::<Result<_, Error>>().map_err(words)?;
    Ok(Measured { work, step_us, operations })
}

/// µs of one of several steps in a row.
fn step_us(run: &mut Run<'_, Cuda>, path: Path, small: bool) -> f64 {
    let first = run.steps(path, 2) / 2.0;
    let steps = if small { 3 } else { ((SECONDS / first) as usize).clamp(*STEPS.start(), *STEPS.end()) };
    run.steps(path, steps) / steps as f64 * 1e6
}

/// Steps of rising density on the sparse path, until they take as long as one on the dense path.
fn crossing(
    asked: &Asked,
    card: &Card,
    (width, features, rows): (usize, usize, usize),
    lines: &mut Lines,
) -> Result<(), String> {
    let device = Cuda::new(card, PRECISIONS[0].2).map_err(words)?;
    let planted = Planted::new(width, features, &[(rows, 50.min(features / 8))]);
    let mut run = Run::new(&device, &planted, planted.shape(AdamMode::Dense));
    let mut before: Option<(f64, f64)> = None;
    for target in DENSITIES {
        let l0 = run.load(&planted.batches[0], (target * features as f64) as usize);
        let density = l0 / features as f64;
        if before.is_some_and(|(at, _)| density <= at) {
            // The lists have no room for more.
            break;
        }
        let [sparse, dense] = [Path::Sparse, Path::Dense].map(|path| step_us(&mut run, path, asked.small));
        println!(
            "D = {width}, F = {features}, B = {rows}, density {density:.4}: sparse {:.3} ms, dense {:.3} ms",
            sparse / 1e3,
            dense / 1e3
        );
        lines.add(&json!({
            "what": "density", "width": width, "features": features, "batch": rows, "density": density,
            "sparse_us": sparse, "dense_us": dense,
        }))?;
        let (excess, assumed) = (sparse - dense, device.dense_above());
        if excess >= 0.0 {
            let crossing = before.map_or(density, |(at, less)| at + (density - at) * less / (less - excess));
            println!("the paths cross at {crossing:.4}; Device::dense_above says {assumed}");
            return lines.add(&json!({
                "what": "crossing", "width": width, "features": features, "batch": rows, "density": crossing,
                "dense_above": assumed,
            }));
        }
        before = Some((density, excess));
    }
    println!(
        "the paths do not cross below {:.4}; Device::dense_above says {}",
        before.map_or(0.0, |(at, _)| at),
        device.dense_above()
    );
    Ok(())
}
