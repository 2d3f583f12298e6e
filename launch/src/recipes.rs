//! From a TOML file and `--set` to a validated recipe.

use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile};
use indicatif::HumanCount;
use loader::synth::Spec;
use trainer::recipe::Recipe;

use crate::failure::Failure;

/// Reads a recipe; later `sets` win over earlier ones and over the file.
pub fn read(path: &str, sets: &[String]) -> Result<Recipe, Failure> {
    if !std::path::Path::new(path).is_file() {
        return Err(Failure::arguments(format!("{path}: no such recipe; launch/recipes/ has some to start from")));
    }
    let mut figment = Figment::from(Toml::file_exact(path));
    let mut set_keys = Vec::new();
    for set in sets {
        let (key, value) = set
            .split_once('=')
            .ok_or_else(|| Failure::arguments(format!("--set {set}: write KEY=VALUE, such as --set train.l1=8")))?;
        figment = figment.merge(Serialized::from(nested(key.trim(), parse(value.trim())), Profile::Default));
        set_keys.push(key.trim());
    }
    let given: Dict = figment.extract().map_err(|error| Failure::arguments(format!("{path}: {}", error.kind)))?;
    let mut recipe = resolve(path, &set_keys, given)?;
    expand_home(&mut recipe)?;
    recipe.validate()?;
    Ok(recipe)
}

/// The recipe that the keys make, or everything that is wrong with them up to the first required one.
fn resolve(path: &str, set_keys: &[&str], mut given: Dict) -> Result<Recipe, Failure> {
    let mut problems = Vec::new();
    let mut refused = Vec::new();
    loop {
        let error = match Figment::from(Serialized::defaults(&given)).extract::<Recipe>() {
            Ok(recipe) if problems.is_empty() => return Ok(recipe),
            Ok(_) => break,
            Err(error) => error,
        };
        let key = key_of(&error);
        if refused.contains(&key) {
            break;
        }
        let name = key.join(".");
        let is_set = set_keys.iter().any(|set| within(set, &name) || within(&name, set));
        problems.push(format!("{}: {}", if is_set { "--set" } else { path }, explain(&name, &error.kind)));
        // Without the key the others show what they are. For a required one nothing can stand in.
        if !remove(&mut given, &key) {
            break;
        }
        refused.push(key);
    }
    Err(Failure::arguments(problems.join("\n")))
}

/// The key that an error is about. For an unknown one the path ends with the key itself or with its table.
fn key_of(error: &figment::Error) -> Vec<String> {
    let mut key = error.path.clone();
    let last = match &error.kind {
        Kind::UnknownField(field, _) if key.last() != Some(field) => Some(field.clone()),
        Kind::MissingField(field) => Some(field.to_string()),
        _ => None,
    };
    key.extend(last);
    key
}

/// Whether `key` is `of` or lies in it.
fn within(key: &str, of: &str) -> bool {
    key.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Removes a key, or the list that it points into; false when it is not there.
fn remove(given: &mut Dict, key: &[String]) -> bool {
    let Some((first, rest)) = key.split_first() else { return false };
    match given.get_mut(first) {
        Some(Value::Dict(_, inner)) if !rest.is_empty() => remove(inner, rest),
        _ => given.remove(first).is_some(),
    }
}

/// What is wrong with a key in words, with the nearest known one for an unknown one.
fn explain(key: &str, kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(field, known) => {
            let nearest = known
                .iter()
                .map(|candidate| (strsim::damerau_levenshtein(field, candidate), candidate))
                .min()
                .filter(|(distance, candidate)| *distance <= candidate.len().max(field.len()) / 2);
            let hint = match nearest {
                Some((_, candidate)) => format!("did you mean {candidate}?"),
                None => format!("known here: {}", known.join(", ")),
            };
            format!("unknown key {key}: {hint}")
        }
        Kind::MissingField(_) => format!("{key} is missing: launch/recipes/README.md says what it may be"),
        Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
            let wanted = match wanted.as_str() {
                "f32" | "f64" => "a number",
                "i32" | "i64" => "a whole number",
                "u32" | "u64" | "usize" => "a whole number, at least 0",
                "bool" | "a boolean" => "true or false",
                other => other,
            };
            format!("{key} must be {wanted}, and is {found}")
        }
        kind => format!("{key}: {kind}"),
    }
}

/// The rows of `[data.synth]` in words.
pub fn synthetic(spec: &Spec) -> String {
    format!("the {} rows × {} {} of [data.synth]", HumanCount(spec.rows), spec.width, spec.dtype.name())
}

/// `~/` at the beginning of a path, as a shell would read it.
fn expand_home(recipe: &mut Recipe) -> Result<(), Failure> {
    let data = recipe.data.train.iter_mut().chain(&mut recipe.data.eval);
    for path in data.chain(&mut recipe.train.init_from).chain([&mut recipe.run.dir]) {
        let Some(rest) = path.strip_prefix("~/") else { continue };
        let Some(home) = std::env::home_dir() else {
            return Err(Failure::arguments(format!("{path}: there is no home folder here: write the whole path")));
        };
        *path = format!("{}/{rest}", home.display());
    }
    Ok(())
}

/// A TOML value; what is none is a string, so that `run.dir=runs/a` needs no quotes.
fn parse(value: &str) -> toml::Value {
    let document = format!("value = {value}");
    let parsed = document.parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()))
}

/// `a.b = value` as tables in tables.
fn nested(key: &str, value: toml::Value) -> toml::Value {
    key.rsplit('.').fold(value, |value, part| toml::Value::Table(toml::Table::from_iter([(part.to_owned(), value)])))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MINIMAL: &str = "[data]\ntrain = \"acts\"\n[sae]\nfeatures = 64\n[train]\n[run]\ndir = \"out\"\n";

    fn read_text(text: &str, sets: &[&str]) -> Result<Recipe, Failure> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        read(file.path().to_str().expect("utf-8"), &sets)
    }

    fn message(text: &str, sets: &[&str]) -> String {
        format!("{:?}", read_text(text, sets).expect_err("refused"))
    }

    #[test]
    fn sets_win_over_the_file_and_bare_words_are_strings() {
        let recipe =
            read_text(MINIMAL, &["train.l1=8", "run.dir=runs/a", "data.skip=[\"a.parquet:3\"]"]).expect("a recipe");
        assert_eq!((recipe.train.l1, recipe.run.dir.as_str()), (8.0, "runs/a"));
        assert_eq!(recipe.data.skip, ["a.parquet:3"]);
        assert_eq!(recipe.data.train, ["acts"]);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let text = MINIMAL.replace("[train]\n", "[train]\nbacth = 3\n");
        let message = message(&text, &[]);
        assert!(message.contains("unknown key train.bacth: did you mean batch?"), "{message}");
        let message = self::message(MINIMAL, &["trian.batch=3"]);
        assert!(message.contains("--set: unknown key trian: did you mean train?"), "{message}");
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        let message = message(MINIMAL, &["train.lr=fast"]);
        assert!(message.contains("--set: train.lr"), "{message}");
        let message = self::message(MINIMAL, &["train.batch=0"]);
        assert!(message.contains("train.batch must be at least 1"), "{message}");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let text = MINIMAL.replace("[train]\n", "[train]\nbacth = 3\nclip = true\n[trian]\nx = 1\n");
        let message = message(&text, &["train.lr=fast", "log.every=-1"]);
        for part in [
            "unknown key train.bacth",
            "unknown key trian",
            "train.clip must be a number, and is",
            "--set: train.lr must be a number, and is string",
            "log.every must be a whole number, at least 0",
        ] {
            assert_eq!(message.matches(part).count(), 1, "{part}: {message}");
        }
    }

    #[test]
    fn paths_may_begin_at_home() {
        let sets = ["run.dir=~/runs/a", "data.eval=[\"~/x\", \"a~/y\"]"];
        let recipe = read_text(MINIMAL, &sets).expect("a recipe");
        let home = std::env::home_dir().expect("a home");
        assert_eq!(recipe.run.dir, home.join("runs/a").to_str().expect("utf-8"));
        assert_eq!(recipe.data.eval, [home.join("x").to_str().expect("utf-8"), "a~/y"]);
    }

    #[test]
    fn counts_and_bytes_are_read_as_people_write_them() {
        let text = MINIMAL.replace("[train]\n", "[train]\ntokens = 8e9\ndense_bytes = \"1.5GiB\"\n");
        let sets = ["sae.features=1_024", "train.batch=4e3", "eval.rows=1e4", "data.window_bytes=512MiB"];
        let recipe = read_text(&text, &[&sets[..], &["checkpoint.buffer_bytes=2 GB", "data.synth.rows=1e9"]].concat());
        let recipe = recipe.expect("a recipe");
        assert_eq!((recipe.train.tokens, recipe.train.dense_bytes), (Some(8_000_000_000), 3 << 29));
        assert_eq!((recipe.sae.features, recipe.train.batch, recipe.eval.rows), (1024, 4000, 10_000));
        assert_eq!((recipe.data.window_bytes, recipe.checkpoint.buffer_bytes), (512 << 20, Some(2_000_000_000)));
        assert_eq!(recipe.data.synth.as_ref().map(|spec| spec.rows), Some(1_000_000_000));
        assert_eq!(read_text(&recipe.to_toml(), &[]).expect("a recipe"), recipe);
        for (set, parts) in [
            ("data.window_bytes=2GX", &["data.window_bytes must be a whole number of bytes", "512MiB", "2GX"][..]),
            ("train.tokens=1.5", &["train.tokens must be a whole number, at least 0", "1_000_000 or 1e6", "1.5"]),
            ("train.tokens=2GiB", &["train.tokens must be a whole number", "2GiB"]),
            ("sae.features=-1", &["sae.features must be a whole number, at least 0", "-1"]),
            ("eval.rows=true", &["eval.rows must be a whole number", "true"]),
        ] {
            let message = message(MINIMAL, &[set]);
            assert!(parts.iter().all(|part| message.contains(part)), "{set}: {message}");
        }
    }

    #[test]
    fn a_missing_key_is_named_in_full() {
        let message = message(&MINIMAL.replace("features = 64\n", ""), &[]);
        assert!(message.contains("sae.features is missing"), "{message}");
    }

    #[test]
    fn a_resolved_recipe_reads_back_as_itself() {
        let recipe = read_text(MINIMAL, &["data.scale=1.5", "checkpoint.every=\"5min\""]).expect("a recipe");
        assert_eq!(read_text(&recipe.to_toml(), &[]).expect("a recipe"), recipe);
    }
}
