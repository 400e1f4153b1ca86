//! cgroup v2: where it is mounted, and how its directories are named in the kernel.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The root of the cgroup v2 hierarchy, from `/proc/self/mounts`; on hybrid hosts it is not `/sys/fs/cgroup`.
///
/// # Errors
/// When `/proc` cannot be read, or none is mounted.
pub fn root() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    find_root(&mounts).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 file system is mounted; mount one: mount -t cgroup2 none DIR",
        )
    })
}

/// This process's own cgroup.
///
/// # Errors
/// As [`root`].
pub fn own() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let below = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Ok(root()?.join(below))
}

fn find_root(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(at)))
    })
}

/// `/proc/self/mounts` writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (code, char)| text.replace(code, char))
}

/// Id and depth of a cgroup, as `bpf_get_current_ancestor_cgroup_id` knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupId {
    /// The inode of its directory.
    pub id: u64,
    /// Steps below the root.
    pub depth: u32,
}

/// Looks a cgroup up.
///
/// # Errors
/// When it is missing, or not below `root`.
pub fn id(root: &Path, cgroup: &Path) -> io::Result<CgroupId> {
    let cgroup = cgroup.canonicalize()?;
    let below = cgroup.strip_prefix(root.canonicalize()?).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("not below the cgroup v2 root {}", root.display()))
    })?;
    Ok(CgroupId { id: fs::metadata(&cgroup)?.ino(), depth: below.components().count() as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_root_on_hybrid_hosts() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(find_root(mounts), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(find_root("proc /proc proc rw 0 0\n"), None);
        assert_eq!(find_root("garbage"), None);
    }
}
