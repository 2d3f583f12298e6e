//! Sizes at which a loop makes its second pass, and numbers at which a term shows, on a GPU and on the emulator (tests/edges.rs has the
//! processors); with bugs that only these cases find.

use std::process::Output;

use kernels::cuda::{Cuda, Moments, Precision};
use tests::cases::{Check, Numbers, boundaries, terms};
use tests::control::Control;
use tests::emulator::{Emulator, Kernels, Variant};
use tests::on_gpu::{self, Cases, EMULATED, PRECISION};

/// The one that needs a GPU, as this program calls it.
const TEST: &str = "boundaries::boundaries_hold_on_a_gpu";

/// Runs on a GPU; the tests below start it again on the emulator.
#[test]
fn boundaries_hold_on_a_gpu() {
    if let Ok(precision) = std::env::var(PRECISION) {
        return boundaries_hold_in(&precision);
    }
    // Closed again before the others open it.
    let Some(wanted) = on_gpu::gpu().map(|(_, wanted)| wanted) else { return };
    let some = PRECISIONS.into_iter().filter(|(_, numbers)| !cases_of(*numbers, wanted.as_deref()).is_empty());
    let some: Vec<Precision> = some.map(|(precision, _)| precision).collect();
    assert!(!some.is_empty(), "{wanted:?} begins no case");
    on_gpu::in_processes(TEST, some.into_iter());
}

fn boundaries_hold_in(precision: &str) {
    let Some((gpu, wanted)) = on_gpu::gpu() else { return };
    let known = PRECISIONS.into_iter().find(|(known, _)| format!("{known:?}") == precision);
    let (precision, numbers) = known.expect("a known precision");
    let mut listed = Cases::on(&gpu, precision);
    for (name, check) in cases_of(numbers, wanted.as_deref()) {
        listed.run(name, |device| check(device, numbers));
    }
    listed.end();
}

/// All cases, or those whose names begin with what is wanted.
fn cases_of(numbers: Numbers, wanted: Option<&str>) -> Vec<(&'static str, Check<Cuda>)> {
    let mut cases: Vec<(&str, Check<Cuda>)> = match numbers {
        Numbers::F32 => boundaries::all().into_iter().chain(boundaries::of_gpus()).chain(terms::all()).collect(),
        // Runs and scans are the same code, and here large ones take long.
        Numbers::Mixed => boundaries::all().into_iter().chain(terms::all()).collect(),
        Numbers::Bf16 | Numbers::Int8 => terms::of_rounded(),
    };
    cases.retain(|(name, _)| wanted.is_none_or(|wanted| wanted == "all" || name.starts_with(wanted)));
    cases
}

/// What the others do differently lies in how they round, see tests/src/rounding.rs.
const PRECISIONS: [(Precision, Numbers); 4] = [
    (Precision::F32, Numbers::F32),
    (Precision::Mixed(Moments::F32), Numbers::Mixed),
    (Precision::Mixed(Moments::Int8), Numbers::Int8),
    (Precision::Bf16Sr(Moments::Bf16), Numbers::Bf16),
];

fn on_the_emulator(emulator: &Emulator, cases: &str) -> Output {
    let own = std::env::current_exe().expect("a process knows its file");
    let more = [(EMULATED, cases), ("EMULATOR_CAPABILITY", "90"), ("RUST_BACKTRACE", "0")];
    emulator.run(&own, &["--exact", TEST, "--nocapture"], 0, &more)
}

#[track_caller]
fn holds(output: &Output, case: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains(case), "{case}: it ran");
}

#[test]
fn boundaries_hold_on_the_emulator() {
    let Some(emulator) = Emulator::build(Variant::Plain) else { return };
    holds(&on_the_emulator(&emulator, "all"), " Mixed(F32) ok\n");
}

/// Bugs that other cases have not noticed, and the case that does.
const CONTROLS: [(Control, &str); 5] = [
    (
        Control {
            name: "encode: a sum of 0 is a hit",
            file: "encode.cu",
            find: "if (is_active(sum)) list[at++] =",
            replace: "if (sum >= 0) list[at++] =",
            caught_by: &[Variant::Plain],
        },
        "a sum of exactly 0",
    ),
    (
        Control {
            name: "gradient: a run of exactly a chunk has no sum",
            file: "gradient.cuh",
            find: "if (to - from <= CHUNK) return sum_pairs",
            replace: "if (to - from < CHUNK) return sum_pairs",
            caught_by: &[Variant::Plain],
        },
        "runs of every length",
    ),
    (
        Control {
            name: "parameter: a second moment becomes 0",
            file: "parameter.cuh",
            find: "const u32 least = v > 0 && second_scale > 0;",
            replace: "const u32 least = 0;",
            caught_by: &[Variant::Plain],
        },
        "a second moment above 0",
    ),
    (
        Control {
            name: "transpose: the carry between blocks of tiles is lost",
            file: "transpose.cu",
            find: "const Totals place = before + sum_before(",
            replace: "const Totals place = sum_before(",
            caught_by: &[Variant::Plain],
        },
        "scans carry over",
    ),
    (
        Control {
            name: "transpose: the carry between 256 words of a bitmap is lost",
            file: "transpose.cu",
            find: "for (u32 i = 0; i < 256 / WARP; ++i) base += slots[i];",
            replace: "",
            caught_by: &[Variant::Plain],
        },
        "a bitmap of more than 256 words",
    ),
];

/// Each shows in its own case and in no other, so that one build holds them all.
#[test]
fn planted_bugs_are_caught() {
    let (mut folders, mut kernels) = (Vec::new(), Kernels::of_trainer());
    for (control, _) in &CONTROLS {
        let (folder, planted) = control.plant(&kernels);
        folders.push(folder);
        kernels = planted;
    }
    let Some(emulator) = Emulator::build_with(Variant::Plain, &kernels) else { return };
    holds(&on_the_emulator(&emulator, "lists of every length"), "lists of every length");
    for (control, case) in CONTROLS {
        let output = on_the_emulator(&emulator, case);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(case), "{case}: it ran");
        assert!(!output.status.success(), "{}: not caught", control.name);
    }
}
