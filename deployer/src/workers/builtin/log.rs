//! A worker's log: made, rotated by size, and its last line for error messages.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{
    kernel::credentials,
    launch::{account::Identity, folder::Folder},
};

/// Looked at for a last line, from the end.
const TAIL: u64 = 4096;
/// Longest last line in a message, in characters.
const LINE: usize = 200;

/// A log file and how it is rotated.
#[derive(Debug, Clone)]
pub(super) struct Log {
    pub(super) path: PathBuf,
    /// Bytes at which it is rotated.
    pub(super) size: u64,
    /// Former ones kept.
    pub(super) keep: u32,
    /// Whose it is; `None`: the daemon's user's.
    pub(super) owner: Option<Identity>,
}

impl Log {
    /// Makes its directory, rotates it if it is large, while no process writes to it; returns its length.
    pub(super) fn prepare(&self) -> io::Result<u64> {
        let (folder, name) = Folder::of(&self.path)?;
        self.within(folder, name, |place| {
            let length = place.folder.length(&place.name).map_err(place.named(&place.name))?;
            if length < self.size {
                return Ok(length);
            }
            if self.keep == 0 {
                place.folder.remove(&place.name)?;
            } else {
                place.shift(self.keep)?;
                place.folder.rename(&place.name, &place.former(1))?;
            }
            Ok(0)
        })
    }

    /// Rotates it, if it is large, under a worker that writes to it: a copy is made, then it is cut to nothing. The
    /// worker appends, so it goes on at the new end. What it writes between the end of the copy and the cut is lost: a
    /// few microseconds' worth. The copy is whole before a former one goes for it. Whether it was rotated.
    pub(super) fn rotate(&self) -> io::Result<bool> {
        let Ok((folder, name)) = Folder::existing(&self.path) else { return Ok(false) };
        if folder.length(&name).unwrap_or(0) < self.size {
            return Ok(false);
        }
        self.within(folder, name, |place| {
            let mut file = place.folder.open(&place.name, OFlags::RDWR).map_err(place.named(&place.name))?;
            if self.keep > 0 {
                let new = place.beside("new");
                let copied = place
                    .copy(&mut file, &new, self.owner.as_ref())
                    .and_then(|()| place.shift(self.keep))
                    .and_then(|()| place.folder.rename(&new, &place.former(1)));
                if let Err(error) = copied {
                    // On a full disk its room is needed; one that stays goes before the next try.
                    let _ = place.folder.remove(&new);
                    return Err(error);
                }
            }
            file.set_len(0)?;
            Ok(true)
        })
    }

    /// The last line written after `from` bytes; empty if there is none.
    pub(super) fn last_line(&self, from: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let (folder, name) = Folder::existing(&self.path)?;
            self.within(folder, name, |place| {
                let mut file = place.folder.open(&place.name, OFlags::RDONLY)?;
                let length = file.metadata()?.len();
                // Shorter: rotated since.
                let from = if length < from { 0 } else { from };
                file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL))))?;
                let mut bytes = Vec::new();
                file.take(TAIL).read_to_end(&mut bytes)?;
                Ok(bytes)
            })
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        line.chars().filter(|char| !char.is_control()).take(LINE).collect()
    }

    /// Works in the folder: as the log's owner, but where only root and the daemon's user can change it.
    fn within<T: Send>(
        &self,
        folder: Folder,
        name: OsString,
        work: impl FnOnce(&Place) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let place = Place { folder, name };
        match &self.owner {
            Some(owner) if !place.folder.is_own() => {
                credentials::on_files_as((owner.uid, owner.gid, &owner.groups), || work(&place))
            }
            _ => work(&place),
        }
    }
}

/// Where a log is, and its name.
struct Place {
    folder: Folder,
    name: OsString,
}

impl Place {
    /// Makes room for a new `.1`.
    fn shift(&self, keep: u32) -> io::Result<()> {
        for nth in (1..=keep).rev() {
            let (from, to) = (self.former(nth), self.former(nth + 1));
            let result = if nth == keep { self.folder.remove(&from) } else { self.folder.rename(&from, &to) };
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.named(&from)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// To a file of its own, in place of one that a former try has left. It is the owner's where root makes it.
    fn copy(&self, from: &mut File, to: &OsStr, owner: Option<&Identity>) -> io::Result<()> {
        match self.folder.remove(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.named(to)(error)),
            _ => {}
        }
        let owner = owner.filter(|_| self.folder.is_own());
        let mut copy = self.folder.create(to, OFlags::WRONLY, owner).map_err(self.named(to))?;
        io::copy(from, &mut copy).map(drop).map_err(self.named(to))
    }

    fn former(&self, nth: u32) -> OsString {
        self.beside(&nth.to_string())
    }

    fn beside(&self, suffix: &str) -> OsString {
        beside(Path::new(&self.name), suffix).into_os_string()
    }

    fn named(&self, name: &OsStr) -> impl FnOnce(io::Error) -> io::Error + use<> {
        let path = self.folder.path(name).display().to_string();
        move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(format!(".{suffix}"));
    path.into()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        io::Write,
        os::unix::fs::symlink,
    };

    use super::*;

    impl Log {
        fn former(&self, nth: u32) -> PathBuf {
            self.beside(&nth.to_string())
        }

        fn beside(&self, suffix: &str) -> PathBuf {
            beside(&self.path, suffix)
        }
    }

    fn log(folder: &tempfile::TempDir, keep: u32) -> Log {
        Log { path: folder.path().join("deep/er/web.log"), size: 10, keep, owner: None }
    }

    fn contents(log: &Log) -> Vec<String> {
        let paths = std::iter::once(log.path.clone()).chain((1..=log.keep + 1).map(|nth| log.former(nth)));
        paths.map_while(|path| fs::read_to_string(path).ok()).collect()
    }

    #[test]
    fn rotates_under_a_writer_and_keeps_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder, 2);
        assert_eq!(log.prepare().unwrap(), 0);
        let mut writer = OpenOptions::new().append(true).create(true).open(&log.path).unwrap();
        writer.write_all(b"short").unwrap();
        assert!(!log.rotate().unwrap());
        for text in ["long, 1\n", "0123456789 2\n", "0123456789 3\n"] {
            writer.write_all(text.as_bytes()).unwrap();
            assert!(log.rotate().unwrap(), "{text}");
        }
        writer.write_all(b"new\n").unwrap();
        assert_eq!(contents(&log), ["new\n", "0123456789 3\n", "0123456789 2\n"]);
    }

    #[test]
    fn one_that_cannot_be_copied_costs_no_former_one() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder, 2);
        log.prepare().unwrap();
        let texts = ["0123456789 now", "one", "two"];
        for (path, text) in [log.path.clone(), log.former(1), log.former(2)].iter().zip(texts) {
            fs::write(path, text).unwrap();
        }
        fs::create_dir(log.beside("new")).unwrap();
        for _ in 0..3 {
            assert!(log.rotate().unwrap_err().to_string().contains("web.log.new: "));
            assert_eq!(contents(&log), texts);
        }
        fs::remove_dir(log.beside("new")).unwrap();
        fs::write(log.beside("new"), "a former try, cut sh").unwrap();
        assert!(log.rotate().unwrap());
        assert_eq!(contents(&log), ["", "0123456789 now", "one"]);
        assert!(!log.beside("new").exists());
    }

    #[test]
    fn rotates_before_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder, 1);
        log.prepare().unwrap();
        fs::write(&log.path, "short").unwrap();
        assert_eq!(log.prepare().unwrap(), 5);
        fs::write(&log.path, "0123456789").unwrap();
        assert_eq!(log.prepare().unwrap(), 0);
        assert!(!log.path.exists());
        assert_eq!(fs::read_to_string(log.former(1)).unwrap(), "0123456789");
    }

    #[test]
    fn keeps_none() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder, 0);
        log.prepare().unwrap();
        fs::write(&log.path, "0123456789").unwrap();
        assert!(log.rotate().unwrap());
        assert_eq!(contents(&log), [""]);
        fs::write(&log.path, "0123456789").unwrap();
        log.prepare().unwrap();
        assert!(!log.path.exists());
    }

    #[test]
    fn follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder, 1);
        log.prepare().unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "0123456789 secret").unwrap();
        symlink(&other, &log.path).unwrap();
        assert!(!log.rotate().unwrap());
        assert_eq!(log.last_line(0), "");
        assert!(log.prepare().unwrap_err().to_string().contains("not a plain file"));
        assert_eq!(fs::read_to_string(&other).unwrap(), "0123456789 secret");
        fs::remove_file(&log.path).unwrap();
        fs::hard_link(&other, &log.path).unwrap();
        assert!(log.rotate().unwrap_err().to_string().contains("hard link"));
        assert_eq!(fs::read_to_string(&other).unwrap(), "0123456789 secret");
    }

    /// The folder itself may be replaced by a link, where another user may do that. Needs root.
    #[test]
    fn follows_no_link_to_another_folder() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let theirs = folder.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
        symlink("/etc", theirs.join("log")).unwrap();
        let log = Log { path: theirs.join("log/shadow"), size: 1, keep: 1, owner: None };
        let error = log.prepare().unwrap_err().to_string();
        assert!(error.contains("symbolic link that another user may have put there"), "{error}");
        assert!(!log.rotate().unwrap() && log.last_line(0).is_empty());
        // One that root has put into a folder of its own is root's wish.
        let own = folder.path().join("own");
        fs::create_dir(folder.path().join("elsewhere")).unwrap();
        symlink("elsewhere", &own).unwrap();
        let log = Log { path: own.join("web.log"), ..log };
        assert_eq!(log.prepare().unwrap(), 0);
    }

    #[test]
    fn the_last_line_is_of_this_run() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder, 1);
        assert_eq!(log.last_line(0), "");
        log.prepare().unwrap();
        fs::write(&log.path, "before\n").unwrap();
        assert_eq!((log.last_line(0), log.last_line(7)), ("before".to_owned(), String::new()));
        fs::write(&log.path, format!("{}\nTraceback\n  Error: \x1b[1mport in use \n\n", "x".repeat(9000))).unwrap();
        assert_eq!(log.last_line(7), "Error: [1mport in use");
        fs::write(&log.path, "after\n").unwrap();
        assert_eq!(log.last_line(9000), "after");
    }
}
