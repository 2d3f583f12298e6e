//! What a command line names as a sweep: its file, or the folder of one that was submitted, which holds all configurations that ever were.

use std::path::Path;

use trainer::recipe::Recipe;
use trainer::synthesis;

use super::folder::{Configuration, Folder};
use super::id::Identities;
use super::spec::Spec;
use crate::failure::Failure;

/// A sweep by its name.
#[derive(Debug)]
pub struct Named {
    /// Where it lies.
    pub folder: Folder,
    /// The recipes of its configurations.
    pub recipes: Vec<Recipe>,
    by: By,
}

#[derive(Debug)]
enum By {
    File(Box<Spec>),
    Folder(Vec<Configuration>),
}

impl Named {
    /// Reads it, and writes nothing. `dir` is the folder over that of the file; later `sets` change the file's base recipe.
    ///
    /// # Errors
    /// Those of reading the file; [`trainer::Exit::Arguments`] where the folder has a sweep of another base recipe, or `dir` or `sets` come with a
    /// folder; [`trainer::Exit::Data`] where a folder has no sweep; those of the store.
    pub fn read(path: &str, dir: Option<&str>, sets: &[String]) -> Result<Named, Failure> {
        if !is_folder(path) {
            let spec = Spec::read(path, dir, sets)?;
            let folder = Folder::open(&spec.dir)?;
            folder.check(&spec)?;
            return Ok(Named { folder, recipes: spec.configurations.clone(), by: By::File(Box::new(spec)) });
        }
        if dir.is_some() || !sets.is_empty() {
            return Err(Failure::arguments(format!(
                "{path} is the folder of a sweep, whose configurations are as they were submitted: leave --dir and --set out, or name the \
                 sweep's file"
            )));
        }
        let folder = Folder::open(path)?;
        let submitted = folder.submitted()?;
        let recipes = submitted.iter().map(|one| one.recipe.clone()).collect();
        Ok(Named { folder, recipes, by: By::Folder(submitted) })
    }

    /// Its configurations, whose data are there. Those of a file are left in the folder, where what is there already stays as it is.
    ///
    /// # Errors
    /// Those of opening the data; [`trainer::Exit::Arguments`] where two configurations of a file differ in nothing that decides results, one
    /// wants more rows than there are, or the folder's were submitted on other data; those of the store.
    pub fn submit(self, data: &mut Identities) -> Result<(Folder, Vec<Configuration>), Failure> {
        let configurations = match self.by {
            By::File(spec) => {
                let configurations = self.folder.configurations(&spec, data)?;
                self.folder.submit(&spec, &configurations, data)?;
                configurations
            }
            By::Folder(submitted) => {
                self.folder.check_submitted(&submitted, data)?;
                submitted
            }
        };
        Ok((self.folder, configurations))
    }

    /// Of each of its configurations, whether it is done; none is whose data are yet to be made.
    ///
    /// # Errors
    /// Those of [`Named::submit`], though nothing is written.
    pub fn done(&self, data: &mut Identities) -> Result<Vec<bool>, Failure> {
        for recipe in self.recipes.iter().filter(|recipe| recipe.data.synth.is_some()) {
            if !synthesis::to_make(recipe)?.is_empty() {
                return Ok(vec![false; self.recipes.len()]);
            }
        }
        let configurations = match &self.by {
            By::File(spec) => {
                let configurations = self.folder.configurations(spec, data)?;
                self.folder.check_data(spec, data)?;
                configurations
            }
            By::Folder(submitted) => {
                self.folder.check_submitted(submitted, data)?;
                submitted.clone()
            }
        };
        let files = self.folder.look()?;
        Ok(configurations.iter().map(|one| files.get(&one.id).is_some_and(|files| files.has_summary)).collect())
    }
}

/// Whether a text names a folder: files of sweeps are on this machine's disk.
pub fn is_folder(path: &str) -> bool {
    path.contains("://") || Path::new(path).is_dir()
}
