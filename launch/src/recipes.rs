//! From a TOML file and `--set` to a validated recipe.

use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::{Figment, Profile};
use trainer::recipe::Recipe;

use crate::failure::Failure;

/// Reads a recipe; later `sets` win over earlier ones and over the file.
pub fn read(path: &str, sets: &[String]) -> Result<Recipe, Failure> {
    if !std::path::Path::new(path).is_file() {
        return Err(Failure::arguments(format!("{path}: no such recipe; launch/recipes/ has some to start from")));
    }
    let mut figment = Figment::from(Toml::file_exact(path));
    for set in sets {
        let (key, value) = set
            .split_once('=')
            .ok_or_else(|| Failure::arguments(format!("--set {set}: write KEY=VALUE, such as --set train.l1=8")))?;
        figment = figment.merge(Serialized::from(nested(key.trim(), parse(value.trim())), Profile::Default));
    }
    let recipe: Recipe = figment.extract().map_err(|error| explain(path, error))?;
    recipe.validate()?;
    Ok(recipe)
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

/// Every problem of a recipe in words, with the nearest known key for an unknown one.
fn explain(path: &str, errors: figment::Error) -> Failure {
    let lines: Vec<String> = errors.into_iter().map(|error| explain_one(path, &error)).collect();
    Failure::arguments(lines.join("\n"))
}

fn explain_one(path: &str, error: &figment::Error) -> String {
    // A key that came by --set has no file as its source.
    let from_file = error.metadata.as_ref().is_none_or(|metadata| metadata.name.contains("TOML"));
    let place = if from_file { path } else { "--set" };
    let parent = error.path.join(".");
    let full = |key: &str| if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") };
    match &error.kind {
        Kind::UnknownField(key, known) => {
            let nearest = known
                .iter()
                .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
                .min()
                .filter(|(distance, candidate)| *distance <= candidate.len().max(key.len()) / 2);
            let hint = match nearest {
                // The path of an unknown key ends with the key itself or with its table, depending on the source.
                Some((_, candidate)) => format!("did you mean {candidate}?"),
                None => format!("known here: {}", known.join(", ")),
            };
            let unknown = if error.path.last() == Some(key) { parent.clone() } else { full(key) };
            format!("{place}: unknown key {unknown}: {hint}")
        }
        Kind::MissingField(key) => {
            format!("{path}: {} is missing: launch/recipes/README.md says what it may be", full(key))
        }
        kind if parent.is_empty() => format!("{place}: {kind}"),
        kind => format!("{place}: {parent}: {kind}"),
    }
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
