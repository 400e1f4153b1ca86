//! What was counted around a roll.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::Exit;

/// What became of the connections before, during and after a roll.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The roll.
    pub roll: String,
    /// Its service.
    pub service: String,
    /// Who asked for it.
    pub by: String,
    /// The version that the workers said they ran before it.
    pub from: Option<String>,
    /// The version aimed at.
    pub to: Option<String>,
    /// How it ended; `None`: it runs.
    pub result: Option<Exit>,
    /// How it ended, in a sentence.
    pub text: String,
    /// How long it took, or has taken so far, in seconds.
    pub seconds: f64,
    /// Workers now on the new version (or restarted).
    pub changed: usize,
    /// Workers that failed and are out.
    pub failed: Vec<SocketAddr>,
    /// The last 60 s before it began, or what of them is known: the daemon may be younger, or a roll have ended meanwhile.
    pub before: Window,
    /// From its beginning to its end.
    pub during: Window,
    /// The 60 s after its end, or until the next roll began.
    pub after: Window,
    /// Nothing more is added to `after`.
    pub complete: bool,
    /// What must be known to read it, in sentences.
    pub notes: Vec<String>,
    /// What was counted since the kernel's tables were made; `None`: the service is no longer configured.
    pub total: Option<Proof>,
}

/// What was counted in a span of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Window {
    /// How long it was.
    pub seconds: f64,
    /// Connections refused because no worker could take them.
    pub exhausted: u64,
    /// What workers of each version got.
    pub versions: Vec<Tally>,
}

/// What was counted for workers that ran one version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// What they said they run; `None`: nobody knows.
    pub version: Option<String>,
    /// Connections of any peer, seen at the worker's end. The daemon's own, its warm-ups among them, are left out.
    pub connections: u64,
    /// Connections of steered callers that could not be established.
    pub failed: u64,
    /// Connections of any peer that the worker's end reset instead of closing them.
    pub reset: u64,
    /// Connections of any peer that met a worker's address while no socket listened there. Those of steered callers are
    /// among the failed as well.
    pub closed_port: u64,
    /// Connections that were open in a process when it ended.
    pub cut: u64,
    /// Connections that dialled one of them and were refused by policy.
    pub refused: u64,
    /// Connections of any peer, established after the drain was published and every earlier `connect()` had ended.
    pub late: u64,
    /// Connections of any peer, established while it was cold.
    pub to_cold: u64,
    /// Connections taken while draining, because nothing was up.
    pub fallback_draining: u64,
    /// Connections taken while cold, because nothing was up or draining.
    pub fallback_cold: u64,
    /// Connections taken while draining, because too few workers would have been in rotation.
    pub fallback_floor: u64,
    /// How many connections lasted at least so many microseconds, and less than the next bucket's. Seen at the worker's
    /// end: for load balancers without upstream keep-alive, that is the request's latency.
    pub lifetimes: BTreeMap<u64, u64>,
    /// The same, summed up; `None`: no connection has ended.
    pub latency: Option<Latency>,
}

/// How long connections lasted, in microseconds, each known to within a fifth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50_us: u64,
    /// 99 of 100 lasted no longer.
    pub p99_us: u64,
    /// None lasted longer.
    pub max_us: u64,
}

/// The figures that are zero where nothing went wrong and nothing fell back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// As [`Tally::late`].
    pub late: u64,
    /// As [`Tally::to_cold`].
    pub to_cold: u64,
    /// As [`Tally::fallback_draining`].
    pub fallback_draining: u64,
    /// As [`Tally::fallback_cold`].
    pub fallback_cold: u64,
    /// As [`Tally::fallback_floor`].
    pub fallback_floor: u64,
    /// As [`Window::exhausted`].
    pub exhausted: u64,
    /// As [`Tally::refused`].
    pub refused: u64,
    /// As [`Tally::closed_port`].
    #[serde(default)]
    pub closed_port: u64,
}
