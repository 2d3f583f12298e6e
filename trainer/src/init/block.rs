//! Weights of some features on their way from one form to another.

use std::ops::Range;

use kernels::cpu::Cpu;
use kernels::{Dictionary, Tensor};
use loader::Store;
use rayon::prelude::*;

use crate::{Error, checkpoint, evaluate};

/// Some features of a dictionary.
pub(crate) struct Block {
    pub(crate) w_enc_fd: Vec<f32>,
    pub(crate) b_enc_f: Vec<f32>,
    pub(crate) w_dec_fd: Vec<f32>,
}

impl Block {
    /// As the weights of a checkpoint are.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when a file is damaged.
    pub(crate) fn of_checkpoint(
        device: &Cpu,
        store: &Store,
        found: &checkpoint::Found,
        features: Range<usize>,
    ) -> Result<Block, Error> {
        let (width, count) = (found.manifest.width, features.len());
        let sae = evaluate::load_features(device, store, found, features, 1)?;
        let mut block =
            Block { w_enc_fd: vec![0.0; count * width], b_enc_f: vec![0.0; count], w_dec_fd: vec![0.0; count * width] };
        sae.read(Tensor::EncoderWeight, 0..count, &mut block.w_enc_fd)?;
        sae.read(Tensor::EncoderBias, 0..count, &mut block.b_enc_f)?;
        sae.read(Tensor::DecoderWeight, 0..count, &mut block.w_dec_fd)?;
        Ok(block)
    }
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
