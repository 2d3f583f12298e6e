//! Export for other tools.
//!
//! `saelens`: the folder that sae-lens 6 loads with `SAE.load_from_disk`: `cfg.json` and `sae_weights.safetensors` with
//! W_enc [D,F], b_enc [F], W_dec [F,D], b_dec [D]. The scale of the data is folded into the weights, so that the SAE
//! takes raw activations and gives raw reconstructions with the same feature activations:
//! `a = ReLU(x·(s·W_enc) + b_enc)`, `x̂ = a·(W_dec/s) + b_dec/s`.
//!
//! A dictionary that is too large for one file is cut along its features into parts, each such a folder of its own:
//!
//! ```text
//! cfg.json                                  of the whole
//! sae_weights.safetensors.index.json        which files hold each tensor, in the order of the features
//! part-00001-of-00003/{cfg.json, sae_weights.safetensors} …
//! ```
//! b_dec lies in the first part and the others hold zeros: the reconstruction is the sum of those of all parts. One part at a time is
//! in memory.
//!
//! No tool reads a tensor that is spread over files; hence parts that are whole folders for consecutive features, and an index above them
//! for those who want the whole. Hugging Face's own index was rejected: it gives each tensor one file.
//!
//! `dictionary_learning`: the folder that its trainers leave, `config.json` and the tensors of its class AutoEncoderNew, which is this very
//! function: encoder.weight [F,D], encoder.bias [F], decoder.weight [D,F], decoder.bias [D]. They lie in `ae.safetensors`, since its own
//! `ae.pt` is a pickle: its `load_state_dict` takes what safetensors reads.
//!
//! Where not all features are exported, `features.safetensors` beside the weights says which they are.

use std::ops::Range;

use kernels::cpu::Cpu;
use loader::{Dtype, Store};
use safetensors::tensor::TensorView;
use serde::Serialize;

use crate::Error;
pub use crate::init::names::{CONFIG, CONFIG_OF_DICTIONARY_LEARNING, INDEX, WEIGHTS, WEIGHTS_OF_DICTIONARY_LEARNING};
use crate::init::{Block, feature_map};
use crate::trained::Trained;

/// What other tools are told of where a dictionary came from.
const TRAINED_WITH: &str = concat!("sae ", env!("CARGO_PKG_VERSION"));

/// Features that cfg.json lists, at most, where not all are exported: more are in the map beside it alone.
const MOST_LISTED: usize = 1 << 16;

/// Bytes before the tensors of a file, at most: four names with shapes and offsets of up to twenty digits.
const HEADER_BYTES: u64 = 512;

/// Bytes of an object that stores take in one request.
const MOST_IN_A_STORE: u64 = 5_000_000_000;

/// Where the activations came from; goes into the metadata of the export.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Name of the model, as other tools know it.
    pub model: String,
    /// Class by which they load it.
    pub model_class: String,
    /// Name of the hook, such as `blocks.12.hook_resid_post`.
    pub hook: String,
    /// Head of the hook that the activations are of, if of one.
    pub hook_head: Option<usize>,
    /// Name or path of the data set.
    pub dataset: String,
    /// Tokens in a context.
    pub context_size: usize,
    /// Whether contexts began with the token for that.
    pub prepend_bos: bool,
}

/// Whose folder is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// That of SAELens.
    Saelens,
    /// That of dictionary_learning.
    DictionaryLearning,
}

impl Format {
    /// Its files: what the weights mean, and the weights.
    pub fn files(self) -> (&'static str, &'static str) {
        match self {
            Format::Saelens => (CONFIG, WEIGHTS),
            Format::DictionaryLearning => (CONFIG_OF_DICTIONARY_LEARNING, WEIGHTS_OF_DICTIONARY_LEARNING),
        }
    }
}

/// How a dictionary is written.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Whose folder it is.
    pub format: Format,
    /// How numbers are stored: f32, or bf16 rounded to the nearest.
    pub dtype: Dtype,
    /// Decoder rows get norm 1, encoder rows and biases the factors that keep the reconstruction.
    pub unit_norm: bool,
    /// Most bytes of a file: a larger dictionary is written in parts.
    pub part_bytes: Option<u64>,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Folders of weights: 1, or as many as there are parts.
    pub parts: usize,
    /// Features whose decoder row is zero, which no factor gives norm 1.
    pub without_direction: usize,
}

#[derive(Serialize)]
struct Config<'a> {
    architecture: &'static str,
    d_in: usize,
    d_sae: usize,
    dtype: &'static str,
    device: &'static str,
    /// sae-lens takes `true` when this is left out; our encoder sees x itself.
    apply_b_dec_to_input: bool,
    normalize_activations: &'static str,
    reshape_activations: &'static str,
    metadata: ConfigMetadata<'a>,
}

#[derive(Serialize)]
struct ConfigMetadata<'a> {
    sae_lens_version: &'static str,
    sae_lens_training_version: Option<&'static str>,
    trained_with: &'static str,
    model_name: &'a str,
    model_class_name: &'a str,
    hook_name: &'a str,
    hook_head_index: Option<usize>,
    prepend_bos: bool,
    context_size: usize,
    dataset_path: &'a str,
    /// Features of the trained dictionary that the exported ones are, when not all were exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<&'a [usize]>,
    /// In a part, the first of its features among those of the whole export.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_feature: Option<usize>,
}

/// `model.safetensors.index.json` of Hugging Face, with the files of a tensor in the order of its features.
#[derive(Serialize)]
struct Index<'a> {
    metadata: IndexMetadata,
    weight_map: WeightMap<'a>,
}

#[derive(Serialize)]
struct IndexMetadata {
    /// Bytes of all tensors.
    total_size: u64,
}

#[derive(Serialize)]
#[allow(non_snake_case)]
struct WeightMap<'a> {
    W_enc: &'a [String],
    b_enc: &'a [String],
    W_dec: &'a [String],
    b_dec: &'a str,
}

/// Writes `features` of a dictionary (all when `None`, else ascending) to `out`.
///
/// # Errors
/// Those of the store; [`Error::Checkpoint`] and [`Error::Weights`] when a file is damaged; [`Error::Recipe`] when parts are asked for of
/// a format that has none; [`Error::FileTooLarge`] when it does not fit into one file here and no size of parts is given, and
/// [`Error::PartTooSmall`] when not even a feature fits into a part.
pub fn export(
    out: &Store,
    (device, trained): (&Cpu, &Trained),
    features: Option<&[usize]>,
    form: Form,
    origin: &Origin,
) -> Result<Written, Error> {
    let export = Export { device, trained, features, form, origin };
    let count = features.map_or(trained.features(), <[usize]>::len);
    if form.format == Format::DictionaryLearning && form.part_bytes.is_some() {
        return Err(Error::Recipe(
            "folders of dictionary_learning have no parts: export in the format of SAELens for those".into(),
        ));
    }
    let in_a_part = export.features_in_a_part(count, out)?;
    let parts = count.div_ceil(in_a_part);
    if parts == 1 {
        let without_direction = export.write_part(out, 0..count, true)?;
        export.write_map(out, 0..count)?;
        // Written last: with it the export is whole.
        out.put(form.format.files().0, export.config(count, features, None)?)?;
        return Ok(Written { parts, without_direction });
    }
    let (mut files, mut without_direction) = (Vec::new(), 0);
    for part in 0..parts {
        let chosen = part * in_a_part..((part + 1) * in_a_part).min(count);
        let folder = format!("part-{:05}-of-{parts:05}", part + 1);
        let place = out.join(&folder)?;
        without_direction += export.write_part(&place, chosen.clone(), part == 0)?;
        export.write_map(&place, chosen.clone())?;
        let own = features.map(|features| &features[chosen.clone()]);
        place.put(CONFIG, export.config(chosen.len(), own, Some(chosen.start))?)?;
        files.push(format!("{folder}/{WEIGHTS}"));
    }
    let total_size = export.bytes(count) + (parts as u64 - 1) * export.bytes(0);
    let weight_map = WeightMap { W_enc: &files, b_enc: &files, W_dec: &files, b_dec: &files[0] };
    let index = Index { metadata: IndexMetadata { total_size }, weight_map };
    out.put(INDEX, json(&index)?)?;
    export.write_map(out, 0..count)?;
    out.put(CONFIG, export.config(count, features, None)?)?;
    Ok(Written { parts, without_direction })
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(value).map_err(|error| Error::Internal(error.into()))
}

struct Export<'a> {
    device: &'a Cpu,
    trained: &'a Trained,
    features: Option<&'a [usize]>,
    form: Form,
    origin: &'a Origin,
}

impl Export<'_> {
    /// Bytes of the tensors of so many features.
    fn bytes(&self, features: usize) -> u64 {
        let width = self.trained.width() as u64;
        self.form.dtype.size() as u64 * ((2 * width + 1) * features as u64 + width)
    }

    fn features_in_a_part(&self, count: usize, out: &Store) -> Result<usize, Error> {
        let whole = self.bytes(count);
        let Some(most) = self.form.part_bytes else {
            // A file is put together in memory, and once more as it is stored.
            let room = loader::memory::available().map_or(u64::MAX, |bytes| bytes / 2);
            let most = if out.local_path().is_some() { room } else { room.min(MOST_IN_A_STORE) };
            return match whole <= most {
                true => Ok(count.max(1)),
                false => Err(Error::FileTooLarge { bytes: whole, most }),
            };
        };
        let per_feature = self.bytes(1) - self.bytes(0);
        let beside = self.bytes(0) + HEADER_BYTES;
        let fit = usize::try_from(most.saturating_sub(beside) / per_feature).unwrap_or(usize::MAX);
        match fit {
            0 => Err(Error::PartTooSmall { most, least: beside + per_feature }),
            fit => Ok(fit.min(count.max(1))),
        }
    }

    /// Says which features were chosen, where not all were.
    fn write_map(&self, out: &Store, chosen: Range<usize>) -> Result<(), Error> {
        let Some(features) = self.features else { return Ok(()) };
        feature_map::write(out, features[chosen].iter().copied())
    }

    fn config(&self, count: usize, features: Option<&[usize]>, first_feature: Option<usize>) -> Result<Vec<u8>, Error> {
        let features = features.filter(|features| features.len() <= MOST_LISTED);
        match self.form.format {
            Format::Saelens => self.config_of_saelens(count, features, first_feature),
            Format::DictionaryLearning => self.config_of_dictionary_learning(count, features),
        }
    }

    fn config_of_dictionary_learning(&self, count: usize, features: Option<&[usize]>) -> Result<Vec<u8>, Error> {
        let (origin, width) = (self.origin, self.trained.width());
        let mut trainer = serde_json::json!({
            "trainer_class": "StandardTrainerAprilUpdate",
            "dict_class": "AutoEncoderNew",
            "activation_dim": width,
            "dict_size": count,
            "lm_name": origin.model,
            "submodule_name": origin.hook,
            "trained_with": TRAINED_WITH,
        });
        if let Some(recipe) = self.trained.recipe() {
            let train = &recipe.train;
            trainer["lr"] = train.lr.into();
            trainer["l1_penalty"] = train.l1.into();
            trainer["seed"] = train.seed.into();
        }
        trainer["steps"] = self.trained.step().into();
        if let Some(features) = features {
            trainer["features"] = features.into();
        }
        let buffer = serde_json::json!({ "d_submodule": width, "io": "out", "ctx_len": origin.context_size, "dataset": origin.dataset });
        json(&serde_json::json!({ "trainer": trainer, "buffer": buffer }))
    }

    fn config_of_saelens(
        &self,
        count: usize,
        features: Option<&[usize]>,
        first_feature: Option<usize>,
    ) -> Result<Vec<u8>, Error> {
        let origin = self.origin;
        json(&Config {
            architecture: "standard",
            d_in: self.trained.width(),
            d_sae: count,
            dtype: match self.form.dtype {
                Dtype::F32 => "float32",
                Dtype::F16 => "float16",
                Dtype::Bf16 => "bfloat16",
            },
            device: "cpu",
            apply_b_dec_to_input: false,
            normalize_activations: "none",
            reshape_activations: "none",
            metadata: ConfigMetadata {
                sae_lens_version: "6.0.0",
                sae_lens_training_version: None,
                trained_with: TRAINED_WITH,
                model_name: &origin.model,
                model_class_name: &origin.model_class,
                hook_name: &origin.hook,
                hook_head_index: origin.hook_head,
                prepend_bos: origin.prepend_bos,
                context_size: origin.context_size,
                dataset_path: &origin.dataset,
                features,
                first_feature,
            },
        })
    }

    /// Writes the weights of the features at the places `chosen` of the export. Returns how many of them have no direction.
    fn write_part(&self, out: &Store, chosen: Range<usize>, with_bias: bool) -> Result<usize, Error> {
        let (width, count, dtype) = (self.trained.width(), chosen.len(), self.form.dtype);
        let mut part = Part::new(width, count, dtype, self.form.format);
        let mut without_direction = 0;
        // A file of the checkpoint at a time, of features that lie in it.
        let at_once = self.trained.features_at_once();
        let mut place = chosen.start;
        while place < chosen.end {
            let first = self.feature(place);
            let end = (first / at_once + 1) * at_once;
            let until = (place..chosen.end).find(|&place| self.feature(place) >= end).unwrap_or(chosen.end);
            let last = self.feature(until - 1);
            let block = self.trained.block(self.device, first..last + 1)?;
            let rows: Vec<usize> = (place..until).map(|place| self.feature(place) - first).collect();
            let (block, silent) = self.folded(&block, &rows);
            without_direction += silent;
            part.fill(place - chosen.start, &block);
            place = until;
        }
        if with_bias {
            let scale = self.trained.scale();
            let b_dec_d: Vec<f32> = self.trained.decoder_bias(self.device)?.iter().map(|b| b / scale).collect();
            dtype.from_f32(&b_dec_d, &mut part.b_dec_d);
        }
        out.put(self.form.format.files().1, part.serialized()?)?;
        Ok(without_direction)
    }

    /// The feature of the dictionary at a place of the export.
    fn feature(&self, place: usize) -> usize {
        self.features.map_or(place, |features| features[place])
    }

    /// Some rows of a block, as they take raw activations; and how many have no direction.
    fn folded(&self, block: &Block, rows: &[usize]) -> (Block, usize) {
        let (width, scale) = (self.trained.width(), self.trained.scale());
        let mut out = Block { w_enc_fd: Vec::new(), b_enc_f: Vec::new(), w_dec_fd: Vec::new() };
        let mut without_direction = 0;
        for &row in rows {
            let at = row * width..(row + 1) * width;
            let (encoder_d, decoder_d) = (&block.w_enc_fd[at.clone()], &block.w_dec_fd[at]);
            if !self.form.unit_norm {
                out.w_enc_fd.extend(encoder_d.iter().map(|w| w * scale));
                out.b_enc_f.push(block.b_enc_f[row]);
                out.w_dec_fd.extend(decoder_d.iter().map(|w| w / scale));
                continue;
            }
            // Norms as they are once the scale is folded in. In double precision, so that rows are rounded once.
            let scale = f64::from(scale);
            let norm = decoder_d.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
            without_direction += usize::from(norm == 0.0);
            let norm = if norm == 0.0 { scale } else { norm };
            // a·‖W_dec/s‖ = ReLU(x·(s·W_enc·‖W_dec/s‖) + b_enc·‖W_dec/s‖).
            out.w_enc_fd.extend(encoder_d.iter().map(|&w| (f64::from(w) * norm) as f32));
            out.b_enc_f.push((f64::from(block.b_enc_f[row]) * norm / scale) as f32);
            out.w_dec_fd.extend(decoder_d.iter().map(|&w| (f64::from(w) / norm) as f32));
        }
        (out, without_direction)
    }
}

/// The tensors of a file, as their bytes.
struct Part {
    width: usize,
    count: usize,
    dtype: Dtype,
    format: Format,
    encoder: Vec<u8>,
    b_enc_f: Vec<u8>,
    decoder: Vec<u8>,
    b_dec_d: Vec<u8>,
}

impl Part {
    fn new(width: usize, count: usize, dtype: Dtype, format: Format) -> Part {
        let zeros = |values: usize| vec![0; values * dtype.size()];
        let (encoder, b_enc_f, decoder, b_dec_d) =
            (zeros(width * count), zeros(count), zeros(width * count), zeros(width));
        Part { width, count, dtype, format, encoder, b_enc_f, decoder, b_dec_d }
    }

    /// Puts a block in, its first feature at `first`.
    fn fill(&mut self, first: usize, block: &Block) {
        let (width, count, dtype, n) = (self.width, self.count, self.dtype, block.b_enc_f.len());
        let size = dtype.size();
        dtype.from_f32(&block.b_enc_f, &mut self.b_enc_f[first * size..(first + n) * size]);
        let as_rows = |values_fd: &[f32], to: &mut [u8]| {
            dtype.from_f32(values_fd, &mut to[first * width * size..(first + n) * width * size]);
        };
        let as_columns = |values_fd: &[f32], to: &mut [u8]| {
            let mut row_f = vec![0.0f32; n];
            for (d, to_f) in to.chunks_exact_mut(count * size).enumerate() {
                row_f.iter_mut().enumerate().for_each(|(f, value)| *value = values_fd[f * width + d]);
                dtype.from_f32(&row_f, &mut to_f[first * size..(first + n) * size]);
            }
        };
        match self.format {
            Format::Saelens => {
                as_columns(&block.w_enc_fd, &mut self.encoder);
                as_rows(&block.w_dec_fd, &mut self.decoder);
            }
            Format::DictionaryLearning => {
                as_rows(&block.w_enc_fd, &mut self.encoder);
                as_columns(&block.w_dec_fd, &mut self.decoder);
            }
        }
    }

    fn serialized(&self) -> Result<Vec<u8>, Error> {
        use safetensors::Dtype as Stored;
        let internal = |error: safetensors::SafeTensorError| Error::Internal(error.into());
        let dtype = match self.dtype {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::Bf16 => Stored::BF16,
        };
        let view = |shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).map_err(internal);
        let (rows, columns) = (vec![self.count, self.width], vec![self.width, self.count]);
        let (names, of_encoder, of_decoder) = match self.format {
            Format::Saelens => (["W_enc", "b_enc", "W_dec", "b_dec"], columns, rows),
            Format::DictionaryLearning => {
                (["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"], rows, columns)
            }
        };
        let [encoder, encoder_bias, decoder, decoder_bias] = names;
        let tensors = [
            (encoder, view(of_encoder, &self.encoder)?),
            (encoder_bias, view(vec![self.count], &self.b_enc_f)?),
            (decoder, view(of_decoder, &self.decoder)?),
            (decoder_bias, view(vec![self.width], &self.b_dec_d)?),
        ];
        safetensors::serialize(tensors, None).map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_not_larger_than_estimated() {
        let part = Part::new(1 << 10, 1000, Dtype::Bf16, Format::Saelens);
        let tensors = part.encoder.len() + part.b_enc_f.len() + part.decoder.len() + part.b_dec_d.len();
        let header = part.serialized().expect("a file").len() - tensors;
        // Sizes and offsets of a real one have up to sixty digits more each.
        assert!(header as u64 + 4 * 40 <= HEADER_BYTES, "{header}");
    }
}
