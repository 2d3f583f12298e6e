//! Which of the processes that write a data set together this one is: by its flag, or by what starts many of a kind.

use loader::parts::Worker;

use crate::failure::Failure;

/// `--worker`, or else the task of a SLURM array, or the pod of an indexed job of Kubernetes (with `JOB_COMPLETIONS` beside its index); else
/// the only one.
///
/// # Errors
/// When a variable is no number, or the two of a pair do not fit.
pub fn of(flag: Option<Worker>, variable: impl Fn(&str) -> Option<String>) -> Result<Worker, Failure> {
    if let Some(worker) = flag {
        return Ok(worker);
    }
    let number = |name: &str| match variable(name) {
        None => Ok(None),
        Some(text) => match text.trim().parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Failure::arguments(format!("{name}={text} is no number: say --worker w/W"))),
        },
    };
    if let (Some(id), Some(count)) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?) {
        let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        return worker("SLURM_ARRAY_TASK_ID", id.saturating_sub(first) / step, count);
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
        let variable = |name: &str| {
            let mut pairs = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.find(|(of, _)| *of == name).map(|(_, value)| value.to_owned())
        };
        of(None, variable).map(|worker| worker.to_string()).map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn workers_are_told_by_what_starts_them() {
        for (variables, worker) in [
            ("", "0/1"),
            ("SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=4", "3/4"),
            ("SLURM_ARRAY_TASK_ID=7 SLURM_ARRAY_TASK_COUNT=4 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_STEP=2", "3/4"),
            ("JOB_COMPLETION_INDEX=2 JOB_COMPLETIONS=3", "2/3"),
        ] {
            assert_eq!(told(variables).as_deref(), Ok(worker), "{variables}");
        }
        for (variables, part) in [
            ("SLURM_ARRAY_TASK_ID=x SLURM_ARRAY_TASK_COUNT=4", "SLURM_ARRAY_TASK_ID=x is no number"),
            ("SLURM_ARRAY_TASK_ID=9 SLURM_ARRAY_TASK_COUNT=4", "worker 9 of 4"),
            ("JOB_COMPLETION_INDEX=2", "JOB_COMPLETIONS does not say"),
        ] {
            assert!(told(variables).expect_err("it does not fit").contains(part), "{variables}");
        }
        let flag = Worker::new(1, 2).ok();
        assert_eq!(of(flag, |_| Some("9".into())).map(|worker| worker.index()).ok(), Some(1), "the flag counts");
    }
}
