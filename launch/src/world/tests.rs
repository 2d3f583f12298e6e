//! Environments as launchers make them, and what must be made of them.

use super::{Launcher, OF_RANKS, Variables, World, launchers};
use crate::args::WorldArgs;

/// Variables written as a shell would, `NAME=VALUE NAME=VALUE`.
fn variables(text: &str) -> Variables {
    text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn read(text: &str) -> Result<World, String> {
    World::new(&WorldArgs::default(), &variables(text)).map_err(|failure| format!("{failure:?}"))
}

const TORCHRUN: &str = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 TORCHELASTIC_RUN_ID=7f2a \
                        TORCHELASTIC_RESTART_COUNT=0 TORCHELASTIC_MAX_RESTARTS=0 MASTER_ADDR=node-a MASTER_PORT=29500";
const STEP: &str = "SLURM_JOB_ID=812 SLURM_STEP_ID=0 SLURM_PROCID=6 SLURM_NTASKS=7 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=0 \
                    SLURM_NODEID=3 SLURM_STEP_TASKS_PER_NODE=2(x3),1 SLURM_RESTART_COUNT=2";
const SCRIPT: &str =
    "SLURM_JOB_ID=812 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_TASKS_PER_NODE=4(x2)";
const MPIRUN: &str = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
                      PMIX_NAMESPACE=1642528769 PMIX_RANK=1";

#[test]
fn launchers_are_understood() {
    use Launcher::*;
    let table = [
        ("", (0, 1, 0, 1), "alone", None),
        ("RANK= WORLD_SIZE=", (0, 1, 0, 1), "alone", None),
        (TORCHRUN, (5, 8, 1, 4), "torchrun-7f2a.0", Torchrun),
        (STEP, (6, 7, 0, 1), "slurm-812.2.0", Slurm),
        (MPIRUN, (1, 2, 1, 2), "mpi-1642528769", Mpi),
        // One machine: the restarts of torchrun are counted by one agent.
        (
            "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 TORCHELASTIC_RUN_ID=a/b TORCHELASTIC_RESTART_COUNT=3 \
             TORCHELASTIC_MAX_RESTARTS=5",
            (1, 2, 1, 2),
            "torchrun-a-b.3",
            Torchrun,
        ),
        ("PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 SAE_ATTEMPT=17", (3, 4, 1, 2), "17", Mpi),
        (
            "PET_NNODES=4 PET_NODE_RANK=2 PET_NPROC_PER_NODE=auto RANK=2 WORLD_SIZE=4 SAE_ATTEMPT=pod-3",
            (2, 4, 0, 1),
            "pod-3",
            Kubeflow,
        ),
        ("JOB_COMPLETION_INDEX=2 JOB_COMPLETIONS=3 SAE_ATTEMPT=uid.1", (2, 3, 0, 1), "uid.1", Kubernetes),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", (0, 1, 0, 1), "alone", Torchrun),
    ];
    for (text, (rank, ranks, local_rank, local_ranks), attempt, launcher) in table {
        // SAE_ATTEMPT is read by the command line, as --attempt.
        let flags = WorldArgs { attempt: variables(text).remove("SAE_ATTEMPT"), ..WorldArgs::default() };
        let world = World::new(&flags, &variables(text)).unwrap_or_else(|failure| panic!("{text}: {failure:?}"));
        assert_eq!(
            (world.rank, world.ranks, world.local_rank, world.local_ranks),
            (rank, ranks, local_rank, local_ranks),
            "{text}"
        );
        assert_eq!((world.attempt.as_str(), world.launcher), (attempt, launcher), "{text}");
        let mut left = variables(text);
        left.retain(|name, _| !OF_RANKS.contains(&name.as_str()));
        let world = World::new(&WorldArgs::default(), &left).unwrap_or_else(|failure| panic!("{text}: {failure:?}"));
        assert_eq!((world.ranks, world.launcher), (1, Launcher::None), "{text}");
        assert!(launchers::tasks_of_job(&left).is_none(), "{text}");
    }
}

/// What holds processes without having started them as ranks.
#[test]
fn what_is_no_launcher_says_nothing() {
    for text in [
        SCRIPT,
        &format!("{SCRIPT} SLURM_STEP_ID=4294967291"),
        &format!("{SCRIPT} SLURM_STEP_ID=batch"),
        &format!("{SCRIPT} SLURM_STEP_ID=4294967290 SLURM_STEP_NUM_TASKS=1"),
        &format!("{SCRIPT} SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=9"),
        // A pod of an indexed Job that trains for itself, one of a sweep.
        "JOB_COMPLETION_INDEX=4",
        "PMIX_RANK=3",
    ] {
        let world = read(text).unwrap_or_else(|message| panic!("{text}: {message}"));
        assert_eq!((world.ranks, world.launcher), (1, Launcher::None), "{text}");
    }
}

/// A batch script with tasks that calls sae without srun gets a message that says so; nobody else does.
#[test]
fn tasks_that_nothing_was_started_in_are_told() {
    let told = |text: &str| {
        let world = read(text).unwrap_or_else(|message| panic!("{text}: {message}"));
        super::unused_tasks(&world, &variables(text))
    };
    for text in [
        SCRIPT,
        &format!("{SCRIPT} SLURM_STEP_ID=4294967291"),
        "SLURM_JOB_ID=812 SLURM_NTASKS_PER_NODE=4 SLURM_JOB_NUM_NODES=2 SLURM_TASKS_PER_NODE=4(x2)",
    ] {
        let told = told(text).unwrap_or_else(|| panic!("{text}: nothing"));
        assert!(told.contains("8 tasks") && told.contains("srun sae"), "{told}");
    }
    for text in [
        "",
        STEP,
        &format!("{TORCHRUN} {SCRIPT}"),
        &format!("{MPIRUN} {SCRIPT}"),
        &SCRIPT.replace("NTASKS=8", "NTASKS=1"),
        // Nobody asked for tasks: SLURM counts processors.
        &SCRIPT.replace("SLURM_NTASKS=8", "").replace("4(x2)", "64"),
    ] {
        assert_eq!(told(text), None, "{text}");
    }
}

#[test]
fn launchers_inside_each_other_agree() {
    let torchrun_node = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 TORCHELASTIC_RUN_ID=7f2a";
    let step = |ranks, rank, nodes: &str| {
        format!(
            "SLURM_JOB_ID=1 SLURM_STEP_ID=0 SLURM_PROCID={rank} SLURM_STEP_NUM_TASKS={ranks} SLURM_LOCALID=0 SLURM_NODEID={rank} \
             SLURM_STEP_TASKS_PER_NODE={nodes}"
        )
    };
    for (text, launcher) in [
        (format!("{TORCHRUN} {SCRIPT}"), Launcher::Torchrun),
        (format!("{MPIRUN} {SCRIPT}"), Launcher::Mpi),
        // One torchrun a machine, whichever number it got when they met.
        (format!("{torchrun_node} {}", step(2, 0, "1(x2)")), Launcher::Torchrun),
        (format!("{torchrun_node} {}", step(1, 0, "1")), Launcher::Torchrun),
        (format!("{torchrun_node} PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=4"), Launcher::Torchrun),
        (format!("{torchrun_node} PET_NNODES=1:4"), Launcher::Torchrun),
        (format!("{torchrun_node} JOB_COMPLETION_INDEX=1 JOB_COMPLETIONS=2"), Launcher::Torchrun),
        // SLURM counts mpirun's daemons.
        (format!("{MPIRUN} {}", step(5, 3, "1(x5)")), Launcher::Mpi),
        // RANK and others set from SLURM's own, as scripts do.
        (
            format!(
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 TORCHELASTIC_RUN_ID=x {}",
                step(2, 1, "1(x2)")
            ),
            Launcher::Torchrun,
        ),
        (format!("PMI_RANK=1 PMI_SIZE=2 {}", step(2, 1, "1(x2)")), Launcher::Slurm),
    ] {
        assert_eq!(read(&text).unwrap_or_else(|message| panic!("{text}: {message}")).launcher, launcher, "{text}");
    }
}

#[test]
fn contradictions_and_gaps_are_named() {
    let torchrun = "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2";
    for (text, parts) in [
        (
            format!("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 {STEP}"),
            &["torchrun says", "rank 0 of 1", "SLURM that it is 6 of 7", "unset"][..],
        ),
        (format!("{STEP} JOB_COMPLETION_INDEX=0 JOB_COMPLETIONS=3"), &["SLURM says", "Kubernetes that it is 0 of 3"]),
        ("RANK=1".into(), &["RANK is set and WORLD_SIZE is not"]),
        ("RANK=1 WORLD_SIZE=2".into(), &["RANK is set and LOCAL_RANK is not"]),
        ("OMPI_COMM_WORLD_SIZE=2".into(), &["OMPI_COMM_WORLD_SIZE is set and OMPI_COMM_WORLD_RANK is not"]),
        ("PMI_RANK=1 PMI_SIZE=2".into(), &["PMI_RANK is set and MPI_LOCALRANKID is not"]),
        ("JOB_COMPLETIONS=2".into(), &["JOB_COMPLETION_INDEX is not"]),
        ("PET_NNODES=2".into(), &["PET_NODE_RANK is not"]),
        ("PET_NNODES=2 PET_NODE_RANK=0 PET_NPROC_PER_NODE=8".into(), &["PET_NPROC_PER_NODE=8", "nprocPerNode to 1"]),
        ("PET_NNODES=1:4 PET_NODE_RANK=0".into(), &["PET_NNODES=1:4", "elastic"]),
        (STEP.replace("SLURM_STEP_TASKS_PER_NODE=2(x3),1", ""), &["SLURM_STEP_TASKS_PER_NODE is not"]),
        (STEP.replace("2(x3),1", "2(x2)"), &["SLURM_STEP_TASKS_PER_NODE=2(x2)", "node 3"]),
        ("RANK=two WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1".into(), &["RANK=two", "a number"]),
        ("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1".into(), &["rank 2 of 2", "cannot be"]),
        // Without an id of this start, ranks could meet those of an earlier one.
        (torchrun.into(), &["SAE_ATTEMPT"]),
        (format!("{torchrun} TORCHELASTIC_RUN_ID=none"), &["--rdzv-id"]),
        (TORCHRUN.replace("MAX_RESTARTS=0", "MAX_RESTARTS=3"), &["--max-restarts"]),
        ("PET_NNODES=2 PET_NODE_RANK=0".into(), &["SAE_ATTEMPT"]),
        ("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1".into(), &["SAE_ATTEMPT"]),
        ("JOB_COMPLETION_INDEX=0 JOB_COMPLETIONS=2".into(), &["SAE_ATTEMPT", "sae launch k8s"]),
    ] {
        let message = read(&text).expect_err(&text);
        assert!(message.contains("code: 64"), "{text}: {message}");
        for part in parts {
            assert!(message.contains(part), "{text}: {part}: {message}");
        }
    }
}

#[test]
fn flags_decide_and_need_an_attempt() {
    let flags = |attempt: Option<&str>| WorldArgs {
        rank: Some(1),
        ranks: Some(4),
        local_rank: Some(0),
        local_ranks: Some(2),
        attempt: attempt.map(str::to_owned),
    };
    let world = World::new(&flags(Some("monday 1")), &variables(TORCHRUN)).expect("flags win");
    assert_eq!((world.rank, world.ranks, world.launcher, world.attempt.as_str()), (1, 4, Launcher::Flags, "monday-1"));
    let message = format!("{:?}", World::new(&flags(None), &variables("")).expect_err("no attempt"));
    assert!(message.contains("--attempt"), "{message}");
    let long = World::new(&flags(Some(&"x".repeat(129))), &variables("")).expect_err("too long");
    assert!(format!("{long:?}").contains("129 bytes"));
}

/// Every rank of a job must have the same attempt id, and another one after a restart.
#[test]
fn attempts_are_shared_by_ranks_and_differ_between_starts() {
    let attempt = |text: String| read(&text).expect("a world").attempt;
    let of_rank = |rank: usize, restarts: usize| {
        attempt(STEP.replace("PROCID=6", &format!("PROCID={rank}")).replace("COUNT=2", &format!("COUNT={restarts}")))
    };
    assert_eq!(of_rank(6, 0), of_rank(1, 0));
    assert_ne!(of_rank(0, 0), of_rank(0, 1));
    assert_ne!(attempt(STEP.into()), attempt(STEP.replace("STEP_ID=0", "STEP_ID=1")));
}
