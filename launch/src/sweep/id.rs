//! By what two configurations are the same: the keys of the recipe that decide results, the data by its identity and not by its place, and
//! the version of what decides numbers. Where a run's folder is, how often it saves and on how many threads it computes change no result, so
//! they are no part of it.

use std::collections::BTreeMap;

use loader::{Dataset, OpenOptions};
use trainer::NUMBERS;
use trainer::recipe::Recipe;
use xxhash_rust::xxh3::xxh3_64;

use crate::failure::Failure;

/// What rows a configuration is trained and measured on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of `data.train`.
    pub train: String,
    /// Of `data.eval`.
    pub eval: String,
    /// Rows of `data.train`.
    pub rows: u64,
}

/// The data of configurations, each opened once.
#[derive(Debug, Default)]
pub struct Identities {
    known: BTreeMap<(Vec<String>, Option<String>), (String, u64)>,
}

impl Identities {
    /// Those of a recipe.
    ///
    /// # Errors
    /// Those of opening the data.
    pub fn of(&mut self, recipe: &Recipe) -> Result<Identity, Failure> {
        let mut identity = |urls: &[String]| -> Result<(String, u64), Failure> {
            let key = (urls.to_vec(), recipe.data.column.clone());
            if let Some(known) = self.known.get(&key) {
                return Ok(known.clone());
            }
            let options = OpenOptions { column: recipe.data.column.clone(), ..OpenOptions::default() };
            let dataset = Dataset::open(urls, &options)?;
            let found = (dataset.identity(), dataset.rows());
            self.known.insert(key, found.clone());
            Ok(found)
        };
        let (train, rows) = identity(&recipe.data.train)?;
        Ok(Identity { train, eval: identity(&recipe.data.eval)?.0, rows })
    }
}

/// The id of a configuration, 16 hexadecimal digits: the name of its folder.
pub fn id(recipe: &Recipe, data: &Identity) -> String {
    let mut text = format!("numbers {NUMBERS}\ndata {}\nheld out {}\n", data.train, data.eval);
    for (key, value) in recipe.keys_of_a_new_run() {
        text += &format!("{key} = {value}\n");
    }
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

/// Whether a name is an id.
pub fn is_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_what_decides_results() {
        let recipe: Recipe = toml::from_str(
            "[data]\ntrain = 'a'\neval = 'b'\n[sae]\nfeatures = 64\n[train]\nlr = 1e-3\n[run]\ndir = 'x'\n",
        )
        .expect("a recipe");
        let data = Identity { train: "1".into(), eval: "2".into(), rows: 100 };
        let first = id(&recipe, &data);
        assert!(is_id(&first) && !is_id("claims") && !is_id("0123456789ABCDEF"), "{first}");
        let with = |change: &dyn Fn(&mut Recipe)| {
            let mut recipe = recipe.clone();
            change(&mut recipe);
            id(&recipe, &data)
        };
        assert_eq!(with(&|recipe| recipe.run.dir = "y".into()), first);
        assert_eq!(with(&|recipe| recipe.train.threads = Some(3)), first);
        assert_eq!(with(&|recipe| recipe.data.train = vec!["elsewhere".into()]), first);
        assert_eq!(with(&|recipe| recipe.log.every = 7), first);
        assert_ne!(with(&|recipe| recipe.train.lr = 2e-3), first);
        assert_ne!(with(&|recipe| recipe.train.seed = 1), first);
        assert_ne!(with(&|recipe| recipe.train.tokens = Some(1)), first);
        assert_ne!(with(&|recipe| recipe.train.init_from = Some("w".into())), first);
        assert_ne!(with(&|recipe| recipe.data.eval_skip = vec!["a.parquet:3".into()]), first);
        assert_eq!(with(&|recipe| recipe.data.skip = vec!["a.parquet:3".into()]), first);
        assert_ne!(id(&recipe, &Identity { eval: "3".into(), ..data.clone() }), first);
    }
}
