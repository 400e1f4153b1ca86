//! Runs a command to its end and keeps what it says.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::fs::{
    FallocateFlags, MemfdFlags, OFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_getfl, fcntl_setfl, memfd_create,
};
use tokio::process::Command;

/// Bytes of output, and of errors, that are kept: the first, and as many of the last.
const KEPT: u64 = 16 * 1024;
/// Between two looks at what is too much of them.
const LOOK: Duration = Duration::from_millis(50);
/// Characters of them in a message.
const SAID: usize = 400;

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The first that it said.
    pub(crate) output: String,
    pub(crate) errors: String,
    output_end: String,
    errors_end: String,
}

/// Why a command has not ended by itself.
#[derive(Debug)]
pub(crate) enum CommandError {
    NotRun(io::Error),
    /// It was ended.
    Late,
}

impl Ended {
    /// What it said, errors before output, in one line.
    pub(crate) fn said(&self) -> String {
        let said = if self.errors.trim().is_empty() { &self.output } else { &self.errors };
        one_line(said).chars().take(SAID).collect()
    }

    /// The end of what it said, in one line: of its errors, then of its output, where a test says what has failed.
    pub(crate) fn said_last(&self) -> String {
        let ends = [&self.errors_end, &self.output_end].map(|said| {
            let said = one_line(said);
            let skipped = said.chars().count().saturating_sub(SAID);
            if skipped == 0 { said } else { format!("...{}", said.chars().skip(skipped).collect::<String>()) }
        });
        let said: Vec<_> = ends.into_iter().filter(|end| !end.is_empty()).collect();
        said.join(" | ")
    }
}

/// Lines as one, of characters that do nothing to a terminal.
fn one_line(said: &str) -> String {
    let words: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    words.join("; ").chars().filter(|char| !char.is_control()).collect()
}

/// Runs it for so long at most. It has ended when its process has, whatever that leaves behind in the background.
pub(crate) async fn run(argv: &[String], within: Duration) -> Result<Ended, CommandError> {
    run_with(argv, &[], within).await
}

/// As [`run`], with these names and values in its environment, beside the daemon's own.
pub(crate) async fn run_with(
    argv: &[String],
    environment: &[(&str, String)],
    within: Duration,
) -> Result<Ended, CommandError> {
    let not_run = CommandError::NotRun;
    let Some((program, arguments)) = argv.split_first() else {
        return Err(not_run(io::Error::new(io::ErrorKind::InvalidInput, "it has no words")));
    };
    let (output, errors) = (Note::new().map_err(not_run)?, Note::new().map_err(not_run)?);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdout(output.0.try_clone().map_err(not_run)?).stderr(errors.0.try_clone().map_err(not_run)?);
    crate::kernel::descriptors::restore(command.as_std_mut());
    let mut child = command.spawn().map_err(not_run)?;
    let ended = tokio::time::timeout(within, async {
        loop {
            tokio::select! {
                status = child.wait() => break status,
                () = tokio::time::sleep(LOOK) => {
                    output.cut();
                    errors.cut();
                }
            }
        }
    });
    match ended.await {
        Err(_) => Err(CommandError::Late),
        Ok(Err(error)) => Err(not_run(error)),
        Ok(Ok(status)) => Ok(Ended {
            status,
            output: output.text(0),
            errors: errors.text(0),
            output_end: output.end(),
            errors_end: errors.end(),
        }),
    }
}

/// A file in memory, and not a pipe: what a command leaves in the background keeps a pipe open, and would be killed by
/// writing to it when nobody reads it any more. While the command runs it may say as much as it likes; what is too much
/// is cut out of the middle. Afterwards the file cannot grow: whoever still writes fills what is left of it, and that is all.
struct Note(File);

impl Note {
    fn new() -> io::Result<Self> {
        let file = memfd_create("said", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        // Writers go on at the new end after a cut.
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::APPEND)?;
        Ok(Self(file.into()))
    }

    fn cut(&self) {
        let len = self.len();
        if len <= 2 * KEPT {
            return;
        }
        // A hole: who writes meanwhile writes at the end, which stays where it is.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.0, hole, KEPT, len - 2 * KEPT).is_err() {
            // At worst it is cut at the next look.
            let _ = self.0.set_len(KEPT);
        }
    }

    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |meta| meta.len())
    }

    /// What is kept of the end.
    fn end(&self) -> String {
        self.text(self.len().saturating_sub(KEPT))
    }

    fn text(&self, from: u64) -> String {
        let mut bytes = vec![0; KEPT as usize];
        // What cannot be read was not said.
        let length = self.0.read_at(&mut bytes, from).unwrap_or_default();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let said = self.0.metadata().map_or(KEPT, |meta| meta.len().min(KEPT));
        // Flags and offset are those of all who have the file from here. Each is a try: the seal is what matters.
        let _ = fcntl_setfl(&self.0, OFlags::RDWR);
        let _ = (&self.0).seek(SeekFrom::Start(said));
        let _ = self.0.set_len(KEPT);
        let _ = fcntl_add_seals(&self.0, SealFlags::GROW);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    async fn sh(script: &str, within: Duration) -> Result<Ended, CommandError> {
        run(&["/bin/sh", "-c", script].map(str::to_owned), within).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_it_leaves_behind_is_not_waited_for() {
        let begun = Instant::now();
        let ended = sh("sleep 100 & echo $!; echo bad >&2; exit 3", LONG).await.unwrap();
        assert!(begun.elapsed() < LONG / 2);
        assert_eq!((ended.status.code(), ended.said()), (Some(3), "bad".to_owned()));
        let pid = rustix::process::Pid::from_raw(ended.output.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// It neither is killed for writing, nor fills the memory.
    #[tokio::test]
    async fn what_it_leaves_behind_has_the_room_that_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let wrote = folder.path().join("wrote");
        let late = "until test -e $0.go; do sleep 0.05; done; echo late && echo one > $0.new; \
                    head -c 20000 /dev/zero 2> /dev/null || echo two >> $0.new; mv $0.new $0";
        let script = format!("echo early; sh -c '{}' {} &", late.replace('\'', "'\\''"), wrote.display());
        assert_eq!(sh(&script, LONG).await.unwrap().output, "early\n");
        std::fs::write(wrote.with_extension("go"), "").unwrap();
        let begun = Instant::now();
        while !wrote.exists() && begun.elapsed() < LONG {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(std::fs::read_to_string(&wrote).unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn it_may_say_much() {
        let script = "yes first | head -c 3000000; sleep 0.2; yes then | head -c 300000 && echo bad >&2";
        let ended = sh(script, LONG).await.unwrap();
        assert!(ended.status.success(), "{}", ended.errors);
        assert_eq!((ended.output.len() as u64, ended.errors.as_str()), (KEPT, "bad\n"));
        assert!(ended.output.starts_with("first\nfirst\n"));
    }

    #[tokio::test]
    async fn the_end_of_much_is_known() {
        let script = "yes first | head -c 3000000; sleep 0.2; yes then | head -c 300000; echo 7 of 9 failed";
        let ended = sh(script, LONG).await.unwrap();
        let end = ended.said_last();
        assert!(end.starts_with("...") && end.ends_with("then; then; 7 of 9 failed"), "{end}");
        assert_eq!(end.chars().count(), SAID + 3);
        assert!(ended.output.starts_with("first\nfirst\n"));
        let both = sh("echo 1 of 2 failed; echo old browser >&2", LONG).await.unwrap();
        assert_eq!(both.said_last(), "old browser | 1 of 2 failed");
        assert_eq!(sh("exit 1", LONG).await.unwrap().said_last(), "");
    }

    #[test]
    fn the_middle_takes_no_memory() {
        use std::{io::Write, os::unix::fs::MetadataExt};
        let note = Note::new().unwrap();
        (&note.0).write_all(&[b'x'; 3_000_000]).unwrap();
        note.cut();
        (&note.0).write_all(b"end").unwrap();
        assert!(note.0.metadata().unwrap().blocks() * 512 <= 4 * KEPT);
        assert_eq!(note.text(0), "x".repeat(KEPT as usize));
        assert_eq!(note.end(), "x".repeat(KEPT as usize - 3) + "end");
    }

    #[tokio::test]
    async fn it_may_be_given_an_environment() {
        let argv = ["/bin/sh", "-c", "echo $DEPLOYER_LANE $PATH"].map(str::to_owned);
        let ended = run_with(&argv, &[("DEPLOYER_LANE", "3".to_owned())], LONG).await.unwrap();
        let path = std::env::var("PATH").unwrap();
        assert_eq!(ended.output, format!("3 {path}\n"), "its own, beside the daemon's");
        let odd = run_with(&argv, &[("DEPLOYER_VERSION", "a\0b".to_owned())], LONG).await;
        assert!(matches!(odd, Err(CommandError::NotRun(_))));
    }

    #[tokio::test]
    async fn it_ends_in_time_or_is_ended() {
        assert!(matches!(sh("exec sleep 100", Duration::from_millis(50)).await, Err(CommandError::Late)));
        assert!(matches!(run(&[], LONG).await, Err(CommandError::NotRun(_))));
        assert!(matches!(run(&["/nonexistent".to_owned()], LONG).await, Err(CommandError::NotRun(_))));
    }
}
