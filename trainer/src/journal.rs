//! What a run writes while it goes: metrics.jsonl, TensorBoard events, and on request the ids of the rows.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::events::EventWriter;
use crate::metrics::{DensityHistogram, Metrics};

/// A line of metrics.jsonl: means over the rows since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The last step that the line covers, counted from 0.
    pub step: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// Metrics, each row measured before it was trained on; `loss` uses the λ of `step`.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Features silent over the dead window, as a share.
    pub dead_fraction: f64,
    /// λ at `step`.
    pub lambda: f64,
    /// Learning rate at `step`.
    pub lr: f64,
    /// Norm of the gradient at `step`, before clipping.
    pub gradient_norm: f64,
    /// Rows a second since the line before.
    pub tokens_per_s: f64,
    /// Share of the time since the line before that was spent waiting for data.
    pub stall_share: f64,
    /// How the ranks work together, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Together>,
}

/// Ranks at work since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// Bytes that all ranks together sent in a step.
    pub sent_bytes: u64,
    /// Share of the time that ranks spent in exchanges, their mean; on cards also where they compute beside them.
    pub exchange_share: f64,
    /// The rank that spent least in them: the others wait for it.
    pub slowest: usize,
    /// Its share.
    pub slowest_share: f64,
}

/// The files, open for appending.
#[derive(Debug)]
pub struct Journal {
    metrics: File,
    rows: Option<BufWriter<File>>,
    events: EventWriter,
    dir: PathBuf,
}

impl Journal {
    /// Opens the files in `dir` to go on at `step`: lines of later steps, which a killed run may have left, are
    /// dropped, since their steps are made again.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn open(dir: &Path, step: u64, rows: bool) -> Result<Self, Error> {
        let metrics = reopen(&dir.join("metrics.jsonl"), step)?;
        let rows = if rows { Some(BufWriter::new(reopen(&dir.join("rows.jsonl"), step)?)) } else { None };
        let events = EventWriter::create(dir).map_err(|source| cannot_write(dir, source))?;
        Ok(Journal { metrics, rows, events, dir: dir.to_owned() })
    }

    /// Appends a line and its scalars.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn line(&mut self, line: &Line) -> Result<(), Error> {
        let path = self.dir.join("metrics.jsonl");
        append(&mut self.metrics, line).map_err(|source| cannot_write(&path, source))?;
        let Metrics { loss, mse, l1, explained_variance, normalized_mse, l0, .. } = line.metrics;
        let mut scalars = vec![
            ("loss", loss),
            ("mse", mse),
            ("l1", l1),
            ("l0", l0),
            ("dead_fraction", line.dead_fraction),
            ("schedule/lambda", line.lambda),
            ("schedule/lr", line.lr),
            ("gradient_norm", line.gradient_norm),
            ("speed/tokens_per_s", line.tokens_per_s),
            ("speed/stall_share", line.stall_share),
        ];
        if let Some(Together { sent_bytes, exchange_share, slowest_share, .. }) = line.ranks {
            scalars.push(("speed/sent_bytes", sent_bytes as f64));
            scalars.push(("speed/exchange_share", exchange_share));
            scalars.push(("speed/slowest_exchange_share", slowest_share));
        }
        scalars.extend(explained_variance.map(|value| ("explained_variance", value)));
        scalars.extend(normalized_mse.map(|value| ("normalized_mse", value)));
        self.events.scalars(line.step, &scalars).map_err(|source| cannot_write(&self.dir, source))
    }

    /// Writes held-out metrics and the density of features to TensorBoard.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn held_out(&mut self, step: u64, metrics: &Metrics, density: &DensityHistogram) -> Result<(), Error> {
        let mut scalars = vec![
            ("held_out/loss", metrics.loss),
            ("held_out/mse", metrics.mse),
            ("held_out/l1", metrics.l1),
            ("held_out/l0", metrics.l0),
            ("held_out/silent_features", density.silent as f64),
        ];
        scalars.extend(metrics.explained_variance.map(|value| ("held_out/explained_variance", value)));
        scalars.extend(metrics.explained_variance_rows.map(|value| ("held_out/explained_variance_rows", value)));
        // TensorBoard wants ascending limits: from the rarest bin to the one that holds shares up to 1.
        let limits: Vec<f64> = (0..16).rev().map(|bin| -0.5 * f64::from(bin)).collect();
        let counts: Vec<f64> = density.half_decades.iter().rev().map(|&count| count as f64).collect();
        self.events
            .scalars(step, &scalars)
            .and_then(|()| self.events.histogram(step, "held_out/log10_density", &limits, &counts))
            .map_err(|source| cannot_write(&self.dir, source))
    }

    /// Appends the ids of a step's rows, when it was opened to.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn rows(&mut self, step: u64, ids: &[String]) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Rows<'a> {
            step: u64,
            rows: &'a [String],
        }
        let Some(file) = &mut self.rows else { return Ok(()) };
        append(file, &Rows { step, rows: ids }).map_err(|source| cannot_write(&self.dir.join("rows.jsonl"), source))
    }

    /// Makes sure that what was written survives this process: called before a checkpoint commits.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn flush(&mut self) -> Result<(), Error> {
        let rows = self.rows.as_mut().map_or(Ok(()), |rows| rows.flush().and_then(|()| rows.get_ref().sync_data()));
        rows.and_then(|()| self.metrics.sync_data()).map_err(|source| cannot_write(&self.dir, source))
    }
}

fn append(file: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    let mut json = serde_json::to_vec(value)?;
    json.push(b'\n');
    file.write_all(&json)
}

/// Keeps the whole lines of steps below `step`, in a new file that then takes the name: a kill leaves one or the other.
fn reopen(path: &Path, step: u64) -> Result<File, Error> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(cannot_write(path, error)),
    };
    let keep =
        |line: &&str| line.ends_with('\n') && serde_json::from_str::<Step>(line).is_ok_and(|parsed| parsed.step < step);
    let kept: String = old.split_inclusive('\n').filter(keep).collect();
    let temporary = path.with_extension("jsonl.tmp");
    let write = || -> std::io::Result<File> {
        let mut file = File::create(&temporary)?;
        file.write_all(kept.as_bytes())?;
        file.sync_data()?;
        fs::rename(&temporary, path)?;
        Ok(file)
    };
    write().map_err(|source| cannot_write(path, source))
}

fn cannot_write(path: &Path, source: std::io::Error) -> Error {
    Error::CannotWrite { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopening_drops_later_steps_and_torn_lines() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1,\"a\":2}\n{\"step\":5}\n{\"step\":2}\n{\"st").expect("written");
        let mut file = reopen(&path, 5).expect("reopened");
        append(&mut file, &serde_json::json!({"step": 5})).expect("appended");
        assert_eq!(fs::read_to_string(&path).expect("read"), "{\"step\":1,\"a\":2}\n{\"step\":2}\n{\"step\":5}\n");
    }
}
