//! Runs on a mesh whose ranks are threads of this process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kernels::cpu::{Cpu, Options};
use kernels::mesh::{Axes, Mesh};
use kernels::ranks::threads;
use kernels::{AdamMode, Device, Shape};
use loader::Store;
use trainer::checkpoint::{self, Found, Holds, Snapshot};
use trainer::recipe::Recipe;
use trainer::summary::Summary;
use trainer::train::{Event, Member, Start, train_together};

use crate::fixture::text;

/// Does `work` on every rank of a mesh, each with a processor of one thread, and returns what they made of it, in their order.
///
/// # Panics
/// When `work` panics.
pub fn on_mesh<T: Send>(mesh: Mesh, work: impl Fn(&Cpu) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let ranks = threads(mesh.ranks()).into_iter().map(|ranks| {
            scope.spawn(move || {
                let options = Options { threads: Some(1), ..Options::default() };
                work(&Cpu::among(options, Axes::of(&ranks, mesh)).expect("threads"))
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank that does not panic")).collect()
    })
}

/// What each rank has come to, in their order.
pub type OfRanks<T> = Vec<T>;

/// Trains on a mesh. With `stop_at`, the last rank is asked to stop when that many steps are done: all must hear of it.
pub fn train_on(
    mesh: Mesh,
    recipe: &Recipe,
    resume: bool,
    stop_at: Option<u64>,
) -> OfRanks<Result<Summary, trainer::Error>> {
    let ranks = train_together_on(mesh, &[(recipe, resume)], stop_at);
    ranks.into_iter().map(|mut of_rank| of_rank.remove(0)).collect()
}

/// The same of recipes on one stream, each resumed or not; the last rank is asked to stop when one of them has made step `stop_at`.
///
/// # Panics
/// When a folder cannot be opened.
pub fn train_together_on(
    mesh: Mesh,
    recipes: &[(&Recipe, bool)],
    stop_at: Option<u64>,
) -> OfRanks<Vec<Result<Summary, trainer::Error>>> {
    on_mesh(mesh, |device| {
        let stop = &AtomicBool::new(false);
        let last = device.axes().place.rank + 1 == mesh.ranks();
        let stores: Vec<Store> =
            recipes.iter().map(|(recipe, _)| Store::open(&recipe.run.dir).expect("a folder")).collect();
        let members = recipes.iter().zip(&stores).map(|(&(recipe, resume), store)| {
            let watch = Box::new(move |event: Event<'_>| {
                if matches!(event, Event::Step { step, .. } if last && Some(step) == stop_at) {
                    stop.store(true, Ordering::Relaxed);
                }
            });
            let (host_ranks, words) = (mesh.ranks(), ToString::to_string);
            Member { recipe, start: Start { store, resume, commit: "unknown", stop, host_ranks, words, watch } }
        });
        train_together(device, members.collect())
    })
}

/// The hash of every tile of the newest checkpoint of a run, and of what belongs to no feature: they do not say how many ranks
/// wrote it.
///
/// # Panics
/// When the run has no checkpoint.
pub fn tiles(run: &Path) -> BTreeMap<(String, usize), String> {
    let store = Store::open(&text(run)).expect("a run");
    let found = checkpoint::newest(&store).expect("readable").expect("a checkpoint");
    let hashes = found.manifest.files.iter().flat_map(|file| {
        let first = file.first_feature / checkpoint::TILE;
        let holds = format!("{:?}", file.holds);
        file.tile_hashes.iter().enumerate().map(move |(tile, hash)| ((holds.clone(), first + tile), hash.to_string()))
    });
    hashes.collect()
}

/// Whether each rank of a mesh can load a checkpoint of a run.
///
/// # Panics
/// When there is no such checkpoint.
pub fn load(mesh: Mesh, run: &Path, found: &Found) -> Vec<Result<(), trainer::Error>> {
    let store = Store::open(&text(run)).expect("a run");
    on_mesh(mesh, |device| {
        let mut sae = device.training(shape_of(found, device), AdamMode::Dense).expect("memory");
        checkpoint::load(&store, found, device.axes(), &mut sae).map(drop)
    })
}

/// What a dictionary of a checkpoint needs on a rank.
pub fn shape_of(found: &Found, device: &Cpu) -> Shape {
    let (width, features) = (found.manifest.width, device.axes().place.shard(found.manifest.features).len());
    Shape { width, features, batch: 1, dense_bytes: 0 }
}

/// Loads the newest checkpoint of a run on a mesh and saves it again from there.
///
/// # Panics
/// When it cannot be loaded or saved.
pub fn save_again(mesh: Mesh, run: &Path) {
    let store = Store::open(&text(run)).expect("a run");
    let found = checkpoint::newest(&store).expect("readable").expect("a checkpoint");
    let manifest = &found.manifest;
    assert!(manifest.files.iter().any(|file| file.holds == Holds::Optimizer));
    on_mesh(mesh, |device| {
        let axes = device.axes();
        let mut sae = device.training(shape_of(&found, device), AdamMode::Dense).expect("memory");
        let state = checkpoint::load(&store, &found, axes, &mut sae).expect("loads");
        let of = Snapshot {
            dictionary: &sae,
            state: &state,
            cursor: &manifest.cursor,
            recipe: &manifest.recipe,
            commit: "unknown",
        };
        checkpoint::save(&store, axes, &of).expect("saved");
    });
}
