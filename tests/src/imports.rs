//! Which files of a crate use which others, read from paths in their code.
//!
//! `mod` and `pub use` are no use: they say where something is to be found. A path that leads through a `pub use` counts for the file in
//! which it ends. What lies under `#[cfg(test)]` is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module by its path from the crate's root, which is empty.
type Module = Vec<String>;

/// The files of a crate.
#[derive(Debug, Default)]
struct Files {
    /// Paths that each module uses, as they stand there.
    used: BTreeMap<Module, Vec<Vec<String>>>,
    /// Names that each module passes on, and the paths that they stand for.
    passed_on: BTreeMap<Module, BTreeMap<String, Vec<String>>>,
}

/// Every group of files below the folder `src` of which each one is used by itself in the end; empty when imports go one way.
pub fn circles(src: &Path) -> Vec<Vec<String>> {
    let mut files = Files::default();
    files.read(src, &[]);
    let uses: BTreeMap<&Module, BTreeSet<Module>> = files.used.keys().map(|of| (of, files.uses(of))).collect();
    // What can be reached by one step or more.
    let mut reached = uses.clone();
    loop {
        let further = |seen: &BTreeSet<Module>| seen.iter().flat_map(|next| &uses[next]).chain(seen).cloned().collect();
        let next: BTreeMap<_, _> = reached.iter().map(|(of, seen)| (*of, further(seen))).collect();
        if next == reached {
            break;
        }
        reached = next;
    }
    let mut found = BTreeSet::new();
    for (of, seen) in reached.iter().filter(|(of, seen)| seen.contains(**of)) {
        let circle = seen.iter().filter(|other| reached[other].contains(*of));
        found.insert(circle.map(|module| module.join("::")).collect());
    }
    found.into_iter().collect()
}

impl Files {
    fn read(&mut self, folder: &Path, module: &[String]) {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let is_root = ["lib", "main", "mod"].contains(&stem.as_str());
            let inner = if is_root { module.to_vec() } else { [module, std::slice::from_ref(&stem)].concat() };
            if path.is_dir() {
                // Programs of their own.
                if stem != "bin" {
                    self.read(&path, &inner);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.add(
                    inner,
                    &fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
                );
            }
        }
    }

    fn add(&mut self, module: Module, text: &str) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String =
            code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
        let (mut used, mut passed_on, mut rest) = (Vec::new(), BTreeMap::new(), String::new());
        for statement in code.split_inclusive(';') {
            let is_use = statement.find("use ").filter(|&at| {
                let before = statement[..at].rsplit('\n').next().unwrap_or_default().trim();
                before.is_empty() || (before.starts_with("pub") && !before.contains(['=', '"']))
            });
            let Some(at) = is_use else {
                rest.push_str(statement);
                continue;
            };
            rest.push_str(&statement[..at]);
            let passes_on = statement[..at].rsplit('\n').next().unwrap_or_default().contains("pub");
            for path in paths(statement[at + 4..].trim_end_matches(';')) {
                match passes_on {
                    true => drop(passed_on.insert(path.last().cloned().unwrap_or_default(), path)),
                    false => used.push(path),
                }
            }
        }
        for word in
            rest.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).filter(|word| word.contains("::"))
        {
            used.push(word.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect());
        }
        self.used.insert(module.clone(), used);
        self.passed_on.insert(module, passed_on);
    }

    fn uses(&self, of: &Module) -> BTreeSet<Module> {
        self.used[of].iter().filter_map(|path| self.end(of, path, 0)).filter(|module| module != of).collect()
    }

    /// The file in which a path ends that stands in the module `from`; none outside the crate.
    fn end(&self, from: &Module, path: &[String], through: usize) -> Option<Module> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => (from.clone(), path),
            first => {
                let child = [from.as_slice(), &[first.to_owned()]].concat();
                if !self.used.contains_key(&child) {
                    return None;
                }
                (from.clone(), path)
            }
        };
        while rest.first().is_some_and(|part| part == "super") {
            at.pop();
            rest = &rest[1..];
        }
        while let Some(part) = rest.first() {
            let child = [at.as_slice(), std::slice::from_ref(part)].concat();
            if !self.used.contains_key(&child) {
                break;
            }
            (at, rest) = (child, &rest[1..]);
        }
        let next = rest.first().and_then(|name| self.passed_on.get(&at)?.get(name));
        match next {
            // A name that passes itself on would never end.
            Some(next) if through < 8 => self.end(&at, next, through + 1).or(Some(at)),
            _ => self.used.contains_key(&at).then_some(at),
        }
    }
}

/// The paths of `a::{b, c::{self, d as e}}`, one by one.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let parts = path.split("::").map(|part| part.trim().to_owned());
        return vec![parts.filter(|part| !part.is_empty() && part != "*").collect()];
    };
    let before: Vec<String> =
        tree[..open].split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    let (mut depth, mut inner, mut all) = (0, String::new(), Vec::new());
    for c in tree[open + 1..tree.rfind('}').unwrap_or(tree.len())].chars().chain([',']) {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if c != ',' || depth > 0 {
            inner.push(c);
            continue;
        }
        let branch = std::mem::take(&mut inner);
        if !branch.trim().is_empty() {
            let of_branch = paths(&branch).into_iter().map(|path| path.into_iter().filter(|part| part != "self"));
            all.extend(of_branch.map(|path| before.iter().cloned().chain(path).collect::<Vec<_>>()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
            fs::write(path, text).expect("written");
        }
        circles(folder.path())
    }

    #[test]
    fn a_circle_is_found_through_braces_and_names_passed_on() {
        let lib = ("lib.rs", "mod a;\nmod b;\npub use b::deep::Thing;\n");
        let deep = ("b/deep.rs", "use super::super::a::One;\npub struct Thing;\n");
        let (b, one_way) = (("b.rs", "pub mod deep;\n"), ("a.rs", "use std::{fmt, io};\npub struct One;\n"));
        assert!(crate_of(&[lib, b, deep, one_way]).is_empty());
        let back = ("a.rs", "use std::fmt;\nuse crate::{Other, Thing as It};\npub struct One;\n");
        assert_eq!(crate_of(&[lib, b, deep, back]), [["a", "b::deep"]]);
    }

    #[test]
    fn a_path_in_the_code_counts_and_one_in_tests_does_not() {
        let (lib, b) = (("lib.rs", "mod a;\nmod b;\n"), ("b.rs", "pub fn b() { crate::a::a(1) }\n"));
        let of = |code: &'static str| crate_of(&[lib, b, ("a.rs", code)]);
        assert_eq!(of("pub fn a(_: u8) { super::b::b() }\n"), [["a", "b"]]);
        assert!(of("// super::b::b()\npub fn a(_: u8) {}\n#[cfg(test)]\nmod tests { use crate::b::b; }\n").is_empty());
    }
}
