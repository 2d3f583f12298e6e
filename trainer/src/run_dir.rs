//! The folder of a run: who may use it, and where its files lie.
//!
//! Checkpoints and the summary go to the store that `run.dir` names. Files that grow (metrics.jsonl, TensorBoard events)
//! need a file system: for a run in object storage they are kept in a local folder and copied over with every checkpoint.
//!
//! On one machine a lock keeps a second process out. Between machines a run in object storage is begun by one alone, since
//! config.toml is only ever created; nothing keeps two from resuming it at once. They cannot damage it, because each save
//! is an attempt of its own and commits last, and neither removes what the other has committed since, but they do the work
//! twice and the later copy of metrics.jsonl stays.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use loader::Store;
use xxhash_rust::xxh3::xxh3_64;

use crate::ranks::note;
use crate::recipe::Recipe;
use crate::{Error, Message};

/// The recipe of the first start: a folder that has it holds a run.
const CONFIG: &str = "config.toml";

/// An empty object of a moment.
const PROBE: &str = "dry-run.probe";

/// A run's folder, claimed by this process.
#[derive(Debug)]
pub struct RunDir {
    /// Where checkpoints go.
    pub store: Store,
    local: PathBuf,
    remote: bool,
    new: bool,
    /// Whether the run in the folder is the one of this process: resumed or begun by it.
    ours: AtomicBool,
    /// Held for the life of the process: the operating system gives it back whatever happens.
    _lock: File,
}

impl RunDir {
    /// Claims the folder for a new run, or with `resume` for the run that it holds.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process uses it; [`Error::HoldsRun`] when it holds a run and `resume` is false, [`Error::NoRun`] in
    /// the reverse case; [`Error::Recipe`] when it holds a run of another recipe.
    pub fn claim(store: &Store, recipe: &Recipe, resume: bool) -> Result<RunDir, Error> {
        check_links(store)?;
        let (local, remote) = match store.local_path() {
            Some(path) => (path.to_owned(), false),
            None => (spool(store.url()), true),
        };
        let cannot_write = |source| Error::CannotWrite { path: local.display().to_string(), source };
        fs::create_dir_all(&local).map_err(cannot_write)?;
        let lock = File::create(local.join("lock")).map_err(cannot_write)?;
        if lock.try_lock().is_err() {
            return Err(Error::InUse { place: store.url().to_owned() });
        }
        // Looked at under the lock: what another process began before it let go of the folder is seen.
        check(store, recipe, resume)?;
        let run_dir =
            RunDir { store: store.clone(), local, remote, new: !resume, ours: AtomicBool::new(resume), _lock: lock };
        if remote {
            // It may hold the files of a run that was at this URL before. Of this one nothing is lost: what is not yet in the
            // store belongs to steps that are made again.
            run_dir.empty_spool()?;
        }
        if remote && resume {
            run_dir.fetch("metrics.jsonl")?;
            run_dir.fetch("rows.jsonl")?;
        }
        Ok(run_dir)
    }

    /// Leaves the recipe in the folder of a new run, which makes it one. Called once nothing is left that a wrong key could
    /// break: a start that fails leaves the folder free.
    ///
    /// # Errors
    /// [`Error::RunDir`] when another machine was faster; those of the store.
    pub fn begin(&self, recipe: &Recipe) -> Result<(), Error> {
        if self.new && !self.store.put_new(CONFIG, recipe.to_toml().into_bytes())? {
            return Err(already_holds_a_run(&self.store));
        }
        self.ours.store(true, Ordering::Relaxed);
        // What an earlier start failed of no longer holds.
        let errors = self.store.list("")?.into_iter().filter(|entry| note::is_note(&entry.key));
        Ok(errors.into_iter().try_for_each(|entry| self.store.delete(&entry.key))?)
    }

    /// Whether the folder holds the run of this process. Before [`RunDir::begin`] it may be another machine's, which wants no
    /// word of how this start failed.
    pub fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Relaxed)
    }

    /// Where files that grow are kept.
    pub fn local(&self) -> &Path {
        &self.local
    }

    /// Copies the files that grow to the store, when they do not lie there already.
    ///
    /// # Errors
    /// Those of the store; [`Error::CannotWrite`] when a local file cannot be read back.
    pub fn publish(&self) -> Result<(), Error> {
        if !self.remote {
            return Ok(());
        }
        for (name, path) in self.growing()? {
            let unreadable = |source| Error::CannotWrite { path: path.display().to_string(), source };
            self.store.put(&name, fs::read(&path).map_err(unreadable)?)?;
        }
        Ok(())
    }

    /// Names and paths of the local files that grow.
    fn growing(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let unreadable = |source| Error::CannotWrite { path: self.local.display().to_string(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.local).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(".jsonl") || name.starts_with("events.") {
                files.push((name.to_owned(), path));
            }
        }
        Ok(files)
    }

    fn empty_spool(&self) -> Result<(), Error> {
        self.growing()?.into_iter().try_for_each(|(_, path)| {
            fs::remove_file(&path).map_err(|source| Error::CannotWrite { path: path.display().to_string(), source })
        })
    }

    fn fetch(&self, name: &str) -> Result<(), Error> {
        match self.store.get(name) {
            Ok(bytes) => {
                let path = self.local.join(name);
                fs::write(&path, &bytes)
                    .map_err(|source| Error::CannotWrite { path: path.display().to_string(), source })
            }
            Err(loader::Error::NotFound { .. }) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }
}

/// That the folder is free for a new run of `recipe`; with `resume`, that it holds a run that `recipe` may go on with.
///
/// # Errors
/// [`Error::RunDir`] when it is not; [`Error::Recipe`] when it holds a run of another recipe.
pub fn check(store: &Store, recipe: &Recipe, resume: bool) -> Result<(), Error> {
    check_links(store)?;
    let saved = match store.get(CONFIG) {
        Ok(bytes) => Some(bytes),
        Err(loader::Error::NotFound { .. }) => None,
        Err(other) => return Err(other.into()),
    };
    match (&saved, resume) {
        (None, false) => Ok(()),
        (None, true) => Err(Error::NoRun { place: store.url().to_owned() }),
        (Some(_), false) => Err(already_holds_a_run(store)),
        (Some(bytes), true) => recipe.check_resumes(&parse(bytes, store.url())?),
    }
}

/// That no link on the way to the folder leads nowhere: a disk that is not mounted, mostly, where a run may lie already.
fn check_links(store: &Store) -> Result<(), Error> {
    let leads_nowhere = |path: &&Path| path.is_symlink() && !path.exists();
    let Some(link) = store.local_path().and_then(|folder| folder.ancestors().find(leads_nowhere)) else {
        return Ok(());
    };
    let target = fs::read_link(link).unwrap_or_default();
    Err(Error::RunDir(
        format!(
            "run.dir: {} is a link to {}, which does not exist: mount or make that folder, or remove the link",
            link.display(),
            target.display()
        )
        .into(),
    ))
}

/// That a run could write to the folder, and to the one for files that grow. A file without a name, which the system removes
/// whatever happens, tells it of a file system; an object that is removed at once tells it of others.
///
/// # Errors
/// [`Error::CannotWrite`] and those of the store.
pub fn check_writable(store: &Store) -> Result<(), Error> {
    match store.local_path() {
        Some(folder) => check_folder(folder),
        None => {
            check_folder(&spool(store.url()))?;
            store.put(PROBE, Vec::new())?;
            Ok(store.delete(PROBE)?)
        }
    }
}

/// The same of a local folder, or where there is none of the nearest above it, in which it would be made.
fn check_folder(folder: &Path) -> Result<(), Error> {
    // A dangling link is there, and nothing can be made behind it.
    let there = folder.ancestors().find(|folder| folder.symlink_metadata().is_ok());
    let there = there.filter(|there| !there.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || tempfile::tempfile_in(there)?.write_all(&[0; 4096]);
    write().map_err(|source| Error::CannotWrite { path: folder.display().to_string(), source })
}

/// Whether a run was begun in the folder.
///
/// # Errors
/// Those of the store.
pub fn holds_a_run(store: &Store) -> Result<bool, Error> {
    Ok(store.head(CONFIG)?.is_some())
}

fn already_holds_a_run(store: &Store) -> Error {
    Error::HoldsRun { place: store.url().to_owned() }
}

fn parse(bytes: &[u8], place: &str) -> Result<Recipe, Error> {
    toml::from_slice(bytes).map_err(|error| {
        let text = format!("{place}/{CONFIG} cannot be read, by this version at least: {}", error.message());
        Error::RunDir(Message::of(text, error))
    })
}

/// A local folder for the growing files of a run elsewhere, the same for the same URL and for no other: a readable end
/// of the URL, and its hash.
fn spool(url: &str) -> PathBuf {
    let name: String = url.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let readable = &name[name.len().saturating_sub(80)..];
    std::env::temp_dir().join(spools()).join(format!("{readable}-{:016x}", xxh3_64(url.as_bytes())))
}

/// The folder of all spools: one for each user, since what one makes another may not write to. Without /proc (macOS,
/// Windows) the folder for temporary files is the user's own.
fn spools() -> String {
    #[cfg(unix)]
    if let Ok(process) = fs::metadata("/proc/self") {
        return format!("sae-runs-{}", std::os::unix::fs::MetadataExt::uid(&process));
    }
    "sae-runs".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(dir: &Path) -> Recipe {
        let text = format!("[data]\ntrain = 'x'\n[sae]\nfeatures = 1\n[run]\ndir = '{}'\n", dir.display());
        toml::from_str(&text).expect("a recipe")
    }

    #[test]
    fn a_link_that_leads_nowhere_is_named_with_its_target() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("not-mounted");
        std::os::unix::fs::symlink(&target, folder.path().join("runs")).expect("a link");
        let store = Store::open(folder.path().join("runs/a").to_str().expect("a plain name")).expect("a folder");
        let said = check_links(&store).expect_err("it leads nowhere").to_string();
        assert!(said.contains("runs is a link to") && said.contains("not-mounted, which does not exist"), "{said}");
        fs::create_dir(&target).expect("a folder");
        check_links(&store).expect("it leads somewhere");
    }

    #[test]
    fn runs_at_different_urls_have_different_spools() {
        assert_eq!(spool("s3://bucket/a/b"), spool("s3://bucket/a/b"));
        assert_ne!(spool("s3://bucket/a-b"), spool("s3://bucket/a/b"));
        let long = format!("s3://bucket/{}", "é/".repeat(400));
        assert!(spool(&long).file_name().is_some_and(|name| name.len() < 255));
    }

    #[test]
    fn a_spool_is_emptied_of_what_grows() {
        let folder = tempfile::tempdir().expect("a folder");
        let recipe = recipe(folder.path());
        let store = Store::open(&recipe.run.dir).expect("a folder");
        let run_dir = RunDir::claim(&store, &recipe, false).expect("it is free");
        for name in ["metrics.jsonl", "rows.jsonl", "events.out.tfevents.1.sae"] {
            fs::write(folder.path().join(name), "old").expect("written");
        }
        assert_eq!(run_dir.growing().expect("a folder").len(), 3);
        run_dir.empty_spool().expect("emptied");
        assert_eq!(run_dir.growing().expect("a folder").len(), 0);
        assert!(folder.path().join("lock").exists());
    }

    /// The lock of one machine does not reach another: config.toml itself decides who begins.
    #[test]
    fn a_run_is_begun_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let recipe = recipe(folder.path());
        let elsewhere = Store::open(&recipe.run.dir).expect("a folder");
        let run_dir = RunDir::claim(&elsewhere, &recipe, false).expect("it is free");
        elsewhere.put(CONFIG, recipe.to_toml().into_bytes()).expect("written");
        let error = run_dir.begin(&recipe).expect_err("another machine was faster").to_string();
        assert!(error.contains("already holds a run"), "{error}");
        assert!(!run_dir.is_ours(), "no note of this belongs into the other's run");
    }
}
