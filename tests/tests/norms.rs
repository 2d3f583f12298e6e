//! Rows of extreme norms: what is said of them, what filters do about them, and the metric in which every row counts the same.

use std::path::Path;

use loader::{Dtype, ExtraColumn, ShardWriter, Store, WriteOptions};
use safetensors::SafeTensors;
use serde_json::Value;
use tests::fixture::{Fixture, json, json_lines, plain_rows, text, write_shards};
use tests::reference::{Parameters, decode, encode};
use tests::{checkpoints, sae};
use trainer::filter::Bound;
use trainer::recipe::{BiasInit, Recipe, Scale};

const WIDTH: usize = 16;

/// Every so many rows one is the first of a context.
const CONTEXT: usize = 128;

/// Rows of contexts whose first token has `times` the norm of the others, with their positions and tokens.
fn contexts(folder: &Path, rows: usize, times: f32, seed: u64) -> Vec<f32> {
    let mut values = plain_rows(rows, WIDTH, seed);
    for first in values.chunks_mut(CONTEXT * WIDTH) {
        first[..WIDTH].iter_mut().for_each(|x| *x *= times);
    }
    let bytes = 1024 * 4 * WIDTH;
    let plain = WriteOptions::new(WIDTH, Dtype::F32);
    let options = WriteOptions { columns: ExtraColumn::tokens(), row_group_bytes: bytes, page_bytes: bytes, ..plain };
    let mut writer = ShardWriter::create(&Store::open(&text(folder)).expect("a folder"), options).expect("a writer");
    for (i, row) in values.chunks(WIDTH).enumerate() {
        let pos = (i % CONTEXT) as i32;
        let token_id = if pos == 0 { 1 } else { 2 + (i % 50) as i32 };
        let columns = [token_id, (i / CONTEXT) as i32, pos].map(|value| vec![value].into());
        writer
            .write(&row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(), &columns)
            .expect("a row is written");
    }
    writer.finish().expect("a manifest is written");
    values
}

fn near(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * b.abs()
}

fn squared_norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x).powi(2)).sum()
}

fn recipe(fixture: &Fixture, data: &str, run: &str) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.data.train = vec![fixture.text(format!("{data}/train").as_str())];
    recipe.data.eval = vec![fixture.text(format!("{data}/eval").as_str())];
    (recipe.sae.features, recipe.sae.bias_init, recipe.sae.bias_init_l0) = (256, BiasInit::Calibrated, 8.0);
    (recipe.train.batch, recipe.train.lr, recipe.train.l1, recipe.eval.every) = (128, 1e-2, 0.5, 32);
    recipe
}

/// Without what depends on the time or the place of a run.
fn timeless(mut of: Value) -> Value {
    let object = of.as_object_mut().expect("an object");
    let clock = |name: &str| name.ends_with("_s") || name.contains("_s_") || name.starts_with("stall");
    object.retain(|name, _| !clock(name) && !["time", "checkpoint", "data", "eval"].contains(&name.as_str()));
    of
}

/// Two data sets that differ in rows which the filter leaves out, and in nothing else, give the same scale, biases, weights and
/// metrics to the last bit.
#[test]
fn what_a_filter_leaves_out_reaches_no_scale_no_bias_and_no_metric() {
    let fixture = Fixture::new();
    let mut kept = Vec::new();
    for (data, times) in [("loud", 150.0), ("louder", 1000.0)] {
        let rows = contexts(&fixture.path(format!("{data}/train")), 32 * CONTEXT, times, 3);
        contexts(&fixture.path(format!("{data}/eval")), 4 * CONTEXT, times, 4);
        let others = rows.chunks(WIDTH).enumerate().filter(|(i, _)| i % CONTEXT > 0);
        kept = others.map(|(_, row)| squared_norm(row)).collect();
    }
    let scale = (WIDTH as f64 * kept.len() as f64 / kept.iter().sum::<f64>()).sqrt();
    kept.sort_by(f64::total_cmp);
    type Set = fn(&mut Recipe);
    let filters: [(&str, Set); 3] = [
        ("positions", |recipe| recipe.data.filter.positions = vec![0]),
        ("times", |recipe| recipe.data.filter.norm_max = Some(Bound::Medians(10.0))),
        // Measured on the last training rows.
        ("closing", |recipe| {
            recipe.data.filter.norm_max = Some(Bound::Medians(10.0));
            (recipe.data.eval, recipe.eval.every) = (Vec::new(), 0);
        }),
    ];
    for (name, set) in filters {
        let [loud, louder] = ["loud", "louder"].map(|data| {
            let run = format!("{data}-{name}");
            let mut recipe = recipe(&fixture, data, &run);
            set(&mut recipe);
            sae::run(&["train", &fixture.save(&run, &recipe)]).exits(0);
            let report = sae::run(&[
                "eval",
                &recipe.run.dir,
                "--data",
                &fixture.text(format!("{data}/eval").as_str()),
                "--json",
            ]);
            let lines = json_lines(&fixture.path(format!("{run}/metrics.jsonl")));
            let newest = checkpoints::committed(&fixture.path(&run)).pop().expect("a checkpoint");
            let weights = std::fs::read(newest.join("weights-000000.safetensors")).expect("weights");
            let summary = timeless(fixture.json(&format!("{run}/summary.json")));
            let lines: Vec<Value> = lines.into_iter().map(timeless).collect();
            (summary, timeless(report.exits(0).json()), lines, weights)
        });
        assert_eq!(loud.0, louder.0, "{name}: summaries");
        assert_eq!(loud.1, louder.1, "{name}: reports of sae eval");
        assert_eq!(loud.2, louder.2, "{name}: metrics lines");
        assert!(loud.3 == louder.3, "{name}: weights");
        let summary = &loud.0;
        assert!(near(summary["scale"].as_f64().expect("a scale"), scale, 1e-6), "{name}: {summary}, not {scale}");
        assert_eq!((&summary["filtered"], &loud.1["filtered"]), (&32.into(), &4.into()), "{name}");
        assert!(summary["explained_variance"].as_f64().is_some_and(|explained| explained > 0.2), "{summary}");
        if name == "times" {
            // The median is over all rows, the heavy ones among them.
            let median = kept[32 * CONTEXT / 2 - 1].sqrt();
            assert!(near(summary["norm_median"].as_f64().expect("a median"), median, 1e-4), "{summary}, not {median}");
        }
    }
}

/// A multiple of the median is found once: a run goes on with its number, whatever a sample would say by then, and all ranks have it.
#[test]
fn the_median_of_a_run_stays_and_is_that_of_every_mesh() {
    let fixture = Fixture::new();
    contexts(&fixture.path("data/train"), 64 * CONTEXT, 150.0, 3);
    contexts(&fixture.path("data/eval"), 8 * CONTEXT, 150.0, 4);
    let mut recipe = recipe(&fixture, "data", "whole");
    // A bound that cuts through the rows: another median would leave out others.
    recipe.data.filter.norm_max = Some(Bound::Medians(1.1));
    (recipe.checkpoint.keep, recipe.log.every) = (100, 8);
    let path = fixture.save("recipe", &recipe);
    sae::run(&["train", &path]).exits(0);
    let whole = fixture.json("whole/summary.json");
    assert!(whole["filtered"].as_u64().is_some_and(|filtered| filtered > 1000), "{whole}");
    checkpoints::copy(&fixture.path("whole"), &fixture.path("resumed"));
    for folder in checkpoints::committed(&fixture.path("resumed")).into_iter().skip(1) {
        std::fs::remove_dir_all(folder).expect("removed");
    }
    checkpoints::copy(&fixture.path("resumed"), &fixture.path("skipping"));
    let run_dir = |run: &str| format!("run.dir={}", fixture.text(run));
    sae::run(&["train", &path, "--resume", "--set", &run_dir("resumed")]).exits(0);
    assert_eq!(timeless(fixture.json("resumed/summary.json")), timeless(whole.clone()));
    // Without these row groups a sample has another median.
    let skip = "data.skip=[\"shard-00000.parquet#3\", \"shard-00000.parquet#5\"]";
    sae::run(&["train", &path, "--resume", "--set", &run_dir("skipping"), "--set", skip]).exits(0);
    let skipping = fixture.json("skipping/summary.json");
    assert!(skipping["skipped"].as_u64().is_some_and(|skipped| skipped > 100), "{skipping}");
    assert_eq!(skipping["norm_median"], whole["norm_median"]);
    sae::run(&["train", &path, "--set", &run_dir("fresh"), "--set", skip]).exits(0);
    assert_ne!(fixture.json("fresh/summary.json")["norm_median"], whole["norm_median"]);
    // Rows that are twice as long have twice the median, and are measured by the run's.
    let longer: Vec<f32> = plain_rows(1000, WIDTH, 5).into_iter().map(|x| 2.0 * x).collect();
    write_shards(&fixture.path("longer"), WIDTH, &longer, Dtype::F32, 1000);
    let bound = 1.1 * whole["norm_median"].as_f64().expect("a median");
    let beyond = longer.chunks(WIDTH).filter(|row| squared_norm(row).sqrt() > bound).count();
    let report =
        sae::run(&["eval", &fixture.text("whole"), "--data", &fixture.text("longer"), "--json"]).exits(0).json();
    assert!(report["filtered"] == beyond && (700..1000).contains(&beyond), "{report}, not {beyond}");
    let run_dir = run_dir("mesh");
    let ranks = ["launch", "local", "--ranks", "4", &path, "--mesh", "2x2", "--set", &run_dir];
    sae::run(&ranks).exits(0);
    let mesh = fixture.json("mesh/summary.json");
    for name in ["norm_median", "scale", "filtered", "tokens"] {
        assert_eq!(mesh[name], whole[name], "{name}");
    }
    let explained = |of: &Value| of["explained_variance_rows"].as_f64().expect("a number");
    assert!(near(explained(&mesh), explained(&whole), 1e-3), "{mesh} {whole}");
}

/// The dictionary of a run's last checkpoint.
fn dictionary(run: &Path) -> Parameters {
    let newest = checkpoints::committed(run).pop().expect("a checkpoint");
    let read = |file: &str, name: &str| -> Vec<f64> {
        let bytes = std::fs::read(newest.join(file)).expect("read");
        let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
        let data = tensors.tensor(name).expect(name).data().to_vec();
        data.as_chunks().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect()
    };
    let rows = |name| read("weights-000000.safetensors", name).chunks(WIDTH).map(<[f64]>::to_vec).collect();
    Parameters {
        w_enc: rows("W_enc"),
        b_enc: read("weights-000000.safetensors", "b_enc"),
        w_dec: rows("W_dec"),
        b_dec: read("shared.safetensors", "b_dec"),
    }
}

/// Against plain loops in float64: 1 − mean of ‖x − x̂‖²/‖x − mean‖², and beside it 1 − Σ‖x − x̂‖²/Σ‖x − mean‖².
#[test]
fn explained_variance_of_rows_is_that_of_its_definition() {
    let fixture = Fixture::new();
    contexts(&fixture.path("data/train"), 16 * CONTEXT, 150.0, 3);
    let mut rows = contexts(&fixture.path("data/eval"), 5 * CONTEXT + 3, 150.0, 4);
    let mut recipe = recipe(&fixture, "data", "run");
    sae::run(&["train", &fixture.save("run", &recipe)]).exits(0);
    let explained = |rows: &[f32], scale: f64| {
        let x: Vec<Vec<f64>> =
            rows.chunks(WIDTH).map(|row| row.iter().map(|&x| f64::from(x) * scale).collect()).collect();
        let p = dictionary(&fixture.path("run"));
        let x_hat = decode(&p, &encode(&p, &x));
        let mean: Vec<f64> = (0..WIDTH).map(|d| x.iter().map(|x| x[d]).sum::<f64>() / x.len() as f64).collect();
        let square = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let pairs: Vec<(f64, f64)> =
            x.iter().zip(&x_hat).map(|(x, x_hat)| (square(x, x_hat), square(x, &mean))).collect();
        let counted: Vec<f64> =
            pairs.iter().filter(|(_, apart)| *apart > 0.0).map(|(error, apart)| error / apart).collect();
        let all = pairs.iter().fold((0.0, 0.0), |(a, b), (error, apart)| (a + error, b + apart));
        (1.0 - counted.iter().sum::<f64>() / counted.len() as f64, 1.0 - all.0 / all.1)
    };
    let check = |said: &Value, rows: &[f32], scale: f64| {
        let (by_row, of_all) = explained(rows, scale);
        let said = |name: &str| said[name].as_f64().expect("a number");
        assert!(near(said("explained_variance_rows"), by_row, 1e-4), "{} {by_row}", said("explained_variance_rows"));
        assert!(near(said("explained_variance"), of_all, 1e-4), "{} {of_all}", said("explained_variance"));
        assert!((by_row - of_all).abs() > 0.05, "the two tell different things here: {by_row} {of_all}");
    };
    let summary = fixture.json("run/summary.json");
    let scale = summary["scale"].as_f64().expect("a scale");
    check(&summary, &rows, scale);
    let lines = json_lines(&fixture.path("run/metrics.jsonl"));
    let (eval, train): (Vec<&Value>, Vec<&Value>) = lines.iter().partition(|line| line["kind"] == "eval");
    assert!(train.iter().all(|line| line["explained_variance_rows"].is_null()) && !train.is_empty(), "{train:?}");
    assert!(eval.iter().all(|line| line["explained_variance_rows"].is_number()), "{eval:?}");
    let last = eval.last().expect("held-out rows were measured");
    assert_eq!(last["explained_variance_rows"], summary["explained_variance_rows"], "of the evaluation at the end");
    let run = fixture.text("run");
    check(&sae::run(&["eval", &run, "--json"]).exits(0).json(), &rows, scale);
    let some = sae::run(&["eval", &run, "--rows", "300", "--json"]).exits(0).json();
    check(&some, &rows[..300 * WIDTH], scale);
    let table = sae::run(&["eval", &run]).exits(0).stdout;
    assert!(table.contains("explained variance, mean of rows"), "{table}");
    // Rows that are the mean itself have nothing to explain; where all are, there is no number.
    rows.fill(0.25);
    write_shards(&fixture.path("same"), WIDTH, &rows, Dtype::F32, 1000);
    let same = sae::run(&["eval", &run, "--data", &fixture.text("same"), "--json"]).exits(0).json();
    assert!(same["explained_variance_rows"].is_null() && same["explained_variance"].is_null(), "{same}");
    let pairs: Vec<f32> = (0..200).flat_map(|i| [0.3 * [1.0, -1.0, 0.0, 0.0][i % 4]; WIDTH]).collect();
    write_shards(&fixture.path("pairs"), WIDTH, &pairs, Dtype::F32, 1000);
    let said = sae::run(&["eval", &run, "--data", &fixture.text("pairs"), "--json"]).exits(0).json();
    let (by_row, _) = explained(&pairs, scale);
    assert!(near(said["explained_variance_rows"].as_f64().expect("a number"), by_row, 1e-4), "{said} {by_row}");
    // Without held-out rows their mean is not known beforehand.
    (recipe.data.eval, recipe.eval.every, recipe.run.dir) = (Vec::new(), 0, fixture.text("closing"));
    sae::run(&["train", &fixture.save("closing", &recipe)]).exits(0);
    let closing = fixture.json("closing/summary.json");
    assert!(closing["explained_variance_rows"].is_null() && closing["explained_variance"].is_number(), "{closing}");
    assert!(closing.as_object().is_some_and(|summary| summary.contains_key("explained_variance_rows")));
}

/// Few rows that carry everything are told of, with where they stand and the filters that leave them out.
#[test]
fn a_few_rows_that_carry_everything_are_told_of() {
    let fixture = Fixture::new();
    let rows = contexts(&fixture.path("data/train"), 64 * CONTEXT, 150.0, 3);
    contexts(&fixture.path("data/eval"), 8 * CONTEXT, 150.0, 4);
    let data = fixture.text("data/train");
    let mut squares: Vec<f64> = rows.chunks(WIDTH).map(squared_norm).collect();
    squares.sort_by(f64::total_cmp);
    let norm = |share: f64| squares[((share * squares.len() as f64).ceil() as usize).max(1) - 1].sqrt();
    let top: f64 = squares[squares.len() - squares.len() / 100..].iter().sum();
    let inspected = sae::run(&["inspect", &data, "--json"]).exits(0);
    let found = inspected.json();
    assert!(near(found["top1_share"].as_f64().expect("a share"), top / squares.iter().sum::<f64>(), 1e-3), "{found}");
    assert!(near(found["norm_max"].as_f64().expect("a norm"), norm(1.0), 1e-12), "{found}");
    for (percent, share) in [("0", 0.0), ("1", 0.01), ("10", 0.1), ("50", 0.5), ("90", 0.9), ("99", 0.99), ("100", 1.0)]
    {
        let quantile = found["norm_quantiles"][percent].as_f64().expect("a quantile");
        assert!(near(quantile, norm(share), 1e-4), "{percent} %: {quantile}, not {}", norm(share));
    }
    let remedies = [
        "data.filter.positions = [0] (64 rows",
        "data.filter.token_ids = [1] (64 rows",
        "data.filter.norm_max = \"10x\" (64 rows",
    ];
    let at = ["64 of the 64 at pos 0", "64 of the 64 at token_id 1"];
    let warned = [&remedies[..], &at[..], &["the largest 1 % of the rows carry 99."]].concat();
    inspected.says(&warned);
    let table = sae::run(&["inspect", &data]).exits(0).says(&warned).stdout;
    assert!(table.contains("norms: 90, 99, 100 %") && table.contains("E‖x‖² in the largest 1 %"), "{table}");
    let mut recipe = recipe(&fixture, "data", "run");
    let path = fixture.save("run", &recipe);
    let plan = sae::run(&["train", &path, "--dry-run"]).exits(0).says(&warned).stdout;
    assert!(plan.contains("E‖x‖² in the largest 1 % of the rows") && plan.contains("99."), "{plan}");
    sae::run(&["train", &path]).exits(0).says(&warned);
    // Each remedy is one, and is then said to have worked.
    recipe.run.dir = fixture.text("mended");
    let path = fixture.save("mended", &recipe);
    for set in ["data.filter.positions=[0]", "data.filter.token_ids=[1]", "data.filter.norm_max=10x"] {
        let plan = sae::run(&["train", &path, "--dry-run", "--set", set]).exits(0);
        assert!(!plan.stderr.contains("Leave them out"), "{set}: {}", plan.stderr);
    }
    sae::run(&["train", &path, "--set", "data.filter.norm_max=10x"])
        .exits(0)
        .says(&["the largest 1 % of the rows carry 3.2 %"]);
    // Rows without such columns, and none that stick out.
    write_shards(&fixture.path("bare"), WIDTH, &rows, Dtype::F32, 1000);
    let bare = sae::run(&["inspect", &fixture.text("bare")]).exits(0).says(&[remedies[2]]);
    assert!(!bare.stderr.contains("pos 0") && !bare.stderr.contains("positions"), "{}", bare.stderr);
    write_shards(&fixture.path("even"), WIDTH, &plain_rows(5000, WIDTH, 3), Dtype::F32, 1000);
    let even = sae::run(&["inspect", &fixture.text("even"), "--json"]).exits(0);
    assert!(!even.stderr.contains("carry") && even.json()["heavy"].is_null(), "{}", even.stderr);
}

/// Rows that no scale can be found for end the start with 65 and one sentence; single ones do not.
#[test]
fn rows_without_a_scale_are_refused_at_the_start() {
    let fixture = Fixture::new();
    let none = "sampled rows of data.train is finite";
    let cases: [(&str, f32, &str); 5] = [
        ("nan", f32::NAN, none),
        ("inf", f32::INFINITY, none),
        ("minus-inf", f32::NEG_INFINITY, none),
        ("zeros", 0.0, "nothing but zeros in 500 sampled rows"),
        ("tiny", 1e-44, "no factor that f32 holds"),
    ];
    for (name, value, says) in cases {
        write_shards(&fixture.path(name), WIDTH, &vec![value; 500 * WIDTH], Dtype::F32, 500);
        let mut recipe = fixture.recipe(&format!("run-{name}"));
        recipe.data.train = vec![fixture.text(name)];
        let path = fixture.save(name, &recipe);
        for arguments in [&["train", &path][..], &["train", &path, "--dry-run"]] {
            sae::run(arguments).exits(65).says(&[says, "sae inspect"]);
        }
        let unusable = !value.is_finite();
        let inspected = sae::run(&["inspect", &fixture.text(name)]).exits(if unusable { 65 } else { 0 });
        assert!(!inspected.stdout.contains(" inf "), "{}", inspected.stdout);
        sae::run(&["inspect", &fixture.text(name), "--json"]).exits(if unusable { 65 } else { 0 }).json();
        if unusable {
            recipe.data.scale = Scale::Fixed(1.0);
            sae::run(&["train", &fixture.save(name, &recipe)]).exits(65).says(&[says]);
        }
        recipe.data.filter.norm_max = Some(Bound::Medians(10.0));
        sae::run(&["train", &fixture.save(name, &recipe)]).exits(65);
    }
    // One row with NaN is named at its step. Norms that f32 would not hold are norms, for the scale as for filters.
    let mut rows = plain_rows(500, WIDTH, 7);
    rows.iter_mut().for_each(|x| *x *= 1e25);
    write_shards(&fixture.path("large"), WIDTH, &rows, Dtype::F32, 100);
    rows[77 * WIDTH] = f32::NAN;
    write_shards(&fixture.path("one"), WIDTH, &rows, Dtype::F32, 100);
    let train = |data: &str, set: &str| {
        let run = format!("{data}-{}", set.len());
        let mut recipe = fixture.recipe(&run);
        recipe.data.train = vec![fixture.text(data)];
        recipe.sae.features = 64;
        (sae::run(&["train", &fixture.save(&run, &recipe), "--set", set]), fixture.path(format!("{run}/summary.json")))
    };
    let warned = ["1 of 500 sampled rows hold NaN", "data.filter.finite = true", "shard-00000.parquet:77"];
    train("one", "data.filter.finite=false").0.exits(65).says(&warned);
    let (finished, summary) = train("one", "data.filter.finite=true");
    finished.exits(0);
    assert_eq!(json(&summary)["filtered"], 1);
    let (finished, summary) = train("large", "data.filter.norm_min=\"0.001x\"");
    finished.exits(0);
    assert_eq!(json(&summary)["filtered"], 0);
}

/// A filter that leaves hardly a row is said to do so; one that takes few is no warning.
#[test]
fn a_filter_says_how_much_it_leaves_out() {
    let fixture = Fixture::new();
    let mut rows = vec![1.0f32; 1000 * WIDTH];
    rows[..4 * WIDTH].fill(3.0);
    write_shards(&fixture.path("data"), WIDTH, &rows, Dtype::F32, 1000);
    let mut recipe = fixture.recipe("run");
    recipe.data.train = vec![fixture.text("data")];
    let path = fixture.save("recipe", &recipe);
    // Between the norms of both kinds.
    let bound = 2.0 * (WIDTH as f64).sqrt();
    for (set, says, warns) in [
        (format!("data.filter.norm_min={bound}"), "leave out 99.6 % of 1000 sampled rows", true),
        (format!("data.filter.norm_max={bound}"), "leave out 0.4 % of 1000 sampled rows", false),
        ("data.filter.norm_max=2x".to_owned(), "leave out 0.4 % of 1000 sampled rows", false),
    ] {
        let finished = sae::run(&["train", &path, "--dry-run", "--set", &set]).exits(0).says(&[says]);
        assert_eq!(finished.stderr.contains("too little to train on"), warns, "{set}: {}", finished.stderr);
    }
    let finished = sae::run(&["train", &path, "--dry-run"]).exits(0);
    assert!(!finished.stderr.contains("leave out"), "{}", finished.stderr);
}

/// A penalty that nothing survives ends in a dictionary of no use, which the run says, however few features count as dead.
#[test]
fn a_dictionary_that_explains_nothing_is_said_to() {
    let fixture = Fixture::with_data();
    let path = fixture.save("recipe", &fixture.recipe("run"));
    let fine = sae::run(&["train", &path]).exits(0);
    assert!(fine.stdout.contains("silent on the rows evaluated") && !fine.stderr.contains("explains nothing"));
    let dir = format!("run.dir={}", fixture.text("collapsed"));
    let collapsed = ["--set", "train.l1=1e4", "--set", "train.lr=3e-2", "--set", &dir];
    let finished = sae::run(&[&["train", &path][..], &collapsed].concat()).exits(0);
    finished.says(&["the dictionary explains nothing", "lower train.l1"]);
}
