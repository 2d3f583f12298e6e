//! Saving a run: what goes with a checkpoint, and what is said of it.

use std::time::Instant;

use kernels::Device;
use loader::memory;

use super::run::{Event, Run, Scribe};
use super::saver::Done;
use crate::checkpoint::Snapshot;
use crate::ranks::together::once_all;
use crate::report::html::{self, Progress};
use crate::{Error, checkpoint};

/// A page of the run, beside its numbers.
const REPORT: &str = "report.html";

impl<D: Device> Run<'_, D> {
    /// Training goes on while the checkpoint is stored.
    pub(super) fn save_if_due(&mut self) -> Result<(), Error> {
        if self.saver.is_due(self.state.step) && !self.is_done() {
            self.begin_saving()?;
        }
        Ok(())
    }

    /// Commits a checkpoint of this moment. Returns its folder.
    pub(super) fn save(&mut self) -> Result<String, Error> {
        let folder = self.begin_saving()?;
        self.finish_saving()?;
        Ok(folder)
    }

    /// Begins a checkpoint of this moment, unless there is one; waits for the one before. Returns its folder.
    fn begin_saving(&mut self) -> Result<String, Error> {
        if let Some(folder) = self.saver.folder_of(&self.state) {
            return Ok(folder.to_owned());
        }
        self.finish_saving()?;
        self.during("saving", Self::begin)
    }

    fn begin(&mut self) -> Result<String, Error> {
        let started = Instant::now();
        let axes = self.device.axes();
        let left = self.leave_what_a_resume_needs();
        once_all(&axes.all, "saving", left)?;
        self.state.tally = self.device.take_sums(&mut self.tally)?;
        self.device.put_sums(&mut self.tally, &self.state.tally);
        self.state.wall_s = self.clocks.wall_s();
        let of = Snapshot {
            dictionary: &self.sae,
            state: &self.state,
            cursor: &self.positions.cursor(self.state.step),
            recipe: self.recipe,
            commit: self.start.commit,
        };
        // Looked at before any rank goes on: what one has copied is no longer there for the others.
        let spare = || checkpoint::spare_bytes(memory::available(), self.start.host_ranks);
        let buffer_bytes = self.recipe.checkpoint.buffer_bytes.unwrap_or_else(spare);
        self.saver.begin(self.start.store, axes, &of, buffer_bytes, started)
    }

    /// All ranks have done their part of the checkpoint that is on its way: it goes on to the next.
    pub(super) fn go_on_saving(&mut self) -> Result<(), Error> {
        let done = self.during("saving", |run| run.saver.go_on(run.device.axes()))?;
        self.tell_saved(done);
        Ok(())
    }

    /// Waits for the checkpoint that is on its way, if there is one.
    pub(super) fn finish_saving(&mut self) -> Result<(), Error> {
        let done = self.during("saving", |run| run.saver.finish(run.device.axes()))?;
        self.tell_saved(done);
        Ok(())
    }

    /// Metrics up to this step and the manifests of the data, which the first rank writes.
    fn leave_what_a_resume_needs(&mut self) -> Result<(), Error> {
        let Some(Scribe { run_dir, journal }) = &mut self.scribe else { return Ok(()) };
        journal.flush()?;
        run_dir.publish()?;
        self.leave_report(Progress::Training { step: self.state.step, steps: self.schedule.steps() });
        self.data.keep_manifests(self.start.store)
    }

    /// Puts report.html into the run's folder, for people alone: what fails there fails no run.
    pub(super) fn leave_report(&self, progress: Progress<'_>) {
        let Some(Scribe { journal, .. }) = &self.scribe else { return };
        let store = self.start.store;
        let report = html::report(store.url(), self.recipe, journal.curves(), progress);
        let left = report.and_then(|html| Ok(store.put(REPORT, html)?));
        if let Err(error) = left {
            tracing::warn!("{REPORT} was not written, and the run goes on: {error}");
        }
    }

    fn tell_saved(&mut self, done: Option<Done>) {
        let Some(Done { step, folder, stored_s, waited }) = done else { return };
        if self.scribe.is_some() {
            let bytes = checkpoint::bytes(self.data.train.width(), self.recipe.sae.features);
            let waited_s = waited.as_secs_f64();
            tracing::info!(step, folder, stored_s, bytes, waited_s, "checkpoint committed");
        }
        (self.start.watch)(Event::Saved(&folder));
    }

    /// The data cannot be read on, as `error` says. The weights are those after the last whole batch: nothing of it is lost.
    pub(super) fn save_what_is_done(&mut self, error: &Error) {
        // Ranks save together. What fails on one GPU the others do not know of, and do other things; when a rank is gone there is
        // nothing to agree on, and what is on its way is kept at the end.
        let of_one_gpu = matches!(error, Error::Device(error) if !matches!(error, kernels::Error::Peer { .. }));
        if self.state.step == 0 || of_one_gpu || self.device.axes().all.check().is_err() {
            return;
        }
        match self.save() {
            // Of a rank that is gone the error itself tells.
            Ok(_) | Err(Error::Device(kernels::Error::Peer { .. })) => {}
            Err(second) => tracing::warn!("saving failed too: {second}"),
        }
    }
}
