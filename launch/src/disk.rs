//! Room on disks.

use std::path::Path;

use indicatif::HumanBytes;
use loader::Store;
use trainer::synthesis::Making;

use crate::failure::Failure;

/// Bytes free on the file system of a folder, by the nearest one that exists; `None` where the system does not say.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Refuses synthetic shards for which there is no room.
///
/// # Errors
/// What does not fit where, with what is free there.
pub fn check_room(making: &[Making<'_>]) -> Result<(), Failure> {
    let mut disks: Vec<(Option<u64>, u64)> = Vec::new();
    for shards in making {
        let store = Store::open(shards.url)?;
        let Some((folder, free)) = store.local_path().and_then(|folder| Some((folder, free_bytes(folder)?))) else {
            continue;
        };
        let (disk, needed) = (disk_of(folder), shards.bytes().saturating_sub(shards.left_behind));
        // Held-out rows may take the room of the others.
        let before = disks.iter().filter(|other| disk.is_some() && other.0 == disk).map(|other| other.1).sum();
        let all = needed.saturating_add(before);
        if all > free {
            return Err(Failure::cannot_write(format!(
                "{}: {} has {} free, and the shards of [data.synth] take {}: free some space, lower data.synth.rows, or name another disk",
                shards.key,
                store.url(),
                HumanBytes(free),
                HumanBytes(all)
            )));
        }
        disks.push((disk, needed));
    }
    Ok(())
}

/// The number of the disk that a folder lies on.
fn disk_of(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    std::fs::metadata(there).ok().map(|there| std::os::unix::fs::MetadataExt::dev(&there))
}
