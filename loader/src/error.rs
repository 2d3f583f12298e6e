//! What can go wrong, by what the caller can do about it.
//!
//! A text states what was met, whole, what it came from included. So the chain of sources is for programs that want to know more of a cause, and
//! is not printed behind a text. What a caller's own setting would help with is in [`Error::help`]: only the caller knows what it is called.

use std::sync::Arc;

use crate::store::redact::Redacted;
use crate::store::variable::Unexpanded;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What an error came from: an error of the system, of a store's client ([`Redacted`]), of a reader of Parquet or JSON. Shared, because
/// all that wait for a unit of reading get the error by which it failed.
#[derive(Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Cause {
    fn from(error: E) -> Self {
        Cause(Arc::new(error))
    }
}

/// The error itself is what [`std::error::Error::source`] gives.
impl std::ops::Deref for Cause {
    type Target = dyn std::error::Error + Send + Sync;
    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.0, f)
    }
}

/// A setting of the caller's that would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Help {
    /// [`crate::OpenOptions::column`], with one of several columns that the text names.
    Column,
    /// [`crate::SkipList`], with this row group, `shard.parquet#3`: what is left of the data is whole.
    Skip(String),
    /// [`crate::StreamOptions::prefetch_bytes`] of at least so much, or an order with smaller windows.
    Prefetch(u64),
    /// [`crate::StreamOptions::threads`], with fewer of them.
    FewerThreads,
    /// Other credentials in the environment, with which the work can go on.
    Credentials,
}

/// Everything that can go wrong in this crate. Variants say who can act; texts say what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A wrong argument: an option, an impossible combination.
    #[error("{0}")]
    Arguments(String),
    /// A path or URL that names nothing which could be opened.
    #[error("{location}: {problem}")]
    Address {
        /// The path or URL, without credentials.
        location: String,
        /// What is wrong with it.
        problem: String,
        /// What found that.
        source: Option<Cause>,
    },
    /// A path with a variable in it.
    #[error(transparent)]
    Unexpanded(#[from] Unexpanded),
    /// More must be held in memory than may be.
    #[error("{problem}")]
    Memory {
        /// What is needed, and for what.
        problem: String,
        /// Bytes that are needed.
        needed: u64,
    },
    /// The cursor belongs to other data or another order: `difference` names what differs.
    #[error("cannot resume here: {difference}")]
    Cursor {
        /// What differs, with both values.
        difference: String,
    },
    /// The store refused the credentials, or there are none.
    #[error("{location}: access denied: {problem}")]
    Denied {
        /// The URL, without credentials.
        location: String,
        /// What the store said and what to do.
        problem: String,
        /// What it said it with.
        source: Option<Cause>,
    },
    /// Nothing is stored there.
    #[error("{location}: not found{hint}")]
    NotFound {
        /// The URL, without credentials.
        location: String,
        /// What to do (empty, or starts with a separator).
        hint: String,
        /// What the store or the system said.
        source: Option<Cause>,
    },
    /// The data cannot be used: damaged, of another shape, or not activations.
    #[error("{location}: {problem}")]
    Data {
        /// File, and row group where known.
        location: String,
        /// What is wrong and what to do.
        problem: String,
        /// What found that, unless it was this crate.
        source: Option<Cause>,
        /// What the caller can set.
        help: Option<Help>,
    },
    /// An object is no longer what the manifest describes.
    #[error("{location}: changed since the run read it: {problem}")]
    Changed {
        /// The file.
        location: String,
        /// What differs.
        problem: String,
        /// What found that, unless it was this crate.
        source: Option<Cause>,
        /// What the caller can set.
        help: Option<Help>,
    },
    /// The store did not answer within the retry budget: trying later may help.
    #[error("{location}: storage unreachable: {problem}")]
    Unreachable {
        /// The URL, without credentials.
        location: String,
        /// What the last attempt said.
        problem: String,
        /// What it said it with.
        source: Option<Cause>,
    },
    /// Writing failed: disk full, permission, read-only bucket.
    #[error("{location}: cannot write: {problem}")]
    CannotWrite {
        /// The URL, without credentials.
        location: String,
        /// What the store said.
        problem: String,
        /// What it said it with.
        source: Option<Cause>,
    },
    /// The system gave too few threads: other processes may hold them for now.
    #[error("no threads to read with: {0}")]
    Threads(#[source] Cause),
}

/// What is wrong with data, for an error that has yet to be told where they lie.
#[derive(Debug)]
pub(crate) struct Flaw {
    text: String,
    source: Option<Cause>,
    help: Option<Help>,
}

impl Flaw {
    /// What `source` found, in words.
    pub(crate) fn of(text: String, source: impl Into<Cause>) -> Self {
        Flaw { text, source: Some(source.into()), help: None }
    }

    /// The same, with what the caller can set.
    pub(crate) fn with(self, help: Help) -> Self {
        Flaw { help: Some(help), ..self }
    }

    /// The same in other words, made from its own.
    pub(crate) fn said(self, say: impl FnOnce(&str) -> String) -> Self {
        Flaw { text: say(&self.text), ..self }
    }
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Flaw {
    fn from(text: String) -> Self {
        Flaw { text, source: None, help: None }
    }
}

impl From<&str> for Flaw {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Error {
    /// What the caller can set against it.
    pub fn help(&self) -> Option<Help> {
        match self {
            Error::Data { help, .. } | Error::Changed { help, .. } => help.clone(),
            Error::Memory { needed, .. } => Some(Help::Prefetch(*needed)),
            Error::Threads(_) => Some(Help::FewerThreads),
            Error::Denied { source: Some(source), .. } | Error::CannotWrite { source: Some(source), .. } => {
                let of_store = source.downcast_ref::<Redacted>();
                of_store.is_some_and(Redacted::is_expired).then_some(Help::Credentials)
            }
            _ => None,
        }
    }

    pub(crate) fn address(location: impl Into<String>, problem: impl Into<String>, source: impl Into<Cause>) -> Self {
        Error::Address { location: location.into(), problem: problem.into(), source: Some(source.into()) }
    }

    pub(crate) fn data(location: impl Into<String>, problem: impl Into<Flaw>) -> Self {
        let Flaw { text, source, help } = problem.into();
        Error::Data { location: location.into(), problem: text, source, help }
    }

    pub(crate) fn changed(location: impl Into<String>, problem: impl Into<Flaw>) -> Self {
        let Flaw { text, source, help } = problem.into();
        Error::Changed { location: location.into(), problem: text, source, help }
    }

    pub(crate) fn cannot_write(location: impl Into<String>, source: impl Into<Cause>) -> Self {
        let source = source.into();
        Error::CannotWrite { location: location.into(), problem: source.to_string(), source: Some(source) }
    }

    /// Threads could not be had.
    pub(crate) fn threads(source: impl Into<Cause>) -> Self {
        Error::Threads(source.into())
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as StdError;
    use std::io;

    use parquet::errors::ParquetError;

    use super::*;
    use crate::{Dataset, Manifest, OpenOptions, Store};

    /// The source of an error, which must be of this type, and in the error's text once.
    #[track_caller]
    fn source<E: StdError + 'static>(error: &Error) -> &E {
        let source = StdError::source(error).and_then(|source| source.downcast_ref::<E>());
        let source = source.unwrap_or_else(|| panic!("no such source: {error:?}"));
        assert!(error.to_string().matches(&source.to_string()).count() <= 1, "{error}");
        source
    }

    fn opened(path: &std::path::Path) -> Error {
        Dataset::open(&[path.display().to_string()], &OpenOptions::default()).unwrap_err()
    }

    #[test]
    fn errors_keep_their_source() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let absent = store.get("absent").unwrap_err();
        assert_eq!(source::<io::Error>(&absent).kind(), io::ErrorKind::NotFound);
        std::fs::write(path("file"), b"").unwrap();
        let unwritten = store.put("file/below", &b"x"[..]).unwrap_err();
        assert!(matches!(unwritten, Error::CannotWrite { .. }), "{unwritten:?}");
        assert!(source::<io::Error>(&unwritten).raw_os_error().is_some());
        let remote = Store::open("memory://errors").unwrap().get("absent").unwrap_err();
        assert!(matches!(source::<Redacted>(&remote).get(), object_store::Error::NotFound { .. }));
        let json = Manifest::from_json(b"{", "x").unwrap_err();
        assert!(source::<serde_json::Error>(&json).is_eof());
        let pattern = opened(&path("[")).to_string();
        assert!(pattern.contains("is not a pattern either"), "{pattern}");
        assert!(!source::<glob::PatternError>(&opened(&path("["))).msg.is_empty());
    }

    #[test]
    fn what_readers_of_parquet_say_is_kept() {
        let error = Error::data("x", Flaw::of("damaged: it ends".into(), ParquetError::EOF("it ends".into())));
        assert!(matches!(source(&error), ParquetError::EOF(_)));
        let later =
            Flaw::of("it ends".into(), ParquetError::EOF("it ends".into())).said(|text| format!("column x: {text}"));
        assert_eq!(Error::data("y", later).to_string(), "y: column x: it ends");
    }

    #[test]
    fn an_error_says_which_setting_would_help() {
        let column = Error::data("x", Flaw::from("several columns").with(Help::Column));
        assert_eq!(column.help(), Some(Help::Column));
        assert_eq!(Error::data("x", "damaged").help(), None);
        assert_eq!(Error::Memory { problem: String::new(), needed: 7 }.help(), Some(Help::Prefetch(7)));
        let told = |text: &str| object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        let expired = crate::store::failure::write_error("s3://x", told("<Code>ExpiredToken</Code>"));
        assert!(matches!(expired, Error::CannotWrite { .. }), "{expired:?}");
        assert_eq!(expired.help(), Some(Help::Credentials));
        assert_eq!(crate::store::failure::read_error("s3://x", told("status code: 403")).help(), None);
    }
}
