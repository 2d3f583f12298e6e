//! Starting ranks: by `sae launch`, and by the launchers of others.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use loader::Dtype;
use tests::fixture::{Fixture, json, plain_rows, text, write_shards};
use tests::jobs::{self, as_rank, by_hand};
use tests::launcher::Launcher;
use tests::mesh::{tiles, train_on};
use tests::processes::{self, wait_for};
use tests::{checkpoints, kills, need, sae};
use trainer::checkpoint;
use trainer::recipe::Every;

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
    let launcher = Launcher::local(&fixture, &[&path]);
    committed(&fixture.path("killed"), 2);
    processes::signal(launcher.ranks(1)[0], "KILL");
    let (code, said) = launcher.ends();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("rank 0 was ended by signal 9") && said.contains("restart=1 restarts=3"), "{said}");
    kills::assert_same_run(&fixture.path("undisturbed"), &fixture.path("killed"));
}

/// Those of people, schedulers, terminals and limits.
#[test]
fn signals_are_passed_on_and_end_in_a_checkpoint() {
    let fixture = Fixture::with_data();
    for (name, by_group) in
        [("TERM", false), ("USR1", true), ("INT", false), ("HUP", false), ("USR2", true), ("XCPU", true)]
    {
        let path = fixture.save(name, &kills::recipe(&fixture, name));
        let launcher = Launcher::local(&fixture, &[&path]);
        committed(&fixture.path(name), 1);
        // As SLURM does: every process of the job gets it, and must not take the launcher's for a second one.
        if by_group {
            processes::signal(launcher.ranks(1)[0], name);
        }
        processes::signal(launcher.id(), name);
        let (code, said) = launcher.ends();
        assert_eq!(code, Some(75), "{name}: {said}");
        assert!(said.contains("after saving") && !said.contains("restart"), "{name}: {said}");
    }
}

/// The time of `ulimit -t`: the system sends SIGXCPU, and SIGKILL some seconds later.
#[test]
fn a_limit_of_processor_time_ends_in_a_checkpoint() {
    let fixture = Fixture::with_data();
    let mut recipe = kills::recipe(&fixture, "run");
    // Several seconds of work.
    recipe.sae.features = 16_384;
    recipe.checkpoint.every = Every::Steps(1000);
    let path = fixture.save("recipe", &recipe);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -t 1; exec \"$@\"", "sh", &text(sae::binary()), "train", &path]);
    let (code, said) = Launcher::start(&fixture, "limited", command).ends();
    assert_eq!(code, Some(75), "{said}");
    assert_eq!(checkpoints::committed(&fixture.path("run")).len(), 1, "{said}");
}

/// The size of `ulimit -f`: a file that cannot grow is said, as on a full disk.
#[test]
fn a_limit_of_file_sizes_is_said() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let mut command = Command::new("sh");
    // 16 KiB: enough for the recipe, and not for weights.
    command.args(["-c", "ulimit -f 32; exec \"$@\"", "sh", &text(sae::binary()), "train", &path]);
    // Not to a file, which would have the same limit.
    let output = command.output().expect("sh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("cannot write") && said.contains("too large"), "{said}");
}

/// nohup says that the run is to outlive its terminal.
#[test]
fn nohup_is_obeyed() {
    let fixture = Fixture::with_data();
    for words in [&["train"][..], &["launch", "local"]] {
        let name = words.concat();
        let path = fixture.save(&name, &kills::recipe(&fixture, &name));
        let mut command = Command::new("nohup");
        command.arg(sae::binary()).args(words).arg(&path);
        let run = Launcher::start(&fixture, &name, command);
        committed(&fixture.path(&name), 1);
        processes::signal(run.id(), "HUP");
        let (code, said) = run.ends();
        assert_eq!(code, Some(0), "{said}");
    }
}

/// A terminal that is closed: SIGHUP comes, on which a run saves and ends with 75, and what is written to it fails, which must not matter
/// to one that was started to outlive it.
#[test]
fn a_closed_terminal_ends_in_a_checkpoint_or_not_at_all() {
    if !need::programs(&["script"], "bsdutils") {
        return;
    }
    let fixture = Fixture::with_data();
    // The shell passes SIGHUP on to what it runs, as those at which people type do, and lives on to tell the exit code.
    let passed_on = "trap 'kill -HUP $!' HUP";
    for (name, words, trap, expected) in [
        ("train", "train", passed_on, "75"),
        ("launch", "launch local", passed_on, "75"),
        ("outlives", "train", "trap '' HUP", "0"),
    ] {
        let path = fixture.save(name, &kills::recipe(&fixture, name));
        let code = fixture.path(format!("{name}.code"));
        let (sae, told) = (text(sae::binary()), text(&code.with_extension("tmp")));
        // A signal ends the waiting first.
        let wait = "wait $!; code=$?; if [ $code -gt 128 ]; then wait $!; code=$?; fi";
        let run = format!("{sae} {words} {path} & {wait}; echo $code > {told}; mv {told} {}", text(&code));
        let mut terminal = Command::new("script");
        terminal.args(["-q", "-e", "-c", &format!("{trap}; {run}"), "/dev/null"]);
        let mut terminal = terminal.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("script starts");
        committed(&fixture.path(name), 1);
        terminal.kill().expect("the terminal is closed");
        terminal.wait().expect("a child can be waited for");
        let ended = wait_for("the exit code", || fs::read_to_string(&code).ok());
        assert_eq!(ended.trim(), expected, "{name}");
        sae::run(&["train", &path, "--resume"]).exits(0);
    }
}

/// The reader of the output is gone: the run is not.
#[test]
fn a_run_goes_on_when_nobody_reads_what_it_says() {
    let fixture = Fixture::with_data();
    for words in [&["train"][..], &["--log", "json", "train"], &["launch", "local"]] {
        let name = words.join("-");
        let path = fixture.save(&name, &kills::recipe(&fixture, &name));
        let mut command = sae::sae(&[words, &[&path]].concat());
        let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sae starts");
        drop((run.stdout.take(), run.stderr.take()));
        assert_eq!(run.wait().expect("a child can be waited for").code(), Some(0), "{words:?}");
        assert!(fixture.path(&name).join("summary.json").exists(), "{words:?}");
    }
}

#[test]
fn a_killed_launcher_leaves_no_orphan() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let launcher = Launcher::local(&fixture, &[&path]);
    committed(&fixture.path("run"), 1);
    let rank = launcher.ranks(1)[0];
    // Frozen, it cannot come to its end by itself: only being killed ends it.
    processes::signal(rank, "STOP");
    assert!(processes::runs(rank), "the run was too short to be frozen");
    processes::signal(launcher.id(), "KILL");
    launcher.ends();
    wait_for("the rank's end", || (!processes::runs(rank)).then_some(()));
    sae::run(&["launch", "local", &path, "--resume"]).exits(0);
}

#[test]
fn restarts_have_an_end() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let launcher = Launcher::local(&fixture, &["--restarts", "1", &path]);
    let first = launcher.ranks(1)[0];
    processes::signal(first, "KILL");
    let again = || processes::children(launcher.id()).into_iter().find(|&pid| pid != first);
    processes::signal(wait_for("a second rank", again), "KILL");
    let (code, said) = launcher.ends();
    assert_eq!(code, Some(71), "{said}");
    assert!(said.contains("; 1 restart did not help"), "{said}");

    let path = fixture.save("once", &kills::recipe(&fixture, "once"));
    let launcher = Launcher::local(&fixture, &["--restarts", "0", &path]);
    processes::signal(launcher.ranks(1)[0], "KILL");
    let (code, said) = launcher.ends();
    assert_eq!(code, Some(71), "{said}");
    assert!(said.contains("with --restarts 0 it is not started again") && !said.contains("did not help"), "{said}");
}

/// A batch script that somebody has changed is not written over; one that is as it was made is.
#[test]
fn a_batch_script_that_was_changed_is_kept() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let script = fixture.path("run/job.sh");
    // Nothing is submitted: there is no sbatch on the path.
    let launch = |options: &[&str], said: &[&str]| {
        let mut command = sae::sae(&[&["launch", "slurm"], options, &[&path]].concat());
        let output = command.env("PATH", fixture.path("empty")).output().expect("sae runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{told}");
        assert!(said.iter().all(|part| told.contains(part)), "{told}");
    };
    let written = ["sbatch cannot be started"];
    for options in [&[][..], &[], &["--time", "10"]] {
        launch(options, &written);
        let made = fs::read_to_string(&script).expect("a script");
        assert_eq!(made.contains("--time=10"), !options.is_empty(), "{made}");
    }
    let made = fs::read_to_string(&script).expect("a script");
    let changed = made.replace("--time=10", "--time=20");
    for other in [changed.as_str(), &made.replace("checksum ", ""), "#!/bin/bash\nsrun sae train my.toml\n", ""] {
        fs::write(&script, other).expect("written");
        launch(&["--time", "30"], &["run/job.sh is not as sae launch slurm made it", "sbatch ", "--out"]);
        assert_eq!(fs::read_to_string(&script).expect("a script"), other);
    }
    fs::write(&script, &made).expect("written");
    launch(&["--time", "30"], &written);
    assert!(fs::read_to_string(&script).expect("a script").contains("--time=30"));
    let elsewhere = fixture.text("other.sh");
    fs::write(&script, &changed).expect("written");
    launch(&["--out", &elsewhere], &written);
    assert!(Path::new(&elsewhere).exists());
}

/// What is said before `launch` about messages and stores holds for the ranks.
#[test]
fn options_of_all_commands_are_handed_on() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let all = ["--log", "json", "--patience", "30", "launch"];
    let script = sae::run(&[&all[..], &["slurm", "--dry-run", &path]].concat()).exits(0).stdout;
    assert!(script.contains("train --log json --patience 30 "), "{script}");
    let manifest = sae::run(&[&all[..], &["k8s", "--image", "sae", &path]].concat()).exits(0).stdout;
    assert!(manifest.contains(r#""train","--log","json","--patience","30","#), "{manifest}");
}

/// Pods have the time to save that is asked for, and never less than a run needs to agree on it.
#[test]
fn pods_are_given_time_to_save() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let manifest = |more: &[&str]| sae::run(&[&["launch", "k8s", "--image", "sae"], more, &[&path]].concat());
    // What storing takes at 5 GB/s, three times, where that is more than the least.
    let stored = (3.0 * checkpoint::bytes(32, 400_000_000) as f64 / 5e9).ceil() as u32;
    let large = ["--set", "sae.features=400e6"];
    for (more, seconds) in [(&[][..], 120), (&["--save-s", "900"], 900), (&large, stored)] {
        let manifest = manifest(more).exits(0).stdout;
        assert!(manifest.contains(&format!("terminationGracePeriodSeconds: {seconds}\n")), "{manifest}");
    }
    manifest(&["--set", "data.train=nowhere"]).exits(0).says(&["nowhere", "gets 120 s to save", "--save-s"]);
    manifest(&["--save-s", "30"]).exits(64).says(&["--save-s", "120"]);
    let help = sae::run(&["launch", "k8s", "--help"]).exits(0).stdout;
    assert!(help.contains("terminationGracePeriodSeconds"), "{help}");
    // 10 GB at 50 MB/s: three times 200 s, and some for biases.
    let sizes = ["--width", "4096", "--rows", "1e9", "--set", "sae.features=101_725", "--storage", "0.05"];
    let plan = sae::run(&[&["plan", &path, "--gpus", "16"], &sizes[..]].concat()).exits(0).stdout;
    assert!(plan.contains("--save-s of a job") && plan.contains(" --save-s 60"), "{plan}");
}

/// What sbatch is given, and that a prologue comes before the ranks without deciding what follows them.
#[test]
fn a_batch_script_says_what_was_asked_for() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let prologue = fixture.text("modules.sh");
    fs::write(&prologue, "set -eu\nmodule load cuda/13 # {{x}}\n").expect("written");
    let words =
        ["launch", "slurm", &path, "--cpus-per-task", "6", "--mem", "64G", "--prologue", &prologue, "--dry-run"];
    let script = sae::run(&words).exits(0).stdout;
    for part in ["--cpus-per-task=6", "--mem=64G", "--signal=USR1@120\n", "\nmodule load cuda/13 # {{x}}\n"] {
        assert!(script.contains(part), "{part}: {script}");
    }
    let at = |part: &str| script.find(part).unwrap_or_else(|| panic!("{part}: {script}"));
    assert!(at("#SBATCH --signal") < at("set -eu") && at("set -eu") < at("set +eu") && at("set +eu") < at("srun "));
    // sbatch fills in what follows a `%`.
    let out = fixture.text("a%3Ab/job.sh");
    let bare =
        sae::run(&["launch", "slurm", "--out", &out, &path, "--dry-run"]).exits(0).says(&["--cpus-per-task"]).stdout;
    assert!(bare.contains("/a%%3Ab/slurm-%j.out"), "{bare}");
    assert!(!bare.contains("set +eu") && !bare.contains("--mem"), "{bare}");
    fs::write(&prologue, "#SBATCH --mem=1G\n").expect("written");
    sae::run(&words).exits(64).says(&["modules.sh", "--sbatch"]);
    fs::remove_file(&prologue).expect("removed");
    sae::run(&words).exits(64).says(&["modules.sh", "No such file"]);
}

/// Launchers on two machines, started once on each by something else, train together: as the ranks of one launcher do.
#[test]
fn launchers_of_several_machines_train_together() {
    let fixture = Fixture::with_data();
    let path = fixture.save("alone", &jobs::recipe(&fixture, "alone"));
    sae::run(&[&["launch", "local"], &jobs::words("4", &path, "2x2")[..]].concat()).exits(0);
    let nodes = |run: &str, more: &[&str]| -> Vec<Launcher> {
        let path = fixture.save(run, &jobs::recipe(&fixture, run));
        let start = |node: &str| {
            let words = ["launch", "local", &path, "--as-node", "--ranks", "2", "--mesh", "2x2", "--resume-or-start"];
            let mut command = sae::sae(&[&words[..], more].concat());
            command.envs([("JOB_COMPLETIONS", "2"), ("JOB_COMPLETION_INDEX", node), ("SAE_ATTEMPT", run)]);
            Launcher::start(&fixture, &format!("{run}-{node}"), command)
        };
        ["0", "1"].map(start).into()
    };
    for node in nodes("nodes", &[]) {
        let (code, said) = node.ends();
        assert_eq!(code, Some(0), "{said}");
    }
    jobs::assert_same_run(&fixture.path("alone"), &fixture.path("nodes"));
    // What started the launchers starts all again, so none of them does.
    let pair = nodes("killed", &[]);
    committed(&fixture.path("killed"), 1);
    processes::signal(pair[1].ranks(2)[1], "KILL");
    for (node, launcher) in pair.into_iter().enumerate() {
        let (code, said) = launcher.ends();
        assert_eq!(code, Some(71), "{said}");
        assert!(!said.contains("restart=1"), "{said}");
        assert!(node == 0 || said.contains("rank 3 was ended by signal 9"), "{said}");
    }
    let outside = [("JOB_COMPLETIONS", "2"), ("JOB_COMPLETION_INDEX", "0"), ("SAE_ATTEMPT", "one")];
    sae::run_with(&["launch", "local", &path], &outside).exits(64).says(&["Kubernetes has started 2", "--as-node"]);
}

/// What would come again is not tried again, and its cause is reported.
#[test]
fn what_a_restart_does_not_help_ends_at_once() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let missing = format!("data.train={}", fixture.text("missing"));
    let finished = sae::run(&["launch", "local", &path, "--set", &missing]);
    assert!([64, 65].contains(&finished.code.unwrap_or(0)), "{finished:?}");
    assert!(finished.stderr.contains("missing") && !finished.stderr.contains("restart"), "{}", finished.stderr);
    // What all ranks fail of together is said once.
    sae::run(&["train", &path]).exits(0);
    let said = sae::run(&["launch", "local", &path, "--ranks", "2"]).exits(64);
    let said = said.says(&["rank 0 ended with exit code 64"]).stderr;
    assert_eq!(said.matches("already holds a run").count(), 1, "{said}");
    sae::run(&["launch", "local", &path, "--resme"]).exits(64).says(&["--resume"]);
    sae::run(&["launch", "local", &fixture.text("no.toml")]).exits(64).says(&["no such recipe"]);
}

/// A mesh of processes is the mesh of threads: the same weights, metrics and rows, bit for bit. Other meshes agree up to rounding.
#[test]
fn processes_train_to_the_bits_of_threads() {
    let fixture = Fixture::with_data();
    let threads = jobs::recipe(&fixture, "threads");
    let mesh = |text: &str| text.parse().expect("a mesh");
    train_on(mesh("2x2"), &threads, false, None).into_iter().for_each(|rank| drop(rank.expect("it trains")));
    for shape in ["2x2", "1x4", "4x1"] {
        let path = fixture.save(shape, &jobs::recipe(&fixture, shape));
        sae::run(&[&["launch", "local"], &jobs::words("4", &path, shape)[..]].concat()).exits(0);
        let run = fixture.path(shape);
        assert!(kills::rows(&run) == kills::rows(&fixture.path("threads")), "{shape}: the order of rows");
    }
    kills::assert_same_run(&fixture.path("threads"), &fixture.path("2x2"));
    assert!(tiles(&fixture.path("threads")) == tiles(&fixture.path("2x2")), "every tile");
    let losses = |run: &str| -> Vec<f64> {
        let lines = kills::metrics(&fixture.path(run));
        lines.iter().map(|line| line["loss"].as_f64().expect("a loss")).collect()
    };
    let (one, other) = (losses("1x4"), losses("4x1"));
    assert!(one.len() == 49 && other.len() == 49, "{one:?} {other:?}");
    let far = one.iter().zip(&other).take(40).map(|(a, b)| (a - b).abs() / a.abs()).fold(0.0, f64::max);
    assert!(far <= 1e-4, "{far}");
}

/// Ranks of one job that were started with different things say with which, and train nothing.
#[test]
fn ranks_that_differ_are_refused() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &jobs::recipe(&fixture, "run"));
    let pair = |attempt: &str, first: &[&str], second: &[&str]| {
        [first, second]
            .iter()
            .enumerate()
            .map(|(rank, more)| {
                let words =
                    [by_hand(rank, 2, true, attempt, &path), more.iter().map(|&word| word.to_owned()).collect()];
                Launcher::start(&fixture, &format!("{attempt}-{rank}"), sae::sae(&words.concat()))
            })
            .collect::<Vec<Launcher>>()
    };
    let mesh = ["--mesh", "2x1"];
    for (attempt, second, said) in [
        (
            "recipe",
            &["--mesh", "2x1", "--set", "train.lr=0.5"][..],
            ["train.lr: ", "rank 0 has 0.001", "rank 1 has 0.5"],
        ),
        ("mesh", &["--mesh", "1x2"], ["mesh: ", "rank 0 has 2x1", "rank 1 has 1x2"]),
    ] {
        for rank in pair(attempt, &mesh, second) {
            let (code, told) = rank.ends();
            assert_eq!(code, Some(64), "{told}");
            assert!(said.iter().all(|part| told.contains(part)), "{told}");
        }
    }
    // Another version introduces itself.
    let words = [by_hand(0, 2, true, "version", &path), mesh.map(str::to_owned).to_vec()].concat();
    let rank = Launcher::start(&fixture, "version", sae::sae(&words));
    let introduction = |rank: usize| fixture.path(format!("run/meeting/version/rank-{rank:06}.json"));
    wait_for("an introduction", || introduction(0).exists().then_some(()));
    let mut other = json(&introduction(0));
    (other["rank"], other["software"], other["token"]) = (1.into(), "sae 0.0.1".into(), serde_json::Value::Null);
    fs::write(fixture.path("other.json"), other.to_string()).expect("written");
    // At once, as a rank does it.
    fs::rename(fixture.path("other.json"), introduction(1)).expect("it comes");
    let (code, told) = rank.ends();
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("version: rank 0 has sae 0.1.0, rank 1 has sae 0.0.1"), "{told}");
    assert!(!fixture.path("run/config.toml").exists(), "nothing was begun");
}

/// A path that leads to other rows on one machine: the ranks are named, and nothing is trained.
#[test]
fn ranks_that_see_other_rows_are_refused() {
    let fixture = Fixture::with_data();
    let mut recipe = jobs::recipe(&fixture, "run");
    recipe.data.train = vec!["acts".to_owned()];
    let path = fixture.save("recipe", &recipe);
    for (machine, seed) in [("a", 5), ("b", 6)] {
        write_shards(&fixture.path(machine).join("acts"), 32, &plain_rows(3000, 32, seed), Dtype::F16, 1000);
    }
    let ranks: Vec<Launcher> = ["a", "a", "b", "a"]
        .iter()
        .enumerate()
        .map(|(rank, machine)| {
            let mut command = sae::sae(&by_hand(rank, 4, true, "one", &path));
            command.current_dir(fixture.path(machine));
            Launcher::start(&fixture, &format!("rank-{rank}"), command)
        })
        .collect();
    for rank in ranks {
        let (code, told) = rank.ends();
        assert_eq!(code, Some(65), "{told}");
        assert!(told.contains("data.train is not the same on all ranks"), "{told}");
        assert!(told.contains("on rank 0, 1, 3 and ") && told.contains("on rank 2: "), "{told}");
    }
    assert!(!fixture.path("run/config.toml").exists(), "nothing was begun");
}

#[test]
fn launchers_inside_launchers_are_refused() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let inside =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2"), ("SAE_ATTEMPT", "1")];
    sae::run_with(&["launch", "local", &path], &inside).exits(64).says(&["torchrun has started 2 processes"]);
    let foreign = [("SAE_LAUNCHER", "1")];
    sae::run_with(&["train", &path], &foreign).exits(64).says(&["unset SAE_LAUNCHER"]);
    let words = ["launch", "local", &path, "--ranks", "2", "--mesh", "2x2"];
    sae::run(&words).exits(64).says(&["--mesh 2x2 is for 4 ranks"]);
    assert!(!Path::new(&text(&fixture.path("run"))).exists(), "nothing was begun");
}

#[test]
fn the_doctor_looks_at_all_and_names_what_is_wrong() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &kills::recipe(&fixture, "run"));
    let fits = |said: &str| said.lines().all(|line| line.chars().count() <= 100);
    let well = sae::run(&["doctor", &path]).exits(0).stdout;
    assert!(fits(&well), "{well}");
    for part in
        ["rank 0 of 1, 0 of 1 here, started by no launcher", "15,401 rows × 32 f16", "run.dir", "free", "open files"]
    {
        assert!(well.contains(part), "{part}: {well}");
    }
    assert!(checkpoints::files(&fixture.path("run")).is_empty(), "the probe is removed");
    let doctors = [0, 1].map(|rank| {
        let mut command = sae::sae(&["doctor", &path]);
        command.args(as_rank(rank, 2, true, "one")).stdout(Stdio::piped()).spawn().expect("sae starts")
    });
    for doctor in doctors {
        let output = doctor.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("between ranks") && said.contains("over TCP"), "{said}");
    }
    assert!(checkpoints::files(&fixture.path("run")).is_empty(), "nothing of the meeting stays");
    let missing = format!("data.train={}", fixture.text("missing"));
    let ill = sae::run(&["doctor", &path, "--set", &missing]).exits(64).says(&["1 check failed"]).stdout;
    assert!(ill.contains("failed") && ill.contains("missing") && ill.contains("rank 0 of 1"), "{ill}");
    let nowhere = ["doctor", &path, "--set", &missing, "--set", "run.dir=/proc/nowhere"];
    let contradiction =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"), ("JOB_COMPLETIONS", "2")];
    let ill = sae::run_with(&nowhere, &contradiction).exits(64).says(&["3 checks failed"]).stdout;
    assert!(fits(&ill), "{ill}");
    // Words, wherever the lines break.
    let words = ill.split(|c: char| c.is_whitespace() || c == '│').filter(|word| !word.is_empty());
    let words = words.collect::<Vec<_>>().join(" ");
    for remedy in ["or unset JOB_COMPLETIONS", "correct data.train, or put shards there", "or choose another run.dir"] {
        assert!(words.contains(remedy), "{remedy}: {ill}");
    }
}
