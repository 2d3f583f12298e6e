//! A process among those of its job: which mesh they form, and how it joins them.

use std::time::Duration;

use kernels::mesh::{Axes, Mesh};
use kernels::ranks::tcp::Limits;
use loader::Store;
use trainer::communication;
use trainer::meeting::{Guest, meet};
use trainer::recipe::Recipe;

use crate::failure::Failure;
use crate::world::World;

/// Ranks that train wait so long for each other to come, through queues of a cluster.
pub const MEETING: Duration = Duration::from_secs(600);
/// And in an operation, while one of them makes shards or saves. One that died is noticed at once, one that was stopped within
/// [`Limits::silence`].
const OPERATION: Duration = Duration::from_secs(3600);

/// Joins the ranks of the job, who wait up to `meeting` for each other; alone there is nobody to meet.
///
/// # Errors
/// When the mesh has another number of ranks, and those of [`meet`].
pub fn join(world: &World, mesh: Option<Mesh>, recipe: &Recipe, meeting: Duration) -> Result<Axes, Failure> {
    let mesh = mesh_of(mesh, world.ranks, recipe)?;
    if world.ranks == 1 {
        return Ok(Axes::alone());
    }
    let guest = Guest {
        rank: world.rank,
        ranks: world.ranks,
        attempt: world.attempt.clone(),
        local: world.local_ranks == world.ranks,
        mesh,
    };
    let limits = Limits { meeting, operation: OPERATION, ..Limits::default() };
    let ranks = meet(&Store::open(&recipe.run.dir)?, recipe, &guest, limits)?;
    if world.rank == 0 {
        tracing::info!("{} ranks have met as a mesh of {mesh}", world.ranks);
    }
    Ok(Axes::of(&ranks, mesh))
}

/// The mesh that so many ranks form: the one that was asked for, or the best.
///
/// # Errors
/// When it is for another number of ranks, or gives a rank nothing to do.
pub fn mesh_of(wanted: Option<Mesh>, ranks: usize, recipe: &Recipe) -> Result<Mesh, Failure> {
    match wanted {
        Some(mesh) if mesh.ranks() == ranks => Ok(communication::check(recipe, mesh).map(|()| mesh)?),
        Some(mesh) => Err(Failure::arguments(format!(
            "--mesh {mesh} is for {} ranks, and this job has {ranks}: start as many, or leave --mesh out",
            mesh.ranks()
        ))),
        None => communication::choose(recipe, ranks).ok_or_else(|| {
            Failure::arguments(format!(
                "{ranks} ranks are more than sae.features = {} and train.batch = {} can be shared among: start fewer",
                recipe.sae.features, recipe.train.batch
            ))
        }),
    }
}
