//! What a GPU rounds stochastically, once more: the generator and the formats of kernels/cuda/rounding.cuh and parameter.cuh, and a step
//! of Adam that must come out to the bit.

use half::bf16;
use kernels::cuda::{Cuda, Moments, Precision};
use kernels::{AdamUpdate, Moment, Path, Tensor, Training};

use crate::cases::{Case, Numbers, Run, read_arrays, update};
use crate::fixture;

/// Columns with one scale.
const SCALE_BLOCK: usize = 128;

/// What is drawn for: each has bits of its own.
#[derive(Clone, Copy, Debug)]
enum Rounded {
    Moments = 0,
    Weights = 1,
}

/// Philox 4×32 with 7 rounds.
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..7 {
        let products = [0xd251_1f53 * u64::from(c[0]), 0xcd9e_8d57 * u64::from(c[2])];
        let [(high0, low0), (high1, low1)] = products.map(|product| ((product >> 32) as u32, product as u32));
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0];
        k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

/// The row whose numbers are rounded.
#[derive(Clone, Copy)]
struct Key {
    seed: u64,
    step: u64,
    feature: usize,
    tensor: u32,
}

impl Key {
    /// The 32 bits of column `d`.
    fn bits(self, d: usize, what: Rounded) -> u32 {
        let column = (d / 4 * 4) as u32 | self.tensor << 1 | what as u32;
        let counter = [self.feature as u32, column, self.step as u32, (self.step >> 32) as u32];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32])[d % 4]
    }
}

/// bf16 by 16 random bits below those that are kept.
fn to_bf16(v: f32, random: u32) -> f32 {
    if v.is_finite() { bf16::from_bits(((v.to_bits() + random) >> 16) as u16).to_f32() } else { v }
}

/// A share of a block's scale as a code: the code's number, and its share by number.
struct Code {
    top: u32,
    share: fn(f32) -> f32,
    root: fn(f32) -> f32,
}

const FIRST: Code = Code { top: 127, share: |t| t * t, root: f32::sqrt };
const SECOND: Code = Code { top: 255, share: |t| (t * t) * (t * t), root: |share| share.sqrt().sqrt() };

impl Code {
    fn share_of(&self, q: u32) -> f32 {
        (self.share)(q as f32 * (1.0 / self.top as f32))
    }

    /// What is stored of a magnitude in a block of this scale, rounded by 16 random bits.
    fn stored(&self, magnitude: f32, scale: f32, random: u32, least: u32) -> f32 {
        let share = if scale == 0.0 { 0.0 } else { (magnitude / scale).min(1.0) };
        let below = ((self.top as f32 * (self.root)(share)) as u32).min(self.top - 1);
        let (low, high) = (self.share_of(below), self.share_of(below + 1));
        let up = random as f32 / 65536.0 * (high - low) < share - low;
        scale * self.share_of((below + u32::from(up)).max(least))
    }
}

/// The moments of a row as they are stored.
fn stored_moments(moments: Moments, first_d: &mut [f32], second_d: &mut [f32], key: Key) {
    let random = |d: usize| key.bits(d, Rounded::Moments);
    match moments {
        Moments::F32 => {}
        Moments::Bf16 => {
            first_d.iter_mut().enumerate().for_each(|(d, m)| *m = to_bf16(*m, random(d) >> 16));
            second_d.iter_mut().enumerate().for_each(|(d, v)| *v = to_bf16(*v, random(d) & 0xffff));
        }
        Moments::Int8 => {
            let blocks = first_d.chunks_mut(SCALE_BLOCK).zip(second_d.chunks_mut(SCALE_BLOCK));
            for (block, (first, second)) in blocks.enumerate() {
                let scale = |values: &[f32]| values.iter().fold(0.0, |scale: f32, value| scale.max(value.abs()));
                let (first_scale, second_scale) = (scale(first), scale(second));
                for (i, (m, v)) in first.iter_mut().zip(second).enumerate() {
                    let random = random(block * SCALE_BLOCK + i);
                    *m = FIRST.stored(m.abs(), first_scale, random >> 16, 0).copysign(*m);
                    *v = SECOND.stored(*v, second_scale, random & 0xffff, u32::from(*v > 0.0));
                }
            }
        }
    }
}

/// A step of Adam without a gradient, in binary32 and in its order of operations.
fn step_of_silent_row(update: &AdamUpdate, [w_d, first_d, second_d]: [&mut [f32]; 3]) {
    let n = (update.step + 1) as f64;
    let factor = (update.lr.at(update.step) / (1.0 - 0.9f64.powf(n))) as f32;
    let root = (1.0 / (1.0 - 0.999f64.powf(n)).sqrt()) as f32;
    for ((w, m), v) in w_d.iter_mut().zip(first_d).zip(second_d) {
        *m = (-*m).mul_add(0.1, *m);
        *v *= 0.999;
        *w = (-factor).mul_add(*m / v.sqrt().mul_add(root, 1e-8), *w);
    }
}

/// A dictionary in which no feature fires, so that a step moves it by its moments alone.
fn silent<'a>(device: &'a Cuda, case: &Case) -> Run<'a, Cuda> {
    let mut run = Run::new(device, case);
    let (width, features) = (case.shape.width, case.shape.features);
    let mut numbers = fixture::Numbers::new(4);
    for tensor in [Tensor::EncoderWeight, Tensor::DecoderWeight] {
        let first: Vec<f32> = (0..features * width).map(|_| 1e-2 * numbers.unit().powi(3)).collect();
        let second: Vec<f32> = first.iter().map(|m| m * m * (1.5 + numbers.unit())).collect();
        run.dictionary.write_moment(tensor, Moment::First, 0..features, &first);
        run.dictionary.write_moment(tensor, Moment::Second, 0..features, &second);
    }
    run
}

/// A step of a GPU is the one above, to the bit, on either path; another step or another seed rounds otherwise, and the mean of
/// what was rounded is what was to be.
///
/// # Panics
/// When the GPU does something else.
pub fn check(device: &Cuda, precision: Precision) {
    let (in_bf16, moments) = match precision {
        Precision::F32 => (false, Moments::F32),
        Precision::Mixed(moments) => (false, moments),
        Precision::Bf16Sr(moments) => (true, moments),
    };
    // Two blocks of columns in 8 bits, the second one short and padded; more columns than a block of threads holds.
    for (width, features) in [(204, 9), (521, 3)] {
        let case = Case::new(Numbers::Mixed, width, features, 2, -1e3, 3);
        for (path, update) in [
            (Path::Sparse, update(5)),
            (Path::Dense, update(6)),
            (Path::Sparse, AdamUpdate { seed: 1 << 40, ..update(5) }),
        ] {
            let mut run = silent(device, &case);
            let matrices = [(Tensor::EncoderWeight, 0), (Tensor::DecoderWeight, 1)];
            let before = matrices.map(|(tensor, _)| read_arrays(&run.dictionary, tensor));
            assert!(run.step(path, 0.0, &update).ok);
            for ((tensor, number), before) in matrices.into_iter().zip(before) {
                let [mut w, mut first, mut second] = before;
                let rows =
                    w.chunks_exact_mut(width).zip(first.chunks_exact_mut(width)).zip(second.chunks_exact_mut(width));
                let mut error = Vec::new();
                for (feature, ((w_d, first_d), second_d)) in rows.enumerate() {
                    let key = Key { seed: update.seed, step: update.step, feature, tensor: number };
                    step_of_silent_row(&update, [w_d, first_d, second_d]);
                    stored_moments(moments, first_d, second_d, key);
                    for (d, w) in w_d.iter_mut().enumerate().filter(|_| in_bf16) {
                        let (exact, stored) = (*w, to_bf16(*w, key.bits(d, Rounded::Weights) & 0xffff));
                        error.push(f64::from(stored - exact) / f64::from(exact.abs() / 128.0));
                        *w = stored;
                    }
                }
                let label = format!("{precision:?} {path:?} {tensor:?} {width}");
                for (what, (want, got)) in
                    [w, first, second].into_iter().zip(read_arrays(&run.dictionary, tensor)).enumerate()
                {
                    let off = want.iter().zip(&got).position(|(want, got)| want.to_bits() != got.to_bits());
                    assert_eq!(off.map(|at| (at, want[at], got[at])), None, "{label}, array {what}");
                }
                // Each error is at most one spacing, a 128th: the mean of n is within five deviations of 0.
                let mean = error.iter().sum::<f64>() / error.len().max(1) as f64;
                assert!(mean.abs() <= 5.0 * 0.5 / (error.len().max(1) as f64).sqrt(), "{label}: {mean}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first known answer of the generator's authors, for 7 rounds.
    #[test]
    fn the_generator_gives_the_published_numbers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
    }

    #[test]
    fn every_part_of_a_key_changes_the_bits() {
        let key = Key { seed: 1, step: 2, feature: 3, tensor: 0 };
        let others = [
            Key { seed: 2, ..key },
            Key { seed: 1 + (1 << 32), ..key },
            Key { step: 3, ..key },
            Key { step: 2 + (1 << 32), ..key },
            Key { feature: 4, ..key },
            Key { tensor: 1, ..key },
        ];
        let of = |key: Key, what| (0..64).map(|d| key.bits(d, what)).collect::<Vec<u32>>();
        let bits = of(key, Rounded::Weights);
        assert_eq!(bits, of(key, Rounded::Weights));
        for other in others.map(|other| of(other, Rounded::Weights)).into_iter().chain([of(key, Rounded::Moments)]) {
            assert!(bits.iter().zip(&other).filter(|(a, b)| a == b).count() < 2);
        }
    }

    /// Over all values of the random bits the mean is the number itself; over many draws it comes near.
    #[test]
    fn stochastic_rounding_has_no_bias() {
        for v in [1.003_f32, -0.017, 3e-20, 65_000.0] {
            let mean = (0..1 << 16).map(|random| f64::from(to_bf16(v, random))).sum::<f64>() / 65_536.0;
            assert!((mean / f64::from(v) - 1.0).abs() < 1e-9, "{v}: {mean}");
        }
        for code in [FIRST, SECOND] {
            for share in [0.9_f32, 0.1, 0.003, 1e-4] {
                let stored = (0..1 << 16).map(|random| f64::from(code.stored(share, 1.0, random, 0)));
                let mean = stored.sum::<f64>() / 65_536.0;
                assert!((mean / f64::from(share) - 1.0).abs() < 1e-3, "{share}: {mean}");
            }
        }
        let key = Key { seed: 9, step: 0, feature: 0, tensor: 1 };
        let draws = (0..1000).flat_map(|step| (0..100).map(move |d| Key { step, ..key }.bits(d, Rounded::Weights)));
        let (mut low, mut high) = (0.0, 0.0);
        for bits in draws {
            low += f64::from(bits & 0xffff) / 65_536.0 - 0.5;
            high += f64::from(bits >> 16) / 65_536.0 - 0.5;
        }
        // 100,000 draws of deviation 1/√12.
        let bound = 5.0 * (100_000.0_f64 / 12.0).sqrt();
        assert!(low.abs() < bound && high.abs() < bound, "{low} {high}");
    }

    /// A second moment without a gradient falls by a thousandth a step, which is less than half of the spacing of either format.
    #[test]
    fn a_second_moment_shrinks() {
        for moments in [Moments::Bf16, Moments::Int8] {
            let (mut first, mut second) = (vec![0.0; 512], vec![0.25; 512]);
            for (i, v) in second.iter_mut().enumerate().filter(|(i, _)| i % 128 != 0) {
                *v = 0.01 + 1e-4 * i as f32;
            }
            let sum = |second: &[f32]| second.iter().map(|&v| f64::from(v)).sum::<f64>();
            let before = sum(&second);
            for step in 0..300 {
                second.iter_mut().for_each(|v| *v *= 0.999);
                stored_moments(moments, &mut first, &mut second, Key { seed: 5, step, feature: 0, tensor: 0 });
            }
            let ratio = sum(&second) / before / 0.999_f64.powi(300);
            assert!((ratio - 1.0).abs() < 0.02, "{moments:?}: {ratio}");
        }
    }

    #[test]
    fn what_is_not_finite_is_not_rounded() {
        for random in [0, 0xffff] {
            assert!(to_bf16(f32::NAN, random).is_nan() && to_bf16(f32::NEG_INFINITY, random) == f32::NEG_INFINITY);
        }
    }
}
