//! Paths: absolute ones only, and which of them are cgroups.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

use deployer_common::layout::MAX_CALLERS;

use super::{
    Caller,
    raw::{Value, quoted},
};

/// What fits in `sun_path` of a unix socket's address, next to its NUL.
const SOCKET_PATH: usize = 107;

/// What is mounted where, in the order of mounting.
#[derive(Debug)]
pub(super) struct Mounts(Vec<Mount>);

#[derive(Debug)]
struct Mount {
    point: PathBuf,
    is_cgroup2: bool,
}

impl Mounts {
    /// This machine's. Where they cannot be read, cgroups are taken to be at the usual place.
    pub(super) fn read() -> Self {
        let table = std::fs::read("/proc/self/mounts");
        Self::parse(table.as_deref().unwrap_or(b"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"))
    }

    /// The text of `/proc/self/mounts`.
    pub(super) fn parse(table: &[u8]) -> Self {
        let mounts = table.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(1);
            let point = OsString::from_vec(unescaped(fields.next()?)).into();
            Some(Mount { point, is_cgroup2: fields.next()? == b"cgroup2" })
        });
        Self(mounts.collect())
    }

    /// Whether a path is in a cgroup2 file system: the deepest mount above it decides, of several at one place
    /// the last, as it hides the others.
    fn is_cgroup(&self, path: &Path) -> bool {
        let above = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        above.max_by_key(|mount| mount.point.components().count()).is_some_and(|mount| mount.is_cgroup2)
    }
}

/// The kernel writes blanks and backslashes in mount points as `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// An absolute path, without `.`, doubled and trailing slashes, so that equal paths are equal texts.
pub(super) fn absolute(value: &Value<'_>) -> Option<PathBuf> {
    let text = value.word()?;
    let path = Path::new(text);
    if !path.is_absolute() {
        return value.refuse(format!(
            "{} is relative to nobody knows where; write the absolute path, beginning with /",
            quoted(text)
        ));
    }
    // `..` after a symbolic link is not what it looks like.
    if path.components().any(|part| part == Component::ParentDir) {
        return value.refuse(format!("{} contains ..; write the path without it", quoted(text)));
    }
    Some(path.components().collect())
}

/// Path of a unix socket.
pub(super) fn socket(value: &Value<'_>) -> Option<PathBuf> {
    let path = absolute(value)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH {
        return value
            .refuse(format!("is {length} bytes long, too long for a unix socket; write at most {SOCKET_PATH}"));
    }
    if path.file_name().is_none() {
        return value.refuse("is a directory; write the path of a socket in it");
    }
    Some(path)
}

/// `callers` of a service.
pub(super) fn callers(value: &Value<'_>, mounts: &Mounts) -> Option<Vec<Caller>> {
    let items = value.list("a list of paths, [\"/usr/sbin/nginx\"]")?;
    if items.len() > MAX_CALLERS {
        return value.refuse(format!(
            "has {} entries; the most is {MAX_CALLERS}: write a cgroup that holds several of them",
            items.len()
        ));
    }
    let callers: Vec<_> = items.iter().map(|item| caller(item, mounts)).collect();
    callers.into_iter().collect()
}

fn caller(value: &Value<'_>, mounts: &Mounts) -> Option<Caller> {
    let path = absolute(value)?;
    if mounts.is_cgroup(&path) {
        return Some(Caller::Cgroup(path));
    }
    if path.file_name().is_none() {
        return value.refuse("is a directory; write the path of an executable or a cgroup");
    }
    Some(Caller::Executable(path))
}
