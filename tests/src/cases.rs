//! What every device must do, as one list of cases: the float64 definition in `reference` is what is right.

use std::ops::Range;

use kernels::{
    AdamMode, AdamUpdate, Clock, Device, Dictionary, LearningRate, Moment, Path, Report, RowDtype, Shape, Sums, Tensor,
    Training,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::reference::{self, Parameters};
pub use crate::tolerance::Numbers;

pub mod boundaries;
pub mod terms;

/// A case: panics when the device is wrong.
pub type Check<D> = fn(&D, Numbers);

/// All cases, by name.
pub fn all<D: Device>() -> Vec<(&'static str, Check<D>)> {
    vec![
        ("a step agrees with the reference", a_step_agrees_with_the_reference),
        ("two hundred steps follow the reference", two_hundred_steps_follow_the_reference),
        ("odd shapes agree with the reference", odd_shapes_agree_with_the_reference),
        ("edges agree with the reference", edges_agree_with_the_reference),
        ("long runs agree with the reference", long_runs_agree_with_the_reference),
        ("activations made twice are the same bits", activations_made_twice_are_the_same_bits),
        ("the same step twice gives the same bits", the_same_step_twice_gives_the_same_bits),
        ("a batch that is not finite changes nothing", a_batch_that_is_not_finite_changes_nothing),
        ("counted rows are those of the range", counted_rows_are_those_of_the_range),
        ("rows of every dtype are scaled", rows_of_every_dtype_are_scaled),
        ("a clipped gradient and a skipped row follow the mode", a_clipped_gradient_and_a_skipped_row_follow_the_mode),
        ("a dictionary goes on where another was read", a_dictionary_goes_on_where_another_was_read),
        ("what is owed is settled", what_is_owed_is_settled),
    ]
}

/// A few small cases that reach every operation: for the sanitizers of the emulator, and for bugs planted in kernels.
pub fn few<D: Device>() -> Vec<(&'static str, Check<D>)> {
    named(&["odd shapes", "long runs", "a clipped gradient"])
}

/// Cases that reach all of Adam, for formats of weights and moments that nothing else knows of.
pub fn of_adam<D: Device>() -> Vec<(&'static str, Check<D>)> {
    named(&["edges", "a clipped gradient", "a dictionary goes on", "what is owed"])
}

fn named<D: Device>(wanted: &[&str]) -> Vec<(&'static str, Check<D>)> {
    all().into_iter().filter(|(name, _)| wanted.iter().any(|wanted| name.starts_with(wanted))).collect()
}

/// All tensors.
pub const TENSORS: [Tensor; 4] =
    [Tensor::EncoderWeight, Tensor::EncoderBias, Tensor::DecoderWeight, Tensor::DecoderBias];

/// Both paths.
pub const PATHS: [Path; 2] = [Path::Sparse, Path::Dense];

/// Constant, then falling over the last 40 of 240 steps.
const LR: LearningRate = LearningRate { base: 1e-3, decay_from: 160.0, steps: 240.0 };

/// A dictionary, a batch, and what a step on them needs.
#[derive(Clone)]
pub struct Case {
    /// Of the dictionary.
    pub shape: Shape,
    /// Which of its rows Adam updates.
    pub mode: AdamMode,
    /// Its parameters.
    pub p: Parameters,
    /// Rows.
    pub x: Vec<Vec<f64>>,
    /// λ.
    pub lambda: f32,
}

/// Values that the device holds exactly, so that both sides start from the same numbers.
fn exact(numbers: Numbers, values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    values.into_iter().map(|v| numbers.nearest(v)).collect()
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let sum: f64 = (0..12).map(|_| rng.random::<f64>()).sum();
    sum - 6.0
}

impl Case {
    /// Weights, biases around `bias` and rows, all of a seed.
    pub fn new(numbers: Numbers, width: usize, features: usize, batch: usize, bias: f64, seed: u64) -> Case {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut row = |scale: f64| exact(numbers, (0..width).map(|_| scale * normal(&mut rng)));
        let scale = 1.0 / (width as f64).sqrt();
        let p = Parameters {
            w_enc: (0..features).map(|_| row(scale)).collect(),
            b_enc: exact(numbers, (0..features).map(|f| bias + 0.1 * (f as f64).sin())),
            w_dec: (0..features).map(|_| row(scale)).collect(),
            b_dec: row(0.1),
        };
        let x = (0..batch).map(|_| row(1.0)).collect();
        let shape = Shape { width, features, batch, dense_bytes: usize::MAX };
        Case { shape, mode: AdamMode::Dense, p, x, lambda: 0.7 }
    }

    /// With ragged ends everywhere, of which some features fire.
    fn ragged(numbers: Numbers, bias: f64) -> Case {
        Case::new(numbers, 21, 130, 40, bias, 2)
    }

    /// The same with biases moved until no pre-activation is so near 0 that a device may see either sign.
    fn apart(mut self, numbers: Numbers) -> Case {
        for f in 0..self.shape.features {
            let near = |b: f64, x: &Vec<f64>| {
                let (sum, bound) = reference::pre_activation(numbers, (&self.p.w_enc[f], b), x);
                (sum.abs() < bound).then_some(bound)
            };
            // Each move goes past the bound of the one that was near, and what moves is small beside what biases are.
            while let Some(bound) = self.x.iter().find_map(|x| near(self.p.b_enc[f], x)) {
                self.p.b_enc[f] = f64::from((self.p.b_enc[f] + 2.5 * bound) as f32);
            }
        }
        self
    }

    fn with_adam(self, mode: AdamMode) -> Case {
        Case { mode, ..self }
    }
}

fn flat(p: &Parameters, tensor: Tensor) -> Vec<f64> {
    match tensor {
        Tensor::EncoderWeight => p.w_enc.concat(),
        Tensor::EncoderBias => p.b_enc.clone(),
        Tensor::DecoderWeight => p.w_dec.concat(),
        Tensor::DecoderBias => p.b_dec.clone(),
    }
}

fn rows_of(tensor: Tensor, shape: &Shape) -> usize {
    if tensor == Tensor::DecoderBias { 1 } else { shape.features }
}

/// As many values as a tensor has, none of them a number: a device that writes nothing is caught.
fn room_for(tensor: Tensor, shape: &Shape) -> Vec<f32> {
    let columns = if tensor == Tensor::EncoderBias { 1 } else { shape.width };
    vec![f32::NAN; rows_of(tensor, shape) * columns]
}

/// All of a tensor of a dictionary.
///
/// # Panics
/// When the device fails.
pub fn read<S: Dictionary>(dictionary: &S, tensor: Tensor) -> Vec<f32> {
    let shape = dictionary.shape();
    let mut out = room_for(tensor, &shape);
    dictionary.read(tensor, 0..rows_of(tensor, &shape), &mut out).expect("a device that works");
    out
}

/// All of a moment of a tensor.
///
/// # Panics
/// When the device fails.
pub fn read_moment<S: Training>(dictionary: &S, tensor: Tensor, moment: Moment) -> Vec<f32> {
    let shape = dictionary.shape();
    let mut out = room_for(tensor, &shape);
    dictionary.read_moment(tensor, moment, 0..rows_of(tensor, &shape), &mut out).expect("a device that works");
    out
}

/// A tensor, its first and its second moment.
///
/// # Panics
/// When the device fails.
pub fn read_arrays<S: Training>(dictionary: &S, tensor: Tensor) -> [Vec<f32>; 3] {
    let [first, second] = [Moment::First, Moment::Second].map(|moment| read_moment(dictionary, tensor, moment));
    [read(dictionary, tensor), first, second]
}

/// A clock of every feature.
fn clock<S: Training>(dictionary: &S, clock: Clock) -> Vec<u64> {
    let features = dictionary.shape().features;
    // What no clock shows: a device that writes nothing is caught.
    let mut out = vec![u64::MAX; features];
    dictionary.read_clock(clock, 0..features, &mut out).expect("a device that works");
    out
}

/// A device with a dictionary that holds a case's parameters, and its batch. The dictionary is one that is trained, unless it is
/// [`Run::settled`].
pub struct Run<'a, D: Device, S = <D as Device>::Training> {
    pub(crate) device: &'a D,
    /// The dictionary.
    pub dictionary: S,
    x: D::Rows,
    pub(crate) tally: D::Tally,
}

impl<'a, D: Device> Run<'a, D> {
    /// # Panics
    /// When there is no memory.
    pub fn new(device: &'a D, case: &Case) -> Self {
        Run::with(device, case, device.training(case.shape, case.mode).expect("memory"))
    }

    /// After so many steps on the sparse path.
    fn after(device: &'a D, case: &Case, steps: u64) -> Self {
        let mut run = Run::new(device, case);
        for step in 0..steps {
            assert!(run.step(Path::Sparse, case.lambda, &update(step)).ok);
        }
        run
    }

    /// A dictionary that cannot train and holds what this one is owed at `step`, and the case's batch.
    fn settled(&self, case: &Case, step: u64) -> Run<'a, D, D::Dictionary> {
        let mut settled = Run::with(self.device, case, self.device.dictionary(case.shape).expect("memory"));
        self.dictionary.settle_into(&update(step), &mut settled.dictionary);
        settled
    }

    /// A whole step, all rows counted.
    ///
    /// # Panics
    /// When the device fails.
    pub fn step(&mut self, path: Path, lambda: f32, update: &AdamUpdate) -> Report {
        self.forward(path);
        self.dictionary.backward(&self.x, lambda);
        self.count(0..usize::MAX);
        self.dictionary.adam(&self.x, update);
        self.dictionary.report(0).expect("a device that works")
    }

    /// Every parameter, moment and clock.
    ///
    /// # Panics
    /// When the device fails.
    pub fn state(&self) -> (Vec<u32>, Vec<u64>) {
        let arrays = TENSORS.into_iter().flat_map(|tensor| read_arrays(&self.dictionary, tensor));
        let clocks = [Clock::LastUpdate, Clock::LastFired].map(|which| clock(&self.dictionary, which));
        (arrays.flatten().map(f32::to_bits).collect(), clocks.concat())
    }
}

impl<'a, D: Device, S: Dictionary<Rows = D::Rows, Tally = D::Tally>> Run<'a, D, S> {
    /// With a fresh dictionary.
    fn with(device: &'a D, case: &Case, mut dictionary: S) -> Self {
        let Shape { width, features, batch, .. } = case.shape;
        for tensor in TENSORS {
            let values: Vec<f32> = flat(&case.p, tensor).iter().map(|&v| v as f32).collect();
            dictionary.write(tensor, 0..rows_of(tensor, &case.shape), &values);
        }
        let x = device.rows(batch, width).expect("memory");
        let tally = device.tally(width, features).expect("memory");
        let mut run = Run { device, dictionary, x, tally };
        run.load(&case.x);
        run
    }

    fn load(&mut self, x: &[Vec<f64>]) {
        let bytes: Vec<u8> = x.iter().flatten().flat_map(|&v| (v as f32).to_le_bytes()).collect();
        let mut staging = self.device.staging(bytes.len()).expect("memory");
        staging.as_mut().copy_from_slice(&bytes);
        self.device.normalize(&staging, RowDtype::F32, x.len(), x.len(), 1.0, &mut self.x);
    }

    /// Encodes, decodes, and makes the residual.
    pub fn forward(&mut self, path: Path) {
        self.dictionary.encode(&self.x, path);
        self.dictionary.decode(&self.x);
        self.dictionary.residual(&self.x);
    }

    fn count(&mut self, counted: Range<usize>) {
        self.dictionary.count(&self.x, &mut self.tally, counted);
    }

    fn sums(&mut self) -> Sums {
        self.device.take_sums(&mut self.tally).expect("a device that works")
    }
}

/// The update of a step.
pub fn update(step: u64) -> AdamUpdate {
    AdamUpdate { step, lr: LR, clip: 1.0, tokens: 100 * (step + 1), seed: 7 }
}

/// Relative, and absolute for small sums: an activation is a difference of numbers of order 1.
///
/// # Panics
/// When `got` is farther from `want` than that.
pub fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    let error = (got - want).abs() / want.abs().max(0.1);
    assert!(error <= tolerance, "{what}: {got} instead of {want}, off by {error:.2e}");
}

/// `‖got − want‖ / ‖want‖`.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).powi(2)).sum();
    let size: f64 = want.iter().map(|want| want * want).sum();
    error.sqrt() / size.sqrt().max(1e-30)
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
