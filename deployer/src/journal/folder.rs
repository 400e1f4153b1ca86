//! The state directory: one daemon's at a time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    events,
    file::{self, Found},
    history::History,
    state::{FORMAT, State},
    writer::Store,
};

/// The mode of a directory that is made: workers of any user reach what they are told in it (`pools`), by name. All else is
/// for the daemon's user alone, by its own mode.
pub(super) const MODE: u32 = 0o711;
const STATE: &str = "state.json";
const LOCK: &str = "lock";
const CORRUPT: &str = "state.json.corrupt-";
/// Damaged files that are kept, the youngest.
const KEPT: usize = 4;

/// Why a daemon must not begin with a state directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it.
    #[error(
        "another daemon{} works with the state directory {dir}; stop it first, or set another [daemon] state",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Busy {
        /// The directory.
        dir: String,
        /// Who has it, where the lock file says so.
        pid: Option<u32>,
    },
    /// A later deployer has written it.
    #[error(
        "{path} was written by deployer {by} in format {format}, and this one knows formats up to {FORMAT}; start that \
         version, or move the file away to begin without it. Nothing has been changed"
    )]
    Future {
        /// The file.
        path: String,
        /// Its format.
        format: u64,
        /// Who wrote it.
        by: String,
    },
}

/// A state directory that is ours.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// The lock goes with it. `None`: there is no file that could be locked (a read-only file system, say).
    _lock: Option<File>,
    /// A damaged state file, which is put aside before another is written.
    damaged: bool,
}

/// What a state directory holds at the start.
#[derive(Debug, Default)]
pub struct Contents {
    /// What the daemon before has left; `None`: nothing, or nothing that is of use.
    pub state: Option<State>,
    /// What must not be overlooked, in sentences.
    pub warnings: Vec<String>,
}

impl Folder {
    /// Takes hold of a directory, which is made if it is missing, and reads what is there. A directory that cannot be
    /// written is no error: steering comes first, and the writer goes on trying.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has been changed then.
    pub fn open(dir: &Path) -> Result<(Self, Contents), OpenError> {
        let mut contents = Contents::default();
        if let Err(error) = DirBuilder::new().recursive(true).mode(MODE).create(dir) {
            contents.warnings.push(format!("the state directory {} cannot be made: {error}", dir.display()));
        }
        let lock = lock(dir)?;
        let path = dir.join(STATE);
        let mut damaged = false;
        match file::read(&path) {
            Found::Nothing => {}
            Found::State(state) => contents.state = Some(*state),
            Found::Future { format, by } => {
                return Err(OpenError::Future { path: path.display().to_string(), format, by });
            }
            Found::Bad(why) => {
                damaged = true;
                contents.warnings.push(format!(
                    "the journal {} is of no use ({why}) and was put aside as {CORRUPT}TIME; the daemon went on from what \
                     the kernel's tables, the listening sockets and the process managers show",
                    path.display()
                ));
            }
        }
        Ok((Self { dir: dir.to_owned(), _lock: lock, damaged }, contents))
    }

    /// Where the rolls' events are.
    #[must_use]
    pub fn events(&self) -> events::Shelf {
        events::Shelf::new(self.dir.join("rolls"))
    }

    /// The history of the host, which goes on.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn history(&self) -> io::Result<History> {
        History::open(&self.dir)
    }

    /// Gives a damaged file another name, and drops the oldest of those that were damaged before.
    fn put_aside(&mut self) -> io::Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut name = format!("{CORRUPT}{time}");
        // Two in a second must not hide each other.
        while self.dir.join(&name).exists() {
            name.push('+');
        }
        match fs::rename(self.dir.join(STATE), self.dir.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.damaged = false,
        }
        let mut kept: Vec<_> = fs::read_dir(&self.dir)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(CORRUPT))
            .collect();
        kept.sort_unstable();
        for old in kept.iter().rev().skip(KEPT) {
            // One that was a directory stays; nothing depends on it.
            let _ = fs::remove_file(self.dir.join(old));
        }
        Ok(())
    }
}

impl Store for Folder {
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        // It may have been removed, or have been missing and not to be made.
        DirBuilder::new().recursive(true).mode(MODE).create(&self.dir)?;
        if self.damaged {
            self.put_aside()?;
        }
        file::replace(&self.dir, STATE, bytes)
    }

    fn place(&self) -> String {
        self.dir.join(STATE).display().to_string()
    }
}

/// Locks the directory. The file is never removed: whoever waits for it would hold a lock on a file of no name.
fn lock(dir: &Path) -> Result<Option<File>, OpenError> {
    let path = dir.join(LOCK);
    let options = |write: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(write).create(write).truncate(false).mode(0o600).custom_flags(libc::O_CLOEXEC);
        options
    };
    let Ok(mut file) = options(true).open(&path).or_else(|_| options(false).open(&path)) else { return Ok(None) };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            Err(OpenError::Busy { dir: dir.display().to_string(), pid })
        }
        // A file system without locks: as without the file.
        Err(_) => Ok(None),
        Ok(()) => {
            // For the message of a second daemon only.
            let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(Some(file))
        }
    }
}

/// The id of this boot of the machine.
///
/// # Errors
/// When `/proc` does not say.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
