//! What can go wrong, by what the caller can do about it.

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in this crate. Variants say who can act; texts say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A wrong argument: a URL, an option, an impossible combination.
    #[error("{0}")]
    Arguments(String),
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
    },
    /// Nothing is stored there.
    #[error("{location}: not found{hint}")]
    NotFound {
        /// The URL, without credentials.
        location: String,
        /// What to do (empty, or starts with a separator).
        hint: String,
    },
    /// The data cannot be used: damaged, of another shape, or not activations.
    #[error("{location}: {problem}")]
    Data {
        /// File, and row group where known.
        location: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An object is no longer what the manifest describes.
    #[error("{location}: changed since the run read it: {problem}")]
    Changed {
        /// The file.
        location: String,
        /// What differs.
        problem: String,
    },
    /// The store did not answer within the retry budget: trying later may help.
    #[error("{location}: storage unreachable: {problem}")]
    Unreachable {
        /// The URL, without credentials.
        location: String,
        /// What the last attempt said.
        problem: String,
    },
    /// Writing failed: disk full, permission, read-only bucket.
    #[error("{location}: cannot write: {problem}")]
    CannotWrite {
        /// The URL, without credentials.
        location: String,
        /// What the store said.
        problem: String,
    },
    /// The system gave too few threads: other processes may hold them for now.
    #[error("no threads to read with: {0}: lower data.threads, or let this user have more of them")]
    Threads(String),
}

impl Error {
    /// The process exit code: 64 arguments, 65 data, 69 storage unreachable, 71 no threads, 73 cannot write.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Arguments(_) | Error::Cursor { .. } | Error::Denied { .. } => 64,
            Error::NotFound { .. } | Error::Data { .. } | Error::Changed { .. } => 65,
            Error::Unreachable { .. } => 69,
            Error::Threads(_) => 71,
            Error::CannotWrite { .. } => 73,
        }
    }

    pub(crate) fn data(location: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Data { location: location.into(), problem: problem.into() }
    }
}
