//! The lines on the disk: one file that grows, and the one before it.
//!
//! They are not synced: what a killed daemon has written is there; a loss of power may cost the last few seconds.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{api::Entry, journal::file::replace_soon};

const CURRENT: &str = "events.ndjson";
const FORMER: &str = "events.ndjson.1";
/// A file that is longer becomes the former one: 8 MiB in all, some 40,000 lines.
const FILE_MOST: u64 = 4 << 20;
/// What the lines before those in the files add up to, in lines that would say it.
const KNOWN: &str = "events.known";
/// More cannot be a line of ours: a service of 1,024 workers, as it is and as it was.
pub(super) const LINE_MOST: u64 = 128 << 10;
/// So many lines are never told; a number above it is not one of ours.
const SEQ_MOST: u64 = 1 << 53;

/// Where they are.
#[derive(Debug, Clone)]
pub(super) struct Files(PathBuf);

impl Files {
    /// In a directory, which need not be there.
    pub(super) fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    /// From the oldest line on. Both are held open: what is renamed or removed meanwhile is read all the same.
    pub(super) fn open(&self) -> Reading {
        // In this order, so that what becomes the former one between the two is read twice rather than not at all.
        let files = [CURRENT, FORMER].map(|name| open(&self.0.join(name)).ok());
        Reading { files: files.into_iter().flatten().collect(), next: 0 }
    }

    /// What was known when the younger file was begun. It is worth nothing where the files do not go back as far: somebody
    /// has removed them.
    pub(super) fn known(&self, each: impl FnMut(Entry)) {
        let Ok(file) = open(&self.0.join(KNOWN)) else { return };
        let Some((oldest, _)) = self.open().line() else { return };
        let lines = file.split(b'\n').map_while(Result::ok);
        lines.filter_map(|line| understood(&line)).filter(|entry| oldest <= entry.seq).for_each(each);
    }

    /// Every line with its number, and what it says if that is understood.
    pub(super) fn read(&self, mut each: impl FnMut(u64, Option<Entry>)) {
        let mut reading = self.open();
        while let Some((seq, line)) = reading.line() {
            each(seq, understood(&line));
        }
    }
}

/// Read from the oldest on: the oldest file is the last. Anybody may have written there: what is no line of ours is left
/// out, and so is one whose number is not above the one before.
pub(super) struct Reading {
    files: Vec<BufReader<File>>,
    /// Lines below this have been read, or are not wanted.
    next: u64,
}

#[derive(serde::Deserialize)]
struct Numbered {
    seq: u64,
}

impl Reading {
    /// The next line and its number.
    fn line(&mut self) -> Option<(u64, Vec<u8>)> {
        loop {
            let file = self.files.last_mut()?;
            let mut line = Vec::new();
            match file.by_ref().take(LINE_MOST).read_until(b'\n', &mut line) {
                Ok(some) if some > 0 => {}
                _ => {
                    self.files.pop();
                    continue;
                }
            }
            // What is too long comes in pieces that mean nothing.
            let read = line.ends_with(b"\n").then(|| serde_json::from_slice::<Numbered>(&line).ok()).flatten();
            if let Some(Numbered { seq }) = read.filter(|read| (self.next..SEQ_MOST).contains(&read.seq)) {
                self.next = seq + 1;
                return Some((seq, line));
            }
        }
    }

    /// Lines with numbers in `from..until`, about so many bytes, and the number after the last; `None`: there are no more.
    pub(super) fn chunk(&mut self, from: u64, until: u64, bytes: usize) -> Option<(Vec<u8>, u64)> {
        self.next = self.next.max(from);
        let mut chunk = Vec::new();
        while chunk.len() < bytes
            && self.next < until
            && let Some((seq, line)) = self.line()
        {
            if seq >= until {
                // It has been read, and would be missing from the next chunk.
                self.files.clear();
                break;
            }
            // What no client could make anything of.
            if understood(&line).is_some() {
                chunk.extend(line);
            }
        }
        (!chunk.is_empty()).then_some((chunk, self.next.min(until)))
    }
}

fn understood(line: &[u8]) -> Option<Entry> {
    serde_json::from_slice(line).ok()
}

/// A plain file to be read; nothing else is waited for.
fn open(path: &Path) -> io::Result<BufReader<File>> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // One that has grown in somebody else's hands: the youngest are of interest.
    file.seek(SeekFrom::Start(found.len().saturating_sub(2 * FILE_MOST)))?;
    Ok(BufReader::new(file))
}

/// Adds lines.
#[derive(Debug)]
pub(super) struct Appender {
    files: Files,
    file: Option<File>,
    len: u64,
}

impl Appender {
    /// Nothing is opened yet.
    pub(super) fn new(files: Files) -> Self {
        Self { files, file: None, len: 0 }
    }

    pub(super) fn place(&self) -> String {
        self.files.0.join(CURRENT).display().to_string()
    }

    /// Adds whole lines. What is `known` is kept when the older file is given up, in which some of it was told.
    ///
    /// # Errors
    /// None of them is in the file then, but for what a torn end may hold.
    pub(super) fn append(&mut self, lines: &[u8], known: impl FnOnce() -> Vec<u8>) -> io::Result<()> {
        // Somebody may have removed it.
        if self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|found| found.nlink() == 0)) {
            self.file = None;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.reopen()?,
        };
        if self.len > 0 && self.len + lines.len() as u64 > FILE_MOST {
            replace_soon(&self.files.0, KNOWN, &known())?;
            fs::rename(self.files.0.join(CURRENT), self.files.0.join(FORMER))?;
            file = self.reopen()?;
        }
        if let Err(error) = file.write_all(lines) {
            // At worst the torn end is met, and ended, by the next.
            let _ = file.set_len(self.len);
            return Err(error);
        }
        self.len += lines.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Cuts off a torn line: its number is used again.
    fn reopen(&mut self) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(super::super::folder::MODE).create(&self.files.0)?;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
        let mut file = options.open(self.files.0.join(CURRENT))?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is no plain file"));
        }
        self.len = match whole(&mut file, found.len(), LINE_MOST)? {
            // A long tail that is not ours. What is before as much as a reader looks at could not be read anyway.
            0 => whole(&mut file, found.len(), 2 * FILE_MOST)?,
            whole => whole,
        };
        if self.len < found.len() {
            file.set_len(self.len)?;
        }
        Ok(file)
    }
}

/// Up to where a file is whole lines, by its last so many bytes; 0: there is no end of a line among them.
fn whole(file: &mut File, len: u64, most: u64) -> io::Result<u64> {
    let (mut end, from) = (Vec::new(), len.saturating_sub(most));
    file.seek(SeekFrom::Start(from))?;
    file.take(most).read_to_end(&mut end)?;
    Ok(end.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| from + last as u64 + 1))
}
