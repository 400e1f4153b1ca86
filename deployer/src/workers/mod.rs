//! Process managers: what starts and stops workers.

mod builtin;
mod exec;
mod peer;
mod supervisord;
mod systemd;
#[cfg(test)]
mod tests;
mod xmlrpc;

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::Pin, time::Duration};

pub use builtin::{Builtin, check_accounts, log_of};

use crate::config::filled;
pub use crate::launch::{THIS_PROGRAM, main as launch};
pub use exec::Exec;
pub use supervisord::Supervisord;
pub use systemd::Systemd;

/// A boxed future, so that managers can be trait objects.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a manager says of a worker's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStatus {
    /// What it does.
    pub phase: ProcessPhase,
    /// Its process id, while it has one.
    pub pid: Option<u32>,
    /// The manager's own words ("Exited too quickly (process log may have details)"); may be empty.
    pub detail: String,
}

/// What a manager has started for a worker: by this the worker's own sockets are told from those of strangers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Whether the worker runs, or is on its way up or down. What does not run has no sockets.
    pub runs: bool,
    /// What its processes are known by.
    pub mark: Mark,
    /// The user that its sockets must be of; `None`: none is configured, or the name is not in `/etc/passwd`.
    pub user: Option<u32>,
}

/// What a worker's processes are known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// The cgroup that holds them and no others.
    Cgroup(PathBuf),
    /// The main process, as this machine's `/proc` numbers it; the others descend from it.
    Process(u32),
    /// The manager names neither, ever: the user has to do.
    User,
    /// The manager names none just now.
    Nothing,
}

/// The phases that every manager can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessPhase {
    /// Not running, and nobody will start it unasked.
    Stopped,
    /// On its way up, or between two tries (supervisord: STARTING, BACKOFF).
    Starting,
    /// Running; this says nothing about its port.
    Running,
    /// On its way down.
    Stopping,
    /// Gave up, so that it will not come back by itself (supervisord: FATAL, and EXITED where it does not restart), or
    /// ends soon after each of several starts (built-in).
    Failed,
}

/// Why a manager could not do it: what was tried, on what, why not, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The manager itself cannot be reached.
    #[error("{manager} cannot be reached at {at} to {tried}: {source}. {hint}")]
    Unreachable {
        /// "supervisord"
        manager: &'static str,
        /// Its socket.
        at: String,
        /// "stop web:web_8003"
        tried: String,
        /// What to do.
        hint: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The manager was asked and has not answered: it may have done it, or may do it yet.
    #[error("{manager} cannot be reached at {at} to {tried}: {source}. {hint}")]
    Unanswered {
        /// "supervisord"
        manager: &'static str,
        /// Its socket.
        at: String,
        /// "stop web:web_8003"
        tried: String,
        /// What to do.
        hint: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// It was begun, and then the manager failed.
    #[error(transparent)]
    Begun(Box<ManagerError>),
    /// The manager answered, and said no.
    #[error("{manager} refused to {tried}: {said}. {hint}")]
    Refused {
        /// "supervisord"
        manager: &'static str,
        /// "stop web:web_8003"
        tried: String,
        /// Its words.
        said: String,
        /// What to do.
        hint: &'static str,
    },
    /// The manager's answer makes no sense.
    #[error("{manager} at {at} gave an answer to {tried} that is not understood: {why}")]
    Garbled {
        /// "supervisord"
        manager: &'static str,
        /// Its socket.
        at: String,
        /// "stop web:web_8003"
        tried: String,
        /// What is wrong with it.
        why: String,
    },
    /// The manager tried it itself, and the system refused.
    #[error("{manager} cannot {tried}: {doing}: {source}.{}{hint}", if hint.is_empty() { "" } else { " " })]
    Impossible {
        /// "the built-in manager"
        manager: &'static str,
        /// "start web/8003"
        tried: String,
        /// "trying to run /usr/bin/python3"
        doing: String,
        /// What to do; may be empty.
        hint: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// It did not happen in time.
    #[error("{manager} did not {tried} within {} s: the process is {phase} ({detail})", within.as_secs_f32())]
    Late {
        /// "supervisord"
        manager: &'static str,
        /// "stop web:web_8003"
        tried: String,
        /// The limit.
        within: Duration,
        /// What the process was doing then.
        phase: ProcessPhase,
        /// The manager's words.
        detail: String,
    },
}

impl std::fmt::Display for ProcessPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        })
    }
}

impl ManagerError {
    /// What was asked for has been begun, or may have been; and then the manager failed in this way.
    fn begun(self) -> Self {
        Self::Begun(Box::new(self))
    }

    /// Whether what was asked for may have been begun, or may be done yet.
    #[must_use]
    pub fn may_come_yet(&self) -> bool {
        matches!(self, Self::Unanswered { .. } | Self::Late { .. } | Self::Begun(_))
    }

    /// For a question that changes nothing, no answer is all there is to know.
    fn harmless(self) -> Self {
        match self {
            Self::Unanswered { manager, at, tried, hint, source } => {
                Self::Unreachable { manager, at, tried, hint, source }
            }
            other => other,
        }
    }
}

/// What starts and stops workers. A worker is named by its address.
pub trait ProcessManager: Send + Sync {
    /// The manager's own name for a worker ("web:web_8003"), for messages.
    fn name(&self, worker: SocketAddr) -> String;

    /// Checks that the manager answers and knows every worker.
    fn check<'a>(&'a self, workers: &'a [SocketAddr]) -> Pending<'a, Result<(), ManagerError>>;

    /// Takes charge of the workers, when the daemon begins with them and after each reload. A manager that lives in the
    /// daemon finds those that run, and has the others started unless they were stopped on request; spares
    /// are found, and never started. One that lives elsewhere has nothing to do.
    fn adopt<'a>(
        &'a self,
        _workers: &'a [SocketAddr],
        _spares: &'a [SocketAddr],
    ) -> Pending<'a, Result<(), ManagerError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Asks for a stop and returns when the process is gone. A worker that is not running is no error.
    fn stop(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>>;

    /// Asks for a start and returns as soon as the manager has begun; the caller watches [`Self::status`]
    /// and the port. A worker that is already running is no error.
    fn start(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>>;

    /// The cgroup (v2 directory) in or below which the manager puts every worker, and which stays when they end; `None`:
    /// there is none.
    fn cgroup(&self) -> Option<PathBuf> {
        None
    }

    /// What the process does now.
    fn status(&self, worker: SocketAddr) -> Pending<'_, Result<ProcessStatus, ManagerError>>;

    /// What a start of the worker waits for, where the manager has put one off, in words; known without asking any process.
    fn waits_for(&self, _worker: SocketAddr) -> Option<String> {
        None
    }

    /// What it has started for a worker, as of now. By default the process that [`Self::status`] names.
    fn started(&self, worker: SocketAddr) -> Pending<'_, Result<Started, ManagerError>> {
        Box::pin(async move {
            let ProcessStatus { phase, pid, .. } = self.status(worker).await?;
            let runs = !matches!(phase, ProcessPhase::Stopped | ProcessPhase::Failed) || pid.is_some();
            Ok(Started { runs, mark: pid.map_or(Mark::Nothing, Mark::Process), user: None })
        })
    }

    /// The user that the configuration names for the workers, if it does: known without asking anybody.
    fn user(&self) -> Option<u32> {
        None
    }
}

/// The number of a user with this name, or number, in `/etc/passwd`; `None`: there is none.
#[must_use]
pub fn uid_of(user: &str) -> Option<u32> {
    Some(crate::launch::account::Accounts::read().ok()?.user(user)?.uid())
}
