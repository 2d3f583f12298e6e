//! Making the parts that are a worker's own, several at a time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use loader::parts::{Marker, Parts, Worker};
use loader::{ColumnValues, Error, Manifest, Result, Store};
use serde::Deserialize;
use serde_json::json;

use crate::finite::{NonFinite, remedy};
use crate::numbers::converted;
use crate::survey::{Slice, Survey};
use crate::unit::{Places, Rows};

/// What a worker has come to.
#[derive(Debug)]
pub enum Outcome {
    /// All parts are there.
    Whole {
        /// The manifest of them.
        manifest: Manifest,
        /// Their rows that are not finite, which other workers have written too.
        non_finite: NonFinite,
    },
    /// Its own parts are there; so many of other workers are not. The worker that sees all of them writes the manifest.
    Waiting(u64),
    /// It was asked to stop. What it had committed stays.
    Stopped,
}

/// How often progress is reported.
const TOLD_EVERY: Duration = Duration::from_millis(100);

/// Writes the parts of a worker that are not there yet, and the manifest once all are. `threads` parts are made at a time; `progress` gets the
/// worker's rows that are done, of how many.
///
/// # Errors
/// [`Error::Arguments`] where the folder lies in the source, or holds other shards or parts of another plan; [`Error::Data`] where a file is damaged;
/// those of the stores.
pub fn write(
    survey: &Survey,
    out: &Store,
    worker: Worker,
    threads: usize,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Outcome> {
    survey.refuse_inside(out)?;
    let parts = Parts::open(out, &survey.plan())?;
    let count = survey.parts();
    let left = parts.left(worker, count)?;
    let rows = |parts: &mut dyn Iterator<Item = u64>| parts.map(|part| survey.rows_of(part)).sum::<u64>();
    let total = rows(&mut (0..count).filter(|&part| worker.does(part)));
    let before = total - rows(&mut left.iter().copied());
    progress(before, total);

    let (done, next, failed) = (AtomicU64::new(0), AtomicUsize::new(0), Mutex::new(None));
    let halt = AtomicBool::new(false);
    let (alive, gone) = channel::<()>();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, left.len().max(1)) {
            let alive = alive.clone();
            let (parts, left, done, next, failed, halt) = (&parts, &left, &done, &next, &failed, &halt);
            let work = move || {
                let _alive = alive;
                while let Some(&part) = left.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let is_over = || stop.load(Ordering::Relaxed) || halt.load(Ordering::Relaxed);
                    if is_over() {
                        break;
                    }
                    match make(survey, parts, part, &is_over, done) {
                        Ok(()) => {}
                        // What was broken off is no failure.
                        Err(_) if is_over() => break,
                        Err(error) => {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            halt.store(true, Ordering::Relaxed);
                            break;
                        }
                    }
                }
            };
            std::thread::Builder::new().spawn_scoped(scope, work).map_err(|e| Error::Threads(e.into()))?;
        }
        drop(alive);
        while gone.recv_timeout(TOLD_EVERY) == Err(RecvTimeoutError::Timeout) {
            progress(before + done.load(Ordering::Relaxed), total);
        }
        Ok::<(), Error>(())
    })?;
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    if stop.load(Ordering::Relaxed) {
        return Ok(Outcome::Stopped);
    }
    progress(before + done.load(Ordering::Relaxed), total);
    let committed = parts.numbers()?;
    let missing = (0..count).filter(|part| !committed.contains(part)).count() as u64;
    if missing > 0 {
        return Ok(Outcome::Waiting(missing));
    }
    let non_finite = parts.committed()?.values().map(|marker| noted(marker)).fold(NonFinite::default(), NonFinite::and);
    let source = survey.source(&non_finite);
    let mut manifests = parts.finish(count, |_| Some(source.clone()))?;
    let manifest = manifests.pop().ok_or_else(|| Error::Arguments("the plan has no folder".into()))?;
    Ok(Outcome::Whole { manifest, non_finite })
}

/// The key of a marker's note under which it has the rows of its part that are not finite. Where there are none, it has no note.
const NON_FINITE: &str = "non_finite";

fn noted(marker: &Marker) -> NonFinite {
    marker.note.get(NON_FINITE).and_then(|noted| NonFinite::deserialize(noted).ok()).unwrap_or_default()
}

/// Makes a part and commits it.
fn make(survey: &Survey, parts: &Parts, part: u64, is_over: &dyn Fn() -> bool, done: &AtomicU64) -> Result<()> {
    let mut writer = parts.shard("", part)?;
    let mut non_finite = NonFinite::default();
    let row_bytes = survey.width() * survey.dtype().size();
    for Slice { unit: number, records, first_record } in &survey.parts[part as usize] {
        let unit = &survey.units[*number];
        let file = &survey.files[unit.file];
        // Where records are rows, those that were handed over count them.
        let mut first = records.start;
        let mut take = |rows: Rows<'_>| -> Result<()> {
            if is_over() {
                return Err(Error::Arguments("stopped".into()));
            }
            let Rows { bytes, places, columns } = rows;
            let name = |row: usize| {
                let place = places.as_ref().and_then(|of| of.record.get(row).zip(of.pos.get(row)));
                let (record, pos) = place.map_or((first + row as u64, None), |(&record, &pos)| (record, Some(pos)));
                survey.row_name(*number, record, pos)
            };
            let stored = converted(survey.shape.number, bytes, survey.dtype()).map_err(|beyond| {
                let (row, remedy) = (name(beyond.at / survey.width().max(1)), remedy(beyond.number));
                file.flaw(format!("{row} holds {:e}, which {} does not: {remedy}", beyond.number, survey.dtype()))
            })?;
            non_finite.look_at(&stored, row_bytes, survey.dtype(), |row| format!("{} of {}", name(row), file.key()));
            let mut along: Vec<ColumnValues<'_>> = Vec::with_capacity(columns.len() + 2);
            if let Some(Places { record, pos }) = places {
                if survey.makes("context_id") {
                    let numbers = record.into_iter().map(|record| first_record.saturating_add(record));
                    along.push(numbers.collect::<Vec<u64>>().into());
                }
                if survey.makes("pos") {
                    along.push(pos.into());
                }
            }
            along.extend(columns);
            let before = writer.rows();
            writer.write(&stored, &along)?;
            let written = writer.rows() - before;
            first += written;
            done.fetch_add(written, Ordering::Relaxed);
            Ok(())
        };
        unit.what.read(file, &survey.shape, records.clone(), &mut take)?;
    }
    let marker = Marker::default().with_shard("", writer.finish()?);
    let marker = if non_finite.rows > 0 { marker.with_note(json!({ NON_FINITE: non_finite })) } else { marker };
    parts.commit(part, &marker)
}
