//! What is said of an error whose kind says where it was met, with what it came from.

use std::error::Error;
use std::fmt;

/// A text, and the error that it was made from, if it was made from one.
#[derive(Debug)]
pub struct Message {
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Message {
    /// A text that says what `source` says too.
    pub fn of(text: String, source: impl Error + Send + Sync + 'static) -> Self {
        Message { text, source: Some(Box::new(source)) }
    }

    /// The same in other words, made from its own.
    #[must_use]
    pub fn said(self, say: impl FnOnce(&str) -> String) -> Self {
        Message { text: say(&self.text), ..self }
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Message { text, source: None }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Message {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}
