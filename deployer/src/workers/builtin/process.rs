//! A worker's main process.

use std::{
    io,
    process::ExitStatus,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::kernel::pidfd::Pidfd;

/// Longest wait for the exit status of a process that has ended.
const REAPED: Duration = Duration::from_secs(2);

/// A process that was started here, or found.
pub(super) struct Process {
    pub(super) pid: u32,
    /// Since when it has been known.
    pub(super) since: Instant,
    pub(super) fd: Pidfd,
    /// How it ended; `None`: it is no child of this process, so nobody will tell.
    exit: Option<watch::Receiver<Option<ExitStatus>>>,
}

impl Process {
    /// Whoever has this number now.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, since: Instant::now(), fd: Pidfd::open(pid)?, exit: None })
    }

    /// With somebody who will tell how it ended.
    pub(super) fn with_exit(mut self, exit: watch::Receiver<Option<ExitStatus>>) -> Self {
        self.exit = Some(exit);
        self
    }

    /// How it ended, in words ("exit status: 1"); empty if that cannot be known.
    pub(super) async fn how(&self) -> String {
        let Some(mut exit) = self.exit.clone() else { return String::new() };
        match tokio::time::timeout(REAPED, exit.wait_for(Option::is_some)).await {
            Ok(Ok(status)) => status.map(|status| status.to_string()).unwrap_or_default(),
            _ => String::new(),
        }
    }
}
