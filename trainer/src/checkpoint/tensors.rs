//! What the files of a checkpoint hold: tensors as they are read from a dictionary, and the hashes of what is written.

use std::ops::Range;

use kernels::{Moment, Tensor, Training};
use safetensors::tensor::{Dtype, TensorView};
use xxhash_rust::xxh3::Xxh3;

use super::format::{CLOCKS, Entry, File, Hash, Holds, SUMS, SUMS_PARTS, State, TILE, entries};
use crate::Error;

/// Bytes that say how long a file's header is.
pub(super) const HEADER_LENGTH: usize = 8;

/// A named tensor, its shape, and its bytes, little endian.
pub(super) struct Named {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

pub(super) fn feature_tensors(
    dictionary: &impl Training,
    holds: Holds,
    width: usize,
    features: Range<usize>,
) -> Result<Vec<Named>, kernels::Error> {
    let n = features.len();
    let read = |Entry { name, tensor, moment, per_feature }: Entry| {
        let mut values = vec![0.0f32; n * per_feature];
        read_rows(dictionary, (tensor, moment), features.clone(), &mut values)?;
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

/// Rows of a tensor, or of one of its moments.
fn read_rows(
    dictionary: &impl Training,
    (tensor, moment): (Tensor, Option<Moment>),
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), kernels::Error> {
    match moment {
        None => dictionary.read(tensor, rows, out),
        Some(moment) => dictionary.read_moment(tensor, moment, rows, out),
    }
}

/// On how many rows of each sum features fired; `own` counts from the first that the rank owns.
pub(super) fn fired_tensors(state: &State, own: Range<usize>) -> impl Iterator<Item = Named> {
    SUMS.into_iter().zip(state.sums()).map(move |(of, sums)| {
        let bytes = bytemuck::cast_slice(&sums.fired_f[own.clone()]).to_vec();
        Named { name: format!("{of}.{}", SUMS_PARTS[3]), dtype: Dtype::U64, shape: vec![own.len()], bytes }
    })
}

pub(super) fn shared_tensors(
    dictionary: &impl Training,
    width: usize,
    state: &State,
) -> Result<Vec<Named>, kernels::Error> {
    let mut tensors: Vec<Named> = entries(Holds::Shared, width)
        .into_iter()
        .map(|Entry { name, tensor, moment, per_feature }| {
            let mut values = vec![0.0f32; per_feature];
            read_rows(dictionary, (tensor, moment), 0..1, &mut values)?;
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

pub(super) fn encode(tensors: &[Named]) -> Result<Vec<u8>, Error> {
    let internal = |error: safetensors::SafeTensorError| Error::Internal(error.into());
    let views = tensors
        .iter()
        .map(|named| Ok((named.name.as_str(), TensorView::new(named.dtype, named.shape.clone(), &named.bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(internal)?;
    safetensors::serialize(views, None).map_err(internal)
}

pub(super) fn describe(name: String, holds: Holds, features: Range<usize>, bytes: &[u8]) -> Result<File, Error> {
    let (header_bytes, tile_hashes) =
        hash_tiles(bytes, holds, features.len()).map_err(|error| Error::Internal(error.into()))?;
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

/// Where the parts of a file lie.
pub(super) struct Layout {
    /// Its length and its JSON.
    pub(super) header_bytes: usize,
    /// Of each tensor in the order of their offsets, from the start of the file.
    tensors: Vec<Range<usize>>,
}

impl Layout {
    /// Of a file; of its bytes only the header is looked at.
    pub(super) fn of(bytes: &[u8]) -> Result<Layout, safetensors::SafeTensorError> {
        let (json_bytes, metadata) = safetensors::SafeTensors::read_metadata(bytes)?;
        let header_bytes = HEADER_LENGTH + json_bytes;
        let mut offsets: Vec<_> = metadata.tensors().into_values().map(|info| info.data_offsets).collect();
        offsets.sort_unstable();
        let tensors = offsets.into_iter().map(|(start, end)| header_bytes + start..header_bytes + end).collect();
        Ok(Layout { header_bytes, tensors })
    }

    /// Where some rows of each tensor lie, in a file of `features`.
    pub(super) fn rows(&self, features: usize, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        self.tensors.iter().map(move |tensor| {
            let per_feature = tensor.len() / features;
            tensor.start + rows.start * per_feature..tensor.start + rows.end * per_feature
        })
    }

    /// The hash of a tile of a file of `features`.
    pub(super) fn hash_tile(&self, bytes: &[u8], features: usize, tile: usize) -> Hash {
        let mut hasher = Xxh3::new();
        let rows = tile * TILE..((tile + 1) * TILE).min(features);
        self.rows(features, rows).for_each(|part| hasher.update(&bytes[part]));
        Hash(format!("{:032x}", hasher.digest128()))
    }
}

/// The length of the header of a file, and the hashes of its tiles.
pub(super) fn hash_tiles(
    bytes: &[u8],
    holds: Holds,
    features: usize,
) -> Result<(usize, Vec<Hash>), safetensors::SafeTensorError> {
    let layout = Layout::of(bytes)?;
    let hashes = match holds {
        Holds::Shared => vec![Hash::of(&bytes[layout.header_bytes..])],
        _ => (0..features.div_ceil(TILE)).map(|tile| layout.hash_tile(bytes, features, tile)).collect(),
    };
    Ok((layout.header_bytes, hashes))
}
