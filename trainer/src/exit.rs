//! How a process says what became of it: exit codes, on which launchers decide.

/// Why a process failed, for a launcher. Its numbers are those of `sysexits.h`, where that has one that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The recipe, the arguments or the environment: somebody has to correct them before another start.
    Arguments = 64,
    /// The data, or a checkpoint, cannot be used: somebody has to mend them, or leave them out, before another start.
    Data = 65,
    /// A store did not answer for longer than the patience with it: start again.
    Storage = 69,
    /// Training has come to NaN or infinity: the same start would come to the same end.
    Divergence = 70,
    /// The hardware or another rank failed: start again.
    Hardware = 71,
    /// A full disk, or no permission: somebody has to make room before another start.
    CannotWrite = 73,
    /// The run was asked to stop, and has saved: start again to go on.
    Interrupted = 75,
    /// A bug of this program, which the same start would meet again. A panic ends a process with the same number.
    Internal = 101,
}

impl Exit {
    /// All of them.
    pub const ALL: [Exit; 8] = [
        Exit::Arguments,
        Exit::Data,
        Exit::Storage,
        Exit::Divergence,
        Exit::Hardware,
        Exit::CannotWrite,
        Exit::Interrupted,
        Exit::Internal,
    ];

    /// The one of a process that ended with `code`, if it is one of these.
    pub fn of(code: u8) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| exit.code() == code)
    }

    /// The exit code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kind of failure, in a word for programs.
    pub fn cause(self) -> &'static str {
        match self {
            Exit::Arguments => "arguments",
            Exit::Data => "data",
            Exit::Storage => "storage",
            Exit::Divergence => "divergence",
            Exit::Hardware => "hardware",
            Exit::CannotWrite => "cannot_write",
            Exit::Interrupted => "interrupted",
            Exit::Internal => "internal",
        }
    }

    /// Whether another start may go better, with nothing changed before it.
    pub fn restart_helps(self) -> bool {
        match self {
            Exit::Storage | Exit::Hardware | Exit::Interrupted => true,
            Exit::Arguments | Exit::Data | Exit::Divergence | Exit::CannotWrite | Exit::Internal => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Launchers' scripts and users know these numbers and words.
    #[test]
    fn every_exit_has_its_number_and_its_word() {
        let all = Exit::ALL.map(|exit| (exit.code(), exit.cause(), exit.restart_helps()));
        let expected = [
            (64, "arguments", false),
            (65, "data", false),
            (69, "storage", true),
            (70, "divergence", false),
            (71, "hardware", true),
            (73, "cannot_write", false),
            (75, "interrupted", true),
            (101, "internal", false),
        ];
        assert_eq!(all, expected);
        let known = (0..=u8::MAX).filter_map(Exit::of).collect::<Vec<_>>();
        assert_eq!(known, Exit::ALL);
    }
}
