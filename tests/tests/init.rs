//! `train.init_from` and `sae export`: whatever a run starts from, it takes up the loss that its source had.

use std::fs;
use std::path::Path;

use kernels::cpu::Cpu;
use kernels::{Dictionary, Tensor};
use loader::Dtype;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as Stored, TensorView};
use serde_json::json;
use tests::fixture::{Fixture, json, plain_rows, text, write_shards};
use tests::golden::Weights;
use tests::{checkpoints, sae};
use trainer::recipe::{BiasInit, Every, Recipe, Scale};
use trainer::{checkpoint, evaluate};

const WIDTH: usize = 16;
const FEATURES: usize = 160;

/// A run on rows that are `times` as long, evaluated on rows that it has not seen.
fn source(fixture: &Fixture, times: f32) -> Recipe {
    let rows: Vec<f32> = plain_rows(6_000, WIDTH, 8).into_iter().map(|x| (x + 0.5) * times).collect();
    let (train, eval) = rows.split_at(5_000 * WIDTH);
    write_shards(&fixture.path("train"), WIDTH, train, Dtype::F32, 3_000);
    write_shards(&fixture.path("eval"), WIDTH, eval, Dtype::F32, 3_000);
    let mut recipe = fixture.recipe("source");
    recipe.data.eval = vec![fixture.text("eval")];
    recipe.sae.features = FEATURES;
    recipe.sae.bias_init = BiasInit::Calibrated;
    recipe.sae.bias_init_l0 = 8.0;
    recipe.train.batch = 100;
    recipe.train.lr = 3e-3;
    recipe.checkpoint.every = Every::Steps(1_000);
    sae::run(&["train", &fixture.save("source", &recipe)]).exits(0);
    recipe
}

/// The recipe of a run that goes on from `from` and learns nothing.
fn still(recipe: &Recipe, fixture: &Fixture, from: &str) -> Recipe {
    let mut still = recipe.clone();
    still.sae.bias_init = BiasInit::Zero;
    still.train.lr = 1e-30;
    still.train.tokens = Some(200);
    still.train.init_from = Some(from.to_owned());
    still.run.dir = fixture.text(&format!("still-{}", fs::read_dir(fixture.path("")).expect("a folder").count()));
    still
}

/// What such a run measures on the held-out rows.
#[track_caller]
fn measured(fixture: &Fixture, recipe: &Recipe, sets: &[&str]) -> serde_json::Value {
    let path = fixture.save("still", recipe);
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    sae::run(&["train", &path].into_iter().chain(sets).collect::<Vec<_>>()).exits(0);
    json(&Path::new(&recipe.run.dir).join("summary.json"))
}

#[track_caller]
fn export(run: &str, out: &str, more: &[&str]) {
    sae::run(&[&["export", run, "--out", out], more].concat()).exits(0);
}

#[track_caller]
fn assert_near(what: &str, a: &serde_json::Value, b: &serde_json::Value, key: &str, relative: f64) {
    let (a, b) = (a[key].as_f64().expect("a number"), b[key].as_f64().expect("a number"));
    assert!((a - b).abs() <= relative * b.abs(), "{what}: {key} is {a}, and that of the source {b}");
}

/// The weights of a checkpoint, as files have them.
fn weights_of(run: &str) -> Weights {
    let (store, found) = checkpoint::open(run).expect("a checkpoint");
    let device = Cpu::new(Some(1)).expect("threads");
    let sae = evaluate::load(&device, &store, &found, 1).expect("weights");
    let read = |tensor, rows: usize, columns: usize| {
        let mut values = vec![0.0f32; rows * columns];
        sae.read(tensor, 0..rows, &mut values).expect("a processor");
        values
    };
    let (width, features) = (found.manifest.width, found.manifest.features);
    Weights {
        w_enc_df: turned(&read(Tensor::EncoderWeight, features, width), width),
        b_enc_f: read(Tensor::EncoderBias, features, 1),
        w_dec_fd: read(Tensor::DecoderWeight, features, width),
        b_dec_d: read(Tensor::DecoderBias, 1, width),
    }
}

/// The transpose of a matrix of so many columns.
fn turned(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

/// The four tensors of a file of f32.
fn weights_in(path: &Path) -> Weights {
    let bytes = fs::read(path).expect("a file of weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = |name: &str| {
        let tensor = file.tensor(name).expect("one of the four");
        assert_eq!(tensor.dtype(), Stored::F32, "{name}");
        let values = tensor.data().as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value));
        values.collect::<Vec<f32>>()
    };
    Weights { w_enc_df: tensor("W_enc"), b_enc_f: tensor("b_enc"), w_dec_fd: tensor("W_dec"), b_dec_d: tensor("b_dec") }
}

/// A folder as SAELens leaves it whose encoder sees x − b_dec.
fn as_saelens(weights: &Weights, folder: &Path, dtype: Dtype) {
    let (width, features) = (weights.b_dec_d.len(), weights.b_enc_f.len());
    let mut b_enc_f = weights.b_enc_f.clone();
    for (f, bias) in b_enc_f.iter_mut().enumerate() {
        let moved = (0..width).map(|d| f64::from(weights.w_enc_df[d * features + f]) * f64::from(weights.b_dec_d[d]));
        *bias = (f64::from(*bias) + moved.sum::<f64>()) as f32;
    }
    let stored = |values: &[f32]| {
        let mut bytes = vec![0; values.len() * dtype.size()];
        dtype.from_f32(values, &mut bytes);
        bytes
    };
    let (kind, name) = match dtype {
        Dtype::F32 => (Stored::F32, "torch.float32"),
        Dtype::F16 => (Stored::F16, "torch.float16"),
        Dtype::Bf16 => (Stored::BF16, "torch.bfloat16"),
    };
    let tensors = [
        ("W_enc", vec![width, features], stored(&weights.w_enc_df)),
        ("b_enc", vec![features], stored(&b_enc_f)),
        ("W_dec", vec![features, width], stored(&weights.w_dec_fd)),
        ("b_dec", vec![width], stored(&weights.b_dec_d)),
        ("scaling_factor", vec![features], stored(&vec![1.0; features])),
    ];
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(kind, shape.clone(), bytes).expect("bytes fit the shape")));
    fs::create_dir_all(folder).expect("a folder is made");
    fs::write(folder.join("sae_weights.safetensors"), safetensors::serialize(views, None).expect("serialised"))
        .expect("weights are written");
    let config = json!({"d_in": width, "d_sae": features, "dtype": name, "activation_fn_str": "relu", "hook_head_index": null,
        "apply_b_dec_to_input": true, "finetuning_scaling_factor": false, "normalize_activations": "none"});
    fs::write(folder.join("cfg.json"), config.to_string()).expect("a config is written");
}

/// At a rate of nothing the loss is the source's, whatever the source and the scale of the data.
#[test]
fn every_source_keeps_its_loss_at_any_scale_of_the_data() {
    for times in [1e-3, 1.0, 1e3] {
        let fixture = Fixture::new();
        let recipe = source(&fixture, times);
        let run = &recipe.run.dir;
        let summary = fixture.json("source/summary.json");
        assert!(
            summary["explained_variance"].as_f64().is_some_and(|ev| ev > 0.3),
            "it has learned something: {summary}"
        );
        let attempt = checkpoints::committed(Path::new(run)).pop().expect("a checkpoint");
        let (exported, parts) = (fixture.text("exported"), fixture.text("parts"));
        export(run, &exported, &[]);
        export(run, &parts, &["--max-shard-size", "8000"]);
        assert!(fixture.path("parts/sae_weights.safetensors.index.json").exists(), "it has parts");
        let files = checkpoints::files(&fixture.path("parts"));
        let most = files.iter().map(|path| fs::metadata(path).expect("a file").len()).max();
        assert!(most.is_some_and(|most| (6000..=8000).contains(&most)), "{most:?} bytes, of 8000 at most");
        export(run, &fixture.text("unit"), &["--unit-norm"]);
        let weights = weights_in(&fixture.path("exported/sae_weights.safetensors"));
        weights.write(&fixture.path("raw.safetensors"));
        weights_of(run).write(&fixture.path("normalized.safetensors"));
        as_saelens(&weights, &fixture.path("saelens"), Dtype::F32);
        fs::create_dir(fixture.path("copied")).expect("a folder is made");
        checkpoints::copy(&attempt, &fixture.path("copied/attempt"));

        let sources = [
            run.clone(),
            text(attempt.parent().expect("a step")),
            text(&attempt),
            fixture.text("copied/attempt"),
            exported.clone(),
            parts,
            fixture.text("saelens"),
        ];
        for from in sources {
            let found = measured(&fixture, &still(&recipe, &fixture, &from), &[]);
            assert_near(&format!("× {times}, {from}"), &found, &summary, "loss", 2e-5);
        }
        let sourced =
            |name: &str, sets: &[&str]| measured(&fixture, &still(&recipe, &fixture, &fixture.text(name)), sets);
        for (file, space) in [("raw", "raw"), ("normalized", "normalized"), ("exported/sae_weights", "raw")] {
            let found = sourced(&format!("{file}.safetensors"), &[&format!("train.init_space={space}")]);
            assert_near(&format!("× {times}, {file}"), &found, &summary, "loss", 2e-5);
        }
        // Other norms of the decoder's rows are another L1 norm.
        assert_near(&format!("× {times}, unit norm"), &sourced("unit", &[]), &summary, "mse", 2e-5);
        for dtype in [Dtype::F16, Dtype::Bf16].into_iter().filter(|_| times == 1.0) {
            as_saelens(&weights, &fixture.path(dtype.name()), dtype);
            assert_near(dtype.name(), &sourced(dtype.name(), &[]), &summary, "loss", 2e-2);
        }
        // Another scale is the same dictionary.
        let scale = summary["scale"].as_f64().expect("a scale");
        for from in [run.clone(), exported.clone(), fixture.text("saelens")] {
            let mut other = still(&recipe, &fixture, &from);
            other.data.scale = Scale::Fixed(3.0 * scale);
            let found = measured(&fixture, &other, &[]);
            assert_near(&format!("× {times}, {from}, another data.scale"), &found, &summary, "normalized_mse", 2e-5);
        }
        let wrong = sourced("raw.safetensors", &["train.init_space=normalized"]);
        let differs =
            (wrong["mse"].as_f64().expect("a number") / summary["mse"].as_f64().expect("a number") - 1.0).abs();
        assert!(differs > 0.05, "taken for what they are not, weights lose something else: {wrong}, {summary}");
    }
}

/// A dictionary that is exported, taken up and exported again is the same up to rounding; so is one that is exported in parts.
#[test]
fn exports_come_back_as_they_were() {
    let fixture = Fixture::new();
    let recipe = source(&fixture, 30.0);
    let run = &recipe.run.dir;
    let (first, again) = (fixture.text("first"), fixture.text("again"));
    export(run, &first, &[]);
    let still = still(&recipe, &fixture, &first);
    measured(&fixture, &still, &[]);
    export(&still.run.dir, &again, &[]);
    let weights = |folder: &str| weights_in(&fixture.path(folder).join("sae_weights.safetensors"));
    let (a, b) = (weights("first"), weights("again"));
    for (name, a, b) in [
        ("W_enc", &a.w_enc_df, &b.w_enc_df),
        ("b_enc", &a.b_enc_f, &b.b_enc_f),
        ("W_dec", &a.w_dec_fd, &b.w_dec_fd),
        ("b_dec", &a.b_dec_d, &b.b_dec_d),
    ] {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 4e-7 * a.abs().max(1e-30), "{name}: {a} has become {b}");
        }
    }

    export(run, &fixture.text("parts"), &["--max-shard-size", "8000"]);
    let index = fixture.json("parts/sae_weights.safetensors.index.json");
    let files = index["weight_map"]["W_enc"].as_array().expect("files");
    assert_eq!((files.len(), &index["weight_map"]["b_dec"]), (3, &files[0]));
    let (mut features, mut bytes) = (0, 0);
    for (part, file) in files.iter().enumerate() {
        let path = fixture.path("parts").join(file.as_str().expect("a name"));
        let part_of = weights_in(&path);
        let rows = features..features + part_of.b_enc_f.len();
        assert_eq!(part_of.b_enc_f, a.b_enc_f[rows.clone()]);
        assert_eq!(part_of.w_dec_fd, a.w_dec_fd[rows.start * WIDTH..rows.end * WIDTH]);
        assert_eq!(
            turned(&part_of.w_enc_df, rows.len()),
            turned(&a.w_enc_df, FEATURES)[rows.start * WIDTH..rows.end * WIDTH]
        );
        assert_eq!(part_of.b_dec_d, if part == 0 { a.b_dec_d.clone() } else { vec![0.0; WIDTH] });
        let config = json(&path.with_file_name("cfg.json"));
        assert_eq!((&config["d_sae"], &config["metadata"]["first_feature"]), (&rows.len().into(), &rows.start.into()));
        let size = 4 * (part_of.w_enc_df.len() + part_of.w_dec_fd.len() + part_of.b_enc_f.len() + WIDTH);
        assert!(size <= 8000, "a part has {size} bytes");
        (features, bytes) = (rows.end, bytes + size);
    }
    assert_eq!((features, &index["metadata"]["total_size"]), (FEATURES, &bytes.into()));
    assert_eq!(fixture.json("parts/cfg.json")["d_sae"], FEATURES);
    let refused = ["export", run, "--out", &fixture.text("parts")];
    sae::run(&refused).exits(64).says(&["already holds an export"]);
    let refused = ["export", run, "--out", &fixture.text("none"), "--max-shard-size", "100"];
    sae::run(&refused).exits(64).says(&["--max-shard-size", "hold no feature"]);
}

/// What the options of an export do to its files.
#[test]
fn an_export_is_as_it_was_asked_for() {
    let fixture = Fixture::new();
    let recipe = source(&fixture, 1.0);
    let mut evaluated = recipe.clone();
    // A rate that grows worse: the best is not the last.
    (evaluated.run.dir, evaluated.eval.every, evaluated.train.lr, evaluated.checkpoint.keep) =
        (fixture.text("evaluated"), 10, 0.3, 100);
    evaluated.checkpoint.every = Every::Steps(10);
    sae::run(&["train", &fixture.save("evaluated", &evaluated)]).exits(0);
    let run = &evaluated.run.dir;
    let manifests =
        checkpoints::committed(Path::new(run)).into_iter().map(|folder| json(&folder.join("manifest.json")));
    let losses: Vec<(u64, f64)> = manifests
        .filter_map(|manifest| Some((manifest["step"].as_u64()?, manifest["held_out"]["loss"].as_f64()?)))
        .collect();
    let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("evaluated").0;
    assert!(best < 50 && losses.len() > 2, "{losses:?}");
    let exported = |out: &str, arguments: &[&str]| {
        export(run, &fixture.text(out), arguments);
        fs::read(fixture.path(out).join("sae_weights.safetensors")).expect("weights")
    };
    let of_best = exported("best", &["--checkpoint", "best"]);
    assert_eq!(of_best, exported("step", &["--checkpoint", &best.to_string()]));
    assert_eq!(exported("last", &["--checkpoint", "last"]), exported("default", &[]));
    assert_ne!(of_best, exported("newest", &["--checkpoint", "50"]));
    let out = fixture.text("none");
    let refused = |run: &str, which: &str| sae::run(&["export", run, "--out", &out, "--checkpoint", which]).exits(64);
    refused(run, "7").says(&["no committed checkpoint of step 7", "10, 20, 30, 40, 50"]);
    refused(run, "newest").says(&["last, best or the number of a step"]);
    refused(&recipe.run.dir, "best").says(&["none is the best", "eval.every"]);
    refused(&text(&checkpoints::committed(Path::new(run))[0]), "best").says(&["is a checkpoint already"]);

    export(&recipe.run.dir, &fixture.text("plain"), &[]);
    let options =
        ["--unit-norm", "--model", "gpt2", "--model-class-name", "AutoModelForCausalLM", "--hook", "blocks.3.hook_z"];
    let more = ["--prepend-bos", "false", "--context-size", "64", "--hook-head-index", "2", "--dataset", "pile"];
    export(&recipe.run.dir, &fixture.text("unit"), &[&options[..], &more].concat());
    let config = fixture.json("unit/cfg.json");
    let metadata = json!({"model_name": "gpt2", "model_class_name": "AutoModelForCausalLM", "hook_name": "blocks.3.hook_z",
        "prepend_bos": false, "context_size": 64, "hook_head_index": 2, "dataset_path": "pile"});
    for (key, value) in metadata.as_object().expect("a table") {
        assert_eq!(&config["metadata"][key], value, "{key}");
    }
    let weights = |folder: &str| weights_in(&fixture.path(folder).join("sae_weights.safetensors"));
    let (plain, unit) = (weights("plain"), weights("unit"));
    let norm = |row_d: &[f32]| row_d.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
    let encoders = (turned(&plain.w_enc_df, FEATURES), turned(&unit.w_enc_df, FEATURES));
    for f in 0..FEATURES {
        let row = f * WIDTH..(f + 1) * WIDTH;
        assert!((norm(&unit.w_dec_fd[row.clone()]) - 1.0).abs() < 1e-6);
        let factor = norm(&plain.w_dec_fd[row.clone()]) as f32;
        let near = |a: f32, b: f32| (a - b * factor).abs() <= 1e-6 * a.abs().max(1e-20);
        assert!(near(unit.b_enc_f[f], plain.b_enc_f[f]), "feature {f}");
        assert!(encoders.1[row.clone()].iter().zip(&encoders.0[row]).all(|(a, b)| near(*a, *b)), "feature {f}");
    }
    assert_eq!(plain.b_dec_d, unit.b_dec_d);

    export(&recipe.run.dir, &fixture.text("narrow"), &["--dtype", "bf16"]);
    assert_eq!(fixture.json("narrow/cfg.json")["dtype"], "bfloat16");
    let bytes = fs::read(fixture.path("narrow/sae_weights.safetensors")).expect("weights");
    let narrow = SafeTensors::deserialize(&bytes).expect("safetensors").tensor("W_dec").expect("there").data().to_vec();
    let mut rounded = vec![0; 2 * plain.w_dec_fd.len()];
    Dtype::Bf16.from_f32(&plain.w_dec_fd, &mut rounded);
    assert_eq!(narrow, rounded);
}

/// Every rank takes its own features of what a run starts from.
#[test]
fn ranks_start_from_the_same_weights() {
    let fixture = Fixture::new();
    let mut recipe = source(&fixture, 10.0);
    let summary = fixture.json("source/summary.json");
    let exported = fixture.text("exported");
    export(&recipe.run.dir, &exported, &["--max-shard-size", "8000"]);
    recipe.train.threads = Some(1);
    for from in [recipe.run.dir.clone(), exported] {
        let still = still(&recipe, &fixture, &from);
        let path = fixture.save("ranks", &still);
        sae::run(&["launch", "local", "--ranks", "2", &path, "--mesh", "1x2"]).exits(0);
        let found = json(&Path::new(&still.run.dir).join("summary.json"));
        assert_near(&format!("{from} on two ranks"), &found, &summary, "loss", 2e-5);
    }
}

/// Weights that cannot be taken up say why, before anything is trained and in a dry run.
#[test]
fn what_cannot_be_started_from_is_explained() {
    let fixture = Fixture::new();
    let recipe = source(&fixture, 1.0);
    let run = &recipe.run.dir;
    export(run, &fixture.text("exported"), &[]);
    let weights = weights_in(&fixture.path("exported/sae_weights.safetensors"));
    weights.write(&fixture.path("bare.safetensors"));
    let refused = |from: &str, sets: &[&str], parts: &[&str]| {
        let path = fixture.save("refused", &still(&recipe, &fixture, &fixture.text(from)));
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        for dry in [&[][..], &["--dry-run"]] {
            sae::run(&[&["train", &path], &sets[..], dry].concat()).exits(64).says(&["train.init_"]).says(parts);
        }
    };
    refused("bare.safetensors", &[], &["train.init_space = \"raw\"", "\"normalized\"", "bare.safetensors"]);
    let named = ["train.init_space = \"raw\"", "\"normalized\"", "or name the folder", "cfg.json"];
    refused("exported/sae_weights.safetensors", &[], &named);
    let normalized = "train.init_space=normalized";
    for known in ["exported", "exported/sae_weights.safetensors"] {
        refused(known, &[normalized], &["contradicts", "rows as they are stored"]);
    }
    refused("source", &["train.init_space=raw"], &["contradicts", "rows times"]);
    refused(
        "source",
        &["sae.features=100"],
        &["160 features of width 16", "100 of width 16", "set sae.features = 160"],
    );
    refused("exported", &["sae.features=100"], &["cfg.json", "160 features", "set sae.features = 160"]);
    refused("bare.safetensors", &[normalized, "sae.features=100"], &["W_enc", "[16, 160]", "[16, 100]"]);
    let attempt = checkpoints::committed(Path::new(run)).pop().expect("a checkpoint");
    let file = text(attempt.join("weights-000000.safetensors").strip_prefix(fixture.path("")).expect("below"));
    refused(&file, &[normalized], &["is one file of a checkpoint", "name the checkpoint"]);
    fs::write(fixture.path("text.safetensors"), "not safetensors").expect("written");
    refused("text.safetensors", &[normalized], &["text.safetensors", "is no safetensors file"]);
    fs::write(fixture.path("ae.pt"), "pickle").expect("written");
    refused("ae.pt", &[normalized], &["ae.pt", "is no zip archive of PyTorch's", "save it again"]);
    fs::write(fixture.path("ae.ckpt"), "pickle").expect("written");
    refused("ae.ckpt", &[normalized], &[".safetensors files", "torch.save"]);
    refused("train", &[], &["holds no committed checkpoint", "cfg.json", "dictionary_learning a config.json"]);

    let turn = |matrix: &[f32], columns| Weights { w_enc_df: turned(matrix, columns), ..weights.clone() };
    let wrong = turn(&weights.w_enc_df, FEATURES);
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (w_enc, w_dec, b_enc, b_dec) =
        (bytes(&wrong.w_enc_df), bytes(&wrong.w_dec_fd), bytes(&wrong.b_enc_f), bytes(&wrong.b_dec_d));
    let write = |tensors: &[(&str, Stored, &[usize], &[u8])]| {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("bytes fit the shape"))
        });
        fs::write(fixture.path("wrong.safetensors"), safetensors::serialize(views, None).expect("serialised"))
            .expect("written");
    };
    let all = [
        ("W_enc", Stored::F32, &[FEATURES, WIDTH][..], &w_enc[..]),
        ("b_enc", Stored::F32, &[FEATURES], &b_enc),
        ("W_dec", Stored::F32, &[FEATURES, WIDTH], &w_dec),
        ("b_dec", Stored::F32, &[WIDTH], &b_dec),
    ];
    write(&all);
    refused("wrong.safetensors", &[normalized], &["W_enc", "[160, 16]", "transposed", "[16, 160]"]);
    write(&[&all[..], &[("threshold", Stored::F32, &[FEATURES], &b_enc)]].concat());
    refused("wrong.safetensors", &[normalized], &["threshold", "only ReLU dictionaries"]);
    let theirs = ["encoder.weight", "encoder.bias", "decoder.weight", "bias"];
    write(
        &all.iter()
            .zip(theirs)
            .map(|((_, dtype, shape, bytes), name)| (name, *dtype, *shape, *bytes))
            .collect::<Vec<_>>(),
    );
    // Those of dictionary_learning, whose decoder lies the other way around.
    refused("wrong.safetensors", &[normalized], &["decoder.weight", "[160, 16]", "transposed", "[16, 160]"]);
    let doubles = vec![0; 8 * FEATURES * WIDTH];
    write(&[("W_enc", Stored::F64, &[WIDTH, FEATURES], &doubles), all[1], all[2], all[3]]);
    refused("wrong.safetensors", &[normalized], &["W_enc in float64", "it has to be float32, float16 or bfloat16"]);
    let mut with_nan = weights.clone();
    with_nan.w_dec_fd[7 * WIDTH + 3] = f32::NAN;
    with_nan.write(&fixture.path("nan.safetensors"));
    let path = fixture.save("nan", &still(&recipe, &fixture, &fixture.text("nan.safetensors")));
    sae::run(&["train", &path, "--set", normalized]).exits(64).says(&["nan.safetensors", "W_dec holds NaN at index 7"]);
}

/// A damaged file of weights is named, and nothing panics.
#[test]
fn damaged_weights_are_named() {
    let fixture = Fixture::new();
    let recipe = source(&fixture, 1.0);
    let weights = weights_of(&recipe.run.dir);
    weights.write(&fixture.path("bare.safetensors"));
    let whole = fs::read(fixture.path("bare.safetensors")).expect("read");
    let path = fixture.save("damaged", &still(&recipe, &fixture, &fixture.text("bare.safetensors")));
    let header = u64::from_le_bytes(*whole.first_chunk().expect("a length")) as usize;
    let damaged: [Vec<u8>; 8] = [
        Vec::new(),
        whole[..5].to_vec(),
        whole[..8].to_vec(),
        whole[..8 + header / 2].to_vec(),
        whole[..whole.len() - 4].to_vec(),
        [&whole[..], &[0; 4]].concat(),
        [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat(),
        [&whole[..8], &vec![b'{'; header], &whole[8 + header..]].concat(),
    ];
    for (case, bytes) in damaged.into_iter().enumerate() {
        fs::write(fixture.path("bare.safetensors"), bytes).expect("written");
        let finished = sae::run(&["train", &path, "--set", "train.init_space=raw", "--dry-run"]).exits(64);
        let known = ["bare.safetensors: is no safetensors file", "bare.safetensors: cut off or damaged"];
        let says = known.iter().any(|says| finished.stderr.contains(says));
        assert!(says && !finished.stderr.contains("panicked"), "{case}: {}", finished.stderr);
    }
    fs::create_dir(fixture.path("odd")).expect("a folder is made");
    as_saelens(&weights, &fixture.path("odd"), Dtype::F32);
    let path = fixture.save("odd", &still(&recipe, &fixture, &fixture.text("odd")));
    for index in
        ["{}", "[", r#"{"weight_map": {"W_enc": ["../bare.safetensors"]}}"#, r#"{"weight_map": {"W_enc": [1]}}"#]
    {
        fs::write(fixture.path("odd/sae_weights.safetensors.index.json"), index).expect("written");
        sae::run(&["train", &path, "--dry-run"]).exits(64).says(&["sae_weights.safetensors.index.json"]);
    }
}
