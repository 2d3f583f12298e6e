//! What went wrong first, for the next function that can fail: operations return nothing, so that the step stays free of error paths.

use std::sync::{Mutex, PoisonError};

use crate::Error;

/// The first thing that went wrong, here or on another rank; what follows it is its consequence.
#[derive(Debug, Default)]
pub(crate) struct FirstError(Mutex<Option<Error>>);

impl FirstError {
    /// Remembers `error` unless there was one before.
    pub fn note(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The value, or nothing, when the error is remembered.
    pub fn keep<T>(&self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.note(error)).ok()
    }

    /// # Errors
    /// What was remembered: nothing on the device can be trusted after it.
    pub fn check(&self) -> Result<(), Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}
