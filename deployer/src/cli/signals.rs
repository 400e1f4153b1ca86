//! What a terminal, a shell or an init system asks of a client that follows a roll.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Ctrl-C.
    Interrupt,
    /// The terminal is lost, or somebody wants this process to end.
    Leave,
}

/// Signals that no longer end the process by themselves.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
    terminate: Option<Signal>,
}

impl Signals {
    pub(super) fn catch() -> io::Result<Self> {
        let ignored = ignored(&crate::kernel::host::text("/proc/self/status").unwrap_or_default());
        // What is ignored from the start stays so: `nohup` and a shell's background jobs count on it.
        let catch = |kind: SignalKind| {
            let bit = 1_u64 << (kind.as_raw_value() - 1);
            if ignored & bit == 0 { signal(kind).map(Some) } else { Ok(None) }
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            hangup: catch(SignalKind::hangup())?,
            terminate: catch(SignalKind::terminate())?,
        })
    }

    /// Nothing is lost where it is dropped before its end.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            () = received(&mut self.interrupt) => Asked::Interrupt,
            () = received(&mut self.hangup) => Asked::Leave,
            () = received(&mut self.terminate) => Asked::Leave,
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    let come = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if come.is_none() {
        std::future::pending::<()>().await;
    }
}

/// The mask of ignored signals in the text of `/proc/self/status`.
pub(super) fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
