//! Which processes hold which sockets, from `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
};

use rustix::io::Errno;

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
    for pid in pids().unwrap_or_default() {
        for inode in sockets_of(pid).unwrap_or_default().intersection(inodes) {
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
    let held = |pid| (pid, sockets_of(pid).unwrap_or_default().intersection(inodes).copied().collect());
    let pids = pids().unwrap_or_default().into_iter();
    pids.map(held).filter(|(_, held): &(u32, BTreeSet<u32>)| !held.is_empty()).collect()
}

/// Inodes of the sockets that a process holds; empty if the process is gone, or may not be read.
///
/// # Errors
/// When this process or the machine lacks what a look takes ([`seen`]).
pub fn sockets_of(pid: u32) -> io::Result<BTreeSet<u32>> {
    Ok(readable_sockets_of(pid)?.unwrap_or_default())
}

/// The same; `None`: the process is gone, or may not be read (`CAP_SYS_PTRACE` is missing).
///
/// # Errors
/// As [`sockets_of`].
pub fn readable_sockets_of(pid: u32) -> io::Result<Option<BTreeSet<u32>>> {
    let Some(descriptors) = seen(fs::read_dir(format!("/proc/{pid}/fd")))? else { return Ok(None) };
    let mut inodes = BTreeSet::new();
    for entry in descriptors.flatten() {
        let target = seen(fs::read_link(entry.path()))?;
        inodes.extend(target.as_deref().and_then(|target| inode(target.to_str()?)));
    }
    Ok(Some(inodes))
}

/// What the link of a descriptor says of a socket: `socket:[4711]`.
fn inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// What a look at a process has shown; `None`: the process is gone, or may not be read.
///
/// # Errors
/// When the look failed for want of descriptors or memory: it says nothing about the process then.
pub(super) fn seen<T>(look: io::Result<T>) -> io::Result<Option<T>> {
    match look {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_want(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether a call failed since this process or the machine lacks what it takes.
fn is_want(error: &io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    wants.into_iter().any(|want| Errno::from_io_error(error) == Some(want))
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
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn pids() -> io::Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_want_of_descriptors_says_nothing_about_a_process() {
        let fails = |errno: Errno| seen::<()>(Err(errno.into())).map_err(|error| error.raw_os_error());
        assert_eq!(fails(Errno::NOENT), Ok(None));
        assert_eq!(fails(Errno::ACCESS), Ok(None));
        assert_eq!(fails(Errno::MFILE), Err(Some(Errno::MFILE.raw_os_error())));
    }

    #[test]
    fn links_of_sockets_have_inodes() {
        assert_eq!(inode("socket:[4711]"), Some(4711));
        assert!(["socket:[]", "pipe:[7]", "socket:[7", "/x"].iter().all(|link| inode(link).is_none()));
    }

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
