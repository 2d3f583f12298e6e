//! Saving a run: when, and what goes with a checkpoint.

use std::time::{Duration, Instant};

use kernels::Device;
use loader::{Cursor, memory};

use super::run::{Event, OnTheWay, Run, Scribe, is_due};
use crate::checkpoint::{Committed, Progress, Saving, Snapshot};
use crate::ranks::together::once_all;
use crate::recipe::Every;
use crate::{Error, checkpoint};

impl<D: Device> Run<'_, D> {
    /// Training goes on while the checkpoint is stored.
    pub(super) fn save_if_due(&mut self) -> Result<(), Error> {
        if self.save_is_due(self.state.step) && !self.is_done() {
            self.begin_saving()?;
        }
        Ok(())
    }

    pub(super) fn save_is_due(&self, step: u64) -> bool {
        match self.recipe.checkpoint.every {
            Every::Steps(steps) => is_due(steps, step),
            Every::Minutes(_) => self.save_called,
        }
    }

    /// Whether this rank's clock says that a checkpoint is due. The first rank's counts, once all have heard of it.
    pub(super) fn save_by_clock(&self) -> bool {
        match self.recipe.checkpoint.every {
            Every::Steps(_) => false,
            // When storing takes longer than that, training does not wait for it.
            Every::Minutes(minutes) if self.on_the_way.is_none() => {
                self.saved_at.elapsed().as_secs_f64() >= 60.0 * minutes
            }
            Every::Minutes(_) => false,
        }
    }

    /// Commits a checkpoint of this moment. Returns its folder.
    pub(super) fn save(&mut self) -> Result<String, Error> {
        let folder = self.begin_saving()?;
        self.finish_saving()?;
        Ok(folder)
    }

    /// Begins a checkpoint of this moment, unless there is one. At most one is on its way: waits for the one before. Returns its
    /// folder.
    fn begin_saving(&mut self) -> Result<String, Error> {
        if let Some((step, held_out, folder)) = &self.saved
            && (*step, held_out) == (self.state.step, &self.state.held_out)
        {
            return Ok(folder.clone());
        }
        self.finish_saving()?;
        self.during("saving", Self::begin)
    }

    fn begin(&mut self) -> Result<String, Error> {
        let started = Instant::now();
        let left = self.leave_what_a_resume_needs();
        once_all(&self.device.axes().all, "saving", left)?;
        self.state.tally = self.device.take_sums(&mut self.tally)?;
        self.device.put_sums(&mut self.tally, &self.state.tally);
        // After a refused step the stream is ahead of the weights.
        let cursor = Cursor { step: self.state.step, ..self.stream.cursor() };
        self.state.wall_s = self.wall_s();
        let of = Snapshot {
            dictionary: &self.sae,
            state: &self.state,
            cursor: &cursor,
            recipe: self.recipe,
            commit: self.start.commit,
        };
        // Looked at before any rank goes on: what one has copied is no longer there for the others.
        let spare = || checkpoint::spare_bytes(memory::available(), self.start.host_ranks);
        let buffer_bytes = self.recipe.checkpoint.buffer_bytes.unwrap_or_else(spare);
        let saving = Saving::begin(self.store, self.device.axes(), &of, &self.known, buffer_bytes)?;
        let folder = saving.folder().to_owned();
        (self.saved_at, self.save_called) = (Instant::now(), false);
        self.saved = Some((self.state.step, self.state.held_out.clone(), folder.clone()));
        self.on_the_way = Some(OnTheWay { saving, waited: started.elapsed() });
        Ok(folder)
    }

    /// Whether this rank has done its part of the checkpoint that is on its way.
    pub(super) fn part_is_saved(&self) -> bool {
        self.on_the_way.as_ref().is_some_and(|on_the_way| on_the_way.saving.has_done_its_part())
    }

    /// All ranks have done their part of the checkpoint that is on its way: it goes on to the next.
    pub(super) fn go_on_saving(&mut self) -> Result<(), Error> {
        let Some(OnTheWay { saving, waited }) = self.on_the_way.take() else { return Ok(()) };
        match self.during("saving", |run| saving.go_on(run.device.axes()))? {
            Progress::OnTheWay(saving) => self.on_the_way = Some(OnTheWay { saving, waited }),
            Progress::Committed(committed) => self.committed(committed, waited),
        }
        Ok(())
    }

    /// Waits for the checkpoint that is on its way, if there is one.
    pub(super) fn finish_saving(&mut self) -> Result<(), Error> {
        let Some(OnTheWay { saving, waited }) = self.on_the_way.take() else { return Ok(()) };
        let since = Instant::now();
        let committed = self.during("saving", |run| saving.finish(run.device.axes()))?;
        self.committed(committed, waited + since.elapsed());
        Ok(())
    }

    /// Metrics up to this step and the manifests of the data, which the first rank writes.
    fn leave_what_a_resume_needs(&mut self) -> Result<(), Error> {
        let Some(Scribe { run_dir, journal }) = &mut self.scribe else { return Ok(()) };
        journal.flush()?;
        run_dir.publish()?;
        self.data.keep_manifests(self.store)
    }

    /// What is to be kept of a run that has failed.
    pub(super) fn on_its_way(&mut self) -> Option<Saving> {
        self.on_the_way.take().map(|on_the_way| on_the_way.saving)
    }

    fn committed(&mut self, Committed { known, stored_s }: Committed, waited: Duration) {
        let Some((step, held_out, folder)) = &self.saved else { return };
        match known {
            Some(known) => self.known = known,
            None => self.known.add(*step, folder.clone(), held_out.as_ref()),
        }
        if self.scribe.is_some() {
            let bytes = checkpoint::bytes(self.data.train.width(), self.recipe.sae.features);
            let waited_s = waited.as_secs_f64();
            tracing::info!(step, folder, stored_s, bytes, waited_s, "checkpoint committed");
        }
        (self.start.watch)(Event::Saved(folder));
    }
}
