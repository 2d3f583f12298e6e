//! What went wrong on a card, for the next function that can fail.

use std::sync::{Mutex, PoisonError};

use crate::Error;

/// The first thing that went wrong, here or on another rank; what follows it is its consequence.
#[derive(Debug, Default)]
pub struct Failure(Mutex<Option<Error>>);

impl Failure {
    /// Remembers `error` unless there was one before.
    pub fn note(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// # Errors
    /// What was remembered: nothing on the card can be trusted after it.
    pub fn check(&self) -> Result<(), Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}
