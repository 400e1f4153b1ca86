//! Which files and folders another user of this machine could change or replace.
//!
//! What root reads, runs or writes must be in the hands of root and of the daemon's user alone, and so must every folder
//! above it: a user that may change a folder puts another file in the place of one that is there.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, Stat, lstat},
    process::geteuid,
};

/// Groups below this are the system's (`SYS_GID_MAX` in login.defs(5)): `/var/log` belongs to one on some systems.
const USERS_FROM: u32 = 1000;
/// Symbolic links on a path, as in the kernel (path_resolution(7)).
const LINKS: usize = 40;

/// What is wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsafe {
    /// The file or folder on it.
    pub at: PathBuf,
    /// "is writable by every user"
    pub why: String,
    /// A command that mends it.
    pub fix: String,
    /// Only a system's group may change it: a flaw that some systems are delivered with.
    pub is_minor: bool,
}

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}. Next: {}", self.at.display(), self.why, self.fix)
    }
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

fn mode_of(about: &Stat) -> Mode {
    Mode::from_raw_mode(about.st_mode)
}

/// Whether only root, this process's user, and groups of the system can change what is in a folder, or a file.
#[must_use]
pub fn only_ours(about: &Stat) -> bool {
    let mode = mode_of(about);
    let by_users = mode.contains(Mode::WGRP) && about.st_gid >= USERS_FROM;
    is_ours(about.st_uid) && !mode.contains(Mode::WOTH) && !by_users
}

/// Whether a folder keeps the entries that are root's, or this process's user's: others cannot remove or replace them.
#[must_use]
pub fn keeps_entries(about: &Stat) -> bool {
    only_ours(about) || (is_ours(about.st_uid) && mode_of(about).contains(Mode::SVTX))
}

/// Looks at a path, and at each folder above it. Where something on it is missing, what is above that is looked at. `also`
/// are users, beside root and this process's, that may own it, or a folder on the way.
///
/// # Errors
/// The first that another user could change.
pub fn path(path: &Path, also: &[u32]) -> Result<(), Unsafe> {
    let mut minor = None;
    walk(path, LINKS, &mut |at, about, is_last| {
        let found = judge(at, about, is_last, also);
        match found {
            Some(found) if !found.is_minor => Err(found),
            found => {
                minor = minor.take().or(found);
                Ok(())
            }
        }
    })?;
    minor.map_or(Ok(()), Err)
}

/// The folder on a path in which every user may replace what the path leads to, if there is one; the folder that holds
/// the last part must not even be one in which every user may make files.
#[must_use]
pub fn open_to_all(path: &Path) -> Option<PathBuf> {
    let holder = path.parent().unwrap_or(path).to_owned();
    let mut found = None;
    let looked = walk(&holder, LINKS, &mut |at, about, is_last| {
        let mode = mode_of(about);
        let is_dir = FileType::from_raw_mode(about.st_mode) == FileType::Directory;
        let keeps = mode.contains(Mode::SVTX) && !is_last;
        if is_dir && mode.contains(Mode::WOTH) && !keeps {
            found = Some(at.to_owned());
        }
        Ok(())
    });
    looked.ok().and(found)
}

/// Looks at a file that is open, or not to be read: its owner must be root or this process's user, and no other user may
/// write it; of a secret, no other may read it.
///
/// # Errors
/// What is wrong with it.
pub fn file(path: &Path, about: &fs::Metadata, is_secret: bool) -> Result<(), Unsafe> {
    let shown = path.display();
    let wrong = |why: String, fix: String| Err(Unsafe { at: path.to_owned(), why, fix, is_minor: false });
    if !is_ours(about.uid()) {
        let uid = about.uid();
        return wrong(
            format!("belongs to user {uid}, and not to root or the daemon's user"),
            format!("chown root {shown}"),
        );
    }
    if is_secret && about.mode() & 0o077 != 0 {
        let mode = about.mode() & 0o7777;
        return wrong(
            format!("holds a secret, and others may read or write it (mode {mode:04o})"),
            format!("chmod 600 {shown}"),
        );
    }
    if about.mode() & 0o022 != 0 {
        let mode = about.mode() & 0o7777;
        return wrong(format!("may be written by others (mode {mode:04o})"), format!("chmod go-w {shown}"));
    }
    Ok(())
}

fn judge(at: &Path, about: &Stat, is_last: bool, also: &[u32]) -> Option<Unsafe> {
    let (shown, mode) = (at.display(), mode_of(about));
    let found = |why: String, fix: String, is_minor| Some(Unsafe { at: at.to_owned(), why, fix, is_minor });
    let is_dir = FileType::from_raw_mode(about.st_mode) == FileType::Directory;
    if !is_ours(about.st_uid) && !also.contains(&about.st_uid) {
        let uid = about.st_uid;
        return found(
            format!("belongs to user {uid}, which can change or replace it"),
            format!("chown root {shown}"),
            false,
        );
    }
    // Modes of symbolic links mean nothing; a sticky folder keeps the entries that are others'.
    if FileType::from_raw_mode(about.st_mode) == FileType::Symlink || (is_dir && !is_last && mode.contains(Mode::SVTX))
    {
        return None;
    }
    if mode.contains(Mode::WOTH) {
        return found("is writable by every user".to_owned(), format!("chmod o-w {shown}"), false);
    }
    if mode.contains(Mode::WGRP) && about.st_gid != 0 {
        let gid = about.st_gid;
        return found(format!("is writable by group {gid}"), format!("chmod g-w {shown}"), gid < USERS_FROM);
    }
    None
}

/// Shows each part of a path, from the root on, and of the paths that symbolic links on it lead to. Whether it is the last
/// part comes with it.
fn walk(
    path: &Path,
    links: usize,
    look: &mut impl FnMut(&Path, &Stat, bool) -> Result<(), Unsafe>,
) -> Result<(), Unsafe> {
    let mut here = PathBuf::new();
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        match part {
            Component::ParentDir => drop(here.pop()),
            part => here.push(part),
        }
        // Beyond one that is missing, or not to be seen, there is nothing to look at.
        let Ok(about) = lstat(&here) else { return Ok(()) };
        let is_last = parts.peek().is_none();
        look(&here, &about, is_last)?;
        if FileType::from_raw_mode(about.st_mode) == FileType::Symlink && links > 0 {
            let Ok(to) = fs::read_link(&here) else { return Ok(()) };
            let rest: PathBuf = parts.collect();
            let to = here.parent().unwrap_or(Path::new("/")).join(to).join(rest);
            return walk(&to, links - 1, look);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_above_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let (above, below) = (dir.path().join("a"), dir.path().join("a/b"));
        fs::create_dir_all(&below).unwrap();
        let file = below.join("f");
        fs::write(&file, "").unwrap();
        // /tmp is writable by all, and sticky.
        assert_eq!(path(&file, &[]), Ok(()));
        assert_eq!(path(&below.join("missing/file"), &[]), Ok(()));
        mode(&above, 0o777);
        let found = path(&file, &[]).unwrap_err();
        assert_eq!((found.at.as_path(), found.fix), (above.as_path(), format!("chmod o-w {}", above.display())));
        mode(&above, 0o1777);
        assert_eq!(path(&file, &[]), Ok(()), "sticky");
        assert_eq!(path(&above, &[]).unwrap_err().why, "is writable by every user", "what is to be made in it");
        mode(&above, 0o755);
        mode(&file, 0o666);
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        assert_eq!(path(&link, &[]).unwrap_err().at, file, "where a link leads");
    }

    #[test]
    fn a_folder_open_to_all_holds_no_socket() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("d/s");
        fs::create_dir(dir.path().join("d")).unwrap();
        assert_eq!(open_to_all(&at), None);
        for wrong in [0o777, 0o1777] {
            mode(&dir.path().join("d"), wrong);
            assert_eq!(open_to_all(&at), Some(dir.path().join("d")), "{wrong:o}");
        }
        mode(&dir.path().join("d"), 0o755);
        mode(dir.path(), 0o777);
        assert_eq!(open_to_all(&at), Some(dir.path().to_owned()));
    }

    #[test]
    fn files_are_written_by_us_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let look = |bits: u32, is_secret| {
            mode(file.path(), bits);
            super::file(file.path(), &fs::metadata(file.path()).unwrap(), is_secret).map_err(|found| found.fix)
        };
        assert_eq!([look(0o644, false), look(0o600, true), look(0o400, true)], [Ok(()), Ok(()), Ok(())]);
        let shown = file.path().display();
        assert_eq!(
            [look(0o664, false), look(0o646, false)].map(Result::unwrap_err),
            [(); 2].map(|()| format!("chmod go-w {shown}"))
        );
        assert_eq!(
            [look(0o640, true), look(0o604, true)].map(Result::unwrap_err),
            [(); 2].map(|()| format!("chmod 600 {shown}"))
        );
    }
}
