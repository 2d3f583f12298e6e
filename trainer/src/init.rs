//! Initial weights: drawn at random, or those that `train.init_from` names.
//!
//! At random `W_dec[f]` is a random direction of norm `decoder_norm`, `W_enc = W_decᵀ`, biases 0. Each feature draws from a
//! generator of its own, keyed by (seed, feature), so that any rank makes just the rows it holds and the result does
//! not depend on how features are spread.

mod block;
mod config;
pub(crate) mod feature_map;
pub(crate) mod names;
mod source;
mod weights;

use std::ops::Range;

use kernels::{Dictionary, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

pub(crate) use block::Block;
pub use source::Source;
pub(crate) use source::several;

use crate::Error;

/// Features written to the device at a time.
const BLOCK: usize = 1024;

/// Fills a fresh dictionary whose features are `features` of the whole.
pub fn random(dictionary: &mut impl Dictionary, features: Range<usize>, seed: u64, decoder_norm: f32) {
    let width = dictionary.shape().width;
    let mut block_fd = vec![0.0f32; BLOCK.min(features.len()) * width];
    for start in features.clone().step_by(BLOCK) {
        let end = (start + BLOCK).min(features.end);
        let rows_fd = &mut block_fd[..(end - start) * width];
        rows_fd.par_chunks_exact_mut(width).enumerate().for_each(|(row, direction_d)| {
            draw_direction(direction_d, seed, (start + row) as u64, decoder_norm);
        });
        let rows = start - features.start..end - features.start;
        dictionary.write(Tensor::DecoderWeight, rows.clone(), rows_fd);
        dictionary.write(Tensor::EncoderWeight, rows, rows_fd);
    }
}

fn draw_direction(direction_d: &mut [f32], seed: u64, feature: u64, norm: f32) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(feature);
    let mut squared = 0.0f64;
    for value in direction_d.iter_mut() {
        let normal: f64 = StandardNormal.sample(&mut rng);
        squared += normal * normal;
        *value = normal as f32;
    }
    let factor = (f64::from(norm) / squared.sqrt()) as f32;
    direction_d.iter_mut().for_each(|value| *value *= factor);
}

/// Starts from weights that lie elsewhere, of which the dictionary holds the features `held`. They may take other activations than
/// this run, which multiplies rows by `scale`: `W_enc·(s₀/s)`, `W_dec·(s/s₀)` and `b_dec·(s/s₀)` make the same feature activations of
/// the same row.
///
/// # Errors
/// [`Error::Weights`] that names a tensor which is not finite, and those of [`Source`].
pub fn from_source(
    dictionary: &mut impl Dictionary,
    held: Range<usize>,
    source: &Source,
    scale: f32,
) -> Result<(), Error> {
    let (to_rows, to_activations) = source.factors(scale);
    let times = |values: &mut [f32], factor: f64| {
        // Left alone where nothing changes: the bits are the source's.
        if factor != 1.0 {
            values.par_iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
        }
    };
    let width = dictionary.shape().width;
    let mut b_dec_d = source.decoder_bias()?;
    times(&mut b_dec_d, to_activations);
    source.check_finite("b_dec", &b_dec_d, 0, 1)?;
    dictionary.write(Tensor::DecoderBias, 0..1, &b_dec_d);
    let at_once = source.features_at_once();
    for start in held.clone().step_by(at_once) {
        let features = start..(start + at_once).min(held.end);
        let Block { mut w_enc_fd, b_enc_f, mut w_dec_fd } = block_of(source, features.clone())?;
        times(&mut w_enc_fd, to_rows);
        times(&mut w_dec_fd, to_activations);
        for (name, values, of_each) in
            [("W_enc", &w_enc_fd, width), ("b_enc", &b_enc_f, 1), ("W_dec", &w_dec_fd, width)]
        {
            source.check_finite(name, values, start, of_each)?;
        }
        let rows = features.start - held.start..features.end - held.start;
        dictionary.write(Tensor::EncoderWeight, rows.clone(), &w_enc_fd);
        dictionary.write(Tensor::EncoderBias, rows.clone(), &b_enc_f);
        dictionary.write(Tensor::DecoderWeight, rows, &w_dec_fd);
    }
    Ok(())
}

/// Weights of some features as an encoder has them that sees x itself.
///
/// # Errors
/// Those of [`Source`].
pub(crate) fn block_of(source: &Source, features: Range<usize>) -> Result<Block, Error> {
    let mut block = source.read(features)?;
    if source.subtracts_decoder_bias() {
        let b_dec_d = source.decoder_bias()?;
        // W_enc·(x − b_dec) + b_enc = W_enc·x + (b_enc − W_enc·b_dec).
        let rows = block.w_enc_fd.par_chunks_exact(b_dec_d.len()).zip(&mut block.b_enc_f);
        rows.for_each(|(w_enc_d, bias)| *bias = (f64::from(*bias) - dot(w_enc_d, &b_dec_d)) as f32);
    }
    Ok(block)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Bytes of host memory that [`from_source`] holds at most for a dictionary of `features`, for a while.
pub(crate) fn bytes(width: usize, features: usize) -> u64 {
    let matrix = 4 * width as u64 * features as u64;
    // A small file, and of the rows a block: its encoder as stored and turned around, and its decoder.
    (2 * matrix).min(weights::WHOLE_BYTES) + 3 * matrix.min(weights::BLOCK_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_depend_on_seed_and_feature_alone_and_have_the_norm() {
        let draw = |seed, feature| {
            let mut row = vec![0.0; 48];
            draw_direction(&mut row, seed, feature, 0.1);
            row
        };
        assert_eq!(draw(3, 7), draw(3, 7));
        assert_ne!(draw(3, 7), draw(3, 8));
        assert_ne!(draw(3, 7), draw(4, 7));
        let norm = draw(3, 7).iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((norm - 0.1).abs() < 1e-6, "{norm}");
    }
}
