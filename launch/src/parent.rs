//! What binds a rank to the launcher that started it: it must not outlive it, not even when that is killed.
//!
//! The rank itself asks the system for that: between fork and exec it would take `unsafe`. A signal that a launcher passes on counts once
//! however often it comes, for a scheduler may send it to every process of a job.

use crate::failure::Failure;

/// The variable by which `sae launch local` tells a rank its own process id.
pub const LAUNCHER: &str = "SAE_LAUNCHER";

/// Whether `sae launch local` started this process. If so, the system kills it when the launcher ends: the other ranks are
/// ended then too, and their common folder must be free for the next start.
///
/// # Errors
/// [`trainer::Exit::Arguments`] when the launcher that the environment names is not the parent: it ended before this call, or the variable is
/// left over.
pub fn bind() -> Result<bool, Failure> {
    let Ok(launcher) = std::env::var(LAUNCHER) else { return Ok(false) };
    // First the signal, then the look: a parent that ends in between is seen by one of them.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(|error| {
        Failure::arguments(format!("{LAUNCHER}: the death of the launcher cannot be watched: {error}"))
    })?;
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().to_string());
    if parent.as_ref() != Some(&launcher) {
        return Err(Failure::arguments(format!(
            "{LAUNCHER}={launcher}: that process did not start this one, or is gone: unset {LAUNCHER}"
        )));
    }
    Ok(true)
}
