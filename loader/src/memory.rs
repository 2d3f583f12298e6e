//! How much memory this process may still take: the least of what the machine has available and what its control groups allow.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes available; `None` where the system does not say (anything but Linux).
pub fn available() -> Option<u64> {
    available_below(Path::new("/"))
}

/// Bytes that this process could get at the very most: what is available, and all of the swap that is free. `None` where the system does
/// not say.
pub fn obtainable() -> Option<u64> {
    let swap = field(&read_to_string("/proc/meminfo").ok()?, "SwapFree:").unwrap_or(0);
    Some(available()?.saturating_add(swap.saturating_mul(1024)))
}

/// Bytes of addresses that the limit of this process (`ulimit -v`) leaves; `None` where there is none.
pub fn addresses() -> Option<u64> {
    addresses_left(&read_to_string("/proc/self/limits").ok()?, &read_to_string("/proc/self/status").ok()?)
}

fn addresses_left(limits: &str, status: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(field(status, "VmSize:")?.saturating_mul(1024)))
}

/// The same with the system's files under `root`.
fn available_below(root: &Path) -> Option<u64> {
    let meminfo = read_to_string(root.join("proc/meminfo")).ok()?;
    let mut least = field(&meminfo, "MemAvailable:")?.saturating_mul(1024);
    let groups = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        // Version 2 has one hierarchy, `0::/PATH`; version 1 one for each controller, `N:memory:/PATH`.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (mount, names) = match controllers {
            "" => ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file", "active_file"]),
            "memory" => (
                "sys/fs/cgroup/memory",
                ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file"],
            ),
            _ => continue,
        };
        // The limits of all groups above hold too. In a container the path may be the host's; then only the mount itself, with
        // which `ancestors` ends, has the files.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            least = least.min(left(&root.join(mount).join(group), names).unwrap_or(u64::MAX));
        }
    }
    Some(least)
}

/// Bytes that a control group still allows. Its page cache counts as used, and gives way.
fn left(group: &Path, [limit, usage, inactive, active]: [&str; 4]) -> Option<u64> {
    let number = |name: &str| read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = field(&stat, inactive).unwrap_or(0) + field(&stat, active).unwrap_or(0);
    Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(cache)))
}

/// The number after a name that begins a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut w| (w.next() == Some(name)).then(|| w.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    1000 kB\n");

    #[test]
    fn the_machine_alone_decides_without_limits() {
        assert_eq!(available_below(root(&[MEMINFO]).path()), Some(1000 * 1024));
        let unlimited = root(&[MEMINFO, ("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "max\n")]);
        assert_eq!(available_below(unlimited.path()), Some(1000 * 1024));
        assert_eq!(available_below(root(&[]).path()), None);
    }

    #[test]
    fn a_limit_of_addresses_leaves_what_is_not_taken() {
        let limits = |soft: &str| {
            format!("Limit   Soft Limit  Hard Limit  Units\nMax address space  {soft}  unlimited  bytes\n")
        };
        assert_eq!(addresses_left(&limits("4096000"), "Name: sae\nVmSize:\t 1000 kB\n"), Some(3_072_000));
        assert_eq!(addresses_left(&limits("1000"), "VmSize: 1000 kB\n"), Some(0));
        assert_eq!(addresses_left(&limits("unlimited"), "VmSize: 1000 kB\n"), None);
    }

    #[test]
    fn the_tightest_control_group_decides_and_its_page_cache_gives_way() {
        let second = root(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/slice/run\n"),
            ("sys/fs/cgroup/slice/memory.max", "5000\n"),
            ("sys/fs/cgroup/slice/memory.current", "3000\n"),
            ("sys/fs/cgroup/slice/memory.stat", "anon 2000\ninactive_file 700\nactive_file 300\n"),
            ("sys/fs/cgroup/slice/run/memory.max", "max\n"),
            ("sys/fs/cgroup/slice/run/memory.current", "3000\n"),
        ]);
        assert_eq!(available_below(second.path()), Some(3000));
        // In a container: the host's path, and only the mount's own files.
        let first = root(&[
            MEMINFO,
            ("proc/self/cgroup", "5:memory:/docker/abc\n4:pids:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "4500\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 0\n"),
        ]);
        assert_eq!(available_below(first.path()), Some(500));
    }

    /// What this machine says: more than a page and no more than it has.
    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_something_left() {
        let meminfo = read_to_string("/proc/meminfo").unwrap();
        let [total, swap] = ["MemTotal:", "SwapTotal:"].map(|name| 1024 * field(&meminfo, name).unwrap());
        let (available, obtainable) = (available().unwrap(), obtainable().unwrap());
        assert!((4096..=total).contains(&available) && (4096..=total + swap).contains(&obtainable));
    }

    /// A process of its own, whose limit a shell sets: 8 GB of addresses, of which the process has taken some.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_limit_of_addresses_is_that_of_this_process() {
        const INSIDE: &str = "INSIDE_A_LIMIT";
        let limited = std::env::var_os(INSIDE).is_some();
        if limited {
            let left = addresses().unwrap();
            return assert!((1 << 30..8_192_000_000).contains(&left), "{left}");
        }
        let again =
            "ulimit -v 8000000 && exec \"$0\" --exact memory::tests::the_limit_of_addresses_is_that_of_this_process";
        let own = std::env::current_exe().unwrap();
        let output = std::process::Command::new("sh").args(["-c", again]).arg(own).env(INSIDE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
