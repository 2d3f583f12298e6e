//! Models: from weights to residual streams.
//!
//! The stream of layer L is `hidden_states[L]` of transformers: what L blocks have made of a context, before any norm behind all blocks.
//! Layer 0 is the embeddings. Only for L = number of blocks the two differ: transformers gives the stream behind the last norm, this crate
//! the one before it, as at every other layer. Of an encoder (BERT), whose norms belong to its blocks, both are the same.
//!
//! A batch is some contexts one after the other, of any lengths, without padding: GEMMs take all rows together, attention each context
//! by itself. A batch is computed by one thread in a fixed order, so that its bits are the same however many threads there are; threads
//! take batches.

mod attention;
pub(crate) mod config;
mod decoder;
pub(crate) mod dequantize;
mod encoder;
pub(crate) mod gguf;
mod math;
pub(crate) mod scratch;
mod turns;
pub(crate) mod weights;

use loader::Store;

use self::config::{Class, Shape};
use self::gguf::Gguf;
use self::scratch::{Scratch, sized};
use self::weights::{ROTARY_DIVISORS, Weights, small};
use crate::error::{Error, Help, Result};

/// Where a model lies.
pub(crate) enum Place {
    /// A folder as Hugging Face lays it out.
    Folder(Store),
    /// A GGUF file.
    Gguf(Gguf),
}

impl Place {
    /// Looks whether `url` is a GGUF file or a folder.
    pub(crate) fn find(url: &str) -> Result<Place> {
        if url.to_lowercase().ends_with(".gguf") {
            let (store, key) = Store::open_file(url)?;
            return Gguf::open(store, key).map(Place::Gguf);
        }
        let store = Store::open(url)?;
        if store.head("config.json")?.is_none() {
            return Err(Error::arguments(format!(
                "{url} is no model: name a folder with config.json and weights, as transformers' save_pretrained or `hf download` make \
                 it, or a file that ends in .gguf"
            )));
        }
        Ok(Place::Folder(store))
    }
}

/// A model up to the last block that is needed.
pub struct Model {
    shape: Shape,
    /// Layers whose streams are given, ascending.
    layers: Vec<usize>,
    embedding: Vec<f32>,
    blocks: Blocks,
    hash: String,
}

enum Blocks {
    Decoder(Vec<decoder::Block>),
    Encoder(encoder::Places, Vec<encoder::Block>),
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, {} of {} blocks)", self.shape.architecture, self.last(), self.shape.blocks)
    }
}

impl Model {
    /// Reads the model at a path or URL, up to the last of `layers`.
    ///
    /// # Errors
    /// Where it is none, is of a class that is not computed here, has fewer layers, or its files are damaged; and those of the store.
    pub fn open(url: &str, layers: &[usize]) -> Result<Model> {
        Model::read(Place::find(url)?, layers)
    }

    pub(crate) fn read(place: Place, layers: &[usize]) -> Result<Model> {
        let (shape, weights, segments, url) = match place {
            Place::Folder(store) => {
                let (json, url) = (small(&store, "config.json")?.unwrap_or_default(), store.url_of("config.json"));
                let shape = Shape::of_config(&json, &url)?;
                let config: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
                let segments = config.get("type_vocab_size").and_then(serde_json::Value::as_u64).unwrap_or(2).max(1);
                (shape, Weights::of_folder(store)?, segments as usize, url)
            }
            Place::Gguf(gguf) => {
                let (mut shape, url) = (Shape::of_gguf(&gguf)?, gguf.url());
                let weights = Weights::Gguf(gguf);
                // Llama 3.1 and later.
                if let Some(divisors) = weights.optional(ROTARY_DIVISORS, &[shape.head_width / 2])? {
                    shape.divide_frequencies(&divisors, &url)?;
                }
                (shape, weights, 0, url)
            }
        };
        let mut layers = layers.to_vec();
        layers.sort_unstable();
        layers.dedup();
        let Some(&last) = layers.last() else {
            return Err(Error::arguments("no layer is asked for").with(Help::Layers));
        };
        if last > shape.blocks {
            let blocks = shape.blocks;
            let problem = format!(
                "{url} has {blocks} blocks, so layers 0 (the embeddings) to {blocks}: there is no layer {last}"
            );
            return Err(Error::arguments(problem).with(Help::Layers));
        }
        Model::load(shape, weights, layers, segments)
    }

    fn load(shape: Shape, weights: Weights, layers: Vec<usize>, segments: usize) -> Result<Model> {
        let last = layers.last().copied().unwrap_or(0);
        let table = [shape.vocabulary, shape.width];
        let (embedding, blocks) = match shape.class {
            Class::Decoder => {
                let embedding = weights.read("embed_tokens.weight", &table)?;
                let blocks = (0..last).map(|at| decoder::Block::read(&weights, &shape, at)).collect::<Result<_>>()?;
                (embedding, Blocks::Decoder(blocks))
            }
            Class::Encoder => {
                let embedding = weights.read("embeddings.word_embeddings.weight", &table)?;
                let places = encoder::Places::read(&weights, &shape, segments)?;
                let blocks = (0..last).map(|at| encoder::Block::read(&weights, &shape, at)).collect::<Result<_>>()?;
                (embedding, Blocks::Encoder(places, blocks))
            }
        };
        Ok(Model { hash: weights.hash()?, shape, layers, embedding, blocks })
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.shape.width
    }

    /// Blocks of the whole model.
    pub fn blocks(&self) -> usize {
        self.shape.blocks
    }

    /// Tokens that there are.
    pub fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// What its own tools call its architecture.
    pub fn architecture(&self) -> &str {
        &self.shape.architecture
    }

    /// Layers whose streams [`Model::streams`] gives, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// A hash of the weights up to the last layer, 32 hex digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether a row sees those behind it.
    pub fn is_encoder(&self) -> bool {
        self.shape.class == Class::Encoder
    }

    /// The hook by which TransformerLens knows a layer's stream.
    pub fn hook(&self, layer: usize) -> String {
        match (layer, self.shape.class) {
            (0, Class::Decoder) => "blocks.0.hook_resid_pre".into(),
            (0, Class::Encoder) => "hook_full_embed".into(),
            (layer, Class::Decoder) => format!("blocks.{}.hook_resid_post", layer - 1),
            // Behind the norm, which is in the block.
            (layer, Class::Encoder) => format!("blocks.{}.hook_normalized_resid_post", layer - 1),
        }
    }

    /// Operations of a token up to the last layer: two for each weight.
    pub fn flops(&self) -> f64 {
        let Shape { width, hidden, heads, kv_heads, head_width, .. } = self.shape;
        let attention = width * (2 * heads + 2 * kv_heads) * head_width;
        let mlp = if self.is_encoder() { 2 } else { 3 } * width * hidden;
        2.0 * (self.last().max(1) * (attention + mlp)) as f64
    }

    fn last(&self) -> usize {
        self.layers.last().copied().unwrap_or(0)
    }

    /// Whether contexts of so many tokens can be computed as transformers would.
    ///
    /// # Errors
    /// Beyond the learned positions, and beyond a sliding window.
    pub fn check_context(&self, tokens: usize) -> Result<()> {
        let Some(most) = self.shape.most_tokens.filter(|&most| tokens > most) else {
            if let Some(trained) = self.shape.trained_tokens.filter(|&trained| tokens > trained) {
                tracing::warn!("contexts of {tokens} tokens are longer than the {trained} that the model was made for");
            }
            return Ok(());
        };
        let why = if self.is_encoder() { "has learned positions for" } else { "has a sliding window of" };
        let problem = format!("the model {why} {most} tokens, and contexts of {tokens} are asked for");
        Err(Error::arguments(problem).with(Help::Context))
    }

    /// Computes the streams of some contexts that lie one after the other in `tokens`. `each` gets, for every layer in turn, its index among
    /// [`Model::layers`] and the stream, [N, D].
    ///
    /// # Panics
    /// When a token is not in the vocabulary, or the lengths are not those of the tokens: what makes contexts has checked both.
    pub(crate) fn streams(
        &self,
        tokens: &[u32],
        lengths: &[usize],
        scratch: &mut Scratch,
        each: &mut dyn FnMut(usize, &[f32]),
    ) {
        assert_eq!(tokens.len(), lengths.iter().sum::<usize>(), "contexts and their tokens");
        let width = self.shape.width;
        let mut x = std::mem::take(&mut scratch.x);
        let rows = sized(&mut x, tokens.len() * width);
        for (row, &token) in rows.chunks_exact_mut(width).zip(tokens) {
            let from = token as usize * width;
            row.copy_from_slice(&self.embedding[from..from + width]);
        }
        scratch.turns.reach(lengths.iter().copied().max().unwrap_or(0), &self.shape.frequencies);
        if let Blocks::Encoder(places, _) = &self.blocks {
            places.apply(&self.shape, rows, lengths);
        }
        for layer in 0..=self.last() {
            match (&self.blocks, layer.checked_sub(1)) {
                (_, None) => {}
                (Blocks::Decoder(blocks), Some(block)) => blocks[block].forward(&self.shape, rows, lengths, scratch),
                (Blocks::Encoder(_, blocks), Some(block)) => blocks[block].forward(&self.shape, rows, lengths, scratch),
            }
            if let Ok(index) = self.layers.binary_search(&layer) {
                each(index, rows);
            }
        }
        scratch.x = x;
    }
}
