//! What a sample of the training rows says before a run starts: the factor on every row, the median norm, and whether a few rows are
//! everything.

use loader::{Norms, RowFilter, RowId, Sample, TOP, heavy, sample};

use crate::Error;
use crate::data::Data;
use crate::recipe::Scale;

/// Rows sampled.
pub const ROWS: usize = 65_536;

/// Held-out rows sampled: whether they are finite is all that is asked of them.
const HELD_OUT_ROWS: usize = 4_096;

/// Share of the rows beyond which leaving them out is probably not what was meant.
const MOST_LEFT_OUT: f64 = 0.5;

/// What was found.
#[derive(Clone, Debug)]
pub struct Survey {
    /// `data.scale`, or the factor that makes E‖x‖² = D on the sampled rows that the filter keeps.
    pub scale: f32,
    /// The median norm, where `data.filter` has a bound that is a multiple of it.
    pub norm_median: Option<f32>,
    /// The filter in norms.
    pub filter: RowFilter,
    /// Rows sampled, and those of them that are not finite: a run stops at the first.
    non_finite: (usize, usize),
    /// Rows that were looked at for the sample.
    looked_at: usize,
    /// Norms of the sampled rows that the filter keeps.
    norms: Vec<f64>,
    /// Which rows these are.
    ids: Vec<RowId>,
}

impl Survey {
    /// Samples the training rows: a function of the data, `data.seed`, `data.skip` and `data.filter`.
    ///
    /// # Errors
    /// Those of the loader; [`Error::Data`] when no sampled row is finite, or no scale or median follows from those that are. With a
    /// scale that is given and a filter without multiples rows that cannot be read are left to the step that needs them.
    pub fn of(data: &Data) -> Result<Survey, Error> {
        let settings = &data.reading.data;
        let filter = settings.filter.without_medians();
        let given = match settings.scale {
            Scale::Fixed(factor) => Some(factor as f32),
            Scale::Auto => None,
        };
        let sampled = match (sample(&data.train, ROWS, settings.seed, &data.skip()?, &filter), given) {
            (Ok(sampled), _) => sampled,
            (Err(error), Some(scale)) if is_damage(&error) && !settings.filter.is_relative() => {
                tracing::info!("the norms of rows were not looked at: {}", Error::from(error));
                let (norms, ids) = (Vec::new(), Vec::new());
                return Ok(Survey { scale, norm_median: None, filter, non_finite: (0, 0), looked_at: 0, norms, ids });
            }
            (Err(error), _) => return Err(error.into()),
        };
        let squared_norms: Vec<f64> = sampled.squared_norms().collect();
        let Sample { ids, rows, looked_at } = sampled;
        drop(rows);
        let of = ids.len();
        let finite = squared_norms.iter().filter(|norm| norm.is_finite()).count();
        if of > 0 && finite == 0 {
            return Err(Error::Data(format!(
                "none of {of} sampled rows of data.train is finite: all hold NaN or infinite values; look at the data with \
                 `sae inspect`, and make the rows again"
            )));
        }
        let norm_median = match settings.filter.is_relative() {
            true => Some(median(&squared_norms)?),
            false => None,
        };
        let filter = settings.filter.resolve(norm_median)?;
        let kept = |norm: &f64| norm.is_finite() && filter.keeps_norm(norm.sqrt());
        let kept: Vec<(RowId, f64)> = ids.into_iter().zip(squared_norms).filter(|(_, norm)| kept(norm)).collect();
        let scale = match given {
            Some(scale) => scale,
            None => auto_scale(kept.iter().map(|(_, norm)| *norm), data.train.width())?,
        };
        let (ids, norms): (_, Vec<f64>) = kept.into_iter().map(|(id, norm)| (id, norm.sqrt())).unzip();
        Ok(Survey { scale, norm_median, filter, non_finite: (of, of - finite), looked_at, norms, ids })
    }

    /// Which share of E‖x‖² the largest 1 % of the rows carry; `None` where that was not looked at, or E‖x‖² is 0.
    pub fn top1_share(&self) -> Option<f64> {
        self.norms.iter().copied().collect::<Norms>().top_share(TOP)
    }

    /// Says in the log what a person should know of the rows before the run.
    pub fn tell(&self, data: &Data) {
        if let (of, found @ 1..) = self.non_finite {
            tracing::warn!(
                found,
                sampled = of,
                "{found} of {of} sampled rows hold NaN or infinite values: the run would stop at the first; data.filter.finite = true \
                 leaves such rows out"
            );
        }
        let (_, non_finite) = self.non_finite;
        let left_out = self.looked_at.saturating_sub(self.ids.len() + non_finite);
        let share = left_out as f64 / self.looked_at.max(1) as f64;
        let told =
            format!("data.filter and data.skip leave out {:.1} % of {} sampled rows", 100.0 * share, self.looked_at);
        if share > MOST_LEFT_OUT {
            tracing::warn!(left_out, looked_at = self.looked_at, "{told}: what is left may be too little to train on");
        } else if left_out > 0 {
            tracing::info!(left_out, looked_at = self.looked_at, "{told}");
        }
        if let Some(heavy) = heavy(&data.train, &self.ids, &self.norms).map(|heavy| heavy.under("data.filter")) {
            tracing::warn!(top1_share = heavy.top1_share, "{heavy}");
        } else if let Some(share) = self.top1_share() {
            tracing::info!(top1_share = share, "the largest 1 % of the rows carry {:.1} % of E‖x‖²", 100.0 * share);
        }
    }
}

/// Says in the log when held-out rows that `filter`, that of the recipe in norms, keeps are not finite, as far as a sample shows: the
/// first evaluation would end the run.
///
/// # Errors
/// Those of the loader.
pub(crate) fn look_at_held_out(data: &Data, filter: &RowFilter) -> Result<(), Error> {
    let Some(eval) = &data.eval else { return Ok(()) };
    let sampled = sample(eval, HELD_OUT_ROWS, data.reading.data.seed, &data.eval_skip()?, filter)?;
    let found = sampled.squared_norms().filter(|norm| !norm.is_finite()).count();
    if found > 0 {
        let of = sampled.ids.len();
        tracing::warn!(
            found,
            sampled = of,
            "{found} of {of} sampled rows of data.eval hold NaN or infinite values: the first evaluation would end the run; \
             data.filter.finite = true leaves such rows out, and data.eval_skip rows that it names"
        );
    }
    Ok(())
}

/// Whether an error is about rows, which may be left out or whole again by the time they are needed.
pub(crate) fn is_damage(error: &loader::Error) -> bool {
    matches!(error, loader::Error::Data { .. } | loader::Error::Changed { .. } | loader::Error::NotFound { .. })
}

/// The median of the norms that are finite.
fn median(squared_norms: &[f64]) -> Result<f32, Error> {
    let norms: Norms = squared_norms.iter().map(|norm| norm.sqrt()).collect();
    match norms.quantile(0.5).map(|median| median as f32) {
        Some(median) if median.is_normal() => Ok(median),
        Some(median) => Err(Error::Data(format!(
            "the median norm of {} sampled rows is {median}, of which data.filter can want no multiple: give its bounds as norms",
            norms.rows()
        ))),
        None => Err(Error::Data("data.filter and data.skip leave no row whose norm a median could be of".into())),
    }
}

/// The factor that makes E‖x‖² = D.
fn auto_scale(squared_norms: impl Iterator<Item = f64>, width: usize) -> Result<f32, Error> {
    let squared_norms: Vec<f64> = squared_norms.collect();
    let rows = squared_norms.len();
    if rows == 0 {
        return Err(Error::Data(
            "data.scale = \"auto\" finds no row: data.filter and data.skip leave none of the sample".into(),
        ));
    }
    let mean = squared_norms.iter().sum::<f64>() / rows as f64;
    let scale = (width as f64 / mean).sqrt() as f32;
    if mean > 0.0 && scale.is_normal() {
        return Ok(scale);
    }
    let found = match mean > 0.0 {
        true => {
            format!("finds a mean squared norm of {mean:e}, which no factor that f32 holds brings to the width {width}")
        }
        false => format!("finds nothing but zeros in {rows} sampled rows"),
    };
    Err(Error::Data(format!(
        "data.scale = \"auto\" {found}: look at the data with `sae inspect`, or give data.scale a number"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_number_that_f32_holds() {
        let scale = |squared_norms: &[f64]| auto_scale(squared_norms.iter().copied(), 4);
        assert_eq!(scale(&[1.0, 7.0]).expect("a scale"), 1.0);
        for (squared_norms, says) in [
            (&[0.0, 0.0][..], "nothing but zeros in 2 sampled rows"),
            (&[], "finds no row"),
            // Rows of values that only subnormal numbers of f32 are.
            (&[1e-86], "no factor that f32 holds"),
        ] {
            let error = scale(squared_norms).expect_err(says);
            assert!(error.to_string().contains(says) && error.exit() == crate::Exit::Data, "{error}");
        }
        assert!(scale(&[1e75]).expect("a small one").is_normal());
    }

    #[test]
    fn a_median_of_nothing_is_none() {
        assert!(median(&[f64::NAN, 0.0, 0.0, 1.0]).is_err() && median(&[]).is_err());
        // The middle of its bin.
        let found = median(&[f64::INFINITY, 16.0, 16.0, 1e9]).expect("a median");
        assert!((found - 4.0).abs() < 2e-4, "{found}");
    }
}
