//! How an executable is named in the kernel: device and inode. And which processes run one, by the links `/proc/PID/exe`.
//! Paths are bytes everywhere: the kernel asks for nothing else of them.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use deployer_common::layout::{CALLER_EXECUTABLE, CallerRule};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::procs;

const OWN_MOUNTS: &str = "/proc/self/mountinfo";
/// What the link of a process whose file was removed or replaced ends with (proc_pid_exe(5)).
const DELETED: &[u8] = b" (deleted)";

/// The rule for processes that run this file. A package upgrade puts another file under the name: ask again then.
///
/// # Errors
/// When the file is missing, or its file system is not in `/proc/self/mountinfo`.
pub fn rule(path: &Path) -> io::Result<CallerRule> {
    named(path, &[OWN_MOUNTS.to_owned()])
}

/// The rule for processes that run what this process runs, also where that file was removed, or is in another mount
/// namespace.
///
/// # Errors
/// When the process has ended, or its file system is not mounted where the process is.
pub fn rule_of(pid: u32) -> io::Result<CallerRule> {
    named(Path::new(&format!("/proc/{pid}/exe")), &[OWN_MOUNTS.to_owned(), format!("/proc/{pid}/mountinfo")])
}

fn named(path: &Path, tables: &[String]) -> io::Result<CallerRule> {
    let file = statx(CWD, path, AtFlags::empty(), StatxFlags::INO | StatxFlags::MNT_ID)?;
    // Not the device that stat() tells: on btrfs that is the subvolume's, while mountinfo shows the superblock's.
    for table in tables {
        if let Some((major, minor)) = device(&fs::read(table)?, file.stx_mnt_id) {
            // The kernel's own dev_t: 12 bits of major, 20 of minor (include/linux/kdev_t.h).
            return Ok(CallerRule { kind: CALLER_EXECUTABLE, place: major << 20 | minor, id: file.stx_ino });
        }
    }
    let why = format!("the file system of {} is in no table of mounts ({})", path.display(), tables.join(", "));
    Err(io::Error::new(io::ErrorKind::NotFound, why))
}

/// The device of a mount: field 3, `major:minor`, of the line that begins with the mount's id (proc_pid_mountinfo(5)).
fn device(mountinfo: &[u8], mount: u64) -> Option<(u32, u32)> {
    mountinfo.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').map(|field| std::str::from_utf8(field).ok());
        if fields.next()??.parse() != Ok(mount) {
            return None;
        }
        let (major, minor) = fields.nth(1)??.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// What every process runs, as of one look.
#[derive(Debug, Default)]
pub struct Running(Vec<(u32, PathBuf)>);

impl Running {
    /// Looks: one system call a process. A process is left out that ends meanwhile, or whose link may not be read.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn look() -> io::Result<Self> {
        let link = |pid| Some((pid, fs::read_link(format!("/proc/{pid}/exe")).ok()?));
        Ok(Self(procs::pids()?.into_iter().filter_map(link).collect()))
    }

    /// The processes that run a file under this name: the file that is there now, one that it has replaced, or one in a
    /// container. A process in another user namespace is left out, since any user can make one and have it show any name.
    pub fn of<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = u32> + 'a {
        let real = path.canonicalize().ok();
        let is_it = move |link: &Path| runs(link, path) || real.as_ref().is_some_and(|real| runs(link, real));
        self.0.iter().filter(move |(pid, link)| is_it(link) && is_trusted(*pid)).map(|(pid, _)| *pid)
    }

    /// What a process runs, as its link says.
    #[must_use]
    pub fn link(&self, pid: u32) -> Option<&Path> {
        self.0.iter().find(|(known, _)| *known == pid).map(|(_, link)| link.as_path())
    }
}

/// Whether a process's link says that it runs the file of this name, or has been started from it.
fn runs(link: &Path, path: &Path) -> bool {
    let link = link.as_os_str().as_bytes();
    let is_it = |link: &[u8]| link == path.as_os_str().as_bytes();
    is_it(link) || link.strip_suffix(DELETED).is_some_and(is_it)
}

/// Whether the link of a process means what it says.
fn is_trusted(pid: u32) -> bool {
    let namespace = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let same = |kind| namespace(&pid.to_string(), kind).is_some_and(|its| Some(its) == namespace("self", kind));
    same("mnt") || same("user")
}

/// The name of an executable for people.
#[must_use]
pub fn shown(link: &Path) -> String {
    let bytes = link.as_os_str().as_bytes();
    match bytes.strip_suffix(DELETED) {
        Some(path) => format!("{} (a file since removed or replaced)", Path::new(OsStr::from_bytes(path)).display()),
        None => link.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_device_of_a_mount() {
        let mountinfo = b"21 1 254:0 / / rw - ext4 /dev/vda rw\n31 21 0:28 / /proc rw - proc proc rw\ngarbage\n";
        assert_eq!(device(mountinfo, 31), Some((0, 28)));
        assert_eq!(device(mountinfo, 3), None);
    }

    #[test]
    fn a_mount_point_that_is_not_utf_8_is_a_line_like_any_other() {
        let mountinfo = b"20 1 0:9 / /mnt/\xff\xfe rw - tmpfs x rw\n21 1 254:0 / / rw - ext4 /dev/vda rw\n";
        assert_eq!((device(mountinfo, 20), device(mountinfo, 21)), (Some((0, 9)), Some((254, 0))));
    }

    #[test]
    fn this_process_runs_what_it_runs() {
        let own = std::env::current_exe().unwrap();
        let running = Running::look().unwrap();
        let pid = std::process::id();
        assert!(running.of(&own).any(|found| found == pid));
        assert_eq!(rule_of(pid).unwrap(), rule(&own).unwrap());
        assert_eq!(running.link(pid), Some(own.as_path()));
        assert_eq!(running.of(Path::new("/nonexistent")).count(), 0);
    }

    #[test]
    fn a_replaced_file_keeps_its_name() {
        let path = Path::new("/usr/sbin/nginx");
        assert!(runs(path, path) && runs(Path::new("/usr/sbin/nginx (deleted)"), path));
        for other in ["/usr/sbin/nginx2", "/usr/sbin", "/opt/usr/sbin/nginx", "/usr/sbin/nginx (deleted) (deleted)"] {
            assert!(!runs(Path::new(other), path), "{other}");
        }
        assert_eq!(shown(Path::new("/a (deleted)")), "/a (a file since removed or replaced)");
    }
}
