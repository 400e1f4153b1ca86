//! Runs a command to its end and keeps what it says.

use std::{
    fs::File,
    io::{self, Read, Seek},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::process::Command;

/// Bytes of output, and of errors, that are kept.
const KEPT: u64 = 16 * 1024;
/// Characters of them in a message.
const SAID: usize = 400;

/// A command that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) output: String,
    pub(super) errors: String,
}

/// Why a command has not ended by itself.
#[derive(Debug)]
pub(super) enum CommandError {
    NotRun(io::Error),
    /// It was ended.
    Late,
}

impl Ended {
    /// What it said, errors before output, in one line.
    pub(super) fn said(&self) -> String {
        let said = if self.errors.trim().is_empty() { &self.output } else { &self.errors };
        let words: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        words.join("; ").chars().filter(|char| !char.is_control()).take(SAID).collect()
    }
}

/// Runs it for so long at most.
pub(super) async fn run(argv: &[String], within: Duration) -> Result<Ended, CommandError> {
    let not_run = CommandError::NotRun;
    let Some((program, arguments)) = argv.split_first() else {
        return Err(not_run(io::Error::new(io::ErrorKind::InvalidInput, "it has no words")));
    };
    let (output, errors) = (note().map_err(not_run)?, note().map_err(not_run)?);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(output.try_clone().map_err(not_run)?).stderr(errors.try_clone().map_err(not_run)?);
    let mut child = command.spawn().map_err(not_run)?;
    match tokio::time::timeout(within, child.wait()).await {
        Err(_) => Err(CommandError::Late),
        Ok(Err(error)) => Err(not_run(error)),
        Ok(Ok(status)) => Ok(Ended { status, output: text(output), errors: text(errors) }),
    }
}

/// A file in memory, and not a pipe: a worker that inherits it keeps a pipe open, and would be killed by writing to it
/// when nobody reads it any more. It cannot grow, so such a worker fills it, and that is all.
fn note() -> io::Result<File> {
    let file = memfd_create("said", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, KEPT)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file.into())
}

/// As far as it was written.
fn text(mut file: File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read was not said.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}
