//! What a start and a dry run look at before rows are made.

use kernels::Device;
use loader::Store;
use trainer::recipe::Recipe;
use trainer::synthesis::Making;
use trainer::{run_dir, train};

use crate::disk;
use crate::failure::Failure;

/// Looks at whatever can be seen before synthetic shards are made, so that none are made for a run that cannot begin.
pub(super) fn before_making(
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
