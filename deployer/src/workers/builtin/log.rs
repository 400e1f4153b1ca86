//! A worker's log: made, rotated by size, and its last line for error messages.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
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
}

impl Log {
    /// Makes its directory, rotates it if it is large, while nobody writes to it; returns its length.
    pub(super) fn prepare(&self) -> io::Result<u64> {
        if let Some(directory) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let length = self.length();
        if length < self.size {
            return Ok(length);
        }
        if self.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            self.shift()?;
            fs::rename(&self.path, self.former(1))?;
        }
        Ok(0)
    }

    /// Rotates it, if it is large, under a worker that writes to it: a copy is made, then it is cut to nothing. The
    /// worker appends, so it goes on at the new end. What it writes between the end of the copy and the cut is lost: a
    /// few microseconds' worth. The copy is whole before a former one goes for it. Whether it was rotated.
    pub(super) fn rotate(&self) -> io::Result<bool> {
        if self.length() < self.size {
            return Ok(false);
        }
        let mut file = open(&self.path)?;
        if self.keep > 0 {
            let new = self.beside("new");
            let copied =
                copy(&mut file, &new).and_then(|()| self.shift()).and_then(|()| fs::rename(&new, self.former(1)));
            if let Err(error) = copied {
                // On a full disk its room is needed; one that stays goes before the next try.
                let _ = fs::remove_file(&new);
                return Err(error);
            }
        }
        file.set_len(0)?;
        Ok(true)
    }

    /// The last line written after `from` bytes; empty if there is none.
    pub(super) fn last_line(&self, from: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = open(&self.path)?;
            let length = file.metadata()?.len();
            // Shorter: rotated since.
            let from = if length < from { 0 } else { from };
            file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL))))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        line.chars().filter(|char| !char.is_control()).take(LINE).collect()
    }

    fn length(&self) -> u64 {
        fs::symlink_metadata(&self.path).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 })
    }

    /// Makes room for a new `.1`.
    fn shift(&self) -> io::Result<()> {
        for nth in (1..=self.keep).rev() {
            let (from, to) = (self.former(nth), self.former(nth + 1));
            let result = if nth == self.keep { fs::remove_file(&from) } else { fs::rename(&from, &to) };
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(&from)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn former(&self, nth: u32) -> PathBuf {
        self.beside(&nth.to_string())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{suffix}"));
        path.into()
    }
}

/// To a file of its own, in place of one that a former try has left.
fn copy(from: &mut File, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(to)(error)),
        _ => {}
    }
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o640).open(to).map_err(named(to))?;
    io::copy(from, &mut copy).map(drop).map_err(named(to))
}

/// Never by a link: the directory may be the worker's own, and this process root.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error + use<> {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn log(folder: &tempfile::TempDir, keep: u32) -> Log {
        Log { path: folder.path().join("deep/er/web.log"), size: 10, keep }
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
        std::os::unix::fs::symlink(&other, &log.path).unwrap();
        assert!(!log.rotate().unwrap());
        assert_eq!(log.last_line(0), "");
        assert_eq!(fs::read_to_string(&other).unwrap(), "0123456789 secret");
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
