//! Writing a checkpoint.

use std::ops::Range;

use kernels::mesh::Axes;
use kernels::{Dictionary, Shape};
use loader::{Cursor, Store};
use safetensors::tensor::{Dtype, TensorView};
use xxhash_rust::xxh3::Xxh3;

use super::{
    CLOCKS, Entry, FORMAT, File, Hash, Holds, Manifest, SUMS, SUMS_PARTS, State, TILE, entries, features_per_file,
    folder,
};
use crate::Error;
use crate::recipe::Recipe;
use crate::together::together;

/// Saves `dictionary` and `state` as a new attempt of its step and commits it. Returns the attempt's folder, relative
/// to the run's. On an error nothing is committed and what was there before is as it was. All ranks save together: each writes the
/// features that it owns, the first the rest.
///
/// # Errors
/// Those of the store; [`kernels::Error::Peer`] when another rank has failed.
pub fn save(
    store: &Store,
    axes: &Axes,
    dictionary: &impl Dictionary,
    state: &State,
    cursor: &Cursor,
    recipe: &Recipe,
) -> Result<String, Error> {
    let first = axes.all.index() == 0;
    let attempt = if first { super::find::last_attempt(store, state.step).map(|last| last + 1) } else { Ok(0) };
    let attempt = together(&axes.all, "agreeing on a checkpoint", attempt)?[0];
    let folder = folder(state.step, attempt);
    let features = write_features(store, &folder, axes, dictionary, state, recipe.sae.features);
    let written = together(&axes.all, "writing a checkpoint", features).and_then(|files| {
        let files = files.into_iter().flatten().collect();
        let committed = match first {
            true => commit(store, &folder, attempt, files, dictionary, state, cursor, recipe),
            false => Ok(()),
        };
        together(&axes.all, "committing a checkpoint", committed)
    });
    if written.is_err() && first {
        // On a full disk what was written so far takes the room that the next attempt needs. That it cannot be removed
        // must not hide the error itself.
        super::retain::remove(store, &folder)
            .unwrap_or_else(|error| tracing::warn!("{folder} could not be removed: {error}"));
    }
    written.map(|_| folder)
}

/// Writes the features that this rank owns, of `features` in all.
fn write_features(
    store: &Store,
    folder: &str,
    axes: &Axes,
    dictionary: &impl Dictionary,
    state: &State,
    features: usize,
) -> Result<Vec<File>, Error> {
    let (shard, owned) = (axes.place.shard(features), axes.place.owned(features));
    let width = dictionary.shape().width;
    let mut files = Vec::new();
    for (holds, stem) in [(Holds::Weights, "weights"), (Holds::Optimizer, "optimizer")] {
        let chunk = features_per_file(holds, width);
        for first in owned.clone().step_by(chunk) {
            let range = first..(first + chunk).min(owned.end);
            let held = range.start - shard.start..range.end - shard.start;
            let mut tensors = feature_tensors(dictionary, holds, width, held)?;
            if holds == Holds::Optimizer {
                let own = range.start - owned.start..range.end - owned.start;
                tensors.extend(fired_tensors(state, own));
            }
            let bytes = encode(&tensors)?;
            let name = format!("{stem}-{:06}.safetensors", first / TILE);
            files.push(describe(name, holds, range, &bytes)?);
            store.put(&format!("{folder}/{}", files[files.len() - 1].name), bytes)?;
        }
    }
    Ok(files)
}

/// Writes what belongs to no feature, the manifest of all `files`, and the marker.
#[allow(clippy::too_many_arguments)]
fn commit(
    store: &Store,
    folder: &str,
    attempt: u32,
    mut files: Vec<File>,
    dictionary: &impl Dictionary,
    state: &State,
    cursor: &Cursor,
    recipe: &Recipe,
) -> Result<(), Error> {
    let Shape { width, .. } = dictionary.shape();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = encode(&shared_tensors(dictionary, width, state)?)?;
    files.push(describe("shared.safetensors".into(), Holds::Shared, 0..0, &bytes)?);
    store.put(&format!("{folder}/shared.safetensors"), bytes)?;

    let manifest = Manifest {
        format: FORMAT,
        software: concat!("sae ", env!("CARGO_PKG_VERSION")).into(),
        step: state.step,
        steps: state.steps,
        attempt,
        tokens: state.tokens,
        width,
        features: recipe.sae.features,
        left_out: state.left_out,
        scale: state.scale,
        density: state.density[0],
        density_before: Some(state.density[1]),
        gradient_norm: state.gradient_norm,
        closing_open: state.closing_open,
        held_out: state.held_out.clone(),
        eval: state.eval.clone(),
        wall_s: state.wall_s,
        stall_s: state.stall_s,
        cursor: cursor.clone(),
        recipe: recipe.clone(),
        files,
    };
    let json = serde_json::to_vec_pretty(&manifest).map_err(|error| Error::Internal(error.to_string()))?;
    let seal = Hash::of(&json);
    store.put(&format!("{folder}/manifest.json"), json)?;
    store.put(&format!("{folder}/COMMIT"), format!("{seal}\n").into_bytes())?;
    Ok(())
}

/// A named tensor, its shape, and its bytes, little endian.
struct Named {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn feature_tensors(
    dictionary: &impl Dictionary,
    holds: Holds,
    width: usize,
    features: Range<usize>,
) -> Result<Vec<Named>, kernels::Error> {
    let n = features.len();
    let read = |Entry { name, tensor, slot, per_feature }: Entry| {
        let mut values = vec![0.0f32; n * per_feature];
        dictionary.read(tensor, slot, features.clone(), &mut values)?;
        let shape = if per_feature == 1 { vec![n] } else { vec![n, per_feature] };
        Ok(Named { name: name.into(), dtype: Dtype::F32, shape, bytes: bytemuck::cast_slice(&values).to_vec() })
    };
    let mut tensors: Vec<Named> = entries(holds, width).into_iter().map(read).collect::<Result<_, _>>()?;
    if holds == Holds::Optimizer {
        for (name, clock) in CLOCKS {
            let mut values = vec![0u64; n];
            dictionary.read_clock(clock, features.clone(), &mut values)?;
            let bytes = bytemuck::cast_slice(&values).to_vec();
            tensors.push(Named { name: name.into(), dtype: Dtype::U64, shape: vec![n], bytes });
        }
    }
    Ok(tensors)
}

/// On how many rows of each sum the features fired; `own` counts from the first that the rank owns.
fn fired_tensors(state: &State, own: Range<usize>) -> impl Iterator<Item = Named> {
    SUMS.into_iter().zip(state.sums()).map(move |(of, sums)| {
        let bytes = bytemuck::cast_slice(&sums.fired_f[own.clone()]).to_vec();
        Named { name: format!("{of}.{}", SUMS_PARTS[3]), dtype: Dtype::U64, shape: vec![own.len()], bytes }
    })
}

fn shared_tensors(dictionary: &impl Dictionary, width: usize, state: &State) -> Result<Vec<Named>, kernels::Error> {
    let mut tensors: Vec<Named> = entries(Holds::Shared, width)
        .into_iter()
        .map(|Entry { name, tensor, slot, per_feature }| {
            let mut values = vec![0.0f32; per_feature];
            dictionary.read(tensor, slot, 0..1, &mut values)?;
            let bytes = bytemuck::cast_slice(&values).to_vec();
            Ok(Named { name: name.into(), dtype: Dtype::F32, shape: vec![width], bytes })
        })
        .collect::<Result<_, kernels::Error>>()?;
    for (of, sums) in SUMS.into_iter().zip(state.sums()) {
        let scalars = [sums.squared_error, sums.squared_norm, sums.l1];
        let counts = [sums.rows, sums.active];
        let parts = [
            (Dtype::F64, scalars.len(), bytemuck::cast_slice(&scalars)),
            (Dtype::U64, counts.len(), bytemuck::cast_slice(&counts)),
            (Dtype::F64, width, bytemuck::cast_slice(&sums.x_d)),
        ];
        for (part, (dtype, length, bytes)) in SUMS_PARTS.into_iter().zip(parts) {
            tensors.push(Named { name: format!("{of}.{part}"), dtype, shape: vec![length], bytes: bytes.to_vec() });
        }
    }
    Ok(tensors)
}

fn encode(tensors: &[Named]) -> Result<Vec<u8>, Error> {
    let internal = |error: safetensors::SafeTensorError| Error::Internal(error.to_string());
    let views = tensors
        .iter()
        .map(|named| Ok((named.name.as_str(), TensorView::new(named.dtype, named.shape.clone(), &named.bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(internal)?;
    safetensors::serialize(views, None).map_err(internal)
}

fn describe(name: String, holds: Holds, features: Range<usize>, bytes: &[u8]) -> Result<File, Error> {
    let (header_bytes, tile_hashes) =
        hash_tiles(bytes, holds, features.len()).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(File {
        name,
        holds,
        bytes: bytes.len() as u64,
        first_feature: features.start,
        features: features.len(),
        header_hash: Hash::of(&bytes[..header_bytes]),
        tile_hashes,
    })
}

/// The length of the header of a file, and the hashes of its tiles.
pub(super) fn hash_tiles(
    bytes: &[u8],
    holds: Holds,
    features: usize,
) -> Result<(usize, Vec<Hash>), safetensors::SafeTensorError> {
    let (json_bytes, metadata) = safetensors::SafeTensors::read_metadata(bytes)?;
    let header_bytes = 8 + json_bytes;
    if holds == Holds::Shared {
        return Ok((header_bytes, vec![Hash::of(&bytes[header_bytes..])]));
    }
    let mut tensors: Vec<_> = metadata.tensors().into_values().map(|info| info.data_offsets).collect();
    tensors.sort_unstable();
    let hashes = (0..features)
        .step_by(TILE)
        .map(|first| {
            let mut hasher = Xxh3::new();
            for &(start, end) in &tensors {
                let per_feature = (end - start) / features;
                let tile = first * per_feature..(first + TILE).min(features) * per_feature;
                hasher.update(&bytes[header_bytes + start..][tile]);
            }
            Hash(format!("{:032x}", hasher.digest128()))
        })
        .collect();
    Ok((header_bytes, hashes))
}
