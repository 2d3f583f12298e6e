//! Results are the same bits whatever the screen, the instruction set and the number of threads. What the results must
//! be is checked in tests/tests/operations.rs.

use kernels::cpu::{Cpu, Isa, Options, ScreenDtype};
use kernels::{
    AdamMode, AdamUpdate, Device, Dictionary, LearningRate, Path, Report, RowDtype, Shape, Tensor, Training,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SHAPE: Shape = Shape { width: 75, features: 610, batch: 333, dense_bytes: usize::MAX };

/// Reports and weights of five steps on random numbers.
fn train(options: Options, path: Path) -> (Vec<Report>, Vec<u32>) {
    let Shape { width, features, batch, .. } = SHAPE;
    let device = Cpu::with(options).expect("threads");
    let memory = "enough memory";
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut uniform = |n: usize, size: f32| (0..n).map(|_| size * (rng.random::<f32>() - 0.5)).collect::<Vec<_>>();
    let mut dictionary = device.training(SHAPE, AdamMode::Catchup).expect(memory);
    for tensor in [Tensor::EncoderWeight, Tensor::DecoderWeight] {
        dictionary.write(tensor, 0..features, &uniform(features * width, 0.4));
    }
    dictionary.write(Tensor::EncoderBias, 0..features, &vec![-1.0; features]);
    let (mut x, mut tally) = (device.rows(batch, width).expect(memory), device.tally(width, features).expect(memory));
    let mut staging = device.staging(4 * batch * width).expect(memory);
    let reports = (0..5).map(|step| {
        let rows = uniform(batch * width, 4.0);
        staging.as_mut().iter_mut().zip(rows.iter().flat_map(|v| v.to_le_bytes())).for_each(|(to, from)| *to = from);
        device.normalize(&staging, RowDtype::F32, batch, batch, 1.1, &mut x);
        dictionary.encode(&x, path);
        dictionary.decode(&x);
        dictionary.residual(&x);
        dictionary.backward(&x, 0.5);
        dictionary.count(&x, &mut tally, 5..200);
        dictionary
            .adam(&x, &AdamUpdate { step, lr: LearningRate::constant(1e-3), clip: 1.0, tokens: step + 1, seed: 0 });
        dictionary.report(0).expect(memory)
    });
    let reports = reports.collect();
    let mut weights = vec![0.0; features * width];
    dictionary.read(Tensor::EncoderWeight, 0..features, &mut weights).expect(memory);
    (reports, weights.into_iter().map(f32::to_bits).collect())
}

#[test]
fn bits_do_not_depend_on_how_they_are_made() {
    let screens =
        [ScreenDtype::F32, ScreenDtype::Int8, ScreenDtype::Bf16].into_iter().filter(|screen| screen.available());
    for path in [Path::Sparse, Path::Dense] {
        let plain = Options { threads: Some(1), screen: Some(ScreenDtype::F32), isa: Some(Isa::Portable) };
        let want = train(plain, path);
        assert!(want.0.iter().all(|report| report.ok && report.active > 0));
        for (screen, threads) in screens.clone().zip([3, 2, 1]) {
            let got = train(Options { threads: Some(threads), screen: Some(screen), isa: None }, path);
            assert!(got == want, "{path:?}, {screen:?}, {threads} threads");
        }
    }
}
