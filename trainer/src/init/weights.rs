//! Weights in the layout of exports: `W_enc [D,F]`, `b_enc [F]`, `W_dec [F,D]`, `b_dec [D]` in one safetensors file, or in several of
//! consecutive features. Read some features at a time, so that a rank holds no more than a block besides what it keeps: of W_enc
//! these are columns, which a large file is asked for row by row.

use std::ops::Range;

use bytes::Bytes;
use loader::{Dtype, Store};
use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};

use super::block::{Block, transpose};
use crate::{Error, Message};

/// Bytes of a file that is read as a whole. In a larger one the four tensors are read in parts.
pub(super) const WHOLE_BYTES: u64 = 256 << 20;

/// Bytes in f32 of the encoder's rows that are read at a time.
pub(super) const BLOCK_BYTES: usize = 256 << 20;

/// Bytes asked for at once where rows lie beside each other.
const REQUEST_BYTES: usize = 16 << 20;

/// Most bytes of a header, as the format has it.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// What a run's weights must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fits {
    /// `D` of the data.
    pub(super) width: usize,
    /// `sae.features`.
    pub(super) features: usize,
}

impl Fits {
    /// Refuses what a file at `place` says of its shape, as far as it does.
    pub(super) fn check_config(&self, place: &str, width: Option<usize>, features: Option<usize>) -> Result<(), Error> {
        let Fits { width: data, features: wanted } = *self;
        let (width, features) = (width.unwrap_or(data), features.unwrap_or(wanted));
        if (width, features) == (data, wanted) {
            return Ok(());
        }
        let remedy = match width == data {
            true => format!("set sae.features = {features}"),
            false => "it was trained on another layer or model".into(),
        };
        Err(Error::Weights(format!(
            "train.init_from: {place} has {features} features of width {width}, and the run {wanted} of width {data} (sae.features, \
             and the width of data.train): {remedy}"
        ).into()))
    }
}

/// The tensors of one or several files.
#[derive(Debug)]
pub(super) struct Weights {
    width: usize,
    parts: Vec<Part>,
}

/// A file of some features.
#[derive(Debug)]
struct Part {
    features: Range<usize>,
    file: File,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    b_dec: Tensor,
    /// Factors on the decoder's rows, as SAELens once stored what it tuned last.
    factors: Option<Tensor>,
}

/// Where a tensor's values lie in its file.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    from: u64,
    dtype: Dtype,
}

impl Tensor {
    /// Where some of them lie.
    fn at(&self, values: Range<usize>) -> Range<u64> {
        let byte = |value: usize| self.from + (value * self.dtype.size()) as u64;
        byte(values.start)..byte(values.end)
    }
}

#[derive(Debug)]
struct File {
    store: Store,
    key: String,
    size: u64,
    /// All of a small one.
    whole: Option<Bytes>,
}

impl Weights {
    /// Looks at the headers of `files`, whose features follow each other.
    ///
    /// # Errors
    /// [`Error::Weights`] when they are not what `fits` wants, and those of the store.
    pub(super) fn open(store: &Store, files: &[String], fits: Fits) -> Result<Weights, Error> {
        let mut parts: Vec<Part> = Vec::new();
        for key in files {
            let first = parts.last().map_or(0, |part| part.features.end);
            let alone = files.len() == 1;
            parts.push(Part::open(File::open(store, key)?, first, fits, alone)?);
        }
        let features = parts.last().map_or(0, |part| part.features.end);
        fits.check_config(store.url(), None, Some(features))?;
        Ok(Weights { width: fits.width, parts })
    }

    /// Features to read at a time.
    pub(super) fn features_at_once(&self) -> usize {
        (BLOCK_BYTES / (4 * self.width)).max(1)
    }

    /// `b_dec`; of several files the first holds it, and the others zeros.
    pub(super) fn decoder_bias(&self) -> Result<Vec<f32>, Error> {
        let part = &self.parts[0];
        part.file.values(&part.b_dec, 0..self.width)
    }

    /// Some features.
    pub(super) fn read(&self, features: Range<usize>) -> Result<Block, Error> {
        let (count, width) = (features.len(), self.width);
        let (mut w_enc_fd, mut b_enc_f, mut w_dec_fd) =
            (Vec::with_capacity(count * width), Vec::with_capacity(count), Vec::with_capacity(count * width));
        for part in &self.parts {
            let wanted = part.features.start.max(features.start)..part.features.end.min(features.end);
            if wanted.is_empty() {
                continue;
            }
            let inside = wanted.start - part.features.start..wanted.end - part.features.start;
            let rows = inside.start * width..inside.end * width;
            w_enc_fd.extend(transpose(&part.encoder_columns(width, inside.clone())?, width, inside.len()));
            b_enc_f.extend(part.file.values(&part.b_enc, inside.clone())?);
            let mut w_dec = part.file.values(&part.w_dec, rows)?;
            if let Some(factors) = &part.factors {
                let factors_f = part.file.values(factors, inside)?;
                let rows = w_dec.par_chunks_exact_mut(width).zip(factors_f);
                rows.for_each(|(row_d, factor)| row_d.iter_mut().for_each(|value| *value *= factor));
            }
            w_dec_fd.extend(w_dec);
        }
        Ok(Block { w_enc_fd, b_enc_f, w_dec_fd })
    }
}

impl Part {
    fn open(file: File, first: usize, fits: Fits, alone: bool) -> Result<Part, Error> {
        let (header_bytes, header) = file.header()?;
        let refuse = |what: String| Error::Weights(format!("train.init_from: {} {what}", file.name()).into());
        let find = |name: &str| -> Result<&TensorInfo, Error> {
            header.info(name).ok_or_else(|| {
                let mut names = header.offset_keys();
                names.sort();
                refuse(format!("has no tensor {name}; it has: {}{}", names.join(", "), foreign(&names)))
            })
        };
        let (w_enc, b_enc, w_dec, b_dec) = (find("W_enc")?, find("b_enc")?, find("W_dec")?, find("b_dec")?);
        const SCALINGS: [&str; 2] = ["scaling_factor", "finetuning_scaling_factor"];
        let known = |name: &str| ["W_enc", "b_enc", "W_dec", "b_dec"].contains(&name) || SCALINGS.contains(&name);
        if let Some(other) = header.offset_keys().iter().find(|name| !known(name)) {
            return Err(refuse(format!(
                "holds {other} besides W_enc, b_enc, W_dec and b_dec: only ReLU dictionaries can be gone on with, and they have no \
                 such tensor"
            )));
        }
        let features = if alone { fits.features } else { b_enc.shape.iter().product() };
        let width = fits.width;
        let tensor = |name: &str, info: &TensorInfo, shape: &[usize]| -> Result<Tensor, Error> {
            if info.shape != shape {
                let turned: Vec<usize> = shape.iter().rev().copied().collect();
                let what = match info.shape == turned && shape.len() == 2 {
                    true => ", which is transposed: turn it around",
                    false => "",
                };
                return Err(refuse(format!(
                    "has {name} of shape {:?}{what}; it must be {shape:?} (data of width {width}, sae.features = {})",
                    info.shape, fits.features
                )));
            }
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::BF16 => Dtype::Bf16,
                other => return Err(refuse(format!("has {name} in {other:?}: F32, F16 and BF16 are read"))),
            };
            Ok(Tensor { from: header_bytes + info.data_offsets.0 as u64, dtype })
        };
        let factors = SCALINGS.into_iter().find_map(|name| header.info(name).map(|info| (name, info)));
        Ok(Part {
            w_enc: tensor("W_enc", w_enc, &[width, features])?,
            b_enc: tensor("b_enc", b_enc, &[features])?,
            w_dec: tensor("W_dec", w_dec, &[features, width])?,
            b_dec: tensor("b_dec", b_dec, &[width])?,
            factors: factors.map(|(name, info)| tensor(name, info, &[features])).transpose()?,
            features: first..first + features,
            file,
        })
    }

    /// Columns of `W_enc [D, F]`, as `[D, n]`.
    fn encoder_columns(&self, width: usize, columns: Range<usize>) -> Result<Vec<f32>, Error> {
        let (all, count) = (self.features.len(), columns.len());
        // Rows that are wanted as a whole lie beside each other.
        let rows_at_once = if count == all { (REQUEST_BYTES / (all * self.w_enc.dtype.size())).max(1) } else { 1 };
        let mut out = vec![0.0f32; width * count];
        out.par_chunks_mut(rows_at_once * count).enumerate().try_for_each(|(chunk, out)| {
            let first = chunk * rows_at_once * all + columns.start;
            self.file.read(&self.w_enc, first..first + out.len(), out)
        })?;
        Ok(out)
    }
}

impl File {
    fn open(store: &Store, key: &str) -> Result<File, Error> {
        let entry = store.head(key)?.ok_or_else(|| loader::Error::NotFound {
            location: store.url_of(key),
            hint: ": train.init_from names it".into(),
            source: None,
        })?;
        let whole = (entry.size <= WHOLE_BYTES).then(|| store.get(key)).transpose()?;
        let size = whole.as_ref().map_or(entry.size, |bytes| bytes.len() as u64);
        Ok(File { store: store.clone(), key: key.to_owned(), size, whole })
    }

    fn name(&self) -> String {
        self.store.url_of(&self.key)
    }

    fn bytes(&self, range: Range<u64>) -> Result<Bytes, Error> {
        match &self.whole {
            Some(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            None => Ok(self.store.get_range(&self.key, range)?),
        }
    }

    /// The bytes before the tensors, and what they say.
    fn header(&self) -> Result<(u64, Metadata), Error> {
        const LENGTH: u64 = 8;
        let not_one = |what: &str| format!("train.init_from: {} is not a safetensors file: {what}", self.name());
        let refuse = |what: &str| Error::Weights(not_one(what).into());
        if self.size < LENGTH {
            return Err(refuse("it is too short for a header"));
        }
        let length = self.bytes(0..LENGTH)?;
        let length = length.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
        if length > MOST_HEADER_BYTES.min(self.size - LENGTH) {
            return Err(refuse("its header is longer than the file, or than any may be"));
        }
        let end = LENGTH + length;
        let header: Metadata = serde_json::from_slice(&self.bytes(LENGTH..end)?)
            .map_err(|error| Message::of(not_one(&format!("its header: {error}")), error))
            .map_err(Error::Weights)?;
        if end + header.data_len() as u64 != self.size {
            return Err(refuse(&format!(
                "it has {} bytes, and its header names {}: it may have been cut off",
                self.size,
                end + header.data_len() as u64
            )));
        }
        Ok((end, header))
    }

    fn values(&self, tensor: &Tensor, values: Range<usize>) -> Result<Vec<f32>, Error> {
        let mut out = vec![0.0f32; values.len()];
        let at_once = REQUEST_BYTES / tensor.dtype.size();
        out.par_chunks_mut(at_once).enumerate().try_for_each(|(chunk, out)| {
            let first = values.start + chunk * at_once;
            self.read(tensor, first..first + out.len(), out)
        })?;
        Ok(out)
    }

    fn read(&self, tensor: &Tensor, values: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        tensor.dtype.to_f32(&self.bytes(tensor.at(values))?, out);
        Ok(())
    }
}

/// What tensors of these names are called here.
fn foreign(names: &[String]) -> &'static str {
    let has = |name: &str| names.iter().any(|own| own == name);
    match has("encoder.weight") {
        true if has("decoder.weight") => {
            ": those are the names of dictionary_learning: W_enc = encoder.weight.T, b_enc = encoder.bias, W_dec = \
             decoder.weight.T, b_dec = bias (decoder.bias)"
        }
        true => ": those are the names of sparsify, whose TopK dictionaries cannot be gone on with",
        false => "",
    }
}
