//! A local folder as a data set sees it: links are followed, to folders too, and what cannot belong to it is not looked into.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::rule::{Rule, Verdict, Why};
use crate::store::local;
use crate::{Entry, Error, Result};

/// What lies below a folder.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Files that the rule calls shards.
    pub(super) shards: Vec<Entry>,
    pub(super) left_out: Vec<(String, Why)>,
    /// Folders that were met again by another way, with the way first taken: not looked into twice. With a pattern they are, for it may
    /// match by one way and not by the other; what it matches by both is found to be the same when shards are compared.
    pub(super) again: Vec<(String, String)>,
}

/// A folder: what two links to it have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FolderId {
    device: u64,
    inode: u64,
}

impl FolderId {
    fn of(m: &Metadata) -> Self {
        FolderId { device: m.dev(), inode: m.ino() }
    }
}

struct Walk<'a> {
    rule: &'a Rule,
    /// The folders around the one looked at.
    around: Vec<FolderId>,
    /// All that were looked into, and by which way.
    entered: HashMap<FolderId, String>,
    found: Walked,
}

/// Walks through `root`, which may be absent or a file: then nothing lies below it.
pub(super) fn walk(root: &Path, rule: &Rule) -> Result<Walked> {
    let mut walk = Walk { rule, around: Vec::new(), entered: HashMap::new(), found: Walked::default() };
    match fs::metadata(root) {
        Ok(m) if m.is_dir() => walk.enter(root, "", &m)?,
        Ok(_) => {}
        Err(e) if root.is_symlink() => return Err(broken_link(root, &e)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(e) => return Err(local::read_error(root, e)),
    }
    Ok(walk.found)
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Path, key: &str, m: &Metadata) -> Result<()> {
        let id = FolderId::of(m);
        self.around.push(id);
        self.entered.insert(id, key.to_string());
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let mut names: Vec<_> =
            entries.map_err(|e| local::read_error(folder, e))?.iter().map(fs::DirEntry::file_name).collect();
        // The way by which a folder is met first must not be the file system's choice.
        names.sort();
        for name in names {
            let text = name.to_string_lossy();
            let below = if key.is_empty() { text.to_string() } else { format!("{key}/{text}") };
            self.look(&folder.join(&name), below, name.to_str().is_some())?;
        }
        self.around.pop();
        Ok(())
    }

    fn look(&mut self, path: &Path, key: String, is_text: bool) -> Result<()> {
        let m = match fs::metadata(path) {
            Ok(m) => m,
            // It may have been a shard or a folder of shards.
            Err(e) if path.is_symlink() && self.rule.may_hold(&key) => return Err(broken_link(path, &e)),
            Err(_) if path.is_symlink() => return Ok(()),
            // Gone since the folder was read.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(local::read_error(path, e)),
        };
        let verdict = if m.is_dir() { self.rule.folder(&key) } else { self.rule.file(&key) };
        match verdict {
            Verdict::Elsewhere => Ok(()),
            Verdict::LeftOut(path, why) => {
                self.found.left_out.push((path, why));
                Ok(())
            }
            Verdict::Belongs if !is_text => {
                let problem = "its name is not UTF-8, and cannot stand in a manifest: rename it".to_string();
                Err(Error::data(path.display().to_string(), problem))
            }
            Verdict::Belongs if m.is_dir() => {
                let id = FolderId::of(&m);
                if self.around.contains(&id) {
                    self.found.left_out.push((format!("{key}/"), Why::Circle));
                } else if let Some(first) = self.entered.get(&id).filter(|_| !self.rule.has_pattern()) {
                    self.found.again.push((first.clone(), key));
                } else {
                    self.enter(path, &key, &m)?;
                }
                Ok(())
            }
            Verdict::Belongs => {
                if m.is_file() {
                    self.found.shards.push(Entry { key, size: m.len(), etag: Some(local::tag(&m)) });
                }
                Ok(())
            }
        }
    }
}

fn broken_link(path: &Path, e: &std::io::Error) -> Error {
    let target = fs::read_link(path).map(|to| to.display().to_string()).unwrap_or_default();
    let problem =
        format!("a link to {target}, which cannot be followed ({e}): bring back what it leads to, or remove it");
    Error::data(path.display().to_string(), problem)
}
