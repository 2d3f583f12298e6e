//! `sae launch local`.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use loader::Store;

use crate::args::{Local, Log, WorldArgs, log_words};
use crate::failure::Failure;
use crate::ranks::{self, Ended, Passed, Ranks};
use crate::recipes;
use crate::world::{self, World};

/// The longest pause before a restart: what is wrong after that long is not mended by more of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Starts the ranks, and starts them again while that can help.
pub fn run(args: &Local, log: Log) -> Result<(), Failure> {
    // Only the number counts, so any attempt will do.
    let flags = WorldArgs { attempt: Some(start_id()), ..WorldArgs::default() };
    let outside = World::new(&flags, &world::environment())?;
    if outside.ranks > 1 {
        return Err(Failure::arguments(format!(
            "{} has started {} processes, and sae launch local starts all ranks by itself: start sae train instead",
            outside.launcher, outside.ranks
        )));
    }
    let train = args.train.parse()?;
    let notes = Notes::of(&recipes::read(&train.recipe, &train.set)?.run.dir)?;
    let ranks = usize::try_from(args.ranks).unwrap_or(usize::MAX);
    let mut passed = Passed::listen()?;
    let mut restart = 0;
    loop {
        let train = if restart == 0 { args.train.words() } else { args.train.resuming() };
        let words = [&["train"][..], log_words(log), &train].concat();
        let before = notes.tags(ranks)?;
        let running = Ranks::start(&words, ranks, &format!("{}.{restart}", start_id()), log)?;
        let Some(ended) = running.wait(&mut passed)? else { return Ok(()) };
        let said = notes.told(&ended, &before);
        if passed.first.is_some() && passed.first == ended.status.signal() {
            // It came before the rank could listen: nothing was done, and nothing is lost.
            let message = format!("{said}, before it had begun: start again with --resume-or-start");
            return Err(Failure::of_rank(message, 75));
        }
        if passed.first.is_some() || !ended.restart_helps() {
            return Err(Failure::of_rank(said, ended.code()));
        }
        if restart == args.restarts {
            return Err(Failure::of_rank(format!("{said}; {restart} restarts did not help"), ended.code()));
        }
        let pause = Duration::from_secs(1 << restart.min(6)).min(LONGEST_PAUSE);
        restart += 1;
        tracing::warn!("{said}; restart {restart} of {} in {} s", args.restarts, pause.as_secs());
        if passed.wait(pause) {
            let message = "stopped between two starts: continue with --resume-or-start";
            return Err(Failure::of_rank(message.to_owned(), 75));
        }
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
    fn tags(&self, ranks: usize) -> Result<BTreeMap<String, Option<String>>, Failure> {
        let mut tags = BTreeMap::new();
        for name in (0..ranks).map(name) {
            if let Some(entry) = self.run.head(&name)? {
                tags.insert(name, entry.etag);
            }
        }
        Ok(tags)
    }

    /// How a rank ended, with the cause when it left one.
    fn told(&self, ended: &Ended, before: &BTreeMap<String, Option<String>>) -> String {
        let said = format!("rank {} {}", ended.rank, ranks::words(ended.status));
        let name = name(ended.rank);
        // That a note cannot be read must not hide how the rank ended.
        let entry = self.run.head(&name).ok().flatten();
        let is_new = entry.is_some_and(|entry| before.get(&name) != Some(&entry.etag));
        let note = is_new.then(|| self.run.get(&name).ok()).flatten();
        let note = note.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        match note.as_ref().and_then(|note| note["error"].as_str()) {
            Some(error) => format!("{said}: {error}"),
            None => said,
        }
    }
}

fn name(rank: usize) -> String {
    format!("error-{rank}.json")
}
