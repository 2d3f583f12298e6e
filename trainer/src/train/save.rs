//! Saving a run: when, and what goes with a checkpoint.

use std::time::{Duration, Instant};

use kernels::mesh::Axes;
use kernels::{Device, Training};
use loader::{Store, memory};

use super::run::{Event, Run, Scribe, is_due};
use crate::checkpoint::{Committed, Found, Known, Progress, Saving, Snapshot, State};
use crate::ranks::together::once_all;
use crate::recipe::Every;
use crate::report::metrics::Metrics;
use crate::{Error, checkpoint};

/// The checkpoints of a run: when the next is due, and the last until it is committed. At most one is on its way.
pub(super) struct Saver {
    every: Every,
    /// What retention and the choice of the best go by.
    known: Known,
    /// When the last one was begun.
    begun: Instant,
    /// Whether the ranks have agreed that one is due by the clock.
    called: bool,
    last: Option<Last>,
    on_its_way: Option<OnItsWay>,
}

/// The last checkpoint: the same state is not saved twice.
struct Last {
    step: u64,
    held_out: Option<Metrics>,
    folder: String,
}

/// A checkpoint until it is committed.
struct OnItsWay {
    saving: Saving,
    /// How long training has waited for it.
    waited: Duration,
}

/// A checkpoint that was just committed.
struct Done {
    step: u64,
    folder: String,
    stored_s: f64,
    waited: Duration,
}

impl Saver {
    /// Of a run that knows these checkpoints and goes on from `last`, as it stands there.
    pub(super) fn new(every: Every, known: Known, last: Option<&Found>) -> Self {
        let last = last.map(|found| Last {
            step: found.manifest.step,
            held_out: found.manifest.held_out.clone(),
            folder: found.folder.clone(),
        });
        Saver { every, known, begun: Instant::now(), called: false, last, on_its_way: None }
    }

    /// Whether there is a checkpoint.
    pub(super) fn has_saved(&self) -> bool {
        self.last.is_some()
    }

    pub(super) fn is_due(&self, step: u64) -> bool {
        match self.every {
            Every::Steps(steps) => is_due(steps, step),
            Every::Minutes(_) => self.called,
        }
    }

    /// Whether this rank's clock says that a checkpoint is due. The first rank's counts, once all have heard of it.
    pub(super) fn is_due_by_clock(&self) -> bool {
        match self.every {
            Every::Steps(_) => false,
            // When storing takes longer than that, training does not wait for it.
            Every::Minutes(minutes) if self.on_its_way.is_none() => {
                self.begun.elapsed().as_secs_f64() >= 60.0 * minutes
            }
            Every::Minutes(_) => false,
        }
    }

    /// The ranks have agreed that one is due by the clock.
    pub(super) fn call(&mut self) {
        self.called = true;
    }

    /// Whether this rank has done its part of the checkpoint that is on its way.
    pub(super) fn has_done_its_part(&self) -> bool {
        self.on_its_way.as_ref().is_some_and(|on_its_way| on_its_way.saving.has_done_its_part())
    }

    /// The least held-out loss of a checkpoint.
    pub(super) fn best_loss(&self) -> f64 {
        self.known.best_loss()
    }

    /// The folder of the last checkpoint, if it is of this state.
    fn folder_of(&self, state: &State) -> Option<&str> {
        let last = self.last.as_ref()?;
        ((last.step, &last.held_out) == (state.step, &state.held_out)).then_some(&last.folder)
    }

    /// Begins a checkpoint, with none on its way. Returns its folder.
    fn begin(
        &mut self,
        store: &Store,
        axes: &Axes,
        of: &Snapshot<'_, impl Training>,
        buffer_bytes: u64,
        started: Instant,
    ) -> Result<String, Error> {
        let saving = Saving::begin(store, axes, of, &self.known, buffer_bytes)?;
        let folder = saving.folder().to_owned();
        (self.begun, self.called) = (Instant::now(), false);
        let State { step, held_out, .. } = of.state;
        self.last = Some(Last { step: *step, held_out: held_out.clone(), folder: folder.clone() });
        self.on_its_way = Some(OnItsWay { saving, waited: started.elapsed() });
        Ok(folder)
    }

    /// All ranks have done their part of the checkpoint that is on its way: it goes on to the next.
    fn go_on(&mut self, axes: &Axes) -> Result<Option<Done>, Error> {
        let Some(OnItsWay { saving, waited }) = self.on_its_way.take() else { return Ok(None) };
        match saving.go_on(axes)? {
            Progress::OnTheWay(saving) => {
                self.on_its_way = Some(OnItsWay { saving, waited });
                Ok(None)
            }
            Progress::Committed(committed) => Ok(self.committed(committed, waited)),
        }
    }

    /// Waits for the checkpoint that is on its way, if there is one.
    fn finish(&mut self, axes: &Axes) -> Result<Option<Done>, Error> {
        let Some(OnItsWay { saving, waited }) = self.on_its_way.take() else { return Ok(None) };
        let since = Instant::now();
        let committed = saving.finish(axes)?;
        Ok(self.committed(committed, waited + since.elapsed()))
    }

    fn committed(&mut self, Committed { known, stored_s }: Committed, waited: Duration) -> Option<Done> {
        let Last { step, held_out, folder } = self.last.as_ref()?;
        match known {
            Some(known) => self.known = known,
            None => self.known.add(*step, folder.clone(), held_out.as_ref()),
        }
        Some(Done { step: *step, folder: folder.clone(), stored_s, waited })
    }

    /// What is to be kept of a run that has failed.
    pub(super) fn take_on_its_way(&mut self) -> Option<Saving> {
        self.on_its_way.take().map(|on_its_way| on_its_way.saving)
    }
}

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
            cursor: &self.flight.cursor(self.state.step),
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
        self.data.keep_manifests(self.start.store)
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
