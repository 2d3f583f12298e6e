//! What every device must do, as one list of cases: the float64 definition in `reference` is what is right.

use kernels::{
    AdamMode, AdamUpdate, Clock, Device, Dictionary, LearningRate, Moment, Path, Report, RowDtype, Shape, Sums, Tensor,
    Training,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::reference::{self, Parameters};
pub use crate::tolerance::Numbers;
pub use run::{Case, PATHS, Run, TENSORS, close, read, read_arrays, read_moment, update};

pub mod boundaries;
mod forward;
pub mod pairs;
mod run;
pub mod terms;

use run::{LR, clock, distance, exact, flat, normal, rows_of};

/// A case: panics when the device is wrong.
pub type Check<D> = fn(&D, Numbers);

/// All cases, by name.
pub fn all<D: Device>() -> Vec<(&'static str, Check<D>)> {
    vec![
        ("a step agrees with the reference", a_step_agrees_with_the_reference),
        ("two hundred steps follow the reference", two_hundred_steps_follow_the_reference),
        ("odd shapes agree with the reference", odd_shapes_agree_with_the_reference),
        ("edges agree with the reference", edges_agree_with_the_reference),
        ("backward: long runs agree with the reference", long_runs_agree_with_the_reference),
        ("dense: activations made twice are the same bits", activations_made_twice_are_the_same_bits),
        ("the same step twice gives the same bits", the_same_step_twice_gives_the_same_bits),
        ("a batch that is not finite changes nothing", a_batch_that_is_not_finite_changes_nothing),
        ("count: counted rows are those of the range", counted_rows_are_those_of_the_range),
        ("normalize: rows of every dtype are scaled", rows_of_every_dtype_are_scaled),
        (
            "adam: a clipped gradient and a skipped row follow the mode",
            a_clipped_gradient_and_a_skipped_row_follow_the_mode,
        ),
        ("a dictionary goes on where another was read", a_dictionary_goes_on_where_another_was_read),
        ("adam: what is owed is settled", what_is_owed_is_settled),
        ("encode: active pairs agree with the reference", pairs::active_pairs_agree_with_the_reference),
        ("decode: every row has its own error", forward::every_row_has_its_own_error),
        ("residual: a report has the sums of its batch", forward::a_report_has_the_sums_of_its_batch),
        ("looking at pairs changes nothing", pairs::looking_at_pairs_changes_nothing),
    ]
}

/// A few small cases that reach every operation: for the sanitizers of the emulator, and for bugs planted in kernels.
pub fn few<D: Device>() -> Vec<(&'static str, Check<D>)> {
    named(&["odd shapes", "backward: long runs", "adam: a clipped gradient"])
}

/// Cases that reach all of Adam, for formats of weights and moments that nothing else knows of.
pub fn of_adam<D: Device>() -> Vec<(&'static str, Check<D>)> {
    named(&["edges", "a dictionary goes on", "adam: "])
}

fn named<D: Device>(wanted: &[&str]) -> Vec<(&'static str, Check<D>)> {
    all().into_iter().filter(|(name, _)| wanted.iter().any(|wanted| name.starts_with(wanted))).collect()
}

/// Checks sums, counts and the gradient of one step: with an infinite clip the first moment is a tenth of the gradient.
///
/// # Panics
/// When something is off.
pub fn check_step<D: Device>(device: &D, numbers: Numbers, case: &Case, path: Path) {
    let case = &case.clone().apart(numbers);
    let slack = reference::slack(numbers, &case.p, &case.x);
    let mut run = Run::new(device, case);
    let report = run.step(path, case.lambda, &AdamUpdate { clip: f32::INFINITY, ..update(0) });
    let want = reference::report(&case.p, &case.x);
    let gradient = reference::gradient(&case.p, &case.x, f64::from(case.lambda));
    let label = format!("{path:?} {:?}", case.shape);
    assert!(report.ok && report.rows == case.x.len(), "{label}");
    assert_eq!(report.active, want.active, "{label}");
    let sum = |slack: f64, want: f64| numbers.sum(path) + slack / want.max(0.1);
    let squared_error = sum(slack.squared_error, want.squared_error);
    close(&format!("squared error {label}"), report.squared_error, want.squared_error, squared_error);
    close(&format!("l1 {label}"), report.l1, want.l1, sum(slack.l1, want.l1));
    let norm = reference::norm(&gradient.values().copied().collect::<Vec<_>>());
    close(&format!("norm {label}"), report.gradient_norm, norm, numbers.gradient());
    for tensor in TENSORS {
        let tenth: Vec<f64> = flat(&gradient, tensor).iter().map(|g| g * (1.0 - 0.9)).collect();
        let moment = read_moment(&run.dictionary, tensor, Moment::First);
        let size = reference::norm(&tenth);
        assert!(
            size == 0.0 || distance(&moment, &tenth) < numbers.moment(),
            "{tensor:?} {label}: {}",
            distance(&moment, &tenth)
        );
        assert!(size > 0.0 || moment.iter().all(|&m| m == 0.0), "{tensor:?} {label}");
    }
    let sums = run.sums();
    assert_eq!((sums.rows, sums.active, &sums.fired_f), (case.x.len() as u64, want.active, &want.fired), "{label}");
    let norm2: f64 = case.x.iter().flatten().map(|x| x * x).sum();
    close("squared norm", sums.squared_norm, norm2, 1e-5);
    let last_fired = clock(&run.dictionary, Clock::LastFired);
    assert!(last_fired.iter().zip(&want.fired).all(|(&last, &fired)| last == if fired > 0 { 100 } else { 0 }));
}

fn a_step_agrees_with_the_reference<D: Device>(device: &D, numbers: Numbers) {
    let shapes = [(37, 150, 70), (5, 7, 1), (16, 96, 64), (64, 400, 130), (80, 129, 33), (1, 1, 3), (200, 97, 65)];
    for (i, (width, features, batch)) in shapes.into_iter().enumerate() {
        for bias in [-1.5, 0.0] {
            let case = Case::new(numbers, width, features, batch, bias, i as u64);
            PATHS.into_iter().for_each(|path| check_step(device, numbers, &case, path));
        }
    }
}

/// More columns than a block of threads holds at once, several steps of every GEMM, ragged ends everywhere.
fn odd_shapes_agree_with_the_reference<D: Device>(device: &D, numbers: Numbers) {
    for (width, features, batch, bias) in [(1032, 20, 5, 0.0), (201, 150, 70, -1.0)] {
        let mut case = Case::new(numbers, width, features, batch, bias, 9);
        check_step(device, numbers, &case, Path::Sparse);
        for dense_bytes in [usize::MAX, 0] {
            case.shape.dense_bytes = dense_bytes;
            check_step(device, numbers, &case, Path::Dense);
        }
    }
}

/// A feature that fires on every token, one that fires on most, and others that do not, in a batch of more than a thousand.
fn long_runs_agree_with_the_reference<D: Device>(device: &D, numbers: Numbers) {
    let mut case = Case::new(numbers, 8, 37, 1100, -3.0, 6);
    (case.p.b_enc[3], case.p.b_enc[36]) = (50.0, 1.0);
    check_step(device, numbers, &case, Path::Sparse);
}

fn the_same_step_twice_gives_the_same_bits<D: Device>(device: &D, numbers: Numbers) {
    let case = Case::new(numbers, 48, 500, 200, -1.0, 7);
    for path in PATHS {
        let made = || {
            let mut run = Run::new(device, &case);
            let reports: Vec<Report> = (0..5).map(|s| run.step(path, case.lambda, &update(s))).collect();
            (reports, run.state())
        };
        assert!(made() == made(), "{path:?}");
    }
}

fn two_hundred_steps_follow_the_reference<D: Device>(device: &D, numbers: Numbers) {
    for mode in [AdamMode::Dense, AdamMode::Catchup, AdamMode::Touched] {
        for path in PATHS {
            let mut case = Case::new(numbers, 12, 40, 8, -1.2, 11).with_adam(mode);
            let mut run = Run::new(device, &case);
            let (mut p, mut adam) = (case.p.clone(), reference::Adam::new(mode, &case.p));
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            for step in 0..200 {
                let x: Vec<Vec<f64>> = (0..8).map(|_| exact(numbers, (0..12).map(|_| normal(&mut rng)))).collect();
                run.load(&x);
                let want = reference::report(&p, &x);
                let gradient = reference::gradient(&p, &x, f64::from(case.lambda));
                let fired: Vec<bool> = want.fired.iter().map(|&count| count > 0).collect();
                let report = run.step(path, case.lambda, &update(step));
                adam.update(&mut p, &gradient, &fired, step, LR, 1.0);
                close(
                    &format!("{mode:?} {path:?} step {step}"),
                    report.squared_error,
                    want.squared_error,
                    numbers.run(),
                );
            }
            for tensor in TENSORS {
                let distance = distance(&read(&run.dictionary, tensor), &flat(&p, tensor));
                assert!(distance < numbers.run(), "{mode:?} {path:?} {tensor:?}: {distance}");
            }
            let before = run.state();
            case.shape.batch = 9;
            let mut settled = run.settled(&case, 200);
            assert!(run.state() == before, "{mode:?} {path:?}: looking changes nothing");
            let want = if mode == AdamMode::Catchup { adam.settled(&p, 200, LR) } else { p };
            for tensor in TENSORS {
                let value = read(&settled.dictionary, tensor);
                let distance = distance(&value, &flat(&want, tensor));
                assert!(distance < numbers.run(), "settled {mode:?} {path:?} {tensor:?}: {distance}");
                if mode != AdamMode::Catchup {
                    assert_eq!(value, read(&run.dictionary, tensor), "nothing is owed");
                }
            }
            settled.forward(path);
            settled.count(0..usize::MAX);
            let l1 = settled.dictionary.report(0).expect("a device that works").l1;
            close("l1 of a settled dictionary", l1, reference::report(&want, &case.x).l1, 10.0 * numbers.run());
            // Of the weights that the device has, as its GEMMs read them: those of the reference are near, not the same.
            let mut own = parameters(|tensor| read(&settled.dictionary, tensor), case.shape.width);
            own.w_enc.iter_mut().flatten().for_each(|w| *w = numbers.nearest(*w));
            let (least, most) = reference::fired(numbers, &own, &case.x);
            for (f, fired) in settled.sums().fired_f.into_iter().enumerate() {
                let range = least[f]..=most[f];
                assert!(range.contains(&fired), "{mode:?} {path:?}: feature {f} fires {fired} times, not {range:?}");
            }
        }
    }
}

fn edges_agree_with_the_reference<D: Device>(device: &D, numbers: Numbers) {
    for path in PATHS {
        let mut odd = Case::ragged(numbers, -1.0);
        (odd.p.b_enc[0], odd.p.b_enc[1]) = (50.0, -50.0);
        (odd.p.w_dec[0], odd.p.w_dec[5]) = (vec![0.0; 21], vec![0.0; 21]);
        (odd.p.w_enc[7], odd.x[3]) = (vec![0.0; 21], vec![0.0; 21]);
        odd.p.b_enc[7] = 0.25;
        check_step(device, numbers, &odd, path);

        let mut silent = Case::ragged(numbers, -100.0);
        check_step(device, numbers, &silent, path);
        silent.p.b_dec = vec![0.0; 21];
        check_step(device, numbers, &silent, path);

        let mut short = Case::ragged(numbers, -1.0);
        short.x.truncate(17);
        check_step(device, numbers, &short, path);
        short.shape.dense_bytes = 0;
        check_step(device, numbers, &short, path);
    }
}

fn activations_made_twice_are_the_same_bits<D: Device>(device: &D, numbers: Numbers) {
    let mut case = Case::new(numbers, 40, 300, 150, -0.3, 4);
    let mut states = Vec::new();
    for dense_bytes in [usize::MAX, 0] {
        case.shape.dense_bytes = dense_bytes;
        let mut run = Run::new(device, &case);
        let report = run.step(Path::Dense, case.lambda, &update(0));
        states.push((report, run.state()));
    }
    assert!(states[0] == states[1]);
}

fn a_batch_that_is_not_finite_changes_nothing<D: Device>(device: &D, numbers: Numbers) {
    let case = Case::ragged(numbers, -1.0);
    for path in PATHS {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut run = Run::new(device, &case);
            run.step(path, case.lambda, &update(0));
            run.sums();
            let before = run.state();
            let mut x = case.x.clone();
            (x[4][20], x[39][0]) = (bad, bad);
            run.load(&x);
            let report = run.step(path, case.lambda, &update(1));
            assert!(!report.ok && report.non_finite_rows == [4, 39], "{path:?} {bad}: {report:?}");
            assert!(run.state() == before, "{path:?} {bad}");
            // The batch comes again without the bad rows: its others must not have been counted.
            assert_eq!(run.sums().rows, 0);
            run.dictionary.release();
            run.load(&case.x);
            assert!(run.step(path, case.lambda, &update(1)).ok);
        }
        // Finite rows whose gradient overflows.
        let mut run = Run::new(device, &case);
        run.step(path, case.lambda, &update(0));
        let (before, sums) = (run.state(), run.sums());
        run.device.put_sums(&mut run.tally, &sums);
        run.load(&vec![vec![1e30; 21]; 40]);
        let report = run.step(path, case.lambda, &update(1));
        assert!(!report.ok && report.non_finite_rows.is_empty() && run.state() == before, "{path:?} {report:?}");
        assert_eq!(run.sums(), sums, "{path:?}: the rows of a refused step are not counted");
    }
}

fn counted_rows_are_those_of_the_range<D: Device>(device: &D, numbers: Numbers) {
    let mut case = Case::new(numbers, 21, 130, 200, -1.0, 2).apart(numbers);
    // Without room for activations, those of a tile that counts in part are made again.
    for (path, dense_bytes) in [(Path::Sparse, 0), (Path::Dense, usize::MAX), (Path::Dense, 0)] {
        case.shape.dense_bytes = dense_bytes;
        let mut run = Run::new(device, &case);
        run.forward(path);
        run.count(13..150);
        run.count(150..150);
        let x = case.x.clone();
        case.x = x[13..150].to_vec();
        let (want, sums) = (reference::report(&case.p, &case.x), run.sums());
        let slack = reference::slack(numbers, &case.p, &case.x);
        let mut errors = vec![0.0; 137];
        run.dictionary.errors(13..150, &mut errors).expect("a device that works");
        for (got, want) in errors.iter().zip(reference::errors(&case.p, &case.x)) {
            close("the error of a row", *got, want, 3.0 * numbers.sum(path) + slack.row / want.max(0.1));
        }
        close("errors of rows", errors.iter().sum(), sums.squared_error, 1e-12);
        assert_eq!((sums.rows, sums.active, &sums.fired_f), (137, want.active, &want.fired), "{path:?}");
        close("l1", sums.l1, want.l1, numbers.sum(path) + slack.l1 / want.l1);
        let squared_error = numbers.sum(path) + slack.squared_error / want.squared_error;
        close("squared error", sums.squared_error, want.squared_error, squared_error);
        for (d, &sum) in sums.x_d.iter().enumerate() {
            close("Σ x", sum, case.x.iter().map(|x| x[d]).sum(), 1e-6);
        }
        assert_eq!(run.sums(), Sums::new(21, 130), "taking sums starts again at 0");
        run.device.put_sums(&mut run.tally, &sums);
        assert_eq!(run.sums(), sums);
        case.x = x;
    }
}

fn rows_of_every_dtype_are_scaled<D: Device>(device: &D, _: Numbers) {
    let values = [1.5_f32, -0.25, 3.0, 0.0, -100.0, 0.0625, 7.0];
    let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let f16s: Vec<u8> = values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16s: Vec<u8> = values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let shape = Shape { width: 7, features: 1, batch: 1, dense_bytes: 0 };
    for (dtype, bytes) in [(RowDtype::F32, f32s), (RowDtype::F16, f16s), (RowDtype::Bf16, bf16s)] {
        let (mut staging, mut x) = (device.staging(bytes.len()).expect("memory"), device.rows(1, 7).expect("memory"));
        staging.as_mut().copy_from_slice(&bytes);
        device.normalize(&staging, dtype, 1, 1, 0.5, &mut x);
        let mut dictionary = device.dictionary(shape).expect("memory");
        let mut tally = device.tally(7, 1).expect("memory");
        dictionary.encode(&x, Path::Sparse);
        dictionary.decode(&x);
        dictionary.residual(&x);
        dictionary.count(&x, &mut tally, 0..1);
        assert_eq!(
            device.take_sums(&mut tally).expect("a device that works").x_d,
            values.map(|v| f64::from(v * 0.5)),
            "{dtype:?}"
        );
    }
}

fn a_clipped_gradient_and_a_skipped_row_follow_the_mode<D: Device>(device: &D, numbers: Numbers) {
    for (mode, moved) in [(AdamMode::Dense, true), (AdamMode::Catchup, false), (AdamMode::Touched, false)] {
        let case = Case::new(numbers, 9, 20, 6, -0.5, 8).with_adam(mode);
        let mut run = Run::after(device, &case, 1);
        let before = run.state();
        // All features silent: only b_dec has a gradient.
        run.dictionary.write(Tensor::EncoderBias, 0..20, &[-1e3; 20]);
        run.step(Path::Sparse, case.lambda, &update(1));
        let weights = 0..20 * 9;
        assert_eq!(run.state().0[weights.clone()] != before.0[weights], moved, "{mode:?}");
    }
}

/// What a checkpoint holds is all that there is: steps after it come out to the same bits.
fn a_dictionary_goes_on_where_another_was_read<D: Device>(device: &D, numbers: Numbers) {
    let case = Case::new(numbers, 141, 20, 10, -0.5, 12).with_adam(AdamMode::Catchup);
    let mut run = Run::after(device, &case, 2);
    let mut other = Run::new(device, &case);
    for tensor in TENSORS {
        let rows = || 0..rows_of(tensor, &case.shape);
        let [value, first, second] = read_arrays(&run.dictionary, tensor);
        other.dictionary.write(tensor, rows(), &value);
        other.dictionary.write_moment(tensor, Moment::First, rows(), &first);
        other.dictionary.write_moment(tensor, Moment::Second, rows(), &second);
    }
    for which in [Clock::LastUpdate, Clock::LastFired] {
        other.dictionary.write_clock(which, 0..20, &clock(&run.dictionary, which));
    }
    assert!(run.state() == other.state(), "what was written reads the same");
    for (step, path) in (2..).zip(PATHS) {
        let reports = [&mut run, &mut other].map(|run| run.step(path, case.lambda, &update(step)));
        assert_eq!(reports[0], reports[1], "{path:?}");
        assert!(run.state() == other.state(), "{path:?}");
    }
}

/// Weights and moments as they are kept, eighteen steps later: only what is settled is rounded again.
fn what_is_owed_is_settled<D: Device>(device: &D, numbers: Numbers) {
    let case = Case::new(numbers, 141, 20, 10, -0.5, 13).with_adam(AdamMode::Catchup);
    let run = Run::after(device, &case, 2);
    let moment = |moment| parameters(|tensor| read_moment(&run.dictionary, tensor, moment), case.shape.width);
    let p = parameters(|tensor| read(&run.dictionary, tensor), case.shape.width);
    let (first, second) = (moment(Moment::First), moment(Moment::Second));
    let last_update = clock(&run.dictionary, Clock::LastUpdate);
    let want = reference::Adam { mode: AdamMode::Catchup, first, second, last_update }.settled(&p, 20, LR);
    let settled = run.settled(&case, 20);
    for tensor in TENSORS {
        let (got, want, before) = (read(&settled.dictionary, tensor), flat(&want, tensor), flat(&p, tensor));
        let moved = distance(&before.iter().map(|&v| v as f32).collect::<Vec<f32>>(), &want);
        let is_bias = matches!(tensor, Tensor::EncoderBias | Tensor::DecoderBias);
        assert!(is_bias || moved > 2e-2, "{tensor:?}: something is owed");
        assert!(distance(&got, &want) < numbers.gradient() / 2.0, "{tensor:?}: {}", distance(&got, &want));
    }
}

/// What `read` gives of all tensors, in double precision.
fn parameters(read: impl Fn(Tensor) -> Vec<f32>, width: usize) -> Parameters {
    let wide = |tensor| read(tensor).into_iter().map(f64::from).collect::<Vec<f64>>();
    let rows = |tensor| wide(tensor).chunks_exact(width).map(<[f64]>::to_vec).collect();
    Parameters {
        w_enc: rows(Tensor::EncoderWeight),
        b_enc: wide(Tensor::EncoderBias),
        w_dec: rows(Tensor::DecoderWeight),
        b_dec: wide(Tensor::DecoderBias),
    }
}
