//! What a host does about its fleet's state: a pure function of that, and of how things stand on the host.

use super::state::Release;

/// How a service stands on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The highest epoch that this host has acted upon: lower ones are refused.
    pub epoch: u64,
    /// What the pool that is current runs, if all of it says the same.
    pub current: Option<Release>,
    /// What the other pool runs, if it is up.
    pub other: Option<Release>,
    /// What is under way.
    pub stage: Stage,
    /// How the last order of the fleet ended here, by its epoch; `Err`: why it failed, or was stopped.
    pub ended: Option<(u64, Result<(), String>)>,
    /// Why the new version is ill, while it bakes.
    pub ill: Option<String>,
}

/// What is under way for a service on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Nothing.
    Idle,
    /// A roll or deploy that is not the fleet's; its id.
    Busy(String),
    /// The other pool is being started, warmed, or asked its gate.
    Starting(Task),
    /// It is ready, both lanes are open, and it waits to be told to flip.
    Holding(Task),
    /// The kernel flips at this instant, milliseconds since 1970.
    Armed(Task, u64),
    /// It has flipped; both pools stand, until it is told. Since, milliseconds since 1970.
    Baking(Task, u64),
    /// It was turned back; both pools stand, until it is told.
    Lingering(Task),
    /// It is ending: a pool is being retired.
    Ending(Task),
    /// The workers are being restarted for the fleet.
    Rolling(u64),
}

/// What of a deploy on this host is the fleet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The epoch that it is for.
    pub epoch: u64,
    /// What it deploys.
    pub to: Release,
}
