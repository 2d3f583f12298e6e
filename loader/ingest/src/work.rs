//! Making the parts that are a worker's own, several at a time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use loader::parts::{Marker, Parts, Worker};
use loader::{ColumnValues, Error, Manifest, Result, Store};

use crate::numbers::converted;
use crate::survey::{Slice, Survey};
use crate::unit::Rows;

/// What a worker has come to.
#[derive(Debug)]
pub enum Outcome {
    /// All parts are there, and the manifest of them.
    Whole(Manifest),
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
    let source = survey.source();
    let mut manifests = parts.finish(count, |_| Some(source.clone()))?;
    manifests.pop().map(Outcome::Whole).ok_or_else(|| Error::Arguments("the plan has no folder".into()))
}

/// Makes a part and commits it.
fn make(survey: &Survey, parts: &Parts, part: u64, is_over: &dyn Fn() -> bool, done: &AtomicU64) -> Result<()> {
    let mut writer = parts.shard("", part)?;
    for Slice { unit, records, first_record } in &survey.parts[part as usize] {
        let unit = &survey.units[*unit];
        let file = &survey.files[unit.file];
        let mut take = |rows: Rows<'_>| -> Result<()> {
            if is_over() {
                return Err(Error::Arguments("stopped".into()));
            }
            let Rows { bytes, places, columns } = rows;
            let stored = converted(survey.shape.number, bytes, survey.dtype()).map_err(|beyond| {
                let row = writer.rows() + (beyond.at / survey.width().max(1)) as u64;
                let (number, dtype) = (beyond.number, survey.dtype());
                file.flaw(format!("row {row} of part {part} holds {number:e}, which {dtype} does not: keep the format of the source, or take bf16 or f32"))
            })?;
            let mut along: Vec<ColumnValues<'_>> = Vec::with_capacity(columns.len() + 2);
            if let Some(places) = places {
                if survey.makes("context_id") {
                    along.push(
                        places
                            .record
                            .into_iter()
                            .map(|record| first_record.saturating_add(record))
                            .collect::<Vec<u64>>()
                            .into(),
                    );
                }
                if survey.makes("pos") {
                    along.push(places.pos.into());
                }
            }
            along.extend(columns);
            let before = writer.rows();
            writer.write(&stored, &along)?;
            done.fetch_add(writer.rows() - before, Ordering::Relaxed);
            Ok(())
        };
        unit.what.read(file, &survey.shape, records.clone(), &mut take)?;
    }
    let shard = writer.finish()?;
    parts.commit(part, &Marker::default().with_shard("", shard))
}
