//! How a command fails: one message that names the thing and the remedy, and an exit code for launchers.

use std::process::ExitCode;

/// A message and its exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// A wrong argument or recipe.
    pub fn arguments(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 64 }
    }

    /// Data that cannot be used.
    pub fn data(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 65 }
    }

    /// A file that cannot be written.
    pub fn cannot_write(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 73 }
    }

    /// Whether a run did what it was asked and stopped after a checkpoint: that is no error.
    pub fn is_interruption(&self) -> bool {
        self.code == 75
    }

    /// What the system does not give, or gives up.
    pub fn hardware(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 71 }
    }

    /// What a rank came to, with its exit code.
    pub fn of_rank(message: String, code: u8) -> Self {
        Failure { message, code }
    }

    /// The end by a second SIGINT, without a checkpoint: the code is a shell's.
    pub fn signalled(signal: i32) -> Self {
        let code = u8::try_from(128 + signal).unwrap_or(u8::MAX);
        Failure { message: format!("ended at once by a second signal ({signal})"), code }
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
        match self.code {
            64 => "arguments",
            65 => "data",
            69 => "storage",
            70 => "divergence",
            71 => "hardware",
            73 => "cannot_write",
            75 => "interrupted",
            129.. => "signal",
            _ => "other",
        }
    }

    /// Prints the message and gives the exit code.
    pub fn report(self) -> ExitCode {
        if self.is_interruption() {
            tracing::warn!(exit_code = self.code, cause = self.cause(), "{}", self.message);
        } else {
            tracing::error!(exit_code = self.code, cause = self.cause(), "{}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<trainer::Error> for Failure {
    fn from(error: trainer::Error) -> Self {
        let code = error.exit_code();
        // Another start helps where it was not what the ranks were started with.
        let remedy = match error {
            trainer::Error::Device(kernels::Error::Peer { .. }) if code == 71 => {
                ": start the job again with --resume-or-start once that rank can run"
            }
            _ => "",
        };
        Failure { code, message: format!("{error}{remedy}") }
    }
}

impl From<loader::Error> for Failure {
    fn from(error: loader::Error) -> Self {
        trainer::Error::from(error).into()
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
        let failure = |code| Failure { message: String::new(), code };
        for (code, cause) in [
            (64, "arguments"),
            (65, "data"),
            (69, "storage"),
            (70, "divergence"),
            (71, "hardware"),
            (73, "cannot_write"),
            (75, "interrupted"),
            (1, "other"),
        ] {
            assert_eq!(failure(code).cause(), cause, "{code}");
        }
        assert_eq!(Failure::signalled(2).cause(), "signal");
    }
}
