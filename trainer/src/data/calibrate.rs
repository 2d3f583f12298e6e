//! Encoder biases from a sample, so that a chosen number of features fires on a row at the start.
//!
//! Feature f gets `b_enc[f] = −q`, q the value that its pre-activation `W_enc[f]·x` exceeds on a share `L0/F` of the
//! sampled rows. Where that share is less than ten rows of the sample, the quantile is taken from the normal
//! distribution of the same mean and variance instead: the extreme rows of a sample say little.

use kernels::{Dictionary, Tensor};
use loader::{RowFilter, sample};
use rayon::prelude::*;

use crate::Error;
use crate::data::Data;
use crate::recipe::Sae;
use crate::report::dot::dot;

/// Rows sampled.
const ROWS: usize = 8192;

/// Features handled at a time.
const BLOCK: usize = 1024;

/// Sets the encoder biases of `sae` by training rows that `filter` keeps, so that `settings.bias_init_l0` features fire on a row.
///
/// # Errors
/// Those of the loader; [`Error::Data`] when no sampled row is finite.
pub fn calibrate(
    sae: &mut impl Dictionary,
    data: &Data,
    (scale, filter): (f32, &RowFilter),
    settings: &Sae,
) -> Result<(), Error> {
    let width = data.train.width();
    // Another seed than the scale's: not that it matters, but two uses of one sample are one too many.
    let mut x_bd = sample(&data.train, ROWS, data.reading.data.seed ^ 1, &data.skip()?, filter)?.rows;
    x_bd.iter_mut().for_each(|value| *value *= scale);
    // A row that is not finite stops the run at its step; here it would make every bias NaN without a word.
    let x_bd: Vec<f32> =
        x_bd.chunks_exact(width).filter(|x_d| x_d.iter().all(|v| v.is_finite())).flatten().copied().collect();
    if x_bd.is_empty() {
        return Err(Error::Data(
            "sae.bias_init = \"calibrated\" finds no finite row: look at the data with `sae inspect`".into(),
        ));
    }
    let share = settings.bias_init_l0 / settings.features as f64;
    let features = sae.shape().features;
    for first in (0..features).step_by(BLOCK) {
        let rows = first..(first + BLOCK).min(features);
        let mut w_enc_fd = vec![0.0f32; rows.len() * width];
        sae.read(Tensor::EncoderWeight, rows.clone(), &mut w_enc_fd)?;
        let bias_f: Vec<f32> = w_enc_fd
            .par_chunks_exact(width)
            .map(|row_d| {
                let mut pre: Vec<f32> = x_bd.chunks_exact(width).map(|x_d| dot(row_d, x_d)).collect();
                -exceeded_by(&mut pre, share)
            })
            .collect();
        sae.write(Tensor::EncoderBias, rows, &bias_f);
    }
    Ok(())
}

/// The value that a share of all draws exceeds, estimated from the draws `values`.
fn exceeded_by(values: &mut [f32], share: f64) -> f32 {
    let expected = share * values.len() as f64;
    if expected >= 10.0 {
        let rank = (expected.round() as usize).min(values.len() - 1);
        return *values.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1;
    }
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    (mean + normal_upper_quantile(share) * variance.sqrt()) as f32
}

/// z with `P(Z > z) = share` for a standard normal Z, by bisection of the tail.
pub(crate) fn normal_upper_quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-10.0f64, 10.0f64);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        let tail = 0.5 * libm::erfc(middle / std::f64::consts::SQRT_2);
        if tail > share { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_from_the_sample_or_from_the_normal_tail() {
        let mut values: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        assert_eq!(exceeded_by(&mut values, 0.1), 899.0);
        assert!((normal_upper_quantile(0.025) - 1.959_964).abs() < 1e-5);
        assert!((normal_upper_quantile(1e-6) - 4.753_424).abs() < 1e-5);
        let rare = exceeded_by(&mut values, 1e-3);
        assert!(rare > 899.0 && rare.is_finite(), "{rare}");
    }
}
