//! Starting ranks: by `sae launch`, and by the launchers of others.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::fixture::{Fixture, text};
use tests::processes::{self, wait_for};
use tests::{checkpoints, kills, sae};

/// A launcher that runs, and what it writes to standard error.
struct Launcher {
    child: Child,
    errors: fs::File,
    errors_at: std::path::PathBuf,
}

impl Launcher {
    fn start(fixture: &Fixture, mut command: Command) -> Self {
        let errors_at = fixture.path("errors.txt");
        let errors = fs::File::create(&errors_at).expect("a file");
        command.stdout(Stdio::null()).stderr(errors.try_clone().expect("a handle"));
        Launcher { child: command.spawn().expect("sae starts"), errors, errors_at }
    }

    fn local(fixture: &Fixture, options: &[&str], recipe: &str) -> Self {
        Launcher::start(fixture, sae::sae(&[&["launch", "local"], options, &[recipe]].concat()))
    }

    /// The one rank that it started, once that is there.
    fn rank(&self) -> u32 {
        wait_for("a rank", || processes::children(self.child.id()).first().copied())
    }

    /// Its exit code and what it said.
    fn ends(mut self) -> (Option<i32>, String) {
        let status = wait_for("the launcher's end", || self.child.try_wait().expect("a child has a state"));
        self.errors.sync_all().expect("written");
        let mut said = String::new();
        fs::File::open(&self.errors_at).and_then(|mut file| file.read_to_string(&mut said)).expect("read");
        (status.code(), said)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn committed(run: &Path, count: usize) {
    wait_for("a checkpoint", || (checkpoints::committed(run).len() >= count).then_some(()));
}

/// A rank that is killed is started again from its checkpoint, and the run becomes the undisturbed one.
#[test]
fn a_killed_rank_is_started_again() {
    let fixture = Fixture::with_data();
    let undisturbed = fixture.save("undisturbed", &kills::recipe(&fixture, "undisturbed"));
    sae::run(&["train", &undisturbed]).exits(0);
    let path = fixture.save("killed", &kills::recipe(&fixture, "killed"));
    let launcher = Launcher::local(&fixture, &[], &path);
    committed(&fixture.path("killed"), 2);
    processes::signal(launcher.rank(), "KILL");
    let (code, said) = launcher.ends();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("rank 0 was ended by signal 9") && said.contains("restart 1 of 3"), "{said}");
    kills::assert_same_run(&fixture.path("undisturbed"), &fixture.path("killed"));
}

#[test]
fn signals_are_passed_on_and_end_in_a_checkpoint() {
    let fixture = Fixture::with_data();
    for (name, by_group) in [("TERM", false), ("USR1", true), ("INT", false)] {
        let path = fixture.save(name, &kills::recipe(&fixture, name));
        let launcher = Launcher::local(&fixture, &[], &path);
        committed(&fixture.path(name), 1);
        // As SLURM does: every process of the job gets it, and must not take the launcher's for a second one.
        if by_group {
            processes::signal(launcher.rank(), name);
        }
        processes::signal(launcher.child.id(), name);
        let (code, said) = launcher.ends();
        assert_eq!(code, Some(75), "{name}: {said}");
        assert!(said.contains("after saving") && !said.contains("restart"), "{name}: {said}");
    }
}

#[test]
fn a_killed_launcher_leaves_no_orphan() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let launcher = Launcher::local(&fixture, &[], &path);
    committed(&fixture.path("run"), 1);
    let rank = launcher.rank();
    // Frozen, it cannot come to its end by itself: only being killed ends it.
    processes::signal(rank, "STOP");
    assert!(processes::runs(rank), "the run was too short to be frozen");
    processes::signal(launcher.child.id(), "KILL");
    launcher.ends();
    wait_for("the rank's end", || (!processes::runs(rank)).then_some(()));
    sae::run(&["launch", "local", &path, "--resume"]).exits(0);
}

#[test]
fn restarts_have_an_end() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let launcher = Launcher::local(&fixture, &["--restarts", "1"], &path);
    let first = launcher.rank();
    processes::signal(first, "KILL");
    let again = || processes::children(launcher.child.id()).into_iter().find(|&pid| pid != first);
    processes::signal(wait_for("a second rank", again), "KILL");
    let (code, said) = launcher.ends();
    assert_eq!(code, Some(71), "{said}");
    assert!(said.contains("1 restarts did not help"), "{said}");
}

/// What would come again is not tried again, and its cause is told.
#[test]
fn what_a_restart_does_not_help_ends_at_once() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let missing = format!("data.train={}", fixture.text("missing"));
    let finished = sae::run(&["launch", "local", &path, "--set", &missing]);
    assert!([64, 65].contains(&finished.code.unwrap_or(0)), "{finished:?}");
    assert!(finished.stderr.contains("missing") && !finished.stderr.contains("restart"), "{}", finished.stderr);
    sae::run(&["launch", "local", &path, "--resme"]).exits(64).says(&["--resume"]);
    sae::run(&["launch", "local", &fixture.text("no.toml")]).exits(64).says(&["no such recipe"]);
}

/// Until the trainer knows several ranks, each of them says so.
#[test]
fn several_ranks_are_refused_by_each() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let finished = sae::run(&["launch", "local", "--ranks", "2", &path]).exits(64);
    for said in ["rank 0 of 2", "[rank 1]", "rank 1 of 2", "one rank alone"] {
        assert!(finished.stderr.contains(said), "{said}: {}", finished.stderr);
    }
    let inside =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2"), ("SAE_ATTEMPT", "1")];
    sae::run_with(&["launch", "local", &path], &inside).exits(64).says(&["torchrun has started 2 processes"]);
    let foreign = [("SAE_LAUNCHER", "1")];
    sae::run_with(&["train", &path], &foreign).exits(64).says(&["unset SAE_LAUNCHER"]);
    assert!(!Path::new(&text(&fixture.path("run"))).exists(), "nothing was begun");
}

#[test]
fn the_doctor_looks_at_all_and_names_what_is_wrong() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let well = sae::run(&["doctor", &path]).exits(0).stdout;
    for part in ["rank 0 of 1", "15,401 rows × 32 f16", "run.dir", "free", "open files"] {
        assert!(well.contains(part), "{part}: {well}");
    }
    assert!(checkpoints::files(&fixture.path("run")).is_empty(), "the probe is removed");
    let missing = format!("data.train={}", fixture.text("missing"));
    let ill = sae::run(&["doctor", &path, "--set", &missing]).exits(64).says(&["1 of the checks failed"]).stdout;
    assert!(ill.contains("failed") && ill.contains("missing") && ill.contains("rank 0 of 1"), "{ill}");
}
