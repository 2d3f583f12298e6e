//! Points at which every term of an update shows: norms on both sides of the clip, first and millionth steps, gaps of every length,
//! learning rates that fall inside a gap, moments of very different sizes.

use super::*;

/// All cases, by name.
pub fn all<D: Device>() -> Vec<(&'static str, Check<D>)> {
    let mut cases = of_rounded();
    cases.extend([
        ("clips and steps of every size", clips_and_steps_of_every_size as Check<D>),
        ("gaps of every length", gaps_of_every_length),
    ]);
    cases
}

/// Those that hold where weights or moments are rounded stochastically, too.
pub fn of_rounded<D: Device>() -> Vec<(&'static str, Check<D>)> {
    vec![("a second moment above 0 stays so", a_second_moment_above_zero_stays_so)]
}

/// Moments as after many steps: second ones somewhat larger than the squares of the first.
fn moments(case: &Case, seed: u64) -> (Parameters, Parameters) {
    let mut first = Case::new(Numbers::F32, case.shape.width, case.shape.features, 1, 0.3, seed).p;
    first.values_mut().for_each(|m| *m = f64::from((*m * 1e-2) as f32));
    let mut second = first.clone();
    for (i, v) in second.values_mut().enumerate() {
        *v = f64::from((*v * *v * (1.5 + (i as f64).sin())) as f32);
    }
    (first, second)
}

/// A dictionary of the case with these moments and clocks, and the same in double precision.
fn begin<'a, D: Device>(device: &'a D, case: &Case, last_update: &[u64]) -> (Run<'a, D>, reference::Adam) {
    let (first, second) = moments(case, 31);
    let mut run = Run::new(device, case);
    for tensor in TENSORS {
        for (moment, values) in [(Moment::First, &first), (Moment::Second, &second)] {
            let values: Vec<f32> = flat(values, tensor).iter().map(|&v| v as f32).collect();
            run.dictionary.write_moment(tensor, moment, 0..rows_of(tensor, &case.shape), &values);
        }
    }
    run.dictionary.write_clock(Clock::LastUpdate, 0..last_update.len(), last_update);
    (run, reference::Adam { mode: case.mode, first, second, last_update: last_update.to_vec() })
}

/// Fails where a row of `columns` values is farther from `want` than a 5,000th, and than what rounding leaves of values as large as `beside`.
fn rows_near(what: &str, columns: usize, got: &[f64], want: &[f64], beside: &[f64]) {
    let rows = got.chunks_exact(columns).zip(want.chunks_exact(columns)).zip(beside.chunks_exact(columns));
    for (row, ((got, want), beside)) in rows.enumerate() {
        let off = reference::norm(&less(got, want));
        let most = 2e-4 * reference::norm(want) + 2f64.powi(-23) * reference::norm(beside);
        assert!(off <= most, "{what}, row {row}: off by {off:.1e}, more than {most:.1e}");
    }
}

fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

fn less(values: &[f64], before: &[f64]) -> Vec<f64> {
    values.iter().zip(before).map(|(value, before)| value - before).collect()
}

/// Each row by itself: how far it has moved, and its moments.
fn compare<D: Device>(run: &Run<'_, D>, before: &Parameters, p: &Parameters, adam: &reference::Adam, label: &str) {
    for tensor in TENSORS {
        let columns = if tensor == Tensor::EncoderBias { 1 } else { run.dictionary.shape().width };
        let [value, first, second] = read_arrays(&run.dictionary, tensor).map(wide);
        let (was, now) = (flat(before, tensor), flat(p, tensor));
        let what = |what: &str| format!("{what} of {tensor:?}, {label}");
        rows_near(&what("step"), columns, &less(&value, &was), &less(&now, &was), &was);
        let zeros = vec![0.0; was.len()];
        rows_near(&what("m"), columns, &first, &flat(&adam.first, tensor), &zeros);
        rows_near(&what("v"), columns, &second, &flat(&adam.second, tensor), &zeros);
    }
}

/// The gradient's norm below, at and far above the clip; a first step, later ones, and some beyond 2³²; before and in the decay.
fn clips_and_steps_of_every_size<D: Device>(device: &D, numbers: Numbers) {
    if numbers != Numbers::F32 {
        // Products in bf16 differ by more than the terms that are looked for, which are the same code.
        return;
    }
    let case = Case::new(numbers, 9, 20, 6, -0.3, 32);
    let (want, gradient) =
        (reference::report(&case.p, &case.x), reference::gradient(&case.p, &case.x, f64::from(case.lambda)));
    let fired: Vec<bool> = want.fired.iter().map(|&count| count > 0).collect();
    assert!(fired.contains(&true) && fired.contains(&false), "some fire");
    let norm = reference::norm(&gradient.values().copied().collect::<Vec<_>>());
    let late = LearningRate { base: 1e-3, decay_from: 8e9, steps: 1e10 };
    for (step, lr) in [
        (0, LR),
        (1, LR),
        (9, LR),
        (159, LR),
        (160, LR),
        (161, LR),
        (239, LR),
        (5000, late),
        (1 << 32, late),
        (9_000_000_000, late),
    ] {
        for share in [f64::INFINITY, 3.0, 1.0, 0.5, 1e-3] {
            let clip = (share * norm) as f32;
            for path in PATHS {
                let (mut run, mut adam) = begin(device, &case, &[0; 20]);
                let mut p = case.p.clone();
                let report = run.step(path, case.lambda, &AdamUpdate { lr, clip, ..update(step) });
                assert!(report.ok, "{report:?}");
                adam.update(&mut p, &gradient, &fired, step, lr, f64::from(clip));
                compare(&run, &case.p, &p, &adam, &format!("step {step}, clip {share} of the norm, {path:?}"));
                let clock = clock(&run.dictionary, Clock::LastUpdate);
                assert_eq!(clock, vec![step + 1; 20]);
            }
        }
    }
}

/// Rows that are up to date, one step behind, many, and never updated; gaps that begin before the decay of the learning rate, at its
/// first step, and inside it.
fn gaps_of_every_length<D: Device>(device: &D, numbers: Numbers) {
    if numbers != Numbers::F32 {
        return;
    }
    for (mode, step) in
        [(AdamMode::Catchup, 200), (AdamMode::Touched, 200), (AdamMode::Dense, 200), (AdamMode::Catchup, 1)]
    {
        let mut case = Case::new(numbers, 9, 24, 6, -0.3, 33).with_adam(mode);
        let last_update: Vec<u64> =
            [step, 199, 198, 180, 162, 161, 160, 159, 140, 100, 1, 0].map(|at| at.min(step)).repeat(2);
        // The first twelve fire, and the same gaps again without firing.
        (0..24).for_each(|f| case.p.b_enc[f] = if f < 12 { 3.0 } else { -100.0 });
        let want = reference::report(&case.p, &case.x);
        let fired: Vec<bool> = want.fired.iter().map(|&count| count > 0).collect();
        assert!(fired[..12].iter().all(|&fired| fired) && !fired[12..].contains(&true), "the case is what it says");
        let gradient = reference::gradient(&case.p, &case.x, f64::from(case.lambda));
        for path in PATHS {
            let label = format!("{mode:?} at step {step} on {path:?}");
            let (mut run, mut adam) = begin(device, &case, &last_update);
            let mut p = case.p.clone();
            assert!(run.step(path, case.lambda, &AdamUpdate { clip: 0.5, ..update(step) }).ok);
            adam.update(&mut p, &gradient, &fired, step, LR, 0.5);
            compare(&run, &case.p, &p, &adam, &label);
            assert_eq!(clock(&run.dictionary, Clock::LastUpdate), adam.last_update, "{label}");
            // What the others are owed right behind the step, one later, and at the end.
            for next in [step + 1, step + 2, 240] {
                let settled = run.settled(&case, next);
                let want = if mode == AdamMode::Catchup { adam.settled(&p, next, LR) } else { p.clone() };
                for tensor in [Tensor::EncoderWeight, Tensor::DecoderWeight] {
                    let (now, was) = (wide(read(&run.dictionary, tensor)), flat(&p, tensor));
                    let moved = less(&wide(read(&settled.dictionary, tensor)), &now);
                    let what = format!("{tensor:?} settled at {next}, {label}");
                    rows_near(&what, 9, &moved, &less(&flat(&want, tensor), &was), &was);
                }
            }
        }
    }
}

/// Squares of gradients that lie twelve orders of magnitude apart in a row: none becomes 0, or the next step would be m / ε.
fn a_second_moment_above_zero_stays_so<D: Device>(device: &D, numbers: Numbers) {
    for (width, features) in [(130, 6), (521, 4)] {
        let mut case = Case::new(numbers, width, features, 1, 1.0, 34);
        // The decoder's gradient follows x, and the encoder's too: one large column in each block, small ones beside it.
        let small = 2f64.powi(-20);
        case.x[0] = (0..width).map(|d| if d % 128 == 3 { 1.0 } else { small * f64::from(1 + d as u32 % 3) }).collect();
        case.p.w_dec = vec![vec![0.0; width]; features];
        case.p.w_enc = case.p.w_dec.clone();
        case.p.b_dec = vec![0.0; width];
        case.p.b_enc = vec![1.0; features];
        for path in PATHS {
            let mut run = Run::new(device, &case);
            let mut before = read(&run.dictionary, Tensor::DecoderWeight);
            let report = run.step(path, 0.0, &AdamUpdate { clip: f32::INFINITY, ..update(0) });
            assert!(report.ok && report.active == features as u64, "{report:?}");
            let second = read_moment(&run.dictionary, Tensor::DecoderWeight, Moment::Second);
            let zeros = second.iter().filter(|&&v| v <= 0.0).count();
            assert_eq!(zeros, 0, "second moments that became 0 at width {width} on {path:?}");
            for step in 1..4 {
                let now = read(&run.dictionary, Tensor::DecoderWeight);
                let most = now.iter().zip(&before).map(|(now, before)| (now - before).abs()).fold(0.0, f32::max);
                assert!(most < 20.0 * 1e-3, "a weight moves by {most} at step {step}, width {width}, {path:?}");
                before = now;
                run.step(path, 0.0, &AdamUpdate { clip: f32::INFINITY, ..update(step) });
            }
        }
    }
}
