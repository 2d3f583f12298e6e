//! A process among those of its job: which mesh they form, how it joins them, and what time a scheduler should give them.

use std::time::Duration;

use kernels::mesh::{Axes, Mesh};
use kernels::ranks::tcp::Limits;
use loader::{Dataset, OpenOptions, Store};
use trainer::meeting::{Member, meet};
use trainer::recipe::Recipe;
use trainer::{checkpoint, communication, synthesis};

use crate::args::{LEAST_SAVE_S, STORAGE, SaveTime, Taking};
use crate::failure::Failure;
use crate::remedy;
use crate::sweep::worker::TOGETHER;
use crate::world::World;

/// Ranks that train wait so long for each other to come, through queues of a cluster.
pub const MEETING: Duration = Duration::from_secs(600);
/// And in an operation, while one of them makes shards or saves. One that died is noticed at once, one that was stopped within
/// [`Limits::silence`].
const OPERATION: Duration = Duration::from_secs(3600);

/// Joins the ranks of the job in the run's folder `store`, where they wait up to `meeting` for each other; alone there is nobody to meet.
///
/// # Errors
/// When the mesh has another number of ranks, and those of [`meet`].
pub fn join(
    store: &Store,
    world: &World,
    mesh: Option<Mesh>,
    recipe: &Recipe,
    meeting: Duration,
) -> Result<Axes, Failure> {
    let mesh = mesh_of(mesh, world.ranks, recipe)?;
    if world.ranks == 1 {
        return Ok(Axes::alone());
    }
    let member = Member {
        rank: world.rank,
        ranks: world.ranks,
        attempt: world.attempt.clone(),
        local: world.local_ranks == world.ranks,
        mesh,
    };
    let limits = Limits { meeting, operation: OPERATION, ..Limits::default() };
    let ranks = meet(store, recipe, &member, limits)?;
    if world.rank == 0 {
        tracing::info!(ranks = world.ranks, %mesh, "ranks have met");
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

/// Refuses a mesh of slots where there is one; `more` says how there would be several.
///
/// # Errors
/// [`trainer::Exit::Arguments`].
pub fn check_mesh_of_slots(taking: Taking, slots: usize, more: &str) -> Result<(), Failure> {
    if taking.mesh_from.is_some() && slots == 1 {
        return Err(Failure::arguments(format!(
            "--mesh-from: a mesh is made of all slots, and there is one: say how many with {more}"
        )));
    }
    Ok(())
}

/// Seconds that a run should have to save when storing a checkpoint takes `stored_s`: one may be on its way, and the one behind it
/// begins when that is stored.
pub fn save_s(stored_s: f64) -> u32 {
    LEAST_SAVE_S.max((3.0 * stored_s).ceil() as u32)
}

/// The time that a scheduler gives a run to save: what was asked for, else what the size of its checkpoints says, as `sae plan` does.
///
/// # Errors
/// When `data.synth` and what lies at `data.train` contradict each other.
pub fn save_time(asked: SaveTime, recipe: &Recipe) -> Result<u32, Failure> {
    if let Some(seconds) = asked.save_s {
        return Ok(seconds);
    }
    let width = match synthesis::to_make(recipe)?.first() {
        Some(making) => making.spec.width,
        None => {
            let options = OpenOptions { column: recipe.data.column.clone(), ..OpenOptions::default() };
            match Dataset::open(&recipe.data.train, &options) {
                Ok(data) => data.width(),
                // The job may see what this machine does not.
                Err(error) => {
                    tracing::warn!(
                        "{}; so the time that a checkpoint takes is not known, and the run gets {LEAST_SAVE_S} s to save: \
                         sae plan says what --save-s should be",
                        remedy::words(&error.into())
                    );
                    return Ok(LEAST_SAVE_S);
                }
            }
        }
    };
    Ok(save_s(checkpoint::bytes(width, recipe.sae.features) as f64 / (STORAGE * 1e9)))
}

/// The same of a sweep, each of whose slots saves all that train together.
///
/// # Errors
/// Those of [`save_time`].
pub fn save_time_of_sweep(asked: SaveTime, recipes: &[Recipe], slots: u32) -> Result<u32, Failure> {
    // Its checkpoints are the largest.
    let largest = recipes.iter().max_by_key(|recipe| recipe.sae.features);
    let of_one = save_time(asked, largest.expect("a sweep without configurations is refused"))?;
    let at_once = recipes.len().min(slots as usize * TOGETHER);
    Ok(if asked.save_s.is_some() { of_one } else { of_one.saturating_mul(at_once as u32) })
}
