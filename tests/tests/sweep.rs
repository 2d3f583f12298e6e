//! Sweeps: each configuration is done once, whatever is killed and however many submit; what is wrong is said by its name and loses nothing.

#[path = "sweep/launched.rs"]
mod launched;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;

use loader::Dtype;
use tests::checkpoints;
use tests::fixture::{Fixture, json, plain_rows, write_shards};
use tests::processes::wait_for;
use tests::s3::S3;
use tests::sweeps::{self, Place};
use tests::{need, sae};

/// Kills of a sweep, in CI: SAE_KILLS takes another number.
fn kills() -> u32 {
    std::env::var("SAE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(5)
}

fn says(line: String) {
    println!("{line}");
}

#[test]
fn a_sweep_that_is_killed_is_done_once() {
    let fixture = Fixture::with_data();
    let finished = sweeps::soak(&Place::Local, &fixture, kills(), 1, &mut says);
    // Submitted again it does nothing.
    let dir = fixture.text(&format!("killed-{}", finished - 1));
    let before = sweeps::contents(&dir);
    let sweep = fixture.text("six.toml");
    let again = sae::run(&sweeps::words(&sweep, &dir)).exits(0);
    assert!(!again.stderr.contains("begins: "), "{}", again.stderr);
    assert_eq!(sweeps::contents(&dir), before, "nothing was written");
    // A process that is killed just before it lets go leaves a claim: nobody waits for it, and the next sweep takes it away.
    let id = before.iter().find_map(|(key, _)| key.strip_prefix("done/")?.strip_suffix(".json")).expect("one is done");
    let claim = serde_json::json!({
        "owner": "gone", "host": "gone", "pid": 1, "taken": 1, "beat": 3, "every_s": 600.0,
        "progress": { "step": 1, "steps": 2, "tokens": 3, "rows": 4 }
    });
    let left = fixture.path(format!("killed-{}/claims/{id}/gone.json", finished - 1));
    std::fs::create_dir_all(left.parent().expect("a folder")).expect("a folder");
    std::fs::write(&left, claim.to_string()).expect("written");
    let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    assert_eq!((&status["counts"]["done"], &status["counts"]["running"]), (&6.into(), &0.into()), "{status}");
    assert!(status["configurations"].as_array().expect("a list").iter().all(|line| line["host"].is_null()), "{status}");
    sae::run(&sweeps::words(&sweep, &dir)).exits(0);
    assert_eq!(sweeps::contents(&dir), before, "the claim is gone");
    // One more point is one more run.
    let more = fixture.save_text("more", &sweeps::six(&fixture).replace("4e-3]", "4e-3, 8e-3]"));
    let more = sae::run(&sweeps::words(&more, &dir)).exits(0);
    assert_eq!(more.stderr.matches("begins: ").count(), 2, "{}", more.stderr);
    let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    assert_eq!((&status["counts"]["done"], &status["counts"]["pending"]), (&8.into(), &0.into()), "{status}");
    for line in status["configurations"].as_array().expect("a list") {
        let summary = json(&Path::new(line["run"].as_str().expect("a folder")).join("summary.json"));
        let [told, own] = [line, &summary].map(|of| of["tokens_per_s_wall"].as_f64().expect("a rate"));
        assert!((told / own - 1.0).abs() < 1e-9, "by the clock, as while it trains: {told} {own}");
    }
}

#[test]
fn a_sweep_on_an_object_store_that_is_killed_is_done_once() {
    let Some(python) = need::python() else { return };
    let (fixture, s3) = (Fixture::with_data(), S3::start(&python));
    sweeps::soak(&Place::S3(&s3), &fixture, kills(), 2, &mut says);
    two_at_once(&Place::S3(&s3), &fixture);
}

#[test]
fn two_that_submit_at_once_share_the_work() {
    let fixture = Fixture::with_data();
    sae::run(&sweeps::words(&fixture.save_text("six", &sweeps::six(&fixture)), &fixture.text("undisturbed"))).exits(0);
    two_at_once(&Place::Local, &fixture);
}

/// A worker takes its share of what is left, so that one that comes later finds some.
#[test]
fn workers_that_come_later_find_some_left() {
    let fixture = Fixture::with_data();
    let text = sweeps::six(&fixture).replace("[axes]\n", "[axes]\ntrain.seed = [0, 1]\n");
    let (sweep, dir) = (fixture.save_text("twelve", &text), fixture.text("sweep"));
    let worker = |more: &[&str]| {
        let words = ["sweep", &sweep, "--dir", &dir, "--device", "cpu", "--heartbeat", "0.1", "--worker"];
        sweeps::spawn(&Place::Local, &fixture, &[&words[..], more].concat())
    };
    let first = worker(&["--slots", "1", "--workers", "2"]);
    let claimed = || {
        let claims = sweeps::contents(&dir).iter().filter(|(key, _)| key.starts_with("claims/")).count();
        (claims > 0).then_some(claims)
    };
    wait_for("a claim", claimed);
    let second = worker(&["--slots", "1", "--workers", "2"]);
    let begun = [first, second].map(|child| {
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said.matches("begins: ").count()
    });
    assert_eq!(begun[0] + begun[1], 12, "{begun:?}");
    assert!(begun.iter().all(|&begun| begun > 0), "both trained: {begun:?}");
}

/// Both come to the same table, which is that of the undisturbed sweep, and no run was begun twice.
fn two_at_once(place: &Place<'_>, fixture: &Fixture) {
    let (sweep, dir) = (fixture.text("six.toml"), place.dir(fixture, "both"));
    let words = sweeps::words(&sweep, &dir);
    let both = [(); 2].map(|()| sweeps::spawn(place, fixture, &words));
    let said = both.map(|child: Child| {
        let output = child.wait_with_output().expect("it ends");
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
        assert!(output.status.success(), "{}: {stderr}", output.status);
        (stdout, stderr)
    });
    assert_eq!(said[0].0, said[1].0, "the same table");
    let begun: usize = said.iter().map(|(_, stderr)| stderr.matches("begins: ").count()).sum();
    assert_eq!(begun, 6, "{}\n{}", said[0].1, said[1].1);
    let expected = sweeps::table(&Place::Local, fixture, &fixture.text("undisturbed"));
    assert_eq!(sweeps::table(place, fixture, &dir), expected);
}

/// A signal makes all slots save; the same command goes on from there.
#[test]
fn a_sweep_that_is_asked_to_stop_saves_and_goes_on() {
    let fixture = Fixture::with_data();
    let text = sweeps::six(&fixture).replace("tokens = 15360", "tokens = 15000").replace("every = 5", "every = 10000");
    // Large enough to be met in the middle of a step.
    let text = text.replace("features = 256", "features = 65536");
    let (sweep, dir) = (fixture.save_text("six", &text), fixture.text("sweep"));
    let words = [&sweeps::words(&sweep, &dir)[..], &["--set", "train.adam=dense"]].concat();
    let child = sweeps::spawn(&Place::Local, &fixture, &words);
    let steps = || {
        let status = sae::run(&["sweep", "status", &dir, "--json"]);
        let status = (status.code == Some(0)).then(|| status.json())?;
        let step = |line: &serde_json::Value| {
            line["state"] == "done" || (line["state"] == "running" && line["step"].as_u64() > Some(0))
        };
        status["configurations"].as_array()?.iter().any(step).then_some(())
    };
    wait_for("a step", steps);
    sae::signal(&child, "TERM");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    // It may have been done by then on a fast machine.
    if output.status.code() != Some(0) {
        assert_eq!(output.status.code(), Some(75), "{said}");
        assert!(said.contains("the same command goes on"), "{said}");
        assert!(sweeps::contents(&dir).iter().all(|(key, _)| !key.starts_with("claims/")), "no claim is left");
    }
    sae::run(&words).exits(0);
    let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    assert_eq!(status["counts"]["done"], 6, "{status}");
}

/// Large configurations train on all slots together, with the bits that a run of as many ranks has; killed, they go on.
#[test]
fn a_large_configuration_takes_a_mesh() {
    let fixture = Fixture::with_data();
    let text =
        sweeps::six(&fixture).replace("[1e-3, 2e-3, 4e-3]", "[1e-3]").replace("features = 256", "features = 512");
    let (sweep, dir) = (fixture.save_text("mesh", &text), fixture.text("sweep"));
    let mut words = vec!["sweep", &sweep, "--dir", &dir, "--device", "cpu", "--slots", "2", "--heartbeat", "0.2"];
    let one = ["sweep", &sweep, "--dir", &dir, "--device", "cpu", "--slots", "1", "--mesh-from", "512"];
    sae::run(&one).exits(64).says(&["a mesh is made of all slots, and there is one"]);
    words.extend(["--mesh-from", "512"]);
    let mut child = sweeps::spawn(&Place::Local, &fixture, &words);
    let running = || {
        let status = sae::run(&["sweep", "status", &dir, "--json"]);
        let status = (status.code == Some(0)).then(|| status.json())?;
        let lines = status["configurations"].as_array()?.clone();
        lines.into_iter().find(|line| line["state"] == "running" || line["state"] == "done")
    };
    let first = wait_for("the large one", running);
    assert_eq!(first["keys"]["sae.features"], "512", "the largest begins: {first}");
    let id = first["id"].as_str().expect("an id");
    child.kill().expect("killed");
    child.wait().expect("it ends");
    // While another process has its folder it is no failure.
    let lock = File::create(fixture.path(format!("sweep/{id}/lock"))).expect("a file");
    lock.lock().expect("those that were killed let it go");
    let mut child = sweeps::spawn(&Place::Local, &fixture, &words);
    let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines().map(|line| line.expect("UTF-8"));
    let waits = said.find(|line| line.contains("its run folder is in use by another process, and is looked at again"));
    waits.expect("it is said");
    drop(lock);
    let rest = said.collect::<Vec<_>>().join("\n");
    assert!(child.wait().expect("it ends").success() && rest.contains(", on a mesh of 2"), "{rest}");
    let own = fixture.path(format!("sweep/configurations/{id}.toml"));
    let alone = format!("run.dir={}", fixture.text("alone"));
    sae::run(&["launch", "local", own.to_str().expect("UTF-8"), "--set", &alone, "--ranks", "2", "--device", "cpu"])
        .exits(0);
    let (one, other) =
        (checkpoints::last(&fixture.path(format!("sweep/{id}"))), checkpoints::last(&fixture.path("alone")));
    assert_eq!(checkpoints::differing(&one, &other), [""; 0]);
}

/// One that diverges and one that does not fit stop no other, and say why; the folder of one that is done may be deleted.
#[test]
fn what_fails_stops_no_other_and_says_why() {
    let fixture = Fixture::with_data();
    let text = format!(
        "{}[[points]]\nsae.features = 400000000\n[[points]]\nsae.features = 128\ntrain.clip = 1e300\ntrain.tokens = 7680\ntrain.l1 = 1e300\n",
        sweeps::six(&fixture).replace("[1e-3, 2e-3, 4e-3]", "[1e-3]")
    );
    let (sweep, dir) = (fixture.save_text("sweep", &text), fixture.text("sweep"));
    let first = sae::run(&sweeps::words(&sweep, &dir));
    let said = &first.stderr;
    assert_eq!(first.code, Some(70), "{said}");
    let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    let counts = |name: &str| status["counts"][name].as_u64();
    assert_eq!(
        ["done", "failed", "diverged", "pending", "running"].map(counts),
        [Some(2), Some(1), Some(1), Some(0), Some(0)],
        "{status}"
    );
    let lines = status["configurations"].as_array().expect("a list");
    let cause = |state: &str| {
        let line = lines.iter().find(|line| line["state"] == state).expect("there is one");
        line["cause"].as_str().expect("a cause").to_owned()
    };
    assert!(cause("failed").contains("sae.features"), "{}", cause("failed"));
    assert!(first.stdout.contains(&cause("failed")[..30]), "the closing table says it too: {}", first.stdout);
    // Not tried again without being asked, and again when asked.
    let words = sweeps::words(&sweep, &dir);
    let second = sae::run(&words).exits(70);
    assert!(!second.stderr.contains("begins: "), "{}", second.stderr);
    let third = sae::run(&[&words[..], &["--retry"]].concat()).exits(70);
    assert_eq!(third.stderr.matches("begins: ").count(), 2, "{}", third.stderr);
    // As one of several workers it has done its work.
    sae::run(&[&words[..], &["--worker"]].concat()).exits(0);
    // A file that is damaged is a line with a cause, and hides no other.
    let of = |state: &str| lines.iter().find(|line| line["state"] == state).expect("there is one")["id"].clone();
    let (done, failed) = (of("done"), of("failed"));
    let [done, failed] = [&done, &failed].map(|id| id.as_str().expect("an id"));
    for (file, state) in [
        (format!("{done}/summary.json"), "done"),
        (format!("{done}/config.toml"), "done"),
        (format!("configurations/{done}.toml"), "done"),
        (format!("configurations/{failed}.toml"), "failed"),
    ] {
        let path = fixture.path("sweep").join(&file);
        let text = std::fs::read(&path).expect("a file");
        std::fs::write(&path, "[").expect("written");
        let told = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
        assert_eq!((&told["counts"], told["configurations"].as_array().map(Vec::len)), (&status["counts"], Some(4)));
        let id = if state == "done" { done } else { failed };
        let line = told["configurations"].as_array().expect("a list").iter().find(|line| line["id"] == id);
        let cause = line.expect("its line")["cause"].as_str().expect("a cause");
        assert!(state == "failed" || cause.contains(&file), "{file}: {cause}");
        sae::run(&["sweep", "status", &dir]).exits(0);
        std::fs::write(&path, &text).expect("written");
    }
    // The folder of one that is done is deleted by hand.
    let done = lines.iter().find(|line| line["state"] == "done").expect("there is one");
    std::fs::remove_dir_all(done["run"].as_str().expect("a folder")).expect("it is removed");
    let again = sae::run(&words).exits(70).says(&["it was done, and its run folder", "is gone: it is trained again"]);
    assert_eq!(again.stderr.matches("begins: ").count(), 1, "{}", again.stderr);
}

/// A configuration is trained in the formats that it asks for or not at all, whichever was claimed beside it.
#[test]
fn formats_are_those_of_each_configuration() {
    let fixture = Fixture::with_data();
    let six = sweeps::six(&fixture).replace("15360", "512").replace("7680", "512");
    for (name, axis) in [
        ("narrow", "train.precision = ['f32', 'mixed']"),
        ("wide", "train.precision = ['mixed', 'f32']"),
        ("moments", "train.moments = ['f32', 'int8']"),
    ] {
        let text = six.replace("train.lr = [1e-3, 2e-3, 4e-3]", axis);
        let (sweep, dir) = (fixture.save_text(name, &text), fixture.text(&format!("of-{name}")));
        sae::run(&["sweep", &sweep, "--dir", &dir, "--slots", "1", "--device", "cpu"]).exits(64);
        let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
        for line in status["configurations"].as_array().expect("a list") {
            let asks = line["keys"].as_object().expect("keys").values().any(|value| value == "\"f32\"");
            assert_eq!(line["state"], if asks { "done" } else { "failed" }, "{name}: {line}");
            let cause = line["cause"].as_str().unwrap_or_default();
            assert_eq!(cause.contains("needs a GPU"), !asks, "{name}: {line}");
        }
        assert_eq!((&status["counts"]["done"], &status["counts"]["failed"]), (&2.into(), &2.into()), "{name}");
    }
}

/// Rows that are not finite end the configurations that meet them, and what they say to do lets these go on.
#[test]
fn bad_rows_are_left_out_of_a_sweep_as_it_says() {
    let fixture = Fixture::new();
    for (set, seed, rows) in [("train", 3, 15_401), ("eval", 4, 1024)] {
        let mut rows = plain_rows(rows, 16, seed);
        if set == "train" {
            rows[9000 * 16] = f32::NAN;
        }
        write_shards(&fixture.path(set), 16, &rows, Dtype::F32, 4000);
    }
    let text = sweeps::six(&fixture).replace("[1e-3, 2e-3, 4e-3]", "[1e-3]");
    let dir = fixture.text("sweep");
    let words = |sweep: &'_ str| sae::run(&[&sweeps::words(sweep, &dir)[..], &["--retry"]].concat());
    words(&fixture.save_text("sweep", &text)).exits(65);
    let failed = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    let lines = failed["configurations"].as_array().expect("a list");
    let cause = lines.iter().find_map(|line| line["cause"].as_str()).expect("one meets the row");
    let (_, remedy) = cause.split_once("set data.skip=").unwrap_or_else(|| panic!("{cause}"));
    let (skip, more) = remedy.split_once(" in the sweep's recipe, then ").unwrap_or_else(|| panic!("{cause}"));
    assert!(more.starts_with("sae sweep … --retry; a new run with data.filter.finite"), "{cause}");
    let mended = text.replace("[base.data]\n", &format!("[base.data]\nskip = {skip}\n"));
    words(&fixture.save_text("mended", &mended)).exits(0);
    let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    assert_eq!(status["counts"]["done"], 2, "{status}");
    // What goes on from the folder leaves them out too.
    for line in status["configurations"].as_array().expect("a list") {
        let kept = fixture.path(format!("sweep/configurations/{}.toml", line["id"].as_str().expect("an id")));
        assert!(std::fs::read_to_string(kept).expect("a recipe").contains(&format!("skip = {skip}")), "{line}");
    }
}

/// What is said to do next is done by that command, wherever the sweep lies, when its files and their laws are gone.
#[test]
fn what_a_sweep_says_to_do_next_goes_on() {
    what_it_says_goes_on(&Place::Local);
}

#[test]
fn what_a_sweep_on_an_object_store_says_to_do_next_goes_on() {
    let Some(python) = need::python() else { return };
    what_it_says_goes_on(&Place::S3(&S3::start(&python)));
}

fn what_it_says_goes_on(place: &Place<'_>) {
    let fixture = Fixture::with_data();
    let dir = place.dir(&fixture, "sweep");
    // F_opt = 1.024·√C.
    let mut runs = "features,steps,loss\n".to_owned();
    for compute in [1e3, 1e4, 1e5, 1e6_f64] {
        for by in [0.5, 1.0, 2.0] {
            let (features, steps) = ((by * compute.sqrt()).round(), (compute.sqrt() / by).round());
            runs += &format!("{features},{steps},{}\n", 1.0 + 1.024 / features.sqrt() + 1.0 / steps.sqrt());
        }
    }
    std::fs::write(fixture.path("runs.csv"), runs).expect("written");
    std::fs::create_dir(fixture.path("files")).expect("a folder");
    let laws = fixture.text("files/laws");
    sae::run(&["scaling", "fit", "--runs", &fixture.text("runs.csv"), "--out", &laws, "--replicates", "100"]).exits(0);
    let presets = format!(
        "[base.data]\ntrain = '{}'\neval = '{}'\n[base.train]\nbatch = 64\nl1 = 2\n[isoflop]\nbudgets = [1.2e4]\nlaws = 'laws/laws.json'\n\
         points = 3\nmultiple = 64\n[lr]\nbudgets = [1.2e4]\nlaws = 'laws/laws.json'\npoints = 2\n",
        fixture.text("train"),
        fixture.text("eval")
    );
    let sweep = fixture.save_text("files/presets", &presets);
    place.run(&fixture, &sweeps::words(&sweep, &dir)).exits(0);
    let pod = format!("dir = 's3://bucket/pods'\n{presets}");
    let pod = fixture.save_text("files/pods", &pod);
    let words = ["launch", "k8s", &pod, "--sweep", "--image", "registry/sae:0.1"];
    let manifest = place.run(&fixture, &words).exits(0).stdout;
    assert!(!manifest.contains("laws.json") && manifest.contains("[[points]]"), "pods have no laws: {manifest}");

    let more = "[[points]]\nsae.features = 128\ntrain.clip = 1e300\ntrain.tokens = 7680\ntrain.l1 = 1e300\n";
    let more = fixture.save_text("files/more", &format!("{presets}{more}"));
    let failed = place.run(&fixture, &sweeps::words(&more, &dir)).exits(70);
    std::fs::remove_dir_all(fixture.path("files")).expect("they are removed");
    let next = |said: &str| {
        let (_, command) = said.rsplit_once("sae sweep ").expect("a command");
        format!("sweep {}", command.trim()).split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let command = next(&failed.stdout);
    assert_eq!(command, ["sweep", &dir, "--retry"]);
    let run = |command: &[String]| place.run(&fixture, &command.iter().map(String::as_str).collect::<Vec<_>>());
    let again = run(&command).exits(70);
    assert_eq!(again.stderr.matches("begins: ").count(), 1, "the one that was added: {}", again.stderr);

    let status = place.run(&fixture, &["sweep", "status", &dir, "--json"]).exits(0).json();
    let line = status["configurations"].as_array().and_then(|lines| lines.iter().find(|line| line["state"] == "done"));
    let id = line.and_then(|line| line["id"].as_str()).expect("one is done");
    for key in [format!("{id}/summary.json"), format!("done/{id}.json")] {
        match place {
            Place::Local => std::fs::remove_file(fixture.path("sweep").join(key)).expect("it is removed"),
            Place::S3(s3) => s3.delete(&format!("sweep/{key}")),
        }
    }
    let status = place.run(&fixture, &["sweep", "status", &dir]).exits(0);
    let command = next(&status.stdout);
    assert_eq!(command, ["sweep", &dir]);
    let again = run(&command).exits(70);
    assert_eq!(again.stderr.matches("begins: ").count(), 1, "{}", again.stderr);
    let status = place.run(&fixture, &["sweep", "status", &dir, "--json"]).exits(0).json();
    assert_eq!((&status["counts"]["done"], &status["counts"]["diverged"]), (&5.into(), &1.into()), "{status}");

    let launched = |how: &[&str]| place.run(&fixture, &[&["launch"], how, &[&dir, "--sweep"]].concat());
    let script = launched(&["slurm", "--dry-run", "--cpus-per-task", "2", "--out", &fixture.text("job.sh")]).exits(0);
    assert!(script.stdout.contains(&format!("sweep {dir} --worker")), "{}", script.stdout);
    launched(&["k8s", "--image", "registry/sae:0.1"]).exits(64).says(&["a manifest carries a file"]);
    let with = |more: &[&str]| place.run(&fixture, &[&["sweep", &dir], more].concat());
    with(&["--set", "train.lr=1"]).exits(64).says(&["configurations are as they were submitted"]);
    // Rows that are others belong to another sweep.
    std::fs::remove_dir_all(fixture.path("eval")).expect("it is removed");
    write_shards(&fixture.path("eval"), 32, &plain_rows(512, 32, 1), Dtype::F32, 512);
    with(&["--retry"]).exits(64).says(&["its data, or the version of this program, are not those of"]);
    sae::run(&["sweep", &fixture.text("train")]).exits(65).says(&["no sweep is there"]);
}

/// Data may be an axis, whose values come in any order and become more; what all configurations have in common stays the same.
#[test]
fn data_may_be_an_axis_that_grows() {
    let fixture = Fixture::with_data();
    for (name, seed) in [("second", 1), ("third", 2)] {
        write_shards(&fixture.path(name), 32, &plain_rows(1024, 32, seed), Dtype::F32, 1024);
    }
    let dir = fixture.text("sweep");
    let run = |names: &[&str]| {
        let train: Vec<String> = names.iter().map(|name| format!("'{}'", fixture.text(name))).collect();
        let text = format!(
            "[base.data]\neval = '{}'\n[base.sae]\nfeatures = 128\n[base.train]\nbatch = 256\ntokens = 512\n[axes]\ndata.train = [{}]\n",
            fixture.text("eval"),
            train.join(", ")
        );
        sae::run(&sweeps::words(&fixture.save_text("data", &text), &dir))
    };
    for (names, begun) in [(&["train", "second"][..], 2), (&["second", "train"], 0), (&["third", "second", "train"], 1)]
    {
        let said = run(names).exits(0).stderr;
        assert_eq!(said.matches("begins: ").count(), begun, "{names:?}: {said}");
    }
    std::fs::remove_dir_all(fixture.path("eval")).expect("it is removed");
    write_shards(&fixture.path("eval"), 32, &plain_rows(512, 32, 3), Dtype::F32, 512);
    run(&["train"]).exits(64).says(&["data.eval is not what the sweep was begun on"]);
}

#[test]
fn what_cannot_be_submitted_is_refused_by_its_name() {
    let fixture = Fixture::with_data();
    let six = sweeps::six(&fixture);
    let dir = fixture.text("sweep");
    let run = |name: &str, text: &str| sae::run(&sweeps::words(&fixture.save_text(name, text), &dir));
    let small = six.replace("[1e-3, 2e-3, 4e-3]", "[1e-3]").replace("15360", "512").replace("7680", "512");
    for (name, text, said) in [
        ("axis", small.replace("train.lr =", "train.lrr ="), "unknown key train.lrr: did you mean train.lr?"),
        ("empty", small.replace("[1e-3]", "[]"), "axes.train.lr is empty, so the product of the axes is too"),
        ("eval", small.replace("eval = ", "column = 'x' # "), "has no data.eval"),
        ("idle", small.replace("train.lr = [1e-3]", "log.every = [1, 2]"), "differ in log.every alone"),
        ("tokens", small.replace("= 512", "= 1000000000"), "wants 1,000,000,000 rows"),
    ] {
        run(name, &text).exits(64).says(&[said]);
        assert!(!fixture.path("sweep").exists(), "{name}: nothing is written");
    }
    run("small", &small).exits(0);
    let before = sweeps::contents(&dir);
    let changed = small.replace("batch = 256", "batch = 128\nthreads = 1");
    run("changed", &changed).exits(64).says(&["train.batch: it has 256, the recipe says 128", "Nothing was changed"]);
    assert_eq!(sweeps::contents(&dir), before);
    // Where a run is and how it computes may change.
    run("threads", &small.replace("batch = 256", "batch = 256\nthreads = 1")).exits(0);
    // A plan is of what is left, and refuses what would be refused.
    let before = sweeps::contents(&dir);
    let plan = |name: &str, text: &str| {
        let sweep = fixture.save_text(name, text);
        sae::run(&["sweep", &sweep, "--dir", &dir, "--dry-run", "--device", "cpu"])
    };
    let all = plan("small", &small).exits(0);
    assert!(all.stdout.contains("2 of 2 configurations are done, and left out here"), "{}", all.stdout);
    let more = plan("more", &small.replace("[1e-3]", "[1e-3, 2e-3]")).exits(0);
    let tells = |said: &str| {
        more.stdout.lines().any(|line| line.replace('│', " ").split_whitespace().eq(said.split_whitespace()))
    };
    assert!(more.stdout.contains("2 of 4 configurations are done") && tells("configurations 2"), "{}", more.stdout);
    plan("changed", &changed).exits(64).says(&["train.batch: it has 256, the recipe says 128"]);
    plan("other", &small.replace("eval'", "train'")).exits(64).says(&["data.eval is not what the sweep was begun on"]);
    // A plan begins nothing.
    let plan = sae::run(&[
        "sweep",
        &fixture.text("small.toml"),
        "--dir",
        &fixture.text("planned"),
        "--dry-run",
        "--device",
        "cpu",
        "--price",
        "2",
    ]);
    let plan = plan.exits(0);
    assert!(plan.stdout.contains("time by the clock") && plan.stdout.contains("cost"), "{}", plan.stdout);
    let gpu = ["sweep", &fixture.text("small.toml"), "--dir", &fixture.text("planned"), "--dry-run", "--gpu", "h200"];
    assert!(sae::run(&gpu).exits(0).stdout.contains("Estimated for h200"));
    assert!(!fixture.path("planned").exists());
    assert_eq!(sweeps::contents(&dir), before);
    // With the mesh that a large configuration would train on.
    let large = fixture.save_text("large", &small.replace("features = 256", "features = 400000000"));
    let words = ["sweep", &large, "--dir", &fixture.text("planned"), "--dry-run", "--gpu", "h200", "--slots", "8"];
    sae::run(&words).exits(0).says(&["do not fit on one h200: take a mesh of several with --mesh-from"]);
    let meshed = sae::run(&[&words[..], &["--mesh-from", "1M"]].concat()).exits(0);
    assert!(!meshed.stderr.contains("do not fit"), "{}", meshed.stderr);
    let line = meshed.stdout.lines().find(|line| line.contains("configurations on a mesh of all slots"));
    assert!(line.is_some_and(|line| line.trim_end_matches([' ', '│']).ends_with(" 1")), "{}", meshed.stdout);
    let words = ["sweep", &fixture.text("small.toml"), "--dir", &fixture.text("planned"), "--dry-run"];
    sae::run(&[&words[..], &["--device", "cpu", "--slots", "2", "--mesh-from", "256"]].concat()).exits(0);
}

/// Synthetic shards of a sweep that two submit at once are made by one of them, and both train on them.
#[test]
fn synthetic_shards_are_made_once_for_two_that_submit() {
    let fixture = Fixture::new();
    let (made, held_out, dir) = (fixture.text("made"), fixture.text("made-eval"), fixture.text("sweep"));
    let text = format!(
        "[base.data]\ntrain = '{made}'\neval = '{held_out}'\nsynth_eval_rows = 512\n[base.data.synth]\nfeatures = 64\nwidth = 32\nrows = 400000\n\
         shards = 2\nactive = 4.0\n[base.sae]\nfeatures = 128\n[base.train]\nbatch = 256\ntokens = 2560\n[axes]\ntrain.seed = [0, 1, 2, 3]\n"
    );
    let sweep = fixture.save_text("synthetic", &text);
    let both = [(); 2].map(|()| sweeps::spawn(&Place::Local, &fixture, &sweeps::words(&sweep, &dir)));
    let said = both.map(|child: Child| {
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {stderr}", output.status);
        stderr
    });
    let count = |part: &str| said.iter().map(|said| said.matches(part).count()).sum::<usize>();
    assert_eq!((count("making shards"), count("making held-out shards"), count("begins: ")), (1, 1, 4), "{said:?}");
    let status = sae::run(&["sweep", "status", &dir, "--json"]).exits(0).json();
    assert_eq!(status["counts"]["done"], 4, "{status}");
    assert!(sweeps::contents(&dir).iter().all(|(key, _)| !key.starts_with("claims/")), "no claim is left");
}

/// The example that a reader starts with, with synthetic shards that are not there yet.
#[test]
fn the_example_is_a_sweep() {
    let example = tests::root().join("launch/recipes/sweep-quickstart.toml");
    let fixture = Fixture::new();
    let folder = fixture.text("");
    let data = [format!("data.train={folder}train"), format!("data.eval={folder}eval")];
    let words = [
        "sweep",
        example.to_str().expect("UTF-8"),
        "--dir",
        &fixture.text("sweep"),
        "--set",
        &data[0],
        "--set",
        &data[1],
    ];
    let plan = sae::run(&[&words[..], &["--dry-run", "--gpu", "h200"]].concat()).exits(0);
    assert!(plan.stdout.contains("configurations") && plan.stdout.contains("12"), "{}", plan.stdout);
}
