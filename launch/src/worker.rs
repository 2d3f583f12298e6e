//! Which of the processes that write a data set together this one is: by its flag, or by what starts many of a kind.

use loader::parts::Worker;

use crate::failure::Failure;
use crate::world::{self, OfMany, Variables};

/// `--worker`, or else the task of a SLURM array, of a step of SLURM or of a step in each task of an array, or the pod of an indexed job of
/// Kubernetes (with `JOB_COMPLETIONS` beside its index); else the only one.
///
/// # Errors
/// When a variable is no number, or the two of a pair do not fit.
pub fn of(flag: Option<Worker>, variables: &Variables) -> Result<Worker, Failure> {
    if let Some(worker) = flag {
        return Ok(worker);
    }
    // Each task of an array may start a step of as many tasks.
    let (task, tasks) = world::task_of_step(variables)?.unwrap_or((0, 1));
    match world::of_many(variables)? {
        Some(OfMany { names: [name, _], index, count: Some(count) }) => {
            worker(name, index.saturating_mul(tasks).saturating_add(task), count.saturating_mul(tasks))
        }
        Some(OfMany { names: [name, of], count: None, .. }) => Err(Failure::arguments(format!(
            "{name} says which worker this is, and {of} does not say of how many: set it, or say --worker w/W"
        ))),
        None => worker("SLURM_PROCID", task, tasks),
    }
}

fn worker(name: &str, index: usize, count: usize) -> Result<Worker, Failure> {
    Worker::new(index as u64, count as u64).map_err(|_| {
        Failure::arguments(format!(
            "{name} makes this worker {index} of {count}: number tasks one after the other, or say --worker w/W"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(variables: &str) -> Result<String, String> {
        let pairs = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
        let variables = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        of(None, &variables).map(|worker| worker.to_string()).map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn workers_are_told_by_what_starts_them() {
        for (variables, worker) in [
            ("", "0/1"),
            ("SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=4", "3/4"),
            ("SLURM_ARRAY_TASK_ID=7 SLURM_ARRAY_TASK_COUNT=4 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_STEP=2", "3/4"),
            ("JOB_COMPLETION_INDEX=2 JOB_COMPLETIONS=3", "2/3"),
            // srun -n 8, in a job of as many tasks and in one of more.
            ("SLURM_STEP_ID=0 SLURM_PROCID=5 SLURM_NTASKS=8", "5/8"),
            ("SLURM_STEP_ID=1 SLURM_PROCID=5 SLURM_NTASKS=16 SLURM_STEP_NUM_TASKS=8", "5/8"),
            ("SLURM_STEP_ID=1 SLURM_PROCID=0 SLURM_NTASKS=16 SLURM_STEP_NUM_TASKS=1", "0/1"),
            // The script that sbatch runs is no task.
            ("SLURM_STEP_ID=4294967291 SLURM_PROCID=0 SLURM_NTASKS=8", "0/1"),
            ("SLURM_PROCID=0 SLURM_NTASKS=8", "0/1"),
            // srun -n 2 in each of four tasks of an array.
            ("SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=4 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2", "7/8"),
        ] {
            assert_eq!(told(variables).as_deref(), Ok(worker), "{variables}");
        }
        for (variables, part) in [
            ("SLURM_ARRAY_TASK_ID=x SLURM_ARRAY_TASK_COUNT=4", "SLURM_ARRAY_TASK_ID=x: a launcher sets it to a number"),
            ("SLURM_ARRAY_TASK_ID=9 SLURM_ARRAY_TASK_COUNT=4", "worker 9 of 4"),
            ("JOB_COMPLETION_INDEX=2", "JOB_COMPLETIONS does not say"),
            ("SLURM_STEP_ID=0 SLURM_NTASKS=8", "SLURM_PROCID is not"),
            ("SLURM_STEP_ID=0 SLURM_PROCID=8 SLURM_NTASKS=8", "worker 8 of 8"),
        ] {
            assert!(told(variables).expect_err("it does not fit").contains(part), "{variables}");
        }
        let flag = Worker::new(1, 2).ok();
        let variables = [("JOB_COMPLETION_INDEX".to_owned(), "9".to_owned())].into();
        assert_eq!(of(flag, &variables).map(|worker| worker.index()).ok(), Some(1), "the flag counts");
    }
}
