//! Which of the processes that write a data set together this one is: by its flag, or by what starts many of a kind.

use loader::parts::Worker;

use crate::failure::Failure;
use crate::world::{self, Variables};

/// `--worker`, or else the task of a SLURM array, of a step of SLURM or of a step in each task of an array, or the pod of an indexed job of
/// Kubernetes (with `JOB_COMPLETIONS` beside its index); else the only one.
///
/// # Errors
/// When a variable is no number, or the two of a pair do not fit.
pub fn of(flag: Option<Worker>, variables: &Variables) -> Result<Worker, Failure> {
    if let Some(worker) = flag {
        return Ok(worker);
    }
    let number = |name: &str| match variables.get(name) {
        None => Ok(None),
        Some(text) => match text.trim().parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Failure::arguments(format!("{name}={text} is no number: say --worker w/W"))),
        },
    };
    let (task, tasks) = world::task_of_step(variables)?.map_or((0, 1), |(task, tasks)| (task as u64, tasks as u64));
    let of_step = worker("SLURM_PROCID", task, tasks)?;
    if let (Some(id), Some(count)) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?) {
        let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        // Each task of the array may start a step of as many tasks.
        let before = (id.saturating_sub(first) / step).saturating_mul(tasks);
        return worker("SLURM_ARRAY_TASK_ID", before.saturating_add(task), count.saturating_mul(tasks));
    }
    if tasks > 1 {
        return Ok(of_step);
    }
    match (number("JOB_COMPLETION_INDEX")?, number("JOB_COMPLETIONS")?) {
        (Some(index), Some(count)) => worker("JOB_COMPLETION_INDEX", index, count),
        (Some(_), None) => Err(Failure::arguments(
            "JOB_COMPLETION_INDEX says which pod this is, and JOB_COMPLETIONS does not say of how many: set it, or say --worker w/W",
        )),
        _ => Ok(Worker::alone()),
    }
}

fn worker(name: &str, index: u64, count: u64) -> Result<Worker, Failure> {
    Worker::new(index, count).map_err(|_| {
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
            ("SLURM_ARRAY_TASK_ID=x SLURM_ARRAY_TASK_COUNT=4", "SLURM_ARRAY_TASK_ID=x is no number"),
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
