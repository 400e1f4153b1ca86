//! The process managers, as configured.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use rustix::process::Signal;

use super::Command;

/// What starts and stops the workers.
#[derive(Clone, PartialEq, Eq)]
pub enum Manager {
    /// supervisord over its unix socket.
    Supervisord {
        /// Path of the socket.
        socket: PathBuf,
        /// Name of a worker's process, `group:name`, with `{port}` or `{address}` in it.
        program: String,
        /// User name and password of `[unix_http_server]`, if it has them.
        login: Option<(String, String)>,
        /// Longest wait for a stop; supervisord itself sends SIGKILL after its `stopwaitsecs`. 100 ms to
        /// 1 h, default 30 s.
        stop_within: Duration,
    },
    /// systemd over D-Bus.
    Systemd {
        /// Name of a worker's service unit, with `{port}` or `{address}` in it: `web@{port}.service`.
        unit: String,
        /// D-Bus address of the bus, `unix:path=…`; `None`: the system bus.
        bus: Option<String>,
        /// Longest wait for a stop; systemd itself sends SIGKILL after the unit's `TimeoutStopSec=`. 100 ms to 1 h,
        /// default 30 s.
        stop_within: Duration,
    },
    /// The daemon itself, each worker in a cgroup of its own.
    Builtin(Box<Builtin>),
    /// The operator's own commands.
    Exec(Exec),
}

/// Workers that the daemon starts itself. `{port}`, `{address}` and `{service}` are replaced in the command's words, the
/// directory, the environment's values and `log`; of a service with two pools `{pool}`, `{lane}` and `{version}` too, but for `log`.
#[derive(Clone, PartialEq, Eq)]
pub struct Builtin {
    /// The worker's program, which stays in the foreground.
    pub command: Command,
    /// Name or number of its user; default: the daemon's.
    pub user: Option<String>,
    /// Name or number of its group; default: the user's.
    pub group: Option<String>,
    /// The directory that it is started in; default `/`.
    pub directory: PathBuf,
    /// What is added to its environment, which is otherwise `PATH`, `HOME`, `USER`, `LOGNAME`, `DEPLOYER_SERVICE`,
    /// `DEPLOYER_ADDRESS` and `DEPLOYER_PORT`.
    pub environment: BTreeMap<String, String>,
    /// File for its standard output and errors; default `/var/log/deployer/{service}-{port}.log`, or
    /// `{service}-{address}-{port}.log` where two of the workers have the same port.
    pub log: String,
    /// Bytes at which the log is rotated: 10 kB to 1 TB, default 10 MB.
    pub log_size: u64,
    /// Former logs that are kept, `.1` the youngest; 0-100, default 5.
    pub log_keep: u32,
    /// Above the workers' cgroups, absolute or below the cgroup v2 root; default `deployer`.
    pub cgroup: PathBuf,
    /// What asks it to end; default SIGTERM.
    pub stop_signal: Signal,
    /// Longest wait for its end, 100 ms to 1 h, default 10 s.
    pub stop_within: Duration,
    /// Whether it is killed then, and what it leaves behind with it; default true.
    pub kill: bool,
    /// By worker: the file with what its pool is told, whose lines are added to its environment; see [`super::Deploy`].
    pub told: BTreeMap<SocketAddr, PathBuf>,
    /// How soon it is started again when it has ended unasked.
    pub restart: Backoff,
}

/// Waits between restarts, each twice as long as the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first; 100 ms to 1 h, default 1 s.
    pub first: Duration,
    /// The longest, at least `first`; default 60 s. A worker that has lived so long begins with `first` again.
    pub most: Duration,
}

/// The operator's own commands; `{port}`, `{address}` and `{service}` in their words are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// User as which the commands run; `None`: the daemon's.
    pub user: Option<String>,
    /// Starts a worker and ends.
    pub start: Command,
    /// Asks a worker to end.
    pub stop: Command,
    /// Exits with 0 if a worker runs, with 3 if not; may print `pid N` first.
    pub status: Command,
    /// Longest run of a command, and longest wait for a worker's end; 100 ms to 1 h, default 10 s.
    pub within: Duration,
}

// Passwords must not reach a log by way of a `{config:?}`.
impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Supervisord { socket, program, login, stop_within } => f
                .debug_struct("Supervisord")
                .field("socket", socket)
                .field("program", program)
                .field("login", &login.as_ref().map(|(username, _)| (username, "***")))
                .field("stop_within", stop_within)
                .finish(),
            Self::Systemd { unit, bus, stop_within } => f
                .debug_struct("Systemd")
                .field("unit", unit)
                .field("bus", bus)
                .field("stop_within", stop_within)
                .finish(),
            Self::Builtin(builtin) => builtin.fmt(f),
            Self::Exec(exec) => exec.fmt(f),
        }
    }
}

impl fmt::Debug for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builtin")
            .field("command", &self.command)
            .field("user", &self.user)
            .field("group", &self.group)
            .field("directory", &self.directory)
            .field("environment", &self.environment.keys())
            .field("log", &self.log)
            .field("log_size", &self.log_size)
            .field("log_keep", &self.log_keep)
            .field("cgroup", &self.cgroup)
            .field("stop_signal", &self.stop_signal)
            .field("stop_within", &self.stop_within)
            .field("kill", &self.kill)
            .field("restart", &self.restart)
            .finish()
    }
}
