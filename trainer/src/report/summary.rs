//! summary.json: what a finished run came to.

use serde::Serialize;

use crate::Error;
use crate::report::account::Account;
use crate::report::metrics::{DensityHistogram, Metrics};

/// Which rows the metrics of a summary are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluatedOn {
    /// `data.eval`, at the end.
    Eval,
    /// The last 65,536 training rows, each before it was trained on.
    LastTrainingRows,
}

/// Content of summary.json; metrics use the final λ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// loss, mse, l1_norm, explained_variance, explained_variance_rows, normalized_mse, l0.
    #[serde(flatten)]
    pub metrics: Option<Metrics>,
    /// The rows behind the metrics.
    pub evaluated_on: EvaluatedOn,
    /// Share of features silent over the last `dead_window` tokens.
    pub dead_fraction: f64,
    /// `train.dead_window`, or all tokens when there were fewer.
    pub dead_window: u64,
    /// How often features fired on the evaluated rows.
    pub density: DensityHistogram,
    /// Rows trained on.
    pub tokens: u64,
    /// Rows left out by `data.skip`.
    pub skipped: u64,
    /// Rows left out by `data.filter`.
    pub filtered: u64,
    /// Steps made.
    pub steps: u64,
    /// Rows a second, over `step_s`.
    pub tokens_per_s: f64,
    /// Rows a second, over `wall_s`.
    pub tokens_per_s_wall: f64,
    /// The run as a whole.
    #[serde(flatten)]
    pub account: Account,
    /// Seconds of `step_s` spent waiting for data.
    pub stall_s: f64,
    /// Share of the true directions of synthetic data that were found; null for other data.
    pub recovered: Option<f64>,
    /// Mean max cosine similarity with them.
    pub mmcs: Option<f64>,
    /// Factor on every row.
    pub scale: f32,
    /// Median norm of stored rows, where `data.filter` counts in it.
    pub norm_median: Option<f32>,
    /// Identity of the training rows, as their manifest has it.
    pub data: String,
    /// That of `data.eval`.
    pub eval: Option<String>,
    /// [`crate::NUMBERS`] of the program that made the last step.
    pub numbers: u32,
    /// [`kernels::Device::precision`] there.
    pub precision: String,
    /// The kind of device there, such as `cpu`.
    pub device: String,
    /// Folder of the last checkpoint, relative to the run's.
    pub checkpoint: String,
}

impl Summary {
    /// As it is written.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        let internal = |error: serde_json::Error| Error::Internal(error.into());
        let mut value = serde_json::to_value(self).map_err(internal)?;
        if let Some(object) = value.as_object_mut() {
            // Without a measured row there are no metrics; their names stay.
            for name in
                ["loss", "mse", "l1_norm", "explained_variance", "explained_variance_rows", "normalized_mse", "l0"]
            {
                object.entry(name).or_insert(serde_json::Value::Null);
            }
        }
        let mut json = serde_json::to_vec_pretty(&value).map_err(internal)?;
        json.push(b'\n');
        Ok(json)
    }
}
