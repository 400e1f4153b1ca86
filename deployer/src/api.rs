//! What the daemon and its clients say to each other: HTTP and JSON over a unix socket.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `POST /v1/services/NAME/roll` [`RollRequest`] | [`RollStarted`]; with `dry_run` the plan alone |
//! | `GET /v1/rolls/ID/events?from=SEQ` | [`Event`]s from the first, or from SEQ, one JSON object a line, until the roll has ended |
//! | `GET /v1/events?from=SEQ&follow=true` | [`Entry`]s of the host's history, one JSON object a line: all there are, or from SEQ on; with `follow` also what happens from then on |
//! | `GET /v1/rolls/ID/report` | [`Report`]; with `last` for ID that of the roll which began last |
//! | `POST /v1/rolls/ID/stop` | [`Done`] |
//! | `POST /v1/services/NAME/deploy` [`DeployRequest`] | [`DeployStarted`]; a deploy is followed, stopped and reported like a roll |
//! | `POST /v1/services/NAME/flip` [`FlipRequest`] | [`Done`] when it has been told to |
//! | `POST /v1/services/NAME/rollback` | [`RollbackStarted`] |
//! | `POST /v1/services/NAME/drain` [`DrainRequest`] | [`Done`] when the worker is out of rotation |
//! | `POST /v1/services/NAME/enable` [`EnableRequest`] | [`Done`] |
//! | `GET /v1/services/NAME/trace?duration_ms=MS&port=P&every=N`, P a port or an address | [`Traced`], one JSON object a line, the last of which is its end |
//! | `GET /v1/fleet` | [`FleetStatus`] |
//! | `GET /v1/fleet/services/NAME` | [`ServiceFleet`] |
//! | `POST /v1/fleet/services/NAME/deploy` [`FleetDeploy`] | [`FleetStarted`] |
//! | `POST /v1/fleet/services/NAME/roll` [`FleetRoll`] | [`FleetStarted`] |
//! | `POST /v1/fleet/services/NAME/abort`, `rollback`, `resume`, `accept-shrink` | [`Done`] when it has been told to |
//! | `POST /v1/fleet/hosts/HOST/enable`, `drain`, `forget` | [`Done`] |
//! | `POST /v1/bypass` [`BypassRequest`] | [`Done`] |
//! | `POST /v1/detach` [`DetachRequest`] | [`Done`] |
//! | `POST /v1/reload` | [`Reloaded`] when the configuration is in force |
//!
//! Every error is an [`ErrorBody`] with the HTTP status of its [`Exit`].

mod deploy;
mod event;
mod fleet;
mod history;
mod named;
mod reload;
mod report;
mod status;
mod trace;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use self::{
    deploy::{DeployRequest, DeployStarted, FlipRequest, LaneCounts, PoolStatus, RollbackStarted},
    event::{Event, What},
    fleet::{
        DoubleBarrier, FleetDeploy, FleetRoll, FleetStarted, FleetState, FleetStatus, HostService, HostStatus,
        ServiceFleet, is_node,
    },
    history::{Change, Configured, Entry},
    named::At,
    reload::{Deferred, Reloaded},
    report::{Latency, Proof, Report, Tally, Window},
    status::{
        CallerStatus, Hold, SelfTest, ServiceStatus, Status, TestResult, TicketHold, UnsteeredCaller, WorkerStatus,
    },
    trace::{Outcome, TraceRequest, Traced},
};
use crate::version::Version;

/// Exit codes of every verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed.
    Failed,
    /// 2: the command, or what it names, makes no sense.
    Usage,
    /// 3: stopped, on request or at a drain's deadline; what was done stays.
    Stopped,
    /// 4: somebody else is at it.
    Busy,
    /// 5: failed, and what was changed has been rolled back.
    RolledBack,
    /// 6: no daemon answers.
    NoDaemon,
    /// 7: not at its end: detached, and the daemon goes on; or workers were left as they were, since they were not empty.
    Incomplete,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Stopped => 3,
            Self::Busy => 4,
            Self::RolledBack => 5,
            Self::NoDaemon => 6,
            Self::Incomplete => 7,
        }
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was tried, on what, why it failed, what to do.
    pub error: String,
    /// The exit code of the verb that meets it.
    pub exit: Exit,
}

/// It is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done, in a sentence.
    pub done: String,
}

/// Starts a roll.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollRequest {
    /// The version that workers must say they run afterwards; `None`: the one that is in place.
    #[serde(default)]
    pub to: Option<Version>,
    /// `4` or `10%`; `None`: as configured.
    #[serde(default)]
    pub batch: Option<String>,
    /// Answer with the plan and do nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// A barrier node of ZooKeeper's that must be gone before the first batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barrier: Option<String>,
    /// Entered before the first batch, and left at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub double_barrier: Option<DoubleBarrier>,
    /// Also where most connections of workers come from callers that are not steered, and would be lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// A roll that has begun, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollStarted {
    /// Names the roll; empty after a dry run.
    pub id: String,
    /// The workers, batch by batch.
    pub batches: Vec<Vec<SocketAddr>>,
    /// The version aimed at.
    pub to: Option<String>,
    /// Spares that are started first and retired at the end.
    #[serde(default)]
    pub spares: Vec<SocketAddr>,
    /// The command that puts it in place, if there is one.
    pub switch: Option<Vec<String>>,
}

/// Takes a worker out of rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// The worker's port, or its address.
    #[serde(alias = "worker")]
    pub port: At,
    /// Milliseconds after which it goes back by itself; `None`: when it is enabled.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// Also where too few others are up, so that connections go on to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Puts a worker back into rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnableRequest {
    /// The worker's port, or its address.
    #[serde(alias = "worker")]
    pub port: At,
    /// Milliseconds that the answer may take; `None`: twice the limit of the worker's warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
}

/// Bypasses services, or no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BypassRequest {
    /// One service; `None`: all.
    #[serde(default)]
    pub service: Option<String>,
    /// Bypass, or go back to steering.
    pub on: bool,
    /// Also where a service address is in use, whose connections will be refused.
    #[serde(default)]
    pub force: bool,
}

/// Takes everything out of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// Also where a service address is in use, whose connections will be refused.
    #[serde(default)]
    pub force: bool,
}

/// What a worker goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Serves.
    Up,
    /// Takes no new connections; its requests are waited for.
    Draining,
    /// Empty, and nobody is on the way.
    Drained,
    /// Its process is being stopped.
    Stopping,
    /// Its process is being started.
    Starting,
    /// Its port listens.
    Listening,
    /// Warm-up requests are being sent.
    Warming,
    /// Does not listen.
    Down,
    /// Failed; stays out.
    Failed,
    /// A process that is not the worker listens at its address: nothing is sent there.
    Stranger,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Stopping => "stopping",
            Self::Starting => "starting",
            Self::Listening => "listening",
            Self::Warming => "warming",
            Self::Down => "down",
            Self::Failed => "failed",
            Self::Stranger => "stranger",
        })
    }
}
