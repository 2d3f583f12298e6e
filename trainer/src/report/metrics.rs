//! The reported metrics, by their exact definitions, from the sums that a device keeps.

use kernels::Sums;
use kernels::ranks::Group;
use serde::{Deserialize, Serialize};

use crate::ranks::together;

/// Metrics over a set of rows, on normalised data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// `mse + λ · l1_norm`.
    pub loss: f64,
    /// Mean over rows of `‖x − x̂‖²` (summed over the D values).
    pub mse: f64,
    /// Mean over rows of `Σ_f a_f ‖W_dec[f]‖`. Checkpoints up to version 0.1 call it `l1`.
    #[serde(alias = "l1")]
    pub l1_norm: f64,
    /// `1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖²` over the whole set: explained variance, 1 − FVU (fraction of variance unexplained).
    pub explained_variance: Option<f64>,
    /// One minus the mean over rows of `‖x − x̂‖² / ‖x − mean(x)‖²`: every row counts the same, however long it is. Rows within a
    /// millionth of their root mean square norm of the mean have nothing to explain and are left out. Known on held-out rows
    /// alone, whose mean is found first.
    #[serde(default)]
    pub explained_variance_rows: Option<f64>,
    /// `Σ‖x − x̂‖² / Σ‖x‖²`.
    pub normalized_mse: Option<f64>,
    /// L0: mean over rows of the number of active features.
    pub l0: f64,
}

impl Metrics {
    /// `None` when no row was counted. Ratios whose denominator is 0 are `None`.
    pub fn of(sums: &Sums, lambda: f64) -> Option<Metrics> {
        if sums.rows == 0 {
            return None;
        }
        let n = sums.rows as f64;
        let variance = sums.squared_norm - sums.x_d.iter().map(|x| x * x).sum::<f64>() / n;
        let (mse, l1_norm) = (sums.squared_error / n, sums.l1 / n);
        // Norms are f32: below their rounding the variance is 0, a single row, or rows that are all the same.
        let ratio =
            |denominator: f64| (denominator > 1e-6 * sums.squared_norm).then(|| sums.squared_error / denominator);
        Some(Metrics {
            loss: mse + lambda * l1_norm,
            mse,
            l1_norm,
            explained_variance: ratio(variance).map(|unexplained| 1.0 - unexplained),
            explained_variance_rows: None,
            normalized_mse: ratio(sums.squared_norm),
            l0: sums.active as f64 / n,
        })
    }
}

/// How often features fire: the number of features in each bin of log10(share of rows on which the feature is active).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DensityHistogram {
    /// Features that never fired.
    pub silent: u64,
    /// Bin i counts shares in `(10^(−(i+1)/2), 10^(−i/2)]`; the last also holds all below.
    pub half_decades: [u64; 16],
}

impl DensityHistogram {
    /// Of the counts of `sums`, in which every one of `ranks` has features of its own.
    ///
    /// # Errors
    /// [`kernels::Error::Peer`].
    pub fn of(sums: &Sums, ranks: &Group) -> Result<Self, kernels::Error> {
        let mut bins = [0; 17];
        for &fired in &sums.fired_f {
            if fired == 0 {
                bins[0] += 1;
            } else {
                let decades = -(fired as f64 / sums.rows as f64).log10();
                bins[1 + ((2.0 * decades) as usize).min(15)] += 1;
            }
        }
        let [silent, half_decades @ ..] = together::sum(ranks, bins)?;
        Ok(DensityHistogram { silent, half_decades })
    }
}

/// The share of features that are dead: silent over the last `min(window, tokens)` tokens. `last_fired_f` is the
/// number of tokens seen at the end of the batch in which each feature fired last, 0 for never; every one of `ranks` has features of
/// its own.
///
/// # Errors
/// [`kernels::Error::Peer`].
pub fn dead_fraction(last_fired_f: &[u64], tokens: u64, window: u64, ranks: &Group) -> Result<f64, kernels::Error> {
    let horizon = tokens.saturating_sub(window);
    let dead = last_fired_f.iter().filter(|&&fired| fired <= horizon).count();
    let [dead, features] = together::sum(ranks, [dead as u64, last_fired_f.len() as u64])?;
    Ok(dead as f64 / features as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explained_variance_is_over_the_set_not_a_mean_of_ratios() {
        // Rows (0, 0) and (2, 0), reconstructed as (0, 0) and (1, 0): error 1, variance 2, squared norm 4.
        let sums = Sums {
            rows: 2,
            squared_error: 1.0,
            squared_norm: 4.0,
            x_d: vec![2.0, 0.0],
            l1: 3.0,
            active: 1,
            fired_f: vec![1, 0],
        };
        let metrics = Metrics::of(&sums, 2.0).expect("two rows");
        assert_eq!(metrics.explained_variance, Some(0.5));
        assert_eq!(metrics.normalized_mse, Some(0.25));
        assert_eq!((metrics.mse, metrics.l1_norm, metrics.l0, metrics.loss), (0.5, 1.5, 0.5, 3.5));
        let histogram = DensityHistogram::of(&sums, &Group::alone()).expect("one rank");
        assert_eq!((histogram.silent, histogram.half_decades[0]), (1, 1));
    }

    #[test]
    fn one_row_has_no_variance_to_explain() {
        let sums = Sums {
            rows: 1,
            squared_error: 1.0,
            squared_norm: 4.0,
            x_d: vec![2.0],
            l1: 0.0,
            active: 0,
            fired_f: vec![0],
        };
        assert_eq!(Metrics::of(&sums, 1.0).expect("one row").explained_variance, None);
        assert_eq!(Metrics::of(&Sums::new(1, 1), 1.0), None);
    }

    #[test]
    fn dead_means_silent_over_the_window_or_all_tokens_so_far() {
        let dead = |last_fired_f: &[u64], tokens, window| {
            dead_fraction(last_fired_f, tokens, window, &Group::alone()).expect("one rank")
        };
        assert_eq!(dead(&[0, 10, 100], 100, 1000), 1.0 / 3.0);
        assert_eq!(dead(&[0, 10, 90, 100], 100, 50), 0.5);
        assert_eq!(dead(&[50, 51], 100, 50), 0.5);
    }
}
