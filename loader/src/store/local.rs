//! Local files: atomic writes that survive a power cut, ranged reads into buffers that are reused.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::error::Flaw;
use crate::{Entry, Error, Result};

/// Files being written carry this in their name; listings leave them out.
const TEMPORARY: &str = ".loader-tmp-";
/// A temporary file that nobody wrote to for so long belongs to a writer that was killed.
const LEFTOVER: Duration = Duration::from_secs(3600);

/// How often a folder is made that another process removes, as empty, before a file is in it.
const REMADE: usize = 100;

pub(crate) fn read_error(path: &Path, e: std::io::Error) -> Error {
    let location = path.display().to_string();
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            Error::NotFound { location, hint: String::new(), source: Some(e.into()) }
        }
        ErrorKind::PermissionDenied => {
            Error::Denied { location, problem: "no permission to read".into(), source: Some(e.into()) }
        }
        ErrorKind::UnexpectedEof => Error::changed(location, Flaw::of("the file became shorter".into(), e)),
        _ => Error::Unreachable { location, problem: e.to_string(), source: Some(e.into()) },
    }
}

pub(crate) fn write_error(path: &Path, e: std::io::Error) -> Error {
    let problem = match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "the disk is full".to_string(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "no permission to write there".to_string(),
        _ => e.to_string(),
    };
    Error::CannotWrite { location: path.display().to_string(), problem, source: Some(e.into()) }
}

/// A file on its way to its final name, removed again unless it is committed.
#[derive(Debug)]
pub(crate) struct Pending {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl Pending {
    /// The file lies in `root` until then, not in the key's own folder: the root is written again, so that what a killed
    /// writer left there is found, while the folder of an attempt that was killed never is.
    pub(crate) fn create(root: &Path, key: &str) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = root.join(key);
        let folder = path.parent().unwrap_or(root);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let unique = format!("{TEMPORARY}{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (file, temporary) = in_folder(folder, || {
            // A folder below may be a link to another disk, and renaming stays on one.
            let place = if is_same_disk(root, folder) { root } else { folder };
            remove_leftovers(place);
            let temporary = place.join(&unique);
            Ok((File::create(&temporary)?, temporary))
        })
        .map_err(|e| write_error(folder, e))?;
        Ok(Pending { file, temporary, path, committed: false })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| write_error(&self.path, e))
    }

    /// Makes the file visible under its name, whole and on disk. With `exclusive`, false if the name was taken.
    pub(crate) fn commit(mut self, exclusive: bool) -> Result<bool> {
        let fail = |e: std::io::Error| write_error(&self.path, e);
        self.file.sync_all().map_err(fail)?;
        let folder = self.path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let named = || {
            // A hard link fails if the name exists: the atomic form of create-if-absent.
            if exclusive { fs::hard_link(&self.temporary, &self.path) } else { fs::rename(&self.temporary, &self.path) }
        };
        match in_folder(&folder, named) {
            Ok(()) => self.committed = !exclusive,
            Err(e) if exclusive && e.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(fail(e)),
        }
        match File::open(&folder).and_then(|f| f.sync_all()) {
            // The file is removed already, and its folder with it.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            synced => synced.map_err(|e| write_error(&folder, e))?,
        }
        Ok(true)
    }
}

/// What `make` gives where `folder` is there, which is made first. Another process may remove a folder that is empty, with those above it,
/// at any moment until a file is in it: both are tried again then.
fn in_folder<T>(folder: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let attempt = || make_folder(folder).and_then(|()| make());
    let removed = |made: &io::Result<T>| matches!(made, Err(e) if e.kind() == ErrorKind::NotFound);
    (0..REMADE).map(|_| attempt()).find(|made| !removed(made)).unwrap_or_else(attempt)
}

/// Of a folder that is removed meanwhile the standard library says that its name is taken, as of a file by this name: reading it tells.
fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir_all(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => fs::read_dir(folder).map(drop),
        made => made,
    }
}

fn is_same_disk(a: &Path, b: &Path) -> bool {
    let disk = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    // One that another process has removed meanwhile is made again.
    disk(b).is_none_or(|b| disk(a) == Some(b))
}

/// Removes what killed writers left behind in a folder. Young files may belong to a writer that is alive: on another machine
/// too, so that no process number tells.
fn remove_leftovers(folder: &Path) {
    // Best effort: a leftover costs space, and nothing reads it.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            continue;
        }
        let age = entry.metadata().ok().and_then(|m| m.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age > LEFTOVER) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes whatever was being written in a folder, however young.
pub(crate) fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|e| write_error(&path, e))?;
        }
    }
    Ok(())
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: the name is unique to this process and listings leave it out.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

pub(crate) fn put(root: &Path, key: &str, bytes: &[u8], exclusive: bool) -> Result<bool> {
    let mut pending = Pending::create(root, key)?;
    pending.write(bytes)?;
    pending.commit(exclusive)
}

/// A file that is open for reading.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    path: PathBuf,
}

impl OpenFile {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|e| read_error(&path, e))?;
        Ok(OpenFile { file, path })
    }

    /// Fills `out` from `offset`.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|e| read_error(&self.path, e))
    }

    fn metadata(&self) -> Result<fs::Metadata> {
        self.file.metadata().map_err(|e| read_error(&self.path, e))
    }

    /// Refuses a file that is no longer the one the dataset was opened with.
    pub(crate) fn check_unchanged(&self, size: u64, etag: Option<&str>) -> Result<()> {
        let m = self.metadata()?;
        let changed = |problem: String| Err(Error::changed(self.path.display().to_string(), problem));
        if m.len() != size {
            return changed(format!("{} bytes now, {size} before", m.len()));
        }
        if etag.is_some_and(|known| known != tag(&m)) {
            return changed("it was replaced or written to".into());
        }
        Ok(())
    }
}

/// The whole file.
pub(crate) fn read(path: &Path) -> Result<Bytes> {
    fs::read(path).map(Bytes::from).map_err(|e| read_error(path, e))
}

/// A part of a file, of exactly the asked length.
pub(crate) fn read_range(path: PathBuf, range: Range<u64>) -> Result<Bytes> {
    let file = OpenFile::open(path)?;
    let size = file.metadata()?.len();
    if range.end > size || range.start > range.end {
        let problem = format!("bytes {}..{} asked of a file of {size}", range.start, range.end);
        return Err(Error::changed(file.path.display().to_string(), problem));
    }
    let mut out = vec![0; (range.end - range.start) as usize];
    file.read_at(range.start, &mut out)?;
    Ok(out.into())
}

/// Removes a file, if it is there, and the folders between it and `root` that this leaves empty.
pub(crate) fn delete(root: &Path, key: &str) -> Result<()> {
    let path = root.join(key);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(write_error(&path, e)),
        _ => {
            // A folder that is not empty cannot be removed, and ends the walk.
            let _ = path.ancestors().skip(1).take_while(|folder| *folder != root).try_for_each(fs::remove_dir);
            Ok(())
        }
    }
}

/// What a listing says of a file by this key, if it is one: its size, and a tag that changes when the file does.
pub(crate) fn entry_of(path: &Path, key: String) -> Result<Option<Entry>> {
    match fs::metadata(path) {
        Ok(m) if m.is_file() => Ok(Some(Entry { key, size: m.len(), etag: Some(tag(&m)) })),
        Ok(_) => Ok(None),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(read_error(path, e)),
    }
}

/// Changes when the file does.
pub(crate) fn tag(m: &fs::Metadata) -> String {
    format!("{:x}-{:x}-{:x}", m.ino(), m.mtime().wrapping_mul(1_000_000_000).wrapping_add(m.mtime_nsec()), m.len())
}

/// A path without links, as far as it is there.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let there = |above: &Path| Some(above.canonicalize().ok()?.join(path.strip_prefix(above).ok()?));
    path.ancestors().find_map(there).unwrap_or_else(|| path.to_path_buf())
}

/// All files below a folder, with keys relative to `root`, sorted; where there are more than `most`, those of the folders that were looked into
/// until then. An absent folder is empty.
pub(crate) fn list(root: &Path, folder: &str, most: usize) -> Result<Vec<Entry>> {
    let (mut pending, mut found) = (vec![root.join(folder)], Vec::new());
    while let Some(folder) = pending.pop().filter(|_| found.len() <= most) {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(e) => return Err(read_error(&folder, e)),
        };
        for entry in entries {
            let path = entry.map_err(|e| read_error(&folder, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
            // Links are followed for files (a model hub's cache consists of them), not for folders: those can form circles.
            let is_link = path.is_symlink();
            if path.is_dir() {
                if !is_link {
                    pending.push(path);
                }
            } else if !name.starts_with(TEMPORARY) {
                let key = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().to_string();
                found.extend(entry_of(&path, key)?);
            }
        }
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}
