//! The configuration, checked: what the rest of the daemon may rely on without looking again.
//!
//! `raw` is the file as written, `check` turns it into these types and says by line and key what is wrong, with
//! `command`, `deploy`, `drain`, `fleet`, `http`, `limits`, `manager`, `names`, `paths`, `placeholders`, `ports`, `roll`
//! and `tls` for the parts.

mod batch;
mod check;
mod command;
mod deploy;
mod drain;
mod error;
mod fleet;
mod http;
mod limits;
mod manager;
mod managers;
mod names;
mod paths;
mod placeholders;
mod ports;
mod raw;
mod requests;
mod roll;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use batch::Batch;
pub use error::{ConfigError, Problem};
pub use fleet::{Acl, Connect, Fleet, Secret, secret};
pub use managers::{Backoff, Builtin, Exec, Manager};
pub(crate) use placeholders::filled;
pub(crate) use raw::duration;
pub use requests::{Request, VersionPlace, VersionRequest, Warm};
pub use tls::Tls;

use crate::trust;

/// Where programs and tables are kept unless the configuration says otherwise.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/deployer";

/// Where daemons answer unless the configuration says otherwise.
const DEFAULT_SOCKET: &str = "/run/deployer/deployer.sock";

/// Where a daemon is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its socket.
    pub(crate) socket: PathBuf,
    /// Its pins.
    pub(crate) pins: PathBuf,
}

/// Where the daemon is found that a configuration's text is of, whatever else of it is wrong.
#[must_use]
pub(crate) fn named(text: &str) -> Named {
    let (document, _) = toml::de::DeTable::parse_recoverable(text);
    let word = |section: &str, key: &str, default: &str| {
        let table = document.get_ref().get(section).and_then(|table| table.get_ref().as_table());
        let word = table.and_then(|table| table.get(key)?.get_ref().as_str());
        PathBuf::from(word.unwrap_or(default))
    };
    Named { socket: word("daemon", "socket", DEFAULT_SOCKET), pins: word("kernel", "pins", DEFAULT_PINS) }
}

/// The whole configuration file.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[kernel]`
    pub kernel: Kernel,
    /// `[metrics]`; `None`: no page is served.
    pub metrics: Option<Metrics>,
    /// `[fleet]`; without it [`Fleet::local`].
    pub fleet: Fleet,
    /// `[service.NAME]`, by name.
    pub services: BTreeMap<String, Service>,
}

/// `[daemon]`: how the daemon is talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// The API's unix socket, made with mode 0660. Default `/run/deployer/deployer.sock`.
    pub socket: PathBuf,
    /// Group that owns the socket; default: the daemon's own.
    pub group: Option<String>,
    /// Directory of the journal: what outlives the daemon. Default `/var/lib/deployer`.
    pub state: PathBuf,
    /// What becomes of the rolls that a former daemon had in hand. Default [`OnStart::Resume`].
    pub on_start: OnStart,
}

/// What a daemon does with the rolls that the one before it had in hand. No worker is left out in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStart {
    /// They go on.
    Resume,
    /// The batch in hand is brought through, and the roll ends as stopped.
    Hold,
}

/// `[kernel]`: where the programs are attached, and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The cgroup (v2 directory) of the callers; default: the cgroup v2 root.
    pub callers: Option<PathBuf>,
    /// The cgroup (v2 directory) that holds the workers; default: the cgroup v2 root.
    pub workers: Option<PathBuf>,
    /// How long a drain outlives the controller that no longer renews it: 1 s to 10 min, default 10 s.
    pub lease: Duration,
    /// Directory, right below a bpf file system, in which programs and tables outlive the daemon; default
    /// `/sys/fs/bpf/deployer`. One for each daemon of a host.
    pub pins: PathBuf,
    /// Between two self-tests: 1 s to 1 h, default 60 s.
    pub self_test: Duration,
}

/// `[metrics]`: the page that Prometheus reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Where it is served, by HTTP under `/metrics`. Not at an address of a service or worker.
    pub listen: SocketAddr,
}

/// One service: what the load balancer talks to.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its name: 1-63 of `a-z 0-9 - _`, beginning with a letter.
    pub name: String,
    /// What the kernel does with decisions.
    pub mode: Mode,
    /// The service address, at which nobody listens; `None`: only the workers' own addresses are steered.
    pub address: Option<SocketAddr>,
    /// Where other hosts reach the service on this one, its nginx, say; `None`: this host is in no server set.
    pub publish: Option<SocketAddr>,
    /// The workers' addresses in the order given, no two alike, 1 to 256.
    pub workers: Vec<SocketAddr>,
    /// Where spare workers may listen while a roll runs; of the workers' address family, 256 at most with them.
    pub spares: Vec<SocketAddr>,
    /// Which processes are steered; empty: every process but the daemon.
    pub callers: Vec<Caller>,
    /// What starts and stops the workers.
    pub manager: Manager,
    /// Whether `bind()` to its addresses fails for all but root and the workers' user; default: no.
    pub protect: bool,
    /// What it is held to, in the kernel.
    pub limits: Limits,
    /// How a worker is emptied.
    pub drain: Drain,
    /// How a roll goes.
    pub roll: Roll,
    /// How two versions stand side by side; `None`: the service has one pool.
    pub deploy: Option<Deploy>,
    /// How a started worker is warmed.
    pub warm: Warm,
    /// How a worker says which version it runs; `None`: it is not asked.
    pub version: Option<VersionRequest>,
    /// How the daemon's own requests are sent to its workers under TLS; `None`: they speak plain HTTP.
    pub tls: Option<Arc<Tls>>,
}

/// What the kernel does with its decisions for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Decides and counts, changes nothing.
    Observe,
    /// Decides and steers.
    Enforce,
}

/// A rule for who is steered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Caller {
    /// Processes in or below this cgroup v2 directory.
    Cgroup(PathBuf),
    /// Processes that run this executable.
    Executable(PathBuf),
}

/// What a service is held to whoever drains or restarts its workers, also where no daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// So many workers or spares stay in rotation, at least 1 and at most as many as there are workers; default 1.
    pub min_up: usize,
    /// How long a worker that has begun to listen is kept from its callers if nobody warms it; 1 s to 1 h, default 60 s.
    pub cold_limit: Duration,
}

/// What becomes of a connection to a worker that is drained or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// A sibling gets it.
    Steer,
    /// `ECONNREFUSED` inside `connect()`, so that the load balancer takes another upstream.
    Refuse,
}

/// What a roll does with a worker that is not empty at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeadline {
    /// The worker goes back into rotation and the roll stops.
    StopRoll,
    /// The worker is stopped although requests are in it.
    Kill,
    /// The roll goes on with the others and comes back to the worker when they are through, for [`Drain::leave_max`].
    Leave,
}

/// A pooled HTTP/1 connection that nobody has used since the daemon began to watch the service, or once at most, is closed
/// when nothing has passed on it for this long, the time before the watch included. Longer than many
/// streams wait between two pings, shorter than the default deadline of a drain.
pub const POOLED_QUIET: Duration = Duration::from_secs(45);

/// What a drain does at its deadline with connections of callers that are not steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outsiders {
    /// It cuts them, and counts and names them; they do not stop a roll.
    Cut,
    /// They hold it like any other.
    Hold,
}

/// How a worker is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// What callers meet meanwhile.
    pub policy: Policy,
    /// Longest wait for it to be empty; 1 s to 24 h, default 60 s.
    pub deadline: Duration,
    /// And then?
    pub on_deadline: OnDeadline,
    /// With [`OnDeadline::Leave`]: how long the workers that were left are waited for once all others are through; 1 s to
    /// 7 days, default 1 h.
    pub leave_max: Duration,
    /// Connections that are not plain HTTP/1 (WebSocket, SSE, TLS, HTTP/2, unknown) are closed once nothing has passed on
    /// them for this long, 1 s to 24 h; `None`: they hold the drain.
    pub quiet_after: Option<Duration>,
    /// Where the service has `callers`: what becomes of other callers' connections at the deadline; default
    /// [`Outsiders::Cut`].
    pub outsiders: Outsiders,
}

/// What becomes of a roll that meets a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It stops; the failed workers stay out, all others serve.
    Stop,
    /// `unswitch` is run and the workers that were changed are rolled back.
    Rollback,
}

/// How a roll goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roll {
    /// Workers taken out at a time; default 1, or `surge`.
    pub batch: Batch,
    /// Spares that are started before the first batch, at most as many as there are, and never fewer than are taken
    /// out at a time; 0, the default: none.
    pub surge: usize,
    /// Failed workers at which the roll stops, at least 1; default 1.
    pub max_failures: usize,
    /// And then?
    pub on_failure: OnFailure,
    /// User as which `switch` and `unswitch` run; `None`: the daemon's.
    pub user: Option<String>,
    /// Command that puts the new version in place, before the first worker is stopped. `{version}`, `{service}`
    /// in its words are replaced.
    pub switch: Option<Command>,
    /// Command that puts the former version back.
    pub unswitch: Option<Command>,
    /// Longest run of either command; 100 ms to 1 h, default 60 s.
    pub switch_within: Duration,
}

/// Two versions side by side: the service's second pool, and how a deploy goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Deploy {
    /// The addresses of the second pool; with the workers 256 at most.
    pub second: Vec<SocketAddr>,
    /// Lanes in the ring, 3-255, default 16.
    pub lanes: u8,
    /// Which processes may dial a lane that has not been current yet; empty: none.
    pub preview: Vec<Caller>,
    /// User as which `prepare` and a gate's command run; `None`: the daemon's.
    pub user: Option<String>,
    /// Command that is run before the pool is started. `{version}`, `{service}`, `{pool}` and `{lane}` in its words are
    /// replaced.
    pub prepare: Option<Command>,
    /// What must hold before the flip, and while it bakes.
    pub gate: Option<Gate>,
    /// Longest run of `prepare`, and of the gate; 100 ms to 1 h, default 60 s.
    pub within: Duration,
    /// Between two looks at the gate while it bakes; 1 s to 1 h, default 10 s.
    pub gate_every: Duration,
    /// How long both versions stand side by side after a flip; 1 s to 7 days, default 10 min.
    pub bake: Duration,
    /// Workers of the new pool that are started at a time; default 25 %.
    pub batch: Batch,
    /// More crashes of new workers than this while it bakes roll the deploy back; default 0.
    pub max_crashes: u64,
    /// A larger share of failed connections than this while it bakes rolls it back, 0 to 1; default 0.05.
    pub max_failed: f64,
    /// What the workers of each pool are told of it: a file of lines `NAME=VALUE`, below `daemon.state`.
    pub files: [PathBuf; 2],
}

/// A condition for a flip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// It exits with 0.
    Command(Command),
    /// Each worker of the new pool answers it as it must.
    Request(Request),
}

/// A command in words; never a shell's line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Command {
    /// The program and its arguments, at least one word.
    pub argv: Vec<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names every line, key and reason found.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::unreadable(path, source))?;
        Self::parse(path, &text)
    }

    /// Reads and checks a file that root acts upon: no other user may be able to change it.
    ///
    /// # Errors
    /// As [`Config::load`]; and when its owner is another than root and this process's user, or others may write it.
    pub fn load_safe(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::unreadable(path, source);
        let file = std::fs::File::open(path).map_err(unreadable)?;
        trust::file(path, &file.metadata().map_err(unreadable)?, false).map_err(ConfigError::Unsafe)?;
        Self::parse(path, &std::io::read_to_string(file).map_err(unreadable)?)
    }

    /// Checks a text; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        check::config(path, text)
    }
}

impl Service {
    /// Where its workers and spares listen, and the workers of its second pool, in this order.
    pub fn members(&self) -> impl Iterator<Item = SocketAddr> {
        self.workers.iter().chain(&self.spares).chain(self.second()).copied()
    }

    /// Where the workers of its second pool listen; none, if it has one pool.
    #[must_use]
    pub fn second(&self) -> &[SocketAddr] {
        self.deploy.as_ref().map_or(&[], |deploy| &deploy.second)
    }
}
