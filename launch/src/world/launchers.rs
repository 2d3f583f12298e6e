//! What each launcher says in its processes' environment. A set of variables that is incomplete is an error: a process that
//! misses one would train alone, beside the others, into the same folder.
//!
//! **Launchers are asked from the inside out.** A SLURM step or a pod may hold torchrun or mpirun, which start the ranks: what started a
//! process last knows it best. mpirun comes before SLURM, since it starts its daemons by srun, and SLURM then counts daemons. Whatever
//! stands around it must fit, so variables left over from elsewhere are refused instead of believed. The attempt id comes from the
//! launcher too, because nothing else is the same on all ranks and new at each start; torchrun's restarts on several machines are refused
//! for want of one.

use std::collections::BTreeMap;
use std::fmt;

use crate::failure::Failure;

/// What makes a process one of several: without these variables, it is alone.
pub const OF_RANKS: [&str; 19] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "PET_NNODES",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "SLURM_STEP_ID",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "JOB_COMPLETIONS",
    "JOB_COMPLETION_INDEX",
    "SAE_ATTEMPT",
];

/// Environment variables by name.
pub type Variables = BTreeMap<String, String>;

/// Who can say where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody: the process is alone.
    None,
    /// The user who typed the command.
    Flags,
    /// torchrun, or any launcher that sets the same variables.
    Torchrun,
    /// The training operator of Kubeflow.
    Kubeflow,
    /// Open MPI or an MPI with the Hydra process manager.
    Mpi,
    /// srun.
    Slurm,
    /// An indexed Job of Kubernetes, by itself or in a JobSet.
    Kubernetes,
}

/// As in "started by …", "told by …".
impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::None => "no launcher",
            Launcher::Flags => "--rank and --ranks",
            Launcher::Torchrun => "torchrun",
            Launcher::Kubeflow => "Kubeflow",
            Launcher::Mpi => "mpirun",
            Launcher::Slurm => "SLURM",
            Launcher::Kubernetes => "Kubernetes",
        })
    }
}

/// What one launcher says.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) launcher: Launcher,
    pub(super) rank: usize,
    pub(super) ranks: usize,
    pub(super) local_rank: usize,
    pub(super) local_ranks: usize,
    /// The attempt id, or why there is none and what to do.
    pub(super) attempt: Result<String, &'static str>,
}

/// What the launchers say that say something, from the inside out.
pub(super) fn places(variables: &Variables) -> Result<Vec<Place>, Failure> {
    let ask = [torchrun, kubeflow, open_mpi, hydra, slurm, kubernetes];
    ask.iter().filter_map(|launcher| launcher(variables).transpose()).collect()
}

/// torchrun, and `sae launch local`, which sets the same variables. Kubeflow sets RANK and WORLD_SIZE in a pod too, for whatever
/// may not know its own variables.
fn torchrun(variables: &Variables) -> Result<Option<Place>, Failure> {
    let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];
    let of_kubeflow = text(variables, "PET_NNODES").is_some() && text(variables, "LOCAL_RANK").is_none();
    if of_kubeflow {
        return Ok(None);
    }
    let Some([rank, ranks, local_rank, local_ranks]) = all_or_none(variables, names)? else { return Ok(None) };
    let id = text(variables, "TORCHELASTIC_RUN_ID");
    let restarts = text(variables, "TORCHELASTIC_RESTART_COUNT").unwrap_or("0");
    let may_restart = text(variables, "TORCHELASTIC_MAX_RESTARTS").unwrap_or("0") != "0";
    let attempt = match id {
        None => Err(
            "RANK and WORLD_SIZE are set, but no attempt id that all ranks have in common: set SAE_ATTEMPT, to a new \
                     value at each start",
        ),
        // The id that torchrun has when it is given none.
        Some("none") => {
            Err("torchrun has no run id that would tell this start from the one before: give it --rdzv-id with a new \
                             value at each start, or set SAE_ATTEMPT")
        }
        // Each machine counts the restarts that began with it, so the counts differ.
        Some(_) if may_restart && local_ranks < ranks => Err(
            "torchrun's restarts cannot be told apart on several machines: leave out --max-restarts and start the job again \
                 with --resume-or-start",
        ),
        Some(id) => Ok(format!("torchrun-{id}.{restarts}")),
    };
    Ok(Some(Place { launcher: Launcher::Torchrun, rank, ranks, local_rank, local_ranks, attempt }))
}

/// Kubeflow, which describes pods. What torchrun makes of them inside, torchrun says.
fn kubeflow(variables: &Variables) -> Result<Option<Place>, Failure> {
    let Some(nodes) = text(variables, "PET_NNODES") else { return Ok(None) };
    let inside_torchrun = text(variables, "LOCAL_RANK").is_some();
    let (least, most) = nodes.split_once(':').unwrap_or((nodes, nodes));
    if least != most {
        return if inside_torchrun {
            Ok(None)
        } else {
            Err(Failure::arguments(format!(
                "PET_NNODES={nodes}: a run has a fixed number of ranks: leave out the elastic policy"
            )))
        };
    }
    let ranks = parse("PET_NNODES", most)?;
    let Some(rank) = number(variables, "PET_NODE_RANK")? else {
        return if ranks == 1 || inside_torchrun { Ok(None) } else { Err(incomplete("PET_NNODES", "PET_NODE_RANK")) };
    };
    let processes = text(variables, "PET_NPROC_PER_NODE").unwrap_or("1");
    if !inside_torchrun && !["1", "auto"].contains(&processes) {
        return Err(Failure::arguments(format!(
            "PET_NPROC_PER_NODE={processes}, and this is the one process of its pod: set nprocPerNode to 1 and ask for as many \
             pods as ranks"
        )));
    }
    let attempt = Err(
        "Kubeflow has no id that would tell this start from the one before: set SAE_ATTEMPT, or use sae launch k8s",
    );
    Ok(Some(Place { launcher: Launcher::Kubeflow, rank, ranks, local_rank: 0, local_ranks: 1, attempt }))
}

/// Open MPI: its mpirun, of all versions.
fn open_mpi(variables: &Variables) -> Result<Option<Place>, Failure> {
    let names =
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"];
    let Some([rank, ranks, local_rank, local_ranks]) = all_or_none(variables, names)? else { return Ok(None) };
    // The name of the job within mpirun's machinery, made of its host and process.
    let id = text(variables, "PMIX_NAMESPACE").or_else(|| text(variables, "OMPI_MCA_ess_base_jobid"));
    let attempt = id.map(|id| format!("mpi-{id}")).ok_or(NO_ID_OF_MPI);
    Ok(Some(Place { launcher: Launcher::Mpi, rank, ranks, local_rank, local_ranks, attempt }))
}

const NO_ID_OF_MPI: &str = "mpiexec has no id that would tell this start from the one before: set SAE_ATTEMPT to a new value at each \
                            start, such as mpiexec -genv SAE_ATTEMPT $(date +%s)";

/// MPICH, Intel MPI and others with the Hydra process manager. srun sets PMI_RANK and PMI_SIZE too, and says the rest itself.
fn hydra(variables: &Variables) -> Result<Option<Place>, Failure> {
    if text(variables, "MPI_LOCALRANKID").is_none() && in_step(variables) {
        return Ok(None);
    }
    let names = ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"];
    let Some([rank, ranks, local_rank, local_ranks]) = all_or_none(variables, names)? else { return Ok(None) };
    Ok(Some(Place { launcher: Launcher::Mpi, rank, ranks, local_rank, local_ranks, attempt: Err(NO_ID_OF_MPI) }))
}

/// A step of SLURM. The script that sbatch runs has SLURM_PROCID and SLURM_NTASKS as well, and is one process.
fn slurm(variables: &Variables) -> Result<Option<Place>, Failure> {
    let Some((rank, ranks)) = task_of_step(variables)? else { return Ok(None) };
    let node = number(variables, "SLURM_NODEID")?.unwrap_or(0);
    let counts = text(variables, "SLURM_STEP_TASKS_PER_NODE").or_else(|| text(variables, "SLURM_TASKS_PER_NODE"));
    let counts = counts.ok_or_else(|| incomplete("SLURM_STEP_ID", "SLURM_STEP_TASKS_PER_NODE"))?;
    let local_ranks = tasks_on(counts, node).ok_or_else(|| {
        Failure::arguments(format!("SLURM_STEP_TASKS_PER_NODE={counts} does not say how many tasks node {node} has"))
    })?;
    let job = text(variables, "SLURM_JOB_ID").ok_or_else(|| incomplete("SLURM_STEP_ID", "SLURM_JOB_ID"))?;
    let restarts = text(variables, "SLURM_RESTART_COUNT").unwrap_or("0");
    let step = text(variables, "SLURM_STEP_ID").unwrap_or_default();
    Ok(Some(Place {
        launcher: Launcher::Slurm,
        rank,
        ranks,
        local_rank: of_step(variables, "SLURM_LOCALID")?,
        local_ranks,
        attempt: Ok(format!("slurm-{job}.{restarts}.{step}")),
    }))
}

/// Which task of its step of SLURM a process is, and of how many, where srun started it.
///
/// # Errors
/// [`trainer::Exit::Arguments`] when a variable is missing or no number.
pub fn task_of_step(variables: &Variables) -> Result<Option<(usize, usize)>, Failure> {
    if !in_step(variables) {
        return Ok(None);
    }
    // SLURM_NTASKS is the allocation's until a step sets it to its own.
    let tasks = number(variables, "SLURM_STEP_NUM_TASKS")?.map_or_else(|| of_step(variables, "SLURM_NTASKS"), Ok)?;
    Ok(Some((of_step(variables, "SLURM_PROCID")?, tasks)))
}

/// One of many processes that a scheduler starts alike, each for itself: a task of a SLURM array, or a pod of an indexed Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfMany {
    /// The variables that say which, and of how many.
    pub names: [&'static str; 2],
    /// Which, from 0 on.
    pub index: usize,
    /// Of how many, where that is known: Kubernetes does not say it.
    pub count: Option<usize>,
}

/// Which of many a process is, by its environment; nothing of one that is started alone.
///
/// # Errors
/// [`trainer::Exit::Arguments`] when a variable is no number.
pub fn of_many(variables: &Variables) -> Result<Option<OfMany>, Failure> {
    let names = ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"];
    if let Some(id) = number(variables, names[0])? {
        let first = number(variables, "SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = number(variables, "SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        return Ok(Some(OfMany { names, index: id.saturating_sub(first) / step, count: number(variables, names[1])? }));
    }
    let names = ["JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"];
    let Some(index) = number(variables, names[0])? else { return Ok(None) };
    Ok(Some(OfMany { names, index, count: number(variables, names[1])? }))
}

fn of_step(variables: &Variables, name: &str) -> Result<usize, Failure> {
    number(variables, name)?.ok_or_else(|| incomplete("SLURM_STEP_ID", name))
}

/// Tasks that somebody asked SLURM for, with a number or so many for each node, where this process is in the job and not in a step.
pub(super) fn tasks_of_job(variables: &Variables) -> Option<usize> {
    let number = |name| text(variables, name)?.parse::<usize>().ok();
    if in_step(variables) {
        return None;
    }
    text(variables, "SLURM_JOB_ID")?;
    // Not SLURM_TASKS_PER_NODE: where nobody asked for tasks, it counts processors.
    number("SLURM_NTASKS").or_else(|| number("SLURM_NTASKS_PER_NODE")?.checked_mul(number("SLURM_JOB_NUM_NODES")?))
}

/// Whether srun started this process. Numbers at the upper end of 32 bits stand for what is no step of srun's: a batch script, an
/// interactive shell.
fn in_step(variables: &Variables) -> bool {
    const RESERVED: u32 = 0xffff_fff0;
    text(variables, "SLURM_STEP_ID").is_some_and(|step| step.parse::<u32>().is_ok_and(|step| step < RESERVED))
}

/// Tasks on a node by a list such as `2(x3),1`: two on each of three nodes, one on the fourth.
fn tasks_on(counts: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for part in counts.split(',') {
        let (tasks, nodes) =
            part.split_once("(x").map_or((part, "1"), |(tasks, nodes)| (tasks, nodes.trim_end_matches(')')));
        before += nodes.parse::<usize>().ok()?;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}

/// An indexed Job. Kubernetes gives a pod its index and not how many there are; the manifest of `sae launch k8s` adds that. An
/// index alone is that of a pod that trains for itself.
fn kubernetes(variables: &Variables) -> Result<Option<Place>, Failure> {
    let Some(ranks) = number(variables, "JOB_COMPLETIONS")? else { return Ok(None) };
    let index = number(variables, "JOB_COMPLETION_INDEX")?;
    let rank = index.ok_or_else(|| incomplete("JOB_COMPLETIONS", "JOB_COMPLETION_INDEX"))?;
    let attempt = Err(
        "Kubernetes has no id that would tell this start of an indexed Job from the one before: use sae launch k8s, \
                       whose JobSet sets SAE_ATTEMPT",
    );
    Ok(Some(Place { launcher: Launcher::Kubernetes, rank, ranks, local_rank: 0, local_ranks: 1, attempt }))
}

/// A variable that is set, and to something.
fn text<'a>(variables: &'a Variables, name: &str) -> Option<&'a str> {
    variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
}

fn number(variables: &Variables, name: &str) -> Result<Option<usize>, Failure> {
    text(variables, name).map(|value| parse(name, value)).transpose()
}

fn parse(name: &str, value: &str) -> Result<usize, Failure> {
    value
        .parse()
        .map_err(|_| Failure::arguments(format!("{name}={value}: a launcher sets it to a number from 0 on; unset it")))
}

/// The numbers of a set of variables, or `None` when none of them is set.
fn all_or_none<const N: usize>(variables: &Variables, names: [&str; N]) -> Result<Option<[usize; N]>, Failure> {
    let Some(there) = names.iter().find(|name| text(variables, name).is_some()) else { return Ok(None) };
    let mut numbers = [0; N];
    for (slot, name) in numbers.iter_mut().zip(names) {
        *slot = number(variables, name)?.ok_or_else(|| incomplete(there, name))?;
    }
    Ok(Some(numbers))
}

fn incomplete(there: &str, missing: &str) -> Failure {
    Failure::arguments(format!(
        "{there} is set and {missing} is not, so this process does not know which rank it is: start it by one launcher, or unset \
         {there}"
    ))
}
