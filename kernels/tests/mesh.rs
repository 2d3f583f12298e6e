//! A mesh of ranks makes the steps that one rank makes, up to rounding, and the same mesh the same bits.

use kernels::cpu::{Cpu, Options};
use kernels::mesh::{Axes, Mesh};
use kernels::ranks::threads;
use kernels::{
    AdamMode, AdamUpdate, Clock, Device, Dictionary, LearningRate, Moment, Path, Report, RowDtype, Shape, Sums, Tensor,
    Training,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WIDTH: usize = 40;
const FEATURES: usize = 700;
const BATCH: usize = 90;
const STEPS: u64 = 4;

/// What a run leaves, put together over its ranks.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    reports: Vec<Report>,
    sums: Sums,
    /// Weights as they were looked at, of every rank's shard.
    settled: Vec<f32>,
    /// First and second moments, and clocks, by their owners.
    moments: Vec<f32>,
    last_fired: Vec<u64>,
}

fn uniform(seed: u64, n: usize, size: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| size * (rng.random::<f32>() - 0.5)).collect()
}

/// Rows of a step that the rank's part of the feature group brings, out of the whole batch: uneven shares, and none for the last rank
/// of three or more.
fn share(rank: usize, ranks: usize) -> std::ops::Range<usize> {
    let bringing = if ranks > 2 { ranks - 1 } else { ranks };
    let at = |rank: usize| BATCH * rank.min(bringing).pow(2) / bringing.pow(2);
    at(rank)..at(rank + 1)
}

/// One rank's part of a run.
fn steps(device: &Cpu, mode: AdamMode, path: Path) -> Outcome {
    let (axes, memory) = (device.axes().clone(), "enough memory");
    let Mesh { feature, .. } = axes.place.mesh;
    let shard = axes.place.shard(FEATURES);
    let shape = Shape { width: WIDTH, features: shard.len(), batch: BATCH, dense_bytes: usize::MAX };
    let mut sae = device.training(shape, mode).expect(memory);
    for (seed, tensor) in [(1, Tensor::EncoderWeight), (2, Tensor::DecoderWeight)] {
        let all = uniform(seed, FEATURES * WIDTH, 0.5);
        sae.write(tensor, 0..shard.len(), &all[shard.start * WIDTH..shard.end * WIDTH]);
    }
    sae.write(Tensor::EncoderBias, 0..shard.len(), &vec![-1.2; shard.len()]);
    let mut x = device.rows(BATCH, WIDTH).expect(memory);
    let mut tally = device.tally(WIDTH, shard.len()).expect(memory);
    let mut staging = device.staging(4 * BATCH * WIDTH).expect(memory);
    let mut reports = Vec::new();
    for step in 0..STEPS {
        let rows = uniform(100 + step, BATCH * WIDTH, 3.0);
        let of_rank = |rank: usize| share(rank, axes.place.mesh.ranks());
        let group = axes.place.data() * feature..(axes.place.data() + 1) * feature;
        let first = of_rank(group.start).start;
        let bytes = |rank: usize| 4 * WIDTH * (of_rank(rank).start - first)..4 * WIDTH * (of_rank(rank).end - first);
        let parts: Vec<_> = group.clone().map(bytes).collect();
        let own = of_rank(axes.place.rank);
        let own_bytes: Vec<u8> =
            rows[own.start * WIDTH..own.end * WIDTH].iter().flat_map(|value| value.to_le_bytes()).collect();
        staging.as_mut()[parts[axes.place.feature()].clone()].copy_from_slice(&own_bytes);
        device.gather(&mut staging, &parts).expect("ranks that answer");
        let n = of_rank(group.end - 1).end - first;
        device.normalize(&staging, RowDtype::F32, n, BATCH, 1.1, &mut x);
        sae.encode(&x, path);
        sae.decode(&x);
        sae.residual(&x);
        sae.backward(&x, 0.3);
        sae.count(&x, &mut tally, 0..n);
        let tokens = (step + 1) * BATCH as u64;
        sae.adam(&x, &AdamUpdate { step, lr: LearningRate::constant(1e-2), clip: 1.0, tokens, seed: 0 });
        reports.push(sae.report(0).expect("ranks that answer"));
    }
    let mut looked = device.dictionary(shape).expect(memory);
    let next =
        AdamUpdate { step: STEPS, lr: LearningRate::constant(1e-2), clip: 1.0, tokens: STEPS * BATCH as u64, seed: 0 };
    sae.settle_into(&next, &mut looked);
    let room = |tensor, rows: usize| vec![0.0; if tensor == Tensor::EncoderBias { rows } else { rows * WIDTH }];
    let settled_rows = |tensor, rows: std::ops::Range<usize>| {
        let mut values = room(tensor, rows.len());
        looked.read(tensor, rows, &mut values).expect("no GPU");
        values
    };
    let moment_rows = |tensor, moment, rows: std::ops::Range<usize>| {
        let mut values = room(tensor, rows.len());
        sae.read_moment(tensor, moment, rows, &mut values).expect("no GPU");
        values
    };
    let tensors = [Tensor::EncoderWeight, Tensor::EncoderBias, Tensor::DecoderWeight];
    let mut settled: Vec<f32> = tensors.iter().flat_map(|&tensor| settled_rows(tensor, 0..shard.len())).collect();
    settled.extend(settled_rows(Tensor::DecoderBias, 0..1));
    let owned = axes.owned(shard.len());
    let moments = [Moment::First, Moment::Second]
        .iter()
        .flat_map(|&moment| tensors.iter().map(move |&tensor| (tensor, moment)))
        .flat_map(|(tensor, moment)| moment_rows(tensor, moment, owned.clone()))
        .collect();
    let mut last_fired = vec![0; owned.len()];
    sae.read_clock(Clock::LastFired, owned, &mut last_fired).expect("no GPU");
    Outcome { reports, sums: device.take_sums(&mut tally).expect("ranks that answer"), settled, moments, last_fired }
}

/// What every rank of a mesh leaves, in their order.
fn run(mesh: Mesh, mode: AdamMode, path: Path) -> Vec<Outcome> {
    let ranks = threads(mesh.ranks());
    std::thread::scope(|scope| {
        let running: Vec<_> = ranks
            .into_iter()
            .map(|ranks| {
                scope.spawn(move || {
                    let options = Options { threads: Some(1), ..Options::default() };
                    steps(&Cpu::among(options, Axes::of(&ranks, mesh)).expect("threads"), mode, path)
                })
            })
            .collect();
        running.into_iter().map(|rank| rank.join().expect("a rank that ends well")).collect()
    })
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1e-3)
}

#[test]
fn every_mesh_makes_the_steps_of_one_rank() {
    for mode in [AdamMode::Dense, AdamMode::Catchup, AdamMode::Touched] {
        for path in [Path::Sparse, Path::Dense] {
            let one = &run(Mesh::ONE, mode, path)[0];
            assert!(one.reports.iter().all(|report| report.ok && report.active > 1000), "{:?}", one.reports);
            for (data, feature) in [(2, 1), (1, 2), (2, 2), (3, 1), (1, 4), (4, 1), (2, 4)] {
                let mesh = Mesh { data, feature };
                let outcomes = run(mesh, mode, path);
                let name = format!("{mesh}, {mode:?}, {path:?}");
                for (rank, outcome) in outcomes.iter().enumerate() {
                    let place = kernels::mesh::Place { mesh, rank };
                    compare(one, outcome, place.shard(FEATURES), place.owned(FEATURES), &name);
                }
                if (data, feature) == (2, 2) {
                    assert!(run(mesh, mode, path) == outcomes, "{name}: the same mesh gives the same bits");
                }
            }
        }
    }
}

fn compare(one: &Outcome, rank: &Outcome, shard: std::ops::Range<usize>, owned: std::ops::Range<usize>, name: &str) {
    for (step, (a, b)) in one.reports.iter().zip(&rank.reports).enumerate() {
        let tolerance = if step == 0 { 1e-6 } else { 1e-4 };
        let pairs = [
            (a.squared_error, b.squared_error),
            (a.l1, b.l1),
            (a.active as f64, b.active as f64),
            (a.gradient_norm, b.gradient_norm),
        ];
        assert!((a.rows, a.ok) == (b.rows, b.ok), "{name}: {a:?} {b:?}");
        assert!(pairs.iter().all(|&(a, b)| near(a, b, tolerance)), "{name}, step {step}: {a:?} {b:?}");
    }
    assert_eq!(one.sums.rows, rank.sums.rows, "{name}");
    assert!(near(one.sums.squared_error, rank.sums.squared_error, 1e-4), "{name}");
    assert!(near(one.sums.squared_norm, rank.sums.squared_norm, 1e-6), "{name}");
    assert!(near(one.sums.l1, rank.sums.l1, 1e-4), "{name}");
    assert!(near(one.sums.active as f64, rank.sums.active as f64, 1e-3), "{name}");
    let near_all = |a: &[f32], b: &[f32], what: &str| {
        assert_eq!(a.len(), b.len(), "{name}");
        let far = a.iter().zip(b).filter(|&(&a, &b)| !near(a.into(), b.into(), 2e-2)).count();
        // A gradient near 0 may have either sign, and Adam's first steps move by the sign.
        assert!(far <= a.len() / 500, "{name}: {far} of {} {what}", a.len());
    };
    let cut = |all: &[f32], of: &std::ops::Range<usize>| -> Vec<f32> {
        let (enc, rest) = all.split_at(FEATURES * WIDTH);
        let (bias, rest) = rest.split_at(FEATURES);
        let (dec, rest) = rest.split_at(FEATURES * WIDTH);
        let rows = of.start * WIDTH..of.end * WIDTH;
        [&enc[rows.clone()], &bias[of.clone()], &dec[rows], rest].concat()
    };
    near_all(&cut(&one.settled, &shard), &rank.settled, "weights");
    let half = one.moments.len() / 2;
    let moments = [cut(&one.moments[..half], &owned), cut(&one.moments[half..], &owned)].concat();
    near_all(&moments, &rank.moments, "moments");
    let differ = one.last_fired[owned].iter().zip(&rank.last_fired).filter(|(a, b)| a != b).count();
    assert!(differ <= 2, "{name}: {differ} clocks");
}
