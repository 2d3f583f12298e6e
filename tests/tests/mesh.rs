//! The same recipe on any mesh: the same rows in the same order, the same curve up to rounding; on the same mesh the same bits.

use std::sync::Barrier;

use kernels::mesh::Mesh;
use kernels::ranks::Failure;
use kernels::{AdamMode, Device};
use loader::Store;
use tests::checkpoints;
use tests::fixture::{Fixture, json_lines};
use tests::mesh::{load, on_mesh, save_again, shape_of, tiles, train_on};
use tests::processes::wait_for;
use trainer::checkpoint::{self, Known, Progress, Saving, Snapshot};
use trainer::communication::Traffic;
use trainer::recipe::{Adam, Every, Recipe};
use trainer::{Error, Exit};

/// 240 steps of 64 rows and one of 41, four tiles of features, a line a step, the rows of each step.
fn recipe(fixture: &Fixture, run: &str) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.sae.features = 512;
    recipe.train.batch = 64;
    recipe.checkpoint.every = Every::Steps(100);
    recipe.log.every = 1;
    recipe.log.rows = true;
    recipe
}

fn mesh(text: &str) -> Mesh {
    text.parse().expect("a mesh")
}

/// `(loss, L0, share of dead features)` of every step.
fn curve(fixture: &Fixture, run: &str) -> Vec<[f64; 3]> {
    let lines = json_lines(&fixture.path(run).join("metrics.jsonl"));
    lines.iter().map(|line| ["loss", "l0", "dead_fraction"].map(|key| line[key].as_f64().expect("a number"))).collect()
}

/// Greatest relative distance of two curves' losses.
fn distance(a: &[[f64; 3]], b: &[[f64; 3]]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a[0] - b[0]).abs() / a[0].abs()).fold(0.0, f64::max)
}

#[test]
fn every_mesh_trains_on_the_same_rows_to_the_same_curve() {
    let fixture = Fixture::with_data();
    let summary = train_on(Mesh::ONE, &recipe(&fixture, "1x1"), false, None).remove(0).expect("it trains");
    let (one, rows) = (curve(&fixture, "1x1"), std::fs::read(fixture.path("1x1/rows.jsonl")).expect("rows"));
    assert_eq!(one.len(), 241);
    for name in ["2x1", "1x2", "2x2", "1x4", "4x1", "2x4", "3x1"] {
        let summaries = train_on(mesh(name), &recipe(&fixture, name), false, None);
        let got = curve(&fixture, name);
        assert!(
            std::fs::read(fixture.path(name).join("rows.jsonl")).expect("rows") == rows,
            "{name}: the order of rows"
        );
        assert!(distance(&one[..1], &got[..1]) <= 1e-6, "{name}: {:?} {:?}", one[0], got[0]);
        let model = Traffic::of(&recipe(&fixture, name), mesh(name), 2.0).total() * 32.0 * mesh(name).ranks() as f64;
        let lines = json_lines(&fixture.path(name).join("metrics.jsonl"));
        let sent = lines[100]["ranks"]["sent_bytes"].as_f64().expect("a number");
        // Rows of 32 values are padded to 64 in x̂, every rank speaks at the roll call, and half of the features fire.
        assert!(sent >= 0.5 * model && sent <= 4.0 * model, "{name}: {sent} bytes a step, {model} by the model");
        let far = distance(&one[..200], &got[..200]);
        assert!(far <= 1e-4, "{name}: {far}");
        for ranks in summaries {
            let ranks = ranks.expect("it trains");
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-3 * a.abs();
            let (a, b) = (summary.metrics.clone().expect("rows"), ranks.metrics.expect("rows"));
            assert!(near(a.loss, b.loss) && near(a.l0, b.l0), "{name}: {a:?} {b:?}");
            assert_eq!((ranks.tokens, ranks.steps), (summary.tokens, summary.steps));
            let features = |density: &trainer::metrics::DensityHistogram| {
                density.silent + density.half_decades.iter().sum::<u64>()
            };
            assert_eq!(features(&ranks.density), 512, "{name}: every feature once");
            assert!((ranks.dead_fraction - summary.dead_fraction).abs() <= 0.01, "{name}");
            assert!((ranks.mmcs.expect("truth") - summary.mmcs.expect("truth")).abs() <= 1e-3, "{name}");
        }
    }
}

#[test]
fn the_same_mesh_gives_the_same_bits() {
    let fixture = Fixture::with_data();
    for adam in [Adam::Dense, Adam::Catchup, Adam::Touched] {
        let run = |name: &str| {
            let name = format!("{name}-{adam:?}");
            let recipe = Recipe {
                train: trainer::recipe::Train { adam, ..recipe(&fixture, &name).train },
                ..recipe(&fixture, &name)
            };
            train_on(mesh("2x2"), &recipe, false, None).into_iter().for_each(|rank| drop(rank.expect("it trains")));
            (curve(&fixture, &name), tiles(&fixture.path(&name)))
        };
        assert!(run("a") == run("b"), "{adam:?}");
    }
}

#[test]
fn a_run_goes_on_on_any_mesh() {
    let fixture = Fixture::with_data();
    train_on(Mesh::ONE, &recipe(&fixture, "whole"), false, None).remove(0).expect("it trains");
    let whole = curve(&fixture, "whole");
    for rank in train_on(mesh("2x2"), &recipe(&fixture, "cut"), false, Some(123)) {
        assert!(matches!(rank, Err(Error::Interrupted { step: 123, .. })), "{rank:?}");
    }
    let cut = tiles(&fixture.path("cut"));
    assert_eq!(cut.len(), 4 + 4 + 1, "tiles of weights, of the optimizer, and what is shared");
    for name in ["1x1", "1x3", "4x2", "2x2"] {
        let run = format!("cut-{name}");
        checkpoints::copy(&fixture.path("cut"), &fixture.path(&run));
        save_again(mesh(name), &fixture.path(&run));
        assert!(tiles(&fixture.path(&run)) == cut, "{name}: loaded and saved again it is the same");
        let resumed = train_on(mesh(name), &recipe(&fixture, &run), true, None);
        resumed.into_iter().for_each(|rank| drop(rank.expect("it goes on")));
        let got = curve(&fixture, &run);
        assert!(distance(&whole[123..124], &got[123..124]) <= 1e-5, "{name}: {:?} {:?}", whole[123], got[123]);
        assert!(distance(&whole, &got) <= 1e-3, "{name}: {}", distance(&whole, &got));
    }
    // On the mesh that it was stopped on, to the bits of the run that was not stopped.
    train_on(mesh("2x2"), &recipe(&fixture, "2x2"), false, None)
        .into_iter()
        .for_each(|rank| drop(rank.expect("it trains")));
    assert!(
        tiles(&fixture.path("2x2"))
            .iter()
            .filter(|((holds, _), _)| holds != "Shared")
            .all(|(tile, hash)| { tiles(&fixture.path("cut-2x2"))[tile] == *hash })
    );
}

#[test]
fn a_mesh_that_has_more_ranks_than_tiles_is_refused() {
    let fixture = Fixture::with_data();
    let refused = train_on(mesh("1x5"), &recipe(&fixture, "run"), false, None);
    let errors: Vec<Error> = refused.into_iter().map(|rank| rank.expect_err("four tiles")).collect();
    for error in &errors {
        assert!(error.to_string().contains("has more ranks on its feature axis than sae.features = 512"), "{error}");
    }
    // Ranks that hear of it from another before they look themselves say that a peer has failed.
    assert!(errors.iter().any(|error| error.exit() == Exit::Arguments), "{errors:?}");
}

#[test]
fn a_row_that_is_not_finite_is_named_by_all_ranks() {
    let fixture = Fixture::with_data();
    let rows = {
        let mut rows = tests::fixture::plain_rows(1000, 32, 7);
        rows[777 * 32 + 3] = f32::NAN;
        rows
    };
    tests::fixture::write_shards(&fixture.path("nan"), 32, &rows, loader::Dtype::F32, 400);
    let mut recipe = recipe(&fixture, "run");
    recipe.data.train = vec![fixture.text("nan")];
    recipe.data.scale = trainer::recipe::Scale::Fixed(1.0);
    for rank in train_on(mesh("2x2"), &recipe, false, None) {
        let error = rank.expect_err("a NaN");
        assert!(error.to_string().contains("data.skip=[\"shard-00001.parquet:377\"]"), "{error}");
        assert_eq!(error.exit(), Exit::Data);
    }
    recipe.data.skip = vec!["shard-00001.parquet:377".into()];
    for rank in train_on(mesh("4x1"), &recipe, true, None) {
        let summary = rank.expect("it goes on without the row, on another mesh");
        assert_eq!((summary.tokens, summary.skipped), (999, 1));
    }
}

/// A rank reads the rows that it needs, and sees damage in these alone.
#[test]
fn a_rank_reads_its_own_rows() {
    let fixture = Fixture::with_data();
    let mut recipe = recipe(&fixture, "run");
    recipe.train.tokens = Some(3 * 64);
    train_on(mesh("1x1"), &recipe, false, None).remove(0).expect("it trains");
    let store = Store::open(&fixture.text("run")).expect("a run");
    let found = checkpoint::newest(&store).expect("readable").expect("a checkpoint");
    assert!(load(mesh("1x4"), &fixture.path("run"), &found).iter().all(Result::is_ok));

    // Biases come last: this is one of the last tile's.
    let path = fixture.path("run").join(&found.folder).join("weights-000000.safetensors");
    let mut bytes = std::fs::read(&path).expect("a file of weights");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&path, &bytes).expect("it is written");
    let loaded = load(mesh("1x4"), &fixture.path("run"), &found);
    assert!(loaded[..3].iter().all(Result::is_ok), "{loaded:?}");
    let error = loaded[3].as_ref().expect_err("a damaged row").to_string();
    assert!(error.contains("weights-000000.safetensors does not have the hashes"), "{error}");
    // Half of a file, and all of it.
    for other in ["1x2", "1x1"] {
        let loaded = load(mesh(other), &fixture.path("run"), &found);
        assert!(loaded.last().expect("ranks").is_err() && loaded[..loaded.len() - 1].iter().all(Result::is_ok));
    }
    std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("it is written");
    for error in load(mesh("1x4"), &fixture.path("run"), &found) {
        let error = error.expect_err("a file that is too short").to_string();
        assert!(error.contains("and should have"), "{error}");
    }
}

/// A rank dies while the first one commits: what was stored by all is committed and stays, also where it is the only checkpoint kept.
#[test]
fn a_checkpoint_outlives_a_rank_that_dies_while_it_is_committed() {
    let fixture = Fixture::with_data();
    for (run, keeps) in [("told", false), ("kept", true)] {
        let mut recipe = recipe(&fixture, run);
        recipe.train.tokens = Some(3 * 64);
        recipe.checkpoint.keep = 1;
        train_on(mesh("1x1"), &recipe, false, None).remove(0).expect("it trains");
        let store = Store::open(&fixture.text(run)).expect("a run");
        let found = checkpoint::newest(&store).expect("readable").expect("a checkpoint");
        let known = Known::until(&store, &found).expect("manifests are read");
        let both_have_stored = Barrier::new(2);
        on_mesh(mesh("2x1"), |device| {
            let axes = device.axes();
            let mut sae = device.training(shape_of(&found, device), AdamMode::Dense).expect("memory");
            let mut state = checkpoint::load(&store, &found, axes, &mut sae).expect("loads");
            state.step += 1;
            let of = Snapshot {
                dictionary: &sae,
                state: &state,
                cursor: &found.manifest.cursor,
                recipe: &found.manifest.recipe,
                commit: "unknown",
            };
            let saving = Saving::begin(&store, axes, &of, &known, 0).expect("it begins");
            let Ok(Progress::OnTheWay(saving)) = saving.go_on(axes) else { panic!("it is not committed yet") };
            both_have_stored.wait();
            if axes.all.index() == 1 {
                axes.all.abort(Failure { rank: 1, code: None, reason: "gone".into() });
                return;
            }
            wait_for("the other rank's end", || axes.all.check().err());
            let ended = if keeps { saving.keep(axes).is_ok() } else { saving.go_on(axes).is_err() };
            assert!(ended, "{run}");
        });
        let newest = checkpoint::newest(&store).expect("readable").expect("a checkpoint");
        assert_eq!(newest.manifest.step, found.manifest.step + 1, "{run}");
    }
}
