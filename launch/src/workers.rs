//! Which of several workers a process is that make the parts of one data set: what is typed, or what a launcher's variables say.

use std::collections::BTreeMap;

use loader::parts::Worker;

use crate::args::Workers;
use crate::failure::Failure;

/// The worker that this process is.
///
/// # Errors
/// A launcher that does not say how many there are, or numbers them with gaps.
pub fn of(args: Workers, variables: &BTreeMap<String, String>) -> Result<Worker, Failure> {
    if let Some(worker) = args.worker {
        return Ok(worker);
    }
    let number = |name: &str| -> Result<Option<u64>, Failure> {
        let Some(text) = variables.get(name) else { return Ok(None) };
        let parsed = text.parse().map_err(|_| Failure::arguments(format!("{name} is {text:?}, which is no number")));
        parsed.map(Some)
    };
    if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
        let (min, max) = (number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0), number("SLURM_ARRAY_TASK_MAX")?);
        let (step, count) = (number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1), number("SLURM_ARRAY_TASK_COUNT")?);
        let count = count
            .or(args.workers)
            .ok_or_else(|| Failure::arguments("SLURM_ARRAY_TASK_COUNT is not set: give --worker w/W"))?;
        let index = id.checked_sub(min).filter(|above| above.is_multiple_of(step)).map(|above| above / step);
        let whole = max.is_none_or(|max| max.checked_sub(min).is_some_and(|above| above / step + 1 == count));
        return match index {
            Some(index) if whole => Ok(Worker::new(index, count)?),
            _ => Err(Failure::arguments(format!(
                "task {id} of a SLURM array of {count} whose numbers have gaps: give --worker w/W"
            ))),
        };
    }
    if let Some(index) = number("JOB_COMPLETION_INDEX")? {
        let count = args.workers.map_or_else(|| number("JOB_COMPLETIONS"), |count| Ok(Some(count)))?;
        let count = count.ok_or_else(|| {
            Failure::arguments(format!(
                "JOB_COMPLETION_INDEX is {index}, and nothing says how many workers there are: give --workers W"
            ))
        })?;
        return Ok(Worker::new(index, count)?);
    }
    match args.workers {
        Some(count) if count > 1 => {
            Err(Failure::arguments(format!("which of {count} workers this is, nothing says: give --worker w/{count}")))
        }
        _ => Ok(Worker::alone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(args: Workers, variables: &str) -> Result<String, String> {
        let variables = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        of(args, &variables).map(|worker| worker.to_string()).map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn launchers_say_which_worker_this_is() {
        let none = Workers::default();
        let array = "SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_COUNT=4";
        for (variables, says) in [
            ("", "0/1"),
            ("SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=8", "3/8"),
            (&format!("{array} SLURM_ARRAY_TASK_MAX=4 SLURM_ARRAY_TASK_ID=4"), "3/4"),
            (&format!("{array} SLURM_ARRAY_TASK_MAX=7 SLURM_ARRAY_TASK_STEP=2 SLURM_ARRAY_TASK_ID=5"), "2/4"),
            ("JOB_COMPLETION_INDEX=2 JOB_COMPLETIONS=3", "2/3"),
        ] {
            assert_eq!(worker(none, variables).as_deref(), Ok(says), "{variables}");
        }
        let count = Workers { workers: Some(5), ..none };
        assert_eq!(worker(count, "JOB_COMPLETION_INDEX=4").as_deref(), Ok("4/5"));
        let typed = Workers { worker: Some(Worker::new(1, 2).unwrap()), ..none };
        assert_eq!(worker(typed, "SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=8").as_deref(), Ok("1/2"));
    }

    #[test]
    fn what_leaves_a_worker_unknown_is_refused() {
        let none = Workers::default();
        let array = "SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=9 SLURM_ARRAY_TASK_COUNT=4";
        for (args, variables, says) in [
            (none, "SLURM_ARRAY_TASK_ID=3", "--worker"),
            (none, &*format!("{array} SLURM_ARRAY_TASK_ID=3"), "gaps"),
            (none, "JOB_COMPLETION_INDEX=2", "--workers"),
            (none, "JOB_COMPLETION_INDEX=3 JOB_COMPLETIONS=3", "worker 3 of 3"),
            (none, "JOB_COMPLETION_INDEX=x JOB_COMPLETIONS=3", "no number"),
            (Workers { workers: Some(2), ..none }, "", "--worker w/2"),
        ] {
            let error = worker(args, variables).unwrap_err();
            assert!(error.contains(says), "{variables}: {error}");
        }
    }
}
