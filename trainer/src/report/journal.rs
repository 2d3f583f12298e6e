//! What a run writes while it goes: metrics.jsonl, TensorBoard events, and on request the ids of the rows.
//!
//! **One name for a number.** A metrics line is one structure: metrics.jsonl is its JSON, curves in TensorBoard are its numbers under the
//! same names. A line of an evaluation is written once, and kept when the run is resumed behind it: a killed run that evaluates again
//! gets the same numbers. Event files are only ever appended to; each start begins one of its own, with a SessionLog that makes
//! TensorBoard drop the steps which are made again.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;
use crate::report::account::Account;
use crate::report::curves::Curves;
use crate::report::events::EventWriter;
use crate::report::hparams::HParams;
use crate::report::metrics::{DensityHistogram, Metrics};

/// A line of metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// Means over the rows trained on since the line before of this kind.
    Train(TrainLine),
    /// Means over held-out rows.
    Eval(EvalLine),
}

/// How training went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainLine {
    /// When it was written, in UTC: `2026-11-22T21:08:03.123Z`.
    pub time: String,
    /// The last step that the line covers, counted from 0.
    pub step: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// Metrics, each row measured before it was trained on.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Features silent over the dead window, as a share.
    pub dead_fraction: f64,
    /// Norm of the gradient at `step`, before clipping.
    pub gradient_norm: f64,
    /// Rows a second since the line before, in steps.
    pub tokens_per_s: f64,
    /// Rows a second since the line before, by the clock.
    pub tokens_per_s_wall: f64,
    /// Share of the time since the line before, by the clock, that was spent waiting for data.
    pub stall_share: f64,
    /// The run so far.
    #[serde(flatten)]
    pub account: Account,
    /// How the ranks work together, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Together>,
}

/// How the dictionary does on held-out rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalLine {
    /// As in [`TrainLine`].
    pub time: String,
    /// The last step before the evaluation, counted from 0.
    pub step: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// Rows measured.
    pub rows: u64,
    /// Metrics with the final λ.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// How often features fired.
    pub density: DensityHistogram,
    /// Rows measured a second, while rows were read and measured.
    pub tokens_per_s: f64,
    /// Rows measured a second, over the whole evaluation.
    pub tokens_per_s_wall: f64,
    /// The run so far.
    #[serde(flatten)]
    pub account: Account,
}

/// Ranks at work since the line before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Together {
    /// Bytes that all ranks together sent in a step.
    pub sent_bytes: u64,
    /// Share of the time that ranks spent in exchanges, their mean; on GPUs also where they compute beside them.
    pub exchange_share: f64,
    /// The rank that spent least in them: the others wait for it.
    pub slowest: usize,
    /// Its share.
    pub slowest_share: f64,
}

/// The time of a line.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// The files, open for appending.
#[derive(Debug)]
pub struct Journal {
    metrics: File,
    rows: Option<BufWriter<File>>,
    events: EventWriter,
    dir: PathBuf,
    /// Step of the last evaluation among the lines that were there.
    evaluated: Option<u64>,
    /// What the lines say, those that were there included.
    curves: Curves,
}

impl Journal {
    /// Opens the files in `dir` to go on at `step`: lines of later steps, which a killed run may have left, are
    /// dropped, since their steps are made again. TensorBoard is made to drop them from what it has read too.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn open(dir: &Path, step: u64, rows: bool, hparams: &HParams) -> Result<Self, Error> {
        let (metrics, kept) = reopen(&dir.join("metrics.jsonl"), step)?;
        let rows = if rows { Some(BufWriter::new(reopen(&dir.join("rows.jsonl"), step)?.0)) } else { None };
        let begin = || -> std::io::Result<EventWriter> {
            let mut events = EventWriter::create(dir)?;
            events.session_start(step)?;
            hparams.begin(&mut events)?;
            Ok(events)
        };
        let events = begin().map_err(|source| cannot_write(dir, source))?;
        let mut curves = Curves::new();
        kept.lines().filter_map(|line| serde_json::from_str(line).ok()).for_each(|line| curves.add(&line));
        Ok(Journal { metrics, rows, events, dir: dir.to_owned(), evaluated: last_evaluation(&kept), curves })
    }

    /// Appends a line, and its numbers to the events. The evaluation of a step that is already there is left out: a run that was
    /// killed behind it makes it again.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn line(&mut self, line: &Line) -> Result<(), Error> {
        if let Line::Eval(eval) = line {
            if self.evaluated == Some(eval.step) {
                return Ok(());
            }
            self.evaluated = Some(eval.step);
        }
        let value = serde_json::to_value(line).map_err(|error| Error::Internal(error.into()))?;
        self.curves.add(&value);
        let step = value["step"].as_u64().unwrap_or_default();
        let mut scalars = Vec::new();
        flatten(value["kind"].as_str().unwrap_or_default(), &value, &mut scalars);
        // A line tells a later start that the events of its step are written: they come before it.
        let events = self.events.scalars(step, &scalars).and_then(|()| match line {
            Line::Train(_) => Ok(()),
            Line::Eval(eval) => self.density(step, &eval.density),
        });
        events.map_err(|source| cannot_write(&self.dir, source))?;
        append(&mut self.metrics, line).map_err(|source| cannot_write(&self.dir.join("metrics.jsonl"), source))
    }

    fn density(&mut self, step: u64, density: &DensityHistogram) -> std::io::Result<()> {
        // TensorBoard wants ascending limits: from the rarest bin to the one that holds shares up to 1.
        let limits: Vec<f64> = (0..16).rev().map(|bin| -0.5 * f64::from(bin)).collect();
        let counts: Vec<f64> = density.half_decades.iter().rev().map(|&count| count as f64).collect();
        self.events.histogram(step, "eval/log10_density", &limits, &counts)
    }

    /// How the run went so far.
    pub(crate) fn curves(&self) -> &Curves {
        &self.curves
    }

    /// Tells TensorBoard that the run has come to its end.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn end(&mut self) -> Result<(), Error> {
        HParams::end(&mut self.events).map_err(|source| cannot_write(&self.dir, source))
    }

    /// Appends the ids of a step's rows, when it was opened to.
    ///
    /// # Errors
    /// [`Error::CannotWrite`].
    pub fn rows(&mut self, step: u64, ids: &[String]) -> Result<(), Error> {
        #[derive(Serialize)]
        struct RowsLine<'a> {
            step: u64,
            rows: &'a [String],
        }
        let Some(file) = &mut self.rows else { return Ok(()) };
        append(file, &RowsLine { step, rows: ids }).map_err(|source| cannot_write(&self.dir.join("rows.jsonl"), source))
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

/// What does not change from line to line makes no curve.
const CONSTANT: [&str; 5] = ["step", "width", "features", "batch", "seed"];

/// The numbers of a line that make curves, by the names that they have in it.
fn flatten(prefix: &str, value: &Value, scalars: &mut Vec<(String, f64)>) {
    let Some(object) = value.as_object() else { return };
    for (key, value) in object.iter().filter(|(key, _)| !CONSTANT.contains(&key.as_str())) {
        let name = format!("{prefix}/{key}");
        match value.as_f64() {
            Some(number) => scalars.push((name, number)),
            None => flatten(&name, value, scalars),
        }
    }
}

fn append(file: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    let mut json = serde_json::to_vec(value)?;
    json.push(b'\n');
    file.write_all(&json)
}

/// What is looked at in the lines of an earlier start; before there were evaluations among them, lines had no kind.
#[derive(Deserialize)]
struct Head {
    step: u64,
    #[serde(default)]
    kind: String,
}

fn last_evaluation(kept: &str) -> Option<u64> {
    let mut heads = kept.lines().filter_map(|line| serde_json::from_str::<Head>(line).ok());
    heads.rfind(|head| head.kind == "eval").map(|head| head.step)
}

/// Keeps the whole lines of steps below `step`, in a new file that then takes the name: a kill leaves one or the other. Returns it,
/// and the lines.
fn reopen(path: &Path, step: u64) -> Result<(File, String), Error> {
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(cannot_write(path, error)),
    };
    let keep =
        |line: &&str| line.ends_with('\n') && serde_json::from_str::<Head>(line).is_ok_and(|parsed| parsed.step < step);
    let kept: String = old.split_inclusive('\n').filter(keep).collect();
    let temporary = path.with_extension("jsonl.tmp");
    let write = || -> std::io::Result<File> {
        let mut file = File::create(&temporary)?;
        file.write_all(kept.as_bytes())?;
        file.sync_data()?;
        fs::rename(&temporary, path)?;
        Ok(file)
    };
    let file = write().map_err(|source| cannot_write(path, source))?;
    Ok((file, kept))
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
        let (mut file, kept) = reopen(&path, 5).expect("reopened");
        append(&mut file, &serde_json::json!({"step": 5})).expect("appended");
        assert_eq!(fs::read_to_string(&path).expect("read"), "{\"step\":1,\"a\":2}\n{\"step\":2}\n{\"step\":5}\n");
        assert_eq!(last_evaluation(&kept), None);
        assert_eq!(last_evaluation("{\"kind\":\"eval\",\"step\":3}\n{\"kind\":\"train\",\"step\":4}\n"), Some(3));
    }

    #[test]
    fn curves_have_the_names_of_the_file() {
        let line = serde_json::json!({
            "kind": "train", "step": 3, "features": 8, "loss": 1.5, "flops": null, "ranks": {"sent_bytes": 7}, "list": [1]
        });
        let mut scalars = Vec::new();
        flatten("train", &line, &mut scalars);
        assert_eq!(scalars, [("train/loss".to_owned(), 1.5), ("train/ranks/sent_bytes".to_owned(), 7.0)]);
    }
}
