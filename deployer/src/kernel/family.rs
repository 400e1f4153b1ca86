//! Which processes belong together: parents and process groups, from `/proc/PID/stat`; and the processes of a cgroup.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::procs;

/// Cgroups below one that are looked at, at most: a worker has a few, and a loop in a file system has no end.
const CGROUPS: usize = 1000;

/// All processes of this machine as they were at one moment, more or less: they come and go while they are read.
#[derive(Debug, Default)]
pub struct Family(BTreeMap<u32, Relatives>);

#[derive(Debug, Clone, Copy)]
struct Relatives {
    parent: u32,
    group: u32,
}

impl Family {
    /// Reads all of `/proc`; processes that end meanwhile are left out.
    ///
    /// # Errors
    /// When `/proc` cannot be read, or the descriptors or the memory for it are missing.
    pub fn read() -> io::Result<Self> {
        let mut all = BTreeMap::new();
        for pid in procs::pids()? {
            let stat = procs::seen(fs::read(format!("/proc/{pid}/stat")))?;
            all.extend(stat.and_then(|stat| Some((pid, relatives(&stat)?))));
        }
        Ok(Self(all))
    }

    /// A process, all that descend from it, and the members of the process group that it leads. A process whose parents
    /// have ended descends from them no longer, but stays in its group.
    #[must_use]
    pub fn of(&self, pid: u32) -> BTreeSet<u32> {
        let is_member = |one: u32| {
            let is_in_group = self.0.get(&one).is_some_and(|relatives| relatives.group == pid);
            // As many steps as there are processes: a chain that was read while it changed may be a ring.
            let mut chain = std::iter::successors(Some(one), |pid| Some(self.0.get(pid)?.parent)).take(self.0.len());
            is_in_group || chain.any(|ancestor| ancestor == pid)
        };
        self.0.keys().copied().filter(|one| is_member(*one)).collect()
    }
}

/// Parent and process group; the name before them stands in parentheses, and may hold any byte (proc_pid_stat(5)).
fn relatives(stat: &[u8]) -> Option<Relatives> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = String::from_utf8_lossy(stat.get(end + 1..)?);
    let mut fields = rest.split_whitespace().skip(1).map(|field| field.parse().ok());
    Some(Relatives { parent: fields.next()??, group: fields.next()?? })
}

/// A cgroup with all below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// The ids of the cgroups: the inodes of their directories.
    pub ids: BTreeSet<u64>,
    /// The processes in them.
    pub pids: BTreeSet<u32>,
}

/// A cgroup with all below it; empty if it is not there.
///
/// # Errors
/// When the descriptors or the memory for it are missing.
pub fn tree(cgroup: &Path) -> io::Result<Tree> {
    let mut found = Tree::default();
    let mut open = vec![cgroup.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&dir) else { continue };
        if !meta.is_dir() || found.ids.len() >= CGROUPS || !found.ids.insert(meta.ino()) {
            continue;
        }
        let procs = procs::seen(fs::read_to_string(dir.join("cgroup.procs")))?.unwrap_or_default();
        found.pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
        let below = procs::seen(fs::read_dir(&dir))?;
        open.extend(below.into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    Ok(found)
}

/// The user that a process counts as; `None`: it is gone. A process that may become root counts as root.
///
/// # Errors
/// When the descriptors or the memory for a look are missing.
pub fn user_of(pid: u32) -> io::Result<Option<u32>> {
    let status = procs::seen(fs::read(format!("/proc/{pid}/status")))?;
    Ok(status.and_then(|status| user_in(&String::from_utf8_lossy(&status))))
}

/// `Uid:` with the real, effective, saved and file system's user (proc_pid_status(5)).
fn user_in(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let all: Vec<u32> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    if all.contains(&0) { Some(0) } else { all.get(1).copied() }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_child_s_child_belongs_to_the_family() -> std::io::Result<()> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "sleep 60 & echo $!; wait"]).stdout(Stdio::piped());
        let mut child = shell.spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or_else(|| std::io::Error::other("no output"))?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        let grandchild: u32 = line.trim().parse().map_err(std::io::Error::other)?;
        let family = Family::read()?;
        let ours = family.of(std::process::id());
        assert!(ours.contains(&grandchild) && ours.contains(&child.id()), "{ours:?}");
        assert!(!family.of(grandchild).contains(&child.id()), "a parent is no descendant");
        Command::new("kill").arg(grandchild.to_string()).status()?;
        child.wait()?;
        assert_eq!(family.of(grandchild), [grandchild].into(), "as it was when it was read");
        Ok(())
    }

    #[test]
    fn names_hold_any_byte() {
        let found = relatives(b"7 (a) b \xff ) S 4 5 6 0").map(|found| (found.parent, found.group));
        assert_eq!(found, Some((4, 5)));
        assert!(relatives(b"").is_none() && relatives(b"7 (a) S 4").is_none());
    }

    #[test]
    fn a_ring_has_an_end() {
        let one = |parent| Relatives { parent, group: 9 };
        let family = Family([(1, one(2)), (2, one(1)), (3, one(2))].into());
        assert_eq!(family.of(1), [1, 2, 3].into());
        assert_eq!(family.of(9), [1, 2, 3].into(), "a group whose leader has ended");
        assert!(family.of(77).is_empty());
    }

    #[test]
    fn a_process_that_may_become_root_is_root() {
        assert_eq!(user_in("Name:\tx\nUid:\t33\t33\t33\t33\n"), Some(33));
        assert_eq!(user_in("Uid:\t33\t33\t0\t33\n"), Some(0));
        assert_eq!(user_in("Uid:\t\n"), None);
        assert_eq!(user_of(std::process::id()).unwrap(), Some(rustix::process::geteuid().as_raw()));
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(stat: Vec<u8>, status: String) {
            let _ = (relatives(&stat), user_in(&status));
        }
    }
}
