//! Who trains which configuration: claims that their owners write again and again.
//!
//! `claims/ID/OWNER.json` is written by its owner alone, a beat at a time. An observer holds a claim for alive as long as it sees it change,
//! and for abandoned once it has seen no change for [`MISSED`] beats, by its own clock: clocks of two machines are never compared.
//!
//! To claim is to write a key of one's own and then to look for others. Of two that do so at the same time at least one sees the other, as
//! long as a listing shows what was written before; both may, and both let go then. That needs no conditional writes, which some stores
//! silently ignore.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loader::{Entry, Store};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The folder of all claims.
pub const CLAIMS: &str = "claims";

/// Beats that an owner may miss before others take over what it has claimed.
pub const MISSED: u32 = 6;

/// How often a thread that writes beats looks whether it is time.
const POLL: Duration = Duration::from_millis(20);

/// The longest time between two beats, whatever a claim says of itself.
const LONGEST: Duration = Duration::from_secs(600);

/// How far a configuration is, for others to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps of the run; 0 before it has begun.
    pub steps: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// Rows of the run.
    pub rows: u64,
    /// Rows a second by the clock, since this start.
    pub tokens_per_s_wall: Option<f64>,
    /// Loss of the last steps.
    pub loss: Option<f64>,
    /// L0 of the last steps.
    pub l0: Option<f64>,
}

/// What a claim says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// Whose it is.
    pub owner: String,
    /// Its machine, for people.
    pub host: String,
    /// Its process there, for people.
    pub pid: u32,
    /// Claims that the owner has taken before: of two that are taken one after the other, the first beats differ.
    pub taken: u64,
    /// Counts up.
    pub beat: u64,
    /// Seconds between beats.
    pub every_s: f64,
    /// How far it is.
    pub progress: Progress,
}

impl Beat {
    /// The time between two of them.
    pub fn every(&self) -> Duration {
        Duration::try_from_secs_f64(self.every_s).unwrap_or(LONGEST).min(LONGEST)
    }
}

/// The key of a claim.
pub fn key(id: &str, owner: &str) -> String {
    format!("{CLAIMS}/{id}/{owner}.json")
}

/// `claims/ID/OWNER.json` → (ID, OWNER).
pub fn parse(key: &str) -> Option<(&str, &str)> {
    let (id, file) = key.strip_prefix(CLAIMS)?.strip_prefix('/')?.split_once('/')?;
    Some((id, file.strip_suffix(".json").filter(|owner| !owner.contains('/'))?))
}

/// What an observer knows of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It has changed since it was first seen, and not too long ago.
    Alive,
    /// It has not changed, and was not watched for long enough to tell.
    Unknown,
    /// It was watched for long enough and has not changed.
    Abandoned,
}

/// A claim as it was seen.
#[derive(Debug)]
struct Seen {
    tag: String,
    since: Instant,
    has_changed: bool,
    beat: Beat,
}

/// An observer of claims.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<String, Seen>,
}

impl Watch {
    /// Looks at a claim that a listing has shown, and says what is known of it `now`.
    ///
    /// # Errors
    /// Those of the store. A claim that is gone by now, or says nothing that can be understood, is abandoned.
    pub fn look(&mut self, store: &Store, entry: &Entry, now: Instant) -> Result<Life, Failure> {
        let tag = entry.etag.as_deref();
        if let (Some(seen), Some(tag)) = (self.seen.get(&entry.key), tag)
            && seen.tag == tag
        {
            return Ok(seen.life(now));
        }
        let Some(beat) = read(store, entry)? else {
            self.seen.remove(&entry.key);
            return Ok(Life::Abandoned);
        };
        // Where a store has no tags, the beat's own number tells.
        let tag = tag.map_or_else(|| beat.beat.to_string(), str::to_owned);
        Ok(self.note(&entry.key, tag, beat, now))
    }

    fn note(&mut self, key: &str, tag: String, beat: Beat, now: Instant) -> Life {
        match self.seen.get_mut(key) {
            Some(seen) if seen.tag == tag => {}
            Some(seen) => *seen = Seen { tag, since: now, has_changed: true, beat },
            None => {
                self.seen.insert(key.to_owned(), Seen { tag, since: now, has_changed: false, beat });
            }
        }
        self.seen[key].life(now)
    }

    /// What a claim said last.
    pub fn beat(&self, key: &str) -> Option<&Beat> {
        self.seen.get(key).map(|seen| &seen.beat)
    }

    /// Forgets claims that are gone.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.seen.retain(|key, _| is_there(key));
    }
}

impl Seen {
    fn life(&self, now: Instant) -> Life {
        match now.saturating_duration_since(self.since) > self.beat.every() * MISSED {
            true => Life::Abandoned,
            false if self.has_changed => Life::Alive,
            false => Life::Unknown,
        }
    }
}

/// Bytes of a claim, at most.
const MOST_BYTES: u64 = 64 << 10;

fn read(store: &Store, entry: &Entry) -> Result<Option<Beat>, Failure> {
    if entry.size > MOST_BYTES {
        return Ok(None);
    }
    match store.get(&entry.key) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(loader::Error::NotFound { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// What a process claims for itself.
#[derive(Clone, Debug)]
pub struct Owner {
    /// No other owner's, on any machine.
    pub name: String,
    host: String,
    /// Between two beats.
    pub every: Duration,
    taken: Arc<AtomicU64>,
}

/// Sets a flag when it goes, on the way out of a panic too.
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Owner {
    /// This process, which beats `every` so often.
    pub fn new(every: Duration) -> Owner {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let readable: String = host.chars().map(plain).take(32).collect();
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Two processes of one number on machines of one name, as containers have them, do not begin in the same nanosecond.
        let name = format!("{readable}-{}-{:x}", std::process::id(), since.as_nanos());
        Owner { name, host, every, taken: Arc::default() }
    }

    /// Writes a claim, or its next beat.
    ///
    /// # Errors
    /// Those of the store.
    pub fn write(&self, store: &Store, id: &str, beat: u64, progress: Progress) -> Result<(), Failure> {
        let beat = Beat {
            owner: self.name.clone(),
            host: self.host.clone(),
            pid: std::process::id(),
            taken: self.taken.load(Ordering::Relaxed),
            beat,
            every_s: self.every.as_secs_f64(),
            progress,
        };
        let json = serde_json::to_vec(&beat).map_err(|error| trainer::Error::Internal(error.into()))?;
        Ok(store.put(&key(id, &self.name), json)?)
    }

    /// Whether the claim is still there: one that others have held for abandoned is not.
    ///
    /// # Errors
    /// Those of the store.
    pub fn has(&self, store: &Store, id: &str) -> Result<bool, Failure> {
        Ok(store.head(&key(id, &self.name))?.is_some())
    }

    /// Takes a claim, unless another owner has one that `watch` does not know to be abandoned; those that are, go.
    ///
    /// # Errors
    /// Those of the store.
    pub fn take(&self, store: &Store, id: &str, watch: &mut Watch) -> Result<bool, Failure> {
        if self.is_others(store, id, watch)? {
            return Ok(false);
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.write(store, id, 0, Progress::default())?;
        if self.is_others(store, id, watch)? {
            self.release(store, id)?;
            return Ok(false);
        }
        Ok(true)
    }

    fn is_others(&self, store: &Store, id: &str, watch: &mut Watch) -> Result<bool, Failure> {
        for entry in store.list(&format!("{CLAIMS}/{id}"))? {
            if parse(&entry.key).is_none_or(|(_, owner)| owner == self.name) {
                continue;
            }
            if watch.look(store, &entry, Instant::now())? != Life::Abandoned {
                return Ok(true);
            }
            store.delete(&entry.key)?;
        }
        Ok(false)
    }

    /// Does some work while a claim that this owner has is kept alive, and gives it up.
    ///
    /// # Errors
    /// Those of the store.
    pub fn hold<T>(&self, store: &Store, id: &str, work: impl FnOnce() -> T) -> Result<T, Failure> {
        let ended = AtomicBool::new(false);
        let done = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut next, mut beat) = (Instant::now() + self.every, 1);
                while !ended.load(Ordering::Relaxed) {
                    thread::sleep(POLL);
                    if Instant::now() >= next {
                        (next, beat) = (Instant::now() + self.every, beat + 1);
                        if let Err(failure) = self.write(store, id, beat, Progress::default()) {
                            tracing::warn!("{}", failure.message());
                        }
                    }
                }
            });
            let _ending = SetAtEnd(&ended);
            work()
        });
        self.release(store, id)?;
        Ok(done)
    }

    /// Gives a claim up.
    ///
    /// # Errors
    /// Those of the store.
    pub fn release(&self, store: &Store, id: &str) -> Result<(), Failure> {
        Ok(store.delete(&key(id, &self.name))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner { name: name.to_owned(), host: String::new(), every: Duration::from_millis(20), taken: Arc::default() }
    }

    fn folder() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8")).expect("a folder");
        (folder, store)
    }

    /// By the observer's clock alone: the time in a claim is an interval, and no moment.
    #[test]
    fn a_claim_lives_as_long_as_it_is_seen_to_change() {
        let mut watch = Watch::default();
        let beat = |number| Beat {
            owner: "a".into(),
            host: String::new(),
            pid: 1,
            taken: 1,
            beat: number,
            every_s: 5.0,
            progress: Progress::default(),
        };
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(watch.note("k", "1".into(), beat(1), at(0)), Life::Unknown);
        assert_eq!(watch.note("k", "1".into(), beat(1), at(30)), Life::Unknown);
        assert_eq!(watch.note("k", "1".into(), beat(1), at(31)), Life::Abandoned);
        // Suspended, and on again.
        assert_eq!(watch.note("k", "2".into(), beat(2), at(40)), Life::Alive);
        assert_eq!(watch.note("k", "2".into(), beat(2), at(69)), Life::Alive);
        assert_eq!(watch.note("k", "2".into(), beat(2), at(71)), Life::Abandoned);
        // However long a claim says that it may be silent.
        let mut slow = beat(3);
        slow.every_s = f64::INFINITY;
        assert_eq!(watch.note("s", "3".into(), slow, at(0)), Life::Unknown);
        assert_eq!(watch.seen["s"].life(at(3601)), Life::Abandoned);
    }

    #[test]
    fn one_of_two_has_a_claim_until_it_lets_go_or_falls_silent() {
        let (_folder, store) = folder();
        let (one, other) = (owner("one"), owner("other"));
        let (mut first, mut second) = (Watch::default(), Watch::default());
        assert!(one.take(&store, "id", &mut first).expect("a store"));
        assert!(!other.take(&store, "id", &mut second).expect("a store"));
        assert!(one.has(&store, "id").expect("a store"), "the loser leaves the winner's alone");
        one.release(&store, "id").expect("a store");
        assert!(other.take(&store, "id", &mut second).expect("a store"));
        // It falls silent.
        assert!(!one.take(&store, "id", &mut first).expect("a store"));
        std::thread::sleep(Duration::from_millis(20 * u64::from(MISSED) + 20));
        assert!(one.take(&store, "id", &mut first).expect("a store"));
        assert!(!other.has(&store, "id").expect("a store"), "what it had is gone, by which it knows");
    }

    /// Whatever the moment at which the others write theirs, no two have it.
    #[test]
    fn of_many_at_once_at_most_one_has_a_claim() {
        let (_folder, store) = folder();
        for round in 0..20 {
            let id = format!("id-{round}");
            let take = |name: &str| owner(name).take(&store, &id, &mut Watch::default()).expect("a store");
            let taken = std::thread::scope(|scope| {
                let threads = ["a", "b", "c", "d"].map(|name| scope.spawn(move || take(name)));
                threads.map(|thread| thread.join().expect("it ends")).into_iter().filter(|&taken| taken).count()
            });
            assert!(taken <= 1, "{taken} have it");
        }
    }

    #[test]
    fn what_is_no_claim_holds_nobody_up() {
        let (_folder, store) = folder();
        store.put("claims/id/x.json", b"{}".to_vec()).expect("written");
        assert!(owner("a").take(&store, "id", &mut Watch::default()).expect("a store"));
        assert_eq!(parse("claims/id/a.json"), Some(("id", "a")));
        assert_eq!([parse("claims/id"), parse("x/id/a.json"), parse("claims/id/b/a.json")], [None; 3]);
    }
}
