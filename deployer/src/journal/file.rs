//! The state file: read with distrust, replaced whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::Deserialize;

use super::state::{FORMAT, State};

/// No state is so large: 1,024 workers take 300 kB.
const MOST: u64 = 16 << 20;

/// What a state file is found to be.
#[derive(Debug)]
pub enum Found {
    /// There is none.
    Nothing,
    /// One to go on from.
    State(Box<State>),
    /// One that cannot be gone on from, and why: cut short, not JSON, not a state, not readable.
    Bad(String),
    /// One that a later deployer has written.
    Future {
        /// Its format.
        format: u64,
        /// Who wrote it.
        by: String,
    },
}

/// The part that every format has.
#[derive(Deserialize)]
struct Head {
    format: u64,
    #[serde(default)]
    written_by: String,
}

/// Reads a state file. Whatever stands there has an answer.
#[must_use]
pub fn read(path: &Path) -> Found {
    match bytes(path) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(error) => Found::Bad(format!("it cannot be read: {error}")),
    }
}

/// What is in a regular file of a sensible size.
pub(crate) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    // Not to wait for the other end, should it be a pipe.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?;
    if !kind.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if kind.len() > MOST {
        return Err(io::Error::other(format!("it is {} bytes long, and no state is longer than {MOST}", kind.len())));
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What bytes stand for.
#[must_use]
pub fn parse(bytes: &[u8]) -> Found {
    let head: Head = match serde_json::from_slice(bytes) {
        Ok(head) => head,
        Err(error) => return Found::Bad(damage(bytes, &error)),
    };
    if head.format > u64::from(FORMAT) {
        return Found::Future { format: head.format, by: head.written_by.escape_debug().to_string() };
    }
    match serde_json::from_slice::<State>(bytes) {
        Err(error) => Found::Bad(damage(bytes, &error)),
        Ok(state) => match state.check() {
            Ok(()) => Found::State(Box::new(state)),
            Err(why) => Found::Bad(why),
        },
    }
}

fn damage(bytes: &[u8], error: &serde_json::Error) -> String {
    if bytes.is_empty() {
        "it is empty".to_owned()
    } else if error.is_eof() {
        format!("it is cut short after {} bytes", bytes.len())
    } else {
        format!("it is not understood: {error}")
    }
}

/// Replaces a file whole: a reader, or a machine that loses its power, finds the old bytes or the new, never a mixture.
///
/// # Errors
/// The old file is untouched then.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    exchange(dir, name, bytes, true)?;
    // The name, too, must have reached the disk.
    File::open(dir)?.sync_all()
}

/// The same for readers and for whoever kills the writer, but not for a machine that loses its power: that may find
/// nothing in it.
///
/// # Errors
/// The old file is untouched then.
pub fn replace_soon(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    exchange(dir, name, bytes, false)
}

fn exchange(dir: &Path, name: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
    let aside = dir.join(format!("{name}.new"));
    let result = write(&aside, bytes, sync).and_then(|()| fs::rename(&aside, dir.join(name)));
    if result.is_err() {
        // On a full disk what was written of it is better given back.
        let _ = fs::remove_file(&aside);
    }
    result
}

fn write(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if sync { file.sync_all() } else { Ok(()) }
}
