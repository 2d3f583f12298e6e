//! From text to tokens, as the model's Python tokenizer does it: tokenizer.json by the library that Python's fast tokenizers are, or the
//! vocabulary of a GGUF file, from which that library's own description is put together.

mod special;
mod vocabulary;

use std::str::FromStr;

use loader::Store;
use xxhash_rust::xxh3::xxh3_64;

use self::special::{Special, configured};
use crate::error::{Error, Help, Result};
use crate::model::Place;
use crate::model::weights::small;

/// Whether contexts begin with the token for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bos {
    /// Where the Python tokenizer puts one.
    #[default]
    Auto,
    /// Also where it puts none.
    Always,
    /// Nothing is put around a context, at its end neither.
    Never,
}

impl Bos {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Bos::Auto => "auto",
            Bos::Always => "always",
            Bos::Never => "never",
        }
    }
}

impl FromStr for Bos {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = [Bos::Auto, Bos::Always, Bos::Never];
        known.into_iter().find(|bos| bos.name() == text).ok_or_else(|| "auto, always or never is needed".into())
    }
}

/// A tokenizer, and what stands around a context.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    url: String,
    hash: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {:?} … {:?})", self.url, self.prefix, self.suffix)
    }
}

impl Tokenizer {
    /// The tokenizer of the model at a path or URL, or that of the file `own`, a tokenizer.json.
    ///
    /// # Errors
    /// Where there is none that is known, and with [`Bos::Always`] where it has no token for that.
    pub fn open(model: &str, own: Option<&str>, bos: Bos) -> Result<Tokenizer> {
        Tokenizer::read(&Place::find(model)?, own, bos)
    }

    pub(crate) fn read(model: &Place, own: Option<&str>, bos: Bos) -> Result<Tokenizer> {
        let (json, url, special) = match (own, model) {
            (Some(own), _) => {
                let (store, key) = Store::open_file(own)?;
                let json = small(&store, &key)?.ok_or_else(|| Error::data(own, "not found"))?;
                let special = configured(&store, &json)?;
                (json, store.url_of(&key), special)
            }
            (None, Place::Folder(store)) => {
                let url = store.url_of("tokenizer.json");
                let json = small(store, "tokenizer.json")?.ok_or_else(|| {
                    let problem = "not found: save the tokenizer in its fast form with save_pretrained of transformers";
                    Error::data(&url, problem).with(Help::Tokenizer)
                })?;
                let special = configured(store, &json)?;
                (json, url, special)
            }
            (None, Place::Gguf(gguf)) => {
                let (json, special) = vocabulary::of_gguf(gguf)?;
                (json, gguf.url(), special)
            }
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|e| Error::data(&url, format!("is no tokenizer that can be read: {e}")).with(Help::Tokenizer))?;
        // A file may ask for cut and filled texts, which sentence encoders' do; contexts are cut here.
        inner.with_truncation(None).map_err(|e| Error::data(&url, e.to_string()))?;
        inner.with_padding(None);
        let hash = format!("{:016x}", xxh3_64(&json));
        let mut tokenizer = Tokenizer { inner, prefix: Vec::new(), suffix: Vec::new(), url, hash };
        (tokenizer.prefix, tokenizer.suffix) = tokenizer.frame(&special, bos)?;
        Ok(tokenizer)
    }

    /// What stands before and behind a context.
    fn frame(&self, special: &Special, bos: Bos) -> Result<(Vec<u32>, Vec<u32>)> {
        if bos == Bos::Never {
            return Ok(Default::default());
        }
        let (mut prefix, suffix) = match special.adds {
            Some((begins, ends)) => {
                let one = |is_there: bool, token: Option<u32>| token.filter(|_| is_there).into_iter().collect();
                (one(begins, special.bos), one(ends, special.eos))
            }
            None => {
                let (bare, whole) = self.probe()?;
                let at = (0..=whole.len().saturating_sub(bare.len())).find(|&at| whole[at..].starts_with(&bare));
                let at = at.ok_or_else(|| Error::data(&self.url, "changes a text when it puts tokens around it"))?;
                (whole[..at].to_vec(), whole[at + bare.len()..].to_vec())
            }
        };
        if bos == Bos::Always && prefix.is_empty() {
            let problem = "says of no token that it begins a context (bos_token)";
            prefix.push(special.bos.ok_or_else(|| Error::data(&self.url, problem).with(Help::NoBos))?);
        }
        Ok((prefix, suffix))
    }

    /// The tokens of a text, which has some, by themselves and with what is put around them.
    fn probe(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        /// Tokens that are tried where the vocabulary has no letters.
        const TRIED: u32 = 1000;
        let added = self.inner.get_added_tokens_decoder();
        let ordinary = (0..TRIED).filter(|token| !added.contains_key(token));
        let others = ordinary.filter_map(|token| self.inner.id_to_token(token));
        for text in std::iter::once("a".to_owned()).chain(others) {
            let Ok(bare) = self.ids(&text, false) else { continue };
            if !bare.is_empty() {
                return Ok((bare, self.ids(&text, true)?));
            }
        }
        Err(Error::data(&self.url, "has no token for any text").with(Help::Tokenizer))
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special);
        Ok(encoding.map_err(|e| Error::data(&self.url, format!("a text cannot be tokenized: {e}")))?.get_ids().to_vec())
    }

    /// The tokens of a text, with nothing around it. Special tokens that are written out in it are those tokens, as in Python.
    ///
    /// # Errors
    /// Where the vocabulary cannot say a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    /// What begins a context.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// What ends a context.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// The file that it was read from.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A hash of the whole vocabulary and its rules, 16 hex digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}
