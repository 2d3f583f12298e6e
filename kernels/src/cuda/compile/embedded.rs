//! Cubins that the binary carries: what the build script found in the folder that `SAE_CUBINS` named.

use super::arch::Arch;
use super::sources::KernelSource;

/// The source, architecture, hash of what it was made from, image.
type Embedded = (&'static str, &'static str, u128, &'static [u8]);

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The image of exactly this source.
pub(crate) fn find(source: &KernelSource, arch: Arch) -> Option<&'static [u8]> {
    let arch = arch.to_string();
    let same = |(name, of, ..): &&Embedded| *name == source.name() && *of == arch;
    let (_, _, hash, image) = EMBEDDED.iter().find(same)?;
    (*hash == source.hash()).then_some(*image)
}

/// Architectures that the binary carries cubins for.
pub fn archs() -> Vec<&'static str> {
    let mut archs: Vec<&str> = EMBEDDED.iter().map(|(_, arch, ..)| *arch).collect();
    archs.sort_unstable();
    archs.dedup();
    archs
}
