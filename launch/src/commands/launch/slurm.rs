//! `sae launch slurm`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use loader::Store;

use crate::args::{Log, Slurm, handed_on};
use crate::failure::Failure;
use crate::sweep::named::Named;
use crate::template::fill;
use crate::{job, recipes, table};

/// What stands before the checksum in a script.
const CHECKSUM: &str = ": checksum ";

/// Writes the batch script and submits it.
pub fn run(args: &Slurm, log: Log) -> Result<(), Failure> {
    let job = if args.sweep { Job::of_sweep(args)? } else { Job::of_recipe(args)? };
    let local = Store::open(&job.dir)?.local_path().map(Path::to_owned);
    let out = args.out.clone().or_else(|| local.map(|folder| folder.join("job.sh")));
    let Some(out) = out else {
        return Err(Failure::arguments(format!(
            "{} is in object storage: say with --out where the batch script goes",
            if args.sweep { "the sweep's dir" } else { "run.dir" }
        )));
    };
    let out = std::path::absolute(&out).unwrap_or(out);
    let folder = out.parent().unwrap_or(Path::new(".")).to_owned();
    let cores = args.cpus_per_task.is_some() || args.sbatch.iter().any(|option| option.starts_with("cpus-per-task="));
    if !cores {
        tracing::warn!(
            "without --cpus-per-task most clusters give each rank one core, on which reading and training take turns"
        );
    }
    let script = script(args, log, &folder, &job)?;
    if args.dry_run {
        table::say(script.trim_end());
        return Ok(());
    }
    check_not_edited(&out, &script)?;
    let cannot_write = |error| Failure::cannot_write(format!("{}: cannot write: {error}", out.display()));
    fs::create_dir_all(&folder).and_then(|()| fs::write(&out, script)).map_err(cannot_write)?;
    let id = submit(&out)?;
    table::say(format!("job {id}, by {}", out.display()));
    let look = match args.sweep {
        true => format!("sae sweep status {}", table::quoted(&job.dir)),
        false => format!("tail -F {}", table::quoted(&log_file(&folder, &id))),
    };
    table::say(format!("next: squeue --job {id}; {look}"));
    table::say(format!("to stop it after a checkpoint: scancel --signal=USR1 {id}, then scancel {id} while it waits"));
    Ok(())
}

/// What a batch script starts.
struct Job {
    /// The folder of the run or the sweep.
    dir: String,
    /// The words behind `sae`, without those of its messages.
    command: &'static str,
    words: Vec<String>,
    /// Seconds to save.
    save_s: u32,
    nodes: u32,
    tasks_per_node: u32,
    /// Jobs of an array.
    array: Option<u32>,
}

impl Job {
    /// Ranks that train one run together.
    fn of_recipe(args: &Slurm) -> Result<Job, Failure> {
        let recipe = recipes::read(&args.run.recipe, &args.run.set)?;
        job::mesh_of(args.run.mesh, args.nodes as usize * ranks_per_node(args) as usize, &recipe)?;
        Ok(Job {
            dir: recipe.run.dir.clone(),
            command: "train",
            words: args.run.resuming(),
            save_s: job::save_time(args.save, &recipe)?,
            nodes: args.nodes,
            tasks_per_node: ranks_per_node(args),
            array: None,
        })
    }

    /// Workers of a sweep, each alone on its machine.
    fn of_sweep(args: &Slurm) -> Result<Job, Failure> {
        let sweep = Named::read(&args.run.recipe, None, &args.run.set)?;
        let (slots, workers) = (ranks_per_node(args), args.nodes);
        job::check_mesh_of_slots(args.taking, slots as usize, "--gpus-per-node or --ranks-per-node")?;
        let words = ["--worker", "--workers", &workers.to_string(), "--slots", &slots.to_string()].map(str::to_owned);
        Ok(Job {
            dir: sweep.folder.store.url().to_owned(),
            command: "sweep",
            words: [args.run.words(), words.into(), args.taking.words()].concat(),
            save_s: job::save_time_of_sweep(args.save, &sweep.recipes, slots)?,
            nodes: 1,
            tasks_per_node: 1,
            array: Some(args.nodes),
        })
    }
}

fn ranks_per_node(args: &Slurm) -> u32 {
    args.ranks_per_node.or(args.gpus_per_node).unwrap_or(1)
}

/// The whole batch script.
fn script(args: &Slurm, log: Log, folder: &Path, job: &Job) -> Result<String, Failure> {
    // A `%` of the folder's own is one.
    let escaped = folder.display().to_string().replace('%', "%%");
    let number = if job.array.is_some() { "%A_%a" } else { "%j" };
    let mut options = vec![
        format!("--job-name={}", args.name),
        format!("--nodes={}", job.nodes),
        format!("--ntasks-per-node={}", job.tasks_per_node),
        format!("--output={}", log_file(Path::new(&escaped), number)),
    ];
    options.extend(job.array.map(|jobs| format!("--array=0-{}", jobs - 1)));
    options.extend(args.gpus_per_node.map(|gpus| format!("--gpus-per-node={gpus}")));
    options.extend(args.cpus_per_task.map(|cores| format!("--cpus-per-task={cores}")));
    let named = [("mem", &args.mem), ("time", &args.time), ("partition", &args.partition), ("account", &args.account)];
    options.extend(named.into_iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?))));
    if !args.sbatch.iter().any(|option| option.starts_with("chdir=")) {
        // Paths of the recipe and in it are from here, wherever the script is submitted.
        let here =
            std::env::current_dir().map_err(|error| Failure::arguments(format!("no working folder: {error}")))?;
        options.push(format!("--chdir={}", here.display()));
    }
    options.extend(args.sbatch.iter().map(|option| format!("--{option}")));
    let mut lines = Vec::new();
    for option in &options {
        // sbatch reads these lines with quotes, as a shell does.
        lines.push(format!("#SBATCH {}", quoted_line(&[option])?));
    }
    let program = program()?;
    let options = [handed_on(log), job.words.clone()].concat();
    let words: Vec<&str> =
        [program.as_str(), job.command].into_iter().chain(options.iter().map(String::as_str)).collect();
    let script = fill(
        include_str!("../../../templates/slurm.sh"),
        &[
            ("checksum", String::new()),
            ("options", lines.join("\n")),
            ("save_s", job.save_s.to_string()),
            ("prologue", prologue(args.prologue.as_deref())?),
            ("command", quoted_line(&words)?),
            ("restarts", args.restarts.to_string()),
        ],
    );
    Ok(sealed(&script))
}

/// The lines that run before the ranks, with what `set -e` in them would do to the lines behind undone.
fn prologue(path: Option<&Path>) -> Result<String, Failure> {
    let Some(path) = path else { return Ok(String::new()) };
    let cannot = |problem: String| Failure::arguments(format!("--prologue {}: {problem}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
    if text.lines().any(|line| line.starts_with("#SBATCH")) {
        return Err(cannot("sbatch does not read #SBATCH lines from there: give options by --sbatch".to_owned()));
    }
    Ok(format!("\n# As --prologue had it.\n{}\nset +eu\n", text.trim_end()))
}

/// A script without a checksum, with that of its text.
fn sealed(script: &str) -> String {
    script.replacen(CHECKSUM, &format!("{CHECKSUM}{:08x}", crc32c::crc32c(script.as_bytes())), 1)
}

/// Whether a script is as it was made, by the checksum in it.
fn is_as_made(script: &str) -> bool {
    let parts = script.split_once(CHECKSUM).and_then(|(before, after)| Some((before, after.get(8..)?)));
    parts.is_some_and(|(before, after)| sealed(&format!("{before}{CHECKSUM}{after}")) == script)
}

/// Refuses to write over what somebody has changed or written: the job that is meant may be that one.
fn check_not_edited(out: &Path, script: &str) -> Result<(), Failure> {
    match fs::read(out) {
        Ok(bytes) if bytes == script.as_bytes() || str::from_utf8(&bytes).is_ok_and(is_as_made) => Ok(()),
        Ok(_) => Err(Failure::arguments(format!(
            "{} is not as sae launch slurm made it, and is not written over: submit it as it is with sbatch {}, remove it, or say with --out \
             where another one goes",
            out.display(),
            table::quoted(&out.display().to_string())
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::cannot_write(format!("{}: cannot be read: {error}", out.display()))),
    }
}

fn log_file(folder: &Path, job: &str) -> String {
    folder.join(format!("slurm-{job}.out")).display().to_string()
}

/// The id of the job that sbatch makes of a script.
fn submit(script: &PathBuf) -> Result<String, Failure> {
    let output = Command::new("sbatch").arg("--parsable").arg(script).output().map_err(|error| {
        Failure::arguments(format!(
            "sbatch cannot be started: {error}: run this where jobs are submitted, or take the script {}",
            script.display()
        ))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::arguments(format!("sbatch refused {}: {}", script.display(), said.trim())));
    }
    // JOB or JOB;CLUSTER.
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.trim().split(';').next().unwrap_or_default().to_owned())
}

/// This program, for other machines that see the same files.
fn program() -> Result<String, Failure> {
    let path = std::env::current_exe().ok().and_then(|path| path.into_os_string().into_string().ok());
    path.ok_or_else(|| Failure::arguments("the path of this program is no text: put it elsewhere"))
}

/// Words as one line of a shell.
fn quoted_line(words: &[&str]) -> Result<String, Failure> {
    let line = shlex::try_join(words.iter().copied()).ok().filter(|line| !line.contains('\n'));
    line.ok_or_else(|| {
        Failure::arguments(format!("{words:?}: a script has no place for a line break or a NUL in an option"))
    })
}
