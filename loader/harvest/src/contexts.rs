//! Contexts: what a model reads at once, made from documents, numbered over the whole text.
//!
//! Packed, which is the default, the tokens of all documents follow each other and are cut into contexts of one length; rows of a document
//! attend to what stands before it in the context, as they would in any program that is given the same tokens. By document a context holds
//! tokens of one document, and a long document has several. Nothing is thrown away: the last context is as long as what is left.
//!
//! What the tokenizer puts around a text stands around each context. Where that is a token in front (BOS) and the model attends one way, a
//! document that begins inside of a packed context has it too, and begins the next context where nothing of it would fit behind it. No two
//! stand beside each other there: what a text brings of its own at its beginning, or where a context is cut, is taken away, and behind one at
//! a text's end none is put.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Help, Result};
use crate::text::{Documents, Position};
use crate::tokens::Tokenizer;

/// A context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) tokens: Vec<u32>,
    /// The document of each token.
    pub(crate) documents: Vec<u64>,
}

/// Attention sinks: the rows of tokens that later ones look at whatever they say, which are the first of a context and, in a model that
/// attends one way, BOS wherever it stands. In many models their norms are a hundred times those of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sinks {
    /// BOS, where it stands before documents inside of contexts too.
    pub(crate) bos: Option<u32>,
    /// Whether their rows are kept.
    pub(crate) kept: bool,
}

impl Sinks {
    /// Whether a token at a position of a context is one.
    pub(crate) fn is(self, at: usize, token: u32) -> bool {
        at == 0 || self.bos == Some(token)
    }

    /// Whether the row of a token at a position of a context is kept.
    pub(crate) fn keeps(self, at: usize, token: u32) -> bool {
        self.kept || !self.is(at, token)
    }

    /// Rows that are kept of a context.
    pub(crate) fn rows(self, tokens: &[u32]) -> usize {
        tokens.iter().enumerate().filter(|&(at, &token)| self.keeps(at, token)).count()
    }
}

/// How contexts are made.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// Tokens, all that is put around them included.
    pub(crate) length: usize,
    pub(crate) by_document: bool,
    /// Which rows are kept.
    pub(crate) sinks: Sinks,
    /// Tokens that the model knows.
    pub(crate) vocabulary: usize,
    /// Contexts of a part.
    pub(crate) part: u64,
    /// Rows after which nothing is made.
    pub(crate) most_rows: Option<u64>,
}

/// Refuses contexts without room for text between what stands around it.
pub(crate) fn check_length(length: usize, tokenizer: &Tokenizer) -> Result<()> {
    let around = tokenizer.prefix().len() + tokenizer.suffix().len();
    let least = (around + 1).max(2);
    if length >= least {
        return Ok(());
    }
    let around = if around == 0 { String::new() } else { format!(", of which {around} stand around the text") };
    let problem = format!("contexts have at least {least} tokens{around}: {length} are too few");
    Err(Error::arguments(problem).with(Help::Context))
}

/// Where a part begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) part: u64,
    /// The document that goes on or begins there.
    pub(crate) document: Position,
    /// Its tokens that were used before.
    pub(crate) used: u64,
    /// Contexts before.
    pub(crate) contexts: u64,
    /// Rows before.
    pub(crate) rows: u64,
}

/// A part: contexts and the rows that are kept of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    pub(crate) number: u64,
    /// Number of its first context.
    pub(crate) first: u64,
    pub(crate) contexts: Vec<Context>,
    /// Rows that are kept: fewer than the contexts have where the last was cut.
    pub(crate) rows: u64,
    /// Whether nothing comes behind it.
    pub(crate) is_last: bool,
}

/// Makes contexts.
pub(crate) struct Contexts<'a> {
    documents: Documents,
    tokenizer: &'a Tokenizer,
    form: Form,
    at: Start,
    open: Option<Open>,
}

/// A document that is being used up.
struct Open {
    at: Position,
    tokens: Vec<u32>,
    used: usize,
}

impl Open {
    fn is_used_up(&self) -> bool {
        self.used == self.tokens.len()
    }

    /// Passes over tokens that a context begins with anyway.
    fn pass(&mut self, mark: Option<&u32>) {
        while self.tokens.get(self.used).is_some_and(|token| Some(token) == mark) {
            self.used += 1;
        }
    }
}

impl<'a> Contexts<'a> {
    /// # Errors
    /// Where the model does not know what stands around a context.
    pub(crate) fn new(documents: Documents, tokenizer: &'a Tokenizer, form: Form) -> Result<Contexts<'a>> {
        let contexts = Contexts { documents, tokenizer, form, at: Start::default(), open: None };
        contexts.check(tokenizer.prefix())?;
        contexts.check(tokenizer.suffix())?;
        Ok(contexts)
    }

    /// Where the next part begins.
    pub(crate) fn at(&self) -> Start {
        self.at
    }

    /// Goes to the beginning of a part.
    pub(crate) fn seek(&mut self, start: Start) -> Result<()> {
        (self.at, self.open) = (start, None);
        self.documents.seek(start.document);
        if start.used > 0 && self.fill()? {
            let open =
                self.open.as_mut().filter(|open| open.at == start.document && open.tokens.len() as u64 > start.used);
            let open =
                open.ok_or_else(|| Error::arguments("the text is another one than that of the parts there are"))?;
            open.used = start.used as usize;
        }
        Ok(())
    }

    /// The next part; nothing behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<Part>> {
        let Start { part, contexts, rows, .. } = self.at;
        if self.form.most_rows.is_some_and(|most| rows >= most) {
            return Ok(None);
        }
        let mut made = Part { number: part, first: contexts, ..Part::default() };
        while (made.contexts.len() as u64) < self.form.part && !made.is_last {
            let Some(context) = self.context()? else { break };
            made.rows += self.rows_of(&context);
            made.contexts.push(context);
            if let Some(left) = self.form.most_rows.map(|most| most - rows).filter(|left| made.rows >= *left) {
                (made.rows, made.is_last) = (left, true);
            }
        }
        if made.contexts.is_empty() {
            self.at.document = self.documents.at();
            return Ok(None);
        }
        // What lies behind the rows that are asked for is not looked at: it need not be readable.
        made.is_last = made.is_last || !self.fill()?;
        let (document, used) = match &self.open {
            Some(open) => (open.at, open.used as u64),
            None => (self.documents.at(), 0),
        };
        self.at = Start {
            part: part + 1,
            document,
            used,
            contexts: contexts + made.contexts.len() as u64,
            rows: rows + made.rows,
        };
        Ok(Some(made))
    }

    /// Rows that a context gives.
    fn rows_of(&self, context: &Context) -> u64 {
        self.form.sinks.rows(&context.tokens) as u64
    }

    /// The next context that gives rows.
    fn context(&mut self) -> Result<Option<Context>> {
        loop {
            let (prefix, suffix) = (self.tokenizer.prefix(), self.tokenizer.suffix());
            let end = self.form.length - suffix.len();
            let mut context = Context::default();
            while context.tokens.len() < end && self.fill()? {
                let Some(open) = &mut self.open else { break };
                let document = open.at.document;
                if context.tokens.is_empty() {
                    open.pass(prefix.last());
                    if open.is_used_up() {
                        continue;
                    }
                    context.extend(prefix, document);
                } else if self.form.by_document {
                    break;
                } else if open.used == 0
                    && let Some(bos) = self.form.sinks.bos.filter(|bos| context.tokens.last() != Some(bos))
                {
                    // With no room for text behind it the document begins the next context.
                    if context.tokens.len() + 1 >= end {
                        break;
                    }
                    context.extend(&[bos], document);
                }
                let take = (end - context.tokens.len()).min(open.tokens.len() - open.used);
                context.extend(&open.tokens[open.used..open.used + take], document);
                open.used += take;
            }
            let Some(&last) = context.documents.last() else { return Ok(None) };
            context.extend(suffix, last);
            if self.rows_of(&context) > 0 {
                return Ok(Some(context));
            }
        }
    }

    /// Makes sure that the open document has tokens left; false where there are no more documents.
    fn fill(&mut self) -> Result<bool> {
        while self.open.as_ref().is_none_or(Open::is_used_up) {
            self.open = None;
            let Some(document) = self.documents.read()? else { return Ok(false) };
            let mut tokens = self.tokenizer.encode(&document.text)?;
            // A text that begins with the token that stands in front of it anyway, also several times.
            if let Some(mark) = self.tokenizer.prefix().last() {
                let own = tokens.iter().take_while(|&token| token == mark).count();
                tokens.drain(..own);
            }
            self.check(&tokens)?;
            self.open = Some(Open { at: document.at, tokens, used: 0 });
        }
        Ok(true)
    }
}

impl Contexts<'_> {
    /// That the model knows these tokens.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        let Some(token) = tokens.iter().find(|&&token| token as usize >= self.form.vocabulary) else { return Ok(()) };
        let problem = format!("gives token {token}, and the model has {}: it is another model's", self.form.vocabulary);
        Err(Error::data(self.tokenizer.url(), problem).with(Help::Tokenizer))
    }
}

impl Context {
    fn extend(&mut self, tokens: &[u32], document: u64) {
        self.tokens.extend_from_slice(tokens);
        self.documents.resize(self.tokens.len(), document);
    }
}
