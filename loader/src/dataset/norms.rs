//! How the norms of rows are spread: their quantiles, and which share of E‖x‖² the largest of them carry.
//!
//! Norms are counted in bins whose width is 2⁻¹⁴ of their size: any number of rows takes a few megabytes, and what comes out does not
//! depend on the order in which they came. A norm that is reported is that of the middle of its bin, at most 2⁻¹⁵ (0.003 %) off; the
//! least and the greatest are exact.

use std::collections::BTreeMap;

/// Bits of a norm that say no more about its bin.
const INSIDE: u32 = f64::MANTISSA_DIGITS - 1 - 14;

/// The share of the rows that [`Norms::top_share`] is usually asked for.
pub const TOP: f64 = 0.01;

/// Counts of norms.
#[derive(Debug, Clone, Default)]
pub struct Norms {
    counts: BTreeMap<u64, u64>,
    rows: u64,
    least: f64,
    greatest: f64,
}

impl Norms {
    /// Counts a row. A norm that is not finite counts for nothing.
    pub fn add(&mut self, norm: f64) {
        if !norm.is_finite() {
            return;
        }
        *self.counts.entry(norm.to_bits() >> INSIDE).or_default() += 1;
        (self.least, self.greatest) = match self.rows {
            0 => (norm, norm),
            _ => (self.least.min(norm), self.greatest.max(norm)),
        };
        self.rows += 1;
    }

    /// Rows counted.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The greatest norm; `None` where no row was counted.
    pub fn max(&self) -> Option<f64> {
        (self.rows > 0).then_some(self.greatest)
    }

    /// The least norm that a share of the rows, between 0 and 1, does not exceed; `None` where no row was counted.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = (share * self.rows as f64).ceil() as u64;
        if rank <= 1 || rank >= self.rows {
            return (self.rows > 0).then_some(if rank <= 1 { self.least } else { self.greatest });
        }
        let mut rows_so_far = 0;
        self.bins().find_map(|(norm, rows)| {
            rows_so_far += rows;
            (rows_so_far >= rank).then_some(norm)
        })
    }

    /// Which share of Σ‖x‖² a share of the rows carries, those of the greatest norms: `top_share(0.01)` is 0.01 where all norms are the
    /// same. `None` where Σ‖x‖² is 0.
    pub fn top_share(&self, share: f64) -> Option<f64> {
        let (mut left, mut top, mut all) = (share * self.rows as f64, 0.0, 0.0);
        for (norm, rows) in self.bins().rev() {
            let taken = left.min(rows as f64);
            top += taken * norm * norm;
            all += rows as f64 * norm * norm;
            left -= taken;
        }
        (all > 0.0).then(|| top / all)
    }

    /// The rows whose norm is at most `limit`.
    #[must_use]
    pub fn up_to(&self, limit: f64) -> Norms {
        let mut kept = Norms::default();
        for (norm, rows) in self.bins().take_while(|(norm, _)| *norm <= limit) {
            kept.counts.insert(norm.to_bits() >> INSIDE, rows);
            (kept.rows, kept.greatest) = (kept.rows + rows, norm);
        }
        kept.least = self.least.min(kept.greatest);
        kept
    }

    /// Norms, ascending, with the rows that have them.
    fn bins(&self) -> impl DoubleEndedIterator<Item = (f64, u64)> {
        self.counts.iter().map(|(&bin, &rows)| {
            let middle = if bin == 0 { 0.0 } else { f64::from_bits((bin << INSIDE) + (1 << (INSIDE - 1))) };
            (middle.clamp(self.least, self.greatest), rows)
        })
    }
}

impl FromIterator<f64> for Norms {
    fn from_iter<T: IntoIterator<Item = f64>>(norms: T) -> Self {
        let mut all = Norms::default();
        norms.into_iter().for_each(|norm| all.add(norm));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_shares_are_those_of_the_sorted_norms() {
        let mut sorted: Vec<f64> = (1..=1000).map(|i| (f64::from(i) * 0.37).exp2() % 977.0 + 1.0).collect();
        let norms: Norms = sorted.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        for (share, rank) in [(0.0, 1), (0.01, 10), (0.1, 100), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let quantile = norms.quantile(share).expect("rows");
            assert!((quantile / sorted[rank - 1] - 1.0).abs() < 4e-5, "{share}: {quantile} {}", sorted[rank - 1]);
        }
        assert_eq!((norms.quantile(0.0), norms.max()), (Some(sorted[0]), Some(sorted[999])));
        // As near as half a bin is wide, wherever in its bin a norm lies.
        let of_each = |norms: &Norms, sorted: &[f64]| {
            for (i, norm) in sorted.iter().enumerate() {
                let share = (i as f64 + 0.5) / sorted.len() as f64;
                let quantile = norms.quantile(share).expect("rows");
                assert!((quantile / norm - 1.0).abs() <= 2f64.powi(-15), "{i}: {quantile} {norm}");
            }
        };
        of_each(&norms, &sorted);
        let squares = |norms: &[f64]| norms.iter().map(|norm| norm * norm).sum::<f64>();
        let share = squares(&sorted[990..]) / squares(&sorted);
        assert!((norms.top_share(TOP).expect("rows") / share - 1.0).abs() < 1e-4);
        let below = norms.up_to(sorted[899] * 1.0001);
        assert_eq!(below.rows(), 900);
        of_each(&below, &sorted[..900]);
        assert!((below.max().expect("rows") / sorted[899] - 1.0).abs() < 4e-5);
    }

    #[test]
    fn equal_zero_and_odd_norms() {
        let equal: Norms = [2.0; 50].into_iter().collect();
        assert_eq!((equal.quantile(0.5), equal.max()), (Some(2.0), Some(2.0)));
        assert!((equal.top_share(TOP).expect("rows") - 0.01).abs() < 1e-12, "also where 1 % is no whole row");
        let zeros: Norms = [0.0; 10].into_iter().collect();
        assert_eq!((zeros.quantile(0.5), zeros.top_share(TOP)), (Some(0.0), None));
        let none: Norms = [f64::NAN, f64::INFINITY].into_iter().collect();
        assert_eq!((none.rows(), none.quantile(0.5), none.max(), none.top_share(TOP)), (0, None, None, None));
        // What f32 does not hold: the norm of finite f32 values may be larger.
        let large: Norms = [1e200, 1.0].into_iter().collect();
        assert_eq!((large.quantile(0.0), large.max()), (Some(1.0), Some(1e200)));
    }
}
