//! The end of a run: its closing metrics, its last checkpoint, its summary.

use kernels::{Device, Dictionary, Training};

use super::run::{Run, Scribe};
use crate::buffers::Seen;
use crate::checkpoint::LeftOut;
use crate::ranks::together;
use crate::report::html::Progress;
use crate::report::metrics::{DensityHistogram, Metrics};
use crate::report::summary::{EvaluatedOn, Summary};
use crate::step::with_room;
use crate::{Error, NUMBERS};

impl<D: Device> Run<'_, D> {
    /// When the closing evaluation begins in this batch, the rows before it are measured by themselves and the tally is
    /// emptied, so that it then holds closing rows only. Returns the index of the first row not yet counted, of those that this
    /// rank sees.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) fn open_closing(&mut self, seen: &Seen, x: &D::Rows) -> Result<usize, Error> {
        let Some(from) = self.closing.from().filter(|_| !self.state.closing_open) else { return Ok(0) };
        if from >= (seen.own.step + 1) * self.recipe.train.batch as u64 {
            return Ok(0);
        }
        // The sums are those of the steps before.
        self.catch_up()?;
        let axes = self.device.axes();
        let own = self.positions.rows_before(&seen.own, from) as u64;
        let [before] = together::sum(&axes.feature, [own])?;
        let [anywhere] = together::sum(&axes.all, [own])?;
        let before = before as usize;
        if anywhere > 0 {
            let (path, lambda) = (self.path(), self.schedule.lambda(self.state.step));
            let report = with_room(&mut self.sae, path, |sae, path| {
                sae.encode(x, path);
                sae.decode(x);
                sae.residual(x);
                sae.backward(x, lambda);
                sae.count(x, &mut self.tally, 0..before);
            })?;
            if !report.ok {
                // The step will be refused too, and the batch come again: nothing has begun.
                self.sae.release();
                return Ok(before);
            }
        }
        self.drain()?;
        self.state.closing_open = true;
        Ok(before)
    }

    /// The end of a run: held-out or closing metrics, last checkpoint, summary.
    pub(super) fn close(&mut self) -> Result<Summary, Error> {
        if self.state.tokens == 0 {
            let LeftOut { skipped, filtered } = self.state.left_out;
            return Err(Error::Data(format!(
                "no row was trained on: data.skip left out {skipped} and data.filter {filtered} of {}",
                self.data.rows
            )));
        }
        // Whatever comes of the evaluation, the training is done and kept.
        let checkpoint = self.save()?;
        let held_out = self.evaluate(None)?;
        let (metrics, density, evaluated_on) = match held_out {
            Some((metrics, density)) => (Some(metrics), density, EvaluatedOn::Eval),
            None => {
                if self.data.eval.is_some() && self.scribe.is_some() {
                    tracing::warn!(
                        "data.filter and data.eval_skip leave no row of data.eval: nothing was measured on held-out rows"
                    );
                }
                let closing = &self.state.closing;
                let metrics = Metrics::of(closing, self.schedule.final_lambda());
                (metrics, DensityHistogram::of(closing, &self.device.axes().all)?, EvaluatedOn::LastTrainingRows)
            }
        };
        let recovery = self.recovery()?;
        let account = self.account(self.schedule.final_lambda(), self.recipe.train.lr);
        let summary = Summary {
            metrics,
            evaluated_on,
            dead_fraction: self.dead_fraction()?,
            dead_window: self.recipe.train.dead_window.min(self.state.tokens),
            density,
            tokens: self.state.tokens,
            skipped: self.state.left_out.skipped,
            filtered: self.state.left_out.filtered,
            steps: self.state.step,
            tokens_per_s: self.state.tokens as f64 / account.step_s,
            tokens_per_s_wall: self.state.tokens as f64 / account.wall_s,
            account,
            stall_s: self.state.stall_s,
            recovered: recovery.map(|recovery| recovery.recovered),
            mmcs: recovery.map(|recovery| recovery.mmcs),
            scale: self.state.scale,
            norm_median: self.state.norm_median,
            data: self.data.train.identity(),
            eval: self.data.eval_identity(),
            numbers: NUMBERS,
            precision: self.device.precision(),
            device: self.device.describe().split(',').next().unwrap_or_default().to_owned(),
            checkpoint,
        };
        if let Some(Scribe { run_dir, journal }) = &mut self.scribe {
            journal.end()?;
            journal.flush()?;
            run_dir.publish()?;
            self.start.store.put("summary.json", summary.to_json()?)?;
        }
        self.leave_report(Progress::Done(&summary));
        Ok(summary)
    }
}
