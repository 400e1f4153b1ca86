//! cgroup v2: where it is mounted, and how its directories are named in the kernel.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

/// The root of the cgroup v2 hierarchy, from `/proc/self/mounts`; on hybrid hosts it is not `/sys/fs/cgroup`.
///
/// # Errors
/// When `/proc` cannot be read, or none is mounted.
pub fn root() -> io::Result<PathBuf> {
    find_root(&fs::read("/proc/self/mounts")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 file system is mounted; mount one: mount -t cgroup2 none DIR",
        )
    })
}

/// This process's own cgroup.
///
/// # Errors
/// As [`root`], and when this process is in no cgroup that its cgroup namespace shows.
pub fn own() -> io::Result<PathBuf> {
    let below = of_process(std::process::id());
    let below = below.ok_or_else(|| io::Error::other("this process is in no cgroup below the cgroup v2 root"))?;
    Ok(root()?.join(below))
}

/// Paths are bytes: any of the other lines may hold what is not UTF-8.
fn find_root(mounts: &[u8]) -> Option<PathBuf> {
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(at))))
    })
}

/// `/proc/self/mounts` writes some bytes (blanks, tabs, ends of lines, backslashes, `#`) as a backslash and three octal
/// digits (`fs/seq_file.c`, mangle_path).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
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

/// The cgroup v2 of a process, as a path below the root of the hierarchy, without a leading slash; `None`: it has ended, or
/// is in none that this cgroup namespace shows.
#[must_use]
pub fn of_process(pid: u32) -> Option<PathBuf> {
    let bytes = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let below = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    let path = PathBuf::from(OsStr::from_bytes(below));
    (!path.starts_with("..")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_root_on_hybrid_hosts() {
        let mounts = b"cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(find_root(mounts), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(find_root(b"proc /proc proc rw 0 0\n"), None);
        assert_eq!(find_root(b"garbage"), None);
        let odd = b"none /mnt/\xff\xfe tmpfs rw 0 0\ncgroup2 /cg\xff cgroup2 rw 0 0\n";
        assert_eq!(find_root(odd).map(|root| root.into_os_string().into_vec()), Some(b"/cg\xff".to_vec()));
    }

    #[test]
    fn octal_escapes_are_bytes() {
        assert_eq!(unescape(b"a\\040b\\043\\134\\377"), b"a b#\\\xff");
        // What is no escape stays as it is.
        assert_eq!(unescape(b"\\0\\9\\999\\"), b"\\0\\9\\999\\");
    }
}
