//! A dictionary that was trained, wherever it lies: a run, a checkpoint, an export, or a folder of SAELens or dictionary_learning. What
//! evaluates and encodes takes any of them.

use std::ops::Range;

use kernels::cpu::Cpu;
use kernels::{Device, Shape};
use loader::Store;

use crate::checkpoint::{self, Found, Which};
use crate::init::{Block, Source, block_of, from_source};
use crate::recipe::{Recipe, Train};
use crate::{Error, evaluate, init};

/// A dictionary that was trained. None of its weights are read before [`Trained::load`].
#[derive(Debug)]
pub enum Trained {
    /// Of a run of this program: its weights take rows times the scale in its manifest.
    Checkpoint(Store, Box<Found>),
    /// Of another tool, or exported: its weights take rows as they are.
    Weights(Box<Source>),
}

impl Trained {
    /// What `url` names, `which` checkpoint where that is a run. Files are verified as they are read.
    ///
    /// # Errors
    /// [`Error::Weights`] and [`Error::Checkpoint`] when it is no dictionary, or of another kind than ReLU; [`Error::Recipe`] when there
    /// is no such checkpoint; those of the store.
    pub fn open(url: &str, which: Which) -> Result<Trained, Error> {
        Trained::open_by(url, which, checkpoint::named)
    }

    /// As [`Trained::open`], with every file of a checkpoint verified, and of a run the newest that is whole.
    ///
    /// # Errors
    /// Those of [`Trained::open`].
    pub fn open_verified(url: &str, which: Which) -> Result<Trained, Error> {
        Trained::open_by(url, which, checkpoint::open_which)
    }

    fn open_by(
        url: &str,
        which: Which,
        open: impl Fn(&str, Which) -> Result<(Store, Found), Error>,
    ) -> Result<Trained, Error> {
        if let Some(source) = Source::of_weights(url)? {
            return match which {
                Which::Last => Ok(Trained::Weights(Box::new(source))),
                _ => Err(Error::Recipe(format!(
                    "{url} is an export, which has no checkpoints: name the run to choose one"
                ))),
            };
        }
        let (store, found) = open(url, which).map_err(|error| match error {
            Error::Checkpoint(message) => match Store::open(url).map(|store| init::several(&store)) {
                Ok(several) => Error::Checkpoint(message.said(|text| format!("{text}{several}"))),
                Err(_) => Error::Checkpoint(message),
            },
            other => other,
        })?;
        Ok(Trained::Checkpoint(store, Box::new(found)))
    }

    /// Its checkpoint, where it is that of a run.
    pub fn checkpoint(&self) -> Option<(&Store, &Found)> {
        match self {
            Trained::Checkpoint(store, found) => Some((store, found)),
            Trained::Weights(_) => None,
        }
    }

    /// The recipe that it was trained by, where that is known.
    pub fn recipe(&self) -> Option<&Recipe> {
        self.checkpoint().map(|(_, found)| &found.manifest.recipe)
    }

    /// `[train]` of that recipe, or its defaults.
    pub fn train(&self) -> Train {
        self.recipe().map(|recipe| recipe.train.clone()).unwrap_or_default()
    }

    /// Where it lies, for people.
    pub fn name(&self) -> String {
        match self {
            Trained::Checkpoint(store, found) => store.url_of(&found.folder),
            Trained::Weights(source) => source.name().to_owned(),
        }
    }

    /// `D`.
    pub fn width(&self) -> usize {
        match self {
            Trained::Checkpoint(_, found) => found.manifest.width,
            Trained::Weights(source) => source.width(),
        }
    }

    /// `F`.
    pub fn features(&self) -> usize {
        match self {
            Trained::Checkpoint(_, found) => found.manifest.features,
            Trained::Weights(source) => source.features(),
        }
    }

    /// The factor on rows that its weights take.
    pub fn scale(&self) -> f32 {
        self.checkpoint().map_or(1.0, |(_, found)| found.manifest.scale)
    }

    /// Steps done, of a run.
    pub fn step(&self) -> Option<u64> {
        self.checkpoint().map(|(_, found)| found.manifest.step)
    }

    /// A hash that tells it from any other dictionary, wherever it lies.
    ///
    /// # Errors
    /// Those of the store.
    pub fn identity(&self) -> Result<String, Error> {
        match self {
            Trained::Checkpoint(_, found) => Ok(checkpoint::identity(found)),
            Trained::Weights(source) => source.identity(),
        }
    }

    /// The features of the trained dictionary that these are, where not all were exported and a map beside them says which.
    ///
    /// # Errors
    /// [`Error::Weights`] when the map is damaged; those of the store.
    pub fn ids(&self) -> Result<Option<Vec<u32>>, Error> {
        match self {
            Trained::Checkpoint(..) => Ok(None),
            Trained::Weights(source) => source.ids(),
        }
    }

    /// Features whose weights are read at a time, where not all fit into memory.
    pub(crate) fn features_at_once(&self) -> usize {
        match self {
            Trained::Checkpoint(_, found) => checkpoint::features_at_once(found.manifest.width),
            Trained::Weights(source) => source.features_at_once(),
        }
    }

    /// Weights of some features, which take rows times [`Trained::scale`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] and [`Error::Weights`] when a file is damaged.
    pub(crate) fn block(&self, device: &Cpu, features: Range<usize>) -> Result<Block, Error> {
        match self {
            Trained::Checkpoint(store, found) => Block::of_checkpoint(device, store, found, features),
            Trained::Weights(source) => block_of(source, features),
        }
    }

    /// `b_dec`, on the same scale.
    ///
    /// # Errors
    /// Those of [`Trained::block`].
    pub(crate) fn decoder_bias(&self, device: &Cpu) -> Result<Vec<f32>, Error> {
        match self {
            Trained::Checkpoint(store, found) => evaluate::decoder_bias(device, store, found),
            Trained::Weights(source) => source.decoder_bias(),
        }
    }

    /// Some of its features on a device, to be evaluated in batches of at most `batch` rows.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] and [`Error::Weights`] when a file is damaged; [`kernels::Error::OutOfMemory`].
    pub fn load<D: Device>(&self, device: &D, features: Range<usize>, batch: usize) -> Result<D::Dictionary, Error> {
        match self {
            Trained::Checkpoint(store, found) => evaluate::load_features(device, store, found, features, batch),
            Trained::Weights(source) => {
                let shape = Shape { width: source.width(), features: features.len(), batch, dense_bytes: 0 };
                let mut sae = device.dictionary(shape)?;
                from_source(&mut sae, features, source, 1.0)?;
                Ok(sae)
            }
        }
    }
}
