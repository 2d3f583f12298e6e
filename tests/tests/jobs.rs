//! What happens to jobs of several ranks: kills, stops, signals, a cut network, rows that one rank cannot read.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use kernels::mesh::Mesh;
use tests::fixture::{Fixture, json, text};
use tests::jobs::{self, by_hand, soak};
use tests::launcher::Launcher;
use tests::network::Cable;
use tests::processes::{self, wait_for};
use tests::{checkpoints, sae};
use trainer::note::{self, Note};
use trainer::recipe::{Order, Scale};

/// Kills and stops here; the command in CONTRIBUTING.md does dozens.
const KILLS: u32 = 10;
const STOPS: u32 = 3;

const MESH: Mesh = Mesh { data: 2, feature: 2 };

#[test]
fn killed_ranks_are_named_and_their_jobs_go_on() {
    let fixture = Fixture::with_data();
    let tally = soak(&fixture, MESH, (KILLS, 0), 7, &mut |_| ());
    assert!(tally.kills >= KILLS && tally.finished >= KILLS / 2, "{tally:?}");
}

#[test]
fn stopped_ranks_are_named_and_their_jobs_go_on() {
    let fixture = Fixture::with_data();
    let tally = soak(&fixture, MESH, (0, STOPS), 7, &mut |_| ());
    assert!(tally.stops >= STOPS && tally.finished >= 1, "{tally:?}");
}

/// Trains a recipe on the mesh to its end.
fn train(recipe: &str, more: &[&str]) {
    sae::run(&[&["launch", "local"], &jobs::words("4", recipe, "2x2")[..], more].concat()).exits(0);
}

fn committed(run: &Path, count: usize) {
    wait_for("checkpoints", || (checkpoints::committed(run).len() >= count).then_some(()));
}

/// The note of each rank.
fn notes(run: &Path, ranks: usize) -> Vec<Note> {
    (0..ranks).map(|rank| serde_json::from_value(json(&run.join(note::name(rank)))).expect("a note")).collect()
}

/// A signal to the launcher, or to all processes of the job, as schedulers send them: all ranks save the same step, once, and none says
/// that another has failed.
#[test]
fn all_ranks_save_together_when_they_are_asked_to_stop() {
    let fixture = Fixture::with_data();
    train(&fixture.save("undisturbed", &jobs::recipe(&fixture, "undisturbed")), &[]);
    for (signal, to_all) in [("TERM", false), ("HUP", true), ("INT", true)] {
        let (run, path) = (fixture.path(signal), fixture.save(signal, &jobs::recipe(&fixture, signal)));
        let launcher = Launcher::local(&fixture, &jobs::words("4", &path, "2x2"));
        committed(&run, 2);
        let ranks = if to_all { launcher.ranks(4) } else { Vec::new() };
        for process in ranks.into_iter().chain([launcher.id()]) {
            processes::signal(process, signal);
        }
        let (code, said) = launcher.ends();
        assert_eq!(code, Some(75), "{signal}: {said}");
        let stopped: BTreeSet<&str> =
            said.lines().filter_map(|line| Some(&line[line.find("stopped at step")?..])).collect();
        assert_eq!(stopped.len(), 1, "{signal}: all saved the same step: {said}");
        assert!(said.contains("[rank 3]") && !said.contains("restart") && !said.contains("ERROR"), "{signal}: {said}");
        assert!((0..4).all(|rank| !run.join(note::name(rank)).exists()), "{signal}: nothing has failed");
        train(&path, &["--resume"]);
        jobs::assert_same_run(&fixture.path("undisturbed"), &run);
    }
}

/// One machine's copy of a shard is damaged: its rank names it, all save what is done and end with its exit code, so that a launcher
/// that sees one code does not try again. With a whole shard the run goes on.
#[test]
fn rows_that_one_rank_cannot_read_end_all_ranks_after_a_checkpoint() {
    let fixture = Fixture::with_data();
    let recipe = |run: &str| {
        let mut recipe = jobs::recipe(&fixture, run);
        recipe.data.train = vec!["train".to_owned()];
        (recipe.data.order, recipe.data.scale) = (Order::Sequential, Scale::Fixed(3.0));
        fixture.save(run, &recipe)
    };
    checkpoints::copy(&fixture.path("train"), &fixture.path("ill/train"));
    let shard = "shard-00002.parquet";
    jobs::damage(&fixture.path("ill/train").join(shard));
    let (run, path) = (fixture.path("run"), recipe("run"));
    let start = |attempt: &str, machines: [&str; 4], more: &[&str]| {
        let start = |(rank, machine): (usize, &str)| {
            let mut command = sae::sae(&by_hand(rank, 4, true, attempt, &path));
            command.args(["--mesh", "2x2"]).args(more).current_dir(fixture.path(machine));
            Launcher::start(&fixture, &format!("{attempt}-{rank}"), command)
        };
        machines.into_iter().enumerate().map(start).collect::<Vec<_>>()
    };
    for rank in start("one", [".", ".", "ill", "."], &[]) {
        let (code, said) = rank.ends();
        assert_eq!(code, Some(65), "{said}");
        assert!(said.contains(shard) && !said.contains("saving failed"), "{said}");
    }
    let newest = checkpoints::committed(&run).pop().expect("a checkpoint");
    let step = json(&newest.join("manifest.json"))["step"].as_u64().expect("a step");
    assert!(step > 300, "the rows before the damage were trained on: {step}");
    for (rank, note) in notes(&run, 4).into_iter().enumerate() {
        assert_eq!((note.rank, note.exit_code, note.step), (rank, 65, step), "{note:?}");
        assert_eq!((note.operation.as_str(), note.peer), ("reading a batch", (rank != 2).then_some(2)), "{note:?}");
    }
    for rank in start("two", ["."; 4], &["--resume"]) {
        assert_eq!(rank.ends().0, Some(0));
    }
    let mut command = sae::sae(&[&["launch", "local"], &jobs::words("4", &recipe("whole"), "2x2")[..]].concat());
    command.current_dir(fixture.path("."));
    assert_eq!(Launcher::start(&fixture, "whole", command).ends().0, Some(0));
    jobs::assert_same_run(&fixture.path("whole"), &run);
}

/// Of four exit codes that say the same the launcher tells whose was the first, in that rank's own words.
#[test]
fn the_first_cause_is_told() {
    let fixture = Fixture::new();
    let shard = jobs::shards_with_a_damaged_one(&fixture.path("train"));
    let mut recipe = jobs::recipe(&fixture, "run");
    recipe.data.scale = Scale::Fixed(3.0);
    let path = fixture.save("run", &recipe);
    let (code, said) = Launcher::local(&fixture, &jobs::words("4", &path, "2x2")).ends();
    assert_eq!(code, Some(65), "{said}");
    let notes = notes(&fixture.path("run"), 4);
    let first: Vec<&Note> = notes.iter().filter(|note| note.peer.is_none()).collect();
    let [first] = first[..] else { panic!("one rank was the first: {notes:?}") };
    assert!(
        notes.iter().all(|note| note.exit_code == 65 && note.peer.is_none_or(|peer| peer == first.rank)),
        "{notes:?}"
    );
    let last = said.lines().last().unwrap_or_default();
    let told = format!("rank {} ended with exit code 65: {}", first.rank, first.error);
    assert!(last.contains(&told) && told.contains(shard) && !said.contains("restart"), "{said}");
    let errors = said.lines().filter(|line| line.contains("ERROR") && line.contains(&first.error));
    assert_eq!(errors.count(), 1, "and tells it once: {said}");
}

/// Two machines, and the cable between them is cut: each names the other in time; with a whole cable the run goes on.
#[test]
fn a_cut_cable_is_noticed_on_both_sides() {
    let Some(cable) = Cable::lay() else { return };
    let fixture = Fixture::with_data();
    let recipe = |run: &str| {
        let mut recipe = jobs::recipe(&fixture, run);
        recipe.train.batch = 8;
        fixture.save(run, &recipe)
    };
    sae::run(&[&["launch", "local"], &jobs::words("2", &recipe("undisturbed"), "2x1")[..]].concat()).exits(0);
    let (run, path) = (fixture.path("run"), recipe("run"));
    let start = |attempt: &str, more: &[&str]| {
        [0, 1].map(|rank| {
            let mut command = cable.command(rank, &text(sae::binary()));
            command.args(by_hand(rank, 2, false, attempt, &path)).args(["--mesh", "2x1"]).args(more);
            Launcher::start(&fixture, &format!("{attempt}-{rank}"), command)
        })
    };
    let ranks = start("one", &[]);
    committed(&run, 2);
    cable.cut();
    let cut = Instant::now();
    for (rank, said) in ranks.into_iter().enumerate() {
        let (code, said) = said.ends();
        assert_eq!(code, Some(71), "{said}");
        assert!(said.contains(&format!("rank {}: has given no sign of life for 8s", 1 - rank)), "{said}");
        assert!(cut.elapsed() < Duration::from_secs(12), "{:?} after the cut", cut.elapsed());
    }
    cable.mend();
    for rank in start("two", &["--resume"]) {
        let (code, said) = rank.ends();
        assert_eq!(code, Some(0), "{said}");
    }
    jobs::assert_same_run(&fixture.path("undisturbed"), &run);
}
