//! What a run remembers between its starts, and chooses by: a resumed run tells what an undisturbed one tells, the best checkpoint is
//! the one with the least held-out loss, and a checkpoint holds all that it was given.

use std::collections::BTreeSet;

use kernels::cpu::Cpu;
use kernels::{AdamMode, Clock, Device, Dictionary, Moment, Shape, Sums, Tensor, Training};
use loader::{Cursor, Dtype, Store};
use serde_json::Value;
use tests::cases::{TENSORS, read_arrays};
use tests::exact::near;
use tests::fixture::{Fixture, Numbers, json, plain_rows, text, write_shards};
use tests::runs::{Told, stop, trained};
use tests::{checkpoints, sae};
use trainer::checkpoint::{self, LeftOut, Snapshot, State};
use trainer::metrics::Metrics;
use trainer::recipe::{Adam, BiasInit, Every, Order, Recipe};

const WIDTH: usize = 16;
/// 40 steps of 64, and one of 17.
const ROWS: usize = 40 * 64 + 17;

/// Rows to train on and held-out ones, and a recipe over them in which everything is due at steps of its own.
fn prepared(fixture: &Fixture) -> Recipe {
    for (set, rows, seed) in [("train", ROWS, 3), ("eval", 333, 4)] {
        write_shards(&fixture.path(set), WIDTH, &plain_rows(rows, WIDTH, seed), Dtype::F32, 1000);
    }
    let mut recipe = fixture.recipe("whole");
    recipe.data.eval = vec![fixture.text("eval")];
    (recipe.sae.features, recipe.train.batch, recipe.train.threads) = (300, 64, Some(2));
    (recipe.checkpoint.every, recipe.checkpoint.keep) = (Every::Steps(10), 1000);
    (recipe.log.every, recipe.eval.every, recipe.eval.rows) = (7, 6, 200);
    (recipe.train.lr, recipe.train.l1, recipe.train.dead_window) = (5e-3, 0.5, 500);
    recipe
}

/// What a line says that does not depend on clocks.
fn of_lines(told: &[Told]) -> Vec<Value> {
    let lines = told.iter().flat_map(|told| &told.lines).map(|line| serde_json::to_value(line).expect("JSON"));
    let evaluated = told.iter().flat_map(|told| &told.evaluated).map(|line| serde_json::to_value(line).expect("JSON"));
    lines.chain(evaluated).map(without_clocks).collect()
}

fn without_clocks(mut value: Value) -> Value {
    let object = value.as_object_mut().expect("an object");
    for key in ["time", "tokens_per_s", "tokens_per_s_wall", "stall_share", "step_s", "wall_s", "stall_s", "attempt"] {
        object.remove(key);
    }
    if let Some(run) = object.get_mut("recipe").and_then(|recipe| recipe["run"].as_object_mut()) {
        run.remove("dir");
    }
    value
}

/// Stopped inside a window of metrics, at an evaluation, behind a checkpoint, just before one: every line and every manifest is that of
/// the undisturbed run, the norm of the gradient and the densities that choose between sparse and dense path among it.
#[test]
fn a_resumed_run_tells_what_an_undisturbed_one_tells() {
    let fixture = Fixture::new();
    let prepared = prepared(&fixture);
    for (adam, bias_init) in
        [(Adam::Dense, BiasInit::Zero), (Adam::Catchup, BiasInit::Calibrated), (Adam::Touched, BiasInit::Zero)]
    {
        let mut recipe = prepared.clone();
        (recipe.train.adam, recipe.sae.bias_init, recipe.sae.bias_init_l0) = (adam, bias_init, 6.0);
        recipe.run.dir = fixture.text(&format!("whole-{adam:?}"));
        let (whole, told) = trained(&recipe, false, None);
        let (expected, whole) = (of_lines(&[told]), whole.expect("it trains"));
        let run = fixture.path(format!("whole-{adam:?}"));

        recipe.run.dir = fixture.text(&format!("stopped-{adam:?}"));
        let mut told: Vec<Told> = [3, 12, 19, 20, 29].into_iter().map(|step| stop(&recipe, step > 3, step)).collect();
        let (last, end) = trained(&recipe, true, None);
        told.push(end);
        let found = of_lines(&told);
        assert_eq!(found.len(), expected.len(), "{adam:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{adam:?}");
        }
        let last = last.expect("it goes on");
        assert_eq!(
            (last.metrics, last.density, last.dead_fraction),
            (whole.metrics, whole.density, whole.dead_fraction)
        );
        assert_eq!((last.account.flops, last.tokens, last.steps), (whole.account.flops, whole.tokens, whole.steps));
        let manifests = |run: &std::path::Path| -> Vec<Value> {
            checkpoints::committed(run)
                .iter()
                .map(|folder| without_clocks(json(&folder.join("manifest.json"))))
                .collect()
        };
        let resumed = manifests(&fixture.path(format!("stopped-{adam:?}")));
        for expected in manifests(&run) {
            let found =
                resumed.iter().find(|found| found["step"] == expected["step"]).expect("a checkpoint of this step");
            assert_eq!(found, &expected, "{adam:?}");
        }
    }
}

/// The best checkpoint is the one with the least `mse + l1 · l1_norm`, whatever λ was at its step; it stays, with the newest, across a
/// resume, and no other does.
#[test]
fn the_best_checkpoint_is_that_of_the_least_held_out_loss() {
    let fixture = Fixture::new();
    let prepared = prepared(&fixture);
    let mut places = BTreeSet::new();
    // With λ in its warm-up to the end the loss at the λ of a step is least at the start. A great rate unlearns.
    for (name, lr, l1) in [("warm", 2e-3, 3.0), ("falls", 2e-3, 0.05), ("rises", 0.15, 0.05)] {
        for stop_at in [None, Some(15), Some(33)] {
            let mut recipe = prepared.clone();
            recipe.run.dir = fixture.text(&format!("{name}-{stop_at:?}"));
            (recipe.train.lr, recipe.train.l1, recipe.train.l1_warmup, recipe.train.lr_decay) = (lr, l1, 1.0, 0.0);
            (recipe.checkpoint.keep, recipe.eval.every) = (1, 3);
            let mut evaluated = Vec::new();
            if let Some(step) = stop_at {
                evaluated.extend(stop(&recipe, false, step).evaluated);
            }
            let (result, told) = trained(&recipe, stop_at.is_some(), None);
            result.expect("it trains");
            evaluated.extend(told.evaluated);
            // The one at the end is over other rows.
            let at_the_end = evaluated.pop().expect("an evaluation");
            assert_eq!((at_the_end.rows, evaluated.len()), (333, 13));
            let losses: Vec<(f64, u64)> = evaluated
                .iter()
                .map(|line| {
                    let loss = line.metrics.mse + l1 * line.metrics.l1_norm;
                    assert!(near(line.metrics.loss, loss, 1e-12) && line.account.lambda == l1, "the final λ: {line:?}");
                    (loss, line.step + 1)
                })
                .collect();
            let best = losses.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)).expect("losses").1;
            places.insert((name, best));
            let run = fixture.path(format!("{name}-{stop_at:?}"));
            let kept: BTreeSet<u64> = checkpoints::committed(&run)
                .iter()
                .map(|folder| json(&folder.join("manifest.json"))["step"].as_u64().expect("a step"))
                .collect();
            assert_eq!(kept, BTreeSet::from([best, 41]), "{name}, stopped at {stop_at:?}: {losses:?}");
        }
    }
    // First, last and one between: each rule but the right one keeps another.
    assert!(places.len() == 3 && places.contains(&("falls", 39)), "{places:?}");
    assert!(places.iter().any(|(name, best)| *name == "rises" && *best < 15), "{places:?}");
}

/// A checkpoint of `catchup` in the middle of a run owes updates; an evaluation makes as many as the run did. At the end of a run
/// the rate is near 0, and one too many would not show.
#[test]
fn updates_that_are_owed_are_made_as_often_by_an_evaluation_of_the_checkpoint() {
    let fixture = Fixture::new();
    let mut recipe = prepared(&fixture);
    (recipe.train.adam, recipe.sae.bias_init, recipe.sae.bias_init_l0) = (Adam::Catchup, BiasInit::Calibrated, 3.0);
    (recipe.eval.every, recipe.train.lr, recipe.train.lr_decay) = (10, 2e-2, 0.0);
    let (result, told) = trained(&recipe, false, None);
    result.expect("it trains");
    for line in told.evaluated.iter().filter(|line| [10, 20, 30].contains(&(line.step + 1))) {
        let step = format!("step-{:010}", line.step + 1);
        let run = fixture.path("whole");
        let folder = checkpoints::committed(&run).into_iter().find(|f| text(f).contains(&step)).expect("a checkpoint");
        let eval = fixture.text("eval");
        let found = sae::run(&["eval", &text(&folder), "--data", &eval, "--rows", "200", "--json"]).exits(0).json();
        for (key, expected) in [
            ("loss", line.metrics.loss),
            ("mse", line.metrics.mse),
            ("l1_norm", line.metrics.l1_norm),
            ("l0", line.metrics.l0),
        ] {
            let found = found[key].as_f64().expect("a number");
            assert!(near(found, expected, 1e-9), "{key} of {step} is {found} to eval, and {expected} in the run");
        }
    }
}

/// All that a state has, each number another.
fn state(features: usize, width: usize) -> State {
    let mut numbers = Numbers::new(8);
    let mut next = || numbers.bits() >> 40;
    let mut sums = || Sums {
        rows: next(),
        squared_error: next() as f64,
        squared_norm: next() as f64,
        x_d: (0..width).map(|_| next() as f64).collect(),
        l1: next() as f64,
        active: next(),
        fired_f: (0..features).map(|_| next()).collect(),
    };
    let [tally, window, closing] = [sums(), sums(), sums()];
    let metrics = Metrics {
        loss: 1.5,
        mse: 2.5,
        l1_norm: 3.5,
        explained_variance: Some(0.25),
        explained_variance_rows: Some(0.125),
        normalized_mse: Some(0.75),
        l0: 4.5,
    };
    State {
        step: 17,
        steps: 1000,
        tokens: 1234,
        left_out: LeftOut { skipped: 5, filtered: 6 },
        scale: 0.3,
        norm_median: Some(7.5),
        density: [(8, 9), (10, 11)],
        gradient_norm: 12.5,
        tally,
        window,
        closing,
        closing_open: true,
        held_out: Some(metrics),
        eval: Some("0123".into()),
        source: Some(loader::Source::from_iter([("layer".to_owned(), 3.into())])),
        active: Some(13),
        step_s: 14.5,
        wall_s: 15.5,
        stall_s: 16.5,
    }
}

/// Rows and columns of a tensor.
fn size(tensor: Tensor, features: usize, width: usize) -> (usize, usize) {
    match tensor {
        Tensor::EncoderWeight | Tensor::DecoderWeight => (features, width),
        Tensor::EncoderBias => (features, 1),
        Tensor::DecoderBias => (1, width),
    }
}

/// What goes into a checkpoint comes out of it, in one file of each kind and in two: files hold at most 64 MiB, which are seven tiles of
/// moments at this width.
#[test]
fn a_checkpoint_gives_back_all_that_it_was_given() {
    let fixture = Fixture::new();
    let device = Cpu::new(Some(2)).expect("threads");
    for (width, features, files) in [(16, 300, 1), (4096, 896, 1), (4096, 897, 2)] {
        let shape = Shape { width, features, batch: 1, dense_bytes: 0 };
        let dictionary = || device.training(shape, AdamMode::Catchup).expect("memory");
        let (mut given, mut numbers) = (dictionary(), Numbers::new(9));
        for tensor in TENSORS {
            let (rows, columns) = size(tensor, features, width);
            let mut values = || (0..rows * columns).map(|_| numbers.unit()).collect::<Vec<f32>>();
            given.write(tensor, 0..rows, &values());
            given.write_moment(tensor, Moment::First, 0..rows, &values());
            given.write_moment(tensor, Moment::Second, 0..rows, &values());
        }
        for clock in [Clock::LastUpdate, Clock::LastFired] {
            let values: Vec<u64> = (0..features).map(|_| numbers.bits() >> 40).collect();
            given.write_clock(clock, 0..features, &values);
        }
        let state = state(features, width);
        let mut recipe = fixture.recipe("run");
        recipe.sae.features = features;
        let cursor = Cursor { step: state.step, origin: None };
        let store = Store::open(&format!("memory://resume-{features}")).expect("a store");
        let of = Snapshot { dictionary: &given, state: &state, cursor: &cursor, recipe: &recipe, commit: "c" };
        checkpoint::save(&store, device.axes(), &of).expect("saved");
        let found = checkpoint::newest(&store).expect("readable").expect("a checkpoint");
        let of_kind = |kind: &str| found.manifest.files.iter().filter(|file| file.name.starts_with(kind)).count();
        assert_eq!((of_kind("optimizer-"), of_kind("weights-"), of_kind("shared")), (files, 1, 1));
        let mut came = dictionary();
        let loaded = checkpoint::load(&store, &found, device.axes(), &mut came).expect("loaded");
        assert!(loaded == state, "the host's side of {features} features differs");
        assert_eq!((&found.manifest.recipe, &found.manifest.cursor), (&recipe, &cursor));
        for tensor in TENSORS {
            assert!(read_arrays(&given, tensor) == read_arrays(&came, tensor), "{tensor:?} of {features} features");
        }
        for clock in [Clock::LastUpdate, Clock::LastFired] {
            let read = |dictionary: &<Cpu as Device>::Training| {
                let mut values = vec![0; features];
                dictionary.read_clock(clock, 0..features, &mut values).expect("a processor");
                values
            };
            assert!(read(&given) == read(&came), "{clock:?} of {features} features");
        }
    }
}

/// The first of the closing rows comes in the middle of a line's steps, and the run is stopped before it, behind it, and behind the line:
/// what was summed by then is in both, and neither forgets it.
#[test]
fn closing_rows_are_counted_across_a_resume() {
    let fixture = Fixture::new();
    let mut prepared = prepared(&fixture);
    // Steps of 500 rows, of which the fourth holds the last but 65,536th.
    write_shards(&fixture.path("long"), 4, &plain_rows(67_100, 4, 6), Dtype::F32, u64::MAX);
    (prepared.data.train, prepared.data.eval, prepared.eval.every) = (vec![fixture.text("long")], Vec::new(), 0);
    (prepared.data.order, prepared.sae.features, prepared.train.batch) = (Order::Sequential, 128, 500);
    prepared.checkpoint.every = Every::Steps(1000);
    let of = |name: &str, stop_at: Option<u64>| {
        let mut recipe = prepared.clone();
        recipe.run.dir = fixture.text(name);
        let mut told: Vec<Told> = stop_at.iter().map(|step| stop(&recipe, false, *step)).collect();
        let (result, end) = trained(&recipe, stop_at.is_some(), None);
        told.push(end);
        let summary = result.expect("it trains");
        (of_lines(&told), summary.metrics, summary.density)
    };
    let whole = of("whole", None);
    for stop_at in [2, 4, 6, 23] {
        assert_eq!(of(&format!("stopped-{stop_at}"), Some(stop_at)), whole, "stopped after step {stop_at}");
    }
}
