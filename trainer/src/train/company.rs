//! Several runs on one stream: rows are read, decoded and normalized once, and each run makes its step with them in turn.
//!
//! A run in company is the run that it would be alone, to the bit: what runs share are rows, and what is found out about the data. Each takes a
//! prefix of the stream and leaves when its own tokens are done, which is why the order must not depend on how far a run goes
//! (`data.order_rows`). One that fails leaves the others alone. A run that was resumed further on than another waits for it: rows between are
//! read again, for those that have not seen them.
//!
//! On several ranks all of this holds on each of them, and they make every step of every run in the same order. What one rank alone fails of once runs
//! have been claimed ends them all.
//!
//! A run alone is a company of one.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kernels::Device;
use loader::Store;

use super::reader::{Batch, Reader};
use super::run::{Event, Run, Start};
use super::shared::Shared;
use crate::Error;
use crate::data::{Data, row_dtype};
use crate::estimate::plan::{self, DataSize};
use crate::ranks::note::Note;
use crate::ranks::roll_call::Answer;
use crate::ranks::together::{once_all, together};
use crate::recipe::Recipe;
use crate::report::summary::Summary;
use crate::run_dir::{self, RunDir};

/// A run of a company.
pub struct Member<'a> {
    /// What it trains.
    pub recipe: &'a Recipe,
    /// How it is started. When one is asked to stop, all do.
    pub start: Start<'a>,
}

/// Whether runs of these recipes may share a stream: they see the same rows in the same order, whichever of them ends first, and ask the same
/// formats of the device that they share.
pub fn share_a_stream(one: &Recipe, other: &Recipe) -> bool {
    let prefix = one.data.order_rows.is_some() || one.train.tokens == other.train.tokens;
    let formats = |recipe: &Recipe| (recipe.train.precision, recipe.train.moments);
    one.data == other.data && one.train.batch == other.train.batch && prefix && formats(one) == formats(other)
}

/// Runs that were to be trained together cannot be.
fn other_stream() -> Error {
    let problem = "configurations that are trained together differ in [data], in train.batch, in train.precision, in train.moments or, without \
                   data.order_rows, in train.tokens: train them apart";
    Error::Recipe(problem.to_owned())
}

const NO_ROOM: &str = "the runs before it on this device have taken the memory: train fewer at once";
const OTHER_ROWS: &str = "its rows are scaled or filtered otherwise than those of the runs before it: train it apart";

/// A run's data, and for the first rank the claim on its folder.
type Claimed = (Data, Option<RunDir>);

/// Trains all to their ends. What came of each stands at its place.
pub(super) fn train<D: Device>(device: &D, mut members: Vec<Member<'_>>) -> Vec<Result<Summary, Error>> {
    let began = Instant::now();
    // Before what borrows from them.
    let mut claims: Vec<Option<Claimed>> = Vec::new();
    let mut company = Company::new(device, members.len());
    if members.iter().any(|member| !share_a_stream(member.recipe, members[0].recipe)) {
        company.refuse_all(other_stream());
        return company.results();
    }
    for (place, member) in members.iter().enumerate() {
        let opened = claims.iter().flatten().map(|(data, _)| data).find(|data| data.is_that_of(member.recipe));
        let claimed = claim(device, member, opened);
        claims.push(claimed.map_err(|error| company.refuse_heard(place, error)).ok());
    }
    let begun = room(device, &members, &claims).and_then(|room| {
        let claimed = (0..claims.len()).filter(|&place| claims[place].is_some()).skip(room).collect::<Vec<_>>();
        for place in claimed {
            // Another process may begin it meanwhile.
            claims[place] = None;
            company.results[place] = Some(Err(Error::NotBegun(NO_ROOM)));
            (members[place].start.watch)(Event::NotBegun);
        }
        let first = claims.iter().flatten().next();
        first.map(|(data, _)| Shared::of(device, data)).transpose()
    });
    let shared = match begun {
        Ok(Some(shared)) => shared,
        Ok(None) => return company.results(),
        Err(error) => {
            company.refuse_all(error);
            return company.results();
        }
    };
    for (place, (Member { recipe, start }, claim)) in members.into_iter().zip(&claims).enumerate() {
        let Some((data, run_dir)) = claim else { continue };
        let (store, words) = (start.store, start.words);
        match Run::start(device, recipe, data, run_dir.as_ref(), start, &shared, began) {
            Ok(run) => company.runs.push((place, run)),
            Err(error) => {
                if run_dir.as_ref().is_none_or(RunDir::is_ours) {
                    company.note(store, words, (0, "starting"), &error);
                }
                company.refuse(place, error);
            }
        }
    }
    company.begin(&shared);
    company.results()
}

/// The run's data, and for the first rank the claim on its folder, or why there is none, of which all ranks hear: made last, so that a start that fails leaves it free. `opened` are the data
/// of another run, with the same rows.
fn claim(device: &impl Device, Member { recipe, start }: &Member<'_>, opened: Option<&Data>) -> Result<Claimed, Error> {
    recipe.validate()?;
    let ranks = &device.axes().all;
    let first = ranks.index() == 0;
    let Start { store, resume, host_ranks, .. } = *start;
    let free = if first { run_dir::check(store, recipe, resume) } else { Ok(()) };
    together(ranks, "looking at the run's folder", free)?;
    let data = match opened.filter(|_| !resume) {
        Some(opened) => opened.of_another(recipe)?,
        None => Data::open_by_all(recipe, resume.then_some(store), ranks)?,
    };
    // All look before any takes memory, which ranks of one machine share.
    let fits = DataSize::of(recipe, &data)
        .and_then(|rows| plan::check_fits(device, recipe, &rows, device.axes().place, host_ranks));
    together(ranks, "looking at memory", fits)?;
    let claimed = first.then(|| RunDir::claim(store, recipe, resume)).transpose();
    let run_dir = once_all(ranks, "claiming the run's folder", claimed)?;
    Ok((data, run_dir))
}

/// How many of the runs that are claimed fit into memory together: as many as on the rank where the fewest do. One does, by itself.
fn room(device: &impl Device, members: &[Member<'_>], claims: &[Option<Claimed>]) -> Result<usize, Error> {
    let claimed = members.iter().zip(claims).filter_map(|(member, claim)| Some((member, &claim.as_ref()?.0)));
    let sizes = claimed.map(|(member, data)| Ok((member.recipe, DataSize::of(member.recipe, data)?)));
    let fit = sizes.collect::<Result<Vec<_>, Error>>().map(|sizes| match (sizes.len(), members) {
        (several @ 2.., [first, ..]) => plan::how_many_fit(device, &sizes, first.start.host_ranks).clamp(1, several),
        (few, _) => few,
    });
    let fit = together(&device.axes().all, "looking at memory", fit)?;
    Ok(fit.into_iter().min().unwrap_or(0))
}

/// Runs that make their steps with the same batches.
struct Company<'a, D: Device> {
    device: &'a D,
    /// Those that train, each with its place.
    runs: Vec<(usize, Run<'a, D>)>,
    /// What came of each.
    results: Vec<Option<Result<Summary, Error>>>,
}

impl<'a, D: Device> Company<'a, D> {
    fn new(device: &'a D, members: usize) -> Self {
        Company { device, runs: Vec::new(), results: (0..members).map(|_| None).collect() }
    }

    fn results(self) -> Vec<Result<Summary, Error>> {
        let lost = || Err(Error::Internal("a run has ended without a word".into()));
        let results = self.results.into_iter().map(|result| result.unwrap_or_else(lost));
        // What only one of them still holds is its own.
        let own = |error| match error {
            Error::OfAll(shared) => Arc::try_unwrap(shared).unwrap_or_else(Error::OfAll),
            own => own,
        };
        results.map(|result| result.map_err(own)).collect()
    }

    /// A member has failed, and no other waits for it or can be told.
    fn refuse(&mut self, place: usize, error: Error) {
        self.tell_ranks(&error);
        self.results[place] = Some(Err(error));
    }

    /// A member has failed of what all ranks have heard of by now: those of several go on without it.
    fn refuse_heard(&mut self, place: usize, error: Error) {
        match self.results.len() {
            1 => self.refuse(place, error),
            _ => self.results[place] = Some(Err(error)),
        }
    }

    /// All have failed of the same.
    fn refuse_all(&mut self, error: Error) {
        let error = Arc::new(error);
        for place in (0..self.results.len()).filter(|&place| self.results[place].is_none()).collect::<Vec<_>>() {
            self.refuse(place, Error::OfAll(Arc::clone(&error)));
        }
    }

    /// The other ranks wait for this one, and hear why it is gone. All stop together when one was asked to; and what all ranks know of a run
    /// that is not alone ends that run only.
    fn tell_ranks(&self, error: &Error) {
        let of_one_run = self.results.len() > 1
            && matches!(
                error,
                Error::Divergence(_) | Error::BadRows { .. } | Error::Recipe(_) | Error::RunDir(_) | Error::NotBegun(_)
            );
        if !error.is_interruption() && !of_one_run {
            let ranks = &self.device.axes().all;
            ranks.abort(error.failure(ranks.index()));
        }
    }

    /// Leaves word of a failure in the run's folder.
    fn note(&self, store: &Store, words: fn(&Error) -> String, (step, operation): (u64, &'static str), error: &Error) {
        if !error.is_interruption() {
            let rank = self.device.axes().all.index();
            Note { error: words(error), ..Note::new(rank, step, operation, error) }.leave(store);
        }
    }

    /// Starts the stream where the run stands that has come least far, and trains.
    fn begin(&mut self, shared: &Rc<Shared<D>>) {
        self.part_from_other_rows();
        let Some((_, first)) = self.runs.first() else { return };
        let data = first.data;
        let from = self.runs.iter().map(|(_, run)| run.state.step).min().unwrap_or(0);
        let until = self.runs.iter().map(|(_, run)| run.schedule.steps()).max().unwrap_or(0);
        let same = first.positions.cursor(from);
        if self.runs.iter().any(|(_, run)| run.positions.cursor(from) != same) {
            return self.fail(other_stream(), "starting");
        }
        let (place, filter) = (self.device.axes().place, first.filter());
        let stream = filter.and_then(|filter| data.train_stream(filter, place, same, until));
        match stream {
            Ok(stream) => self.go(&mut Reader::new(stream, Rc::clone(&shared.pool))),
            Err(error) => self.fail(error, "starting"),
        }
    }

    /// Those leave whose rows are not those of the first, number by number: a scale or a median that was found out before `data.skip` grew.
    fn part_from_other_rows(&mut self) {
        let Some((_, first)) = self.runs.first() else { return };
        let of = |run: &Run<'_, D>| (run.state.scale, run.filter().ok(), run.data.reading.clone());
        let same = of(first);
        let apart: Vec<usize> = self.runs.iter().filter(|(_, run)| of(run) != same).map(|(place, _)| *place).collect();
        self.each_of(&apart, |_| Err(Error::NotBegun(OTHER_ROWS)));
    }

    /// Trains until none is left.
    fn go(&mut self, reader: &mut Reader<D>) {
        self.each(Run::take_up);
        loop {
            self.close();
            if self.runs.is_empty() {
                return;
            }
            let started = Instant::now();
            let Some(mut batch) = self.read(reader) else { return };
            let (scale, dtype) = self
                .runs
                .first()
                .map_or((1.0, None), |(_, run)| (run.state.scale, Some(row_dtype(run.data.train.dtype()))));
            if let Some(dtype) = dtype.filter(|_| batch.seen.call.rows() > 0) {
                batch.normalize(self.device, dtype, scale);
            }
            let step = batch.seen.own.step;
            // The others have made this step before they were resumed.
            let taking = self.runs.iter().filter(|(_, run)| run.enqueued() == step).map(|(place, _)| *place);
            let taking: Vec<usize> = taking.collect();
            let reading = started.elapsed() / taking.len().max(1) as u32;
            let batch = Rc::new(batch);
            self.each_of(&taking, |run| run.take(&batch, reading));
            drop(batch);
            self.each_of(&taking, Run::look);
        }
    }

    /// Reads a batch. When a rank was asked to stop, or rows cannot be read, all end here with a checkpoint: `None`.
    fn read(&mut self, reader: &mut Reader<D>) -> Option<Batch<D>> {
        let runs = || self.runs.iter().map(|(_, run)| run);
        let mut on_their_way = runs().filter(|run| run.saver.is_on_its_way()).peekable();
        let answer = Answer {
            stop: runs().any(|run| run.start.stop.load(Ordering::Relaxed)),
            save: runs().any(|run| run.saver.is_due_by_clock()),
            saved: on_their_way.peek().is_some() && on_their_way.all(|run| run.saver.has_done_its_part()),
            ..Answer::default()
        };
        let batch = match reader.next(self.device, answer) {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                let ended = runs().map(|run| format!("{} of {}", run.enqueued(), run.schedule.steps()));
                let ended = ended.collect::<Vec<_>>().join(", ");
                self.fail(Error::Internal(format!("the data ended at step {ended}").into()), "reading a batch");
                return None;
            }
            Err(error) => {
                self.fail(error, "reading a batch");
                return None;
            }
        };
        let call = &batch.seen.call;
        if call.saved {
            self.each(Run::go_on_saving);
        }
        if call.stop {
            if self.device.axes().all.index() == 0 {
                tracing::info!("asked to stop: saving");
            }
            self.each(Run::stop);
            return None;
        }
        if call.save {
            self.each(|run| {
                run.saver.call();
                Ok(())
            });
        }
        Some(batch)
    }

    /// Does what each run does at this moment. One that fails leaves.
    fn each(&mut self, work: impl FnMut(&mut Run<'a, D>) -> Result<(), Error>) {
        let all: Vec<usize> = self.runs.iter().map(|(place, _)| *place).collect();
        self.each_of(&all, work);
    }

    /// The same of the runs at these places.
    fn each_of(&mut self, places: &[usize], mut work: impl FnMut(&mut Run<'a, D>) -> Result<(), Error>) {
        let mut at = 0;
        while let Some((place, run)) = self.runs.get_mut(at) {
            match if places.contains(place) { work(run) } else { Ok(()) } {
                Ok(()) => at += 1,
                Err(error) => self.leave(at, error),
            }
        }
    }

    /// What all need has failed: they save what they have, and leave.
    fn fail(&mut self, error: Error, operation: &'static str) {
        let error = Arc::new(error);
        self.each(|run| {
            run.failed_during.get_or_insert(operation);
            run.catch_up()?;
            run.save_what_is_done(&error);
            Err(Error::OfAll(Arc::clone(&error)))
        });
    }

    /// Ends the runs whose tokens are done.
    fn close(&mut self) {
        let mut at = 0;
        while let Some((place, run)) = self.runs.get_mut(at) {
            if !run.is_done() {
                at += 1;
                continue;
            }
            let place = *place;
            match run.close() {
                Ok(summary) => {
                    self.results[place] = Some(Ok(summary));
                    let (_, mut run) = self.runs.remove(at);
                    (run.start.watch)(Event::Done);
                }
                Err(error) => self.leave(at, error),
            }
        }
    }

    /// A run ends before its time.
    fn leave(&mut self, at: usize, error: Error) {
        let (place, mut run) = self.runs.remove(at);
        let on_its_way = run.saver.take_on_its_way();
        let stands = (run.state.step, run.failed_during.unwrap_or("training"));
        let (store, words) = (run.start.store, run.start.words);
        let ours = run.scribe.as_ref().is_none_or(|scribe| scribe.run_dir.is_ours());
        let is_begun = !matches!(error, Error::NotBegun(_));
        if !is_begun {
            (run.start.watch)(Event::NotBegun);
        }
        drop(run);
        if ours && is_begun {
            self.note(store, words, stands, &error);
        }
        self.refuse(place, error);
        if let Some(Err(error)) = on_its_way.map(|saving| saving.keep(self.device.axes())) {
            tracing::warn!("saving failed too: {error}");
        }
    }
}
