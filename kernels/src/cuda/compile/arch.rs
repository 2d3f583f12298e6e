//! Architectures that cubins are made for.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A target of the compiler, such as `sm_90a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch {
    major: u32,
    minor: u32,
    /// `a`: with what only this architecture has (Hopper's wgmma), for no other GPU.
    specific: bool,
}

/// What releases carry cubins for.
pub const RELEASED: [Arch; 3] = [
    Arch { major: 8, minor: 0, specific: false },
    Arch { major: 9, minor: 0, specific: true },
    Arch { major: 10, minor: 0, specific: true },
];

impl Arch {
    /// What to compile for a GPU of this compute capability; `None` below 8.0, where tensor cores have no bf16.
    pub fn of_gpu(major: u32, minor: u32) -> Option<Arch> {
        match (major, minor) {
            (..=7, _) => None,
            // A cubin runs on every GPU of its major version from its own minor one up.
            (8, _) => Some(RELEASED[0]),
            (9, 0) => Some(RELEASED[1]),
            (10, 0) => Some(RELEASED[2]),
            _ => Some(Arch { major, minor, specific: false }),
        }
    }

    /// As NVRTC lists it: 90 for `sm_90a`.
    pub(crate) fn number(self) -> u32 {
        self.major * 10 + self.minor
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}{}", self.major, self.minor, if self.specific { "a" } else { "" })
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown =
            || Error::UnknownArch { arch: text.to_owned(), known: RELEASED.map(|a| a.to_string()).join(", ") };
        let rest = text.strip_prefix("sm_").ok_or_else(unknown)?;
        let digits = rest.strip_suffix('a').unwrap_or(rest);
        let number: u32 = digits.parse().map_err(|_| unknown())?;
        if number < 80 {
            return Err(unknown());
        }
        Ok(Arch { major: number / 10, minor: number % 10, specific: digits.len() < rest.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_get_the_architecture_that_runs_on_them() {
        let arch = |major, minor| Arch::of_gpu(major, minor).map(|arch| arch.to_string());
        assert_eq!(arch(7, 5), None);
        for (gpu, name) in [
            ((8, 0), "sm_80"),
            ((8, 9), "sm_80"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100a"),
            ((10, 3), "sm_103"),
            ((12, 0), "sm_120"),
        ] {
            assert_eq!(arch(gpu.0, gpu.1).as_deref(), Some(name));
        }
    }

    #[test]
    fn names_are_read_back() {
        for name in ["sm_80", "sm_90a", "sm_100a", "sm_120"] {
            assert_eq!(name.parse::<Arch>().expect("an architecture").to_string(), name);
        }
        for name in ["", "90", "sm_", "sm_90b", "sm_75", "compute_90"] {
            assert!(name.parse::<Arch>().is_err(), "{name}");
        }
    }
}
