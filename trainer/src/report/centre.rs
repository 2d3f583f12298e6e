//! The mean of the rows that an evaluation is over, and how far each row lies from it: what `explained_variance_rows` measures errors
//! by.
//!
//! A row counts by ‖x − x̂‖²/‖x − mean‖², so the mean must be known before the first row is measured: it takes a pass of its own over
//! the stored rows, on the host, which reads them and computes nothing else. Every rank adds up the rows that it brings, in f64 and in
//! their order, and the sums are added in the order of the ranks: on another mesh the mean is the same up to rounding.
//!
//! Sums of powers, as other metrics have, do not give a mean of ratios, and the mean of a sample would not be the set's; hence the second
//! pass. Cost: held-out rows are read twice, once for each start of a run where they are those of the evaluation before, and distances
//! take `3·B·D` FLOP of the host a batch. A device gives its errors row by row (`Dictionary::errors`); no kernel was added. Runs without
//! held-out rows have no such number: a row is measured when it is trained on, before the mean is known.

use kernels::Device;
use kernels::ranks::Group;
use loader::{Dataset, Stream};
use rayon::prelude::*;

use crate::Error;
use crate::buffers::Buffers;
use crate::ranks::roll_call::Answer;

/// A row that is no farther from the mean than this share of the rows' root mean square norm has nothing to explain: its
/// distance is rounding, and its error divided by that would be any number.
const LEAST: f64 = 1e-6;

/// The middle of a set of stored rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Centre {
    mean_d: Vec<f64>,
    /// Squared distance up to which a row counts as the mean itself.
    least: f64,
}

impl Centre {
    /// Reads `stream` to its end; over several ranks, each reads its part. `progress` hears the rows done so far, and whether a rank
    /// was asked to stop (`stop` says so of this one); its error ends it.
    ///
    /// # Errors
    /// Those of the loader and of `progress`; [`kernels::Error::Peer`].
    pub fn of<D: Device>(
        device: &D,
        dataset: &Dataset,
        buffers: &mut Buffers<D>,
        stream: &mut Stream,
        stop: impl Fn() -> bool,
        mut progress: impl FnMut(u64, bool) -> Result<(), Error>,
    ) -> Result<Centre, Error> {
        let (width, row_bytes) = (dataset.width(), dataset.row_bytes());
        // Σ x by column, then Σ‖x‖² and the number of rows.
        let mut sums = vec![0.0; width + 2];
        let mut row_d = vec![0.0f32; width];
        let mut rows = 0;
        while let Some(seen) = buffers.read(device, stream, Answer { stop: stop(), ..Answer::default() })? {
            for row in buffers.own(device, &seen, row_bytes).chunks_exact(row_bytes) {
                dataset.dtype().to_f32(row, &mut row_d);
                let mut squared_norm = 0.0;
                for (sum, &x) in sums.iter_mut().zip(&row_d) {
                    *sum += f64::from(x);
                    squared_norm += f64::from(x) * f64::from(x);
                }
                sums[width] += squared_norm;
                sums[width + 1] += 1.0;
            }
            rows += seen.call.rows() as u64;
            progress(rows, seen.call.stop)?;
        }
        device.axes().all.sum_f64(&mut sums)?;
        let n = sums[width + 1].max(1.0);
        let mean_d = sums[..width].iter().map(|sum| sum / n).collect();
        Ok(Centre { mean_d, least: LEAST * LEAST * sums[width] / n })
    }

    /// `‖x − mean‖²` of rows as they are stored; 0 for those that count as the mean itself.
    pub fn distances(&self, dataset: &Dataset, rows: &[u8]) -> Vec<f64> {
        let distance = |row_d: &mut Vec<f32>, row: &[u8]| {
            dataset.dtype().to_f32(row, row_d);
            let squares = row_d.iter().zip(&self.mean_d).map(|(&x, mean)| (f64::from(x) - mean).powi(2));
            Some(squares.sum::<f64>()).filter(|square| *square > self.least).unwrap_or_default()
        };
        let rows = rows.par_chunks_exact(dataset.row_bytes());
        rows.map_init(|| vec![0.0; self.mean_d.len()], distance).collect()
    }
}

/// Rows by the share of their own variance that is left unexplained.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unexplained {
    shares: f64,
    rows: u64,
}

impl Unexplained {
    /// Adds rows with their squared errors, on data scaled by `scale`, and their distances before that.
    pub fn add(&mut self, errors: &[f64], distances: &[f64], scale: f32) {
        let scale = f64::from(scale);
        for (error, distance) in errors.iter().zip(distances).filter(|(_, distance)| **distance > 0.0) {
            self.shares += error / (scale * scale * distance);
            self.rows += 1;
        }
    }

    /// One minus the mean over the rows of all ranks; `None` where all of them count as the mean itself.
    ///
    /// # Errors
    /// [`kernels::Error::Peer`].
    pub fn explained(self, ranks: &Group) -> Result<Option<f64>, kernels::Error> {
        let mut sums = [self.shares, self.rows as f64];
        ranks.sum_f64(&mut sums)?;
        let [shares, rows] = sums;
        Ok((rows > 0.0).then(|| 1.0 - shares / rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_the_mean_itself_count_for_nothing() {
        let mut unexplained = Unexplained::default();
        assert_eq!(unexplained.explained(&Group::alone()).expect("one rank"), None);
        // Errors 1 and 4 of distances 2² · 1 and 2² · 4; the third row lies at the mean.
        unexplained.add(&[1.0, 4.0, 7.0], &[1.0, 4.0, 0.0], 2.0);
        assert_eq!(unexplained.explained(&Group::alone()).expect("one rank"), Some(0.75));
    }
}
