//! What the end-to-end suites and the demo need of the machine itself, which no package brings.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

/// Fails with everything that is wrong and what to do about it.
pub(crate) fn check() -> Result<()> {
    let mut faults = Vec::new();
    if !is_root() {
        faults.push("not root: the programs are loaded into the kernel; run it as root (sudo -E env PATH=\"$PATH\" cargo xtask …)");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        faults.push(
            "no /sys/kernel/btf/vmlinux: take a kernel with CONFIG_DEBUG_INFO_BTF=y, and have sysfs mounted at /sys",
        );
    }
    if !mounts_cgroup2(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()) {
        faults.push("no cgroup v2 hierarchy in /proc/self/mounts: mount one (mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified)");
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run the end-to-end suites or the demo:\n  {}", faults.join("\n  "))
}

/// Whether this process has the effective user id 0.
pub(crate) fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| effective_uid(&status) == Some(0))
}

fn effective_uid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

fn mounts_cgroup2(mounts: &str) -> bool {
    mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_uid() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"), Some(0));
        assert_eq!(effective_uid("Uid:\t0\t1000\t0\t0\n"), Some(1000));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn finds_cgroup2_by_its_type_only() {
        assert!(mounts_cgroup2("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"));
        assert!(mounts_cgroup2("none /mnt/x cgroup2 rw 0 0\n"));
        assert!(!mounts_cgroup2("cgroup2 /tmp/cgroup2 tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"));
    }
}
