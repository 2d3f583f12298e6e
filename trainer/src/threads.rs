//! On which threads training works.
//!
//! A step of a small dictionary takes less time than it takes to wake a thread, and on a busy machine a thread that was woken waits for others to
//! have had their turn. So the loop of steps runs on one of the threads that the operations run on: there an operation begins at once.

use std::io;

use kernels::Device;

use crate::Error;

/// Does `work` on the threads of the device, or where its operations run on none of this process on `threads` of its own: else what is done
/// beside its operations would spread over all cores, whatever the recipe says.
///
/// # Errors
/// [`kernels::Error::Threads`].
pub(crate) fn on_threads<R: Send>(
    device: &impl Device,
    threads: Option<usize>,
    work: impl FnOnce() -> R + Send,
) -> Result<R, Error> {
    if let Some(pool) = device.pool() {
        return Ok(pool.install(work));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
    let pool = pool.map_err(|error| kernels::Error::threads(io::Error::other(error)))?;
    Ok(pool.install(work))
}
