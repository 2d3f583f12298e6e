//! Puts the cubins of the folder that `SAE_CUBINS` names into the crate. Without it none are, and kernels are compiled when a
//! GPU is first used.
//!
//! `sae kernels --out FOLDER` makes such a folder. A file made from other sources than these fails the build: a release must
//! not carry kernels that are not its own.

#[allow(dead_code)]
#[path = "src/cuda/compile/cubin.rs"]
pub mod cubin;
#[allow(dead_code)]
#[path = "src/cuda/compile/sources.rs"]
pub mod sources;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use cubin::Label;
use sources::{KernelSource, SOURCES};

fn main() {
    println!("cargo::rerun-if-env-changed=SAE_CUBINS");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo gives a build script a folder"));
    let lines = match env::var_os("SAE_CUBINS").filter(|folder| !folder.is_empty()) {
        Some(folder) => match embed(Path::new(&folder), SOURCES, &out) {
            Ok(lines) => lines,
            Err(reason) => {
                println!("cargo::error=SAE_CUBINS={}: {reason}", folder.display());
                return;
            }
        },
        None => String::new(),
    };
    let table = format!("/// Sorted by source and architecture.\nstatic EMBEDDED: &[Embedded] = &[{lines}];\n");
    fs::write(out.join("embedded.rs"), table).expect("cargo's folder can be written");
}

/// The lines of the table. The images are written beside it, without their first lines.
pub fn embed(folder: &Path, sources: &[KernelSource], out: &Path) -> Result<String, String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    const REMEDY: &str = "make the folder again with `sae kernels --out`, from a build without SAE_CUBINS";
    if !folder.is_absolute() {
        return Err("write the folder's whole path: this is read from within kernels/".to_owned());
    }
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|error| error.to_string())?.flatten() {
        let (path, file) = (entry.path(), entry.file_name().display().to_string());
        if path.extension().is_none_or(|extension| extension != "cubin") {
            continue;
        }
        println!("cargo::rerun-if-changed={}", path.display());
        let content = fs::read(&path).map_err(|error| format!("{file}: {error}"))?;
        let (label, image) = Label::unwrap(&content).map_err(|reason| format!("{file}: {reason}: {REMEDY}"))?;
        let source = sources.iter().find(|source| source.name() == label.name);
        let Some(source) = source.filter(|source| source.hash() == label.hash) else {
            return Err(format!("{file} was made from other sources than these: {REMEDY}, or remove it"));
        };
        let image_path = out.join(format!("{}-{}.cubin", label.name, label.arch));
        fs::write(&image_path, image).map_err(|error| format!("{}: {error}", image_path.display()))?;
        found.insert((source.name(), label.arch), (label.hash, image_path));
    }
    if found.is_empty() {
        return Err(format!("there is no cubin in it: {REMEDY}"));
    }
    for arch in found.keys().map(|(_, arch)| arch) {
        if let Some(source) = sources.iter().find(|source| !found.contains_key(&(source.name(), arch.clone()))) {
            return Err(format!("{} is missing for {arch}: {REMEDY}", source.name()));
        }
    }
    let line = |((name, arch), (hash, path)): (&(&str, String), &(u128, PathBuf))| {
        format!("({name:?}, {arch:?}, {hash:#x}, include_bytes!({path:?})),\n")
    };
    Ok(found.iter().map(line).collect())
}
