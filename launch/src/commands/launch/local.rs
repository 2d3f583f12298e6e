//! `sae launch local`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use loader::{Store, patience};
use trainer::note::{self, Note};

use crate::args::{Local, Log, WorldArgs, handed_on};
use crate::failure::Failure;
use crate::ranks::{self, Ended, Passed, Ranks};
use crate::world::{self, World};
use crate::{job, parent, recipes, signals};

/// The longest pause before a restart: what is wrong after that long is not mended by more of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Starts the ranks, and starts them again while that can help.
pub fn run(args: &Local, log: Log) -> Result<(), Failure> {
    parent::bind()?;
    let here = Here::of(args)?;
    let recipe = recipes::read(&args.run.recipe, &args.run.set)?;
    job::mesh_of(args.run.mesh, here.ranks, &recipe)?;
    let notes = Notes::of(&recipe.run.dir)?;
    let mut passed = Passed::listen()?;
    let mut restart = 0;
    loop {
        let run = if restart == 0 { args.run.words() } else { args.run.resuming() };
        let handed_on = handed_on(log);
        let mut words = ["train"].into_iter().chain(handed_on.iter().map(String::as_str)).collect::<Vec<_>>();
        words.extend(run.iter().map(String::as_str));
        words.extend(args.dry_run.then_some("--dry-run"));
        let before = notes.tags(here.local())?;
        let attempt = match args.as_node {
            true => here.attempt.clone(),
            false => format!("{}.{restart}", start_id()),
        };
        let running = Ranks::start(&words, here.local(), here.ranks, &attempt, log)?;
        let failed = running.wait(&mut passed)?;
        let Some((ended, said)) = notes.cause(&failed, &before) else { return Ok(()) };
        let asked = |signal| signals::that_stop().contains(&signal);
        if passed.first.is_some() && ended.status.signal().is_some_and(asked) {
            // It came before the rank could listen: nothing was done, and nothing is lost.
            let message = format!("{said}, before it had begun: start again with --resume-or-start");
            return Err(Failure::interrupted(message));
        }
        if passed.first.is_some() || !ended.restart_helps() || args.as_node {
            return Err(Failure::of_rank(said, ended.code()));
        }
        if restart == args.restarts {
            return Err(Failure::of_rank(format!("{said}; {}", given_up(restart)), ended.code()));
        }
        let pause = Duration::from_secs(1 << restart.min(6)).min(LONGEST_PAUSE);
        restart += 1;
        // Now it is in the middle of a run.
        patience::set(patience::now().max(patience::IN_A_RUN));
        let (exit_code, restarts, pause_s) = (ended.code(), args.restarts, pause.as_secs());
        tracing::warn!(exit_code, restart, restarts, pause_s, "{said}; restart follows");
        if passed.wait(pause) {
            let message = "stopped between two starts: continue with --resume-or-start";
            return Err(Failure::interrupted(message));
        }
    }
}

/// The ranks that this process starts, among all of their job.
struct Here {
    first: usize,
    count: usize,
    /// Ranks of the job, those on other machines included.
    ranks: usize,
    /// The attempt id that machines have in common.
    attempt: String,
}

impl Here {
    /// All ranks; or with `--as-node` those of one machine, which the launcher that started this process on each has numbered.
    fn of(args: &Local) -> Result<Here, Failure> {
        let count = args.ranks as usize;
        let environment = world::environment();
        // An attempt of its own is needed where there are several processes, and counts nowhere else.
        let attempt = environment.get("SAE_ATTEMPT").cloned().or_else(|| (!args.as_node).then(start_id));
        let outside = World::new(&WorldArgs { attempt, ..WorldArgs::default() }, &environment)?;
        if args.as_node && outside.local_ranks > 1 {
            return Err(Failure::arguments(format!(
                "{} has started {} processes on this machine: with --as-node it starts one on each, which starts --ranks {count} there",
                outside.launcher, outside.local_ranks
            )));
        }
        if outside.ranks == 1 {
            return Ok(Here { first: 0, count, ranks: count, attempt: start_id() });
        }
        if !args.as_node {
            return Err(Failure::arguments(format!(
                "{} has started {} processes, and sae launch local starts all ranks by itself: start sae train instead, or with --as-node \
                 one sae launch local on each machine",
                outside.launcher, outside.ranks
            )));
        }
        Ok(Here { first: outside.rank * count, count, ranks: outside.ranks * count, attempt: outside.attempt })
    }

    fn local(&self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

/// Why there is no other start after so many restarts.
fn given_up(restarts: u32) -> String {
    match restarts {
        0 => "with --restarts 0 it is not started again: go on with --resume-or-start".to_owned(),
        1 => "1 restart did not help".to_owned(),
        more => format!("{more} restarts did not help"),
    }
}

/// What no other start on any machine is called.
fn start_id() -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    format!("local-{}-{time}", std::process::id())
}

/// The error-RANK.json files of a run, in which ranks leave why they failed.
struct Notes {
    run: Store,
}

impl Notes {
    fn of(run_dir: &str) -> Result<Self, Failure> {
        Ok(Notes { run: Store::open(run_dir)? })
    }

    /// What is there before a start: a note that is still the same afterwards is of an earlier one.
    fn tags(&self, ranks: Range<usize>) -> Result<BTreeMap<String, Option<String>>, Failure> {
        let mut tags = BTreeMap::new();
        for name in ranks.map(note::name) {
            if let Some(entry) = self.run.head(&name)? {
                tags.insert(name, entry.etag);
            }
        }
        Ok(tags)
    }

    /// The rank whose failure was the first, in words, with its own when it left some: the first of `failed`, or the one that its
    /// note names.
    fn cause(&self, failed: &[Ended], before: &BTreeMap<String, Option<String>>) -> Option<(Ended, String)> {
        let first = failed.first()?;
        let peer = self.left(first.rank, before).and_then(|note| note.peer);
        let ended = peer.and_then(|peer| failed.iter().find(|ended| ended.rank == peer)).unwrap_or(first);
        let said = format!("rank {} {}", ended.rank, ranks::words(ended.status));
        let said = match self.left(ended.rank, before) {
            Some(note) => format!("{said}: {}", note.error),
            None => said,
        };
        Some((*ended, said))
    }

    /// The note that a rank has left in this start. That it cannot be read must not hide how the rank ended.
    fn left(&self, rank: usize, before: &BTreeMap<String, Option<String>>) -> Option<Note> {
        let name = note::name(rank);
        let entry = self.run.head(&name).ok()??;
        let is_new = before.get(&name) != Some(&entry.etag);
        is_new.then(|| self.run.get(&name).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()))?
    }
}
