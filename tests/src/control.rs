//! Bugs on purpose: proof that the emulator would find them if somebody made them.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use crate::emulator::{Emulator, Kernels, Variant};

/// Schedules that a planted bug is tried under; one has to show it. The one in order shows the fewest and comes last.
const SEEDS: [u64; 4] = [1, 2, 3, 0];

/// One bug: a replacement in the text of one file.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// What goes wrong.
    pub name: &'static str,
    /// The .cu or .cuh file.
    pub file: &'static str,
    /// Occurs there exactly once, so that a control cannot go stale without anybody noticing.
    pub find: &'static str,
    /// The bug.
    pub replace: &'static str,
    /// The variants that must find it, each by itself.
    pub caught_by: &'static [Variant],
}

impl Control {
    /// A copy of the kernels with the bug in it, in a folder that lives as long as the first value.
    ///
    /// # Panics
    /// When `find` does not occur exactly once.
    #[track_caller]
    pub fn plant(&self, kernels: &Kernels) -> (tempfile::TempDir, Kernels) {
        let copy = tempfile::tempdir().expect("a temporary folder");
        let folder = kernels.device.parent().expect("a file lies in a folder");
        let headers =
            fs::read_dir(folder).expect("the folder of device.cuh can be read").flatten().map(|entry| entry.path());
        let mut planted = 0;
        for file in
            headers.filter(|file| file.extension().is_some_and(|e| e == "cuh")).chain(kernels.files.iter().cloned())
        {
            let name = file.file_name().unwrap_or_default();
            let mut text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            if name == self.file {
                planted += text.matches(self.find).count();
                text = text.replacen(self.find, self.replace, 1);
            }
            fs::write(copy.path().join(name), text).expect("a temporary file");
        }
        assert_eq!(planted, 1, "{}: {:?} occurs {planted} times in {}", self.name, self.find, self.file);
        let files: Vec<PathBuf> =
            kernels.files.iter().map(|file| copy.path().join(file.file_name().unwrap_or_default())).collect();
        let kernels = Kernels { device: copy.path().join("device.cuh"), files };
        (copy, kernels)
    }

    /// Builds the kernels with the bug and runs `program` on them, which ends with another status than 0 when it sees one.
    /// The variants that should have found it and did not; none where there is no compiler.
    ///
    /// # Panics
    /// When `find` does not occur exactly once, or the bug does not compile.
    #[track_caller]
    pub fn missed_by(&self, kernels: &Kernels, program: impl Fn(&Emulator, u64) -> Output) -> Vec<Variant> {
        let (_copy, kernels) = self.plant(kernels);
        let mut missed = Vec::new();
        for &variant in self.caught_by {
            let Some(emulator) = Emulator::build_with(variant, &kernels) else { return Vec::new() };
            let caught = SEEDS.iter().find_map(|&seed| {
                let output = program(&emulator, seed);
                (!output.status.success()).then(|| format!("seed {seed}: {}", first_finding(&output)))
            });
            println!("{}: {variant:?}, {}", self.name, caught.as_deref().unwrap_or("MISSED"));
            if caught.is_none() {
                missed.push(variant);
            }
        }
        missed
    }
}

/// The line that says what was found.
fn first_finding(output: &Output) -> String {
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    let marks = ["emulator:", "runtime error:", "ERROR:", "WARNING: ThreadSanitizer", "SUMMARY", "WRONG", "panicked"];
    let found = text.lines().find(|line| marks.iter().any(|mark| line.contains(mark)));
    found.unwrap_or("ended without a word").to_owned()
}
