//! Who this process is among those that train together: its rank, how many there are, and which start of the job it belongs
//! to, as flags and the launcher's environment say.
//!
//! Launchers nest: a SLURM step or a pod may start torchrun or mpirun, which start the ranks. So they are asked from the
//! inside out, and the first that answers decides:
//!
//! | launcher | variables |
//! |---|---|
//! | flags | `--rank`, `--ranks`, `--local-rank`, `--local-ranks` |
//! | torchrun, `sae launch local` | `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE` |
//! | Kubeflow | `PET_NNODES`, `PET_NODE_RANK`, `PET_NPROC_PER_NODE` |
//! | MPI | `OMPI_COMM_WORLD_*`; `PMI_*` with `MPI_LOCAL*` |
//! | SLURM | `SLURM_PROCID` and others, in a step that srun started |
//! | Kubernetes | `JOB_COMPLETION_INDEX` with `JOB_COMPLETIONS` |
//!
//! The others must be able to stand around it: they say the same, or started one process for each of its machines, or one
//! altogether. Otherwise one of them is left over from something else, and neither is believed. What is no launcher says
//! nothing: the allocation of an sbatch script, an array job, an indexed Job whose pods train for themselves. Only where SLURM has
//! several tasks for the job of a process that none of them is, a warning says so.

mod launchers;

use std::io::IsTerminal;

use rustix::process::{Pid, getpgid, getpgrp};

use crate::args::WorldArgs;
use crate::device::Local;
use crate::failure::Failure;

pub use launchers::{Launcher, OF_RANKS, OfMany, Variables, of_many, task_of_step};

use launchers::Place;

/// The longest attempt id: it becomes part of a file's name.
const ATTEMPT_BYTES: usize = 128;

/// Where a process stands in its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// From 0 on, and different in every process.
    pub rank: usize,
    /// Processes of the job.
    pub ranks: usize,
    /// Rank among those on this machine.
    pub local_rank: usize,
    /// Processes of the job on this machine.
    pub local_ranks: usize,
    /// The same on all ranks, and another one at each start of the job: letters, digits, `.`, `_` and `-`.
    pub attempt: String,
    /// Who said so.
    pub launcher: Launcher,
}

impl World {
    /// Where it is among the ranks of its machine.
    pub fn local(&self) -> Local {
        Local { rank: self.local_rank, ranks: self.local_ranks }
    }

    /// Reads flags and environment.
    ///
    /// # Errors
    /// [`trainer::Exit::Arguments`] when a launcher's variables are incomplete or impossible, two launchers contradict each other, or several
    /// ranks have no attempt id in common.
    pub fn new(flags: &WorldArgs, variables: &Variables) -> Result<World, Failure> {
        let mut places = launchers::places(variables)?.into_iter();
        let chosen = match flags.place() {
            Some(place) => place,
            None => match places.next() {
                Some(inner) => {
                    places.try_for_each(|outer| check_agree(&inner, &outer))?;
                    inner
                }
                None => alone(),
            },
        };
        chosen.check()?;
        let Place { launcher, rank, ranks, local_rank, local_ranks, attempt } = chosen;
        let attempt = match &flags.attempt {
            Some(attempt) => attempt.clone(),
            // Nobody to meet, so nobody to mistake for a rank of an earlier start.
            None if ranks == 1 => "alone".to_owned(),
            None => attempt.map_err(Failure::arguments)?,
        };
        Ok(World { rank, ranks, local_rank, local_ranks, attempt: clean(&attempt)?, launcher })
    }
}

/// What to know where SLURM has tasks for a job, and this process is none of them but started once beside them: a batch script that
/// calls it without srun.
pub fn unused_tasks(world: &World, variables: &Variables) -> Option<String> {
    let tasks = launchers::tasks_of_job(variables).filter(|&tasks| tasks > 1 && world.launcher == Launcher::None)?;
    Some(format!(
        "SLURM has {tasks} tasks for this job, and sae was started once, outside of them: srun sae … starts it in each"
    ))
}

/// What is wrong where a person has started this process in a shell that is one of several tasks of a step: whatever the other tasks run,
/// it is not sae, and waiting for them has no end. A script that is a task is no such shell, since every task runs it.
pub fn shell_in_step(world: &World, variables: &Variables) -> Option<String> {
    let ranks = Some(world.ranks).filter(|&ranks| ranks > 1 && world.launcher == Launcher::Slurm)?;
    let task = Pid::from_raw(variables.get("SLURM_TASK_PID")?.parse().ok()?)?;
    // A shell at which somebody types gives each command a process group of its own.
    let is_typed = std::io::stdin().is_terminal() && getpgid(Some(task)).is_ok_and(|group| group != getpgrp());
    is_typed.then(|| {
        format!(
            "this shell is one of {ranks} tasks of a step of SLURM, and sae was started in no other: leave it and start srun --ntasks={ranks} \
             sae …, or have one task for the shell: srun --ntasks=1 --pty bash"
        )
    })
}

/// The environment of this process, as far as it is text: no launcher's variable is anything else.
pub fn environment() -> Variables {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

impl WorldArgs {
    /// The command line lets all four be given, or none.
    fn place(&self) -> Option<Place> {
        Some(Place {
            launcher: Launcher::Flags,
            rank: self.rank?,
            ranks: self.ranks?,
            local_rank: self.local_rank?,
            local_ranks: self.local_ranks?,
            attempt: Err(
                "several ranks that are told by flags need an attempt id in common, and a new one at each start: give \
                          --attempt, or set SAE_ATTEMPT",
            ),
        })
    }
}

impl Place {
    fn check(&self) -> Result<(), Failure> {
        let Place { launcher, rank, ranks, local_rank, local_ranks, .. } = self;
        if rank < ranks && local_rank < local_ranks && local_ranks <= ranks && local_rank <= rank {
            return Ok(());
        }
        Err(Failure::arguments(format!(
            "rank {rank} of {ranks}, and {local_rank} of {local_ranks} on this machine, as told by {launcher}, cannot be: count ranks \
             from 0, and on a machine a part of them"
        )))
    }

    /// Whether this launcher started processes that are launchers themselves: it does not know the ranks then.
    fn starts_others(&self) -> bool {
        matches!(self.launcher, Launcher::Torchrun | Launcher::Mpi)
    }
}

fn alone() -> Place {
    let attempt = Ok(String::new());
    Place { launcher: Launcher::None, rank: 0, ranks: 1, local_rank: 0, local_ranks: 1, attempt }
}

/// That `outer` can stand around `inner`, which decides.
fn check_agree(inner: &Place, outer: &Place) -> Result<(), Failure> {
    let same = (inner.rank, inner.ranks) == (outer.rank, outer.ranks);
    // Not by rank: torchrun numbers machines in the order in which they meet.
    let one_each_machine = inner.starts_others() && outer.ranks * inner.local_ranks == inner.ranks;
    // mpirun starts its daemons by srun, on all machines but its own: SLURM then counts the daemons.
    let daemons = (inner.launcher, outer.launcher) == (Launcher::Mpi, Launcher::Slurm);
    if same || one_each_machine || outer.ranks == 1 || daemons {
        return Ok(());
    }
    Err(Failure::arguments(format!(
        "{} says that this is rank {} of {}, and {} that it is {} of {}: unset the variables of the one that did not start this \
         process, or give --rank, --ranks, --local-rank and --local-ranks",
        inner.launcher, inner.rank, inner.ranks, outer.launcher, outer.rank, outer.ranks
    )))
}

/// An attempt id as part of a file's name.
fn clean(attempt: &str) -> Result<String, Failure> {
    if attempt.len() > ATTEMPT_BYTES {
        let length = attempt.len();
        return Err(Failure::arguments(format!("the attempt id has {length} bytes: at most {ATTEMPT_BYTES} fit")));
    }
    Ok(attempt.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect())
}

#[cfg(test)]
mod tests;
