//! Sweeps whose workers a launcher starts: arrays of SLURM and jobs of Kubernetes.

use std::process::Command;

use tests::fixture::Fixture;
use tests::slurm::Slurm;
use tests::sweeps;
use tests::{need, sae};

/// What launchers start takes a mesh and beats as they are told to.
#[test]
fn launchers_hand_on_how_configurations_are_taken() {
    let fixture = Fixture::with_data();
    let text = format!("dir = '{}'\n{}", fixture.text("sweep"), sweeps::six(&fixture));
    let sweep = fixture.save_text("six", &text);
    let taking = ["--mesh-from", "4M", "--heartbeat", "0.5"];
    let slurm = ["launch", "slurm", &sweep, "--sweep", "--dry-run", "--cpus-per-task", "2"];
    let k8s = ["launch", "k8s", &sweep, "--sweep", "--image", "registry/sae:0.1"];
    for (launch, per, said) in [
        (&slurm[..], "--gpus-per-node", "--mesh-from 4194304 --heartbeat 0.5"),
        (&k8s, "--gpus-per-pod", r#""--mesh-from","4194304","--heartbeat","0.5""#),
    ] {
        let printed = sae::run(&[launch, &[per, "8"], &taking].concat()).exits(0).stdout;
        assert!(printed.contains(said), "{said}: {printed}");
        sae::run(&[launch, &taking].concat()).exits(64).says(&["there is one: say how many with", per]);
    }
    let run = fixture.save("run", &fixture.recipe("run"));
    sae::run(&["launch", "k8s", &run, "--image", "registry/sae:0.1", "--mesh-from", "4M"]).exits(64).says(&["--sweep"]);
}

/// Workers of an array share a sweep of twelve; one that is asked to stop goes back into the queue.
#[test]
fn an_array_of_slurm_trains_a_sweep() {
    if !need::programs(&["slurmctld", "slurmd", "sbatch"], "slurmctld slurmd slurm-client") {
        return;
    }
    let (fixture, slurm) = (Fixture::with_data(), Slurm::start());
    let dir = fixture.text("sweep");
    let axes = "[axes]\ntrain.seed = [0, 1]\n";
    let text = format!("dir = '{dir}'\n{}", sweeps::six(&fixture).replace("[axes]\n", axes));
    let sweep = fixture.save_text("twelve", &text);
    let said =
        slurm.sae(&["launch", "slurm", &sweep, "--sweep", "--nodes", "2", "--cpus-per-task", "2", "--device", "cpu"]);
    let job = said.strip_prefix("job ").and_then(|rest| rest.split_once(',')).expect("a job").0.to_owned();
    for task in 0..2 {
        let state = slurm.end(&format!("{job}_{task}"));
        let log = std::fs::read_to_string(fixture.path(format!("sweep/slurm-{job}_{task}.out"))).unwrap_or_default();
        assert_eq!(state, "COMPLETED 0:0", "{log}");
    }
    let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    assert_eq!(status["counts"]["done"], 12, "{status}");
    let logs = [0, 1]
        .map(|task| std::fs::read_to_string(fixture.path(format!("sweep/slurm-{job}_{task}.out"))).expect("a log"));
    let begun = logs.each_ref().map(|log| log.matches("begins: ").count());
    assert_eq!(begun[0] + begun[1], 12, "{logs:?}");
}

/// The manifest carries the sweep, says what exit codes mean, and has no field that a Job has not.
#[test]
fn the_job_of_a_sweep_is_what_kubernetes_takes() {
    let Some(python) = need::python() else { return };
    let fixture = Fixture::with_data();
    let sweep = fixture.save_text("six", &format!("dir = 's3://bucket/sweep'\n{}", sweeps::six(&fixture)));
    let words =
        ["launch", "k8s", &sweep, "--sweep", "--pods", "3", "--gpus-per-pod", "2", "--image", "registry/sae:0.1"];
    let credentials = [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "c4n4ry-never-print-me")];
    let manifest = sae::run_with(&words, &credentials).exits(0).stdout;
    let file = fixture.path("job.yaml");
    std::fs::write(&file, &manifest).expect("written");
    let script = tests::root().join("tests/reference/sweep_job.py");
    let output = Command::new(python).args([script.as_path(), &file]).output().expect("Python runs");
    assert!(output.status.success(), "{}\n{manifest}", String::from_utf8_lossy(&output.stderr));
}
