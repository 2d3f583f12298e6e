//! What may change between the starts of a run.

use std::collections::BTreeMap;

use super::Recipe;
use crate::Error;

/// Keys that a resumed run may change: they decide where things are and how fast they go, not what comes out.
const FREE_ON_RESUME: [&str; 20] = [
    "data.train",
    "data.eval",
    "data.prefetch_bytes",
    "data.threads",
    "data.skip",
    "data.eval_skip",
    "data.synth",
    "data.synth_eval_rows",
    "train.threads",
    "train.dense_bytes",
    "train.init_from",
    "train.init_space",
    "run.dir",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.best",
    "checkpoint.buffer_bytes",
    "eval.every",
    "log.every",
    "log.rows",
];

impl Recipe {
    /// Refuses to resume `saved` with `self` when a key differs that decides the result.
    ///
    /// # Errors
    /// [`Error::Recipe`] that lists each such key with both values.
    pub fn check_resumes(&self, saved: &Recipe) -> Result<(), Error> {
        let lists = [
            ("data.skip", &self.data.skip, &saved.data.skip),
            ("data.eval_skip", &self.data.eval_skip, &saved.data.eval_skip),
        ];
        for (key, now, then) in lists {
            if let Some(lost) = then.iter().find(|entry| !now.contains(entry)) {
                return Err(Error::Recipe(format!(
                    "{key} may only grow when a run is resumed, and \"{lost}\" is gone from it: put it back"
                )));
            }
        }
        let (now, then) = (self.keys(), saved.keys());
        let free = |key: &str| {
            FREE_ON_RESUME
                .iter()
                .any(|free| key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        };
        let absent = "(not set)".to_owned();
        // A section that is there brings its lists along, and one that is empty says nothing.
        let is_set = |value: &&String| *value != "[]";
        let differing: Vec<String> = now
            .keys()
            .chain(then.keys().filter(|key| !now.contains_key(*key)))
            .filter(|key| !free(key) && now.get(*key).filter(is_set) != then.get(*key).filter(is_set))
            .map(|key| {
                let value = |map: &BTreeMap<String, String>| map.get(key).unwrap_or(&absent).clone();
                format!("  {key}: the run has {}, the recipe says {}", value(&then), value(&now))
            })
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::Recipe(format!(
            "the run cannot be resumed with another recipe; these keys decide its result:\n{}\nset them back, or start \
             a new run in another run.dir",
            differing.join("\n")
        )))
    }

    /// `section.key → value` of everything that is set.
    pub(crate) fn keys(&self) -> BTreeMap<String, String> {
        fn walk(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
            match value {
                toml::Value::Table(table) => {
                    for (key, value) in table {
                        walk(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, out);
                    }
                }
                leaf => {
                    out.insert(prefix.to_owned(), leaf.to_string());
                }
            }
        }
        let mut out = BTreeMap::new();
        let value = toml::Value::try_from(self).expect("a recipe has only string keys and plain values");
        walk("", &value, &mut out);
        out
    }
}
