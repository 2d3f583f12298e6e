//! What the build script takes into the binary, and what it refuses.

#[allow(dead_code)]
#[path = "../build.rs"]
mod build_script;

use std::fs;
use std::path::Path;

use build_script::cubin::Label;
use build_script::embed;
use build_script::sources::KernelSource;

const SOURCES: [KernelSource; 2] =
    [KernelSource { file: "first.cu", text: "int first;" }, KernelSource { file: "second.cu", text: "int second;" }];

fn write(folder: &Path, source: &KernelSource, arch: &str) {
    let file = Label::new(source, arch, "13.0").wrap(b"\x7fELF");
    fs::write(folder.join(format!("{}-{arch}.cubin", source.name())), file).expect("written");
}

fn refused(folder: &Path) -> String {
    let out = tempfile::tempdir().expect("a folder");
    embed(folder, &SOURCES, out.path()).expect_err("refused")
}

#[test]
fn whole_sets_are_embedded_without_their_labels() {
    let (folder, out) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for source in &SOURCES {
        write(folder.path(), source, "sm_80");
        write(folder.path(), source, "sm_90a");
    }
    fs::write(folder.path().join("README"), "not a cubin").expect("written");
    let lines = embed(folder.path(), &SOURCES, out.path()).expect("embedded");
    assert_eq!(lines.lines().count(), 4);
    assert!(lines.starts_with("(\"first\", \"sm_80\", 0x"), "{lines}");
    assert_eq!(fs::read(out.path().join("second-sm_90a.cubin")).expect("an image"), b"\x7fELF");
}

#[test]
fn what_would_not_be_the_kernels_of_this_build_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(refused(folder.path()).contains("there is no cubin in it"));
    assert!(refused(Path::new("cubins")).contains("whole path"));
    assert!(refused(&folder.path().join("absent")).contains("No such file"));

    write(folder.path(), &SOURCES[0], "sm_80");
    let reason = refused(folder.path());
    assert!(reason.contains("second is missing for sm_80: make the folder again"), "{reason}");

    write(folder.path(), &KernelSource { text: "int changed;", ..SOURCES[1] }, "sm_80");
    let reason = refused(folder.path());
    assert!(reason.contains("second-sm_80.cubin was made from other sources than these"), "{reason}");

    fs::write(folder.path().join("second-sm_80.cubin"), b"\x7fELF").expect("written");
    let reason = refused(folder.path());
    assert!(reason.contains("second-sm_80.cubin: it has no first line"), "{reason}");
}
