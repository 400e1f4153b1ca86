//! Which processes hold which sockets, from `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
};

/// A process by the name people know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command, as in `/proc/PID/comm`.
    pub command: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// The processes that hold sockets of these inodes; those that end meanwhile, or may not be read, are left out.
#[must_use]
pub fn holding(inodes: &BTreeSet<u32>) -> HashMap<u32, Process> {
    let mut found = HashMap::new();
    for pid in pids() {
        for inode in sockets_of(pid).intersection(inodes) {
            found.entry(*inode).or_insert_with(|| process(pid));
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}

/// Every process that holds any of these sockets, with those that it holds; others are left out as in [`holding`].
#[must_use]
pub fn sharing(inodes: &BTreeSet<u32>) -> BTreeMap<u32, BTreeSet<u32>> {
    let held = |pid| (pid, sockets_of(pid).intersection(inodes).copied().collect());
    pids().map(held).filter(|(_, held): &(u32, BTreeSet<u32>)| !held.is_empty()).collect()
}

/// Inodes of the sockets that a process holds; empty if it is gone.
#[must_use]
pub fn sockets_of(pid: u32) -> BTreeSet<u32> {
    readable_sockets_of(pid).unwrap_or_default()
}

/// The same; `None`: it is gone, or may not be read (`CAP_SYS_PTRACE` is missing).
#[must_use]
pub fn readable_sockets_of(pid: u32) -> Option<BTreeSet<u32>> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    Some(
        targets
            .filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
            .collect(),
    )
}

/// Whether a process is there.
#[must_use]
pub fn exists(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(true)
}

/// A process by its id.
#[must_use]
pub fn process(pid: u32) -> Process {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Process { pid, command: command.trim().to_owned() }
}

/// The ids of all processes.
pub(super) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
