//! A folder that root works in although another user may be able to change it, or a folder on its path.
//!
//! It is opened step by step, and what is done in it is done beneath its descriptor, by names without a slash: so it
//! stays this folder, whatever becomes of its path. A symbolic link on the way is followed only where none but root and
//! this process's user could have put it; the last part of a path is never followed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Stat, fchown, fcntl_setfl, fstat, mkdirat, openat, readlinkat, renameat,
        statat, unlinkat,
    },
    io::Errno,
    process::{Gid, Uid, geteuid},
};

use super::account::Identity;
use crate::trust;

/// Symbolic links on a path, as in the kernel (path_resolution(7)).
const LINKS: usize = 40;
/// Set aside under this name: a log that its user may not write.
const ASIDE: &str = ".old";

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    /// Only root and this process's user can change what is in it.
    own: bool,
}

impl Folder {
    /// The folder that a file is in, made where it is missing, and the file's name.
    ///
    /// # Errors
    /// When the path has no name at its end, or a step of it is not to be taken.
    pub(crate) fn of(file: &Path) -> io::Result<(Self, OsString)> {
        Self::find(file, true)
    }

    /// The same; a folder that is missing is an error.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(crate) fn existing(file: &Path) -> io::Result<(Self, OsString)> {
        Self::find(file, false)
    }

    fn find(file: &Path, make: bool) -> io::Result<(Self, OsString)> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "it is not an absolute path of a file");
        let (Some(path), Some(name), true) = (file.parent(), file.file_name(), file.is_absolute()) else {
            return Err(wrong());
        };
        let mut walk = Walk { stack: vec![open_root()?], links: 0, make };
        walk.go(path)?;
        let fd = walk.stack.pop().ok_or_else(wrong)?;
        let own = trust::only_ours(&fstat(&fd)?);
        Ok((Self { fd, path: path.to_owned(), own }, name.to_owned()))
    }

    /// Whether only root and this process's user can change what is in it.
    pub(crate) fn is_own(&self) -> bool {
        self.own
    }

    /// Opens a log to append to it, or makes it, for this user if one is given. A log that the user of this thread may not
    /// write is set aside: root has written it before logs were opened as their user.
    ///
    /// # Errors
    /// When it is no plain file, or has a second name, or cannot be opened.
    pub(crate) fn append(&self, name: &OsStr, owner: Option<&Identity>) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::APPEND;
        let file = match self.open(name, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create(name, flags, owner)?,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.length(name).is_ok() => {
                let mut aside = name.to_owned();
                aside.push(ASIDE);
                self.rename(name, &aside)?;
                self.create(name, flags, owner)?
            }
            result => result?,
        };
        // Its writers wait for a disk as for any.
        fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(file)
    }

    /// Opens a plain file that has no other name. Never follows a link, and never waits: not for the other end of a FIFO,
    /// either.
    ///
    /// # Errors
    /// When it is something else, or cannot be opened.
    pub(crate) fn open(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(|error| match error {
            Errno::LOOP => io::Error::other("it is a symbolic link, which is not followed. Remove it"),
            // A FIFO that no process reads.
            Errno::NXIO => not_plain(),
            other => other.into(),
        })?;
        let about = fstat(&fd)?;
        if !self.takes(&about) {
            return Err(not_plain());
        }
        if is_plain(&about) && about.st_nlink != 1 {
            return Err(io::Error::other("it has another name elsewhere (a hard link). Remove it"));
        }
        Ok(fd.into())
    }

    /// Makes a file that was not there, for this user if one is given; mode 0640.
    ///
    /// # Errors
    /// When there is one already, or the folder does not take it.
    pub(crate) fn create(&self, name: &OsStr, flags: OFlags, owner: Option<&Identity>) -> io::Result<File> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP)?;
        if let Some(owner) = owner {
            fchown(&fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
        }
        Ok(fd.into())
    }

    /// Whether a log can be this: a plain file; in a folder of root's also a device, such as /dev/null.
    fn takes(&self, about: &Stat) -> bool {
        is_plain(about) || (self.own && FileType::from_raw_mode(about.st_mode) == FileType::CharacterDevice)
    }

    /// Bytes in a plain file; 0: there is none.
    ///
    /// # Errors
    /// When it is something else than a plain file.
    pub(crate) fn length(&self, name: &OsStr) -> io::Result<u64> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) if is_plain(&about) => Ok(about.st_size.unsigned_abs()),
            Ok(about) if self.takes(&about) => Ok(0),
            Ok(_) => Err(not_plain()),
            Err(Errno::NOENT) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a file another name in the folder, in place of what has that.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// A file's path, for messages.
    pub(crate) fn path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }
}

fn is_plain(about: &Stat) -> bool {
    FileType::from_raw_mode(about.st_mode) == FileType::RegularFile
}

fn not_plain() -> io::Error {
    io::Error::other("it is not a plain file. Remove it")
}

const STEP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_root() -> io::Result<OwnedFd> {
    Ok(openat(CWD, "/", STEP, Mode::empty())?)
}

/// The folders on the way, from the root to where it has come.
struct Walk {
    stack: Vec<OwnedFd>,
    links: usize,
    make: bool,
}

impl Walk {
    fn go(&mut self, path: &Path) -> io::Result<()> {
        for part in path.components() {
            match part {
                Component::RootDir => self.stack.truncate(1),
                Component::ParentDir if self.stack.len() > 1 => drop(self.stack.pop()),
                Component::ParentDir | Component::CurDir | Component::Prefix(_) => {}
                Component::Normal(name) => self.step(name).map_err(|error| named(name, path, &error))?,
            }
        }
        Ok(())
    }

    fn step(&mut self, name: &OsStr) -> io::Result<()> {
        let Some(here) = self.stack.last() else { return Err(Errno::NOENT.into()) };
        let opened = match openat(here, name, STEP, Mode::empty()) {
            Err(Errno::NOENT) if self.make => {
                match mkdirat(here, name, Mode::from_raw_mode(0o755)) {
                    Err(error) if error != Errno::EXIST => return Err(error.into()),
                    _ => {}
                }
                openat(here, name, STEP, Mode::empty())
            }
            other => other,
        };
        match opened {
            Ok(fd) => self.stack.push(fd),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let to = self.link(name)?;
                self.go(&to)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Where a symbolic link leads that may be followed.
    fn link(&mut self, name: &OsStr) -> io::Result<PathBuf> {
        let Some(here) = self.stack.last() else { return Err(Errno::NOENT.into()) };
        let to = match readlinkat(here, name, Vec::new()) {
            Ok(to) => PathBuf::from(OsStr::from_bytes(to.as_bytes())),
            Err(Errno::INVAL) => return Err(Errno::NOTDIR.into()),
            Err(error) => return Err(error.into()),
        };
        let (folder, link) = (fstat(here)?, statat(here, name, AtFlags::SYMLINK_NOFOLLOW)?);
        let is_ours = |owner: u32| owner == 0 || owner == geteuid().as_raw();
        if !is_ours(link.st_uid) || !trust::keeps_entries(&folder) {
            return Err(io::Error::other(
                "it is a symbolic link that another user may have put there, which is not followed. Write the path without it",
            ));
        }
        self.links += 1;
        if self.links > LINKS { Err(Errno::LOOP.into()) } else { Ok(to) }
    }
}

fn named(name: &OsStr, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}` in {}: {error}", name.display(), path.display()))
}
