//! The checkpoints of a run: when the next is due, and the last until it is committed.

use std::time::{Duration, Instant};

use kernels::Training;
use kernels::mesh::Axes;
use loader::Store;

use crate::Error;
use crate::checkpoint::{Committed, Found, Known, Progress, Saving, Snapshot, State};
use crate::recipe::Every;
use crate::report::metrics::Metrics;
use crate::schedule::is_due;

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
pub(super) struct Done {
    pub(super) step: u64,
    pub(super) folder: String,
    /// Seconds until all ranks had stored their files.
    pub(super) stored_s: f64,
    /// How long training has waited for it.
    pub(super) waited: Duration,
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

    /// Whether a checkpoint is on its way.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.on_its_way.is_some()
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
    pub(super) fn folder_of(&self, state: &State) -> Option<&str> {
        let last = self.last.as_ref()?;
        ((last.step, &last.held_out) == (state.step, &state.held_out)).then_some(&last.folder)
    }

    /// Begins a checkpoint, with none on its way. Returns its folder.
    pub(super) fn begin(
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
    pub(super) fn go_on(&mut self, axes: &Axes) -> Result<Option<Done>, Error> {
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
    pub(super) fn finish(&mut self, axes: &Axes) -> Result<Option<Done>, Error> {
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
