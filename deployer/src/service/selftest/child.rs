//! The self-test's child while it runs, and the rules by which it is steered.

use std::{fmt, io, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result};
use deployer_common::layout::CallerRule;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{
    place::Place,
    probe::{Order, Seen},
};
use crate::{
    config::Caller,
    kernel::{cgroup, executables::Running},
    service::callers::{self, Host, Known},
};

/// A child that takes longer hangs.
const WITHIN: Duration = Duration::from_secs(10);

/// What of the child makes it a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Executable,
    Cgroup,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Executable => "its executable",
            Self::Cgroup => "its cgroup",
        })
    }
}

impl By {
    /// The rules, made as those of a service are. `None`: this host does not show what they would be made of.
    ///
    /// # Errors
    /// Why they cannot be made, in words.
    pub(super) fn rules(self, pid: u32, root: &Path) -> Result<Option<Vec<CallerRule>>, String> {
        let running = Running::look().map_err(|error| format!("/proc cannot be read: {error}"))?;
        let caller = match self {
            Self::Executable => Caller::Executable(own_name()?),
            Self::Cgroup => {
                // In a cgroup namespace of its own the daemon is shown other paths.
                let Some(path) = cgroup::of_process(pid).map(|below| root.join(below)).filter(|path| path.is_dir())
                else {
                    return Ok(None);
                };
                Caller::Cgroup(path)
            }
        };
        let host = Host { root, running: &running, unsteered: &[] };
        let found = callers::rules(std::slice::from_ref(&caller), &host, &mut Known::default());
        match found.trouble.first() {
            Some(trouble) => Err(trouble.clone()),
            None => Ok(Some(found.rules)),
        }
    }
}

/// The name under which this program was started, also where an upgrade has put another file in its place.
fn own_name() -> Result<std::path::PathBuf, String> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let link = std::fs::read_link("/proc/self/exe").map_err(|error| format!("/proc/self/exe: {error}"))?;
    let bytes = link.as_os_str().as_bytes();
    let name = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes).to_vec();
    Ok(std::ffi::OsString::from_vec(name).into())
}

/// The child, among the callers.
pub(super) struct Prober {
    child: Child,
    pub(super) pid: u32,
    // Its cgroup can be removed only when it is gone: after the fields above.
    _place: Place,
}

impl Prober {
    pub(super) fn start(callers: &Path) -> Result<Self> {
        // The very same program, also where an upgrade has replaced its file.
        let child = Command::new("/proc/self/exe")
            .arg("self-test-probe")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting a process to dial for the self-test")?;
        let pid = child.id().context("the process that dials has ended")?;
        let place = Place::put(pid, callers)
            .with_context(|| format!("putting a process among the callers, into cgroup {}", callers.display()))?;
        Ok(Self { child, pid, _place: place })
    }

    /// Has it dial.
    pub(super) async fn ask(&mut self, order: &Order) -> Result<Seen> {
        match timeout(WITHIN, self.exchange(order)).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("the process that dials has not answered for {} s", WITHIN.as_secs())),
        }
    }

    async fn exchange(&mut self, order: &Order) -> Result<Seen> {
        let mut order = serde_json::to_vec(order)?;
        order.push(b'\n');
        let input = self.child.stdin.as_mut().context("no pipe to the process that dials")?;
        input.write_all(&order).await.context("telling a process what to dial")?;
        let output = self.child.stdout.as_mut().context("no pipe from the process that dials")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await.context("reading what a process has dialled")?;
        serde_json::from_str(&line).context("the process that dials ended without a word")
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn end(mut self) {
        let _: io::Result<()> = self.child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_this_process_can_be_made() {
        let pid = std::process::id();
        let root = cgroup::root().unwrap();
        for by in [By::Executable, By::Cgroup] {
            let rules = by.rules(pid, &root).unwrap();
            assert!(rules.is_none_or(|rules| rules.iter().all(|rule| rule.id != 0)), "{by}");
        }
    }
}
