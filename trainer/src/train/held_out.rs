//! Measuring a run on held-out rows.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kernels::{Device, Dictionary, Training};

use super::evaluation::Evaluation;
use super::run::{Event, Run};
use crate::Error;
use crate::evaluate::Pass;
use crate::report::centre::Centre;
use crate::report::journal::{self, EvalLine, Line};
use crate::report::metrics::{DensityHistogram, Metrics};
use crate::report::recovery::{Recovery, recovery};
use crate::schedule::is_due;

impl<D: Device> Run<'_, D> {
    /// Evaluates during training, unless it was done at this step; the best weights so far are saved where `checkpoint.best` says so. Only these evaluations
    /// compete: they are over the same rows, the one at the end is over all.
    pub(super) fn evaluate_if_due(&mut self) -> Result<(), Error> {
        if !self.evaluation_is_due(self.state.step) || self.is_done() || self.state.held_out.is_some() {
            return Ok(());
        }
        let Some((metrics, _)) = self.evaluate(Some(self.recipe.eval.rows))? else { return Ok(()) };
        let loss = metrics.loss;
        self.state.held_out = Some(metrics);
        if self.recipe.checkpoint.best {
            // What is best must not depend on how fast a store is.
            self.finish_saving()?;
            if loss < self.saver.best_loss() {
                self.save()?;
            }
        }
        Ok(())
    }

    pub(super) fn evaluation_is_due(&self, step: u64) -> bool {
        is_due(self.recipe.eval.every, step) && self.data.eval.is_some()
    }

    /// Brings the dictionary that is looked at up to date, where it is another than the one that trains.
    fn settle(&mut self) {
        let next = self.update(self.state.step, self.state.tokens);
        if let Some(settled) = &mut self.evaluation.settled {
            self.sae.settle_into(&next, settled);
        }
    }

    /// Measures the held-out rows, at most `limit` of them. A stop or an error ends it and costs no step: this one is saved then, and
    /// a resumed run comes back to the evaluation.
    pub(super) fn evaluate(&mut self, limit: Option<u64>) -> Result<Option<(Metrics, DensityHistogram)>, Error> {
        let Some(dataset) = &self.data.eval else { return Ok(None) };
        let began = Instant::now();
        let rows = limit.unwrap_or(u64::MAX).min(dataset.rows());
        self.settle();
        let (step, mut stopped, mut took) = (self.state.step, false, Duration::ZERO);
        // The tally of training is put aside: it goes on afterwards to the same bits.
        let training = self.device.take_sums(&mut self.tally)?;
        let place = self.device.axes().place;
        let filter = self.filter()?;
        let stream = || self.data.reading.eval_stream(dataset, filter.clone(), place, Some(rows));
        let mut pool = self.shared.pool.borrow_mut();
        let buffers = pool.last_mut().expect("no step of this run is in flight, and there is memory for one more");
        let mut known = self.shared.centre.borrow_mut();
        let centre = known.take().filter(|(of, _)| *of == rows);
        let before = if centre.is_some() { 0 } else { rows };
        let stop = || self.start.stop.load(Ordering::Relaxed);
        let mut heard = |done: u64, stop: bool| {
            (self.start.watch)(Event::Evaluating(done, before + rows));
            stopped = stop;
            // The checkpoint is made and named below.
            if stop { Err(Error::Interrupted { step, checkpoint: String::new() }) } else { Ok(()) }
        };
        let centre = match centre {
            Some((_, centre)) => Ok(centre),
            None => {
                stream().and_then(|mut rows| Centre::of(self.device, dataset, buffers, &mut rows, stop, &mut heard))
            }
        };
        let measured = centre.and_then(|centre| {
            let (_, centre) = known.insert((rows, centre));
            let pass = Pass { dataset, features: self.recipe.sae.features, scale: self.state.scale, centre };
            let sae: &mut dyn Dictionary<Rows = D::Rows, Tally = D::Tally> = match &mut self.evaluation.settled {
                Some(settled) => settled,
                None => &mut self.sae,
            };
            let progress = |done, stop| heard(before + done, stop);
            let mut stream = stream()?;
            let since = Instant::now();
            let measured = pass.measure(self.device, sae, (buffers, &mut self.tally), &mut stream, stop, progress);
            took = since.elapsed();
            measured
        });
        drop((pool, known));
        self.device.put_sums(&mut self.tally, &training);
        if stopped {
            return Err(Error::Interrupted { step, checkpoint: self.save()? });
        }
        let measured = self.during("evaluating", |_| measured);
        if let Err(error) = &measured {
            self.save_what_is_done(error);
        }
        let measured = measured?;
        let Some(metrics) = measured.metrics(self.schedule.final_lambda()) else { return Ok(None) };
        let density = DensityHistogram::of(&measured.sums, &self.device.axes().all)?;
        let rows = measured.sums.rows;
        let rate = |time: Duration| rows as f64 / time.as_secs_f64();
        let step = self.state.step - 1;
        let line = EvalLine {
            time: journal::now(),
            step,
            tokens: self.state.tokens,
            rows,
            metrics,
            density,
            tokens_per_s: rate(took),
            tokens_per_s_wall: rate(began.elapsed()),
            account: self.account(self.schedule.final_lambda(), self.schedule.lr().at(step)),
        };
        (self.start.watch)(Event::Evaluated(&line));
        let (metrics, density) = (line.metrics.clone(), line.density.clone());
        if let Some(scribe) = &mut self.scribe {
            scribe.journal.line(&Line::Eval(line))?;
        }
        Ok(Some((metrics, density)))
    }

    /// How many of the directions are recovered that the data were made of, where they are known.
    pub(super) fn recovery(&mut self) -> Result<Option<Recovery>, Error> {
        self.settle();
        let Some(truth) = &self.shared.truth else { return Ok(None) };
        let Evaluation { settled } = &self.evaluation;
        let seen = self.state.tokens as f64 / self.data.train.rows() as f64;
        let sae: &dyn Dictionary<Rows = D::Rows, Tally = D::Tally> = match settled {
            Some(settled) => settled,
            None => &self.sae,
        };
        Ok(recovery(truth, seen, sae, &self.device.axes().all)?)
    }
}
