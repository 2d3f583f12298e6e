//! Writing a checkpoint.

use std::ops::Range;

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

/// Saves `dictionary` and `state` as a new attempt of its step and commits it. Returns the attempt's folder, relative
/// to the run's. On an error nothing is committed and what was there before is as it was.
///
/// # Errors
/// Those of the store.
pub fn save(
    store: &Store,
    dictionary: &impl Dictionary,
    state: &State,
    cursor: &Cursor,
    recipe: &Recipe,
) -> Result<String, Error> {
    let attempt = super::find::last_attempt(store, state.step)? + 1;
    let folder = folder(state.step, attempt);
    let written = write(store, &folder, attempt, dictionary, state, cursor, recipe);
    if written.is_err() {
        // On a full disk what was written so far takes the room that the next attempt needs. That it cannot be removed
        // must not hide the error itself.
        super::retain::remove(store, &folder)
            .unwrap_or_else(|error| tracing::warn!("{folder} could not be removed: {error}"));
    }
    written.map(|()| folder)
}

fn write(
    store: &Store,
    folder: &str,
    attempt: u32,
    dictionary: &impl Dictionary,
    state: &State,
    cursor: &Cursor,
    recipe: &Recipe,
) -> Result<(), Error> {
    let Shape { width, features, .. } = dictionary.shape();
    let mut files = Vec::new();
    for (holds, stem) in [(Holds::Weights, "weights"), (Holds::Optimizer, "optimizer")] {
        let chunk = features_per_file(holds, width);
        for (index, first) in (0..features).step_by(chunk).enumerate() {
            let range = first..(first + chunk).min(features);
            let bytes = encode(&feature_tensors(dictionary, holds, width, range.clone())?)?;
            let name = format!("{stem}-{index:06}.safetensors");
            files.push(describe(name, holds, range, &bytes)?);
            store.put(&format!("{folder}/{}", files[files.len() - 1].name), bytes)?;
        }
    }
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
        features,
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
    for (of, sums) in SUMS.into_iter().zip([&state.tally, &state.window, &state.closing]) {
        let scalars = [sums.squared_error, sums.squared_norm, sums.l1];
        let counts = [sums.rows, sums.active];
        let parts = [
            (Dtype::F64, scalars.len(), bytemuck::cast_slice(&scalars)),
            (Dtype::U64, counts.len(), bytemuck::cast_slice(&counts)),
            (Dtype::F64, width, bytemuck::cast_slice(&sums.x_d)),
            (Dtype::U64, sums.fired_f.len(), bytemuck::cast_slice(&sums.fired_f)),
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
