//! `sae sweep`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kernels::Error;
use kernels::cuda::gpu::{Gpu, Options};
use trainer::Exit;
use trainer::recipe::Recipe;
use trainer::synthesis;

use crate::args::{Sweep, SweepArgs, SweepCommand, SweepStatus, WorldArgs};
use crate::device::{self, DeviceChoice, Local};
use crate::failure::Failure;
use crate::sweep::claim::{Owner, Watch};
use crate::sweep::folder::{Configuration, Folder, State, state_of, varying};
use crate::sweep::id::Identities;
use crate::sweep::named::Named;
use crate::sweep::plan::{self, Where};
use crate::sweep::status::Report;
use crate::sweep::worker::{self, Work, Worked, label};
use crate::world::{self, Launcher, Variables, World};
use crate::{disk, job, parent, shards, signals, table};

/// The claim on the making of synthetic shards.
const DATA: &str = "data";

/// Trains a sweep, plans it, or looks at one.
pub fn run(args: &Sweep) -> Result<(), Failure> {
    match &args.command {
        Some(SweepCommand::Status(args)) => status(args),
        None => train(&args.work),
    }
}

fn status(args: &SweepStatus) -> Result<(), Failure> {
    let report = Report::of(&Folder::open(&args.dir)?)?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|error| trainer::Error::Internal(error.into()))?;
        table::say(json);
        return Ok(());
    }
    report.show();
    table::say(report.next());
    Ok(())
}

fn train(args: &SweepArgs) -> Result<(), Failure> {
    let path = args.sweep.as_deref().unwrap_or_default();
    // Before anything is made.
    let sweep = Named::read(path, args.dir.as_deref(), &args.set)?;
    let work = work(args)?;
    if args.dry_run {
        return dry_run(&sweep, args, &work);
    }
    let stop = signals::stop_on_signals(parent::bind()?)?;
    let owner = Owner::new(Duration::from_secs_f64(args.taking.heartbeat));
    make_data(&sweep, &owner, &stop)?;
    let (folder, configurations) = sweep.submit(&mut Identities::default())?;
    let dir = folder.store.url();
    if args.retry {
        retry(&folder, &configurations)?;
    }
    tracing::info!(
        configurations = configurations.len(),
        slots = work.slots,
        dir,
        "sweep: {} configurations",
        configurations.len()
    );
    let worked = worker::work(&folder, &configurations, &owner, work, &stop)?;
    if worked.is_stopped {
        return Err(Failure::interrupted(format!(
            "stopped after saving what was being trained: the same command goes on, and sae sweep status {} shows where it stands",
            table::quoted(dir)
        )));
    }
    let report = Report::of(&folder)?;
    report.show();
    table::say(report.next());
    end(args, &worked, &configurations)
}

/// How the process ends when nothing is left to begin.
fn end(args: &SweepArgs, worked: &Worked, configurations: &[Configuration]) -> Result<(), Failure> {
    let exits: Vec<Exit> = worked.failed.values().map(|(_, exit)| *exit).collect();
    let again = exits.iter().find(|exit| exit.restart_helps());
    let diverged = exits.iter().find(|exit| **exit == Exit::Divergence);
    let code = match (again, args.worker) {
        (Some(again), _) => *again,
        // What another start would not change stands in the sweep's folder, and is no matter of this worker.
        (None, true) => return Ok(()),
        (None, false) => match diverged.or(exits.first()) {
            Some(exit) => *exit,
            None => return Ok(()),
        },
    };
    let count = |state: State| worked.failed.values().filter(|(of, _)| *of == state).count();
    Err(Failure::of_rank(
        format!(
            "of {} configurations {} failed and {} diverged, for the causes above: all others are done; --retry trains them again",
            configurations.len(),
            count(State::Failed),
            count(State::Diverged)
        ),
        code.code(),
    ))
}

/// How much is trained at the same time, and where.
fn work(args: &SweepArgs) -> Result<Work, Failure> {
    let environment = world::environment();
    let (index, started) = among(&environment)?;
    let world = of_launcher(&environment);
    let beside = world.as_ref().map_or(Local::ALONE, World::local);
    let seen = match args.device {
        DeviceChoice::Cpu | DeviceChoice::Cuda(Some(_)) => 0,
        DeviceChoice::Auto | DeviceChoice::Cuda(None) => gpus(),
    };
    let own = own_gpus(seen, world.as_ref(), &environment);
    let slots = args.slots.map_or(own.len().max(1), |slots| slots as usize);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mesh_from = args.taking.mesh_from;
    job::check_mesh_of_slots(args.taking, slots, "--slots")?;
    if let (Some(_), DeviceChoice::Cuda(Some(gpu))) = (mesh_from, args.device) {
        return Err(Failure::arguments(format!(
            "--mesh-from: ranks of a mesh need a GPU each, and --device cuda:{gpu} is one: write --device cuda"
        )));
    }
    if mesh_from.is_some() && own.len() < seen {
        return Err(Failure::arguments(format!(
            "--mesh-from: a mesh takes the first GPUs of a machine, and {} processes share those of this one: start one on each machine",
            beside.ranks
        )));
    }
    Ok(Work {
        slots,
        first: own.start,
        of_machine: slots.saturating_mul(beside.ranks),
        // A plan may be of GPUs that are elsewhere.
        device: if args.dry_run { args.device } else { device_of_all(args.device, slots, own, beside)? },
        mesh_from,
        threads: (cores / slots).max(1),
        workers: args.workers.map_or(started, |workers| workers as usize),
        index,
        waits: !args.worker,
    })
}

/// This process among those of a launcher. Its ranks are workers like any others, which never meet; Kubernetes counts its pods as ranks too.
fn of_launcher(environment: &Variables) -> Option<World> {
    let flags = WorldArgs { attempt: Some("sweep".to_owned()), ..WorldArgs::default() };
    World::new(&flags, environment).ok().filter(|world| world.launcher != Launcher::Kubernetes)
}

/// Which of the processes that were started together this one is, and how many they are as far as the environment says it: each task of an
/// array, and each pod, may start several.
fn among(environment: &Variables) -> Result<(usize, usize), Failure> {
    let many = world::of_many(environment)?;
    let (rank, ranks) = of_launcher(environment).map_or((0, 1), |world| (world.rank, world.ranks));
    let (index, count) = many.map_or((0, 1), |many| (many.index, many.count.unwrap_or(1)));
    Ok((index.saturating_mul(ranks).saturating_add(rank), count.saturating_mul(ranks)))
}

/// GPUs that this process can see.
fn gpus() -> usize {
    match Gpu::open(usize::MAX, Options::from_environment()) {
        Err(Error::NoSuchGpu { count, .. }) => count,
        _ => 0,
    }
}

/// Of the GPUs that this process can `see`, those that it may use: processes that a launcher has started on one machine share them out.
fn own_gpus(seen: usize, world: Option<&World>, environment: &Variables) -> Range<usize> {
    let Some(world) = world.filter(|world| world.local_ranks > 1) else { return 0..seen };
    // What a launcher lets each of them see is its own: one, or as many as SLURM was asked for by task.
    if seen == 1 || (world.launcher == Launcher::Slurm && environment.contains_key("SLURM_GPUS_PER_TASK")) {
        return 0..seen;
    }
    let each = seen / world.local_ranks;
    world.local_rank * each..(world.local_rank + 1) * each
}

/// Where all slots compute, before anything is claimed: a slot without its GPU would fail all configurations that it takes, or train them in
/// other numbers than the slots beside it.
fn device_of_all(
    choice: DeviceChoice,
    slots: usize,
    own: Range<usize>,
    beside: Local,
) -> Result<DeviceChoice, Failure> {
    match choice {
        DeviceChoice::Cpu => return Ok(choice),
        DeviceChoice::Cuda(Some(gpu)) => {
            Gpu::open(gpu, Options::from_environment())?;
            return Ok(choice);
        }
        DeviceChoice::Auto if device::gpu_if_usable(own.start).is_none() => return Ok(DeviceChoice::Cpu),
        DeviceChoice::Auto | DeviceChoice::Cuda(None) => drop(device::visible_gpu(own.start)?),
    }
    if own.is_empty() {
        return Err(Failure::arguments(format!(
            "{} processes are on this machine, which has fewer GPUs that this one can see: start at most as many as GPUs, or compute \
             with --device cpu",
            beside.ranks
        )));
    }
    if slots > own.len() {
        return Err(Failure::arguments(format!(
            "--slots {slots}: each slot trains on a GPU of its own, and this process has {}: leave --slots out, or compute with --device cpu",
            own.len()
        )));
    }
    for gpu in own.take(slots) {
        device::visible_gpu(gpu)?;
    }
    Ok(DeviceChoice::Cuda(None))
}

fn dry_run(sweep: &Named, args: &SweepArgs, work: &Work) -> Result<(), Failure> {
    let named = |recipe: &Recipe| Configuration { id: String::new(), recipe: recipe.clone() };
    let configurations: Vec<Configuration> = sweep.recipes.iter().map(named).collect();
    let keys = varying(&configurations);
    let done = sweep.done(&mut Identities::default())?;
    let left = configurations.iter().zip(&done).filter(|(_, is_done)| !**is_done);
    let labelled: Vec<_> = left.map(|(one, _)| (label(one, &keys).trim().to_owned(), one.recipe.clone())).collect();
    let is_done = done.len() - labelled.len();
    if is_done > 0 {
        table::say(format!("{is_done} of {} configurations are done, and left out here", done.len()));
    }
    if labelled.is_empty() {
        return Ok(());
    }
    let Work { slots, mesh_from, .. } = *work;
    plan::run(&labelled, Where { device: args.device, gpu: args.gpu, slots, mesh_from, price: args.price })
}

/// Makes the synthetic shards that recipes ask for, once, however many have begun the same sweep.
fn make_data(sweep: &Named, owner: &Owner, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
    let mut watch = Watch::default();
    let mut made: Vec<&Recipe> = Vec::new();
    let store = &sweep.folder.store;
    for recipe in &sweep.recipes {
        if made.iter().any(|other| other.data == recipe.data) {
            continue;
        }
        made.push(recipe);
        while recipe.data.synth.is_some() && !synthesis::to_make(recipe)?.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return Err(Failure::interrupted(
                    "stopped before synthetic shards were made: the same command goes on",
                ));
            }
            if !owner.take(store, DATA, &mut watch)? {
                std::thread::sleep(owner.every.min(Duration::from_secs(1)));
                continue;
            }
            owner.hold(store, DATA, || -> Result<(), Failure> {
                // Another may have made them since.
                let making = synthesis::to_make(recipe)?;
                disk::check_room(&making)?;
                shards::make(recipe, &making, stop)
            })??;
        }
    }
    Ok(())
}

/// Makes configurations pending that have failed or diverged.
fn retry(folder: &Folder, configurations: &[Configuration]) -> Result<(), Failure> {
    let files = folder.look()?;
    for Configuration { id, .. } in configurations {
        let Some(files) = files.get(id).filter(|files| !files.has_summary) else { continue };
        if let Some(note) = folder.note(id, files)? {
            tracing::info!("trained again: {id}, which had {}", state_of(&note).name());
            folder.forget_failure(id)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_a_sweep_have_numbers_of_their_own() {
        for (variables, expected) in [
            ("", (0, 1)),
            ("SLURM_ARRAY_TASK_ID=7 SLURM_ARRAY_TASK_COUNT=4 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_STEP=2", (3, 4)),
            // sae launch k8s says by --workers how many pods there are.
            ("JOB_COMPLETION_INDEX=2", (2, 1)),
            ("JOB_COMPLETION_INDEX=2 JOB_COMPLETIONS=3", (2, 3)),
            ("RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 TORCHELASTIC_RUN_ID=a", (1, 4)),
            // srun -n 2 in each of four tasks of an array.
            (
                "SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=4 SLURM_JOB_ID=9 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 \
                 SLURM_LOCALID=1 SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=2",
                (7, 8),
            ),
        ] {
            let pairs = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
            let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            assert_eq!(among(&environment).expect("numbers"), expected, "{variables}");
        }
    }

    #[test]
    fn processes_of_one_machine_share_its_gpus_out() {
        let torchrun = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 TORCHELASTIC_RUN_ID=a";
        let srun = "SLURM_JOB_ID=9 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_NODEID=0 \
                    SLURM_STEP_TASKS_PER_NODE=2";
        let of_task = format!("{srun} SLURM_GPUS_PER_TASK=4");
        for (seen, variables, expected) in [
            (0, "", 0..0),
            (8, "", 0..8),
            (0, torchrun, 0..0),
            (4, torchrun, 1..2),
            (8, torchrun, 2..4),
            (1, torchrun, 0..1),
            // More processes than GPUs: none has its own.
            (2, torchrun, 0..0),
            (4, srun, 2..4),
            (4, &of_task, 0..4),
        ] {
            let pairs = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
            let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let own = own_gpus(seen, of_launcher(&environment).as_ref(), &environment);
            assert_eq!(own, expected, "{seen} {variables}");
        }
    }
}
