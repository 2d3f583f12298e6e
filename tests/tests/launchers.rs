//! The launchers of others, as they are: SLURM, torchrun, mpirun, and what Kubernetes would be given.

use std::path::Path;
use std::process::Command;

use tests::fixture::Fixture;
use tests::processes::{self, wait_for};
use tests::slurm::Slurm;
use tests::{checkpoints, jobs, kills, need, sae};
use trainer::recipe::Scale;

/// What `sae doctor` has found in the checks of a name, sorted.
fn found(said: &[u8], check: &str) -> Vec<String> {
    let said = String::from_utf8_lossy(said);
    let of = |line: &str| {
        let (_, row) = line.split_once(&format!("│ {check}  "))?;
        let (_, found) = row.trim_start().split_once(' ')?;
        Some(found.trim_end_matches('│').trim().to_owned())
    };
    let mut found: Vec<String> = said.lines().filter_map(of).collect();
    found.sort();
    found
}

/// Which ranks it has found.
fn ranks(said: &[u8]) -> Vec<String> {
    found(said, "ranks")
}

/// The distinct attempts.
fn attempts(said: &[u8]) -> Vec<String> {
    let mut attempts = found(said, "attempt");
    attempts.dedup();
    attempts
}

fn binary() -> &'static str {
    sae::binary().to_str().expect("UTF-8")
}

#[test]
fn srun_tells_the_ranks_and_a_batch_script_is_alone() {
    if !need::programs(&["slurmctld", "slurmd", "sbatch"], "slurmctld slurmd slurm-client") {
        return;
    }
    let slurm = Slurm::start();
    let step = slurm.run("srun", &["--nodes=2", "--ntasks-per-node=2", binary(), "doctor"]);
    let place = |rank, local| format!("rank {rank} of 4, {local} of 2 here, started by SLURM");
    assert_eq!(ranks(&step.stdout), [place(0, 0), place(1, 1), place(2, 0), place(3, 1)], "{step:?}");
    assert_eq!(attempts(&step.stdout), ["slurm-1.0.0"]);

    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.txt");
    let (output, wrap) = (format!("--output={}", out.display()), format!("--wrap={} doctor", binary()));
    slurm.run("sbatch", &["--nodes=2", "--ntasks-per-node=2", &output, &wrap]);
    assert_eq!(slurm.end("2"), "COMPLETED 0:0");
    let said = std::fs::read(&out).expect("what the script wrote");
    assert_eq!(ranks(&said), ["rank 0 of 1, 0 of 1 here, started by no launcher"]);
    assert!(String::from_utf8_lossy(&said).contains("SLURM has 4 tasks for this job"), "{out:?}");
}

/// A shell that is one of two tasks: nobody starts sae in the other, so waiting for it has no end. As the only task it trains.
#[test]
fn a_shell_among_tasks_of_slurm_is_told_to_leave() {
    if !need::programs(&["slurmctld", "slurmd", "srun", "script"], "slurmctld slurmd slurm-client bsdutils") {
        return;
    }
    let fixture = Fixture::with_data();
    let slurm = Slurm::start();
    for (tasks, code, told) in [(2, 64, true), (1, 0, false)] {
        let path = fixture.save("recipe", &fixture.recipe(&format!("run-{tasks}")));
        let options = format!("--nodes=1 --ntasks={tasks}");
        let shown = slurm.typed(&options, &format!("{} train {path}; echo it said $?\nexit\n", binary()));
        assert!(shown.contains(&format!("it said {code}")), "{shown}");
        assert_eq!(shown.contains("this shell is one of 2 tasks of a step of SLURM"), told, "{shown}");
    }
}

/// A job of two ranks on each of two machines, one of which is killed, or all are asked to save before the time is over, goes back into
/// the queue, goes on, and becomes the undisturbed run.
#[test]
fn a_job_of_slurm_goes_on_after_a_kill_and_after_its_time() {
    if !need::programs(&["slurmctld", "slurmd", "sbatch"], "slurmctld slurmd slurm-client") {
        return;
    }
    let fixture = Fixture::with_data();
    undisturbed(&fixture, 4, "2x2");
    let slurm = Slurm::start();
    for how in ["killed", "asked"] {
        let path = fixture.save(how, &jobs::recipe(&fixture, how));
        let job = submit(&slurm, &path);
        wait_for("a checkpoint", || (!checkpoints::committed(&fixture.path(how)).is_empty()).then_some(()));
        if how == "killed" {
            processes::signal(wait_for("a rank", || trains(&path)), "KILL");
        } else {
            slurm.run("scancel", &["--signal=USR1", &job]);
        }
        let said = || std::fs::read_to_string(fixture.path(format!("{how}/slurm-{job}.out"))).unwrap_or_default();
        assert_eq!(slurm.end(&job), "COMPLETED 0:0", "{}", said());
        assert!(said().contains("goes back into the queue"), "{}", said());
        assert!(said().contains("ranks have met ranks=4 mesh=2x2"), "{}", said());
        jobs::assert_same_run(&fixture.path("undisturbed"), &fixture.path(how));
    }
    // What another start would not change fails at once, also when three of four ranks could have gone on: srun tells one code.
    jobs::shards_with_a_damaged_one(&fixture.path("damaged"));
    let mut recipe = jobs::recipe(&fixture, "hopeless");
    (recipe.data.train, recipe.data.scale) = (vec![fixture.text("damaged")], Scale::Fixed(3.0));
    let job = submit(&slurm, &fixture.save("hopeless", &recipe));
    assert_eq!(slurm.end(&job), "FAILED 65:0");
}

/// Trains the recipe of jobs on a mesh, into `undisturbed`.
fn undisturbed(fixture: &Fixture, ranks: usize, mesh: &str) {
    let path = fixture.save("undisturbed", &jobs::recipe(fixture, "undisturbed"));
    sae::run(&[&["launch", "local"], &jobs::words(&ranks.to_string(), &path, mesh)[..]].concat()).exits(0);
}

/// A job of two ranks that a launcher starts comes to its end, and is the undisturbed one.
fn trains_two_ranks(launcher: &mut Command) {
    let fixture = Fixture::with_data();
    undisturbed(&fixture, 2, "2x1");
    let path = fixture.save("run", &jobs::recipe(&fixture, "run"));
    let output = launcher.args([binary(), "train", &path, "--mesh", "2x1"]).output().expect("the launcher runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    kills::assert_same_run(&fixture.path("undisturbed"), &fixture.path("run"));
}

/// Submits a recipe by `sae launch slurm`; the job's id. The prologue would end the script where a rank fails.
fn submit(slurm: &Slurm, recipe: &str) -> String {
    let prologue = format!("{recipe}.prologue.sh");
    std::fs::write(&prologue, "set -eu\nexport RUST_LOG=info\n").expect("written");
    let shape = ["--nodes", "2", "--ranks-per-node", "2", "--cpus-per-task", "2", "--mesh", "2x2"];
    let said = slurm.sae(&[&["launch", "slurm", recipe, "--prologue", &prologue], &shape[..]].concat());
    let job = said.strip_prefix("job ").and_then(|rest| rest.split_once(','));
    job.unwrap_or_else(|| panic!("no job in {said}")).0.to_owned()
}

/// The process that trains a recipe: not the srun that has the same words in its command line.
fn trains(recipe: &str) -> Option<u32> {
    let is_sae = |id: &u32| processes::words(*id).first().is_some_and(|first| first == binary());
    processes::with_word(recipe).into_iter().find(is_sae)
}

#[test]
fn torchrun_tells_the_ranks_which_train() {
    let Some(python) = need::python() else { return };
    let torchrun = || {
        let mut torchrun = Command::new(python.with_file_name("torchrun"));
        torchrun.args(["--standalone", "--nproc-per-node=2", "--no-python"]);
        torchrun
    };
    let output = torchrun().args([binary(), "doctor"]).output().expect("torchrun runs");
    let place = |rank| format!("rank {rank} of 2, {rank} of 2 here, started by torchrun");
    assert_eq!(ranks(&output.stdout), [place(0), place(1)], "{output:?}");
    assert_eq!(attempts(&output.stdout).len(), 1);
    trains_two_ranks(&mut torchrun());
}

#[test]
fn mpirun_tells_the_ranks_which_train() {
    if !need::programs(&["mpirun"], "openmpi-bin") {
        return;
    }
    let mpirun = |ranks: &str| {
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe", "-np", ranks]);
        mpirun
    };
    let start = || mpirun("3").args([binary(), "doctor"]).output().expect("mpirun runs").stdout;
    let (first, second) = (start(), start());
    let place = |rank| format!("rank {rank} of 3, {rank} of 3 here, started by mpirun");
    assert_eq!(ranks(&first), [place(0), place(1), place(2)], "{}", String::from_utf8_lossy(&first));
    assert_eq!(attempts(&first).len(), 1, "all ranks are of one start");
    assert_ne!(attempts(&first), attempts(&second), "another start is another attempt");
    trains_two_ranks(&mut mpirun("2"));
}

/// The manifest is YAML that says what the exit codes mean and carries the recipe, and every field is one that a JobSet has.
#[test]
fn the_jobset_is_what_kubernetes_takes() {
    let Some(python) = need::python() else { return };
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let image = ["launch", "k8s", &path, "--image", "registry/sae:0.1", "--secret", "s3", "--set", "train.l1=7.5"];
    let large = [
        &["--pods", "2", "--gpus-per-pod", "8", "--mesh", "2x8", "--set", "sae.features=4096", "--namespace", "interp"],
        &["--service-account", "reader", "--cpu", "96", "--memory", "800Gi", "--node-selector", "gpu=h200"][..],
        &["--toleration", "nvidia.com/gpu", "--toleration", "pool=sae:NoSchedule"],
    ];
    let large = sae::run(&[&image[..], &large.concat()].concat()).exits(0).stdout;
    let manifest = sae::run(&[&image[..], &["--pods", "4"]].concat()).exits(0).stdout;
    assert!(manifest.contains("\n    l1 = 7.5\n"), "the recipe can be read: {manifest}");
    let file = fixture.path("job.yaml");
    let script = tests::root().join("tests/reference/jobset.py");
    let check = |file: &Path| Command::new(&python).args([script.as_path(), file]).output().expect("Python runs");
    for good in [&manifest, &large] {
        std::fs::write(&file, good).expect("written");
        let output = check(&file);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for (field, wrong) in [("PeriodSeconds:", "Period:"), ("PeriodSeconds: 120", "PeriodSeconds: soon")] {
        std::fs::write(&file, manifest.replace(field, wrong)).expect("written");
        assert!(!check(&file).status.success(), "{wrong}");
    }
}
