//! The daemon's end: runs the launcher, and hears whether the program runs.

use std::{io, os::fd::OwnedFd, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
};

use super::{Plan, Report};

/// Longest wait for the launcher, which only makes a few system calls; its directory may be a remote one.
const LAUNCHED: Duration = Duration::from_secs(10);

/// Why the launcher has not become the program.
#[derive(Debug)]
pub(crate) enum AskError {
    /// The launcher itself could not be run.
    NotRun(io::Error),
    /// It said what failed.
    Failed(Report),
}

/// How the launcher is run.
pub(crate) struct Streams {
    pub(crate) output: Stdio,
    pub(crate) errors: Stdio,
    /// Whether the child is killed when it is dropped, also while it is only being launched.
    pub(crate) kill_on_drop: bool,
}

/// Runs the launcher until it has become the program, or has said why it has not. One that does neither in time is
/// killed.
pub(crate) async fn ask(launcher: &Path, plan: &Plan, streams: Streams) -> Result<Child, AskError> {
    let not_run = AskError::NotRun;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(not_run)?;
    ours.set_nonblocking(true).map_err(not_run)?;
    let mut command = Command::new(launcher);
    command.arg("launch").env_clear().current_dir("/").kill_on_drop(streams.kill_on_drop);
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(streams.output).stderr(streams.errors);
    crate::kernel::descriptors::restore(command.as_std_mut());
    let mut child = command.spawn().map_err(not_run)?;
    // The command holds the other end of the socket, which is to be the launcher's alone.
    drop(command);
    let talk = async { talk(UnixStream::from_std(ours)?, plan).await };
    let said = tokio::time::timeout(LAUNCHED, talk).await.unwrap_or_else(|_| {
        let said = format!("nothing came of it within {} s", LAUNCHED.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, said))
    });
    match said {
        Ok(text) if text.is_empty() => Ok(child),
        Ok(text) => {
            // While it ends it is still in the cgroup, and could be taken for the program.
            let _ = child.wait().await;
            Err(AskError::Failed(report(&text)))
        }
        Err(error) => {
            // It may yet become the program, and the daemon would not know.
            let _ = child.start_kill();
            tokio::spawn(async move { child.wait().await });
            Err(not_run(error))
        }
    }
}

/// Tells the launcher what to do, and returns what it says.
async fn talk(mut socket: UnixStream, plan: &Plan) -> io::Result<Vec<u8>> {
    socket.write_all(&serde_json::to_vec(plan)?).await?;
    socket.shutdown().await?;
    let mut said = Vec::new();
    socket.read_to_end(&mut said).await?;
    Ok(said)
}

fn report(text: &[u8]) -> Report {
    serde_json::from_slice(text).unwrap_or_else(|_| Report {
        tried: String::new(),
        errno: None,
        said: String::from_utf8_lossy(text).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_launcher_says_is_understood() {
        let said = report(br#"{"tried":"run /x","errno":2,"said":"no"}"#);
        assert_eq!((said.tried.as_str(), said.error().raw_os_error()), ("run /x", Some(2)));
        let said = report(br#"{"tried":"x","errno":null,"said":"no"}"#);
        assert_eq!((said.tried.as_str(), said.error().to_string()), ("x", "no".to_owned()));
        for garbage in [&b"\xff"[..], b"{}", b"Segmentation fault"] {
            assert_eq!(report(garbage).tried, "");
        }
    }
}
