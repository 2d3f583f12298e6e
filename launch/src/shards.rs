//! Synthetic shards that a recipe asks for: what is looked at before they are made, and their making, which can be stopped.

use std::sync::atomic::{AtomicBool, Ordering};

use kernels::Device;
use loader::Store;
use trainer::recipe::Recipe;
use trainer::synthesis::{self, Making};
use trainer::{Exit, run_dir, train};

use crate::disk;
use crate::failure::Failure;
use crate::progress::Bar;

/// Looks at whatever can be seen before synthetic shards are made, so that none are made for a run that cannot begin.
pub fn check(
    (recipe, store): (&Recipe, &Store),
    resume: bool,
    device: &impl Device,
    host_ranks: usize,
    making: &[Making<'_>],
) -> Result<(), Failure> {
    run_dir::check(store, recipe, resume)?;
    if let Some(spec) = &recipe.data.synth {
        train::check_before_synthesis(device, recipe, spec, host_ranks)?;
    }
    disk::check_room(making)
}

/// Makes them. Where `stop` is set meanwhile the process ends, with [`Exit::Interrupted`].
///
/// # Errors
/// Those of the store.
pub fn make(recipe: &Recipe, making: &[Making<'_>], stop: &AtomicBool) -> Result<(), Failure> {
    let mut bar: Option<(&str, Bar)> = None;
    synthesis::make(recipe, making, &mut |key, rows, total| {
        if stop.load(Ordering::Relaxed) {
            // The writer knows no stopping. Whole shards that it leaves behind are removed by the next start, which makes them again. It
            // counts as interrupted although there is no checkpoint: the same command with --resume-or-start goes on.
            if let Err(error) = synthesis::forget_unfinished(making) {
                tracing::warn!("{error}");
            }
            tracing::warn!(
                "stopped while making synthetic shards, before the run began: start again in the same way, or with --resume-or-start"
            );
            std::process::exit(Exit::Interrupted.code().into());
        }
        if bar.as_ref().is_none_or(|(of, _)| *of != key) {
            let what = if key == "data.eval" { "making held-out shards" } else { "making shards" };
            bar = Some((key, Bar::new(what, 0, total)));
        }
        if let Some((_, bar)) = &mut bar {
            bar.set(rows);
            if rows == total {
                bar.finish();
            }
        }
    })?;
    Ok(())
}
