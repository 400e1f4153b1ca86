//! Deploys: two versions side by side.

use serde::{Deserialize, Serialize};

use super::DoubleBarrier;
use crate::version::Version;

/// Starts a deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The version that the workers of the other pool must say they run.
    pub to: Version,
    /// Wait after the gate until somebody asks for the flip.
    #[serde(default)]
    pub hold: bool,
    /// Flip at this instant, milliseconds since 1970; `None`: as soon as all is ready.
    #[serde(default)]
    pub at_ms: Option<u64>,
    /// How long both versions stand side by side, milliseconds; `None`: as configured.
    #[serde(default)]
    pub bake_ms: Option<u64>,
    /// End a deploy that is under way first: before its flip it is stopped, after it the bake is over.
    #[serde(default)]
    pub supersede: bool,
    /// Also where there seems to be too little memory for two pools, or where most connections of workers come from callers
    /// that are not steered, and would be lost.
    #[serde(default)]
    pub force: bool,
    /// A barrier node of ZooKeeper's that must be gone before the flip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barrier: Option<String>,
    /// Entered before the flip, and left at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub double_barrier: Option<DoubleBarrier>,
}

impl DeployRequest {
    /// Of this version, with all defaults.
    #[must_use]
    pub fn new(to: Version) -> Self {
        Self {
            to,
            hold: false,
            at_ms: None,
            bake_ms: None,
            supersede: false,
            force: false,
            barrier: None,
            double_barrier: None,
        }
    }
}

/// A deploy that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployStarted {
    /// Names it, as a roll.
    pub id: String,
}

/// Has a deploy flip that was told to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlipRequest {
    /// At this instant, milliseconds since 1970; `None`: now.
    #[serde(default)]
    pub at_ms: Option<u64>,
}

/// What a rollback does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackStarted {
    /// The deploy that is turned back, or the one that has begun, of the former version.
    pub id: String,
    /// The version that serves then, as far as it is known.
    pub to: Option<String>,
    /// It is a deploy of its own, since the former pool is retired.
    pub is_deploy: bool,
}

/// One of a service's two pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// `a` or `b`.
    pub pool: String,
    /// Its lane; 0: none.
    pub lane: u8,
    /// New connections that name no lane go to it.
    pub current: bool,
    /// Everybody may dial its lane.
    pub open_lane: bool,
    /// What its workers say they run; `None`: nobody has said, or they differ.
    pub version: Option<String>,
    /// Workers that are up.
    pub up: usize,
    /// Workers.
    pub workers: usize,
    /// Connections open.
    pub open: u64,
    /// Its share of the connections of the last ten seconds, 0 to 1; `None`: there were none.
    pub share: Option<f64>,
    /// Seconds since the last change of a phase of its workers.
    pub age_s: f64,
    /// Kept-alive connections of the time before the flip that are still open; `None`: nobody closes them.
    pub former: Option<usize>,
    /// When it becomes current, milliseconds since 1970; `None`: no flip to it is armed.
    pub flips_at_ms: Option<u64>,
}

/// How often a lane did not lead where it says, and other ways to a pool; since the service was entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCounts {
    /// Connections to the pool that their lane names.
    pub lane: u64,
    /// Of those that may preview, to one that has not been current.
    pub preview: u64,
    /// To the current pool, as their lane is retired or was never given.
    pub stale: u64,
    /// To the current pool, as their lane has not been current yet.
    pub unopened: u64,
    /// To the current pool, that had dialled a worker of the other.
    pub moved: u64,
}
