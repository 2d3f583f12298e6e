//! How a command fails: one message that names the thing and the remedy, and an exit code for launchers.

use std::process::ExitCode;

use trainer::Exit;

use crate::remedy;

/// The cause of a failure, for programs, where another process uses the run's folder or has just begun the run in it.
pub const TAKEN: &str = "taken";

/// A message and its exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    /// One of [`Exit`]; or what a rank ended with, which may be anything, or 128 and the number of a signal.
    code: u8,
    /// Whether it is that of another rank, which says so itself.
    pub is_of_peer: bool,
    is_told: bool,
    /// Whether the run's folder belongs to another process.
    is_taken: bool,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure::of_rank(message.into(), exit.code())
    }

    /// A wrong argument or recipe.
    pub fn arguments(message: impl Into<String>) -> Self {
        Failure::new(Exit::Arguments, message)
    }

    /// Data that cannot be used.
    pub fn data(message: impl Into<String>) -> Self {
        Failure::new(Exit::Data, message)
    }

    /// A file that cannot be written.
    pub fn cannot_write(message: impl Into<String>) -> Self {
        Failure::new(Exit::CannotWrite, message)
    }

    /// Whether a run did what it was asked and stopped after a checkpoint: that is no error.
    pub fn is_interruption(&self) -> bool {
        self.code == Exit::Interrupted.code()
    }

    /// Whether a file or data cannot be understood: others may be.
    pub fn is_of_data(&self) -> bool {
        self.code == Exit::Data.code()
    }

    /// What the system does not give, or gives up.
    pub fn hardware(message: impl Into<String>) -> Self {
        Failure::new(Exit::Hardware, message)
    }

    /// A stop before there was a run that could save, which another start makes up for.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Failure::new(Exit::Interrupted, message)
    }

    /// What a rank came to, with its exit code.
    pub fn of_rank(message: String, code: u8) -> Self {
        Failure { message, code, is_of_peer: false, is_told: false, is_taken: false }
    }

    /// The same, which another process tells.
    pub fn told(self) -> Self {
        Failure { is_told: true, ..self }
    }

    /// The end by a second SIGINT, without a checkpoint: the code is a shell's.
    pub fn signalled(signal: i32) -> Self {
        let code = u8::try_from(128 + signal).unwrap_or(u8::MAX);
        Failure::of_rank(format!("ended at once by a second signal ({signal})"), code)
    }

    /// Why, for launchers, where it is no signal.
    pub fn exit(&self) -> Option<Exit> {
        Exit::of(self.code)
    }

    /// What is said.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What rank `rank` tells the others of it.
    pub fn of(&self, rank: usize) -> kernels::ranks::Failure {
        kernels::ranks::Failure { rank, code: Some(self.code), reason: self.message.clone() }
    }

    /// The kind of failure, in a word for programs.
    fn cause(&self) -> &'static str {
        match Exit::of(self.code) {
            Some(_) if self.is_taken => TAKEN,
            Some(exit) => exit.cause(),
            None if self.code > 128 => "signal",
            None => "other",
        }
    }

    /// Prints the message, unless another process does, and gives the exit code.
    pub fn report(self) -> ExitCode {
        if self.is_told {
            tracing::debug!(exit_code = self.code, cause = self.cause(), "{}", self.message);
        } else if self.is_interruption() {
            tracing::warn!(exit_code = self.code, cause = self.cause(), "{}", self.message);
        } else {
            tracing::error!(exit_code = self.code, cause = self.cause(), "{}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<trainer::Error> for Failure {
    fn from(error: trainer::Error) -> Self {
        let is_of_peer = matches!(error, trainer::Error::Device(kernels::Error::Peer { code: Some(_), .. }));
        let is_taken = matches!(error, trainer::Error::InUse { .. } | trainer::Error::HoldsRun { .. });
        Failure { is_of_peer, is_taken, ..Failure::new(error.exit(), remedy::words(&error)) }
    }
}

impl From<loader::Error> for Failure {
    fn from(error: loader::Error) -> Self {
        trainer::Error::from(error).into()
    }
}

impl From<harvest::Error> for Failure {
    fn from(error: harvest::Error) -> Self {
        let words = || remedy::of_harvest(&error);
        match &error {
            harvest::Error::Arguments { .. } => Failure::arguments(words()),
            harvest::Error::Data { .. } => Failure::data(words()),
            harvest::Error::Interrupted => Failure::interrupted(
                "stopped: the part that was being made is left, and the same command goes on with it",
            ),
            harvest::Error::Loader(error) => error.clone().into(),
        }
    }
}

impl From<kernels::Error> for Failure {
    fn from(error: kernels::Error) -> Self {
        trainer::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_the_word_for_a_code() {
        let failure = |code| Failure::of_rank(String::new(), code);
        for (code, cause) in [
            (64, "arguments"),
            (65, "data"),
            (69, "storage"),
            (70, "divergence"),
            (71, "hardware"),
            (73, "cannot_write"),
            (75, "interrupted"),
            (101, "internal"),
            (1, "other"),
            (128, "other"),
        ] {
            assert_eq!(failure(code).cause(), cause, "{code}");
        }
        assert_eq!(Failure::signalled(2).cause(), "signal");
        assert_eq!(Failure::from(trainer::Error::InUse { place: "x".to_owned() }).cause(), TAKEN);
    }
}
