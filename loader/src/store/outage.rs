//! What is said about stores that fail: the first failure, with the time until which requests are made again, and the end of the
//! outage with its length. One line each for a host, however many requests meet it.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// An outage that follows another within this is reported once it has lasted [`LONG`]: a store that throttles fails now and then for
/// hours.
const QUIET: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(5);

/// The outages of the process, by host.
static OUTAGES: Mutex<BTreeMap<String, Outage>> = Mutex::new(BTreeMap::new());

/// What users call the setting of the patience.
pub(crate) static NAME: OnceLock<&str> = OnceLock::new();

/// The name in parentheses, behind a space; empty without one.
pub(crate) fn name() -> String {
    NAME.get().map_or_else(String::new, |name| format!(" ({name})"))
}

/// Failures so far apart are none of the same outage: nobody has asked in between.
const APART: Duration = Duration::from_secs(60);

/// What is known about the failures of a host.
#[derive(Debug, Default, PartialEq)]
struct Outage {
    /// When the first request began that failed; none while the host answers.
    since: Option<Instant>,
    /// When one failed last.
    latest: Option<Instant>,
    /// Whether it was told.
    told: bool,
    /// When one was told last.
    last_told: Option<Instant>,
}

impl Outage {
    /// Takes note of a failure: since when there is an outage, and whether it is to be told.
    fn failed(&mut self, since: Instant, now: Instant) -> (Instant, bool) {
        if self.latest.replace(now).is_some_and(|latest| now - latest >= APART) {
            (self.since, self.told) = (None, false);
        }
        let since = *self.since.get_or_insert(since);
        let quiet = self.last_told.is_none_or(|last| now - last >= QUIET);
        let tell = !self.told && (quiet || now - since >= LONG);
        if tell {
            (self.told, self.last_told) = (true, Some(now));
        }
        (since, tell)
    }

    /// Takes note of an answer; the length of an outage that was told.
    fn answered(&mut self, now: Instant) -> Option<Duration> {
        let length = self.since.take().map(|since| now - since);
        length.filter(|_| std::mem::take(&mut self.told))
    }
}

/// A request to `host` that began at `since` has failed by `what`; how long there is an outage already. Requests are made again until
/// that is `patience`: one that begins later does not begin anew.
pub(crate) fn failed(host: &str, since: Instant, what: &str, patience: Duration) -> Duration {
    let mut outages = OUTAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let (since, tell) = outages.entry(host.to_owned()).or_default().failed(since, Instant::now());
    if tell {
        let until = SystemTime::now() + patience.saturating_sub(since.elapsed());
        let until = humantime::format_rfc3339_seconds(until);
        let patience_s = patience.as_secs();
        tracing::warn!(
            patience_s,
            "{host}: {what}: tried again until {until}, for {patience_s} s altogether{}",
            name()
        );
    }
    since.elapsed()
}

/// A request to `host` was answered.
pub(crate) fn answered(host: &str) {
    let mut outages = OUTAGES.lock().unwrap_or_else(PoisonError::into_inner);
    // Most hosts have never failed.
    if let Some(length) = outages.get_mut(host).and_then(|outage| outage.answered(Instant::now())) {
        let outage_s = length.as_secs_f64();
        tracing::warn!(outage_s, "{host} answers again after {outage_s:.1} s");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_and_short_ones_not_again_and_again() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut outage = Outage::default();
        assert_eq!(outage.answered(at(0)), None);
        assert_eq!(outage.failed(at(1), at(2)), (at(1), true), "the first failure");
        assert_eq!(outage.failed(at(2), at(3)), (at(1), false), "another request");
        assert_eq!(outage.answered(at(11)), Some(Duration::from_secs(10)), "from the first request that failed");
        assert_eq!(outage.answered(at(12)), None, "told once");
        assert_eq!(outage.failed(at(20), at(21)), (at(20), false), "shortly after the last");
        assert_eq!(outage.answered(at(22)), None, "what was not told does not end");
        assert!(!outage.failed(at(30), at(31)).1);
        assert!(outage.failed(at(30), at(36)).1, "it lasts");
        assert_eq!(outage.answered(at(37)), Some(Duration::from_secs(7)));
        assert!(outage.failed(at(100), at(101)).1, "long after the last");
        assert_eq!(outage.failed(at(200), at(201)), (at(200), true), "nobody has asked in between");
    }
}
