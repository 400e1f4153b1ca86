//! Which processes hold which sockets, from `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
};

use super::host;

/// A process by the name people know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command, as in `/proc/PID/comm`.
    pub command: String,
}

impl Process {
    /// The name of the user as which it runs, or its number where /etc/passwd has no name; `None`: the process is gone.
    #[must_use]
    pub fn user(&self) -> Option<String> {
        let status = fs::read(format!("/proc/{}/status", self.pid)).ok()?;
        let uid = effective_uid(&String::from_utf8_lossy(&status))?;
        let accounts = fs::read("/etc/passwd").unwrap_or_default();
        Some(account(&String::from_utf8_lossy(&accounts), uid).unwrap_or_else(|| uid.to_string()))
    }

    /// `nginx (pid 4711, user www-data)`
    #[must_use]
    pub fn with_user(&self) -> String {
        match self.user() {
            Some(user) => format!("{} (pid {}, user {user})", self.command, self.pid),
            None => self.to_string(),
        }
    }
}

/// The second number of the line `Uid:` in `/proc/PID/status` (proc_pid_status(5)).
fn effective_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// The name of a user in `/etc/passwd`: `name:password:uid:...` (passwd(5)).
fn account(accounts: &str, uid: u32) -> Option<String> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
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
    let command = host::text(format!("/proc/{pid}/comm")).unwrap_or_default();
    Process { pid, command: command.trim().to_owned() }
}

/// All processes that there are.
pub(super) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t0\t65534\t0\t0\n"), Some(65534));
        for odd in ["", "Uid:", "Uid:\t0", "Uid:\tx\ty"] {
            assert_eq!(effective_uid(odd), None, "{odd}");
        }
        let accounts = "root:x:0:0::/:/bin/sh\nbroken\nnobody:x:65534:65534::/:\n";
        assert_eq!(account(accounts, 65534).as_deref(), Some("nobody"));
        assert_eq!(account(accounts, 7), None);
        assert!(process(std::process::id()).with_user().contains(", user "));
        assert_eq!(process(u32::MAX).user(), None);
    }
}
