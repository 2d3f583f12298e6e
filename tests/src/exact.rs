//! A dictionary in double precision, for rows as they are stored, and what its metrics are by their definitions: one loop a sum.

use std::path::Path;

use safetensors::SafeTensors;

/// Weights of a file, for rows as they are stored.
#[derive(Clone, Debug)]
pub struct Dictionary {
    /// `W_enc`, `[D, F]`.
    pub w_enc_df: Vec<f64>,
    /// `b_enc`, `[F]`.
    pub b_enc_f: Vec<f64>,
    /// `W_dec`, `[F, D]`.
    pub w_dec_fd: Vec<f64>,
    /// `b_dec`, `[D]`.
    pub b_dec_d: Vec<f64>,
}

/// Metrics over some rows, on data times a scale.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How many rows.
    pub rows: usize,
    /// Mean of `‖x − x̂‖²`.
    pub mse: f64,
    /// Mean of `Σ a ‖W_dec‖`.
    pub l1_norm: f64,
    /// Mean number of active features.
    pub l0: f64,
    /// `1 − Σ‖x − x̂‖² / Σ‖x − mean‖²`.
    pub explained_variance: f64,
    /// One minus the mean of `‖x − x̂‖² / ‖x − mean‖²`.
    pub explained_variance_rows: f64,
    /// `Σ‖x − x̂‖² / Σ‖x‖²`.
    pub normalized_mse: f64,
    /// On how many rows each feature fires.
    pub fired_f: Vec<u64>,
}

/// Whether two numbers agree up to a share of the second.
pub fn near(found: f64, expected: f64, relative: f64) -> bool {
    (found - expected).abs() <= relative * expected.abs()
}

impl Dictionary {
    /// Of a file of f32 weights.
    ///
    /// # Panics
    /// When it is none.
    pub fn read(path: &Path) -> Dictionary {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensor = |name: &str| -> Vec<f64> {
            let values = file.tensor(name).expect("a tensor").data().chunks_exact(4);
            values.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        };
        let [w_enc_df, b_enc_f, w_dec_fd, b_dec_d] = ["W_enc", "b_enc", "W_dec", "b_dec"].map(tensor);
        Dictionary { w_enc_df, b_enc_f, w_dec_fd, b_dec_d }
    }

    /// What it makes of rows, on data times `scale`: activations are the same there, lengths and errors grow with it.
    pub fn measure(&self, rows: &[f32], scale: f64) -> Measured {
        let (width, features) = (self.b_dec_d.len(), self.b_enc_f.len());
        let n = rows.len() / width;
        let x_nd: Vec<f64> = rows.iter().map(|x| f64::from(*x)).collect();
        let mut mean_d = vec![0.0; width];
        x_nd.chunks_exact(width).for_each(|x_d| mean_d.iter_mut().zip(x_d).for_each(|(mean, x)| *mean += x / n as f64));
        let norm_f: Vec<f64> =
            self.w_dec_fd.chunks_exact(width).map(|w_d| square(w_d.iter().copied()).sqrt()).collect();
        let mut fired_f = vec![0u64; features];
        let (mut error, mut variance, mut norm, mut shares, mut l1) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for x_d in x_nd.chunks_exact(width) {
            let mut a_f = self.b_enc_f.clone();
            for (x, w_f) in x_d.iter().zip(self.w_enc_df.chunks_exact(features)) {
                a_f.iter_mut().zip(w_f).for_each(|(a, w)| *a += x * w);
            }
            let mut x_hat_d = self.b_dec_d.clone();
            for (f, a) in a_f.iter().enumerate().filter(|(_, a)| **a > 0.0) {
                x_hat_d.iter_mut().zip(&self.w_dec_fd[f * width..]).for_each(|(x_hat, w)| *x_hat += a * w);
                l1 += a * norm_f[f];
                fired_f[f] += 1;
            }
            let of_row = square(x_d.iter().zip(&x_hat_d).map(|(x, x_hat)| x - x_hat));
            let from_mean = square(x_d.iter().zip(&mean_d).map(|(x, mean)| x - mean));
            (error, variance, norm) = (error + of_row, variance + from_mean, norm + square(x_d.iter().copied()));
            shares += of_row / from_mean;
        }
        let count = n as f64;
        Measured {
            rows: n,
            mse: scale * scale * error / count,
            l1_norm: scale * l1 / count,
            l0: fired_f.iter().sum::<u64>() as f64 / count,
            explained_variance: 1.0 - error / variance,
            explained_variance_rows: 1.0 - shares / count,
            normalized_mse: error / norm,
            fired_f,
        }
    }
}

fn square(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum()
}
