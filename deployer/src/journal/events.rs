//! The events of each roll, a line each, so that whoever follows a roll goes on after a restart where they were; and the
//! report of each roll.
//!
//! They are not synced: what a killed daemon has written is there, and after a loss of power the roll has ended anyway.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

pub use super::log::Log;
use super::{disk::Disk, file, state::is_id};
use crate::api::{Event, What};

const SUFFIX: &str = ".ndjson";
const REPORT: &str = ".report.json";
/// No log is so long: a roll of 256 workers, each held for hours.
const MOST: u64 = 256 << 20;
/// How long is waited for what was handed to the disk before files are read.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// Where the logs are.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
    disk: Disk,
}

/// The file of a roll's log, as the disk's thread writes it.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    /// Up to here the file is whole lines.
    len: u64,
    /// There may be something behind them: a former daemon's, or of a write that failed.
    torn: bool,
    /// Lines that could not be written yet.
    backlog: Vec<u8>,
}

impl Shelf {
    /// In a directory, which need not be there.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        // What hangs is the file system of the state directory.
        let disk = Disk::new(dir.parent().unwrap_or(&dir));
        Self { dir, disk }
    }

    /// The thread that writes here.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}{SUFFIX}"))
    }

    /// A log to write to, after the events that it holds.
    #[must_use]
    pub fn log(&self, id: &str, whole: u64) -> Log {
        Log::new(id, self.file(id, whole), self.disk.clone())
    }

    fn file(&self, id: &str, whole: u64) -> LogFile {
        LogFile { path: self.path(id), file: None, len: whole, torn: true, backlog: Vec::new() }
    }

    /// Every roll's events with the length that they have in the file, by name. What is not understood is left out. Blocks.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, (Vec<Event>, u64)> {
        self.disk.flush_blocking(SETTLE_WITHIN);
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let ids = names.filter_map(|name| Some(name.strip_suffix(SUFFIX)?.to_owned())).filter(|id| is_id(id));
        ids.filter_map(|id| {
            let read = events(&bytes(&self.path(&id)).ok()?, &id);
            (!read.0.is_empty()).then_some((id, read))
        })
        .collect()
    }

    /// Keeps a roll's report in place of the one before. If that is not to be `durable`, a loss of power may cost it. Blocks:
    /// for the disk's thread.
    ///
    /// # Errors
    /// The one before is untouched then.
    pub fn keep_report(&self, id: &str, report: &[u8], durable: bool) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let replace = if durable { file::replace } else { file::replace_soon };
        replace(&self.dir, &format!("{id}{REPORT}"), report)
    }

    /// A roll's report, as it was kept. Blocks.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn report(&self, id: &str) -> io::Result<Vec<u8>> {
        self.disk.flush_blocking(SETTLE_WITHIN);
        file::bytes(&self.report_path(id))
    }

    /// Where a roll's report is.
    #[must_use]
    pub fn report_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}{REPORT}"))
    }

    /// Drops a roll's log and report.
    pub fn remove(&self, id: &str) {
        let paths = [self.report_path(id), self.path(id)];
        self.disk.hand_over(&format!("remove {id}"), move || {
            // A log that stays is read again at the next start, and dropped then.
            paths.iter().for_each(|path| drop(fs::remove_file(path)));
        });
    }
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MOST).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The events up to the end of the roll, or the first line that is torn, foreign, or out of order; and their length in
/// bytes.
fn events(bytes: &[u8], id: &str) -> (Vec<Event>, u64) {
    let (mut events, mut whole) = (Vec::new(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let Ok(event) = serde_json::from_slice::<Event>(line) else { break };
        let first = matches!(event.what, What::Begun { .. });
        if event.seq != events.len() as u64 || event.roll != id || first != events.is_empty() {
            break;
        }
        events.push(event);
        whole += line.len() as u64;
        if events.last().is_some_and(|event| matches!(event.what, What::Finished { .. })) {
            break;
        }
    }
    (events, whole)
}

impl LogFile {
    /// Adds lines. Blocks.
    ///
    /// # Errors
    /// The lines are kept, and written with the next.
    pub(super) fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        self.backlog.extend(lines);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(&self.path)?),
        };
        if self.torn {
            file.set_len(self.len)?;
            file.seek(io::SeekFrom::Start(self.len))?;
        }
        let written = file.write_all(&self.backlog);
        self.torn = written.is_err();
        written?;
        self.len += self.backlog.len() as u64;
        self.backlog.clear();
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(seq: u64) -> Event {
        let begun = What::Begun {
            service: "web".to_owned(),
            to: None,
            by: "me".to_owned(),
            batches: Vec::new(),
            spares: Vec::new(),
        };
        let what = if seq == 0 { begun } else { What::StopAsked { by: "me".to_owned() } };
        Event { seq, time_ms: 1, roll: "web-1".to_owned(), what }
    }

    fn line(seq: u64) -> Vec<u8> {
        let mut line = serde_json::to_vec(&event(seq)).unwrap();
        line.push(b'\n');
        line
    }

    fn three(dir: &Path) -> Vec<u8> {
        let mut log = Shelf::new(dir.join("rolls")).file("web-1", 0);
        (0..3).for_each(|seq| log.add(&line(seq)).unwrap());
        fs::read(dir.join("rolls/web-1.ndjson")).unwrap()
    }

    #[test]
    fn a_torn_line_is_ignored_and_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().join("rolls"));
        let bytes = three(dir.path());
        for cut in 0..bytes.len() {
            fs::write(dir.path().join("rolls/web-1.ndjson"), &bytes[..cut]).unwrap();
            let lines = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            let (events, whole) = shelf.read().remove("web-1").unwrap_or_default();
            assert_eq!(events.len(), lines, "cut at {cut}");
            let mut log = shelf.file("web-1", whole);
            (events.len() as u64..3).for_each(|seq| log.add(&line(seq)).unwrap());
            assert_eq!(fs::read(dir.path().join("rolls/web-1.ndjson")).unwrap(), bytes, "cut at {cut}");
        }
    }

    #[test]
    fn what_cannot_be_written_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rolls"), "in the way").unwrap();
        let shelf = Shelf::new(dir.path().join("rolls"));
        let mut log = shelf.file("web-1", 0);
        assert!(log.add(&line(0)).is_err() && log.add(&line(1)).is_err());
        fs::remove_file(dir.path().join("rolls")).unwrap();
        log.add(&line(2)).unwrap();
        assert_eq!(shelf.read()["web-1"].0.len(), 3);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(noise in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = three(dir.path());
            let at = at.index(bytes.len());
            bytes.splice(at..at, noise);
            let (events, whole) = events(&bytes, "web-1");
            prop_assert!(whole <= bytes.len() as u64 && events.len() <= bytes.len());
        }
    }
}
