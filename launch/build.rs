//! Names the commit that `sae` is built from: `SAE_COMMIT` where a packager says so, else what git says of this checkout,
//! else `unknown`. It belongs to this crate, the last in a build, so that a new commit compiles nothing else again.
//!
//! It is there for people: no resume depends on it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the program is made of, as far as this repository holds it.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "kernels", "loader", "trainer", "launch"];

fn main() {
    println!("cargo::rerun-if-env-changed=SAE_COMMIT");
    let given = env::var("SAE_COMMIT").ok().filter(|given| !given.is_empty());
    let commit = given.or_else(of_checkout).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=SAE_COMMIT={commit}");
}

/// The commit of the checkout that this crate lies in, with `-dirty` when the sources are not those of the commit.
fn of_checkout() -> Option<String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?).parent()?.to_owned();
    // Sources that were unpacked inside another repository have nothing to do with its commits.
    if !root.join(".git").exists() {
        return None;
    }
    let commit = git(&root, &["rev-parse", "HEAD"])?;
    let changed = git(&root, &[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    // Sources are watched for what may be dirty; a change to them builds this crate again anyway.
    let moved =
        ["HEAD", "logs/HEAD", "packed-refs"].iter().filter_map(|file| git(&root, &["rev-parse", "--git-path", file]));
    let watched = moved.chain(SOURCES.map(str::to_owned)).map(|path| root.join(path));
    // Cargo takes a file that is missing for one that has changed.
    for path in watched.filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Some(if changed.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// What git prints, without the newline; nothing where it cannot be asked.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    // Another git may work beside a build: this one only looks.
    let output = Command::new("git").args(arguments).current_dir(root).env("GIT_OPTIONAL_LOCKS", "0").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
