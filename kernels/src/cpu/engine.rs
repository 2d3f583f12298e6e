//! What the operations of a processor run on.

use rayon::ThreadPool;

use super::screen::ScreenDtype;
use super::simd::{Isa, LANES};
use crate::Error;
use crate::first_error::FirstError;
use crate::mesh::Axes;

/// What the operations run on.
pub(crate) struct Engine {
    pub pool: ThreadPool,
    pub isa: Isa,
    pub screen: ScreenDtype,
    pub axes: Axes,
    /// Between ranks: told by the next function that can fail.
    pub failure: FirstError,
}

impl Engine {
    /// Workers, hence scratch areas.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Remembers that ranks could not exchange something; the first time counts, what follows it is its consequence.
    pub fn note<T>(&self, result: Result<T, Error>) -> Option<T> {
        self.failure.keep(result)
    }

    /// # Errors
    /// What was remembered: nothing can be trusted after it.
    pub fn check(&self) -> Result<(), Error> {
        self.failure.check()
    }
}

/// Rows are padded with zeros to whole blocks, so that no kernel has a tail.
pub fn stride(width: usize) -> usize {
    width.next_multiple_of(LANES)
}
