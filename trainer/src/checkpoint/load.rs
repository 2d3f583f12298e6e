//! Reading a checkpoint back.

use std::io;
use std::ops::Range;
use std::thread::{self, ScopedJoinHandle};

use bytes::Bytes;
use kernels::mesh::Axes;
use kernels::{Dictionary, Sums, Training};
use loader::Store;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::format::{
    CLOCKS, Entry, FIRINGS_WITH_FEATURES, File, Found, Hash, Holds, SUMS, SUMS_PARTS, State, TILE, entries,
};
use super::tensors::{HEADER_LENGTH, Layout, hash_tiles};
use crate::{Error, Message};

/// Files that are read at once: an object store answers one request slowly and many as fast.
const READERS: usize = 4;

const OTHER_HASHES: &str = "does not have the hashes that its manifest names";

/// Reads every file of a checkpoint once and compares all hashes.
///
/// # Errors
/// [`Error::Checkpoint`] that names the first damaged file.
pub fn verify(store: &Store, found: &Found) -> Result<(), Error> {
    found.manifest.files.iter().try_for_each(|file| read(store, found, file).map(drop))
}

/// Fills a fresh dictionary with the weights of its shard and the moments and clocks of what the rank owns, and returns the host's
/// side, with the firings of what it owns. Each rank reads what it needs, [`READERS`] files at once, and uses it only if its hashes
/// are right.
///
/// # Errors
/// [`Error::Checkpoint`] that names the damaged file; the dictionary may hold a part then.
pub fn load(store: &Store, found: &Found, axes: &Axes, dictionary: &mut impl Training) -> Result<State, Error> {
    let features = found.manifest.features;
    let (shard, owned) = (axes.place.shard(features), axes.place.owned(features));
    let mut state = None;
    let mut fired_f = SUMS.map(|_| vec![0; owned.len()]);
    let files = found.manifest.files.iter().map(|file| (file, wanted(file, &shard, &owned)));
    let files = files.filter(|(_, wanted)| !wanted.is_empty()).collect();
    for_each_file(store, found, files, |file, wanted, bytes| {
        let tensors = parse(store, found, file, bytes)?;
        let rows = FileRows { store, found, file, tensors: &tensors, held_from: shard.start, wanted: wanted.clone() };
        rows.to_training(dictionary)?;
        if file.holds == Holds::Shared {
            state = Some(host_state(store, found, file, &tensors)?);
        }
        let with_features = found.manifest.format >= FIRINGS_WITH_FEATURES;
        let (first, count, wanted) = match file.holds {
            Holds::Optimizer if with_features => (file.first_feature, file.features, wanted.clone()),
            Holds::Shared if !with_features => (0, features, owned.clone()),
            _ => return Ok(()),
        };
        let place = wanted.start - owned.start..wanted.end - owned.start;
        for (of, fired_f) in SUMS.into_iter().zip(&mut fired_f) {
            let name = format!("{of}.{}", SUMS_PARTS[3]);
            let values: Vec<u64> = typed(store, found, file, &tensors, &name, Dtype::U64, count)?;
            fired_f[place.clone()].copy_from_slice(&values[wanted.start - first..wanted.end - first]);
        }
        Ok(())
    })?;
    let mut state = state.ok_or_else(|| damaged(store, found, "manifest.json", "names no shared file"))?;
    [state.tally.fired_f, state.window.fired_f, state.closing.fired_f] = fired_f;
    Ok(state)
}

/// The features of a file that a rank needs: of its weights all of its `shard`, of the rest what it owns.
fn wanted(file: &File, shard: &Range<usize>, owned: &Range<usize>) -> Range<usize> {
    let of = match file.holds {
        // One row, which belongs to no feature.
        Holds::Shared => return 0..1,
        Holds::Weights => shard,
        Holds::Optimizer => owned,
    };
    file.first_feature.max(of.start)..(file.first_feature + file.features).min(of.end)
}

/// Fills the weights of a fresh dictionary, which holds the given features, and `b_dec`.
///
/// # Errors
/// [`Error::Checkpoint`] that names the damaged file.
pub fn load_weights(
    store: &Store,
    found: &Found,
    features: Range<usize>,
    dictionary: &mut impl Dictionary,
) -> Result<(), Error> {
    let files = found.manifest.files.iter().filter(|file| file.holds != Holds::Optimizer);
    for_each_rows(store, found, files, features, |rows| rows.to_weights(dictionary))
}

/// As [`load_weights`], with the moments and clocks of all of them.
///
/// # Errors
/// Those of [`load_weights`].
pub fn load_training(
    store: &Store,
    found: &Found,
    features: Range<usize>,
    dictionary: &mut impl Training,
) -> Result<(), Error> {
    for_each_rows(store, found, found.manifest.files.iter(), features, |rows| rows.to_training(dictionary))
}

/// Hands on what the `files` have of some features.
fn for_each_rows<'a>(
    store: &Store,
    found: &Found,
    files: impl Iterator<Item = &'a File>,
    features: Range<usize>,
    mut take: impl FnMut(FileRows<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let files = files.map(|file| (file, wanted(file, &features, &features)));
    let files = files.filter(|(_, wanted)| !wanted.is_empty()).collect();
    for_each_file(store, found, files, |file, wanted, bytes| {
        let tensors = parse(store, found, file, bytes)?;
        take(FileRows { store, found, file, tensors: &tensors, held_from: features.start, wanted })
    })
}

/// Reads what is wanted of each file, [`READERS`] at once, and hands it on in their order: the bytes of the file, of which those of
/// other rows may be zeros.
fn for_each_file(
    store: &Store,
    found: &Found,
    files: Vec<(&File, Range<usize>)>,
    mut take: impl FnMut(&File, Range<usize>, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    for some in files.chunks(READERS) {
        let read = |(file, wanted): &(&File, Range<usize>)| read_rows(store, found, file, wanted.clone());
        let some_bytes: Vec<_> = thread::scope(|scope| {
            let spawn = |of| thread::Builder::new().spawn_scoped(scope, move || read(of));
            let threads: Vec<_> = some.iter().map(spawn).collect();
            threads.into_iter().map(joined).collect()
        });
        for ((file, wanted), bytes) in some.iter().zip(some_bytes) {
            take(file, wanted.clone(), &bytes?)?;
        }
    }
    Ok(())
}

fn joined(thread: io::Result<ScopedJoinHandle<'_, Result<Bytes, Error>>>) -> Result<Bytes, Error> {
    let thread = thread.map_err(kernels::Error::threads)?;
    thread.join().unwrap_or_else(|_| Err(Error::Internal("a thread that reads a checkpoint has panicked".into())))
}

/// Rows of a file for a dictionary.
struct FileRows<'a> {
    store: &'a Store,
    found: &'a Found,
    file: &'a File,
    tensors: &'a SafeTensors<'a>,
    /// The first feature of the dictionary.
    held_from: usize,
    /// Features of the file.
    wanted: Range<usize>,
}

impl FileRows<'_> {
    /// How many rows the file has, where those wanted lie in it, and where in the dictionary.
    fn places(&self) -> (usize, Range<usize>, Range<usize>) {
        let (all, from, held_from) = match self.file.holds {
            Holds::Shared => (1, 0, 0),
            _ => (self.file.features, self.file.first_feature, self.held_from),
        };
        let Range { start, end } = self.wanted;
        (all, start - from..end - from, start - held_from..end - held_from)
    }

    /// Hands on the values of each entry that `is_taken` says, and the rows that they belong to.
    fn each(
        &self,
        is_taken: impl Fn(&Entry) -> bool,
        mut take: impl FnMut(&Entry, Range<usize>, &[f32]),
    ) -> Result<(), Error> {
        let (all, inside, rows) = self.places();
        for entry in entries(self.file.holds, self.found.manifest.width).iter().filter(|entry| is_taken(entry)) {
            let Entry { name, per_feature, .. } = *entry;
            let values: Vec<f32> =
                typed(self.store, self.found, self.file, self.tensors, name, Dtype::F32, all * per_feature)?;
            take(entry, rows.clone(), &values[inside.start * per_feature..inside.end * per_feature]);
        }
        Ok(())
    }

    fn to_weights(&self, dictionary: &mut impl Dictionary) -> Result<(), Error> {
        let is_value = |entry: &Entry| entry.moment.is_none();
        self.each(is_value, |entry, rows, values| dictionary.write(entry.tensor, rows, values))
    }

    fn to_training(&self, dictionary: &mut impl Training) -> Result<(), Error> {
        self.each(
            |_| true,
            |entry, rows, values| match entry.moment {
                None => dictionary.write(entry.tensor, rows, values),
                Some(moment) => dictionary.write_moment(entry.tensor, moment, rows, values),
            },
        )?;
        if self.file.holds == Holds::Optimizer {
            let (_, inside, rows) = self.places();
            for (name, clock) in CLOCKS {
                let values: Vec<u64> =
                    typed(self.store, self.found, self.file, self.tensors, name, Dtype::U64, self.file.features)?;
                dictionary.write_clock(clock, rows.clone(), &values[inside.clone()]);
            }
        }
        Ok(())
    }
}

/// When each feature fired last, as [`kernels::Clock::LastFired`] counts.
///
/// # Errors
/// [`Error::Checkpoint`] that names the damaged file.
pub fn load_clocks(store: &Store, found: &Found) -> Result<Vec<u64>, Error> {
    let mut last_fired_f = vec![0; found.manifest.features];
    for file in found.manifest.files.iter().filter(|file| file.holds == Holds::Optimizer) {
        let bytes = read(store, found, file)?;
        let tensors = parse(store, found, file, &bytes)?;
        let values: Vec<u64> = typed(store, found, file, &tensors, CLOCKS[0].0, Dtype::U64, file.features)?;
        last_fired_f[file.first_feature..][..file.features].copy_from_slice(&values);
    }
    Ok(last_fired_f)
}

/// The host's side of a checkpoint, from its shared file, without the firings.
fn host_state(store: &Store, found: &Found, file: &File, tensors: &SafeTensors<'_>) -> Result<State, Error> {
    let manifest = &found.manifest;
    let sums = |of: &str| -> Result<Sums, Error> {
        let [scalars, counts, x, _] = SUMS_PARTS.map(|part| format!("{of}.{part}"));
        let scalars: Vec<f64> = typed(store, found, file, tensors, &scalars, Dtype::F64, 3)?;
        let counts: Vec<u64> = typed(store, found, file, tensors, &counts, Dtype::U64, 2)?;
        Ok(Sums {
            rows: counts[0],
            squared_error: scalars[0],
            squared_norm: scalars[1],
            x_d: typed(store, found, file, tensors, &x, Dtype::F64, manifest.width)?,
            l1: scalars[2],
            active: counts[1],
            fired_f: Vec::new(),
        })
    };
    let [tally, window, closing] = SUMS.map(sums);
    Ok(State {
        step: manifest.step,
        steps: manifest.steps,
        tokens: manifest.tokens,
        left_out: manifest.left_out,
        scale: manifest.scale,
        norm_median: manifest.norm_median,
        density: [manifest.density, manifest.density_before.unwrap_or(manifest.density)],
        gradient_norm: manifest.gradient_norm,
        tally: tally?,
        window: window?,
        closing: closing?,
        closing_open: manifest.closing_open,
        held_out: manifest.held_out.clone(),
        eval: manifest.eval.clone(),
        source: manifest.source.clone(),
        active: manifest.active,
        step_s: manifest.step_s.unwrap_or(manifest.wall_s),
        wall_s: manifest.wall_s,
        stall_s: manifest.stall_s,
    })
}

fn damaged(store: &Store, found: &Found, file: &str, what: &str) -> Error {
    Error::Checkpoint(format!("{}/{}/{file} {what}", store.url(), found.folder).into())
}

/// The same of a file that is no safetensors file.
fn unread(store: &Store, found: &Found, file: &str, error: SafeTensorError) -> Error {
    Error::Checkpoint(Message::of(format!("{}/{}/{file} {error}", store.url(), found.folder), error))
}

/// A file's bytes, once its size and every hash agree with the manifest.
fn read(store: &Store, found: &Found, file: &File) -> Result<Bytes, Error> {
    let bytes = match store.get(&format!("{}/{}", found.folder, file.name)) {
        Err(loader::Error::NotFound { .. }) => return Err(damaged(store, found, &file.name, "is missing")),
        other => other?,
    };
    check_size(store, found, file, bytes.len() as u64)?;
    match hash_tiles(&bytes, file.holds, file.features) {
        Ok((header_bytes, tiles))
            if Hash::of(&bytes[..header_bytes]) == file.header_hash && tiles == file.tile_hashes =>
        {
            Ok(bytes)
        }
        _ => Err(damaged(store, found, &file.name, OTHER_HASHES)),
    }
}

/// As [`read`], but of a file of which no more than half is wanted only the header and these rows; the others are zeros.
fn read_rows(store: &Store, found: &Found, file: &File, wanted: Range<usize>) -> Result<Bytes, Error> {
    if file.holds == Holds::Shared || 2 * wanted.len() > file.features {
        return read(store, found, file);
    }
    let key = format!("{}/{}", found.folder, file.name);
    let damaged = |what: &str| damaged(store, found, &file.name, what);
    let Some(entry) = store.head(&key)? else { return Err(damaged("is missing")) };
    check_size(store, found, file, entry.size)?;
    let mut bytes = vec![0; file.bytes as usize];
    let fetch = |bytes: &mut [u8], range: Range<usize>| -> Result<(), Error> {
        let some = store.get_range(&key, range.start as u64..range.end as u64)?;
        bytes[range].copy_from_slice(&some);
        Ok(())
    };
    let no_header = || damaged("has no header");
    fetch(&mut bytes, 0..HEADER_LENGTH.min(file.bytes as usize))?;
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length)).ok_or_else(no_header)?;
    let header_bytes = (HEADER_LENGTH as u64).saturating_add(length);
    if header_bytes > file.bytes {
        return Err(no_header());
    }
    fetch(&mut bytes, HEADER_LENGTH..header_bytes as usize)?;
    if Hash::of(&bytes[..header_bytes as usize]) != file.header_hash {
        return Err(damaged(OTHER_HASHES));
    }
    let layout = Layout::of(&bytes).map_err(|error| unread(store, found, &file.name, error))?;
    let rows = wanted.start - file.first_feature..wanted.end - file.first_feature;
    // Whole tiles, which have hashes; a rank's features begin at one.
    let tiles = rows.start / TILE..rows.end.div_ceil(TILE);
    let rows = tiles.start * TILE..(tiles.end * TILE).min(file.features);
    layout.rows(file.features, rows).try_for_each(|part| fetch(&mut bytes, part))?;
    let whole = |tile: usize| file.tile_hashes.get(tile) == Some(&layout.hash_tile(&bytes, file.features, tile));
    if !tiles.into_iter().all(whole) {
        return Err(damaged(OTHER_HASHES));
    }
    Ok(bytes.into())
}

fn check_size(store: &Store, found: &Found, file: &File, bytes: u64) -> Result<(), Error> {
    if bytes == file.bytes {
        return Ok(());
    }
    Err(damaged(store, found, &file.name, &format!("has {bytes} bytes and should have {}", file.bytes)))
}

fn parse<'a>(store: &Store, found: &Found, file: &File, bytes: &'a [u8]) -> Result<SafeTensors<'a>, Error> {
    SafeTensors::deserialize(bytes).map_err(|error| unread(store, found, &file.name, error))
}

fn typed<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
    store: &Store,
    found: &Found,
    file: &File,
    tensors: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    length: usize,
) -> Result<Vec<T>, Error> {
    match tensors.tensor(name) {
        Ok(tensor) if tensor.dtype() == dtype && tensor.data().len() == length * size_of::<T>() => {
            Ok(bytemuck::pod_collect_to_vec(tensor.data()))
        }
        _ => Err(damaged(store, found, &file.name, &format!("has no {dtype:?} tensor {name} of {length} values"))),
    }
}
