//! Whole steps on a GPU beside their floor, what each kernel takes of one, and where the paths cross.
//!
//!     cargo bench -p benchmarks --bench step [-- [small] [--json FILE] [--ceilings FILE] [WORD…]]
//!
//! Words, of each kind all or as said where none is given:
//!
//!     b a crossing           what: steps at 768 × 131,072, at 2048 × 1,048,576, and the density at which the paths take as long
//!     tiny once              only when asked for: whether a small step holds; one step at b for a profiler to look at
//!     mixed/f32 f32/f32 …    weights and moments, as a recipe names them; mixed/f32 where none is given, `all` for all
//!     dense touched          Adam
//!     batches                other rows and L0 than 8192 and 100 too
//!
//! Steps are enqueued as a run enqueues them, none waited for before the next one, and timed by the clock from the first to the
//! end of the last: rows are copied from the host meanwhile, and no batch is read from storage. Kernels are timed in such steps,
//! between two events each, and are those of their operation: the file in kernels/cuda that holds them. An operation's rate is
//! what it must move, or for encode multiply, over the time of its kernels, and its share that of the measured ceiling. Weights go to the
//! GPU once for each way to keep them and each Adam. `small` is a shape for the emulator, where times mean nothing.

use std::collections::BTreeSet;
use std::process::ExitCode;

use benchmarks::asked::{self, Asked, Lines};
use benchmarks::ceiling::Ceiling;
use benchmarks::floor::Work;
use benchmarks::planted::{Operation, Planted, Run};
use kernels::cuda::gpu::Gpu;
use kernels::cuda::{Cost, Cuda, Launch, Moments, Precision};
use kernels::{AdamMode, Device, Dictionary, Error, Path, Purpose};
use serde_json::json;

/// As a recipe names them, the default first.
const PRECISIONS: [(&str, Precision); 7] = [
    ("mixed/f32", Precision::Mixed(Moments::F32)),
    ("mixed/bf16", Precision::Mixed(Moments::Bf16)),
    ("mixed/int8", Precision::Mixed(Moments::Int8)),
    ("bf16-sr/f32", Precision::Bf16Sr(Moments::F32)),
    ("bf16-sr/bf16", Precision::Bf16Sr(Moments::Bf16)),
    ("bf16-sr/int8", Precision::Bf16Sr(Moments::Int8)),
    ("f32/f32", Precision::F32),
];
const MODES: [(&str, AdamMode); 2] = [("dense", AdamMode::Dense), ("touched", AdamMode::Touched)];
const PARTS: [&str; 3] = ["b", "a", "crossing"];
const ALL_WORDS: [&str; 16] = [
    "b",
    "a",
    "crossing",
    "tiny",
    "once",
    "all",
    "dense",
    "touched",
    "batches",
    "mixed/f32",
    "mixed/bf16",
    "mixed/int8",
    "bf16-sr/f32",
    "bf16-sr/bf16",
    "bf16-sr/int8",
    "f32/f32",
];

/// width, features.
const B: (usize, usize) = (768, 131_072);
const A: (usize, usize) = (2048, 1_048_576);
const SMALL: (usize, usize) = (72, 136);
/// Rows and target L0; those but the first only with `batches`.
const BATCHES: [(usize, usize); 4] = [(8192, 100), (4096, 50), (8192, 50), (8192, 300)];
const SMALL_BATCHES: [(usize, usize); 2] = [(64, 8), (40, 20)];

/// width, features and rows of the search for the density where the paths cross. Where lists have no
/// room for a density, the most that they have room for is measured.
const CROSSINGS: [(usize, usize, usize); 2] = [(768, 16_384, 4096), (2048, 65_536, 4096)];
const SMALL_CROSSINGS: [(usize, usize, usize); 1] = [(72, 300, 64)];
const DENSITIES: [f64; 7] = [0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06];

/// Steps are made for about so long.
const SECONDS: f64 = 0.5;
const STEPS: std::ops::RangeInclusive<usize> = 4..=200;
/// Steps whose kernels are timed, behind one that lets the host run ahead.
const TIMED_STEPS: usize = 7;
const SMALL_TIMED_STEPS: usize = 2;

fn main() -> ExitCode {
    asked::main(&ALL_WORDS, |asked, gpu| {
        let mut lines = asked.lines()?;
        let asked_for = |word: &str| asked.words.iter().any(|asked| asked == word);
        let mut precisions: Vec<_> = PRECISIONS.into_iter().filter(|(name, _)| asked_for(name)).collect();
        if precisions.is_empty() {
            precisions =
                PRECISIONS[..if asked_for("all") || asked_for("tiny") { PRECISIONS.len() } else { 1 }].to_vec();
        }
        if asked_for("tiny") {
            return precisions.iter().try_for_each(|&precision| tiny(gpu, precision));
        }
        if asked_for("once") {
            return once(asked, gpu, precisions[0].1);
        }
        let mut parts = asked.among(&PARTS);
        if asked.small {
            // Both shapes are the same one.
            parts.retain(|&part| part != "a" || asked_for("a"));
        }
        for part in parts {
            let measured = match part {
                "b" => measure_shape(asked, gpu, (B, &precisions), &mut lines),
                "a" => measure_shape(asked, gpu, (A, &precisions), &mut lines),
                _ => {
                    let crossings = if asked.small { &SMALL_CROSSINGS[..] } else { &CROSSINGS[..] };
                    crossings.iter().try_for_each(|&shape| crossing(asked, gpu, shape, &mut lines))
                }
            };
            measured?;
        }
        Ok(())
    })
}

fn words(error: Error) -> String {
    error.to_string()
}

/// Both paths agree on a small batch; says so.
fn tiny(gpu: &Gpu, (name, precision): (&str, Precision)) -> Result<(), String> {
    let device = Cuda::new(gpu, precision).map_err(words)?;
    let planted = Planted::new(SMALL.0, SMALL.1, &SMALL_BATCHES[..1]);
    let mut run = Run::new(&device, &planted, AdamMode::Dense);
    run.load(&planted.batches[0], SMALL_BATCHES[0].1);
    let [sparse, dense] = [Path::Sparse, Path::Dense].map(|path| run.step(path).1);
    let near = |a: f64, b: f64| (a - b).abs() <= 2e-2 * b.abs();
    let agree = near(sparse.squared_error, dense.squared_error) && near(sparse.gradient_norm, dense.gradient_norm);
    if !sparse.ok || !dense.ok || !agree {
        return Err(format!("{name}: the paths disagree:\n{sparse:?}\n{dense:?}"));
    }
    println!("{name}: ok, ‖x − x̂‖² {:.4}, ‖∂‖ {:.4}", sparse.squared_error, sparse.gradient_norm);
    Ok(())
}

/// One step, behind some that are not looked at.
fn once(asked: &Asked, gpu: &Gpu, precision: Precision) -> Result<(), String> {
    let ((width, features), batch) = if asked.small { (SMALL, SMALL_BATCHES[0]) } else { (B, BATCHES[0]) };
    let device = Cuda::new(gpu, precision).map_err(words)?;
    let planted = Planted::new(width, features, &[batch]);
    let mut run = Run::new(&device, &planted, AdamMode::Dense);
    run.load(&planted.batches[0], batch.1);
    run.steps(Path::Sparse, 2);
    let mut step_s = 0.0;
    device.profile(|| step_s = run.steps(Path::Sparse, 1)).map_err(words)?;
    println!("one step, profiled if a profiler is there: {:.3} ms", step_s * 1e3);
    Ok(())
}

fn measure_shape(
    asked: &Asked,
    gpu: &Gpu,
    (shape, precisions): ((usize, usize), &[(&str, Precision)]),
    lines: &mut Lines,
) -> Result<(), String> {
    let ((width, features), batches) = if asked.small { (SMALL, &SMALL_BATCHES[..]) } else { (shape, &BATCHES[..]) };
    let batches = if asked.words.iter().any(|word| word == "batches") { batches } else { &batches[..1] };
    let planted = Planted::new(width, features, batches);
    for &(name, precision) in precisions {
        let device = Cuda::new(gpu, precision).map_err(words)?;
        println!("{}", device.describe());
        for adam in asked.among(&MODES.map(|(adam, _)| adam)) {
            let mode = if adam == MODES[0].0 { MODES[0].1 } else { MODES[1].1 };
            // Memory that was given back is there again when the GPU was waited for.
            device.wait().map_err(words)?;
            if device.bytes(planted.shape(), Purpose::Training).total() > device.room().unwrap_or(u64::MAX) {
                println!("D = {width}, F = {features}, {name}, {adam} Adam: does not fit into this GPU");
                continue;
            }
            let mut run = Run::new(&device, &planted, mode);
            for batch in &planted.batches {
                run.load(batch, batch.l0);
                let ceiling = Ceiling::measure(&device, &mut run, asked, lines)?;
                let measured = measure(&device, &mut run, (precision, mode), asked.small)?;
                measured.print((name, adam), &ceiling, lines)?;
            }
        }
    }
    Ok(())
}

struct Measured {
    work: Work,
    step_us: f64,
    /// Those of a step in their order, each with its median time.
    launches: Vec<Launch>,
    /// µs from the first launch of a step to the first of the next, kernels timed.
    timed_step_us: f64,
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
    let timed = if small { SMALL_TIMED_STEPS } else { TIMED_STEPS };
    let mut steps = || _ = run.steps(Path::Sparse, timed + 1);
    let all = device.time_launches(&mut steps).map_err(words)?;
    let each = all.len() / (timed + 1);
    let steps: Vec<&[Launch]> = all.chunks_exact(each.max(1)).skip(1).collect();
    let same = steps.iter().all(|step| step.iter().zip(steps[0]).all(|(a, b)| a.kernel == b.kernel));
    if each == 0 || each * (timed + 1) != all.len() || !same {
        return Err(format!("{} launches in {} equal steps", all.len(), timed + 1));
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let launches = (0..each)
        .map(|at| Launch { us: median(&mut steps.iter().map(|step| step[at].us).collect()), ..steps[0][at] })
        .collect();
    let timed_step_us = median(&mut steps.windows(2).map(|pair| pair[1][0].from_us - pair[0][0].from_us).collect());
    Ok(Measured { work, step_us, launches, timed_step_us })
}

impl Measured {
    fn print(&self, (name, adam): (&str, &str), ceiling: &Ceiling, lines: &mut Lines) -> Result<(), String> {
        let Measured { work, step_us, ref launches, timed_step_us } = *self;
        let (precision, moments) = name.split_once('/').unwrap_or((name, ""));
        let (width, features, rows) = (work.width, work.features, work.rows);
        let l0 = work.pairs as f64 / rows as f64;
        let floor_us = work.floor_of_step_us(ceiling);
        let of_floor = |us: f64| format!(", {:.1} % of the floor's rate ({:.3} ms)", 100.0 * us / step_us, us / 1e3);
        println!(
            "D = {width}, F = {features}, B = {rows}, L0 = {l0:.1}, {} features touched, {name}, {adam} Adam: {:.3} ms, {:.0} tokens/s{}",
            work.touched,
            step_us / 1e3,
            rows as f64 / step_us * 1e6,
            floor_us.map_or(String::new(), of_floor),
        );
        let shape = json!({
            "width": width, "features": features, "batch": rows, "l0": l0, "adam": adam, "precision": precision,
            "moments": moments,
        });
        let line = |more: serde_json::Value| {
            let mut line = shape.clone();
            more.as_object().into_iter().flatten().for_each(|(key, value)| line[key] = value.clone());
            line
        };
        lines.add(&line(json!({
            "what": "step", "step_us": step_us, "floor_us": floor_us, "tokens_per_s": rows as f64 / step_us * 1e6,
            "touched": work.touched, "timed_step_us": timed_step_us,
        })))?;
        let mut printed = BTreeSet::new();
        for of in launches.iter().map(|launch| launch.operation).filter(|operation| printed.insert(*operation)) {
            let own = || launches.iter().filter(move |launch| launch.operation == of);
            let us: f64 = own().map(|launch| launch.us).sum();
            let (cost, floor_us) = cost_and_floor(&work, of, ceiling);
            println!("  {of:<21} {us:10.1} us  {:5.1} %{}", 100.0 * us / timed_step_us, rate(of, us, cost, floor_us));
            lines.add(&line(json!({
                "what": "operation in a step", "operation": of, "us": us, "share_of_step": us / timed_step_us,
                "gbs": cost.map(|cost| cost.bytes as f64 / us / 1e3), "tflops": cost.map(|cost| cost.flop as f64 / us / 1e6),
                "share_of_ceiling": floor_us.map(|floor| floor / us),
            })))?;
            for Launch { kernel, us, .. } in own() {
                println!("    {kernel:<19} {us:10.1} us  {:5.1} %", 100.0 * us / timed_step_us);
                lines.add(&line(json!({ "what": "kernel", "operation": of, "kernel": kernel, "us": us, "share_of_step": us / timed_step_us })))?;
            }
        }
        let rest_us = timed_step_us - launches.iter().map(|launch| launch.us).sum::<f64>();
        println!("  {:<21} {rest_us:10.1} us  {:5.1} %", "between kernels", 100.0 * rest_us / timed_step_us);
        lines.add(&line(json!({ "what": "between kernels", "us": rest_us, "share_of_step": rest_us / timed_step_us })))
    }
}

/// What an operation must move and do, and its µs at least; `None` for what only stands between them.
fn cost_and_floor(work: &Work, operation: &str, ceiling: &Ceiling) -> (Option<Cost>, Option<f64>) {
    if operation == "transpose" {
        return (Some(work.cost_of_transpose()), Some(work.floor_of_transpose_us(ceiling)));
    }
    let of = Operation::ALL.into_iter().find(|of| of.name() == operation);
    (of.map(|of| work.cost(of)), of.and_then(|of| work.floor_us(of, ceiling)))
}

/// For people: of encode what it multiplies, of others what they move.
fn rate(operation: &str, us: f64, cost: Option<Cost>, floor_us: Option<f64>) -> String {
    let Some(Cost { bytes, flop }) = cost else { return String::new() };
    let rate = match operation {
        "encode" => format!("{:9.1} TFLOP/s", flop as f64 / us / 1e6),
        _ => format!("{:9.1} GB/s   ", bytes as f64 / us / 1e3),
    };
    let share = floor_us
        .map_or(" of no measured ceiling".to_owned(), |floor| format!("{:6.1} % of the ceiling", 100.0 * floor / us));
    format!("  {rate}  {share}")
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
    gpu: &Gpu,
    (width, features, rows): (usize, usize, usize),
    lines: &mut Lines,
) -> Result<(), String> {
    let device = Cuda::new(gpu, PRECISIONS[0].1).map_err(words)?;
    let planted = Planted::new(width, features, &[(rows, 50.min(features / 8))]);
    let mut run = Run::new(&device, &planted, AdamMode::Dense);
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
