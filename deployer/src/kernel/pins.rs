//! Where programs, links and tables outlive the daemon: a directory in a bpf file system.
//!
//! ```text
//! /sys/fs/bpf/deployer/        locked (flock) by the daemon that lives
//!   live -> g7                 the one that counts; replaced by rename(2)
//!   g7/                        a generation: built aside, never changed once published
//!     SWITCHBOARD-1 …          tables; the number is the version of the layout
//!     program-connect4 …       programs
//!     link-connect4 …          links
//! ```
//!
//! bpffs allows no dots in names, hence the dashes (`bpf_lookup` in kernel/bpf/inode.c).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{FlockOperation, flock, statfs},
    mount::{MountFlags, mount},
};

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS: i64 = 0xcafe_4a11;
/// The name that counts.
const LIVE: &str = "live";
/// The link that becomes `live`.
const NEXT: &str = "next";
/// A daemon that has just been killed may still be on its way out.
const PATIENCE: Duration = Duration::from_secs(2);

/// The directory, locked. Only one process can hold it.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    lock: File,
}

impl Pins {
    /// Mounts a bpf file system where it is missing, makes the directory and locks it.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        ensure_mounted(dir)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("making {}", dir.display()));
            }
            _ => {}
        }
        let lock = File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
        let begun = Instant::now();
        while flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
            if begun.elapsed() > PATIENCE {
                let by = holder(&lock).map_or_else(String::new, |pid| format!(" (process {pid})"));
                bail!("{} is in the hands of another deployer{by}; stop that one first", dir.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let pins = Self { dir: dir.to_owned(), lock };
        if !pins.is_there() {
            bail!("{} was removed, or made anew, while it was being opened; try again", dir.display());
        }
        Ok(pins)
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the directory that was locked is still the one of that name.
    pub(super) fn is_there(&self) -> bool {
        let same =
            |named: fs::Metadata, locked: fs::Metadata| (named.dev(), named.ino()) == (locked.dev(), locked.ino());
        fs::metadata(&self.dir).is_ok_and(|named| self.lock.metadata().is_ok_and(|locked| same(named, locked)))
    }

    /// The generation that counts, if there is one.
    pub(super) fn live(&self) -> Option<Generation> {
        live(&self.dir)
    }

    /// The generations that do not count.
    pub(super) fn others(&self) -> Vec<Generation> {
        let live = self.live();
        generations(&self.dir).into_iter().filter(|generation| Some(generation) != live.as_ref()).collect()
    }

    /// An empty generation, aside.
    pub(super) fn begin(&self) -> Result<Generation> {
        let number = generations(&self.dir).iter().filter_map(Generation::number).max().map_or(1, |last| last + 1);
        let dir = self.dir.join(format!("g{number}"));
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Generation { dir })
    }

    /// Makes a generation the one that counts, by one rename, and removes the others.
    pub(super) fn publish(&self, generation: &Generation) -> Result<()> {
        let next = self.dir.join(NEXT);
        let name = generation.dir.file_name().unwrap_or_default();
        // One left by a daemon that died here.
        let _ = fs::remove_file(&next);
        symlink(name, &next).with_context(|| format!("making {}", next.display()))?;
        let live = self.dir.join(LIVE);
        fs::rename(&next, &live).with_context(|| format!("renaming {} to {LIVE}", next.display()))?;
        self.remove_all_but(Some(generation))
    }

    /// Removes every generation but one. What only they held is out of the kernel then.
    pub(super) fn remove_all_but(&self, keep: Option<&Generation>) -> Result<()> {
        for generation in generations(&self.dir) {
            if keep.is_none_or(|keep| keep.dir != generation.dir) {
                generation.remove()?;
            }
        }
        Ok(())
    }

    /// Removes everything, the directory too: what is held by nobody else is out of the kernel then.
    pub(super) fn remove(&self) -> Result<()> {
        for name in [LIVE, NEXT] {
            match fs::remove_file(self.dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {name} from {}", self.dir.display()));
                }
                _ => {}
            }
        }
        self.remove_all_but(None)?;
        // Something of somebody else's in it is in nobody's way.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }
}

/// One set of programs, links and tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Generation {
    dir: PathBuf,
}

impl Generation {
    /// Where an object of this name is, or would be.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Names of all that is pinned here.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn number(&self) -> Option<u64> {
        self.dir.file_name()?.to_str()?.strip_prefix('g')?.parse().ok()
    }

    /// Connect hooks go first: without the others they would steer unseen.
    pub(super) fn remove(&self) -> Result<()> {
        let mut names = self.names();
        names.sort_by_key(|name| !name.starts_with("link-connect"));
        for name in names {
            let path = self.path(&name);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        fs::remove_dir(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }
}

/// What lies in a directory of pins: whether a generation counts, and how many do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survey {
    /// A generation is published.
    pub live: bool,
    /// Whether a process holds the directory.
    pub held: bool,
    /// Generations that a daemon left behind when it died while building or removing them.
    pub leftovers: usize,
}

/// Looks at a directory of pins without changing it; `None`: there is none.
///
/// # Errors
/// When it cannot be looked at: that takes root.
pub fn survey(dir: &Path) -> io::Result<Option<Survey>> {
    let lock = match File::open(dir) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let live = live(dir);
    let leftovers = generations(dir).iter().filter(|generation| live.as_ref() != Some(generation)).count();
    Ok(Some(Survey { live: live.is_some(), held: holder(&lock).is_some(), leftovers }))
}

pub(super) fn live(dir: &Path) -> Option<Generation> {
    let name = fs::read_link(dir.join(LIVE)).ok()?;
    let dir = dir.join(name.file_name()?);
    dir.is_dir().then_some(Generation { dir })
}

fn generations(dir: &Path) -> Vec<Generation> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let all = entries.map(|entry| Generation { dir: entry.path() });
    all.filter(|generation| generation.number().is_some()).collect()
}

/// The process that has locked the directory, from `/proc/locks`.
fn holder(dir: &File) -> Option<u32> {
    let inode = dir.metadata().ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    find_holder(&locks, &inode)
}

/// `1: FLOCK  ADVISORY  WRITE 1234 00:2a:5678 0 EOF`
fn find_holder(locks: &str, inode: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == "FLOCK").then_some(())?;
        let pid = words.nth(2)?.parse().ok()?;
        (words.next()?.rsplit(':').next()? == inode).then_some(pid)
    })
}

/// Whether a path is in a bpf file system.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    // The type of f_type differs from one architecture to the next; the magic number fits all.
    #[expect(clippy::allow_attributes, reason = "needed on some architectures only")]
    #[allow(clippy::unnecessary_cast, reason = "f_type is i64 on some architectures, u32 on others")]
    statfs(path).is_ok_and(|found| found.f_type as i64 & 0xffff_ffff == BPF_FS)
}

/// Mounts a bpf file system on the parent of `dir`, unless it is one, or has something in it.
fn ensure_mounted(dir: &Path) -> Result<()> {
    let parent = dir.parent().with_context(|| format!("{} has no parent directory", dir.display()))?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    if is_bpffs(parent) {
        return Ok(());
    }
    let shown = parent.display();
    if fs::read_dir(parent).with_context(|| format!("reading {shown}"))?.next().is_some() {
        bail!(
            "{shown} is no bpf file system, and not empty, so none is mounted there; set [kernel] pins to a directory \
             right below one (usually /sys/fs/bpf/deployer)"
        );
    }
    mount("bpf", parent, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"mode=0700")
        .with_context(|| format!("mounting a bpf file system; try it by hand: mount -t bpf bpf {shown}"))?;
    tracing::info!(at = %shown, "mounted a bpf file system");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_who_holds_alock() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:2a:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 00:2a:78 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 00:2a:77 0 EOF\ngarbage\n4: FLOCK\n";
        assert_eq!(find_holder(locks, "77"), Some(13));
        assert_eq!(find_holder(locks, "79"), None);
    }

    #[test]
    fn tells_a_generation_by_its_name() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for name in ["g1", "g12", "gone", "live-not", "g-3"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let mut numbers: Vec<_> = generations(dir.path()).iter().filter_map(Generation::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 12]);
        assert_eq!(live(dir.path()), None);
        symlink("g12", dir.path().join(LIVE))?;
        assert_eq!(live(dir.path()).and_then(|live| live.number()), Some(12));
        assert_eq!(survey(dir.path())?, Some(Survey { live: true, held: false, leftovers: 1 }));
        Ok(())
    }

    #[test]
    fn a_link_to_nowhere_is_none() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for target in ["g9", "../../etc", "/etc", ".."] {
            let _ = fs::remove_file(dir.path().join(LIVE));
            symlink(target, dir.path().join(LIVE))?;
            assert_eq!(live(dir.path()), None, "{target}");
        }
        Ok(())
    }

    #[test]
    fn mounts_over_nothing() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("file"), "")?;
        let error = Pins::open(&dir.path().join("deployer")).map(drop).unwrap_err().to_string();
        assert!(error.contains("not empty") && error.contains("pins"), "{error}");
        Ok(())
    }
}
