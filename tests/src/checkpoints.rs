//! Looking into the checkpoints of a run, and damaging them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kernels::cpu::Cpu;
use kernels::{AdamMode, Device, Dictionary, Moment, Shape, Tensor, Training};
use loader::Store;
use trainer::checkpoint::{self, Snapshot};

use crate::fixture::{json, text};

/// Bytes of tensor files by name.
pub type Tensors = BTreeMap<String, Vec<u8>>;

/// The tensor files of the last checkpoint of a finished run: weights, moments, clocks, sums.
#[track_caller]
pub fn last(run: &Path) -> Tensors {
    let summary = json(&run.join("summary.json"));
    tensors(&run.join(summary["checkpoint"].as_str().expect("a summary names its checkpoint")))
}

/// The tensor files in an attempt's folder.
///
/// # Panics
/// When there are none.
#[track_caller]
pub fn tensors(folder: &Path) -> Tensors {
    let torn = unfinished(folder);
    // A killed write leaves a file without a name of its own; no reader sees it.
    let found: Tensors = files(folder)
        .into_iter()
        .filter(|path| !torn.contains(path))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| (path.file_name().expect("a file").to_string_lossy().into_owned(), fs::read(&path).expect("read")))
        .collect();
    assert!(!found.is_empty(), "{} holds no tensors", folder.display());
    found
}

/// The names of files in which two checkpoints differ.
pub fn differing(a: &Tensors, b: &Tensors) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

/// Folders of committed attempts, oldest first.
pub fn committed(run: &Path) -> Vec<PathBuf> {
    let commits = files(&run.join("checkpoints")).into_iter().filter(|path| path.ends_with("COMMIT"));
    commits.map(|path| path.parent().expect("COMMIT lies in a folder").to_owned()).collect()
}

/// Every file below a folder, sorted; none when it is absent.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Files that were being written and never got their name.
pub fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let is_temporary = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains("tmp"));
    files(folder).into_iter().filter(is_temporary).collect()
}

/// Replaces the manifest of an attempt, and seals it.
///
/// # Panics
/// When it cannot be written.
pub fn write_manifest(folder: &Path, manifest: &serde_json::Value) {
    let json = serde_json::to_vec_pretty(manifest).expect("JSON");
    fs::write(folder.join("manifest.json"), &json).expect("written");
    let hash = xxhash_rust::xxh3::xxh3_128(&json);
    fs::write(folder.join("COMMIT"), format!("{hash:032x}\n")).expect("written");
}

/// What [`tamper`] changes.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// First moments become 0.
    DropMoments,
    /// The position in the data goes back by a step.
    MoveCursor,
    /// One weight moves by one unit in its last place.
    NudgeWeight,
}

/// Replaces the newest checkpoint of a run by a changed one, committed as any other: nothing but a comparison of results
/// can tell that it is wrong.
///
/// # Panics
/// When the run has no checkpoint.
pub fn tamper(run: &Path, change: Change) {
    let store = Store::open(&text(run)).expect("a run");
    let found = checkpoint::newest(&store).expect("readable").expect("a checkpoint");
    let manifest = &found.manifest;
    let device = Cpu::new(Some(1)).expect("threads");
    let (width, features) = (manifest.width, manifest.features);
    let shape = Shape { width, features, batch: 1, dense_bytes: 0 };
    let mut sae = device.training(shape, AdamMode::Dense).expect("memory");
    let state = checkpoint::load(&store, &found, device.axes(), &mut sae).expect("loads");
    let mut cursor = manifest.cursor.clone();
    match change {
        Change::DropMoments => {
            for tensor in [Tensor::EncoderWeight, Tensor::DecoderWeight] {
                sae.write_moment(tensor, Moment::First, 0..features, &vec![0.0; features * width]);
            }
        }
        Change::MoveCursor => cursor.step -= 1,
        Change::NudgeWeight => {
            let mut row_d = vec![0.0f32; width];
            sae.read(Tensor::DecoderWeight, 0..1, &mut row_d).expect("a processor");
            row_d[0] = row_d[0].next_up();
            sae.write(Tensor::DecoderWeight, 0..1, &row_d);
        }
    }
    let of = Snapshot { dictionary: &sae, state: &state, cursor: &cursor, recipe: &manifest.recipe, commit: "unknown" };
    checkpoint::save(&store, device.axes(), &of).expect("saved");
}

/// Copies a folder with everything in it.
///
/// # Panics
/// When it cannot.
pub fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).expect("below the folder"));
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder is made");
        fs::copy(&path, &target).expect("copied");
    }
}
