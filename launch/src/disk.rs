//! Room on disks.

use std::path::Path;

/// Bytes free on the file system of a folder, by the nearest one that exists; `None` where the system does not say.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}
