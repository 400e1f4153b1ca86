//! What `GET /v1/status` answers.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Deferred, LaneCounts, Phase, PoolStatus};

/// Everything there is to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Whether programs are attached.
    pub attached: bool,
    /// Whether all services are bypassed.
    pub bypassed: bool,
    /// Cgroup of the callers.
    pub callers: String,
    /// What an operator must know: what does not work as it should.
    #[serde(default)]
    pub trouble: Vec<String>,
    /// The last self-test; `None`: the first has not ended yet.
    #[serde(default)]
    pub self_test: Option<SelfTest>,
    /// Services whose new configuration waits until they are free.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deferred: Vec<Deferred>,
    /// By name.
    pub services: Vec<ServiceStatus>,
}

/// What a connection of the daemon's own saw of the steering.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// How it ended.
    pub result: TestResult,
    /// What is wrong and what to do, or why it could not be tested; empty where all is well.
    pub detail: String,
    /// When it ended, in milliseconds since 1970.
    pub time_ms: u64,
    /// Tests since the daemon began.
    pub runs: u64,
    /// Those of them that failed.
    pub failures: u64,
}

/// How a self-test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestResult {
    /// A connection was steered, and another refused, as the tables said.
    Ok,
    /// Nothing is steered, as an operator has asked.
    Bypassed,
    /// Nothing is in the kernel, as an operator has asked.
    Detached,
    /// The tables say one thing, and a connection met another.
    Failed,
    /// Something else stood in the way.
    Untested,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// `enforce`, `observe` or `bypass`.
    pub mode: String,
    /// `steer` or `refuse`.
    pub policy: String,
    /// So many workers stay in rotation.
    #[serde(default)]
    pub min_up: usize,
    /// The service address.
    pub address: Option<SocketAddr>,
    /// The roll that runs, if one does.
    pub roll: Option<String>,
    /// Its pools, if it has two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolStatus>,
    /// How lanes led to pools, if it has two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<LaneCounts>,
    /// Those of the current pool in the order configured; after them the spares, and the workers of the other pool, that
    /// are not down.
    pub workers: Vec<WorkerStatus>,
    /// Connections refused because no worker could take them.
    pub exhausted: u64,
    /// Connections of callers that are not steered.
    pub unsteered: u64,
    /// Connections to the service address.
    pub dialled: u64,
    /// In observe mode: connections whose destination would have changed.
    pub would_change: u64,
    /// The entries of `callers`, and what they fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<CallerStatus>,
    /// Callers that were not steered in the last five minutes, the one with most connections first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsteered_callers: Vec<UnsteeredCaller>,
    /// Whether `bind()` to its addresses fails for all but root and the workers' user.
    #[serde(default)]
    pub protected: bool,
    /// `bind()` calls to its addresses that failed for that.
    #[serde(default)]
    pub binds_refused: u64,
}

/// An entry of `callers`, and what it fits as of the last seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerStatus {
    /// "executable /usr/sbin/nginx", "cgroup /sys/fs/cgroup/system.slice/haproxy.service".
    pub caller: String,
    /// Processes that it means.
    pub processes: usize,
    /// Those of them that no published rule fits: their connections are not steered.
    pub left_out: usize,
}

/// A caller whose connections were not steered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnsteeredCaller {
    /// Its executable, or where it is: "/usr/local/bin/nginx", "10.0.0.7 (another host or network namespace)".
    pub caller: String,
    /// The command of the process that called last; `None`: it is not on this host.
    pub process: Option<String>,
    /// Its process id.
    pub pid: Option<u32>,
    /// Its address; `None`: it is a process of this host.
    pub peer: Option<std::net::IpAddr>,
    /// Its connections in the last five minutes.
    pub connections: u64,
    /// Seconds since the last.
    pub last_s: f64,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Where it listens.
    pub at: SocketAddr,
    /// Its pool, `a` or `b`, of a service that has two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// It is a spare, which stands in during a roll.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spare: bool,
    /// What it goes through.
    pub phase: Phase,
    /// Why: a failure, the operator that drained it. May be empty.
    pub reason: String,
    /// Seconds since the phase began.
    pub for_s: f64,
    /// The version it last said it runs.
    pub version: Option<String>,
    /// What it said instead of a valid version: quoted, cut, in printable ASCII.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid_version: Option<String>,
    /// Connections now open, those older than the programs included.
    pub open: u64,
    /// `connect()` calls on their way to it.
    pub tickets: u64,
    /// Connections established since the programs were attached.
    pub established: u64,
    /// Connections that dialled it and were let through.
    pub direct: u64,
    /// Connections that dialled it and went to a sibling.
    pub away: u64,
    /// Connections brought here that had dialled a sibling.
    pub steered: u64,
    /// Connections brought here that had dialled the service address.
    pub picked: u64,
    /// Connections that dialled it and were refused by policy.
    pub refused: u64,
    /// Connections taken while draining, because nothing was up.
    pub fallback_draining: u64,
    /// Connections taken while cold, because nothing was up or draining.
    pub fallback_cold: u64,
    /// Connections taken while draining, because some others were up, but fewer than must be.
    #[serde(default)]
    pub fallback_floor: u64,
    /// Connections that met its address while no socket listened there, of any peer.
    #[serde(default)]
    pub closed_port: u64,
    /// Connections of any peer, established after its drain was published and every earlier `connect()` had ended.
    #[serde(default)]
    pub late: u64,
    /// Connections of any peer, established while it was cold; without the daemon's own.
    #[serde(default)]
    pub to_cold: u64,
    /// Connections of steered callers that could not be established.
    #[serde(default)]
    pub failed: u64,
    /// Connections of any peer that its end reset instead of closing them.
    #[serde(default)]
    pub reset: u64,
    /// How often its process ended, or closed its last listening socket: crashes, and stops on request.
    #[serde(default)]
    pub crashes: u64,
    /// Connections that were open in its process when that ended.
    #[serde(default)]
    pub cut: u64,
    /// Kept-alive connections that were closed while it was drained, since the daemon was started.
    #[serde(default)]
    pub closed: u64,
    /// While it is draining: the connections that hold it, as of the last second; the oldest, where there are very many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Hold>,
    /// So many more hold it than are listed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more_holds: usize,
    /// While it is draining: so many connections hold nothing, as of the last second. Their callers are gone, and the worker
    /// has not closed them.
    #[serde(default, skip_serializing_if = "is_none")]
    pub gone: usize,
    /// While it is draining: the processes whose `connect()` calls hold it, as of the last second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ticket_holds: Vec<TicketHold>,
    /// Of `tickets`, those of callers that are not steered.
    #[serde(default)]
    pub outsider_tickets: u64,
    /// Connections of callers that are not steered which drains have cut at their deadline.
    #[serde(default)]
    pub outsiders_cut: u64,
    /// Connections of which the kernel has refused to remember anything (socket storage).
    #[serde(default)]
    pub unnoted: u64,
}

fn is_none(number: &usize) -> bool {
    *number == 0
}

/// A process whose `connect()` call holds a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketHold {
    /// Its command.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// The user as which it runs; `None`: not known.
    pub user: Option<String>,
    /// It is not steered: a roll does not wait for it beyond the deadline, unless `drain.outsiders` is `hold`.
    pub outsider: bool,
}

/// A connection that holds a drain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The caller's end.
    pub peer: SocketAddr,
    /// The caller's command; `None`: it is not on this host, or not to be seen.
    pub process: Option<String>,
    /// Its process id.
    pub pid: Option<u32>,
    /// The user as which that process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The caller is not steered: a roll does not wait for it beyond the deadline, unless `drain.outsiders` is `hold`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outsider: bool,
    /// State of the connection as `ss` writes it, at the caller's end where that is on this host.
    pub state: String,
    /// Seconds since it was established; `None`: unknown, since it is older than the programs, say.
    pub age_s: Option<f64>,
    /// Seconds since anything was sent or received on it; `None`: it is not established yet.
    pub idle_s: Option<f64>,
    /// Why it holds: "established", "waits to be accepted".
    pub why: String,
}
