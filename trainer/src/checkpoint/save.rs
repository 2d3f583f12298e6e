//! Saving a checkpoint while training goes on.
//!
//! What a rank owns is read into memory, a file at a time, and threads of its own hash and store the files: training waits only
//! while there is more to read than the buffer has room for. When all ranks have stored theirs, the first one commits. Whether all
//! have is asked at roll calls, so that nobody waits for anybody.
//!
//! The buffer is by default half of what the host has available when all ranks begin, divided among its ranks, since a constant is either
//! too much for a laptop or minutes of waiting on a node with terabytes. No bit depends on it. At most one checkpoint is on its way: the
//! next waits, so that memory and the order of commits have a bound. An error of the store ends the run when all ranks have stored what
//! they could. What is on its way when a process dies was never committed; a run that ends with an error still commits what all ranks
//! have stored. At a stop and at the end ranks wait until it is committed. An evaluation that is stopped or fails is followed by a
//! checkpoint of its step, so that it costs none, and a resumed run comes back to it; which weights are best is decided when no
//! checkpoint is on its way.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kernels::Training;
use kernels::mesh::Axes;
use loader::{Cursor, Store};

use super::find::last_attempt;
use super::format::{
    FILE_BYTES, FORMAT, File, Hash, Holds, Manifest, State, TILE, bytes, bytes_per_feature, features_per_file, folder,
};
use super::retain::{self, Known};
use super::tensors::{Named, describe, encode, feature_tensors, fired_tensors, shared_tensors};
use crate::Error;
use crate::ranks::together::{once_all, together};
use crate::recipe::Recipe;

/// Files that a rank stores at once: an object store answers one request slowly and many as fast.
pub(super) const WRITERS: usize = 4;

/// Between two looks whether a thread is done.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What a checkpoint is made of.
pub struct Snapshot<'a, S> {
    /// Weights, moments and clocks of this rank.
    pub dictionary: &'a S,
    /// All else that a run has come to.
    pub state: &'a State,
    /// Position in the data.
    pub cursor: &'a Cursor,
    /// The whole recipe.
    pub recipe: &'a Recipe,
    /// Commit of the program.
    pub commit: &'a str,
}

/// A checkpoint on its way: a new attempt of its step. Until it is committed nothing counts, and what was there before is as it was.
pub struct Saving {
    store: Store,
    folder: String,
    started: Instant,
    stage: Stage,
}

type Thread<T> = JoinHandle<Result<T, Error>>;

enum Stage {
    /// Every rank stores its files.
    Storing { writers: Vec<Thread<Stored>>, seal: Option<Box<Seal>> },
    /// The first rank commits.
    Committing { commit: Option<Thread<Known>>, stored_s: f64 },
}

/// What one thread has stored.
struct Stored {
    files: Vec<File>,
    until: Instant,
}

/// How far a checkpoint is.
pub enum Progress {
    /// Not committed.
    OnTheWay(Saving),
    /// Committed.
    Committed(Committed),
}

/// What comes of a checkpoint.
pub struct Committed {
    /// On the first rank: the run's checkpoints after those that are no longer kept were removed.
    pub known: Option<Known>,
    /// Seconds until all ranks had stored their files.
    pub stored_s: f64,
}

/// What the first rank commits with.
struct Seal {
    /// Of shared.safetensors.
    shared: Vec<Named>,
    /// Without the files.
    manifest: Manifest,
    known: Known,
}

impl Saving {
    /// Begins a checkpoint: reads what this rank owns of `of`, which may change as soon as this returns. Waits for what does not fit
    /// into `buffer_bytes` to be stored. All ranks begin together. `known` are the run's checkpoints, of which the commit leaves
    /// as many as the recipe keeps.
    ///
    /// # Errors
    /// Those of the store and the device; [`kernels::Error::Peer`] when another rank has failed.
    pub fn begin(
        store: &Store,
        axes: &Axes,
        of: &Snapshot<'_, impl Training>,
        known: &Known,
        buffer_bytes: u64,
    ) -> Result<Saving, Error> {
        let first = axes.all.index() == 0;
        let (started, step) = (Instant::now(), of.state.step);
        let attempt = if first { last_attempt(store, step).map(|last| last + 1) } else { Ok(0) };
        let attempt = together(&axes.all, "agreeing on a checkpoint", attempt)?[0];
        let folder = folder(step, attempt);
        let seal = first.then(|| Seal::new(of, attempt, known.clone()).map(Box::new)).transpose();
        let read = seal.and_then(|seal| Ok((seal, store_features(store, &folder, axes, (of, buffer_bytes))?)));
        let (seal, writers) = once_all(&axes.all, "reading what a checkpoint holds", read)?;
        Ok(Saving { store: store.clone(), folder, started, stage: Stage::Storing { writers, seal } })
    }

    /// The attempt's folder, relative to the run's.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// Whether this rank has done what it can before it hears of the others.
    pub fn has_done_its_part(&self) -> bool {
        match &self.stage {
            Stage::Storing { writers, .. } => writers.iter().all(JoinHandle::is_finished),
            Stage::Committing { commit, .. } => commit.as_ref().is_none_or(JoinHandle::is_finished),
        }
    }

    /// Waits until all ranks have done their part, and goes on to the next.
    ///
    /// # Errors
    /// Those of the store, here or on another rank: then nothing is committed, and the attempt's files are removed.
    /// [`kernels::Error::Peer`] when another rank is gone; the first rank may have committed then.
    pub fn go_on(self, axes: &Axes) -> Result<Progress, Error> {
        let Saving { store, folder, started, stage } = self;
        // On a full disk what was written so far takes the room that the next attempt needs. That it cannot be removed must not
        // hide the error itself.
        let remove = || {
            retain::remove(&store, &folder)
                .unwrap_or_else(|error| tracing::warn!("{folder} could not be removed: {error}"));
        };
        match stage {
            Stage::Storing { writers, seal } => {
                // All of them, also behind one that failed: none shall write to what is removed.
                let stored: Vec<_> = writers.into_iter().map(joined).collect();
                let stored = stored.into_iter().collect::<Result<Vec<_>, _>>().map(|stored| {
                    let until = stored.iter().map(|stored| stored.until).max().unwrap_or(started);
                    let files: Vec<File> = stored.into_iter().flat_map(|stored| stored.files).collect();
                    (files, (until - started).as_secs_f64())
                });
                let all = together(&axes.all, "writing a checkpoint", stored).inspect_err(|_| {
                    if axes.all.index() == 0 {
                        remove();
                    }
                })?;
                let (files, seconds): (Vec<_>, Vec<_>) = all.into_iter().unzip();
                let stored_s = seconds.into_iter().fold(0.0, f64::max);
                let commit = seal.map(|seal| {
                    let (store, folder) = (store.clone(), folder.clone());
                    spawn(move || seal.commit(&store, &folder, files.concat()))
                });
                let stage = Stage::Committing { commit: commit.transpose()?, stored_s };
                Ok(Progress::OnTheWay(Saving { store, folder, started, stage }))
            }
            Stage::Committing { commit, stored_s } => {
                // Whatever becomes of the others: what is committed stays.
                let committed = commit.map(joined).transpose().inspect_err(|_| remove());
                let known = once_all(&axes.all, "committing a checkpoint", committed)?;
                Ok(Progress::Committed(Committed { known, stored_s }))
            }
        }
    }

    /// Waits until the checkpoint is committed.
    ///
    /// # Errors
    /// As of [`Saving::go_on`].
    pub fn finish(mut self, axes: &Axes) -> Result<Committed, Error> {
        loop {
            while !self.has_done_its_part() {
                // A store may keep this rank waiting for minutes.
                axes.all.check()?;
                thread::sleep(LOOK_AGAIN);
            }
            match self.go_on(axes)? {
                Progress::OnTheWay(saving) => self = saving,
                Progress::Committed(committed) => return Ok(committed),
            }
        }
    }

    /// The run ends with an error. What needs no other rank is done nevertheless: all of it where there is one, and the commit of
    /// files that all have stored.
    ///
    /// # Errors
    /// Those of the store.
    pub fn keep(self, axes: &Axes) -> Result<(), Error> {
        match self.stage {
            _ if axes.all.size() == 1 => self.finish(axes).map(|_| ()),
            Stage::Committing { commit: Some(commit), .. } => joined(commit).map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// [`Saving::begin`] and [`Saving::finish`] at once. Returns the attempt's folder, relative to the run's.
///
/// # Errors
/// Theirs.
pub fn save(store: &Store, axes: &Axes, of: &Snapshot<'_, impl Training>) -> Result<String, Error> {
    let saving = Saving::begin(store, axes, of, &Known::default(), 0)?;
    let folder = saving.folder().to_owned();
    saving.finish(axes).map(|_| folder)
}

/// A file to be made of some tensors.
struct Unwritten {
    name: String,
    holds: Holds,
    first_feature: usize,
    features: usize,
    tensors: Vec<Named>,
}

/// Reads the features that this rank owns and hands them to threads that store them.
fn store_features(
    store: &Store,
    folder: &str,
    axes: &Axes,
    (of, buffer_bytes): (&Snapshot<'_, impl Training>, u64),
) -> Result<Vec<Thread<Stored>>, Error> {
    let (shard, owned) = (axes.place.shard(of.recipe.sae.features), axes.place.owned(of.recipe.sae.features));
    let width = of.dictionary.shape().width;
    let chunks = |holds| owned.clone().step_by(features_per_file(holds, width));
    let files = chunks(Holds::Weights).len() + chunks(Holds::Optimizer).len();
    let (send, receive) = sync_channel(files_in(buffer_bytes).min(files));
    let receive = Arc::new(Mutex::new(receive));
    let writer = |_| {
        let (store, folder, receive) = (store.clone(), folder.to_owned(), receive.clone());
        spawn(move || store_files(&store, &folder, &receive))
    };
    let writers = (0..files.min(WRITERS)).map(writer).collect::<Result<_, _>>()?;
    // Theirs alone now: a rank notices when all of them are gone.
    drop(receive);
    for (holds, stem) in [(Holds::Weights, "weights"), (Holds::Optimizer, "optimizer")] {
        for first in chunks(holds) {
            let features = first..(first + features_per_file(holds, width)).min(owned.end);
            let held = features.start - shard.start..features.end - shard.start;
            let mut tensors = feature_tensors(of.dictionary, holds, width, held)?;
            if holds == Holds::Optimizer {
                let own = features.start - owned.start..features.end - owned.start;
                tensors.extend(fired_tensors(of.state, own));
            }
            let name = format!("{stem}-{:06}.safetensors", first / TILE);
            hand_over(&send, Unwritten { name, holds, first_feature: first, features: features.len(), tensors }, axes)?;
        }
    }
    Ok(writers)
}

/// Waits for room, but not for a rank that is gone.
fn hand_over(to: &SyncSender<Unwritten>, mut file: Unwritten, axes: &Axes) -> Result<(), Error> {
    loop {
        file = match to.try_send(file) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(file)) => file,
            Err(TrySendError::Disconnected(_)) => {
                return Err(Error::Internal("the threads that store a checkpoint are gone".into()));
            }
        };
        axes.all.check()?;
        thread::sleep(LOOK_AGAIN);
    }
}

/// Stores files until no more come, and says when that was. After an error the rest is let go, so that who reads never waits for a thread that is gone.
fn store_files(store: &Store, folder: &str, files: &Mutex<Receiver<Unwritten>>) -> Result<Stored, Error> {
    let next = || files.lock().map_or(None, |files| files.recv().ok());
    let mut stored = Ok(Vec::new());
    while let Some(file) = next() {
        stored = stored.and_then(|mut files: Vec<File>| {
            files.push(store_file(store, folder, file)?);
            Ok(files)
        });
    }
    stored.map(|files| Stored { files, until: Instant::now() })
}

fn store_file(store: &Store, folder: &str, file: Unwritten) -> Result<File, Error> {
    let Unwritten { name, holds, first_feature, features, tensors } = file;
    let bytes = encode(&tensors)?;
    drop(tensors);
    let file = describe(name, holds, first_feature..first_feature + features, &bytes)?;
    store.put(&format!("{folder}/{}", file.name), bytes)?;
    Ok(file)
}

impl Seal {
    fn new(of: &Snapshot<'_, impl Training>, attempt: u32, known: Known) -> Result<Seal, Error> {
        let Snapshot { dictionary, state, cursor, recipe, commit } = *of;
        let width = dictionary.shape().width;
        let manifest = Manifest {
            format: FORMAT,
            software: concat!("sae ", env!("CARGO_PKG_VERSION")).into(),
            commit: Some(commit.to_owned()),
            step: state.step,
            steps: state.steps,
            attempt,
            tokens: state.tokens,
            width,
            features: recipe.sae.features,
            left_out: state.left_out,
            scale: state.scale,
            norm_median: state.norm_median,
            density: state.density[0],
            density_before: Some(state.density[1]),
            gradient_norm: state.gradient_norm,
            closing_open: state.closing_open,
            held_out: state.held_out.clone(),
            eval: state.eval.clone(),
            source: state.source.clone(),
            active: state.active,
            step_s: Some(state.step_s),
            wall_s: state.wall_s,
            stall_s: state.stall_s,
            cursor: cursor.clone(),
            recipe: recipe.clone(),
            files: Vec::new(),
        };
        Ok(Seal { shared: shared_tensors(dictionary, width, state)?, manifest, known })
    }

    /// Writes what belongs to no feature, the manifest of all `files`, and the marker. Then removes what is no longer kept.
    fn commit(self, store: &Store, folder: &str, files: Vec<File>) -> Result<Known, Error> {
        let Seal { shared, mut manifest, mut known } = self;
        manifest.files = files;
        manifest.files.sort_by(|a, b| a.name.cmp(&b.name));
        let bytes = encode(&shared)?;
        manifest.files.push(describe("shared.safetensors".into(), Holds::Shared, 0..0, &bytes)?);
        store.put(&format!("{folder}/shared.safetensors"), bytes)?;
        let json = serde_json::to_vec_pretty(&manifest).map_err(|error| Error::Internal(error.into()))?;
        let seal = Hash::of(&json);
        store.put(&format!("{folder}/manifest.json"), json)?;
        store.put(&format!("{folder}/COMMIT"), format!("{seal}\n").into_bytes())?;
        known.add(manifest.step, folder.to_owned(), manifest.held_out.as_ref());
        // The checkpoint is committed: what stays too long takes room and does no other harm.
        if let Err(error) = retain::retain(store, &manifest.recipe.checkpoint, &mut known) {
            tracing::warn!("old checkpoints could not be removed, the next save tries again: {error}");
        }
        Ok(known)
    }
}

/// Files that wait to be stored when so many bytes may.
pub(super) fn files_in(bytes: u64) -> usize {
    usize::try_from(bytes / FILE_BYTES as u64).unwrap_or(usize::MAX)
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<Thread<T>, Error> {
    let spawned = thread::Builder::new().name("checkpoint".into()).spawn(work);
    let refused =
        |error: io::Error| kernels::Error::Threads { purpose: "to store a checkpoint: ", source: error.into() };
    spawned.map_err(|error| refused(error).into())
}

fn joined<T>(thread: Thread<T>) -> Result<T, Error> {
    thread.join().unwrap_or_else(|_| Err(Error::Internal("a thread that stores a checkpoint has panicked".into())))
}

/// Bytes that a rank which owns `features` holds at most while its part of a checkpoint is stored: files that wait, one being
/// read with a copy of one of its tensors, those being stored and what is made of these.
pub fn staging_bytes(width: usize, features: usize, buffer_bytes: u64) -> u64 {
    let all = bytes(width, features);
    let file_bytes = |holds| bytes_per_feature(holds, width) * features_per_file(holds, width).min(features);
    let largest = file_bytes(Holds::Weights).max(file_bytes(Holds::Optimizer)) as u64;
    let files = |count: usize| all.min(largest.saturating_mul(count as u64));
    files(files_in(buffer_bytes).saturating_add(2 + WRITERS)) + files(WRITERS)
}
