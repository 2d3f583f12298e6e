//! What can go wrong, by what the caller can do about it. The caller's own settings that would help are in [`Error::help`]: only the caller
//! knows what they are called.

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A setting of the caller's that would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// [`crate::Tokenizer::open`] with a file of its own.
    Tokenizer,
    /// [`crate::Bos`]: never.
    NoBos,
    /// [`crate::TextOptions::column`].
    Column,
    /// The same, left out.
    NoColumn,
    /// [`crate::TextOptions::split`].
    Split,
    /// The same, left out.
    NoSplit,
    /// [`crate::TextOptions::skip_unreadable`].
    SkipUnreadable,
    /// Shorter contexts.
    Context,
    /// Fewer layers, or other ones.
    Layers,
    /// [`crate::Options::dtype`]: one with larger numbers.
    Dtype,
}

/// Everything that can go wrong in this crate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A wrong argument, or several that do not fit.
    #[error("{problem}")]
    Arguments {
        /// What is wrong with it and what to do.
        problem: String,
        /// What the caller can set.
        help: Vec<Help>,
    },
    /// A model, a tokenizer or a text that cannot be used.
    #[error("{location}: {problem}")]
    Data {
        /// The file, and what in it.
        location: String,
        /// What is wrong with it and what to do.
        problem: String,
        /// What the caller can set.
        help: Vec<Help>,
    },
    /// The caller asked to stop: what was being made is left, and the next start makes it.
    #[error("stopped as asked")]
    Interrupted,
    /// Stores and shards.
    #[error(transparent)]
    Loader(#[from] loader::Error),
}

impl Error {
    /// What the caller can set against it.
    pub fn help(&self) -> &[Help] {
        match self {
            Error::Arguments { help, .. } | Error::Data { help, .. } => help,
            Error::Interrupted | Error::Loader(_) => &[],
        }
    }

    pub(crate) fn arguments(problem: impl Into<String>) -> Self {
        Error::Arguments { problem: problem.into(), help: Vec::new() }
    }

    pub(crate) fn data(location: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Data { location: location.into(), problem: problem.into(), help: Vec::new() }
    }

    /// The same, with something more that the caller can set.
    pub(crate) fn with(mut self, with: Help) -> Self {
        if let Error::Arguments { help, .. } | Error::Data { help, .. } = &mut self {
            help.push(with);
        }
        self
    }
}
