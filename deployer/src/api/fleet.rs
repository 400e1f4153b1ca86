//! Fleets: hosts that flip together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::fleet::state::FleetState;
use crate::{config::Batch, version::Version};

/// Milliseconds from GO to the flip that may be asked for.
const LEAD_MS: std::ops::RangeInclusive<u64> = 500..=600_000;

/// How a fleet stands, as this host's daemon knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// The fleet.
    pub name: String,
    /// `local`, or `zookeeper zk1:2181,zk2:2181/deployer`.
    pub coordinator: String,
    /// This host's name in it.
    pub host: String,
    /// There is a connection to the coordinator.
    pub connected: bool,
    /// Since when it is so, milliseconds since 1970.
    pub since_ms: u64,
    /// Sessions that were lost since the daemon was started.
    pub sessions_lost: u64,
    /// By name: who is in the roster, or there.
    pub hosts: Vec<HostStatus>,
    /// By name.
    pub services: Vec<ServiceFleet>,
    /// What an operator must know.
    pub trouble: Vec<String>,
}

/// A host of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub host: String,
    /// `enabled`, `drained`, or `unknown`: it is not in the roster.
    pub roster: String,
    /// Its daemon has a session.
    pub alive: bool,
    /// By name, as it last said.
    pub services: BTreeMap<String, HostService>,
    /// Whether its clock is synchronised; `None`: it has not said.
    pub synchronised: Option<bool>,
    /// What its kernel supposes its clock to be wrong by at most, microseconds.
    pub clock_error_us: Option<u64>,
    /// Version of its daemon.
    pub deployer: String,
}

/// How a service stands on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostService {
    /// What the current pool runs; `None`: nobody has said, or they differ.
    pub version: Option<String>,
    /// The current pool's lane; 0: none.
    pub lane: u8,
    /// The epoch that it has acted upon last.
    pub epoch: u64,
    /// What is under way: "idle", "starting", "holding", "armed", "baking", "lingering", "ending", "rolling", "busy".
    pub stage: String,
    /// Workers that are up, of those that are to be: while a pool is started, of that pool.
    pub up: usize,
    /// Those that are to be.
    pub workers: usize,
    /// It is in the server set.
    pub published: bool,
}

/// A service of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFleet {
    /// Its name.
    pub service: String,
    /// What the fleet agrees on.
    pub state: FleetState,
    /// The host whose daemon drives the order in hand.
    pub driver: Option<String>,
    /// Hosts by what they have said of the epoch in hand, by [`Mark::name`](crate::fleet::paths::Mark::name).
    pub marks: BTreeMap<String, Vec<String>>,
    /// Who is waited for, the slowest first.
    pub waiting_for: Vec<String>,
    /// What is waited for, in words; empty: for nothing.
    pub waits: String,
    /// When hosts have flipped, milliseconds since 1970.
    pub flips: BTreeMap<String, u64>,
    /// What happened last, in words, the youngest last.
    pub log: Vec<String>,
    /// Grows with each change of the rest.
    pub seq: i64,
}

/// Starts a deploy of the whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetDeploy {
    /// The version that the workers of the other pools must say they run.
    pub to: Version,
    /// Share of the roster's enabled hosts that must be ready, 1 to 100.
    #[serde(default = "quorum")]
    pub quorum: u8,
    /// From GO to the flip: 500 ms to 10 min.
    #[serde(default = "lead_ms")]
    pub lead_ms: u64,
    /// How long both versions stand side by side, milliseconds; `None`: as configured on the host that is asked.
    #[serde(default)]
    pub bake_ms: Option<u64>,
    /// Hosts whose clocks are not synchronised may flip, too.
    #[serde(default)]
    pub allow_unsynchronised: bool,
    /// A barrier node that must be gone before GO.
    #[serde(default)]
    pub barrier: Option<String>,
}

/// Starts a roll of the whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetRoll {
    /// The version that workers must say they run afterwards; `None`: the one that is in place.
    #[serde(default)]
    pub to: Option<Version>,
    /// Hosts at a time: `2` or `10%`.
    pub host_batch: String,
    /// A barrier node that must be gone before the first hosts.
    #[serde(default)]
    pub barrier: Option<String>,
    /// Each host rolls although most connections of its workers are not steered.
    #[serde(default)]
    pub force: bool,
}

/// An order of the fleet that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStarted {
    /// Its epoch.
    pub epoch: u64,
}

/// A double barrier: entered before the flip, or the first batch, and left at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoubleBarrier {
    /// Its node.
    pub path: String,
    /// So many enter before any goes on; at least 1.
    pub parties: u32,
}

fn quorum() -> u8 {
    95
}

fn lead_ms() -> u64 {
    2000
}

impl FleetDeploy {
    /// Of this version, with all defaults.
    #[must_use]
    pub fn new(to: Version) -> Self {
        let (quorum, lead_ms) = (quorum(), lead_ms());
        Self { to, quorum, lead_ms, bake_ms: None, allow_unsynchronised: false, barrier: None }
    }

    /// Whether its numbers and its path can be meant.
    ///
    /// # Errors
    /// What cannot, and what to write.
    pub fn is_sound(&self) -> Result<(), String> {
        if !(1..=100).contains(&self.quorum) {
            return Err(format!("a quorum of {} % makes no sense; write 1 to 100", self.quorum));
        }
        if !LEAD_MS.contains(&self.lead_ms) {
            return Err(format!("a lead of {} ms makes no sense; write 500 ms to 10 minutes", self.lead_ms));
        }
        self.barrier.as_deref().map_or(Ok(()), is_node)
    }
}

impl FleetRoll {
    /// So many of `total` hosts at a time: at least one, and of several never all.
    ///
    /// # Errors
    /// What makes no sense of it, and what to write.
    pub fn hosts(&self, total: usize) -> Result<usize, String> {
        let wrong = |_| {
            let batch = &self.host_batch;
            format!("`{batch}` is neither a number of hosts from 1 (`2`) nor a share from 1% to 100% (`10%`)")
        };
        let batch: Batch = self.host_batch.parse().map_err(wrong)?;
        self.barrier.as_deref().map_or(Ok(()), is_node)?;
        Ok(batch.of(total))
    }
}

/// Whether a text is the path of a node in ZooKeeper.
///
/// # Errors
/// Why not, and what to write.
pub fn is_node(path: &str) -> Result<(), String> {
    let parts = path.strip_prefix('/').unwrap_or_default();
    let legal = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control);
    if !parts.is_empty() && path.len() <= 1024 && parts.split('/').all(legal) {
        return Ok(());
    }
    let shown: String = path.chars().take(80).collect();
    Err(format!("{shown:?} is no path in ZooKeeper; write it from the root on, /barriers/web"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_of_a_deploy_is_supposed() {
        let read: FleetDeploy = serde_json::from_str(r#"{"to":"v2"}"#).unwrap();
        assert_eq!(read, FleetDeploy::new("v2".into()));
        assert_eq!((read.quorum, read.lead_ms, read.is_sound()), (95, 2000, Ok(())));
        assert!(serde_json::from_str::<FleetDeploy>(r#"{"to":"v2","qourum":1}"#).is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let sound = FleetDeploy::new("v2".into());
        for wrong in [
            FleetDeploy { quorum: 0, ..sound.clone() },
            FleetDeploy { quorum: 101, ..sound.clone() },
            FleetDeploy { lead_ms: 499, ..sound.clone() },
            FleetDeploy { lead_ms: 600_001, ..sound.clone() },
            FleetDeploy { barrier: Some("barrier".to_owned()), ..sound.clone() },
        ] {
            assert!(wrong.is_sound().is_err(), "{wrong:?}");
        }
        for wrong in ["", "/", "a", "//", "/a/", "/a//b", "/../a", "/a\u{1}"] {
            assert!(is_node(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(is_node("/barriers/web 1"), Ok(()));
    }

    #[test]
    fn hosts_at_a_time() {
        let of = |batch: &str, total| {
            FleetRoll { to: None, host_batch: batch.to_owned(), barrier: None, force: false }.hosts(total)
        };
        assert_eq!(
            [of("2", 5), of("10%", 5), of("10%", 40), of("100%", 5), of("9", 1)].map(Result::unwrap),
            [2, 1, 4, 4, 1]
        );
        assert!(["0", "0%", "101%", "x", ""].iter().all(|batch| of(batch, 5).is_err()));
    }
}
