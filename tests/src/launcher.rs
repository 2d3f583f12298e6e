//! A launcher that runs: `sae launch local`, and ranks that a test starts by hand.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::fixture::Fixture;
use crate::processes::{self, wait_for};
use crate::sae;

/// A process of `sae`, killed with this value, and what it writes to standard error.
#[derive(Debug)]
pub struct Launcher {
    child: Child,
    errors: PathBuf,
}

impl Launcher {
    /// Starts a command; `name` is that of the file that takes its errors, in the fixture's folder.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(fixture: &Fixture, name: &str, mut command: Command) -> Self {
        let errors = fixture.path(format!("{name}.errors.txt"));
        let file = File::create(&errors).expect("a file");
        Launcher { child: command.stdout(Stdio::null()).stderr(file).spawn().expect("sae starts"), errors }
    }

    /// Starts `sae launch local WORDS`.
    pub fn local(fixture: &Fixture, words: &[&str]) -> Self {
        Launcher::start(fixture, "launch", sae::sae(&[&["launch", "local"], words].concat()))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processes of the `count` ranks that it has started and that run, by rank, once all are there.
    pub fn ranks(&self, count: usize) -> Vec<u32> {
        wait_for("the ranks", || self.ranks_now(count))
    }

    /// As [`Launcher::ranks`], if they are there now.
    pub fn ranks_now(&self, count: usize) -> Option<Vec<u32>> {
        let children = processes::children(self.id()).into_iter().filter(|child| processes::runs(*child));
        let mut ranks: Vec<(usize, u32)> =
            children.filter_map(|child| Some((processes::variable(child, "RANK")?.parse().ok()?, child))).collect();
        ranks.sort_unstable();
        (ranks.len() == count).then(|| ranks.into_iter().map(|(_, child)| child).collect())
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child has a state").is_some()
    }

    /// Its exit code and what it said, once it has ended.
    ///
    /// # Panics
    /// When that never comes.
    pub fn ends(mut self) -> (Option<i32>, String) {
        let status = wait_for("its end", || self.child.try_wait().expect("a child has a state"));
        (status.code(), std::fs::read_to_string(&self.errors).expect("what it said"))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
