//! What TensorBoard's tab HParams compares runs by: the recipe at the start of a run, and that it came to its end.
//!
//! The messages are `HParamsPluginData` of the plugin's plugin_data.proto. A summary of the *experiment*, which would say what columns
//! the tab has, is not written: TensorBoard takes the first that it finds, so a key that only another run in the same folder has would
//! be missing. Without one it looks at the keys and curves of all runs.

use std::io;

use serde_json::Value;

use crate::recipe::Recipe;
use crate::report::events::{EventWriter, now, put_bytes, put_double, put_integer};

/// The plugin's name, and the first part of its tags.
const PLUGIN: &str = "hparams";

/// Keys of a run that decide its result, by their names in the recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct HParams(Vec<(String, Value)>);

impl HParams {
    /// `data`, `sae` and `train` of `recipe`, and the width of its rows.
    pub fn of(recipe: &Recipe, width: usize) -> Self {
        let mut values = vec![("width".to_owned(), width.into())];
        // As a recipe is written: numbers have the digits that they were given in.
        let recipe: Value = toml::from_str(&recipe.to_toml()).unwrap_or_default();
        for section in ["data", "sae", "train"] {
            flatten(section, &recipe[section], &mut values);
        }
        HParams(values)
    }

    /// Writes them, at the start of a process.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(&self, events: &mut EventWriter) -> io::Result<()> {
        const SESSION_START_INFO: u64 = 3;
        let mut info = Vec::new();
        for (name, value) in &self.0 {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, name.as_bytes());
            put_bytes(&mut entry, 2, &encoded(value));
            put_bytes(&mut info, 1, &entry);
        }
        put_double(&mut info, 5, now());
        let mut data = Vec::new();
        put_bytes(&mut data, SESSION_START_INFO, &info);
        events.plugin("_hparams_/session_start_info", PLUGIN, &data)
    }

    /// Writes that the run is done. One that failed or was stopped may go on, and has no end.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn end(events: &mut EventWriter) -> io::Result<()> {
        const SESSION_END_INFO: u64 = 4;
        const SUCCESS: u64 = 1;
        let mut info = Vec::new();
        put_integer(&mut info, 1, SUCCESS);
        put_double(&mut info, 2, now());
        let mut data = Vec::new();
        put_bytes(&mut data, SESSION_END_INFO, &info);
        events.plugin("_hparams_/session_end_info", PLUGIN, &data)
    }
}

/// The leaves of a recipe, or of a summary, by their names. A list is one value: the tab knows none.
pub(crate) fn flatten(prefix: &str, value: &Value, values: &mut Vec<(String, Value)>) {
    match value {
        Value::Null => {}
        Value::Object(object) => {
            object.iter().for_each(|(key, value)| flatten(&format!("{prefix}.{key}"), value, values));
        }
        Value::Array(list) => {
            let words: Vec<String> =
                list.iter().map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned)).collect();
            values.push((prefix.to_owned(), words.join(", ").into()));
        }
        leaf => values.push((prefix.to_owned(), leaf.clone())),
    }
}

/// A `google.protobuf.Value`.
fn encoded(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Bool(truth) => put_integer(&mut out, 4, u64::from(*truth)),
        Value::Number(number) => put_double(&mut out, 2, number.as_f64().unwrap_or(f64::NAN)),
        other => put_bytes(&mut out, 3, other.as_str().unwrap_or_default().as_bytes()),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_names_in_the_recipe() {
        let text =
            "[data]\ntrain = ['a', 'b']\n[data.filter]\npositions = [0, 1]\n[sae]\nfeatures = 128\n[run]\ndir = 'x'\n";
        let recipe: Recipe = toml::from_str(text).expect("a recipe");
        let HParams(values) = HParams::of(&recipe, 64);
        let value = |name: &str| values.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        assert_eq!(value("width"), Some(64.into()));
        assert_eq!(value("sae.features"), Some(128.into()));
        assert_eq!((value("train.l1"), value("sae.decoder_norm")), (Some(5.0.into()), Some(0.1.into())));
        assert_eq!((value("data.train"), value("data.filter.positions")), (Some("a, b".into()), Some("0, 1".into())));
        assert_eq!(value("run.dir"), None);
    }
}
