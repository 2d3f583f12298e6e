//! Where `train.init_from` leads: a run, a checkpoint, an export of this program, a folder of SAELens or dictionary_learning, or a bare
//! file of weights. Each says which activations its weights take; a bare file does not, so `train.init_space` has to.
//!
//! | source | its weights take |
//! |---|---|
//! | run, checkpoint | rows times the scale in its manifest |
//! | SAELens folder, ours among them | rows as they are; with `apply_b_dec_to_input`, less b_dec |
//! | folder of dictionary_learning | rows as they are; of its `AutoEncoder`, less b_dec |
//! | bare file | rows as they are (`raw`), or times `data.scale` (`normalized`) |
//!
//! The same tensors taken for the other make an SAE that is wrong and looks like one, so nothing is guessed, and where metadata and
//! recipe both speak they must agree. Everything that could mean another function (architecture, normalisation, an unknown tensor) is
//! refused by its name.

use std::collections::BTreeSet;
use std::ops::Range;

use kernels::cpu::Cpu;
use loader::Store;

use super::block::Block;
use super::config::{self, Config};
use super::feature_map;
use super::names::{
    ARCHIVE_OF_DICTIONARY_LEARNING, CONFIG, CONFIG_OF_DICTIONARY_LEARNING, INDEX, WEIGHTS,
    WEIGHTS_OF_DICTIONARY_LEARNING,
};
use super::weights::{Fits, SAFETENSORS, Weights};
use crate::checkpoint::{self, Found, Which};
use crate::recipe::{InitSpace, Recipe};
use crate::{Error, Message, evaluate};

/// Weights to start from, opened and checked as far as that needs none of their values.
#[derive(Debug)]
pub struct Source {
    /// As it is called in messages.
    name: String,
    holds: Holds,
    /// The factor on rows that its weights take; that of this run, whatever it is, when `None`.
    scale: Option<f64>,
    subtracts_decoder_bias: bool,
    threads: Option<usize>,
}

#[derive(Debug)]
enum Holds {
    Checkpoint(Store, Box<Found>),
    Weights(Weights),
}

impl Source {
    /// What the recipe's `train.init_from` names, for rows of `width`; `None` where the recipe has none.
    ///
    /// # Errors
    /// [`Error::Weights`] when it is nothing that a ReLU dictionary of this shape can start from, or does not say which activations
    /// its weights take; those of the store.
    pub fn open(recipe: &Recipe, width: usize) -> Result<Option<Source>, Error> {
        let Some(url) = &recipe.train.init_from else { return Ok(None) };
        let fits = Fits { width: Some(width), features: Some(recipe.sae.features) };
        let opened = if is_file(url) { of_file(url, recipe.train.init_space, fits) } else { of_folder(url, fits) };
        let mut source = opened.map_err(by_key)?;
        source.threads = recipe.train.threads;
        let own = match (&source.holds, source.scale) {
            (Holds::Checkpoint(..), _) | (_, None) => InitSpace::Normalized,
            (Holds::Weights(_), Some(_)) => InitSpace::Raw,
        };
        if let Some(said) = recipe.train.init_space.filter(|said| *said != own) {
            return Err(Error::Weights(format!(
                "train.init_space = \"{}\" contradicts {}, which says by itself that its weights take {}: leave train.init_space \
                 out",
                match said {
                    InitSpace::Raw => "raw",
                    InitSpace::Normalized => "normalized",
                },
                source.name,
                source.takes()
            ).into()));
        }
        Ok(Some(source))
    }

    /// What another tool has left in a folder, or `sae export`, looked at by itself; `None` where it holds no such weights, as a run's does.
    ///
    /// # Errors
    /// [`Error::Weights`] when the weights are those of something else than a ReLU dictionary, or a file by itself, which does not say
    /// which activations it takes; those of the store.
    pub fn of_weights(url: &str) -> Result<Option<Source>, Error> {
        if is_file(url) {
            return Err(Error::Weights(
                format!(
                    "{url} is a file, which does not say which activations its weights take: name the folder that has its {CONFIG} \
                     (SAELens) or {CONFIG_OF_DICTIONARY_LEARNING} (dictionary_learning)"
                )
                .into(),
            ));
        }
        weights_of_folder(url, Fits::default())
    }

    /// `D`.
    pub fn width(&self) -> usize {
        match &self.holds {
            Holds::Checkpoint(_, found) => found.manifest.width,
            Holds::Weights(weights) => weights.width(),
        }
    }

    /// `F`.
    pub fn features(&self) -> usize {
        match &self.holds {
            Holds::Checkpoint(_, found) => found.manifest.features,
            Holds::Weights(weights) => weights.features(),
        }
    }

    /// As it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A hash that tells its weights from those of any other training, whatever they are called and wherever they lie.
    ///
    /// # Errors
    /// Those of the store.
    pub fn identity(&self) -> Result<String, Error> {
        match &self.holds {
            Holds::Checkpoint(_, found) => Ok(checkpoint::identity(found)),
            Holds::Weights(weights) => {
                let less = if self.subtracts_decoder_bias { "-less-b_dec" } else { "" };
                Ok(format!("{}{less}", weights.identity()?))
            }
        }
    }

    /// The features of the trained dictionary that these are, where not all were exported and a map beside them says which.
    ///
    /// # Errors
    /// [`Error::Weights`] when the map does not fit; those of the store.
    pub fn ids(&self) -> Result<Option<Vec<u32>>, Error> {
        match &self.holds {
            Holds::Checkpoint(..) => Ok(None),
            Holds::Weights(weights) => feature_map::read(&Store::open(&self.name)?, weights.features()),
        }
    }

    /// Which rows the weights take, in words.
    fn takes(&self) -> String {
        match self.scale {
            None => "rows times data.scale".into(),
            Some(1.0) => "rows as they are stored".into(),
            Some(scale) => format!("rows times {scale}"),
        }
    }

    /// What the run starts from, in words.
    pub fn describe(&self) -> String {
        let less = if self.subtracts_decoder_bias { ", less b_dec" } else { "" };
        format!("{}, whose weights take {}{less}", self.name, self.takes())
    }

    /// Factors on W_enc, and on W_dec and b_dec, with which the weights take rows times `scale`.
    pub(super) fn factors(&self, scale: f32) -> (f64, f64) {
        let scale = f64::from(scale);
        self.scale.map_or((1.0, 1.0), |own| (own / scale, scale / own))
    }

    pub(super) fn subtracts_decoder_bias(&self) -> bool {
        self.subtracts_decoder_bias
    }

    /// Features to read at a time.
    pub(crate) fn features_at_once(&self) -> usize {
        match &self.holds {
            Holds::Checkpoint(_, found) => checkpoint::features_at_once(found.manifest.width),
            Holds::Weights(weights) => weights.features_at_once(),
        }
    }

    /// Some features, as they are stored.
    pub(super) fn read(&self, features: Range<usize>) -> Result<Block, Error> {
        match &self.holds {
            Holds::Checkpoint(store, found) => Block::of_checkpoint(&Cpu::new(self.threads)?, store, found, features),
            Holds::Weights(weights) => weights.read(features),
        }
    }

    /// `b_dec`, as it is stored.
    pub(crate) fn decoder_bias(&self) -> Result<Vec<f32>, Error> {
        match &self.holds {
            Holds::Checkpoint(store, found) => evaluate::decoder_bias(&Cpu::new(self.threads)?, store, found),
            Holds::Weights(weights) => weights.decoder_bias(),
        }
    }

    /// Refuses values of a tensor that are not finite, or are not with this run's factors: rows of `columns` values, from row `first` on.
    pub(super) fn check_finite(&self, tensor: &str, values: &[f32], first: usize, columns: usize) -> Result<(), Error> {
        let Some(at) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
        let (row, value) = (first + at / columns, values[at]);
        Err(Error::Weights(
            format!("{}: {tensor} holds {value} at index {row}, on rows as they are multiplied here", self.name).into(),
        ))
    }
}

/// Files are told by their name: a folder may not be there yet, or lie where nothing can be listed.
fn is_file(url: &str) -> bool {
    const FILES: [&str; 6] = [SAFETENSORS, ".pt", ".pth", ".bin", ".npz", ".ckpt"];
    FILES.iter().any(|ending| url.ends_with(ending)) && !std::path::Path::new(url).is_dir()
        || std::path::Path::new(url).is_file()
}

fn of_file(url: &str, space: Option<InitSpace>, fits: Fits) -> Result<Source, Error> {
    let refuse = |what: String| Err(Error::Weights(format!("{url}{what}").into()));
    if ![SAFETENSORS, ".pt", ".pth", ".bin"].iter().any(|ending| url.ends_with(ending)) {
        return refuse(
            ": weights are read from .safetensors files and from the archives that torch.save makes of tensors (.pt): convert it, or name a \
             run, a checkpoint or a folder of SAELens or dictionary_learning"
                .into(),
        );
    }
    let (store, name) = Store::open_file(url)?;
    if ["COMMIT", "manifest.json"].iter().all(|of| store.head(of).is_ok_and(|entry| entry.is_some())) {
        return refuse(format!(" is one file of a checkpoint: name the checkpoint, {}", store.url()));
    }
    // What lies beside SAELens's name for weights says what they mean.
    let config = if name == WEIGHTS { read_config(&store)? } else { None };
    let beside = config.is_some().then(|| format!(", or name the folder {}, whose {CONFIG} says which", store.url()));
    let Some(space) = space else {
        return refuse(format!(
            " does not say which activations its weights take: set train.init_space = \"raw\" if rows as they are stored (the \
             exports of this program and of SAELens), or \"normalized\" if rows times data.scale{}",
            beside.unwrap_or_default()
        ));
    };
    let weights = Weights::open(&store, &[name], fits)?;
    let scale = (space == InitSpace::Raw || config.is_some()).then_some(1.0);
    let subtracts_decoder_bias = match config {
        Some(config) => config.subtracts_decoder_bias,
        None => weights.subtracts_decoder_bias(),
    };
    Ok(Source { name: url.to_owned(), holds: Holds::Weights(weights), scale, subtracts_decoder_bias, threads: None })
}

fn of_folder(url: &str, fits: Fits) -> Result<Source, Error> {
    if let Some(source) = weights_of_folder(url, fits)? {
        return Ok(source);
    }
    let store = Store::open(url)?;
    let (store, found) = checkpoint::named(url, Which::Last).map_err(|error| match error {
        Error::Checkpoint(message) => Error::Weights(message.said(|text| {
            format!(
                "{text}; a SAELens folder would have a {CONFIG}, one of dictionary_learning a {CONFIG_OF_DICTIONARY_LEARNING} that names its class, \
                 and a file of weights ends with .safetensors or .pt{}",
                several(&store)
            )
        })),
        other => other,
    })?;
    let manifest = &found.manifest;
    let name = store.url_of(&found.folder);
    fits.and(&format!("{name}/manifest.json"), Some(manifest.width), Some(manifest.features))?;
    let scale = Some(f64::from(manifest.scale));
    let holds = Holds::Checkpoint(store, Box::new(found));
    Ok(Source { name, holds, scale, subtracts_decoder_bias: false, threads: None })
}

/// Weights that another tool has left, or `sae export`.
fn weights_of_folder(url: &str, fits: Fits) -> Result<Option<Source>, Error> {
    let store = Store::open(url)?;
    let name = url.to_owned();
    if let Some(config) = read_config(&store)? {
        let fits = fits.and(&store.url_of(CONFIG), config.width, config.features)?;
        let files = match store.get(INDEX) {
            Ok(index) => parts(&index, &store.url_of(INDEX))?,
            Err(loader::Error::NotFound { .. }) => vec![WEIGHTS.to_owned()],
            Err(other) => return Err(other.into()),
        };
        let holds = Holds::Weights(Weights::open(&store, &files, fits)?);
        let subtracts_decoder_bias = config.subtracts_decoder_bias;
        return Ok(Some(Source { name, holds, scale: Some(1.0), subtracts_decoder_bias, threads: None }));
    }
    let Some(config) = read_config_of_dictionary_learning(&store)? else { return Ok(None) };
    let place = store.url_of(CONFIG_OF_DICTIONARY_LEARNING);
    let fits = fits.and(&place, config.width, config.features)?;
    let is_there = |file: &str| store.head(file).map(|entry| entry.is_some());
    let file = match is_there(WEIGHTS_OF_DICTIONARY_LEARNING)? {
        true => WEIGHTS_OF_DICTIONARY_LEARNING,
        false if is_there(ARCHIVE_OF_DICTIONARY_LEARNING)? => ARCHIVE_OF_DICTIONARY_LEARNING,
        false => {
            return Err(Error::Weights(
                format!(
                    "{url} holds neither {WEIGHTS_OF_DICTIONARY_LEARNING} nor {ARCHIVE_OF_DICTIONARY_LEARNING}, where the weights of \
                     {CONFIG_OF_DICTIONARY_LEARNING} would lie"
                )
                .into(),
            ));
        }
    };
    let weights = Weights::open(&store, &[file.to_owned()], fits)?;
    let subtracts_decoder_bias = weights.subtracts_decoder_bias();
    if subtracts_decoder_bias != config.subtracts_decoder_bias {
        return Err(Error::Weights(
            format!("{place} names another class of dictionaries than the tensors of {file} are of").into(),
        ));
    }
    let holds = Holds::Weights(weights);
    Ok(Some(Source { name, holds, scale: Some(1.0), subtracts_decoder_bias, threads: None }))
}

fn read_config_of_dictionary_learning(store: &Store) -> Result<Option<Config>, Error> {
    match store.get(CONFIG_OF_DICTIONARY_LEARNING) {
        Ok(json) => config::parse_dictionary_learning(&json, &store.url_of(CONFIG_OF_DICTIONARY_LEARNING)),
        Err(loader::Error::NotFound { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Where a folder has dictionaries below it, as one of the Hugging Face Hub has: their names, behind a colon.
pub(crate) fn several(store: &Store) -> String {
    /// Files that are looked at: a folder may be a whole disk or bucket.
    const MOST: usize = 10_000;
    /// Dictionaries that are named.
    const NAMED: usize = 10;
    let entries = store.list_some("", MOST).unwrap_or_default();
    let keys: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    let beside = |folder: &str, file: &str| keys.contains(format!("{folder}/{file}").as_str());
    let is_dictionary = |folder: &&str, file: &str| match file {
        WEIGHTS => beside(folder, CONFIG),
        WEIGHTS_OF_DICTIONARY_LEARNING | ARCHIVE_OF_DICTIONARY_LEARNING => {
            beside(folder, CONFIG_OF_DICTIONARY_LEARNING)
        }
        _ => false,
    };
    let files = keys.iter().filter_map(|key| key.rsplit_once('/'));
    let found: BTreeSet<&str> =
        files.filter(|(folder, file)| is_dictionary(folder, file)).map(|(folder, _)| folder).collect();
    let found: Vec<&str> = found.into_iter().collect();
    match found.len() {
        0 => String::new(),
        count => {
            let more = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            format!(
                "; it has {count} dictionaries below it, of which one is to be named: {}{more}",
                found[..count.min(NAMED)].join(", ")
            )
        }
    }
}

/// The same error, said of the recipe's key.
fn by_key(error: Error) -> Error {
    match error {
        Error::Weights(message) => Error::Weights(message.said(|text| format!("train.init_from: {text}"))),
        other => other,
    }
}

fn read_config(store: &Store) -> Result<Option<Config>, Error> {
    match store.get(CONFIG) {
        Ok(json) => config::parse(&json, &store.url_of(CONFIG)).map(Some),
        Err(loader::Error::NotFound { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// The files that the index of an export in parts names, in the order of their features.
fn parts(index: &[u8], place: &str) -> Result<Vec<String>, Error> {
    let index: serde_json::Value = serde_json::from_slice(index)
        .map_err(|error| Message::of(format!("{place} is no index of weights: {error}"), error))
        .map_err(Error::Weights)?;
    let files = index["weight_map"]["W_enc"].as_array().into_iter().flatten().map(|file| file.as_str());
    let inside = |file: &&str| !file.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    match files.map(|file| file.filter(inside).map(str::to_owned)).collect::<Option<Vec<_>>>() {
        Some(files) if !files.is_empty() => Ok(files),
        _ => Err(Error::Weights(
            format!("{place} names no files of W_enc in the folders below it, as an export in parts does").into(),
        )),
    }
}
