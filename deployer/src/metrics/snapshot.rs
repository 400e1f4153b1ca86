//! What is looked at for a page.

use std::{net::SocketAddr, time::Duration};

use deployer_common::layout::{ServiceCount, WorkerEvidence};
use rustix::time::{ClockId, clock_gettime};

use super::{Figures, FleetFigures};
use crate::{
    api::{LaneCounts, Phase, PoolStatus, SelfTest},
    service::moves::Moved,
};

/// Everything on a page.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Version of the daemon.
    pub version: &'static str,
    /// Whether programs are attached.
    pub attached: bool,
    /// Whether all services are bypassed.
    pub bypassed: bool,
    /// Links and pins that were lost since the daemon was started.
    pub links_lost: u64,
    /// Those that the last look has found lost.
    pub links_missing: usize,
    /// What an operator must know.
    pub trouble: usize,
    /// Sockets of strangers at service and lane addresses, and beside workers.
    pub squatters: usize,
    /// The last self-test; `None`: the first has not ended yet.
    pub self_test: Option<SelfTest>,
    /// How often a background task of the daemon was started again.
    pub task_restarts: u64,
    /// Whether the journal can be written.
    pub journal_writable: bool,
    /// The daemon's own process.
    pub process: Process,
    /// Programs by name, how long they have run and how often; `None`: the kernel does not count that.
    pub runs: Option<Vec<(String, Duration, u64)>>,
    /// By name.
    pub services: Vec<ServiceSample>,
    /// The fleet; `None`: this host is alone.
    pub fleet: Option<FleetFigures>,
}

/// The daemon's own process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// When it was started, milliseconds since 1970.
    pub begun_ms: u64,
    /// Processor time it has taken, in seconds.
    pub cpu_seconds: f64,
    /// Memory that it has in use; `None`: not known.
    pub resident_bytes: Option<u64>,
}

impl Process {
    /// As of now.
    #[must_use]
    pub fn look(begun_ms: u64) -> Self {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        let resident_bytes = crate::kernel::host::text("/proc/self/status").ok().and_then(|status| resident(&status));
        Self { begun_ms, cpu_seconds, resident_bytes }
    }
}

/// `VmRSS:     1234 kB`, where 1 kB is 1024 bytes (proc_pid_status(5)).
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// A service.
#[derive(Debug, Clone)]
pub struct ServiceSample {
    /// Its name.
    pub name: String,
    /// `observe`, `enforce` or `bypass`.
    pub mode: &'static str,
    /// So many workers stay in rotation.
    pub min_up: usize,
    /// What the kernel counts for all of it.
    pub count: ServiceCount,
    /// Connections in the last minutes of callers that are not steered, by caller.
    pub unsteered: Vec<(String, u64)>,
    /// Workers most of whose connections these are.
    pub workers_unsteered: usize,
    /// Entries of `callers`, and how many processes each means.
    pub callers: Vec<(String, usize)>,
    /// `bind()` calls to its protected addresses that were refused.
    pub binds_refused: u64,
    /// What it has gone through.
    pub moved: Moved,
    /// The roll that runs.
    pub roll: Option<RollSample>,
    /// When the last roll ended, milliseconds since 1970.
    pub last_end_ms: Option<u64>,
    /// Of a service that has two pools.
    pub sides: Option<Sides>,
    /// In the order configured, the spares, the second pool.
    pub workers: Vec<WorkerSample>,
}

/// What a service with two pools has more than another.
#[derive(Debug, Clone)]
pub struct Sides {
    /// Both.
    pub pools: Vec<PoolStatus>,
    /// How they are dialled.
    pub lanes: LaneCounts,
    /// Both versions of a deploy stand side by side, after a flip.
    pub bakes: bool,
}

/// The workers of a roll that runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollSample {
    /// On the new version, or restarted.
    pub done: usize,
    /// Being drained or restarted now.
    pub in_hand: usize,
    /// Not touched yet.
    pub waiting: usize,
    /// Out of rotation.
    pub failed: usize,
    /// Not empty at their deadline; the roll comes back to them.
    pub left: usize,
}

/// A worker.
#[derive(Debug, Clone)]
pub struct WorkerSample {
    /// Where it listens.
    pub at: SocketAddr,
    /// Of a service with two pools, which it is of, and whether that is the current one.
    pub pool: Option<(&'static str, bool)>,
    /// It stands in during a roll.
    pub spare: bool,
    /// What it goes through.
    pub phase: Phase,
    /// For how long.
    pub for_seconds: f64,
    /// What it last said it runs; `None`: nobody knows.
    pub version: Option<String>,
    /// Connections now open, those older than the programs included.
    pub open: u64,
    /// `connect()` calls on their way to it.
    pub pending: u64,
    /// Callers that are not steered, and what could not be counted.
    pub evidence: WorkerEvidence,
    /// Sockets that listen at its address.
    pub listeners: u64,
    /// Ends that nobody asked for.
    pub crashes: u64,
    /// Connections of any peer that met its address while no socket listened there.
    pub closed_port: u64,
    /// Starts by rolls, since the daemon was started.
    pub restarts: u64,
    /// Seconds spent draining, since the daemon was started.
    pub drain_seconds: f64,
    /// Seconds that passed warm-ups took, since the daemon was started.
    pub warm_up_seconds: f64,
    /// Its connections by version: that which it runs, and the one before.
    pub versions: Vec<(String, Figures)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_proc_says_it() {
        assert_eq!(resident("Name:\td\nVmRSS:\t    1234 kB\nRssAnon:\t 1 kB\n"), Some(1234 * 1024));
        for odd in ["", "VmRSS:", "VmRSS: kB", "VmRSS: 5 MB", "VmRSS: 99999999999999999999 kB"] {
            assert_eq!(resident(odd), None, "{odd}");
        }
        let process = Process::look(1);
        assert!(process.cpu_seconds > 0.0 && process.resident_bytes.is_some_and(|bytes| bytes > 1 << 20));
    }
}
