//! What belongs to a data set: one rule on names, the same for every store.
//!
//! Shards are the files below a place that are named `.parquet` or `.pq`, in any case. What begins with `.` is left out, be it a
//! file or a folder with all that is in it, and so is what begins with `_`, unless there is a `=` in its name. Writers keep there
//! what is on its way (`_temporary`), what notes say about the rest (`_delta_log`, `_metadata`) and copies (`.ipynb_checkpoints`),
//! while `_layer=3` is a partition like any other. A glob that spells the first character out means such names too. Files of zero
//! bytes are no shards either: [`super::find`] leaves them out when it knows sizes.
//!
//! The convention is Hadoop's, with its exception of partitions; a store can not tell a folder's purpose otherwise. What is left out is
//! shown, because a rule that leaves rows out silently is as bad as one that reads them twice.
//!
//! On disks links are followed, since people put data together from several disks by them. A manifest's paths may not leave its folder
//! (`..`, absolute, URLs): a manifest may come from anyone. A link below the folder may lead anywhere: who can make one can put the shard
//! there as well. Two shards are one when their paths resolve to one file, or when their manifests came with the same checksums;
//! checksums that a run learns while it reads do not count, so that no run is ended by what it began with.

use glob::{MatchOptions, Pattern};
use serde::Serialize;

/// Why something that lies among the shards is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Its name begins with `.`, or with `_` and has no `=`.
    Hidden,
    /// A shard by its name, of zero bytes.
    Empty,
    /// A link to a folder that it lies in itself.
    Circle,
    /// A file that is not named `.parquet` or `.pq`.
    OtherName,
}

impl Why {
    /// In words that follow a number: "3 whose names begin with . or _".
    pub fn words(self) -> &'static str {
        match self {
            Why::Hidden => "whose names begin with . or _",
            Why::Empty => "of zero bytes",
            Why::Circle => "that are links to a folder around them",
            Why::OtherName => "not named .parquet or .pq",
        }
    }
}

/// What becomes of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A shard, or a folder that may hold some.
    Belongs,
    /// Left out: this path, which is the outermost folder that is (with a `/` behind it) or the file.
    LeftOut(String, Why),
    /// The glob does not speak of it.
    Elsewhere,
}

/// The rule at one place.
pub(super) struct Rule {
    pattern: Option<Pattern>,
    /// What the folders above a match of the pattern match: its first parts.
    above: Vec<Pattern>,
}

/// Whether a file's name is that of a shard.
pub fn is_shard_name(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|e| e.eq_ignore_ascii_case("parquet") || e.eq_ignore_ascii_case("pq"))
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

impl Rule {
    pub(super) fn new(pattern: Option<&Pattern>) -> Self {
        let parts: Vec<&str> = pattern.map(|p| p.as_str().split('/').collect()).unwrap_or_default();
        let above = (1..parts.len()).filter_map(|n| Pattern::new(&parts[..n].join("/")).ok()).collect();
        Rule { pattern: pattern.cloned(), above }
    }

    /// What becomes of a file, by its key below the place.
    pub(super) fn file(&self, key: &str) -> Verdict {
        let folder = key.rsplit_once('/').map(|(folder, _)| folder);
        match folder.map_or(Verdict::Belongs, |folder| self.folder(folder)) {
            Verdict::Belongs => {}
            other => return other,
        }
        let name = key.rsplit('/').next().unwrap_or(key);
        if self.pattern.as_ref().is_some_and(|p| !matches(p, key)) {
            Verdict::Elsewhere
        } else if is_hidden(name) && !self.spells_out(key) {
            Verdict::LeftOut(key.into(), Why::Hidden)
        } else if is_shard_name(name) {
            Verdict::Belongs
        } else {
            Verdict::LeftOut(key.into(), Why::OtherName)
        }
    }

    /// What becomes of a folder and so of all that is in it.
    pub(super) fn folder(&self, key: &str) -> Verdict {
        for (end, _) in key.match_indices('/').chain([(key.len(), "")]) {
            let folder = &key[..end];
            if self.pattern.is_some() && !self.above.iter().any(|p| matches(p, folder)) {
                return Verdict::Elsewhere;
            }
            if is_hidden(folder.rsplit('/').next().unwrap_or(folder)) && !self.spells_out(folder) {
                return Verdict::LeftOut(format!("{folder}/"), Why::Hidden);
            }
        }
        Verdict::Belongs
    }

    /// Whether a file or folder could hold or be a shard, as far as its name says: what a link that leads nowhere might have been.
    pub(super) fn may_hold(&self, key: &str) -> bool {
        self.folder(key) == Verdict::Belongs || self.file(key) == Verdict::Belongs
    }

    /// Whether a pattern chooses among the files.
    pub(super) fn has_pattern(&self) -> bool {
        self.pattern.is_some()
    }

    /// Whether the pattern has the first character of a path's last name in the same place.
    fn spells_out(&self, key: &str) -> bool {
        let Some(pattern) = &self.pattern else { return false };
        let (depth, first) = (key.matches('/').count(), key.rsplit('/').next().and_then(|name| name.chars().next()));
        let mut parts = pattern.as_str().split('/').take(depth + 1);
        let last = parts.by_ref().take(depth).all(|part| part != "**").then(|| parts.next()).flatten();
        last.is_some_and(|part| part.chars().next() == first)
    }
}

fn matches(pattern: &Pattern, key: &str) -> bool {
    pattern.matches_with(key, MatchOptions { require_literal_separator: true, ..MatchOptions::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(path: &str) -> Verdict {
        Verdict::LeftOut(path.into(), Why::Hidden)
    }

    #[test]
    fn names_say_what_belongs() {
        let rule = Rule::new(None);
        for key in [
            "a.parquet",
            "a.PARQUET",
            "x/y/a.pq",
            "a.Pq",
            "part-0.gz.parquet",
            "_layer=3/_x=1.parquet",
            "a_/.b/../c.pq",
        ] {
            let expected = if key.contains("/.b/") { hidden("a_/.b/") } else { Verdict::Belongs };
            assert_eq!(rule.file(key), expected, "{key}");
        }
        assert_eq!(rule.file("_temporary/0/_temporary/a.parquet"), hidden("_temporary/"));
        assert_eq!(rule.file("x/.ipynb_checkpoints/a.parquet"), hidden("x/.ipynb_checkpoints/"));
        assert_eq!(rule.file(".a=1.parquet"), hidden(".a=1.parquet"));
        assert_eq!(rule.file("_metadata"), hidden("_metadata"));
        for key in ["a.parquet.gz", "a.parquet.tmp", "parquet", "pq", "a.pqx", "x/notes.txt"] {
            assert_eq!(rule.file(key), Verdict::LeftOut(key.into(), Why::OtherName), "{key}");
        }
    }

    #[test]
    fn a_glob_means_what_it_spells_out() {
        let rule = |glob: &str| Rule::new(Some(&Pattern::new(glob).unwrap()));
        assert_eq!(rule("*.parquet").file("x/a.parquet"), Verdict::Elsewhere);
        assert_eq!(rule("*/*.parquet").file("_x/a.parquet"), hidden("_x/"));
        assert_eq!(rule("_*/*.parquet").file("_x/a.parquet"), Verdict::Belongs);
        assert_eq!(rule("_*/*.parquet").file("_x/_a.parquet"), hidden("_x/_a.parquet"));
        assert_eq!(rule("*/.a*").file("x/.a.parquet"), Verdict::Belongs);
        assert_eq!(rule("**/*.parquet").file("x/_y/a.parquet"), hidden("x/_y/"));
        assert_eq!(rule("**/_*.parquet").file("x/_a.parquet"), hidden("x/_a.parquet"), "how deep is not known");
        assert_eq!(rule("*").file("notes.txt"), Verdict::LeftOut("notes.txt".into(), Why::OtherName));
    }

    #[test]
    fn folders_stay_closed_that_a_glob_cannot_reach() {
        let rule = Rule::new(Some(&Pattern::new("layer=*/part-?/*.parquet").unwrap()));
        assert_eq!(rule.folder("layer=3"), Verdict::Belongs);
        assert_eq!(rule.folder("layer=3/part-0"), Verdict::Belongs);
        assert_eq!(rule.folder("layer=3/part-00"), Verdict::Elsewhere);
        assert_eq!(rule.folder("layer=3/part-0/deeper"), Verdict::Elsewhere);
        assert!(
            rule.may_hold("layer=3/part-0/a.parquet") && !rule.may_hold("other") && !rule.may_hold("layer=3/a.parquet")
        );
        assert_eq!(Rule::new(Some(&Pattern::new("a/**/*.pq").unwrap())).folder("a/b/c/d"), Verdict::Belongs);
    }
}
