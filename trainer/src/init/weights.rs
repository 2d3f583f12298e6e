//! Weights in files, in one of two layouts that their tensors' names tell apart, in one file or in several of consecutive features:
//!
//! | | encoder | its bias | decoder | its bias |
//! |---|---|---|---|---|
//! | SAELens, and what `sae export` writes | `W_enc [D,F]` | `b_enc [F]` | `W_dec [F,D]` | `b_dec [D]` |
//! | dictionary_learning | `encoder.weight [F,D]` | `encoder.bias [F]` | `decoder.weight [D,F]` | `decoder.bias [D]`, or `bias [D]` where the encoder sees x less that |
//!
//! Read some features at a time, so that a rank holds no more than a block besides what it keeps: of one of the matrices these are
//! columns, which a large file is asked for row by row.

use std::ops::Range;

use bytes::Bytes;
use loader::{Dtype, Store};
use rayon::prelude::*;
use tensors::{Format, Tensors};
use xxhash_rust::xxh3::Xxh3;

use super::block::{Block, transpose};
use crate::{Error, Message};

/// How files of safetensors end. Others are archives of `torch.save`.
pub(super) const SAFETENSORS: &str = ".safetensors";

/// Bytes of a file that is read as a whole. In a larger one the four tensors are read in parts.
pub(super) const WHOLE_BYTES: u64 = 256 << 20;

/// Bytes in f32 of the encoder's rows that are read at a time.
pub(super) const BLOCK_BYTES: usize = 256 << 20;

/// Bytes asked for at once where rows lie beside each other.
const REQUEST_BYTES: usize = 16 << 20;

/// What a run's weights must be; nothing where they are looked at by themselves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fits {
    /// `D` of the data.
    pub(super) width: Option<usize>,
    /// `sae.features`.
    pub(super) features: Option<usize>,
}

impl Fits {
    /// With what a file at `place` says of its shape, as far as it does.
    ///
    /// # Errors
    /// [`Error::Weights`] when it says something else.
    pub(super) fn and(self, place: &str, width: Option<usize>, features: Option<usize>) -> Result<Fits, Error> {
        let all = Fits { width: self.width.or(width), features: self.features.or(features) };
        let wanted = |own: Option<usize>, there: Option<usize>| own.or(there).unwrap_or_default();
        let (data, wanted) = (wanted(self.width, width), wanted(self.features, features));
        let (width, features) = (width.unwrap_or(data), features.unwrap_or(wanted));
        if (width, features) == (data, wanted) {
            return Ok(all);
        }
        let remedy = match width == data {
            true => format!("set sae.features = {features}"),
            false => "it was trained on another layer or model".into(),
        };
        Err(Error::Weights(
            format!(
                "{place} has {features} features of width {width}, and the run {wanted} of width {data} (sae.features, \
             and the width of data.train): {remedy}"
            )
            .into(),
        ))
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
    w_enc: Matrix,
    b_enc: Tensor,
    w_dec: Matrix,
    b_dec: Tensor,
    /// Whether the encoder sees x less b_dec, where the names of the tensors say so.
    subtracts_decoder_bias: bool,
    /// Factors on the decoder's rows, as SAELens once stored what it tuned last.
    factors: Option<Tensor>,
}

/// A matrix of weights: a row for each feature, or a column.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    tensor: Tensor,
    by_feature: bool,
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

#[derive(Clone, Debug)]
struct File {
    file: tensors::File,
    /// All of a small one.
    whole: Option<Bytes>,
    /// What says where its tensors lie.
    head: Bytes,
}

impl Weights {
    /// Looks at the headers of `files`, whose features follow each other.
    ///
    /// # Errors
    /// [`Error::Weights`] when they are not what `fits` wants, and those of the store.
    pub(super) fn open(store: &Store, files: &[String], fits: Fits) -> Result<Weights, Error> {
        let mut parts: Vec<Part> = Vec::new();
        let mut width = fits.width;
        for key in files {
            let first = parts.last().map_or(0, |part| part.features.end);
            // Of several files each has some of the features.
            let features = fits.features.filter(|_| files.len() == 1);
            let (file, named) = File::open(store, key)?;
            let (part, of_part) = Part::open(file, &named, first, Fits { width, features })?;
            width = Some(of_part);
            parts.push(part);
        }
        let features = parts.last().map_or(0, |part| part.features.end);
        fits.and(store.url(), None, Some(features))?;
        Ok(Weights { width: width.unwrap_or_default(), parts })
    }

    /// `D`.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// `F`.
    pub(super) fn features(&self) -> usize {
        self.parts.last().map_or(0, |part| part.features.end)
    }

    /// Whether the encoder sees x less b_dec, where the names of the tensors say so.
    pub(super) fn subtracts_decoder_bias(&self) -> bool {
        self.parts.first().is_some_and(|part| part.subtracts_decoder_bias)
    }

    /// A hash that tells these weights from those of any other training, though it is not over all of them: of the headers and the
    /// biases.
    pub(super) fn identity(&self) -> Result<String, Error> {
        let mut hash = Xxh3::new();
        for part in &self.parts {
            hash.update(&part.file.head);
            for (tensor, count) in [(&part.b_enc, part.features.len()), (&part.b_dec, self.width)] {
                let values = part.file.values(tensor, 0..count)?;
                values.iter().for_each(|value| hash.update(&value.to_le_bytes()));
            }
        }
        Ok(format!("{:032x}", hash.digest128()))
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
            w_enc_fd.extend(part.rows(&part.w_enc, width, inside.clone())?);
            b_enc_f.extend(part.file.values(&part.b_enc, inside.clone())?);
            let mut w_dec = part.rows(&part.w_dec, width, inside.clone())?;
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

/// The tensors of a layout: (name, whether a matrix has a row for each feature).
struct Layout {
    encoder: (&'static str, bool),
    encoder_bias: &'static str,
    decoder: (&'static str, bool),
    decoder_bias: &'static str,
    subtracts_decoder_bias: bool,
}

const SAELENS: Layout = Layout {
    encoder: ("W_enc", false),
    encoder_bias: "b_enc",
    decoder: ("W_dec", true),
    decoder_bias: "b_dec",
    subtracts_decoder_bias: false,
};

/// `AutoEncoderNew` of dictionary_learning.
const WITHOUT_SHIFT: Layout = Layout {
    encoder: ("encoder.weight", true),
    encoder_bias: "encoder.bias",
    decoder: ("decoder.weight", false),
    decoder_bias: "decoder.bias",
    subtracts_decoder_bias: false,
};

/// `AutoEncoder` of dictionary_learning.
const WITH_SHIFT: Layout = Layout { decoder_bias: "bias", subtracts_decoder_bias: true, ..WITHOUT_SHIFT };

impl Layout {
    /// That of a file with tensors of these names.
    fn of(named: &[(String, tensors::Tensor)]) -> &'static Layout {
        let has = |name: &str| named.iter().any(|(has, _)| has == name);
        match has("encoder.weight") && has("decoder.weight") {
            false => &SAELENS,
            true if has("bias") => &WITH_SHIFT,
            true => &WITHOUT_SHIFT,
        }
    }

    fn names(&self) -> [&'static str; 4] {
        [self.encoder.0, self.encoder_bias, self.decoder.0, self.decoder_bias]
    }
}

impl Part {
    /// Also the width of its rows.
    fn open(file: File, named: &[(String, tensors::Tensor)], first: usize, fits: Fits) -> Result<(Part, usize), Error> {
        let refuse = |what: String| Error::Weights(format!("{} {what}", file.name()).into());
        let layout = Layout::of(named);
        let get = |name: &str| named.iter().find(|(has, _)| has == name).map(|(_, tensor)| tensor);
        let find = |name: &str| -> Result<&tensors::Tensor, Error> {
            get(name).ok_or_else(|| {
                let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
                refuse(format!("has no tensor {name}; it has: {}{}", names.join(", "), foreign(&names)))
            })
        };
        for name in layout.names() {
            find(name)?;
        }
        const SCALINGS: [&str; 2] = ["scaling_factor", "finetuning_scaling_factor"];
        let [w_enc, b_enc, w_dec, b_dec] = layout.names();
        let known = |name: &str| layout.names().contains(&name) || SCALINGS.contains(&name);
        if let Some((other, _)) = named.iter().find(|(name, _)| !known(name)) {
            return Err(refuse(format!(
                "holds {other} besides {w_enc}, {b_enc}, {w_dec} and {b_dec}: only ReLU dictionaries can be gone on with, and they have \
                 no such tensor"
            )));
        }
        // Of a vector; anything else has no such shape below.
        let count = |name: &str| Ok::<usize, Error>(find(name)?.shape.first().map_or(0, |&n| n as usize));
        let features = fits.features.map_or_else(|| count(b_enc), Ok)?;
        let width = fits.width.map_or_else(|| count(b_dec), Ok)?;
        if features == 0 || width == 0 {
            return Err(refuse(format!("holds {features} features of width {width}: there is nothing to read")));
        }
        let tensor = |name: &str, shape: &[usize]| -> Result<Tensor, Error> {
            let stored = find(name)?;
            let wanted: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
            if stored.shape != wanted {
                let what = match shape.len() == 2 && stored.shape.iter().rev().eq(&wanted) {
                    true => ", which is transposed: turn it around",
                    false => "",
                };
                return Err(refuse(format!(
                    "has {name} of shape {:?}{what}; it must be {shape:?} (rows of width {width}, {features} features)",
                    stored.shape
                )));
            }
            let refused = |number: &str| {
                refuse(format!("has {name} in {number}: it has to be float32, float16 or bfloat16, in one piece"))
            };
            let number =
                stored.transposed.as_ref().map_or(stored.number.as_ref(), Ok).map_err(|number| refused(number))?;
            Ok(Tensor { from: stored.offset, dtype: number.dtype().ok_or_else(|| refused(number.name()))? })
        };
        let matrix = |(name, by_feature): (&str, bool)| -> Result<Matrix, Error> {
            let shape = if by_feature { [features, width] } else { [width, features] };
            // What lies there may be the transpose, as dictionary_learning makes its encoder.
            let turned = get(name).is_some_and(|stored| stored.transposed.is_some());
            Ok(Matrix { tensor: tensor(name, &shape)?, by_feature: by_feature != turned })
        };
        let factors = SCALINGS.into_iter().find(|name| get(name).is_some());
        let part = Part {
            w_enc: matrix(layout.encoder)?,
            b_enc: tensor(b_enc, &[features])?,
            w_dec: matrix(layout.decoder)?,
            b_dec: tensor(b_dec, &[width])?,
            subtracts_decoder_bias: layout.subtracts_decoder_bias,
            factors: factors.map(|name| tensor(name, &[features])).transpose()?,
            features: first..first + features,
            file: file.clone(),
        };
        Ok((part, width))
    }

    /// Some features of a matrix, `[n, D]`.
    fn rows(&self, matrix: &Matrix, width: usize, features: Range<usize>) -> Result<Vec<f32>, Error> {
        if matrix.by_feature {
            return self.file.values(&matrix.tensor, features.start * width..features.end * width);
        }
        let count = features.len();
        Ok(transpose(&self.columns(&matrix.tensor, width, features)?, width, count))
    }

    /// Columns of a matrix `[D, F]`, as `[D, n]`.
    fn columns(&self, matrix: &Tensor, width: usize, columns: Range<usize>) -> Result<Vec<f32>, Error> {
        let (all, count) = (self.features.len(), columns.len());
        // Rows that are wanted as a whole lie beside each other.
        let rows_at_once = if count == all { (REQUEST_BYTES / (all * matrix.dtype.size())).max(1) } else { 1 };
        let mut out = vec![0.0f32; width * count];
        out.par_chunks_mut(rows_at_once * count).enumerate().try_for_each(|(chunk, out)| {
            let first = chunk * rows_at_once * all + columns.start;
            self.file.read(matrix, first..first + out.len(), out)
        })?;
        Ok(out)
    }
}

impl File {
    /// Also what it says of its tensors.
    fn open(store: &Store, key: &str) -> Result<(File, Vec<(String, tensors::Tensor)>), Error> {
        let file = tensors::File::find(store, key)?.ok_or_else(|| loader::Error::NotFound {
            location: store.url_of(key),
            hint: ": weights were to be read from it".into(),
            source: None,
        })?;
        let format = if key.ends_with(SAFETENSORS) { Format::Safetensors } else { Format::Torch };
        let Tensors { named, head, .. } = format.read(&file).map_err(|error| match error {
            loader::Error::Data { .. } => Error::Weights(Message::of(error.to_string(), error)),
            of_store => of_store.into(),
        })?;
        let whole = (file.size() <= WHOLE_BYTES).then(|| file.read(0..file.size())).transpose()?;
        Ok((File { file, whole, head }, named))
    }

    fn name(&self) -> String {
        self.file.url()
    }

    fn bytes(&self, range: Range<u64>) -> Result<Bytes, Error> {
        match &self.whole {
            Some(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            None => Ok(self.file.read(range)?),
        }
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

/// Whose tensors have these names.
fn foreign(names: &[&str]) -> &'static str {
    let has = |name: &str| names.contains(&name);
    match has("encoder.weight") {
        true if has("decoder.weight") => {
            ": a dictionary of dictionary_learning has encoder.weight, encoder.bias, decoder.weight, and decoder.bias or bias"
        }
        true => ": those are the names of sparsify, whose TopK dictionaries cannot be gone on with",
        false => "",
    }
}
