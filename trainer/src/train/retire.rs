//! Retiring steps in flight: a device runs ahead of what the run knows of it, and whatever it refused is made again or ends the run.
//!
//! Nothing takes effect out of order: the steps behind one that was refused are held by the device, and made again after it.
//!
//! **A GPU is never waited for while it has nothing else to do.** The report of a step is read when the next one is enqueued
//! (`Device::AHEAD`), and rows are copied on a stream of their own while the step before runs. A batch behind one that was refused is
//! held by the GPU and changes nothing, so the host makes both again, in their order, from rows that it still has: nothing is dropped or
//! counted twice, and the bits are those of a run that waits after every step. Code that looks at the state (metrics lines, evaluations,
//! checkpoints) first retires what is in flight. More steps in flight would gain nothing: one is enough for a GPU to go on with.

use kernels::{Device, Dictionary, Path, Report};

use super::flight::InFlight;
use super::run::{Event, Run};
use crate::buffers::Seen;
use crate::ranks::together::together;
use crate::step::step;
use crate::{Error, evaluate};

/// Rows that are not finite which a [`Report`] names at most: of more it says nothing.
const NAMED_ROWS: usize = 64;

impl<D: Device> Run<'_, D> {
    /// Retires every step in flight: the state is then that of the device.
    pub(super) fn catch_up(&mut self) -> Result<(), Error> {
        self.retire(0)
    }

    /// Retires the oldest steps until `left` are in flight.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::Divergence`] when a step was refused and would be again.
    pub(super) fn retire(&mut self, left: usize) -> Result<(), Error> {
        while self.flight.len() > left {
            let mut report = self.sae.report(self.flight.len() - 1)?;
            if report.overflow {
                self.make_again();
                report = self.sae.report(self.flight.len() - 1)?;
            }
            let Some(InFlight { batch, .. }) = self.flight.pop() else { return Ok(()) };
            if !report.ok {
                return Err(self.refused(&batch.seen, &report));
            }
            self.took(&batch.seen, &report)?;
            self.pass(&batch.seen);
        }
        Ok(())
    }

    /// Makes the oldest step again where it has room, and after it those that it held.
    fn make_again(&mut self) {
        tracing::debug!(step = self.state.step, "too many active features for lists: made again on the dense path");
        self.sae.release();
        if let Some(oldest) = self.flight.oldest_mut() {
            oldest.input.path = Path::Dense;
        }
        for InFlight { batch, input } in self.flight.steps() {
            step(&mut self.sae, batch.x(), &mut self.tally, input);
        }
    }

    /// What a step gave.
    fn took(&mut self, seen: &Seen, report: &Report) -> Result<(), Error> {
        if self.recipe.log.rows {
            let own = self.positions.row_ids(&seen.own).into_iter().map(|id| self.data.train.row_name(id)).collect();
            let ids = together(&self.device.axes().all, "naming rows", Ok::<Vec<String>, Error>(own))?;
            if let Some(scribe) = &mut self.scribe {
                scribe.journal.rows(self.state.step, &ids.concat())?;
            }
        }
        let rows = report.rows as f64;
        self.state.tokens += report.rows as u64;
        self.state.active = self.state.active.map(|active| active + report.active);
        let density = (report.active, (report.rows * self.recipe.sae.features) as u64);
        self.state.density = [density, self.state.density[0]];
        let loss = (report.squared_error + f64::from(self.schedule.lambda(self.state.step)) * report.l1) / rows;
        (self.start.watch)(Event::Step {
            step: self.state.step + 1,
            tokens: self.state.tokens,
            loss,
            l0: report.active as f64 / rows,
        });
        self.state.gradient_norm = report.gradient_norm;
        Ok(())
    }

    /// Goes on behind a batch, which may have had no rows.
    pub(super) fn pass(&mut self, seen: &Seen) {
        self.state.left_out.skipped += seen.call.left_out.skipped;
        self.state.left_out.filtered += seen.call.left_out.filtered;
        self.state.step += 1;
        self.state.held_out = None;
        self.state.stall_s += seen.own.stall.as_secs_f64();
        self.clocks.waited(seen.own.stall);
    }

    /// A NaN or infinity reached the step. The weights are those before it, for what was enqueued behind it is held; they are
    /// saved, so that the run can go on once the rows are left out.
    fn refused(&mut self, seen: &Seen, report: &Report) -> Error {
        self.failed_during.get_or_insert("checking a step");
        let step = self.state.step;
        let saved = match self.save() {
            Ok(folder) => format!("the weights before this step are in {folder}"),
            Err(error) => format!("saving the weights before this step failed: {error}"),
        };
        let bad = match evaluate::bad_rows(self.device.axes(), &self.data.train, &self.positions, seen, report) {
            Ok(bad) => bad,
            Err(error) => return error,
        };
        if bad.is_empty() {
            return Error::Divergence(format!(
                "step {step}: the gradient is not finite although every row is, so the update was refused; {saved}. \
                 Lower train.lr, and look at metrics.jsonl for where the loss began to rise"
            ));
        }
        // The list may only grow, so what is left out already stands in it too.
        let quoted = |entry: &String| toml::Value::String(entry.clone()).to_string();
        let skip: Vec<String> = self.recipe.data.skip.iter().chain(&bad).map(quoted).collect();
        let problem = format!(
            "step {step}: {}{} NaN or infinite values, so the update was refused; {saved}",
            if bad.len() < NAMED_ROWS { "" } else { "at least " },
            if bad.len() == 1 { "1 of its rows holds".to_owned() } else { format!("{} of its rows hold", bad.len()) },
        );
        Error::BadRows { problem, skip: format!("data.skip=[{}]", skip.join(", ")) }
    }
}
