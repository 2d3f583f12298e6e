//! The CUDA kernels: the cases of every device on a GPU, where there is one, and on the emulator; the golden losses; and bugs planted
//! in the kernels.

#[path = "cuda/boundaries.rs"]
mod boundaries;

use std::process::Output;

use kernels::cuda::gpu::Gpu;
use kernels::cuda::{Cuda, Moments, Precision};
use kernels::{Device, Purpose, Shape};
use tests::cases::{self, Case, Numbers, Run, update};
use tests::control::Control;
use tests::emulator::{Emulator, Kernels, Variant, borrowed};
use tests::listing::Listing;
use tests::on_gpu::{self, Cases, EMULATED, PRECISION};
use tests::{equal_bits, golden, late, need, rounding};

use Variant::{Asan, Plain, Tsan};

/// How often the same step is made for [`a_step_repeated_on_a_gpu_gives_the_same_bits`]; 3 times by default.
const REPEATS: &str = "SAE_REPEATS";

/// The GPU, and whether a few cases are enough. None where there is no GPU, unless one was promised.
#[track_caller]
fn gpu() -> Option<(Gpu, bool)> {
    on_gpu::gpu().map(|(gpu, wanted)| (gpu, wanted.as_deref() == Some("few")))
}

/// Runs on a GPU; the tests below start it again on the emulator.
#[test]
fn cases_hold_on_a_gpu() {
    if let Ok(precision) = std::env::var(PRECISION) {
        return cases_hold_in(&precision);
    }
    // Closed again before the others open it: some GPUs admit one process at a time.
    let Some(few) = gpu().map(|(_, few)| few) else { return };
    on_gpu::in_processes("cases_hold_on_a_gpu", precisions(few).map(|(precision, ..)| precision));
}

/// What the cases run in: all precisions, or enough to reach every kind of code.
fn precisions(few: bool) -> impl Iterator<Item = (Precision, Numbers, f64)> {
    let enough = [Precision::Mixed(Moments::F32), Precision::F32, Precision::Bf16Sr(Moments::Int8)];
    PRECISIONS.into_iter().filter(move |(precision, ..)| !few || enough.contains(precision))
}

fn cases_hold_in(precision: &str) {
    let Some((gpu, few)) = gpu() else { return };
    let (precision, numbers, bytes) =
        PRECISIONS.into_iter().find(|(known, ..)| format!("{known:?}") == precision).expect("a known precision");
    let rounds_stochastically = !matches!(numbers, Numbers::F32 | Numbers::Mixed);
    let cases = match (rounds_stochastically, few) {
        (true, _) => cases::of_adam(),
        (false, true) => cases::few(),
        (false, false) => cases::all(),
    };
    let late = if rounds_stochastically { Vec::new() } else { late::all() };
    let mut listed = Cases::on(&gpu, precision);
    for (name, check) in cases.into_iter().chain(late) {
        listed.run(name, |device| check(device, numbers));
    }
    listed.run("stochastic rounding is that of the generator", |device| rounding::check(device, precision));
    listed.run("a parameter takes its bytes", |device| a_parameter_takes(device, bytes));
    listed.end();
}

/// What depends on who comes first shows in some of many repeats: places in lists and runs are given out by atomics, and the rows of
/// this batch are enough for many blocks at once, with runs of more than one chunk.
#[test]
fn a_step_repeated_on_a_gpu_gives_the_same_bits() {
    let Some((gpu, _)) = gpu() else { return };
    let repeats = std::env::var(REPEATS).map_or(3, |repeats| repeats.parse().expect("a number in SAE_REPEATS"));
    for (precision, numbers, _) in PRECISIONS {
        if ![Precision::F32, Precision::Mixed(Moments::F32), Precision::Bf16Sr(Moments::Int8)].contains(&precision) {
            // The others differ from these in nothing that has an order.
            continue;
        }
        let device = Cuda::new(&gpu, precision).expect("kernels");
        let case = Case::new(numbers, 40, 300, 1100, -1.0, 7);
        for path in cases::PATHS {
            let once = || {
                let mut run = Run::new(&device, &case);
                let reports = [0, 1].map(|step| run.step(path, case.lambda, &update(step)));
                (reports, run.state())
            };
            let first = once();
            assert!(first.0.iter().all(|report| report.ok), "{:?}", first.0);
            for repeat in 1..repeats {
                assert!(once() == first, "{precision:?}, {path:?}: repeat {repeat} of {repeats} gives other bits");
            }
        }
    }
}

/// On a GPU at a size at which it has more blocks than it can run at once; on the emulator at a small one, so that this code runs too.
#[test]
fn equal_steps_of_a_real_size() {
    let Some((gpu, _)) = gpu() else { return };
    let size = if gpu.name() == "CUDA emulator" {
        need::optional("GPUs, for twenty steps at 768 x 131072 x 8192");
        equal_bits::SMALL
    } else {
        equal_bits::FULL
    };
    let mut listings = Vec::new();
    for precision in [Precision::Mixed(Moments::F32), Precision::Bf16Sr(Moments::Int8)] {
        let mut listing = Listing::of(&format!("{precision:?}"));
        let equal_bits::Size { width, features, batch, .. } = size;
        let name = format!("twenty steps at {width} x {features} x {batch} give the same bits");
        listing.run(&name, || equal_bits::check(&Cuda::new(&gpu, precision).expect("kernels"), &size));
        listings.push(listing);
    }
    listings.into_iter().for_each(Listing::end);
}

/// Whole runs of `sae` on a GPU, against the losses of the reference in double precision.
#[test]
fn a_run_on_a_gpu_reaches_the_golden_losses() {
    if gpu().is_some() {
        reaches_the_golden_losses(&[]);
    }
}

/// Every way to keep weights and moments, how near it comes, and the bytes that a parameter takes. What the narrow ones do
/// differently lies in Adam, so a few cases hold them.
const PRECISIONS: [(Precision, Numbers, f64); 7] = [
    // What GPUs are bought for comes first.
    (Precision::Mixed(Moments::F32), Numbers::Mixed, 14.0),
    (Precision::F32, Numbers::F32, 12.0),
    (Precision::Mixed(Moments::Bf16), Numbers::Bf16, 10.0),
    // A scale for 128 columns of each moment.
    (Precision::Mixed(Moments::Int8), Numbers::Int8, 8.0 + 8.0 / 128.0),
    (Precision::Bf16Sr(Moments::F32), Numbers::Bf16, 10.0),
    (Precision::Bf16Sr(Moments::Bf16), Numbers::Bf16, 6.0),
    (Precision::Bf16Sr(Moments::Int8), Numbers::Int8, 4.0 + 8.0 / 128.0),
];

/// The biases, their moments, norms and clocks of a feature take a thousandth more at this width.
fn a_parameter_takes(device: &Cuda, bytes: f64) {
    let case = Case::new(Numbers::F32, 8, 8, 1, 0.0, 1);
    let shape = Shape { width: 4096, features: 1 << 20, ..case.shape };
    let taken = device.bytes(shape, Purpose::Training).weights as f64 / (2.0 * 4096.0 * (1 << 20) as f64);
    assert!((bytes..bytes + 0.005).contains(&taken), "{taken} bytes a parameter, not {bytes}");
}

/// This test binary with an emulated GPU.
fn on_the_emulator(emulator: &Emulator, cases: &str, seed: u64) -> Output {
    again_on(emulator, "cases_hold_on_a_gpu", seed, &[(EMULATED, cases)])
}

/// One of its tests.
fn again_on(emulator: &Emulator, test: &str, seed: u64, more: &[(&str, &str)]) -> Output {
    let own = std::env::current_exe().expect("a process knows its file");
    let usual = [(EMULATED, "few"), ("EMULATOR_CAPABILITY", "90"), ("RUST_BACKTRACE", "0")];
    emulator.run(&own, &["--exact", test, "--nocapture"], seed, &[&usual, more].concat())
}

/// Sums that are cut off, as tensor cores are known to make them, are within what the cases allow, and activations in bf16 are not. Whatever
/// fails, every case of every precision is listed.
#[test]
fn cases_allow_what_tensor_cores_do_and_no_more() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    let truncating = [("EMULATOR_TRUNCATE", "1"), (PRECISION, "Mixed(F32)")];
    holds(&again_on(&emulator, "cases_hold_on_a_gpu", 0, &truncating), "truncated sums");

    let (_copy, kernels) = ROUNDED.plant(&Kernels::of_trainer());
    let Some(emulator) = Emulator::build_with(Plain, &kernels) else { return };
    let output = on_the_emulator(&emulator, "few", 0);
    let listed = String::from_utf8_lossy(&output.stdout);
    let lines = |end: &str| listed.lines().filter(|line| line.starts_with("case ") && line.contains(end)).count();
    assert!(!output.status.success(), "a case has failed:\n{listed}");
    for precision in ["F32", "Mixed(F32)"] {
        let all = cases::few::<Cuda>().len() + late::all::<Cuda>().len() + 2;
        let failed = lines(&format!(" {precision} FAILED: "));
        assert!(failed > 0, "{precision} allows activations in bf16:\n{listed}");
        assert_eq!(failed + lines(&format!(" {precision} ok")), all, "{precision}:\n{listed}");
    }
    assert_eq!(lines(" Bf16Sr(Int8) "), cases::of_adam::<Cuda>().len() + 2, "{listed}");
}

/// What products in bf16 must not be taken for.
const ROUNDED: Control = Control {
    name: "encode: activations cut off to bf16",
    file: "encode.cu",
    find: "list[at++] = make_uint2(__float_as_uint(sum), m << 16 | f);",
    replace: "list[at++] = make_uint2(__float_as_uint(sum) & 0xffff0000u, m << 16 | f);",
    caught_by: &[Plain],
};

/// Places in a run given out by who comes first, which blocks in another order show.
const UNORDERED: Control = Control {
    name: "transpose: runs as their pairs came",
    file: "transpose.cu",
    find: "place += __shfl_sync(ALL_LANES, pair.x, other) < pair.x;",
    replace: "place += other < lane_id();",
    caught_by: &[Plain],
};

#[test]
fn twenty_steps_on_the_emulator_give_the_same_bits() {
    const TEST: &str = "equal_steps_of_a_real_size";
    let Some(emulator) = Emulator::build(Plain) else { return };
    let output = again_on(&emulator, TEST, 1, &[]);
    holds(&output, TEST);
    let kernels = Kernels::of_trainer();
    let missed = UNORDERED.missed_by(&kernels, |emulator, seed| again_on(emulator, TEST, seed, &[]));
    assert!(missed.is_empty(), "{}: not caught by {missed:?}", UNORDERED.name);
}

#[track_caller]
fn holds(output: &Output, label: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{label}:\n{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains(" Mixed(F32) ok\n"), "{label}: the cases ran");
}

#[test]
fn cases_hold_on_the_emulator() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    for (cases, seed) in [("all", 0), ("few", 1), ("few", 2), ("few", 3)] {
        holds(&on_the_emulator(&emulator, cases, seed), &format!("{cases} cases, seed {seed}"));
    }
}

#[test]
fn cases_hold_under_sanitizers() {
    for variant in [Asan, Tsan] {
        let Some(emulator) = Emulator::build(variant) else { return };
        holds(&on_the_emulator(&emulator, "few", 1), &format!("{variant:?}"));
    }
}

#[test]
fn a_run_on_the_emulator_reaches_the_golden_losses() {
    let Some(emulator) = Emulator::build(Plain) else { return };
    reaches_the_golden_losses(&borrowed(&emulator.settings(&[])));
}

fn reaches_the_golden_losses(environment: &[(&str, &str)]) {
    let few = std::env::var(EMULATED).is_ok_and(|asked| asked == "few");
    let mut listings = Vec::new();
    for (precision, moments, tolerance) in [
        ("f32", "f32", 1e-5),
        ("mixed", "f32", 1e-3),
        // Stochastic rounding moves weights apart from those of the reference, and losses by less than bf16 products do.
        ("mixed", "bf16", 1e-3),
        ("mixed", "int8", 1e-3),
        ("bf16-sr", "f32", 1e-3),
        ("bf16-sr", "bf16", 1e-3),
        ("bf16-sr", "int8", 1e-3),
    ] {
        let narrow = precision == "bf16-sr" || moments != "f32";
        if few && narrow {
            continue;
        }
        let mut listing = Listing::of(&format!("{precision}/{moments}"));
        for case in golden::CASES {
            // What the narrow ones do differently is the same on both paths, and on the emulator the dense one takes long.
            if case.name == "dense" && (few || narrow) {
                continue;
            }
            listing.run(case.name, || is_golden(case, (precision, moments), tolerance, environment));
        }
        listings.push(listing);
    }
    listings.into_iter().for_each(Listing::end);
}

/// The losses of a golden run with weights and moments in these formats are near the reference's.
fn is_golden(case: golden::Case, (precision, moments): (&str, &str), tolerance: f64, environment: &[(&str, &str)]) {
    let set = [format!("train.precision={precision}"), format!("train.moments={moments}")];
    let arguments = ["--device", "cuda", "--set", &set[0], "--set", &set[1]];
    let (committed, measured) = (golden::committed(case), golden::measure(case, &arguments, environment));
    assert_eq!(measured.len(), committed.len());
    for (step, (golden, measured)) in committed.iter().zip(&measured).enumerate() {
        let error = (golden.loss - measured.loss).abs() / golden.loss;
        assert!(error <= tolerance, "step {step}: {golden:?}, {measured:?}");
    }
}

/// Bugs in the trainer's kernels.
const CONTROLS: &[Control] = &[
    Control {
        name: "encode: the counter of hits is reset without a barrier",
        file: "encode.cu",
        find: "        if (threadIdx.x == 0) *used = 0;\n        __syncthreads();\n        if (rows == 1) {",
        replace: "        if (threadIdx.x == 0) *used = 0;\n        if (rows == 1) {",
        caught_by: &[Tsan],
    },
    Control {
        name: "encode: a lost atomic on the token's counter",
        file: "encode.cu",
        find: "const u32 place = atomicAdd(&count_b[token], 1u);",
        replace: "const u32 place = count_b[token]++;",
        caught_by: &[Tsan],
    },
    Control {
        name: "tile: a stage that has not arrived",
        file: "tile.cuh",
        find: "            copies_wait<STAGES - 2>();",
        replace: "            copies_wait<STAGES - 1>();",
        caught_by: &[Plain],
    },
    Control {
        name: "tile: pieces stored without their permutation",
        file: "tile.cuh",
        find: "const u32 m = m0 + i * 16 + block % 2 * 8, k = kk + block / 2 * 8;",
        replace: "const u32 m = m0 + i * 16 + block / 2 * 8, k = kk + block % 2 * 8;",
        caught_by: &[Plain],
    },
    Control {
        name: "transpose: a run that overruns the pairs",
        file: "transpose.cu",
        find: "token_p[from + place] = pair.x;\n            activation_p[from + place] = __uint_as_float(pair.y);\n        }\n        __syncthreads();",
        replace: "token_p[from + place + (1 << 20)] = pair.x;\n            activation_p[from + place] = __uint_as_float(pair.y);\n        }\n        __syncthreads();",
        caught_by: &[Plain, Asan],
    },
    Control {
        name: "encode: a batch behind one that was refused is not held",
        file: "encode.cu",
        find: "before && refused(before, with_gradient);",
        replace: "before && before->overflow;",
        caught_by: &[Plain],
    },
    Control {
        name: "backward: the parts of a dot product are read too early",
        file: "backward.cu",
        find: "        __syncthreads();\n        if (threadIdx.x < TOGETHER && p0",
        replace: "        if (threadIdx.x < TOGETHER && p0",
        caught_by: &[Plain, Tsan],
    },
    Control {
        name: "adam: coefficients read before they are there",
        file: "adam.cu",
        find: "of.last_update_f[f]);\n    __syncthreads();\n",
        replace: "of.last_update_f[f]);\n",
        caught_by: &[Plain, Tsan],
    },
    Control {
        name: "rounding: the same random bits at every step",
        file: "rounding.cuh",
        find: "what, (u32)step, (u32)(step >> 32),",
        replace: "what, 0, 0,",
        caught_by: &[Plain],
    },
    Control {
        name: "rounding: always down",
        file: "rounding.cuh",
        find: "(bits + random) >> 16",
        replace: "bits >> 16",
        caught_by: &[Plain],
    },
    Control {
        name: "parameter: lanes past the end of a row leave their warp",
        file: "parameter.cuh",
        find: "        const float first_scale = scale_of(moments.first),",
        replace: "        if (!place.inside) return;\n        const float first_scale = scale_of(moments.first),",
        caught_by: &[Plain],
    },
];

#[test]
fn planted_bugs_are_caught() {
    let kernels = Kernels::of_trainer();
    for control in CONTROLS {
        let missed = control.missed_by(&kernels, |emulator, seed| on_the_emulator(emulator, "few", seed));
        assert!(missed.is_empty(), "{}: not caught by {missed:?}", control.name);
    }
}
