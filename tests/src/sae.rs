//! Running the binary `sae`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::processes::wait_for;

/// Seconds after which a command counts as hanging. Nothing here takes a tenth of it.
const HANGS_AFTER: &str = "300";

/// What a command came to.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// # Panics
    /// When the exit code is another one; shows what was written.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "standard output:\n{}\nstandard error:\n{}", self.stdout, self.stderr);
        self
    }

    /// # Panics
    /// When the exit code is none of `codes`; shows what was written.
    #[track_caller]
    pub fn exits_with_one_of(self, codes: &[i32]) -> Self {
        assert!(
            self.code.is_some_and(|code| codes.contains(&code)),
            "{:?}, not {codes:?}:\n{}",
            self.code,
            self.stderr
        );
        self
    }

    /// # Panics
    /// When standard error lacks one of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing in standard error:\n{}", self.stderr);
        }
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{}", self.stdout))
    }
}

/// The binary: the one that SAE_BINARY names, or else built once for the process in the profile of the tests.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(binary) = std::env::var_os("SAE_BINARY") {
            return binary.into();
        }
        // This process runs from TARGET/PROFILE/deps/NAME or TARGET/PROFILE/NAME.
        let own = std::env::current_exe().expect("a process knows its file");
        let above = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).expect("a profile's folder");
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--workspace", "--bin", "sae", "--target-dir"])
            .arg(above.parent().expect("target"));
        if above.ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(crate::root()).status().expect("cargo runs");
        assert!(status.success(), "sae cannot be built");
        above.join("sae")
    })
}

/// A command `sae ARGS`, without the caller's credentials and log filter.
pub fn sae(args: &[impl AsRef<OsStr>]) -> Command {
    clean(Command::new(binary()), args)
}

fn clean(mut command: Command, args: &[impl AsRef<OsStr>]) -> Command {
    command.args(args).stdin(Stdio::null()).env_remove("RUST_LOG");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    command
}

/// Runs `sae ARGS` to its end.
#[track_caller]
pub fn run(args: &[impl AsRef<OsStr>]) -> Finished {
    run_with(args, &[])
}

/// Runs `sae ARGS` with some environment variables to its end.
///
/// # Panics
/// When it hangs.
#[track_caller]
pub fn run_with(args: &[impl AsRef<OsStr>], environment: &[(&str, &str)]) -> Finished {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", HANGS_AFTER]).arg(binary());
    let output = clean(command, args).envs(environment.iter().copied()).output().expect("timeout(1) runs");
    assert_ne!(output.status.code(), Some(137), "hung: {}", String::from_utf8_lossy(&output.stderr));
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Sends a signal by name, such as `TERM`.
///
/// # Panics
/// When there is no kill(1).
pub fn signal(child: &Child, name: &str) {
    let _ = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().expect("kill(1) runs");
}

/// Starts two commands at once, kills the first once `has_begun`, while both are at work, and waits for the other, which must do its share.
///
/// # Panics
/// When one of them ends before, or the other fails.
#[track_caller]
pub fn kill_one_of_two(commands: [Command; 2], has_begun: impl Fn() -> bool) {
    let start =
        |mut command: Command| command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sae starts");
    let [mut killed, mut other] = commands.map(start);
    wait_for("the work of two", || has_begun().then_some(()));
    for child in [&mut killed, &mut other] {
        assert_eq!(child.try_wait().expect("a child"), None, "it ended before anything could be killed");
    }
    killed.kill().expect("it is killed");
    assert_eq!(killed.wait().expect("it ends").code(), None, "it ended by itself");
    let output = other.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
