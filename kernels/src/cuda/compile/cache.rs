//! Compiled kernels on disk, so that only the first start on a machine compiles.
//!
//! A file is written under a name of its own, forced to the disk and renamed, and its name tells everything that it was made
//! from: processes that start at once write the same file twice at worst, and nobody reads half of one. What is damaged or
//! foreign is made again. A cache that cannot be used costs time and stops nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::cubin::Label;

/// The environment variable that names its folder.
const FOLDER: &str = "SAE_CACHE_DIR";

/// A folder of cubins.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// In this folder; it need not exist.
    pub fn at(folder: PathBuf) -> Self {
        Cache { folder }
    }

    /// `SAE_CACHE_DIR`, else `sae/cubins` where caches belong (`XDG_CACHE_HOME`, `~/.cache`); `None` when there is no such
    /// place.
    pub fn usual() -> Option<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let caches = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        set(FOLDER).or_else(|| Some(caches()?.join("sae/cubins"))).map(Cache::at)
    }

    /// The image with exactly this label.
    pub fn get(&self, label: &Label) -> Option<Vec<u8>> {
        self.read(&self.folder.join(label.file_name()), |found| found == label)
    }

    /// An image with this label, the compiler aside: the newest of its versions by name. For machines without one.
    pub fn get_of_any_compiler(&self, label: &Label) -> Option<Vec<u8>> {
        let prefix = label.prefix();
        let entries = fs::read_dir(&self.folder).ok()?.flatten().map(|entry| entry.path());
        let mut paths: Vec<PathBuf> = entries.filter(|path| is_cubin(path, &prefix)).collect();
        paths.sort();
        let same = |found: &Label| found.prefix() == prefix;
        paths.iter().rev().find_map(|path| self.read(path, same))
    }

    /// Keeps an image. What goes wrong is a warning: the image is at hand, and only the next start takes longer.
    pub fn put(&self, label: &Label, image: &[u8]) {
        if let Err(error) = write(&self.folder, &label.file_name(), label, image) {
            let folder = self.folder.display();
            tracing::warn!(
                "{folder}: compiled kernels cannot be kept: {error}: every start compiles them; {FOLDER} names another folder"
            );
        }
    }

    fn read(&self, path: &Path, wanted: impl Fn(&Label) -> bool) -> Option<Vec<u8>> {
        let file = match fs::read(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::info!("{}: cannot be read: {error}: compiling it again", path.display());
                return None;
            }
        };
        let reason = match Label::unwrap(&file) {
            Ok((label, image)) if wanted(&label) => return Some(image.to_vec()),
            Ok(_) => "it holds another kernel".to_owned(),
            Err(reason) => reason,
        };
        tracing::info!("{}: {reason}: compiling it again", path.display());
        None
    }
}

fn is_cubin(path: &Path, prefix: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(prefix) && name.ends_with(".cubin")
}

/// Writes a labelled image under a name into a folder, which is made when it is not there.
///
/// # Errors
/// What the system says.
pub fn write(folder: &Path, name: &str, label: &Label, image: &[u8]) -> io::Result<()> {
    // Two threads or processes never share a temporary name; hosts may share a process id on one network folder, so the
    // file must also be new.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(folder)?;
    let (temporary, mut file) = loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".{name}.{}-{count}", std::process::id()));
        match File::create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && count < 1000 => {}
            other => break (path, other?),
        }
    };
    let written = file
        .write_all(&label.wrap(image))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, folder.join(name)));
    if written.is_err() {
        // Nothing more can be done about what is left.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(nvrtc: &str) -> Label {
        Label { name: "encode".into(), arch: "sm_90a".into(), nvrtc: nvrtc.into(), hash: 7 }
    }

    #[test]
    fn what_is_put_is_found_by_its_label_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::at(folder.path().join("new"));
        assert_eq!(cache.get(&label("13.0")), None);
        cache.put(&label("13.0"), b"image");
        cache.put(&label("13.2"), b"newer");
        assert_eq!(cache.get(&label("13.0")), Some(b"image".to_vec()));
        assert_eq!(cache.get(&label("13.1")), None);
        assert_eq!(cache.get(&Label { hash: 8, ..label("13.0") }), None);
        assert_eq!(cache.get_of_any_compiler(&label("")), Some(b"newer".to_vec()));
        assert_eq!(cache.get_of_any_compiler(&Label { hash: 8, ..label("") }), None);
        let files = fs::read_dir(folder.path().join("new")).expect("a folder").count();
        assert_eq!(files, 2, "temporary files are gone");
    }

    #[test]
    fn damaged_and_foreign_files_count_as_absent() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::at(folder.path().to_owned());
        let path = folder.path().join(label("13.0").file_name());
        cache.put(&label("13.0"), b"image");
        let whole = fs::read(&path).expect("it was written");
        let foreign = Label { hash: 8, ..label("13.0") }.wrap(b"image");
        for content in [&whole[..whole.len() - 1], b"", b"\x7fELF", &foreign] {
            fs::write(&path, content).expect("written");
            assert_eq!(cache.get(&label("13.0")), None);
            assert_eq!(cache.get_of_any_compiler(&label("")), None);
        }
        cache.put(&label("13.0"), b"image");
        assert_eq!(cache.get(&label("13.0")), Some(b"image".to_vec()));
    }

    #[test]
    fn many_writers_leave_one_whole_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::at(folder.path().to_owned());
        let image = vec![3; 1 << 16];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        cache.put(&label("13.0"), &image);
                        assert_eq!(cache.get(&label("13.0")).as_ref(), Some(&image));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn a_cache_that_cannot_be_written_stops_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let cache = Cache::at(file.path().join("below a file"));
        cache.put(&label("13.0"), b"image");
        assert_eq!(cache.get(&label("13.0")), None);
    }
}
