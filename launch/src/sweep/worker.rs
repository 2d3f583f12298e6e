//! Trains the configurations of a sweep in the slots of this machine, until nothing is left.
//!
//! One thread looks, claims and hands out; each slot trains in a thread of its own; one more writes the claims' beats, so that neither a long
//! step nor a store that is slow makes others believe that this process is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use trainer::Exit;
use trainer::train::share_a_stream;

use super::claim::{Life, Owner, Progress, SetAtEnd, Watch};
use super::folder::{Configuration, Files, Folder, State, state_of, varying};
use super::group::{Claimed, Outcome, train_group};
use super::mesh::train_on_mesh;
use crate::device::{DeviceChoice, Local};
use crate::failure::Failure;
use crate::progress::{Headline, duration};
use crate::runs::{Run, at_once};

/// How often the slots are looked at.
const POLL: Duration = Duration::from_millis(20);

/// Configurations that train together on one stream, at most. Of so many each reads a sixteenth of what it would alone; more would leave none to
/// other workers, which may begin later.
pub const TOGETHER: usize = 16;

/// Starts of a configuration by one process, where each ends with what another may go better than: storage, hardware.
const TRIES: u32 = 3;

/// How a sweep is worked on.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Configurations that train at the same time.
    pub slots: usize,
    /// The GPU of the first of them, where they use GPUs: the others have the next ones.
    pub first: usize,
    /// Slots of all processes that a launcher has started on this machine, whose memory they share.
    pub of_machine: usize,
    /// Where.
    pub device: DeviceChoice,
    /// From so many features on, all slots train a configuration together.
    pub mesh_from: Option<u64>,
    /// Threads of a slot on the processor.
    pub threads: usize,
    /// Processes that were started together: each begins its share of what is left.
    pub workers: usize,
    /// This process among them, from 0 on: each begins its search elsewhere.
    pub index: usize,
    /// Whether to wait for configurations that others train.
    pub waits: bool,
}

/// What a worker has come to.
#[derive(Debug, Default)]
pub struct Worked {
    /// Why configurations ended that failed here or before: by their ids.
    pub failed: BTreeMap<String, (State, Exit)>,
    /// Whether it was asked to stop before all was done.
    pub is_stopped: bool,
}

/// Trains what is pending of `configurations`. It ends when all have come to an end, or, where it does not wait for others, when nothing is
/// left to begin.
///
/// # Errors
/// Those of the store, and of threads.
pub fn work(
    folder: &Folder,
    configurations: &[Configuration],
    owner: &Owner,
    work: Work,
    stop: &Arc<AtomicBool>,
) -> Result<Worked, Failure> {
    let held = Held::default();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // However this ends: the thread that beats is waited for.
        let _ending = SetAtEnd(&ended);
        let beats = thread::Builder::new().name("claims".to_owned());
        beats
            .spawn_scoped(scope, || held.beat(folder, owner, &ended))
            .map_err(|error| Failure::from(kernels::Error::threads(error)))?;
        Worker::new(folder, configurations, owner, work, &held).work(scope, stop)
    })
}

/// The claims that this process has.
#[derive(Debug, Default)]
struct Held {
    claims: Mutex<BTreeMap<String, (Claimed, u64)>>,
}

impl Held {
    fn claims(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Claimed, u64)>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop_all(&self) {
        self.claims().values().for_each(|(claimed, _)| claimed.stop.store(true, Ordering::Relaxed));
    }

    /// Writes a beat of each claim every so often, until all is `ended`. A claim that is gone was taken over by others, who held this process
    /// for dead: its run saves and ends.
    fn beat(&self, folder: &Folder, owner: &Owner, ended: &AtomicBool) {
        let mut next = Instant::now() + owner.every;
        while !ended.load(Ordering::Relaxed) {
            thread::sleep(POLL);
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + owner.every;
            let due: Vec<(String, u64, Progress)> = {
                let mut claims = self.claims();
                let beat = |(id, (claimed, beat)): (&String, &mut (Claimed, u64))| {
                    *beat += 1;
                    (id.clone(), *beat, claimed.progress())
                };
                claims.iter_mut().map(beat).collect()
            };
            // Several at a time, and none while the claims are locked: a store may be slow.
            let beaten = at_once(&due, |(id, beat, progress)| self.beat_once(folder, owner, id, *beat, *progress));
            let failures = match beaten {
                Ok(beaten) => beaten.into_iter().filter_map(Result::err).collect(),
                Err(failure) => vec![failure],
            };
            failures.iter().for_each(|failure| tracing::warn!("{}", failure.message()));
        }
    }

    fn beat_once(
        &self,
        folder: &Folder,
        owner: &Owner,
        id: &str,
        beat: u64,
        progress: Progress,
    ) -> Result<(), Failure> {
        if owner.has(&folder.store, id)? {
            owner.write(&folder.store, id, beat, progress)?;
            // One that was given back meanwhile is not to come again.
            if !self.claims().contains_key(id) {
                owner.release(&folder.store, id)?;
            }
            return Ok(());
        }
        let Some(claimed) = self.claims().get(id).map(|(claimed, _)| claimed.clone()) else { return Ok(()) };
        // Of a run that is done others tidy claims away.
        if claimed.store.head("summary.json")?.is_none() && !claimed.stop.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{}: another process has taken it over, since this one was not heard of: it saves and ends here",
                claimed.label
            );
        }
        Ok(())
    }
}

/// What slots tell the worker.
enum Told {
    /// What a configuration has come to. Others of its group may go on.
    Outcome(Box<Claimed>, Outcome),
    /// These slots are free again.
    Free(Vec<usize>),
}

struct Worker<'a> {
    folder: &'a Folder,
    configurations: &'a [Configuration],
    labels: BTreeMap<String, String>,
    owner: &'a Owner,
    work: Work,
    held: &'a Held,
    watch: Watch,
    /// Configurations that have come to their end, one way or the other.
    settled: BTreeMap<String, (State, Option<Exit>)>,
    /// How often each was begun here, to no end.
    tries: BTreeMap<String, u32>,
    /// Those that others had, and when to look at them again.
    later: BTreeMap<String, Instant>,
    elsewhere: usize,
    began: Instant,
    /// Work that was left when this process began.
    left_then: Option<f64>,
}

impl<'a> Worker<'a> {
    fn new(
        folder: &'a Folder,
        configurations: &'a [Configuration],
        owner: &'a Owner,
        work: Work,
        held: &'a Held,
    ) -> Self {
        let keys = varying(configurations);
        let label = |one: &Configuration| (one.id.clone(), label(one, &keys));
        Worker {
            folder,
            configurations,
            labels: configurations.iter().map(label).collect(),
            owner,
            work,
            held,
            watch: Watch::default(),
            settled: BTreeMap::new(),
            tries: BTreeMap::new(),
            later: BTreeMap::new(),
            elsewhere: 0,
            began: Instant::now(),
            left_then: None,
        }
    }

    fn work<'scope>(mut self, scope: &'scope Scope<'scope, '_>, stop: &AtomicBool) -> Result<Worked, Failure> {
        let (teller, told) = channel::<Told>();
        let mut idle: Vec<usize> = (0..self.work.slots).rev().collect();
        let headline = Headline::new();
        let worked = self.share_out(scope, stop, (&teller, &told), &mut idle, &headline);
        headline.clear();
        if worked.is_err() {
            // What was begun saves first, and keeps its claims alive until it has.
            self.held.stop_all();
            while idle.len() < self.work.slots {
                match told.recv() {
                    Ok(Told::Free(slots)) => idle.extend(slots),
                    Ok(Told::Outcome(member, _)) => {
                        self.held.claims().remove(&member.id);
                        // This worker ends with an error of its own; a claim that stays is taken over by others.
                        let _ = self.owner.release(&self.folder.store, &member.id);
                    }
                    Err(_) => break,
                }
            }
        }
        worked
    }

    fn share_out<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        stop: &AtomicBool,
        (teller, told): (&Sender<Told>, &Receiver<Told>),
        idle: &mut Vec<usize>,
        headline: &Headline,
    ) -> Result<Worked, Failure> {
        let mut look_at = Instant::now();
        loop {
            while let Ok(told) = told.try_recv() {
                match told {
                    Told::Outcome(member, outcome) => self.settle(&member, outcome, stop)?,
                    Told::Free(slots) => idle.extend(slots),
                }
                look_at = Instant::now();
            }
            let is_stopped = stop.load(Ordering::Relaxed);
            if is_stopped {
                self.held.stop_all();
                if idle.len() == self.work.slots {
                    return Ok(self.worked(true));
                }
            } else if !idle.is_empty() && Instant::now() >= look_at {
                let pending = self.look()?;
                let began = self.hand_out(scope, pending, idle, teller)?;
                let all_idle = idle.len() == self.work.slots;
                let none_left = self.settled.len() == self.configurations.len();
                // Others may let go of what could not be had just now.
                if all_idle && (none_left || !(self.work.waits || began || self.may_be_had())) {
                    return Ok(self.worked(false));
                }
                look_at = Instant::now() + self.owner.every.min(Duration::from_secs(1));
            }
            headline.set(&self.headline());
            thread::sleep(POLL);
        }
    }

    /// What has become of all, and which may be claimed, those that were begun first and then the largest.
    fn look(&mut self) -> Result<Vec<usize>, Failure> {
        let mut files = self.folder.look()?;
        self.watch.keep(|key| files.values().any(|files| files.claims.iter().any(|claim| claim.key == key)));
        let mut pending = Vec::new();
        self.elsewhere = 0;
        for (at, configuration) in self.configurations.iter().enumerate() {
            let id = &configuration.id;
            if self.settled.contains_key(id) || self.held.claims().contains_key(id) {
                continue;
            }
            let files = files.remove(id).unwrap_or_default();
            if files.has_summary {
                if !files.was_done {
                    // The process that trained it was gone before it could.
                    let summary = self.folder.run(id)?.get("summary.json")?;
                    self.folder.keep_summary(id, summary.to_vec())?;
                }
                // Nobody trains it, so what is left of claims is of processes that were killed.
                files.claims.iter().try_for_each(|claim| self.folder.store.delete(&claim.key))?;
                self.settled.insert(id.clone(), (State::Done, None));
            } else if let Some(life) = self.claimed(&files)? {
                // Of the others it is not known yet.
                self.elsewhere += usize::from(life == Life::Alive);
            } else if let Some((state, exit)) = self.failure(id, &files)? {
                self.settled.insert(id.clone(), (state, Some(exit)));
            } else {
                pending.push((at, files));
            }
        }
        let all = self.configurations;
        pending.sort_by(|(a, a_files), (b, b_files)| {
            let larger = all[*b].work().total_cmp(&all[*a].work());
            b_files.is_begun.cmp(&a_files.is_begun).then(larger).then(a.cmp(b))
        });
        for (at, files) in &pending {
            if files.was_done && !files.is_begun && !self.tries.contains_key(&all[*at].id) {
                tracing::warn!(
                    "{}: it was done, and its run folder {} is gone: it is trained again",
                    self.labels[&all[*at].id],
                    all[*at].recipe.run.dir
                );
            }
        }
        let mut pending: Vec<usize> = pending.into_iter().map(|(at, _)| at).collect();
        if !pending.is_empty() {
            // Workers that begin together do not all want the same.
            let first = self.work.index % pending.len();
            pending.rotate_left(first);
        }
        let open = all.iter().filter(|one| !self.settled.contains_key(&one.id));
        self.left_then.get_or_insert_with(|| open.map(Configuration::work).sum());
        Ok(pending)
    }

    /// Whether somebody else trains it, or may for all that is known.
    fn claimed(&mut self, files: &Files) -> Result<Option<Life>, Failure> {
        let mut found = None;
        for claim in &files.claims {
            match self.watch.look(&self.folder.store, claim, Instant::now())? {
                Life::Alive => return Ok(Some(Life::Alive)),
                Life::Unknown => found = Some(Life::Unknown),
                Life::Abandoned => {}
            }
        }
        Ok(found)
    }

    /// How a run has failed, unless another start may go better and this process has some left.
    fn failure(&self, id: &str, files: &Files) -> Result<Option<(State, Exit)>, Failure> {
        let Some(note) = self.folder.note(id, files)? else { return Ok(None) };
        let exit = Exit::of(note.exit_code).unwrap_or(Exit::Hardware);
        let tries = self.tries.get(id).copied().unwrap_or_default();
        Ok(if exit.restart_helps() && tries < TRIES { None } else { Some((state_of(&note), exit)) })
    }

    /// Whether something is left of which it is not known that somebody trains it.
    fn may_be_had(&self) -> bool {
        self.settled.len() + self.elsewhere < self.configurations.len()
    }

    /// Claims configurations for the idle slots and lets them train; says whether any was begun.
    fn hand_out<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        mut pending: Vec<usize>,
        idle: &mut Vec<usize>,
        teller: &Sender<Told>,
    ) -> Result<bool, Failure> {
        let now = Instant::now();
        self.later.retain(|_, until| *until > now);
        pending.retain(|&at| !self.later.contains_key(&self.configurations[at].id));
        let mut began = false;
        while let (Some(&slot), Some(&first)) = (idle.last(), pending.first()) {
            let all = self.configurations;
            if self.takes_a_mesh(first) {
                // It needs all slots, and would wait for ever if others were begun meanwhile.
                if idle.len() < self.work.slots {
                    break;
                }
                pending.remove(0);
                if let Some(member) = self.claim(&all[first])? {
                    began = true;
                    self.begin(scope, std::mem::take(idle), vec![member], teller.clone())?;
                }
                continue;
            }
            let shares = |&at: &usize| !self.takes_a_mesh(at) && share_a_stream(&all[first].recipe, &all[at].recipe);
            let sharing: Vec<usize> = pending.iter().copied().filter(shares).collect();
            // Each idle slot of each worker gets its part, some of the large ones among them.
            let most = sharing.len().div_ceil(idle.len() * self.work.workers).min(TOGETHER);
            let wanted: Vec<usize> = sharing.iter().copied().step_by(sharing.len() / most).take(most).collect();
            pending.retain(|at| !wanted.contains(at));
            let mut members = Vec::new();
            for &at in &wanted {
                members.extend(self.claim(&all[at])?);
            }
            if members.is_empty() {
                continue;
            }
            idle.pop();
            began = true;
            self.begin(scope, vec![slot], members, teller.clone())?;
        }
        Ok(began)
    }

    /// Whether a configuration is so large that all slots train it together.
    fn takes_a_mesh(&self, at: usize) -> bool {
        let features = self.configurations[at].recipe.sae.features as u64;
        self.work.slots > 1 && self.work.mesh_from.is_some_and(|from| features >= from)
    }

    fn claim(&mut self, configuration: &Configuration) -> Result<Option<Claimed>, Failure> {
        let Configuration { id, recipe } = configuration;
        if !self.owner.take(&self.folder.store, id, &mut self.watch)? {
            return Ok(None);
        }
        let store = self.folder.run(id)?;
        // Another may have come to its end since the folder was looked at.
        if store.head("summary.json")?.is_some() {
            self.owner.release(&self.folder.store, id)?;
            return Ok(None);
        }
        let label = self.labels.get(id).cloned().unwrap_or_default();
        let claimed = Claimed {
            id: id.clone(),
            label,
            recipe: recipe.clone(),
            store,
            stop: Arc::default(),
            progress: Arc::default(),
        };
        self.held.claims().insert(id.clone(), (claimed.clone(), 0));
        Ok(Some(claimed))
    }

    fn begin<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        slots: Vec<usize>,
        members: Vec<Claimed>,
        teller: Sender<Told>,
    ) -> Result<(), Failure> {
        let on = if slots.len() > 1 { format!(", on a mesh of {}", slots.len()) } else { String::new() };
        for member in &members {
            tracing::info!(run = member.recipe.run.dir, "begins: {}{on}", member.label);
        }
        let Work { device, threads, first, of_machine: ranks, .. } = self.work;
        let name = slots.iter().map(|slot| format!("-{slot}")).collect::<String>();
        let train = move || {
            // Nobody listens where the worker has panicked meanwhile.
            let tell = |member: &Claimed, outcome| drop(teller.send(Told::Outcome(Box::new(member.clone()), outcome)));
            match slots[..] {
                [slot] => train_group(device, Local { rank: first + slot, ranks }, threads, &members, &tell),
                _ => members.iter().for_each(|member| tell(member, train_on_mesh(device, slots.len(), member))),
            }
            drop(teller.send(Told::Free(slots)));
        };
        let thread = thread::Builder::new().name(format!("slot{name}")).spawn_scoped(scope, train);
        thread.map(|_| ()).map_err(|error| kernels::Error::threads(error).into())
    }

    fn settle(&mut self, member: &Claimed, outcome: Outcome, stop: &AtomicBool) -> Result<(), Failure> {
        let (id, label) = (&member.id, &member.label);
        match outcome {
            Outcome::Done => {
                self.folder.keep_summary(id, member.store.get("summary.json")?.to_vec())?;
                let summary = Run::read(&member.store)?.and_then(|run| run.summary);
                let (loss, l0) = summary.as_ref().map_or((None, None), |summary| (summary.loss, summary.l0));
                tracing::info!(loss, l0, wall_s = summary.map(|summary| summary.wall_s), "done: {label}");
                self.settled.insert(id.clone(), (State::Done, None));
            }
            Outcome::Stopped => {
                if !stop.load(Ordering::Relaxed) {
                    self.later.insert(id.clone(), Instant::now() + self.owner.every);
                }
            }
            // It is pending again, for this slot or another.
            Outcome::NotBegun => {}
            Outcome::Elsewhere => {
                tracing::info!("{label}: its run folder is in use by another process, and is looked at again");
                self.later.insert(id.clone(), Instant::now() + self.owner.every);
            }
            Outcome::Failed { exit, words } => {
                let tries = self.tries.entry(id.clone()).or_default();
                *tries += 1;
                let again = exit.restart_helps() && *tries < TRIES;
                let state = if exit == Exit::Divergence { State::Diverged } else { State::Failed };
                let more = if again { "; it is begun again" } else { "" };
                tracing::warn!(exit_code = exit.code(), "{}: {label}: {words}{more}", state.name());
                if again {
                    // Of the next try another note tells.
                    self.folder.forget_failure(id)?;
                    self.later.insert(id.clone(), Instant::now() + self.owner.every);
                } else {
                    self.settled.insert(id.clone(), (state, Some(exit)));
                }
            }
        }
        self.held.claims().remove(id);
        self.owner.release(&self.folder.store, id)?;
        Ok(())
    }

    fn worked(&self, is_stopped: bool) -> Worked {
        let failed = self.settled.iter().filter_map(|(id, (state, exit))| Some((id.clone(), (*state, (*exit)?))));
        Worked { failed: failed.collect(), is_stopped }
    }

    /// The whole sweep in a line.
    fn headline(&self) -> String {
        let (all, done) = (self.configurations.len(), self.settled.values().filter(|(s, _)| *s == State::Done).count());
        let failed = self.settled.len() - done;
        let running = self.held.claims().len();
        let mut parts = vec![format!("sweep {done}/{all} done"), format!("{running} running here")];
        parts.extend((self.elsewhere > 0).then(|| format!("{} elsewhere", self.elsewhere)));
        parts.extend((failed > 0).then(|| format!("{failed} failed")));
        parts.extend(self.left_s().map(|seconds| format!("{} left", duration(seconds))));
        parts.join(" · ")
    }

    /// Seconds until all are done, at the pace since this process began.
    fn left_s(&self) -> Option<f64> {
        let then = self.left_then?;
        let open = self.configurations.iter().filter(|one| !self.settled.contains_key(&one.id));
        let whole: f64 = open.map(Configuration::work).sum();
        let claims = self.held.claims();
        let made: f64 = claims
            .values()
            .map(|(claimed, _)| claimed.recipe.sae.features as f64 * claimed.progress().tokens as f64)
            .sum();
        let left = (whole - made).max(0.0);
        let (seconds, gone) = (self.began.elapsed().as_secs_f64(), then - left);
        (gone > 0.0 && seconds > 1.0).then(|| seconds * left / gone)
    }
}

/// What a configuration has of its own, for people.
pub fn label(configuration: &Configuration, varying: &[String]) -> String {
    let keys = configuration.recipe.keys();
    let parts = varying.iter().filter_map(|key| Some(format!("{}={}", last(key), brief(keys.get(key)?))));
    [short(&configuration.id).to_owned()].into_iter().chain(parts).collect::<Vec<_>>().join(" ")
}

/// The beginning of an id, which tells those of a sweep apart.
pub fn short(id: &str) -> &str {
    id.get(..6).unwrap_or(id)
}

/// A key without its section.
pub fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A value in few digits, where it has many.
pub fn brief(value: &str) -> String {
    /// Characters that a column has room for.
    const MOST: usize = 12;
    match value.parse::<f64>() {
        Ok(number) if value.len() > MOST => format!("{number:.3e}"),
        _ => value.to_owned(),
    }
}
