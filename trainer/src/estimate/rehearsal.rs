//! What a step takes here: a few real steps on rows of the recipe's shape that are made for it, and nothing read or written.
//!
//! The rows are normal, and every encoder bias lies where so many features fire as are expected once training has settled. A step that
//! would take too long or too much memory is made with fewer features, and its time is taken to grow with their number, as
//! the encoder's GEMM and Adam do.

use std::time::{Duration, Instant};

use kernels::mesh::TILE;
use kernels::{AdamUpdate, Device, Dictionary, Path, Purpose, RowDtype, Shape, Tensor};
use loader::memory;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use super::plan;
use crate::data::calibrate::normal_upper_quantile;
use crate::recipe::Recipe;
use crate::schedule::Schedule;
use crate::step::{StepInput, step, with_room};
use crate::threads::on_threads;
use crate::{Error, init};

/// Additions and multiplications of the encoder in a step, at most: a fraction of a second on two cores.
const MOST_FLOPS: f64 = 2e10;

/// Share of the available memory that may be taken.
const MOST_MEMORY: u64 = 4;

/// Steps that are timed, and how long that may go on.
const STEPS: usize = 10;
const MOST_TIME: Duration = Duration::from_secs(2);

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Seconds of a step.
    pub step_s: f64,
    /// Seconds of a batch that is looked at and not trained on.
    pub forward_s: f64,
    /// Bytes a second at which weights are copied to where a checkpoint is made of them.
    pub copy: f64,
    /// Features that were there.
    pub features: usize,
}

/// Makes steps of `shape` on a device of one rank, with `l0` active features a row.
///
/// # Errors
/// Those of the device.
pub fn rehearse<D: Device>(device: &D, recipe: &Recipe, shape: Shape, l0: f64) -> Result<Measured, Error> {
    on_threads(device, recipe.train.threads, || rehearsed(device, recipe, shape, l0))?
}

fn rehearsed<D: Device>(device: &D, recipe: &Recipe, shape: Shape, l0: f64) -> Result<Measured, Error> {
    let features = bearable(device, shape);
    let small = Shape { features, ..shape };
    let mut sae = device.training(small, plan::adam_mode(recipe))?;
    init::random(&mut sae, 0..features, recipe.train.seed, recipe.sae.decoder_norm);
    let share = (l0 / shape.features as f64).min(0.5);
    let bias = -(f64::from(recipe.sae.decoder_norm) * normal_upper_quantile(share)) as f32;
    sae.write(Tensor::EncoderBias, 0..features, &vec![bias; features]);
    let mut x = device.rows(small.batch, small.width)?;
    let mut tally = device.tally(small.width, features)?;
    let mut staging = device.staging(small.batch * small.width * size_of::<f32>())?;
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.data.seed);
    for value in staging.as_mut().chunks_exact_mut(size_of::<f32>()) {
        let normal: f32 = StandardNormal.sample(&mut rng);
        value.copy_from_slice(&normal.to_le_bytes());
    }
    let (batch, train) = (small.batch, &recipe.train);
    let schedule = Schedule::new(1 << 20, train.lr, train.l1, train.l1_warmup, train.lr_decay);
    let mut made = 0;
    let step_s = seconds(|| {
        device.normalize(&staging, RowDtype::F32, batch, batch, 1.0, &mut x);
        let tokens = (made + 1) * batch as u64;
        let update = AdamUpdate { step: made, lr: schedule.lr(), clip: train.clip as f32, tokens, seed: train.seed };
        let lambda = schedule.final_lambda() as f32;
        let report = with_room(&mut sae, Path::Sparse, |sae, path| {
            let input = StepInput { path, lambda, update, counted: 0..batch };
            step(sae, &x, &mut tally, &input);
        })?;
        made += 1;
        Ok(report.ok)
    })?;
    let forward_s = seconds(|| {
        device.normalize(&staging, RowDtype::F32, batch, batch, 1.0, &mut x);
        let report = with_room(&mut sae, Path::Sparse, |sae, path| {
            sae.encode(&x, path);
            sae.decode(&x);
            sae.residual(&x);
            sae.count(&x, &mut tally, 0..batch);
        })?;
        Ok(report.ok)
    })?;
    let mut w_dec_fd = vec![0.0f32; features * small.width];
    let copy_s = seconds(|| Ok(sae.read(Tensor::DecoderWeight, 0..features, &mut w_dec_fd).map(|()| true)?))?;
    let more = shape.features as f64 / features as f64;
    let copy = (size_of::<f32>() * w_dec_fd.len()) as f64 / copy_s;
    Ok(Measured { step_s: more * step_s, forward_s: more * forward_s, copy, features })
}

/// As many features, in whole tiles, as a step takes neither too long nor too much memory with.
fn bearable(device: &impl Device, shape: Shape) -> usize {
    let in_time = MOST_FLOPS / (2.0 * shape.batch as f64 * shape.width as f64);
    let mut features = shape.features.min(((in_time / TILE as f64) as usize).max(1) * TILE);
    let most = memory::available().map_or(u64::MAX, |bytes| bytes / MOST_MEMORY);
    while features > TILE && device.bytes(Shape { features, ..shape }, Purpose::Training).total() > most {
        features = (features / 2).next_multiple_of(TILE);
    }
    features
}

/// The seconds that `work` takes: the middle of a few times, after one that is not counted.
fn seconds(mut work: impl FnMut() -> Result<bool, Error>) -> Result<f64, Error> {
    let mut once = || {
        let started = Instant::now();
        match work()? {
            true => Ok(started.elapsed()),
            false => Err(Error::Internal("a step on rows made for it was refused".into())),
        }
    };
    let begun = Instant::now();
    once()?;
    let mut times = vec![once()?];
    while times.len() < STEPS && begun.elapsed() < MOST_TIME {
        times.push(once()?);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64())
}

#[cfg(test)]
mod tests {
    use kernels::cpu::Cpu;

    use super::*;

    #[test]
    fn steps_are_made_with_as_many_features_as_are_bearable() {
        let recipe: Recipe =
            toml::from_str("[data]\ntrain = 'x'\n[sae]\nfeatures = 512\n[run]\ndir = 'y'\n").expect("a recipe");
        let device = Cpu::new(Some(1)).expect("threads");
        let shape = Shape { width: 32, features: 512, batch: 64, dense_bytes: 1 << 20 };
        let measured = rehearse(&device, &recipe, shape, 20.0).expect("steps are made");
        assert_eq!(measured.features, 512);
        assert!(measured.step_s > 0.0 && measured.forward_s > 0.0 && measured.copy > 0.0, "{measured:?}");
        // 2 · 4096 · 4096 · F FLOP: five tiles would be 2.1e10.
        assert_eq!(bearable(&device, Shape { width: 4096, features: 1 << 25, batch: 4096, ..shape }), 4 * TILE);
    }
}
