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

/// Keys that a resumed run may change and that decide what a new one comes to, or what it is measured on.
const DECIDE_A_NEW_RUN: [&str; 3] = ["train.init_from", "train.init_space", "data.eval_skip"];

/// A key that two recipes set to different values, as TOML writes them, or `(not set)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differing {
    /// `section.key`.
    pub key: String,
    /// Its value in the one.
    pub now: String,
    /// Its value in the other.
    pub then: String,
}

/// Whether a resumed run may change the key.
fn is_free(key: &str) -> bool {
    let is_within = |free: &str| key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    FREE_ON_RESUME.iter().any(|free| is_within(free))
}

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
        let differing: Vec<String> = self
            .differing_keys(saved)
            .into_iter()
            .map(|Differing { key, now, then }| format!("  {key}: the run has {then}, the recipe says {now}"))
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

    /// The keys that a resumed run may not change and that differ from those of `other`, in which each is set or not.
    pub fn differing_keys(&self, other: &Recipe) -> Vec<Differing> {
        let (now, then) = (self.keys(), other.keys());
        // A section that is there brings its lists along, and one that is empty says nothing.
        let is_set = |value: &&String| *value != "[]";
        let value = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or("(not set)".to_owned());
        now.keys()
            .chain(then.keys().filter(|key| !now.contains_key(*key)))
            .filter(|key| !is_free(key) && now.get(*key).filter(is_set) != then.get(*key).filter(is_set))
            .map(|key| Differing { key: key.clone(), now: value(&now, key), then: value(&then, key) })
            .collect()
    }

    /// `section.key → value` of everything that is set and that a resumed run may not change.
    pub fn deciding_keys(&self) -> BTreeMap<String, String> {
        self.keys().into_iter().filter(|(key, value)| !is_free(key) && value != "[]").collect()
    }

    /// The same with what may change once the run has begun: by these keys two new runs are the same, on the same data. A bad row that
    /// `data.skip` leaves out makes no other run.
    pub fn keys_of_a_new_run(&self) -> BTreeMap<String, String> {
        let decides = |key: &str| !is_free(key) || DECIDE_A_NEW_RUN.contains(&key);
        self.keys().into_iter().filter(|(key, value)| decides(key) && value != "[]").collect()
    }

    /// `section.key → value` of everything that is set.
    pub fn keys(&self) -> BTreeMap<String, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists that may only grow.
    const GROWING: [&str; 2] = ["data.skip", "data.eval_skip"];

    /// A recipe that sets every key.
    const ALL: &str = "
        [data]
        train = ['t']
        column = 'c'
        eval = ['e']
        order = 'direct'
        window_bytes = 1000
        seed = 1
        order_rows = 1000
        scale = 0.5
        prefetch_bytes = 1000
        threads = 2
        skip = ['a.parquet:1']
        eval_skip = ['e.parquet:1']
        synth_eval_rows = 10
        [data.filter]
        norm_min = 0.5
        norm_max = 9.5
        finite = true
        positions = [0]
        token_ids = [1]
        [data.synth]
        features = 16
        [sae]
        features = 128
        decoder_norm = 0.2
        bias_init = 'zero'
        bias_init_l0 = 30.0
        [train]
        tokens = 1000
        batch = 10
        lr = 0.5
        l1 = 0.5
        l1_warmup = 0.5
        lr_decay = 0.5
        clip = 0.5
        seed = 1
        adam = 'dense'
        precision = 'f32'
        moments = 'f32'
        init_from = 'i'
        init_space = 'raw'
        dead_window = 100
        threads = 2
        dense_bytes = 1000
        [run]
        dir = 'r'
        [checkpoint]
        every = 10
        keep = 2
        best = true
        buffer_bytes = 1000
        [eval]
        every = 10
        rows = 100
        [log]
        every = 10
        rows = true
    ";

    /// Another value of the same type.
    fn other(key: &str, value: &toml::Value) -> toml::Value {
        use toml::Value::{Array, Boolean, Float, Integer, String};
        let words = [
            ("data.order", "striped"),
            ("sae.bias_init", "calibrated"),
            ("train.adam", "touched"),
            ("train.precision", "mixed"),
            ("train.moments", "bf16"),
            ("train.init_space", "normalized"),
            ("data.synth.dtype", "bf16"),
        ];
        match value {
            Integer(value) => Integer(value + 1),
            Float(value) => Float(value + 0.25),
            Boolean(value) => Boolean(!value),
            // Entries of lists of rows are never taken out.
            Array(values) if GROWING.contains(&key) => {
                Array([values.clone(), vec![String("b.parquet:2".into())]].concat())
            }
            Array(values) => Array(values.iter().map(|value| other(key, value)).collect()),
            String(value) => {
                let word = words.iter().find(|(of, _)| *of == key).map(|(_, word)| (*word).to_owned());
                String(word.unwrap_or_else(|| format!("{value}x")))
            }
            value => value.clone(),
        }
    }

    /// Every key is refused by its name when a run goes on with another value, but those of this table.
    #[test]
    fn every_key_is_refused_or_free_on_resume() {
        let saved: Recipe = toml::from_str(ALL).expect("a recipe");
        let keys = saved.keys();
        let free: std::collections::BTreeSet<&str> = FREE_ON_RESUME.into();
        assert!(free.iter().all(|free| keys.keys().any(|key| key.starts_with(free))), "a key of the table is none");
        for key in keys.keys() {
            let mut table = toml::Value::try_from(&saved).expect("a table");
            let mut at = &mut table;
            for part in key.split('.') {
                at = at.get_mut(part).expect("a key");
            }
            *at = other(key, at);
            let changed: Recipe = table.try_into().unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_ne!(changed, saved, "{key} changes nothing");
            let is_free = free.contains(key.as_str()) || key.starts_with("data.synth.");
            match changed.check_resumes(&saved) {
                Ok(()) => assert!(is_free, "{key} may not change"),
                Err(error) => assert!(!is_free && error.to_string().contains(&format!("  {key}: ")), "{key}: {error}"),
            }
            // Setting a key that was not set, or the other way round, is a change too.
            let back = saved.check_resumes(&changed);
            assert_eq!(back.is_ok(), is_free && !GROWING.contains(&key.as_str()), "{key}");
        }
        assert_eq!(keys.len() - keys.keys().filter(|key| key.starts_with("data.synth.")).count(), 47, "{keys:?}");
    }
}
