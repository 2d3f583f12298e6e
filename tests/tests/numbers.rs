//! Every number that a run reports or decides by, against one that is computed here: in double precision, from the rows as they are
//! stored and from weights as they are exported, with nothing of the trainer's.

use kernels::cpu::Cpu;
use loader::{Dataset, Dtype, OpenOptions, RowFilter, SkipList, Store, sample};
use tests::exact::{Dictionary, Measured, near};
use tests::fixture::{Fixture, Numbers, plain_rows, write_shards};
use tests::golden::{self, Weights};
use tests::runs::{Told, finish, trained};
use trainer::checkpoint;
use trainer::export::{Form, Format, Origin, export};
use trainer::metrics::{DensityHistogram, Metrics};
use trainer::recipe::{BiasInit, Every, InitSpace, Order, Recipe, Scale};
use trainer::trained::Trained;

const WIDTH: usize = 16;
/// A tile and parts of another.
const FEATURES: usize = 300;
/// So small a learning rate moves no weight.
const STILL: f64 = 1e-30;

/// A recipe over `train`, in the order of storage, that lasts a moment.
fn recipe(fixture: &Fixture, run: &str) -> Recipe {
    let mut recipe = fixture.recipe(run);
    recipe.data.order = Order::Sequential;
    (recipe.sae.features, recipe.train.batch, recipe.train.threads) = (FEATURES, 64, Some(2));
    (recipe.checkpoint.every, recipe.log.every) = (Every::Steps(1000), 1000);
    recipe
}

/// Rows of a norm that is not 1, around a mean that is not 0.
fn rows(n: usize, seed: u64) -> Vec<f32> {
    plain_rows(n, WIDTH, seed).iter().map(|x| 7.0 * x + 2.0).collect()
}

fn write(fixture: &Fixture, set: &str, rows: &[f32], width: usize) {
    write_shards(&fixture.path(set), width, rows, Dtype::F32, u64::MAX);
}

/// The dictionary of a finished run as others read it, for rows as they are stored.
fn exported(fixture: &Fixture, run: &str) -> Dictionary {
    let (store, found) = checkpoint::open(&fixture.text(run)).expect("a checkpoint");
    let out = fixture.path(format!("{run}-exported"));
    let form = Form { format: Format::Saelens, dtype: Dtype::F32, unit_norm: false, part_bytes: None };
    let origin = Origin {
        model: "m".into(),
        model_class: "c".into(),
        hook: "h".into(),
        hook_head: None,
        dataset: "d".into(),
        context_size: 1,
        prepend_bos: false,
    };
    let device = Cpu::new(Some(1)).expect("threads");
    let to = Store::open(out.to_str().expect("a plain path")).expect("a folder");
    let trained = Trained::Checkpoint(store, Box::new(found));
    export(&to, (&device, &trained), None, form, &origin).expect("exported");
    Dictionary::read(&out.join("sae_weights.safetensors"))
}

#[track_caller]
fn assert_measured(what: &str, metrics: &Metrics, exact: &Measured, l1: f64, tolerance: f64) {
    let close = |name: &str, found: f64, exact: f64| {
        assert!(near(found, exact, tolerance), "{what}: {name} is {found}, and {exact} by the definition");
    };
    close("mse", metrics.mse, exact.mse);
    close("l1_norm", metrics.l1_norm, exact.l1_norm);
    close("loss", metrics.loss, exact.mse + l1 * exact.l1_norm);
    close("l0", metrics.l0, exact.l0);
    close("explained_variance", metrics.explained_variance.expect("some"), exact.explained_variance);
    close("normalized_mse", metrics.normalized_mse.expect("some"), exact.normalized_mse);
    if let Some(found) = metrics.explained_variance_rows {
        close("explained_variance_rows", found, exact.explained_variance_rows);
    }
}

#[track_caller]
fn assert_density(density: &DensityHistogram, exact: &Measured) {
    let mut bins = [0u64; 16];
    let shares = exact.fired_f.iter().filter(|fired| **fired > 0).map(|fired| *fired as f64 / exact.rows as f64);
    for share in shares {
        // The last bin whose upper edge is not below the share.
        let bin = (0..16).rev().find(|i| share <= 10f64.powf(-0.5 * f64::from(*i)) * (1.0 + 1e-12)).unwrap_or(0);
        bins[bin as usize] += 1;
    }
    let silent = exact.fired_f.iter().filter(|fired| **fired == 0).count() as u64;
    assert_eq!((density.silent, density.half_decades), (silent, bins));
}

/// What a trained dictionary does on held-out rows, by its export, at a scale of its own: the export takes stored rows, and its
/// errors are those of the run but for the square of the scale.
#[test]
fn metrics_are_those_of_the_exported_weights_on_the_stored_rows() {
    let fixture = Fixture::new();
    let (train, mut eval) = (rows(2000, 3), rows(701, 4));
    // A long row, in which errors of all rows and those of each differ.
    eval[5 * WIDTH..6 * WIDTH].iter_mut().for_each(|x| *x *= 9.0);
    write(&fixture, "train", &train, WIDTH);
    write(&fixture, "eval", &eval, WIDTH);
    let norms: f64 = train.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 2000.0;
    for (run, scale, expected) in [
        ("auto", Scale::Auto, (WIDTH as f64 / norms).sqrt()),
        ("fixed", Scale::Fixed(0.37), 0.37),
        ("calibrated", Scale::Auto, (WIDTH as f64 / norms).sqrt()),
    ] {
        let mut recipe = recipe(&fixture, run);
        recipe.data.eval = vec![fixture.text("eval")];
        recipe.data.scale = scale;
        (recipe.train.l1, recipe.train.lr, recipe.train.l1_warmup) = (0.4, 3e-3, 1.0);
        if run == "calibrated" {
            (recipe.sae.bias_init, recipe.sae.bias_init_l0) = (BiasInit::Calibrated, 12.0);
        }
        let summary = finish(&recipe);
        assert!(near(f64::from(summary.scale), expected, 1e-6), "{} and {expected}", summary.scale);
        let exact = exported(&fixture, run).measure(&eval, expected);
        let metrics = summary.metrics.expect("rows");
        assert_measured(run, &metrics, &exact, 0.4, 2e-5);
        assert_density(&summary.density, &exact);
        assert!(metrics.explained_variance_rows.is_some());
    }
}

/// Weights that come from a file for stored rows and are not moved leave as they came, each of the four tensors, whatever the scale.
#[test]
fn weights_in_the_space_of_rows_come_and_go_unchanged() {
    let fixture = Fixture::new();
    let train = rows(300, 3);
    write(&fixture, "train", &train, WIDTH);
    let mut numbers = Numbers::new(5);
    let mut start = Weights::start(WIDTH, FEATURES, 0.0);
    start.b_enc_f.iter_mut().for_each(|b| *b = 2.0 * numbers.unit());
    start.b_dec_d.iter_mut().for_each(|b| *b = 3.0 * numbers.unit());
    start.write(&fixture.path("start.safetensors"));
    let exact = Dictionary::read(&fixture.path("start.safetensors")).measure(&train, 0.37);
    let mut recipe = recipe(&fixture, "run");
    (recipe.data.scale, recipe.train.lr) = (Scale::Fixed(0.37), STILL);
    (recipe.train.init_from, recipe.train.init_space) = (Some(fixture.text("start.safetensors")), Some(InitSpace::Raw));
    let summary = finish(&recipe);
    // No held-out rows: measured on the rows trained on, all of them here.
    assert_measured("at the start", &summary.metrics.expect("rows"), &exact, recipe.train.l1, 2e-5);
    let came = exported(&fixture, "run");
    for (name, left, right) in [
        ("W_enc", &came.w_enc_df, &start.w_enc_df),
        ("b_enc", &came.b_enc_f, &start.b_enc_f),
        ("W_dec", &came.w_dec_fd, &start.w_dec_fd),
        ("b_dec", &came.b_dec_d, &start.b_dec_d),
    ] {
        assert_eq!(left.len(), right.len());
        assert!(left.iter().zip(right).all(|(a, b)| near(*a, f64::from(*b), 1e-6)), "{name} came out otherwise");
    }
}

/// Without held-out rows the last 65,536 count: as many as there are, one less, one more, and more. The rows on both sides of the
/// border are long, so that neither is missed.
#[test]
fn the_closing_rows_are_the_last_65536() {
    let fixture = Fixture::new();
    Weights::start(4, 128, -0.02).write(&fixture.path("start.safetensors"));
    for n in [65_535usize, 65_536, 65_537, 67_100] {
        let mut rows = plain_rows(n, 4, 6);
        let first = n.saturating_sub(65_536);
        for (row, factor) in [(first.wrapping_sub(1), 900.0), (first, 300.0), (n - 1, 200.0)] {
            rows.iter_mut().skip(row.saturating_mul(4)).take(4).for_each(|x| *x *= factor);
        }
        let set = format!("train-{n}");
        write(&fixture, &set, &rows, 4);
        let mut recipe = recipe(&fixture, &format!("run-{n}"));
        recipe.data.train = vec![fixture.text(&set)];
        (recipe.sae.features, recipe.train.batch, recipe.train.lr) = (128, 1000, STILL);
        (recipe.data.scale, recipe.train.l1_warmup) = (Scale::Fixed(1.0), 1.0);
        (recipe.train.init_from, recipe.train.init_space) =
            (Some(fixture.text("start.safetensors")), Some(InitSpace::Raw));
        let summary = finish(&recipe);
        let exact = Dictionary::read(&fixture.path("start.safetensors")).measure(&rows[4 * first..], 1.0);
        assert_measured(&format!("{n} rows"), &summary.metrics.expect("rows"), &exact, recipe.train.l1, 1e-6);
        assert_density(&summary.density, &exact);
    }
}

/// Biases by the sample: each feature fires on the share of the rows that was asked for, in each block of 1,024 features.
#[test]
fn calibrated_features_fire_as_often_as_asked() {
    let fixture = Fixture::new();
    let train = rows(3000, 3);
    write(&fixture, "train", &train, WIDTH);
    for features in [1023, 1024, 1025] {
        let run = format!("run-{features}");
        let mut recipe = recipe(&fixture, &run);
        recipe.train.lr = STILL;
        (recipe.sae.features, recipe.sae.bias_init, recipe.sae.bias_init_l0) = (features, BiasInit::Calibrated, 20.0);
        let summary = finish(&recipe);
        // The whole set is the sample: the bias is the value of the row behind so many.
        let wanted = (20.0 / features as f64 * 3000.0).round() as u64;
        let exact = exported(&fixture, &run).measure(&train, f64::from(summary.scale));
        assert_eq!(exact.fired_f.len(), features);
        let counts = exact.fired_f.iter().map(|fired| fired.abs_diff(wanted));
        assert!(counts.clone().max() <= Some(1), "{wanted} of 3000 rows each, and {:?}", exact.fired_f);
        let l0 = summary.metrics.expect("rows").l0;
        assert!(near(l0, exact.l0, 0.005) && near(l0, 20.0, 0.02), "{l0} and {}", exact.l0);
    }
}

/// Features are dead that fired in no batch which ends inside the window.
#[test]
fn dead_features_are_those_silent_in_the_window() {
    let fixture = Fixture::new();
    let train = rows(10 * 64 + 40, 3);
    write(&fixture, "train", &train, WIDTH);
    let mut start = Weights::start(WIDTH, FEATURES, 0.0);
    // Thresholds from features that always fire to some that never do.
    start.b_enc_f.iter_mut().enumerate().for_each(|(f, b)| *b = 1.0 - 0.02 * f as f32);
    start.write(&fixture.path("start.safetensors"));
    let by_batch: Vec<Vec<u64>> = {
        let dictionary = Dictionary::read(&fixture.path("start.safetensors"));
        train.chunks(64 * WIDTH).map(|rows| dictionary.measure(rows, 1.0).fired_f).collect()
    };
    let mut found = Vec::new();
    // The last batch has 40 rows, and each before it 64.
    for (window, batches) in [(1, 1), (40, 1), (41, 2), (104, 2), (105, 3), (679, 11), (680, 11), (1_000_000, 11)] {
        let mut recipe = recipe(&fixture, &format!("run-{window}"));
        (recipe.data.scale, recipe.train.lr, recipe.train.dead_window) = (Scale::Fixed(1.0), STILL, window);
        (recipe.train.init_from, recipe.train.init_space) =
            (Some(fixture.text("start.safetensors")), Some(InitSpace::Raw));
        let summary = finish(&recipe);
        let last = &by_batch[by_batch.len() - batches..];
        let dead = (0..FEATURES).filter(|&f| last.iter().all(|fired_f| fired_f[f] == 0)).count();
        assert_eq!(summary.dead_fraction, dead as f64 / FEATURES as f64, "window of {window}");
        assert_eq!(summary.dead_window, window.min(680));
        found.push(dead);
    }
    assert!(
        found[0] > found[2] && found[2] > found[4] && found[4] > found[5] && found[5] > 0,
        "{found:?} tell windows apart"
    );
}

/// A dictionary whose cosines with the true directions are known: found at 0.9 and more, if the direction occurred a thousand times
/// in the rows trained on. Decoder rows lie on both sides of the blocks of 1,024 in which they are compared.
#[test]
fn recovery_is_that_of_a_known_dictionary() {
    let fixture = Fixture::new();
    let (width, features, n) = (16, 1200, 12);
    write(&fixture, "train", &plain_rows(400, width, 3), width);
    // The directions are axes, of another length than 1; the decoder's rows lie between an axis and the last four, which no direction has.
    let cosines = [1.0f32, 0.95, 0.9001, 0.8999, 0.5, 1.0, 1.0, 0.97, 0.3, 1.0, 0.92, 0.6];
    let places = [0, 1, 1022, 1023, 1024, 1025, 1199, 500, 501, 502, 503, 504];
    // In the half of the rows that is trained on half of these.
    let occurrences: [u64; 12] = [2000, 2001, 5000, 2000, 9000, 1999, 2000, 1998, 2000, 0, 3000, 1_000_000];
    let mut start = Weights::start(width, features, 0.0);
    start.w_dec_fd.chunks_exact_mut(width).for_each(|row| {
        row.fill(0.0);
        row[12] = 0.1;
    });
    for ((axis, cosine), place) in cosines.iter().enumerate().zip(places) {
        let row = &mut start.w_dec_fd[place * width..][..width];
        row.fill(0.0);
        (row[axis], row[13]) = (0.1 * cosine, 0.1 * (1.0 - cosine * cosine).sqrt());
    }
    start.write(&fixture.path("start.safetensors"));
    let directions: Vec<u8> =
        (0..n * width).flat_map(|i| (if i % width == i / width { 3.0f32 } else { 0.0 }).to_le_bytes()).collect();
    let counts: Vec<u8> = occurrences.iter().flat_map(|count| count.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new;
    let truth = [
        ("directions", view(safetensors::Dtype::F32, vec![n, width], &directions).expect("fits")),
        ("occurrences", view(safetensors::Dtype::U64, vec![n], &counts).expect("fits")),
    ];
    let bytes = safetensors::serialize(truth, None).expect("serialised");
    std::fs::write(fixture.path("train/truth.safetensors"), bytes).expect("written");

    let mut recipe = recipe(&fixture, "run");
    (recipe.sae.features, recipe.train.lr, recipe.train.tokens) = (features, STILL, Some(200));
    (recipe.train.init_from, recipe.train.init_space) = (Some(fixture.text("start.safetensors")), Some(InitSpace::Raw));
    let summary = finish(&recipe);
    let often: Vec<f64> = cosines
        .iter()
        .zip(occurrences)
        .filter(|(_, count)| *count >= 2000)
        .map(|(cosine, _)| f64::from(*cosine))
        .collect();
    assert_eq!(often.len(), 9);
    assert_eq!(summary.recovered, Some(often.iter().filter(|cosine| **cosine >= 0.9).count() as f64 / 9.0));
    let mmcs = often.iter().sum::<f64>() / 9.0;
    assert!(near(summary.mmcs.expect("directions"), mmcs, 1e-6), "{:?} and {mmcs}", summary.mmcs);
}

/// Losses and norms of gradients that are clipped at some steps, and that never are: golden losses have each of them clipped.
#[test]
fn steps_with_and_without_clipping_are_those_of_the_reference() {
    let case = golden::CASES[1];
    let norms: Vec<f64> = golden::train_clipped(case, golden::CLIP).into_iter().map(|(_, norm)| norm).collect();
    let (least, most) =
        norms.iter().fold((f64::MAX, 0.0f64), |(least, most), norm| (least.min(*norm), most.max(*norm)));
    for (clip, some) in [(0.5 * (least + most), 1..20), (1e6, 0..1)] {
        let expected = golden::train_clipped(case, clip);
        let clipped = expected.iter().filter(|(_, norm)| *norm > clip).count();
        assert!(some.contains(&clipped), "{clipped} of 20 steps are clipped at {clip}");
        let fixture = Fixture::new();
        let mut recipe = golden::recipe(&fixture, case);
        recipe.train.clip = clip;
        let (_, Told { lines, .. }) = trained(&recipe, false, None);
        assert_eq!(lines.len(), 20);
        for (line, (measured, norm)) in lines.iter().zip(&expected) {
            let (loss, found) = (line.metrics.loss, line.gradient_norm);
            assert!(near(loss, measured.loss, 1e-5), "clip {clip}, step {}: {loss}, {measured:?}", line.step);
            assert!(near(found, *norm, 1e-4), "clip {clip}, step {}: {found} and {norm}", line.step);
        }
    }
}

/// Rows of one value each, all different, in no order.
fn distinct(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % n + 1) as f32).collect()
}

/// Of more rows than a sample has, those that it takes by the data and the seed.
fn sampled(recipe: &Recipe, rows: &[f32], most: usize, seed: u64) -> Vec<f32> {
    if rows.len() <= most {
        return rows.to_vec();
    }
    let dataset = Dataset::open(&recipe.data.train, &OpenOptions::default()).expect("data");
    sample(&dataset, most, seed, &SkipList::default(), &RowFilter::default()).expect("a sample").rows
}

/// In one dimension a bias names the row whose value it takes back, and features of either sign count from either end: so no row shows in
/// neither that is in the sample and should not be.
#[test]
fn biases_are_calibrated_on_8192_rows() {
    let fixture = Fixture::new();
    for n in [8191, 8192, 8193, 20_000] {
        let (set, run, rows) = (format!("train-{n}"), format!("run-{n}"), distinct(n));
        write(&fixture, &set, &rows, 1);
        let mut recipe = recipe(&fixture, &run);
        (recipe.data.train, recipe.data.scale) = (vec![fixture.text(&set)], Scale::Fixed(1.0));
        (recipe.sae.features, recipe.sae.bias_init, recipe.sae.bias_init_l0) = (32, BiasInit::Calibrated, 16.0);
        (recipe.train.lr, recipe.train.tokens) = (STILL, Some(64));
        finish(&recipe);
        let mut values = sampled(&recipe, &rows, 8192, recipe.data.seed ^ 1);
        values.sort_by(f32::total_cmp);
        let half = (0.5 * values.len() as f64).round() as usize;
        let (from_above, from_below) = (values[values.len() - 1 - half], values[half]);
        let came = exported(&fixture, &run);
        let mut signs = [0, 0];
        for (w, b) in came.w_enc_df.iter().zip(&came.b_enc_f) {
            let expected = if *w > 0.0 { from_above } else { from_below };
            assert!(near(-b / w, f64::from(expected), 1e-6), "{n} rows: {} and {expected}", -b / w);
            signs[usize::from(*w > 0.0)] += 1;
        }
        assert!(signs[0] > 0 && signs[1] > 0, "{signs:?}");
    }
}

/// Rows grow, so that one more or less shows in the mean of their squares.
#[test]
fn the_scale_is_that_of_65536_rows() {
    let fixture = Fixture::new();
    for n in [65_535, 65_536, 65_537, 80_000] {
        let (set, rows) = (format!("train-{n}"), distinct(n));
        write(&fixture, &set, &rows, 1);
        let mut recipe = recipe(&fixture, &format!("run-{n}"));
        (recipe.data.train, recipe.data.scale) = (vec![fixture.text(&set)], Scale::Auto);
        (recipe.sae.features, recipe.train.tokens) = (128, Some(64));
        let summary = finish(&recipe);
        let values = sampled(&recipe, &rows, 65_536, recipe.data.seed);
        let mean = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / values.len() as f64;
        let expected = (1.0 / mean).sqrt();
        assert!(near(f64::from(summary.scale), expected, 1e-7), "{n} rows: {} and {expected}", summary.scale);
    }
}
