//! SWEEP.toml: a base recipe, and the configurations that are made of it.
//!
//! The configurations are the points of `[[points]]`, `[isoflop]` and `[lr]`, or the base recipe itself where there are none of these, each
//! with every combination of the values of `[axes]`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};
use trainer::recipe::{Differing, Recipe};

use super::presets::{Isoflop, Lr, Point};
use super::values::{self, MOST};
use crate::failure::Failure;
use crate::recipes;

/// The file, as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The sweep's folder.
    dir: Option<String>,
    /// The recipe that all configurations have in common: a path, from the folder of this file.
    recipe: Option<String>,
    /// The same, written here; over the keys of `recipe` where there is one.
    #[serde(default)]
    base: Table,
    /// Values of keys, of which every combination is trained.
    #[serde(default)]
    axes: Table,
    /// Keys of single configurations.
    #[serde(default)]
    points: Vec<Table>,
    isoflop: Option<Isoflop>,
    lr: Option<Lr>,
}

/// A sweep.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its folder.
    pub dir: String,
    /// Each with `run.dir` at the sweep's folder, which is not yet its own.
    pub configurations: Vec<Recipe>,
    /// A configuration that sets neither `data.train` nor `data.column` for itself, if there is one.
    pub on_base_train: Option<Recipe>,
    /// The same of `data.eval`.
    pub on_base_eval: Option<Recipe>,
    /// What all configurations have in common, as far as it was given.
    base: Table,
    /// Keys that every configuration sets for itself.
    set_by_all: BTreeSet<String>,
    /// The whole sweep in one file: what its folder keeps.
    whole: Table,
}

/// What a configuration sets over the base recipe.
#[derive(Clone, Debug, Default)]
struct Setting {
    keys: Vec<(String, Value)>,
    steps: Option<u64>,
}

/// Keys without which there is no recipe, which the configurations may bring.
const REQUIRED: [&str; 2] = ["sae.features", "data.train"];

impl Spec {
    /// Reads a sweep. `dir` is its folder over that of the file; later `sets` change the base recipe.
    ///
    /// # Errors
    /// [`trainer::Exit::Arguments`] that names the key and what it may be.
    pub fn read(path: &str, dir: Option<&str>, sets: &[String]) -> Result<Spec, Failure> {
        let none = || {
            Failure::arguments(format!(
                "{path}: no such sweep; launch/recipes/README.md#sweeps says how one is written"
            ))
        };
        let table = recipes::table(path, none)?;
        let file: File = recipes::of_kind(path, table.clone())?;
        let dir = dir.map(str::to_owned).or_else(|| file.dir.clone()).ok_or_else(|| {
            Failure::arguments(format!(
                "{path}: dir is missing: name a folder or URL for the sweep, or give it with --dir"
            ))
        })?;
        let near = |text: &str| beside(path, text);
        let given = base(&file, path, &near)?;
        let settings = settings(&file, path, &given, &near)?;
        let base = resolve_base(path, given.clone(), &settings, &dir, sets)?;
        let configurations =
            settings.iter().map(|setting| configuration(path, &base, setting)).collect::<Result<Vec<_>, _>>()?;
        check_eval(path, &configurations)?;
        let dir = base.run.dir.clone();
        let base = base_table(&base, &given, sets);
        let whole = whole(&table, &base, &settings, &configurations);
        let on_base = |key: &str| {
            let is_own = |setting: &Setting| [key, "data.column"].iter().any(|key| setting.value(key).is_some());
            let mut all = settings.iter().zip(&configurations);
            all.find(|(setting, _)| !is_own(setting)).map(|(_, recipe)| recipe.clone())
        };
        let (on_base_train, on_base_eval) = (on_base("data.train"), on_base("data.eval"));
        Ok(Spec {
            dir,
            configurations: distinct(configurations),
            on_base_train,
            on_base_eval,
            base,
            set_by_all: set_by_all(&settings),
            whole,
        })
    }

    /// As the sweep's folder keeps it: with all in it that the file names.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&self.whole).unwrap_or_default()
    }

    /// What differs from the sweep that was first submitted as `kept`, in keys that decide results and that not every configuration
    /// sets for itself.
    ///
    /// # Errors
    /// What is wrong with `kept`, in a few words.
    pub fn differs(&self, kept: &str) -> Result<Vec<Differing>, String> {
        #[derive(Deserialize)]
        struct Kept {
            base: Table,
        }
        let kept: Kept = toml::from_str(kept).map_err(|error| error.message().to_owned())?;
        let recipe = |table: &Table| -> Result<Recipe, String> {
            let mut table = table.clone();
            // Where a required key is the configurations' own, both get the same.
            for key in REQUIRED.into_iter().chain(["run.dir"]) {
                let stands_in = if key == "sae.features" { Value::Integer(1) } else { Value::String("-".to_owned()) };
                if values::get(&table, key).is_none() {
                    values::set(&mut table, key, stands_in);
                }
            }
            table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
        };
        let (now, then) = (recipe(&self.base)?, recipe(&kept.base)?);
        let differing = now.differing_keys(&then);
        Ok(differing.into_iter().filter(|differing| !self.set_by_all.contains(&differing.key)).collect())
    }
}

/// A path as it is meant in a file: from the folder of that file on.
fn beside(file: &str, text: &str) -> String {
    if text.contains("://") || text.starts_with("~/") || Path::new(text).is_absolute() {
        return text.to_owned();
    }
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    folder.join(text).display().to_string()
}

/// The keys of the base recipe, as they are written.
fn base(file: &File, path: &str, near: &dyn Fn(&str) -> String) -> Result<Table, Failure> {
    if file.recipe.is_none() && file.base.is_empty() {
        return Err(Failure::arguments(format!(
            "{path}: there is no recipe: name one with recipe = \"base.toml\", or write its sections as [base.data], [base.train] …"
        )));
    }
    let mut base = match &file.recipe {
        Some(recipe) => {
            let at = near(recipe);
            recipes::table(&at, || Failure::arguments(format!("{path}: recipe = \"{recipe}\": {at} is not there")))?
        }
        None => Table::new(),
    };
    for (key, value) in values::leaves(&file.base) {
        values::set(&mut base, &key, value);
    }
    Ok(base)
}

/// What each configuration sets: the points, with every combination of the axes.
fn settings(file: &File, path: &str, base: &Table, near: &dyn Fn(&str) -> String) -> Result<Vec<Setting>, Failure> {
    let mut points: Vec<Setting> =
        file.points.iter().map(|point| Setting { keys: values::leaves(point), steps: None }).collect();
    if let Some(isoflop) = &file.isoflop {
        points.extend(isoflop.points(near)?.iter().map(Setting::of));
    }
    if let Some(lr) = &file.lr {
        points.extend(lr.points(base_lr(base), near)?.iter().map(Setting::of));
    }
    let has_presets = points.iter().any(|point| point.steps.is_some());
    if has_presets && file.points.is_empty() && values::get(&file.base, "train.tokens").is_some() {
        return Err(Failure::arguments(format!(
            "{path}: base.train.tokens is set by [isoflop] or [lr], from budget and features: leave it out, or go on with a sweep by the name of its folder"
        )));
    }
    let axes = values::axes(&file.axes, &takes_whole_numbers)?;
    if points.is_empty() && axes.is_empty() {
        return Err(Failure::arguments(format!(
            "{path}: no configuration: write [axes] with values of keys, [[points]], [isoflop] or [lr]"
        )));
    }
    for (key, _) in &axes {
        if points.iter().any(|point| point.sets().any(|own| own == key)) {
            return Err(Failure::arguments(format!(
                "{path}: axes.{key} is set by [[points]], [isoflop] or [lr] too: leave it out of one of them"
            )));
        }
    }
    let count = axes.iter().fold(points.len().max(1), |count, (_, values)| count.saturating_mul(values.len()));
    if count > MOST {
        return Err(Failure::arguments(format!("{path}: {count} configurations, and a sweep has at most {MOST}")));
    }
    let mut settings = if points.is_empty() { vec![Setting::default()] } else { points };
    for (key, values) in &axes {
        let with = |setting: &Setting, value: &Value| {
            let mut setting = setting.clone();
            setting.keys.push((key.clone(), value.clone()));
            setting
        };
        settings = settings.iter().flat_map(|setting| values.iter().map(|value| with(setting, value))).collect();
    }
    Ok(settings)
}

impl Setting {
    fn of(point: &Point) -> Setting {
        let features = i64::try_from(point.features).unwrap_or(i64::MAX);
        let mut keys = vec![("sae.features".to_owned(), Value::Integer(features))];
        keys.extend(point.lr.map(|lr| ("train.lr".to_owned(), Value::Float(lr))));
        Setting { keys, steps: Some(point.steps) }
    }

    /// The keys that it sets.
    fn sets(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(key, _)| key.as_str()).chain(self.steps.map(|_| "train.tokens"))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(own, _)| own == key).map(|(_, value)| value)
    }

    /// As one of `[[points]]`; the recipe is the configuration of it.
    fn point(&self, recipe: &Recipe) -> Table {
        let mut point = Table::new();
        for (key, value) in &self.keys {
            values::set(&mut point, key, value.clone());
        }
        if let Some(tokens) = recipe.train.tokens.filter(|_| self.steps.is_some()) {
            values::set(&mut point, "train.tokens", Value::Integer(i64::try_from(tokens).unwrap_or(i64::MAX)));
        }
        point
    }

    /// For messages.
    fn words(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        keys.join(", ")
    }
}

/// `train.lr` of the base recipe, by default as in any recipe.
fn base_lr(base: &Table) -> f64 {
    let lr = values::get(base, "train.lr").and_then(|lr| lr.as_float().or(lr.as_integer().map(|lr| lr as f64)));
    lr.unwrap_or(trainer::recipe::Train::default().lr)
}

/// Whether a key takes no fractions: tried on a recipe.
fn takes_whole_numbers(key: &str) -> bool {
    let takes = |value: Value| {
        let mut table = Table::new();
        for (required, stands_in) in [("data.train", "-"), ("run.dir", "-")] {
            values::set(&mut table, required, Value::String(stands_in.to_owned()));
        }
        values::set(&mut table, "sae.features", Value::Integer(1));
        values::set(&mut table, key, value);
        table.try_into::<Recipe>().is_ok()
    };
    takes(Value::Integer(2)) && !takes(Value::Float(1.5))
}

/// The base recipe. What it has to have and the configurations bring is that of the first, which then all have to bring.
fn resolve_base(
    path: &str,
    mut given: Table,
    settings: &[Setting],
    dir: &str,
    sets: &[String],
) -> Result<Recipe, Failure> {
    let set_by = |key: &str| sets.iter().any(|set| set.split('=').next().is_some_and(|name| name.trim() == key));
    for key in REQUIRED {
        let Some(first) = settings.first().and_then(|setting| setting.value(key)) else { continue };
        if values::get(&given, key).is_some() || set_by(key) {
            continue;
        }
        if let Some(without) = settings.iter().find(|setting| setting.value(key).is_none()) {
            return Err(Failure::arguments(format!(
                "{path}: neither the recipe nor the point {{ {} }} sets {key}",
                without.words()
            )));
        }
        values::set(&mut given, key, first.clone());
    }
    if let Some(key) = settings.iter().flat_map(Setting::sets).find(|key| set_by(key)) {
        return Err(Failure::arguments(format!("--set {key}: {path} has values of its own for this key")));
    }
    values::set(&mut given, "run.dir", Value::String(dir.to_owned()));
    recipes::of_table(path, given, sets)
}

fn configuration(path: &str, base: &Recipe, setting: &Setting) -> Result<Recipe, Failure> {
    let mut table: Table =
        base.to_toml().parse().map_err(|error: toml::de::Error| trainer::Error::Internal(error.into()))?;
    for (key, value) in &setting.keys {
        if key == "run" || key.starts_with("run.") {
            return Err(Failure::arguments(format!(
                "{path}: {key} is no key of a sweep: each configuration has a folder of its own in dir"
            )));
        }
        values::set(&mut table, key, value.clone());
    }
    let mut recipe = recipes::of_table(&format!("{path}, with {}", setting.words()), table, &[])?;
    if let Some(steps) = setting.steps {
        recipe.train.tokens = Some(steps.saturating_mul(recipe.train.batch as u64));
    }
    Ok(recipe)
}

/// Results of a sweep are compared on rows that nothing was trained on.
fn check_eval(path: &str, configurations: &[Recipe]) -> Result<(), Failure> {
    if configurations.iter().any(|recipe| recipe.data.eval.is_empty()) {
        return Err(Failure::arguments(format!(
            "{path}: the recipe has no data.eval, and runs of a sweep are compared on held-out rows: name shards that are not trained on \
             (of one data set, move some files to a folder of their own)"
        )));
    }
    Ok(())
}

/// Each configuration once, in its order.
fn distinct(configurations: Vec<Recipe>) -> Vec<Recipe> {
    let mut seen = BTreeSet::new();
    configurations.into_iter().filter(|recipe| seen.insert(recipe.to_toml())).collect()
}

/// The keys that every setting has.
fn set_by_all(settings: &[Setting]) -> BTreeSet<String> {
    let keys = |setting: &Setting| -> BTreeSet<String> { setting.sets().map(str::to_owned).collect() };
    let all = settings.iter().map(keys).reduce(|all, keys| all.intersection(&keys).cloned().collect());
    all.unwrap_or_default()
}

/// The base recipe with its defaults, but for what the configurations brought to it.
fn base_table(base: &Recipe, given: &Table, sets: &[String]) -> Table {
    let mut table: Table = base.to_toml().parse().unwrap_or_default();
    table.remove("run");
    for key in REQUIRED {
        let is_set = sets.iter().any(|set| set.starts_with(key));
        if values::get(given, key).is_none()
            && !is_set
            && let Some((section, name)) = key.split_once('.')
            && let Some(Value::Table(section)) = table.get_mut(section)
        {
            section.remove(name);
        }
    }
    table
}

/// The file with all that it names in it. Presets are written as the points that they came to: what their laws say may change, and they lie
/// where others do not see them.
fn whole(file: &Table, base: &Table, settings: &[Setting], configurations: &[Recipe]) -> Table {
    let mut whole = file.clone();
    for named in ["recipe", "dir"] {
        whole.remove(named);
    }
    if settings.iter().any(|setting| setting.steps.is_some()) {
        // Tokens follow from the batch, which may be an axis, so each point has its own values of the axes.
        for made in ["isoflop", "lr", "points", "axes"] {
            whole.remove(made);
        }
        let points = settings.iter().zip(configurations).map(|(setting, recipe)| setting.point(recipe));
        whole.insert("points".to_owned(), Value::Array(points.map(Value::Table).collect()));
    }
    whole.insert("base".to_owned(), Value::Table(base.clone()));
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[data]\ntrain = 'rows'\neval = 'held-out'\n[sae]\nfeatures = 64\n[train]\nbatch = 100\nlr = 1e-3\n[run]\ndir = 'x'\n";

    fn read_with(base: &str, sweep: &str, sets: &[&str]) -> Result<Spec, Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("base.toml"), base).expect("written");
        let path = folder.path().join("sweep.toml");
        std::fs::write(&path, format!("dir = 'sweeps/a'\nrecipe = 'base.toml'\n{sweep}")).expect("written");
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        Spec::read(path.to_str().expect("UTF-8"), None, &sets)
    }

    fn read(sweep: &str) -> Result<Spec, Failure> {
        read_with(BASE, sweep, &[])
    }

    fn said(sweep: &str) -> String {
        read(sweep).expect_err(sweep).message().to_owned()
    }

    #[test]
    fn axes_are_multiplied_and_points_stand_beside() {
        let spec = read("[axes]\ntrain.lr = [1e-3, 2e-3]\ntrain.seed = [0, 1, 2]\n").expect("a sweep");
        assert_eq!((spec.configurations.len(), spec.dir.as_str()), (6, "sweeps/a"));
        let seeds: Vec<_> = spec.configurations.iter().map(|recipe| (recipe.train.lr, recipe.train.seed)).collect();
        assert_eq!(seeds[..4], [(1e-3, 0), (1e-3, 1), (1e-3, 2), (2e-3, 0)]);
        let text = "[[points]]\nsae.features = 128\n'train.tokens' = 1e4\n[[points]]\nsae.features = 256\n[axes]\ntrain.l1 = [1, 2]";
        let spec = read(text).expect("a sweep");
        let found: Vec<_> = spec.configurations.iter().map(|r| (r.sae.features, r.train.tokens, r.train.l1)).collect();
        let tokens = Some(10_000);
        assert_eq!(found, [(128, tokens, 1.0), (128, tokens, 2.0), (256, None, 1.0), (256, None, 2.0)]);
        // The same twice is one.
        assert_eq!(
            read("[[points]]\ntrain.seed = 1\n[[points]]\ntrain.seed = 1").expect("a sweep").configurations.len(),
            1
        );
    }

    #[test]
    fn tokens_of_a_preset_follow_from_its_steps_and_the_batch() {
        let text = "[isoflop]\nbudgets = [1e5]\ncentre = 512\npoints = 3\n[axes]\ntrain.batch = [10, 20]";
        let spec = read_with(&BASE.replace("features = 64", ""), text, &[]).expect("features come from the preset");
        let found: Vec<_> = spec.configurations.iter().map(|r| (r.sae.features, r.train.tokens)).collect();
        let expected = [(256, 3910), (256, 7820), (512, 1950), (512, 3900), (1024, 980), (1024, 1960)];
        assert_eq!(found, expected.map(|(features, tokens)| (features, Some(tokens))));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        for (text, parts) in [
            ("[axes]\ntrain.lrr = [1]", &["unknown key train.lrr: did you mean train.lr?"][..]),
            ("[axes]\nlr = [1e-3]", &["unknown key lr"]),
            ("[axes]\ntrain.lr = [true]", &["train.lr must be a number, and is true", "with train.lr = true"]),
            ("[axes]\ntrain.lr = [-1.0]", &["train.lr must be a number above 0"]),
            ("[axes]\ntrain.lr = []", &["axes.train.lr is empty"]),
            ("[axes]\nrun.dir = ['a']", &["run.dir is no key of a sweep"]),
            ("", &["no configuration: write [axes]"]),
            ("axs.train.lr = [1]", &["unknown key axs: did you mean axes?"]),
            ("[isoflop]\nbudgets = [1e6]\ncentre = 512\n[axes]\nsae.features = [1]", &["axes.sae.features is set by"]),
            ("[isoflop]\nbudgets = [1e6]\ncentre = 512\n[axes]\ntrain.tokens = [1]", &["axes.train.tokens is set by"]),
            (
                "[axes]\ntrain.l1 = {log = [1, 1e9], points = 200}\ntrain.lr = {log = [1, 2], points = 200}",
                &["40000 configurations"],
            ),
        ] {
            let said = said(text);
            assert!(parts.iter().all(|part| said.contains(part)), "{text}: {said}");
        }
        let failure = read_with(BASE, "[axes]\ntrain.lr = [1]", &["train.lr=2"]).expect_err("both");
        assert!(failure.message().contains("--set train.lr"), "{}", failure.message());
        let preset = "[isoflop]\nbudgets = [1e6]\ncentre = 512\n";
        let failure = read_with(BASE, preset, &["train.tokens=100"]).expect_err("both");
        assert!(failure.message().contains("--set train.tokens"), "{}", failure.message());
        let said = said(&format!("{preset}[base.train]\ntokens = 100"));
        assert!(said.contains("base.train.tokens is set by [isoflop]"), "{said}");
        let failure = read_with(&BASE.replace("eval = 'held-out'", ""), "[axes]\ntrain.lr = [1]", &[]);
        assert!(failure.expect_err("no eval").message().contains("has no data.eval"));
        let failure = read_with(&BASE.replace("features = 64", ""), "[axes]\ntrain.lr = [1]", &[]).expect_err("no F");
        assert!(failure.message().contains("sae.features is missing"), "{}", failure.message());
    }

    #[test]
    fn a_changed_base_is_told_from_more_points() {
        let first = read("[axes]\ntrain.lr = [1e-3]").expect("a sweep");
        let kept = first.to_toml();
        let more = read("[axes]\ntrain.lr = [1e-3, 2e-3]").expect("a sweep");
        assert_eq!(more.differs(&kept), Ok(Vec::new()));
        let other = read_with(&BASE.replace("batch = 100", "batch = 50\nthreads = 2"), "[axes]\ntrain.lr = [1]", &[]);
        let differing = other.expect("a sweep").differs(&kept).expect("both are sweeps");
        let expected = Differing { key: "train.batch".into(), now: "50".into(), then: "100".into() };
        assert_eq!(differing, [expected], "train.threads may change");
        // What every configuration sets is no matter of the base.
        let other = read_with(&BASE.replace("lr = 1e-3", "lr = 0.5"), "[axes]\ntrain.lr = [1]", &[]).expect("a sweep");
        assert_eq!(other.differs(&kept), Ok(Vec::new()));
        let other = read_with(&BASE.replace("lr = 1e-3", "lr = 0.5"), "[axes]\ntrain.l1 = [1]", &[]).expect("a sweep");
        assert_eq!(other.differs(&kept).expect("both are sweeps")[0].key, "train.lr");
    }

    /// What the folder keeps is a sweep by itself, with the same configurations.
    #[test]
    fn what_is_kept_can_be_submitted_again() {
        for text in [
            "[axes]\ntrain.lr = [1e-3, 2e-3]",
            "[isoflop]\nbudgets = [1e5]\ncentre = 512",
            "[isoflop]\nbudgets = [1e5]\ncentre = 512\n[axes]\ntrain.batch = [10, 20]\n[[points]]\nsae.features = 64",
        ] {
            let base = if text.contains("isoflop") { BASE.replace("features = 64", "") } else { BASE.to_owned() };
            let first = read_with(&base, text, &["train.l1=3"]).expect("a sweep");
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("sweep.toml");
            assert!(!first.to_toml().contains("isoflop"), "{}", first.to_toml());
            std::fs::write(&path, first.to_toml()).expect("written");
            let again = Spec::read(path.to_str().expect("UTF-8"), Some("sweeps/a"), &[]).expect("a sweep");
            assert_eq!(again.configurations, first.configurations);
            assert_eq!(again.differs(&first.to_toml()), Ok(Vec::new()));
        }
    }
}
