//! How an executable is named in the kernel: device and inode.

use std::{fs, io, path::Path};

use deployer_common::layout::{CALLER_EXECUTABLE, CallerRule};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// The rule for processes that run this file. A package upgrade puts another file under the name: ask again then.
///
/// # Errors
/// When the file is missing, or its file system is not in `/proc/self/mountinfo`.
pub fn rule(path: &Path) -> io::Result<CallerRule> {
    let file = statx(CWD, path, AtFlags::empty(), StatxFlags::INO | StatxFlags::MNT_ID)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // Not the device that stat() tells: on btrfs that is the subvolume's, while mountinfo shows the superblock's.
    let (major, minor) = device(&mounts, file.stx_mnt_id).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("the file system of {} is not mounted here", path.display()))
    })?;
    // The kernel's own dev_t: 12 bits of major, 20 of minor (include/linux/kdev_t.h).
    Ok(CallerRule { kind: CALLER_EXECUTABLE, place: major << 20 | minor, id: file.stx_ino })
}

/// The device of a mount: field 3, `major:minor`, of the line that begins with the mount's id (proc_pid_mountinfo(5)).
fn device(mountinfo: &str, mount: u64) -> Option<(u32, u32)> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        if fields.next()?.parse() != Ok(mount) {
            return None;
        }
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_device_of_a_mount() {
        let mountinfo = "21 1 254:0 / / rw - ext4 /dev/vda rw\n31 21 0:28 / /proc rw - proc proc rw\ngarbage\n";
        assert_eq!(device(mountinfo, 31), Some((0, 28)));
        assert_eq!(device(mountinfo, 3), None);
    }
}
