//! From a TOML file and `--set` to a validated recipe.

use figment::error::{Actual, Kind};
use figment::providers::Serialized;
use figment::value::{Dict, Value};
use figment::{Figment, Profile};
use indicatif::HumanCount;
use loader::synth::Spec;
use serde::de::DeserializeOwned;
use trainer::recipe::Recipe;

use crate::counterparts;
use crate::failure::Failure;

/// Reads a recipe; later `sets` win over earlier ones and over the file.
pub fn read(path: &str, sets: &[String]) -> Result<Recipe, Failure> {
    let none = || Failure::arguments(format!("{path}: no such recipe; launch/recipes/ has some to start from"));
    of_table(path, table(path, none)?, sets)
}

/// The keys of a TOML file, which is refused as `none` says where there is no such file.
pub fn table(path: &str, none: impl Fn() -> Failure) -> Result<toml::Table, Failure> {
    if !std::path::Path::new(path).is_file() {
        loader::check_expanded(path).map_err(loader::Error::from)?;
        return Err(none());
    }
    let text = std::fs::read_to_string(path).map_err(|error| Failure::arguments(format!("{path}: {error}")))?;
    text.parse().map_err(|error| Failure::arguments(format!("{path}: {error}")))
}

/// The recipe of the keys in `file`, which messages call `path`; later `sets` win over earlier ones and over those keys.
pub fn of_table(path: &str, file: toml::Table, sets: &[String]) -> Result<Recipe, Failure> {
    if let Some((key, date)) = date_in(&file) {
        return Err(Failure::arguments(format!(
            "{path}: {key} = {date} is a date, which no key takes: write \"{date}\""
        )));
    }
    let mut figment = Figment::from(Serialized::defaults(file));
    let mut read_sets = Vec::new();
    for set in sets {
        let (key, text) = set
            .split_once('=')
            .ok_or_else(|| Failure::arguments(format!("--set {set}: write KEY=VALUE, such as --set train.l1=8")))?;
        let mut set = Set { key: key.trim(), readings: readings(text.trim()) };
        figment = figment.merge(Serialized::from(nested(set.key, set.readings.remove(0)), Profile::Default));
        read_sets.push(set);
    }
    let given: Dict = figment.extract().map_err(|error| Failure::arguments(format!("{path}: {}", error.kind)))?;
    let mut recipe = resolve(path, read_sets, given)?;
    expand_home(&mut recipe)?;
    recipe.validate()?;
    Ok(recipe)
}

/// What a file says that is no recipe, with the words of one for what is wrong.
pub fn of_kind<T: DeserializeOwned>(path: &str, file: toml::Table) -> Result<T, Failure> {
    Figment::from(Serialized::defaults(file))
        .extract()
        .map_err(|error| Failure::arguments(format!("{path}: {}", explain(&key_of(&error).join("."), &error.kind))))
}

/// The first key of a file that has a date, and the date: it would be taken for a table.
fn date_in(file: &toml::Table) -> Option<(String, toml::value::Datetime)> {
    file.iter().find_map(|(key, value)| match value {
        toml::Value::Datetime(date) => Some((key.clone(), *date)),
        toml::Value::Table(table) => date_in(table).map(|(inner, date)| (format!("{key}.{inner}"), date)),
        toml::Value::Array(list) => list.iter().find_map(toml::Value::as_datetime).map(|date| (key.clone(), *date)),
        _ => None,
    })
}

/// A key of `--set`, and what else its text may mean where the first reading is refused.
struct Set<'a> {
    key: &'a str,
    readings: Vec<toml::Value>,
}

/// The recipe that the keys make, or everything that is wrong with them up to the first required one.
fn resolve(path: &str, mut sets: Vec<Set<'_>>, mut given: Dict) -> Result<Recipe, Failure> {
    let mut problems = Vec::new();
    let mut refused = Vec::new();
    // Keys that unknown ones were taken for.
    let mut meant = Vec::new();
    // What was said of the first readings.
    let mut first: Vec<(String, figment::Error)> = Vec::new();
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
        // Only the key knows whether 2024-01-01 is a date or a name. Of two --set with one key the later one counts.
        let known = !matches!(error.kind, Kind::UnknownField(..) | Kind::MissingField(_));
        if let Some(set) =
            sets.iter_mut().rev().find(|set| within(&name, set.key)).filter(|set| known && !set.readings.is_empty())
        {
            let next = nested(set.key, set.readings.remove(0));
            given = Figment::from(Serialized::defaults(&given))
                .merge(Serialized::from(next, Profile::Default))
                .extract()
                .map_err(|error| Failure::arguments(format!("--set {}: {}", set.key, error.kind)))?;
            first.push((set.key.to_owned(), error));
            continue;
        }
        let is_set = sets.iter().any(|set| within(set.key, &name) || within(&name, set.key));
        let (name, kind) = match first.iter().find(|(set, _)| within(&name, set)) {
            Some((_, error)) => (key_of(error).join("."), &error.kind),
            None => (name, &error.kind),
        };
        // What is missing was written otherwise, of which was told.
        if matches!(kind, Kind::MissingField(_)) && meant.contains(&name) {
            break;
        }
        meant.extend(nearest(&name, kind));
        problems.push(format!("{}: {}", if is_set { "--set" } else { path }, explain(&name, kind)));
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

/// The known key, in full, that is most like an unknown one, if there is one that is like it.
fn nearest(key: &str, kind: &Kind) -> Option<String> {
    let Kind::UnknownField(field, known) = kind else { return None };
    let distances = known.iter().map(|candidate| (strsim::damerau_levenshtein(field, candidate), candidate));
    let (distance, candidate) = distances.min()?;
    let is_like = distance <= candidate.len().max(field.len()) / 2;
    let table = key.strip_suffix(field.as_str()).unwrap_or_default();
    is_like.then(|| format!("{table}{candidate}"))
}

/// What is wrong with a key in words, with the nearest known one for an unknown one.
fn explain(key: &str, kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(field, known) => {
            if let Some((whose, here)) = counterparts::of(field) {
                return format!("unknown key {key}, which {whose} has: here it is {here}");
            }
            let hint = match nearest(key, kind) {
                Some(nearest) => format!("did you mean {nearest}?"),
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
                "a string" | "string" => "a word or path in quotes",
                "a sequence" => "a list",
                table if table.starts_with("struct ") || table == "a map" => "a table of keys",
                other => other,
            };
            format!("{key} must be {wanted}, and is {}", written(found))
        }
        Kind::UnknownVariant(found, known) => {
            format!("{key} must be one of {}, and is {found}", known.join(", "))
        }
        kind => format!("{key}: {kind}"),
    }
}

/// A value as a recipe has it.
fn written(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Char(letter) => format!("\"{letter}\""),
        Actual::Str(text) => format!("\"{text}\""),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
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

/// What the text of a `--set` may mean, likeliest first: a TOML value; a list of the words that its elements are; the text itself,
/// so that `run.dir=runs/a` needs no quotes, nor `run.dir=2024-01-01` or `data.column=inf`.
fn readings(text: &str) -> Vec<toml::Value> {
    #[derive(serde::Deserialize)]
    struct Listed {
        value: Vec<toml::Spanned<toml::Value>>,
    }
    let document = format!("value = {text}");
    let parsed = document.parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    let itself = toml::Value::String(text.to_owned());
    let words = || {
        let listed: Listed = toml::from_str(&document).ok()?;
        let word = |element: toml::Spanned<toml::Value>| match (document.get(element.span()), element.into_inner()) {
            (Some(text), other) if !other.is_str() => toml::Value::String(text.to_owned()),
            (_, other) => other,
        };
        Some(toml::Value::Array(listed.value.into_iter().map(word).collect()))
    };
    match parsed {
        Some(string @ toml::Value::String(_)) => vec![string],
        Some(list @ toml::Value::Array(_)) => [Some(list), words(), Some(itself)].into_iter().flatten().collect(),
        Some(other) => vec![other, itself],
        None => vec![itself],
    }
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
    fn words_need_no_quotes_whatever_they_look_like() {
        for word in [
            "2024-01-01",
            "2024-01-01T10:00:00Z",
            "10:30:00",
            "7",
            "1_000",
            "1e3",
            "1.50",
            "true",
            "inf",
            "-nan",
            "[0]",
            "{a=1}",
        ] {
            let sets = [format!("run.dir={word}"), format!("data.column={word}"), format!("train.init_from={word}")];
            let recipe = read_text(MINIMAL, &sets.each_ref().map(String::as_str)).expect(word);
            assert_eq!(recipe.run.dir, word);
            assert_eq!((recipe.data.column.as_deref(), recipe.train.init_from.as_deref()), (Some(word), Some(word)));
            let quoted = read_text(MINIMAL, &[&format!("run.dir=\"{word}\"")]).expect(word);
            assert_eq!(quoted.run.dir, word);
        }
        for word in ["2024-01-01", "7", "true", "nan"] {
            let list = format!("data.eval=[{word}, \"b\", {word}]");
            let recipe = read_text(MINIMAL, &[&format!("data.train={word}"), &list]).expect(word);
            assert_eq!(recipe.data.train, [word]);
            assert_eq!(recipe.data.eval, [word, "b", word]);
        }
        // A later value counts, and numbers stay numbers.
        let recipe =
            read_text(MINIMAL, &["run.dir=1", "run.dir=2", "train.l1=8", "checkpoint.every=5"]).expect("a recipe");
        assert_eq!((recipe.run.dir.as_str(), recipe.train.l1), ("2", 8.0));
        assert_eq!(recipe.checkpoint.every, trainer::recipe::Every::Steps(5));
        let message = message(&MINIMAL.replace("\"out\"", "2024-01-01"), &[]);
        assert!(message.contains("run.dir = 2024-01-01 is a date, which no key takes: write"), "{message}");
        let message = self::message(&MINIMAL.replace("\"acts\"", "[\"acts\", 07:32:00]"), &[]);
        assert!(message.contains("data.train = 07:32:00 is a date, which no key takes: write"), "{message}");
        // What is no TOML is reported with its place.
        let message = self::message(&MINIMAL.replace("features = 64", "features = "), &[]);
        assert!(message.contains("line 4"), "{message}");
        let message = self::message(MINIMAL, &["train.lr=true"]);
        assert!(message.contains("--set: train.lr must be a number, and is true"), "{message}");
    }

    #[test]
    fn keys_of_other_trainers_are_named_with_their_counterparts() {
        for (key, here) in [
            ("d_sae", "sae.features"),
            ("l1_coefficient", "train.l1"),
            ("train_batch_size_tokens", "train.batch"),
            ("lr_warm_up_steps", "train.l1_warmup"),
            ("l1_warm_up_steps", "train.l1_warmup"),
            ("lr_decay_steps", "train.lr_decay"),
            ("training_tokens", "train.tokens"),
            ("normalize_activations", "data.scale"),
            ("hook_name", "sae export"),
            ("dead_feature_window", "train.dead_window"),
            ("from_pretrained_path", "train.init_from"),
            ("n_checkpoints", "checkpoint.every"),
            ("dict_size", "sae.features"),
            ("activation_dim", "the width is that of the data"),
            ("l1_penalty", "train.l1"),
            ("warmup_steps", "train.l1_warmup"),
            ("save_dir", "run.dir"),
            ("steps", "train.tokens"),
            ("k", "there is no top-k"),
            ("num_latents", "sae.features"),
            ("expansion_factor", "sae.features"),
            ("micro_acc_steps", "train.batch"),
            ("save_every", "checkpoint.every"),
        ] {
            let (top, section) =
                (format!("{key} = 1\n{MINIMAL}"), MINIMAL.replace("[train]", &format!("[train]\n{key} = 1")));
            for (text, set, name) in [
                (&*top, None, key.to_owned()),
                (&*section, None, format!("train.{key}")),
                (MINIMAL, Some(format!("sae.{key}=1")), format!("sae.{key}")),
            ] {
                let message = message(text, &set.as_deref().into_iter().collect::<Vec<_>>());
                assert!(
                    message.contains(&format!("unknown key {name}, which ")) && message.contains(here),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let text = MINIMAL.replace("[train]\n", "[train]\nbacth = 3\n");
        let message = message(&text, &[]);
        assert!(message.contains("unknown key train.bacth: did you mean train.batch?"), "{message}");
        // What is missing for want of it is not told again.
        for (right, wrong, near) in
            [("features", "feature", "sae.features"), ("[sae]", "[sea]", "sae"), ("train =", "trian =", "data.train")]
        {
            let message = self::message(&MINIMAL.replace(right, wrong), &[]);
            assert!(message.contains(&format!("did you mean {near}?")) && !message.contains("missing"), "{message}");
        }
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
            "--set: train.lr must be a number, and is \\\"fast",
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
    fn what_is_refused_is_said_in_the_words_of_recipes() {
        for (set, says) in [
            ("train=4", "train must be a table of keys, and is "),
            ("data.skip=4", "data.skip must be a list, and is "),
            ("data.filter.positions=[\"a\"]", "data.filter.positions.0 must be a whole number, and is \"a\""),
            ("data.synth.width=1.5", "data.synth.width must be a whole number, at least 0, such as 1_000_000 or 1e6"),
            ("train.precision=f16", "train.precision must be one of auto, f32, mixed, bf16-sr, and is f16"),
            ("data.eval=", "data.eval must be a path or URL, or [] for none, and is empty"),
            ("run.dir=", "run.dir must be a path or URL, and is empty"),
            ("train.init_from=", "train.init_from must be a path or URL, or left out, and is empty"),
        ] {
            let message = message(MINIMAL, &[set]);
            assert!(message.contains(&format!("{says:?}").trim_matches('"').to_owned()), "{set}: {message}");
        }
        let recipe = read_text(MINIMAL, &["data.synth.width=1e3"]).expect("a recipe");
        assert_eq!(recipe.data.synth.map(|spec| spec.width), Some(1000));
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
