//! Saving a run: when, and what goes with a checkpoint.

use std::time::Instant;

use kernels::Device;
use loader::Cursor;

use super::{Event, Run, Scribe, is_due};
use crate::recipe::Every;
use crate::{Error, checkpoint};

impl<D: Device> Run<'_, D> {
    pub(super) fn save_if_due(&mut self) -> Result<(), Error> {
        if self.save_is_due(self.state.step) && !self.is_done() {
            self.save()?;
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
            Every::Minutes(minutes) => self.saved_at.elapsed().as_secs_f64() >= 60.0 * minutes,
        }
    }

    /// Commits a checkpoint of this moment and removes those that are no longer kept. Returns its folder.
    pub(super) fn save(&mut self) -> Result<String, Error> {
        self.during("saving", Self::commit)
    }

    fn commit(&mut self) -> Result<String, Error> {
        if let Some((step, held_out, folder)) = &self.saved
            && (*step, held_out) == (self.state.step, &self.state.held_out)
        {
            return Ok(folder.clone());
        }
        let started = Instant::now();
        if let Some(Scribe { run_dir, journal }) = &mut self.scribe {
            journal.flush()?;
            run_dir.publish()?;
            self.data.keep_manifests(self.store)?;
        }
        self.state.tally = self.device.take_sums(&mut self.tally)?;
        self.device.put_sums(&mut self.tally, &self.state.tally);
        // After a refused step the stream is ahead of the weights.
        let cursor = Cursor { step: self.state.step, ..self.stream.cursor() };
        let folder = checkpoint::save(self.store, self.device.axes(), &self.sae, &self.state, &cursor, self.recipe)?;
        self.known.add(self.state.step, folder.clone(), self.state.held_out.as_ref());
        (self.saved_at, self.save_called) = (Instant::now(), false);
        self.saved = Some((self.state.step, self.state.held_out.clone(), folder.clone()));
        // The checkpoint is committed: what stays too long takes room and does no other harm.
        if self.scribe.is_some()
            && let Err(error) = checkpoint::retain(self.store, self.recipe.checkpoint.keep, &mut self.known)
        {
            tracing::warn!("old checkpoints could not be removed, the next save tries again: {error}");
        }
        if self.scribe.is_some() {
            let took = checkpoint::took(started, self.data.train.width(), self.recipe.sae.features);
            tracing::info!(folder, took, "checkpoint committed");
        }
        (self.start.watch)(Event::Saved(&folder));
        Ok(folder)
    }
}
