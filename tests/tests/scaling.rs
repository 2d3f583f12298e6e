//! `sae scaling`: laws of tables and of real run folders, scipy as a judge, recommendations that train, and what is refused.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use loader::synth;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;
use tests::fixture::{Fixture, json};
use tests::{need, root, sae};

/// Points of a known surface with seeded noise: 7 budgets, 5 sizes, 2 seeds.
fn table(noise: f64, extra: &str) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let names = extra.split(',').filter_map(|pair| pair.split_once('=')).map(|(name, _)| format!(",{name}"));
    let values: String =
        extra.split(',').filter_map(|pair| pair.split_once('=')).map(|(_, value)| format!(",{value}")).collect();
    let mut text = format!("features,steps,loss,seed{}\n", names.collect::<String>());
    for budget in 0..7 {
        let compute = 1e8 * 3.0_f64.powi(budget);
        for size in -2..=2 {
            let features = (3.0 * compute.powf(0.4) * 2.0_f64.powf(f64::from(size) / 2.0)).round();
            let steps = (compute / features).round();
            for seed in 0..2 {
                let uniform = (random.next_u32() as f64 / f64::from(u32::MAX)) - 0.5;
                let loss = 0.7 + 20.0 * features.powf(-0.42) + 30.0 * steps.powf(-0.33) + noise * uniform;
                writeln!(text, "{features},{steps},{loss:?},{seed}{values}").expect("text");
            }
        }
    }
    text
}

fn written(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A fit of a table into `out`, with few replicates.
fn fit(folder: &Path, table: &str, out: &str, more: &[&str]) -> (sae::Finished, PathBuf) {
    let out = folder.join(out);
    let text = out.display().to_string();
    let finished =
        sae::run(&[&["scaling", "fit", "--runs", table, "--out", &text, "--replicates", "100"], more].concat());
    (finished, out)
}

#[test]
fn scipy_finds_the_same_surface_under_both_losses() {
    let Some(python) = need::python() else { return };
    let folder = TempDir::new().expect("a folder");
    let mut text = table(0.02, "");
    // Two runs that went wrong, for Huber's loss to be another one.
    text += "4000,90000,1.9,3\n9000,40000,1.2,3\n";
    let table = written(folder.path(), "runs.csv", &text);
    let script = root().join("tests/reference/scaling.py");
    let output = Command::new(python).arg(script).arg(&table).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let scipy: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for (own, theirs) in [("squares", "least_squares"), ("huber", "huber")] {
        let (finished, out) = fit(folder.path(), &table, own, &["--loss", own]);
        finished.exits(0);
        let laws = json(&out.join("laws.json"));
        assert_eq!(laws["loss"], theirs);
        for name in ["E", "A", "B", "alpha", "beta"] {
            let (found, expected) = (number(&laws["surface"][name]["value"]), number(&scipy[theirs][name]));
            assert!(
                (found - expected).abs() < 1e-6 * expected.abs(),
                "{theirs}, {name}: {found}, scipy has {expected}"
            );
        }
    }
    let distance = (number(&scipy["huber"]["alpha"]) - number(&scipy["least_squares"]["alpha"])).abs();
    assert!(distance > 1e-3, "the two losses are told apart: {distance}");
}

#[test]
fn a_table_becomes_laws_and_laws_become_recipes_that_train() {
    let fixture = Fixture::with_data();
    let folder = fixture.path("");
    let path = written(&folder, "runs.csv", &table(0.01, "batch=256,width=32,l1=1,l0=20,lr=0.001"));
    let (finished, out) = fit(&folder, &path, "laws", &[]);
    let said = finished.exits(0).stdout;
    assert!(said.contains("next: sae scaling recommend") && said.contains("70, of 35 different sizes"), "{said}");
    let laws = json(&out.join("laws.json"));
    for (at, value) in [("alpha", 0.42), ("beta", 0.33)] {
        let of = &laws["surface"][at];
        assert!(number(&of["low"]) <= value && value <= number(&of["high"]), "{at}: {of}");
    }
    // FLOPs as `sae train` counts them, and five GEMMs.
    let run = &laws["runs"][0];
    let (features, steps) = (number(&run["features"]), number(&run["steps"]));
    let sparse = 2.0 * 32.0 * 256.0 * features * steps + 8.0 * 32.0 * 256.0 * steps * 20.0;
    assert!((number(&run["flops_sparse"]) / sparse - 1.0).abs() < 1e-12);
    assert!((number(&run["flops_dense"]) / (10.0 * 32.0 * 256.0 * features * steps) - 1.0).abs() < 1e-12);
    assert!(number(&run["gpu_hours"]) > 0.0);
    let parquet = fs::read(out.join("runs.parquet")).expect("a file");
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));

    let page = fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains(&laws["surface"]["alpha"]["value"].to_string()), "the page has the numbers of laws.json");
    assert!(fs::read_dir(out.join("plots")).expect("plots").count() >= 5);

    let laws = out.join("laws.json").display().to_string();
    let mut base = fixture.recipe("best");
    (base.train.batch, base.train.l1) = (256, 1.0);
    base.data.eval = vec![fixture.text("eval")];
    let base = fixture.save("base", &base);
    let recommend = |more: &[&str]| sae::run(&[&["scaling", "recommend", &laws], more].concat());
    let with = |more: &[&str]| recommend(&[&["--recipe", &base, "--json"], more].concat());
    // Of a table nothing is known of the data.
    recommend(&["--flops", "1e15"]).exits(64).says(&["name a recipe", "--recipe"]);
    // Every kind of budget, and the closed form by hand.
    let of_flops = with(&["--flops", "1e15"]).exits(0).json();
    assert!((number(&of_flops["flops_sparse"]) / 1e15 - 1.0).abs() < 0.01, "{of_flops}");
    let hours = number(&of_flops["gpu_hours"]);
    let of_hours = with(&["--gpu-hours", "0.01", "--gpu", "h100"]).exits(0).json();
    assert!(of_hours["gpu"] == "h100" && number(&of_hours["gpu_hours"]) > 0.0 && hours > 0.0, "{of_hours}");
    let of_features = with(&["--features", "1M", "--force"]).exits(0).json();
    assert_eq!(of_features["features"], 1_048_576);
    recommend(&["--features", "2M"]).exits(64).says(&["1M", "4M", "34M"]);
    with(&["--features", "34M"]).exits(64).says(&["× the largest compute", "--force"]);
    let of_tokens = with(&["--tokens", "5e7"]).exits(0).json();
    let surface = &json(&out.join("laws.json"))["surface"];
    let value = |name: &str| number(&surface[name]["value"]);
    let (alpha, beta, steps) = (value("alpha"), value("beta"), (5e7_f64 / 256.0).ceil());
    let best = (alpha * value("A") / (beta * value("B")) * steps.powf(beta)).powf(1.0 / alpha);
    assert!((number(&of_tokens["features"]) / best - 1.0).abs() < 0.05, "{of_tokens}: {best}");

    // A small one is written, and trains.
    let recipe = folder.join("best.toml").display().to_string();
    let small = with(&["--tokens", "2048", "--out", &recipe]).exits(0).json();
    let text = fs::read_to_string(&recipe).expect("a recipe");
    let id = json(&out.join("laws.json"))["identity"]["id"].as_str().expect("an id").to_owned();
    assert!(text.starts_with("# Recommended by sae scaling for 2048 tokens") && text.contains(&id), "{text}");
    sae::run(&["train", &recipe, "--device", "cpu"]).exits(0);
    let run = small["run_dir"].as_str().expect("a folder");
    assert!(run.starts_with(&format!("{}-f", fixture.text("best"))), "{run}");
    let summary = json(&Path::new(run).join("summary.json"));
    assert_eq!((&summary["tokens"], &summary["features"]), (&2048.into(), &small["features"]));
    // Another recommendation goes elsewhere, and over no file but the same.
    with(&["--tokens", "2048", "--out", &recipe]).exits(0);
    with(&["--tokens", "4096", "--out", &recipe]).exits(64).says(&["is there already", "choose another --out"]);
    assert_eq!(fs::read_to_string(&recipe).expect("a recipe"), text);
    let larger = with(&["--tokens", "4096"]).exits(0).json();
    assert_ne!(larger["run_dir"], small["run_dir"]);
    let set = with(&["--tokens", "4096", "--set", "run.dir=mine"]).exits(0).json();
    assert_eq!(set["run_dir"], "mine");

    // In an order of more rows only whole batches are trained on.
    let ordered = folder.join("ordered.toml").display().to_string();
    let short = with(&["--tokens", "5000", "--set", "data.order_rows=15401", "--out", &ordered]).exits(0).json();
    assert_eq!((&short["tokens"], &short["steps"]), (&4864.into(), &19.into()));
    sae::run(&["train", &ordered, "--dry-run", "--device", "cpu"]).exits(0);

    // Beyond its reach, only with a word, which stands in the recipe.
    let far = folder.join("far.toml").display().to_string();
    with(&["--flops", "1e30", "--force", "--out", &far]).exits(64);
    with(&["--features", "34M", "--force", "--out", &far]).exits(0);
    let text = fs::read_to_string(&far).expect("a recipe");
    assert!(text.contains("# FORCED: beyond 100 x the largest compute"), "{text}");

    // Other runs than the laws are of.
    for (set, says) in [("train.batch=512", "train.batch = 256"), ("train.l1=3", "train.l1 = 1")] {
        with(&["--tokens", "2048", "--set", set]).exits(64).says(&[says, "the recipe has"]);
    }
    let wide = written(&folder, "wide.csv", &table(0.01, "batch=256,width=33,l1=1"));
    let (finished, out) = fit(&folder, &wide, "wide", &[]);
    finished.exits(0);
    let wide = out.join("laws.json").display().to_string();
    let finished = sae::run(&["scaling", "recommend", &wide, "--recipe", &base, "--tokens", "2048"]);
    finished.exits(64).says(&["D = 33", "the recipe has 32"]);

    let next = recommend(&["--next", "3", "--json"]).exits(0).json();
    let left: Vec<f64> =
        next.as_array().expect("a list").iter().map(|run| number(&run["loss_interval_left"])).collect();
    assert!(left.len() == 3 && left[0] < 1.0 && left[2] <= left[0], "{next}");
    let sweep = folder.join("next-sweep.toml").display().to_string();
    let said = recommend(&["--next", "4", "--out", &sweep, "--recipe", &base]).exits(0);
    said.says(&["data.train has 15,401: bring more"]);
    recommend(&["--next", "3", "--out", &sweep, "--recipe", &base]).exits(64).says(&["choose another --out"]);
    let points: toml::Table = fs::read_to_string(&sweep).expect("a sweep").parse().expect("TOML");
    let seeds: Vec<_> =
        points["points"].as_array().expect("points").iter().map(|point| point["train"]["seed"].clone()).collect();
    assert_eq!(seeds, [2, 3, 4, 5].map(toml::Value::Integer), "none of the runs, and none twice");
    assert_eq!(points["dir"].as_str(), Some(&*format!("sweeps/next-{}", &id[..8])));
    sae::run(&["sweep", &sweep, "--dry-run", "--gpu", "h200"])
        .exits(64)
        .says(&["bring more rows, or take smaller budgets"]);
}

/// A table with a learning rate for each line, by its F × steps.
fn with_rates(text: &str, rate: impl Fn(f64) -> f64) -> String {
    let mut lines = text.lines();
    let names = lines.next().expect("names");
    let rated = lines.map(|line| {
        let numbers: Vec<f64> = line.split(',').take(2).map(|cell| cell.parse().expect("a number")).collect();
        format!("{line},{:?}\n", rate(numbers[0] * numbers[1]))
    });
    format!("{names},lr\n{}", rated.collect::<String>())
}

#[test]
fn learning_rates_that_follow_compute_are_followed() {
    let fixture = Fixture::with_data();
    let folder = fixture.path("");
    // One rate for each budget, of which the table has those that are a power of 3.
    let budget = |compute: f64| 1e8 * 3.0_f64.powf((compute / 1e8).log(3.0).round());
    let law = |compute: f64| 0.5 * compute.powf(-0.3);
    let text = table(0.01, "batch=256,width=32,l1=1");
    let mut base = fixture.recipe("best");
    (base.train.batch, base.train.l1) = (256, 1.0);
    let base = fixture.save("base", &base);
    let of = |name: &str, rate: &dyn Fn(f64) -> f64| {
        let (finished, out) =
            fit(&folder, &written(&folder, &format!("{name}.csv"), &with_rates(&text, rate)), name, &[]);
        finished.exits(0);
        out.join("laws.json").display().to_string()
    };
    let recommend =
        |laws: &str, more: &[&str]| sae::run(&[&["scaling", "recommend", laws, "--recipe", &base], more].concat());
    let asked = ["--features", "30000", "--json"];
    let followed = of("followed", &|compute| law(budget(compute)));
    let found = recommend(&followed, &asked).exits(0).json();
    let compute = number(&found["compute"]);
    assert_eq!(found["lr_from"], "runs_along_compute");
    assert!((number(&found["lr"]["value"]) / law(compute) - 1.0).abs() < 0.01, "{found}");
    let said = recommend(&followed, &asked[..2]).exits(0).stdout;
    assert!(said.contains("of the runs, followed along C, not swept"), "{said}");
    let set = recommend(&followed, &[&asked[..], &["--set", "train.lr=0.25"]].concat()).exits(0).json();
    assert_eq!((&set["lr_from"], number(&set["lr"]["value"])), (&"set".into(), 0.25));
    // Further runs have the rates of those before them.
    let sweep = folder.join("next.toml").display().to_string();
    recommend(&followed, &["--next", "2", "--out", &sweep]).exits(0);
    let sweep: toml::Table = fs::read_to_string(&sweep).expect("a sweep").parse().expect("TOML");
    for point in sweep["points"].as_array().expect("points") {
        let of = |section: &str, key: &str| point[section][key].as_integer().expect("a count") as f64;
        let compute = of("sae", "features") * of("train", "tokens") / 256.0;
        let lr = point["train"]["lr"].as_float().expect("a rate");
        assert!((lr / law(compute) - 1.0).abs() < 0.01, "{point}");
    }
    // Where they follow nothing, it is that of the recipe.
    let scattered = of("scattered", &|compute| if (compute as u64).is_multiple_of(2) { 1e-3 } else { 2e-3 });
    let found = recommend(&scattered, &asked).exits(0).json();
    assert_eq!((&found["lr_from"], number(&found["lr"]["value"])), (&"recipe".into(), 1e-3));
}

/// A sweep of tiny dictionaries, its laws, and what they lead to: a recipe, and a further sweep that is fitted with the first.
#[test]
fn a_sweep_becomes_laws_of_its_own_recipe_and_these_a_further_sweep() {
    let fixture = Fixture::new();
    let spec = synth::Spec { features: 128, width: 32, rows: 300_000, shards: 3, active: 4.0, ..Default::default() };
    fixture.synth("train", &spec);
    fixture.synth("eval", &synth::Spec { rows: 1024, shards: 1, set: 1, ..spec });
    fixture.synth("other", &synth::Spec { rows: 512, shards: 1, set: 1, ..spec });
    let [train, eval, other, folder] = ["train", "eval", "other", "sweep"].map(|name| fixture.text(name));
    let sweep = format!(
        "dir = '{folder}'\n[isoflop]\nbudgets = [500, 1000, 2000, 4000]\ncentre = {{ coefficient = 0.45, exponent = 0.5 }}\n\
         lr = {{ coefficient = 0.1, exponent = -0.25 }}\npoints = 3\nwithin = 2\nmultiple = 2\n\
         [base.data]\ntrain = '{train}'\neval = '{eval}'\nskip = ['shard-00001.parquet:7']\n[base.train]\nbatch = 64\nl1 = 0.5\nthreads = 1\n"
    );
    sae::run(&["sweep", &fixture.save_text("isoflop", &sweep), "--device", "cpu"]).exits(0);
    let fit = |folders: &[&str], name: &str| {
        let out = fixture.path(name);
        let to = ["--out", out.to_str().expect("a name"), "--replicates", "100"];
        (sae::run(&[&["scaling", "fit"], folders, &to].concat()), out)
    };
    let (finished, out) = fit(&[&folder], "laws");
    finished.exits(0);
    let laws = json(&out.join("laws.json"));
    let identity = &laws["identity"];
    assert_eq!((&identity["batch"], laws["runs"].as_array().map(Vec::len)), (&64.into(), Some(12)));
    assert!(identity["data"].is_string() && identity["eval"].is_string(), "{identity}");
    assert_eq!((&identity["precision"], &identity["numbers"]), (&"f32".into(), &trainer::NUMBERS.into()));
    assert_eq!(identity["recipe"]["data.train"], format!("[\"{train}\"]"));
    same_columns(&out.join("runs.parquet"), &laws["runs"]);
    // Which rows they were measured on is known without their checkpoints.
    for run in laws["runs"].as_array().expect("runs") {
        fs::remove_dir_all(Path::new(run["id"].as_str().expect("a folder")).join("checkpoints")).expect("gone");
    }
    fit(&[&folder], "laws").0.exits(0);
    assert_eq!(json(&out.join("laws.json"))["identity"], *identity);

    // What the runs have in common is a recipe, for their rows alone.
    let path = out.join("laws.json").display().to_string();
    let recommend = |more: &[&str]| sae::run(&[&["scaling", "recommend", &path], more].concat());
    let recipe = fixture.text("best.toml");
    let found = recommend(&["--tokens", "5000", "--json", "--out", &recipe]).exits(0).json();
    assert_eq!((&found["lr_from"], &found["tokens"]), (&"runs_along_compute".into(), &4992.into()));
    sae::run(&["train", &recipe, "--dry-run", "--device", "cpu"]).exits(0);
    let text = fs::read_to_string(&recipe).expect("a recipe");
    assert!(text.contains("shard-00001.parquet:7"), "a bad row stays left out: {text}");
    let elsewhere = format!("data.eval={other}");
    recommend(&["--tokens", "5000", "--set", &elsewhere]).exits(64).says(&["data.eval of identity"]);

    // Further runs belong to the same law.
    let next = fixture.text("next.toml");
    recommend(&["--next", "2", "--out", &next]).exits(0);
    let further = fixture.text("further");
    sae::run(&["sweep", &next, "--dir", &further, "--device", "cpu"]).exits(0);
    let (finished, out) = fit(&[&folder, &further], "both");
    finished.exits(0);
    let both = json(&out.join("laws.json"));
    let runs = both["runs"].as_array().expect("runs");
    assert!(runs.len() == 14 && runs.iter().all(|run| run["in_surface"] == true), "{runs:?}");

    // A table of the same runs is the same law, by which a recipe can be made as well.
    let table = sae::run(&["runs", &folder, "--csv"]).exits(0).stdout;
    let (finished, out) = fit(&["--runs", &written(&fixture.path(""), "runs.csv", &table)], "of-table");
    finished.exits(0);
    assert_eq!(json(&out.join("laws.json"))["identity"], *identity);

    // A run on other rows, or with another key, has no place among them.
    for (set, says) in [(&*elsewhere, "differ in the held-out rows"), ("train.clip=0.5", "differ in train.clip")] {
        let run = fixture.text(&set[..9].replace('.', "-"));
        let dir = format!("run.dir={run}");
        sae::run(&["train", &recipe, "--device", "cpu", "--set", set, "--set", &dir]).exits(0);
        fs::remove_dir_all(Path::new(&run).join("checkpoints")).expect("gone");
        fit(&[&folder, &run], "refused").0.exits(65).says(&[says]);
        let table = sae::run(&["runs", &folder, &run, "--csv"]).exits(0).stdout;
        fit(&["--runs", &written(&fixture.path(""), "mixed.csv", &table)], "refused").0.exits(65).says(&[says]);
    }
}

/// The table has the numbers of laws.json under their names, and nothing else.
fn same_columns(path: &Path, runs: &Value) {
    let file = fs::File::open(path).expect("a table");
    let reader = SerializedFileReader::new(file).expect("Parquet");
    let runs = runs.as_array().expect("runs");
    let mut rows = 0;
    for (row, run) in reader.get_row_iter(None).expect("rows").zip(runs) {
        let row = row.expect("a row");
        for (name, cell) in row.get_column_iter() {
            let same = match cell {
                Field::Null => run[name].is_null(),
                Field::Bool(is) => run[name] == *is,
                Field::Double(number) => run[name].as_f64() == Some(*number),
                Field::ULong(number) => run[name].as_u64() == Some(*number),
                Field::Str(text) => run[name] == text.as_str(),
                other => panic!("{name}: {other}"),
            };
            assert!(same, "{name}: {cell} in the table, {} in laws.json", run[name]);
        }
        assert_eq!(row.len(), run.as_object().expect("a run").len());
        rows += 1;
    }
    assert_eq!(rows, runs.len());
}

#[test]
fn bad_tables_and_laws_get_one_message() {
    let folder = TempDir::new().expect("a folder");
    let refused = |name: &str, text: &str, code: i32, says: &[&str]| {
        let table = written(folder.path(), name, text);
        fit(folder.path(), &table, "out", &[]).0.exits(code).says(says);
    };
    refused("a.csv", "features,loss\n1,2\n", 64, &["no column steps", "features, loss"]);
    refused("b.csv", "features,steps,loss\n1,x,2\n", 64, &["b.csv", "line 2: steps cannot be \"x\""]);
    refused("c.csv", "features,steps,loss\n10,20,-1\n", 65, &["line 2", "loss must be a number above 0"]);
    refused("d.csv", "features,steps,loss\n10,20,1\n", 65, &["1 configurations over 1 budgets", "Run more sizes"]);
    for (name, value) in [("l0", "NaN"), ("explained_variance", "inf"), ("dead_fraction", "nan")] {
        let text = format!("features,steps,loss,{name}\n10,20,1,\n10,30,1,{value}\n");
        refused("n.csv", &text, 64, &[&format!("line 3: {name} is NaN or infinite")]);
    }
    refused("s.csv", "features,steps,loss\n1M,4Mi,2\n", 64, &["line 2: steps cannot be \"4Mi\""]);
    refused("m.csv", "features,steps,loss,batch\n1M,34M,2,2M\n", 64, &["line 2: batch cannot be \"2M\""]);
    refused("c.csv", "features,steps,loss,train.clip\n8,9,2,1.0\n8,8,2,0.5\n", 65, &["train.clip", "1.0", "0.5"]);
    refused("e.csv", "features,steps,loss\n", 65, &["no run in it"]);
    let two = table(0.01, "eval=a") + "5000,9000,1.0,0,b\n";
    refused("f.csv", &two, 65, &["the held-out rows", "has a", "has b"]);
    let two = table(0.01, "scale=0.5") + "5000,9000,1.0,0,0.6\n";
    refused("g.csv", &two, 65, &["differ in normalisation", "0.5", "0.6"]);
    let laws = written(folder.path(), "laws.json", "{\"version\": 99}");
    sae::run(&["scaling", "recommend", &laws, "--next", "1"]).exits(65).says(&["version 99"]);
    sae::run(&["scaling", "recommend", "nowhere.json", "--next", "1"]).exits(64).says(&["no such file"]);
    sae::run(&["scaling", "recommend", &laws]).exits(64);
    // λ as an axis: a law for each.
    let both = table(0.01, "l1=1") + &table(0.01, "l1=2").replace("features,steps,loss,seed,l1\n", "");
    let path = written(folder.path(), "both.csv", &both);
    let (finished, out) = fit(folder.path(), &path, "both", &[]);
    finished.exits(0);
    assert!(["l1-1", "l1-2"].iter().all(|name| out.join(name).join("laws.json").exists()));
    // The same again, and nothing over others.
    fit(folder.path(), &path, "both", &[]).0.exits(0);
    let before = fs::read(out.join("l1-1/laws.json")).expect("laws");
    fit(folder.path(), &path, "both", &["--seed", "1"]).0.exits(64).says(&["l1-1 already holds other laws"]);
    assert_eq!(fs::read(out.join("l1-1/laws.json")).expect("laws"), before);
}

/// Losses that fall ever faster with ln F have no exponent: within the runs that makes little difference, and beyond them all of it.
#[test]
fn an_exponent_that_the_runs_do_not_tell_is_no_reason_to_go_beyond_them() {
    let folder = TempDir::new().expect("a folder");
    let bent = |line: &str| -> Option<String> {
        let mut cells: Vec<String> = line.split(',').map(str::to_owned).collect();
        let (features, steps): (f64, f64) = (cells[0].parse().ok()?, cells[1].parse().ok()?);
        cells[2] = format!("{:?}", 60.0 - 0.02 * features.ln().powi(2) + 30.0 * steps.powf(-0.33));
        Some(cells.join(",") + "\n")
    };
    let text = table(0.0, "batch=256,width=32");
    let (names, lines) = text.split_once('\n').expect("a line of names");
    let text: String = [format!("{names}\n")].into_iter().chain(lines.lines().filter_map(bent)).collect();
    let (finished, out) = fit(folder.path(), &written(folder.path(), "bent.csv", &text), "bent", &[]);
    let said = finished.exits(0).stdout;
    assert!(said.contains("α = 0.02") && said.contains("bound") && said.contains("--next 5 says which"), "{said}");
    let laws = out.join("laws.json").display().to_string();
    let base = format!(
        "[data]\ntrain = '{}'\n[sae]\nfeatures = 1\n[train]\nbatch = 256\n[run]\ndir = 'x'\n",
        folder.path().display()
    );
    let base = written(folder.path(), "base.toml", &base);
    let recommend = |more: &[&str]| sae::run(&[&["scaling", "recommend", &laws, "--recipe", &base], more].concat());
    let beyond = ["--flops", "2e15"];
    recommend(&beyond).exits(64).says(&["α = 0.02 stands at a bound", "--next", "--force"]);
    recommend(&[&beyond[..], &["--force"]].concat()).exits(0);
    recommend(&["--flops", "1e14"]).exits(0);
}
