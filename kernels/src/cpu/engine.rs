//! What the operations of a processor run on.

use std::sync::{Mutex, PoisonError};

use rayon::ThreadPool;

use super::screen::Screen;
use super::simd::{Isa, LANES};
use crate::Error;
use crate::mesh::Axes;

/// What the operations run on.
pub(crate) struct Engine {
    pub pool: ThreadPool,
    pub isa: Isa,
    pub screen: Screen,
    pub axes: Axes,
    /// The first thing that went wrong between ranks: told by the next function that can fail.
    pub failure: Mutex<Option<Error>>,
}

impl Engine {
    /// Workers, hence scratch areas.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Remembers that ranks could not exchange something; the first time counts, what follows it is its consequence.
    pub fn note<T>(&self, result: Result<T, Error>) -> Option<T> {
        result
            .map_err(|error| {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
            })
            .ok()
    }

    /// # Errors
    /// What was remembered: nothing can be trusted after it.
    pub fn check(&self) -> Result<(), Error> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone().map_or(Ok(()), Err)
    }
}

/// Rows are padded with zeros to whole blocks, so that no kernel has a tail.
pub fn stride(width: usize) -> usize {
    width.next_multiple_of(LANES)
}
