//! Initial weights.
//!
//! `W_dec[f]` is a random direction of norm `decoder_norm`, `W_enc = W_decᵀ`, biases 0. Each feature draws from a
//! generator of its own, keyed by (seed, feature), so that any rank makes just the rows it holds and the result does
//! not depend on how features are spread.

use std::ops::Range;

use kernels::{Dictionary, Slot, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use safetensors::SafeTensors;

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
        dictionary.write(Tensor::DecoderWeight, Slot::Value, rows.clone(), rows_fd);
        dictionary.write(Tensor::EncoderWeight, Slot::Value, rows, rows_fd);
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

/// Starts from the weights in a safetensors file's `bytes`, of which the dictionary holds the features `held` of `features`; `name`
/// is for messages.
///
/// # Errors
/// [`Error::Weights`] when a tensor is missing or has another shape or dtype.
pub fn from_file(
    dictionary: &mut impl Dictionary,
    (held, features): (Range<usize>, usize),
    bytes: &[u8],
    name: &str,
) -> Result<(), Error> {
    let width = dictionary.shape().width;
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| Error::Weights(format!("{name} is not a safetensors file: {error}")))?;
    let tensor = |tensor: &str, shape: &[usize]| -> Result<Vec<f32>, Error> {
        let found = file.tensor(tensor).map_err(|_| {
            let names = file.names().into_iter().map(str::to_owned).collect::<Vec<_>>().join(", ");
            Error::Weights(format!("{name} has no tensor {tensor}; it has: {names}"))
        })?;
        if found.shape() != shape || found.dtype() != safetensors::Dtype::F32 {
            return Err(Error::Weights(format!(
                "{name}: {tensor} must be F32 {shape:?} (data of width {width}, sae.features = {features}), and is {:?} {:?}",
                found.dtype(),
                found.shape()
            )));
        }
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(found.data());
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::Weights(format!("{name}: {tensor} holds {} at index {index}", values[index])));
        }
        Ok(values)
    };
    let w_enc_fd = transpose(&tensor("W_enc", &[width, features])?, width, features);
    let rows = held.start * width..held.end * width;
    dictionary.write(Tensor::EncoderWeight, Slot::Value, 0..held.len(), &w_enc_fd[rows.clone()]);
    dictionary.write(Tensor::EncoderBias, Slot::Value, 0..held.len(), &tensor("b_enc", &[features])?[held.clone()]);
    dictionary.write(Tensor::DecoderWeight, Slot::Value, 0..held.len(), &tensor("W_dec", &[features, width])?[rows]);
    dictionary.write(Tensor::DecoderBias, Slot::Value, 0..1, &tensor("b_dec", &[width])?);
    Ok(())
}

/// `[rows, columns]` → `[columns, rows]`, in blocks that stay in cache.
pub(crate) fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0f32; matrix.len()];
    out.par_chunks_mut(TILE * rows).enumerate().for_each(|(block, out_block)| {
        let first = block * TILE;
        let tile_columns = (columns - first).min(TILE);
        for row_start in (0..rows).step_by(TILE) {
            for column in 0..tile_columns {
                for row in row_start..(row_start + TILE).min(rows) {
                    out_block[column * rows + row] = matrix[row * columns + first + column];
                }
            }
        }
    });
    out
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

    #[test]
    fn transpose_moves_every_entry() {
        let (rows, columns) = (37, 71);
        let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let turned = transpose(&matrix, rows, columns);
        for row in 0..rows {
            for column in 0..columns {
                assert_eq!(turned[column * rows + row], matrix[row * columns + column]);
            }
        }
    }
}
