//! What users get who build nothing: an archive and a Python wheel, packed from the binary of the tests and installed where nothing else is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::{need, root, sae};

/// Standard output of a program that must succeed.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn pack(interpreter: &Path, binary: &Path, out: &Path) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(root().join("launch/pack.py")).arg(binary).arg(out);
    command
}

/// Checks a wheel as an installer may: what RECORD says of each file, and that it says it of all of them.
const HOLDS: &str = "
import base64, csv, hashlib, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
record = next(name for name in wheel.namelist() if name.endswith('.dist-info/RECORD'))
rows = {name: (digest, size) for name, digest, size in csv.reader(wheel.read(record).decode().splitlines())}
assert sorted(rows) == sorted(wheel.namelist()), rows
for name, (digest, size) in rows.items():
    content = wheel.read(name)
    of = 'sha256=' + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()
    assert (digest, size) == (('', '') if name == record else (of, str(len(content)))), name
";

/// pip puts `sae` on the PATH and takes it away again; the archive holds the same program, and what must go along with it.
#[test]
fn a_wheel_and_an_archive_carry_the_program() {
    let Some(interpreter) = need::python() else { return };
    if !need::programs(&["objdump"], "binutils") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("dist");
    let packed = said(&mut pack(&interpreter, sae::binary(), &out));
    let [archive, wheel]: [PathBuf; 2] =
        packed.lines().map(PathBuf::from).collect::<Vec<_>>().try_into().expect("an archive and a wheel");
    let name = wheel.file_name().expect("a name").to_string_lossy();
    assert!(name.starts_with(concat!("sae-", env!("CARGO_PKG_VERSION"), "-py3-none-manylinux_2_")), "{name}");
    said(Command::new(&interpreter).args(["-c", HOLDS]).arg(&wheel));

    let venv = folder.path().join("venv");
    said(Command::new(&interpreter).args(["-m", "venv", "--without-pip"]).arg(&venv));
    let pip = |arguments: &[&str]| {
        let mut pip = Command::new(&interpreter);
        pip.args(["-m", "pip", "--disable-pip-version-check", "--python"]).arg(venv.join("bin/python")).args(arguments);
        said(&mut pip);
    };
    pip(&["install", "--no-index", wheel.to_str().expect("a path of text")]);
    let installed = venv.join("bin/sae");
    // The package is there, and says what it lacks in an environment that has nothing; beside the packages of another it works.
    let import = |path: &str| {
        let mut python = Command::new(venv.join("bin/python"));
        python.args(["-c", "import sae; print(*sae.__all__)"]).env("PYTHONPATH", path).output().expect("Python runs")
    };
    let lacking = import("");
    assert!(String::from_utf8_lossy(&lacking.stderr).contains("pip install 'sae[python]'"), "{lacking:?}");
    let packages =
        said(Command::new(&interpreter).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]));
    let works = import(packages.trim());
    assert!(String::from_utf8_lossy(&works.stdout).contains("ShardWriter"), "{works:?}");
    let version = said(Command::new(&installed).arg("--version").env_clear());
    assert_eq!(version, said(Command::new(sae::binary()).arg("--version")));
    assert!(
        fs::read(&installed).expect("a program") == fs::read(sae::binary()).expect("a program"),
        "the same program"
    );
    pip(&["uninstall", "--yes", "sae"]);
    assert!(!installed.exists(), "RECORD names the program");

    said(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder.path()));
    let mut below = fs::read_dir(folder.path()).expect("a folder").flatten().map(|entry| entry.path());
    let unpacked = below.find(|path| path.join("sae").exists()).expect("an unpacked archive");
    assert_eq!(said(Command::new(unpacked.join("sae")).arg("--version").env_clear()), version);
    let notices = fs::read_to_string(unpacked.join("THIRD-PARTY-LICENSES")).expect("notices");
    for package in ["parquet 60", "rustls 0.23", "zstd-sys 2"] {
        assert!(notices.contains(package), "{package} is linked and goes without its licence");
    }
    assert!(!notices.contains("\nproptest "), "what is for tests alone is not linked");
    for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE", "recipes/quickstart.toml"] {
        assert!(unpacked.join(file).exists(), "{file}");
    }
}

/// A program that needs more of a machine than glibc would be installed and not start.
#[test]
fn a_program_with_a_library_of_one_machine_is_not_packed() {
    let Some(interpreter) = need::python() else { return };
    if !need::programs(&["objdump"], "binutils") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // Bash edits lines by a library of terminals.
    let output = pack(&interpreter, Path::new("/bin/bash"), folder.path()).output().expect("Python runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("libtinfo"), "{stderr}");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
