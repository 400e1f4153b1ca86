//! What a deploy has more than a roll: the other pool is started in place of spares, and then there is a flip.
//!
//! Until the flip everything that goes wrong ends it with the new pool retired, and nobody has met it. After the flip it
//! bakes, both pools warm; then the old pool is retired. Turned back while it bakes, it flips to the old pool, and the new
//! one is retired as late as the old one would have been: pages of its version are still open.
//!
//! One that is the fleet's waits to be told: to flip, that the bake is over, or that it is turned back. Its new pool may be
//! dialled from when it begins to hold, since other hosts may flip earlier than this one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Exit, Machine, Stage};
use crate::{deploy::health::Figures, kernel::Lasting};

/// What of a deploy is fixed before it begins. The new pool are the plan's spares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// The workers of the pool that is current.
    pub old: Vec<usize>,
    /// Workers of the new pool that are started at a time, at least 1.
    pub batch: usize,
    /// Whether there is a gate.
    pub gate: bool,
    /// Whether it waits to be told to flip.
    pub hold: bool,
    /// When it flips, milliseconds since 1970; `None`: as soon as it can.
    pub at_ms: Option<u64>,
    /// How long both pools stand side by side after a flip, milliseconds.
    pub bake_ms: u64,
    /// It is the fleet's: it holds, and both pools stand side by side, until it is told.
    #[serde(default)]
    pub fleet: Option<FleetPart>,
}

/// What of a deploy the fleet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetPart {
    /// The epoch that it is for.
    pub epoch: u64,
    /// The lane of the new version on every host, 1-255.
    pub lane: u8,
}

/// Why a bake is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Baked {
    /// Its time is.
    Done,
    /// Another deploy takes its place, asked for by somebody.
    Superseded(String),
    /// It is to be turned back, and why.
    Bad(String),
}

impl Machine {
    /// The workers that are to be started next, of those that stand in.
    pub(super) fn surging(&self) -> Vec<usize> {
        let batch = self.plan.deploy.as_ref().map_or(usize::MAX, |deploy| deploy.batch.max(1));
        self.plan.surge.iter().copied().filter(|nth| !self.surged.contains(nth)).take(batch).collect()
    }

    /// Whether both versions serve side by side: it has flipped, and neither pool is being retired.
    #[must_use]
    pub fn has_flipped(&self) -> bool {
        matches!(self.stage, Stage::Bake | Stage::Return | Stage::Linger)
    }

    /// Whether it has flipped and may still be turned back.
    #[must_use]
    pub fn is_baking(&self) -> bool {
        matches!(self.stage, Stage::Bake)
    }

    /// Whether the new pool was current when it was cut off, as far as is written down; milliseconds since 1970.
    #[must_use]
    pub fn may_have_flipped(&self, now_ms: u64) -> bool {
        let is_over = || self.flip_at_ms.is_some_and(|at| at <= now_ms);
        matches!(self.stage, Stage::Bake) || (matches!(self.stage, Stage::Flip) && is_over())
    }

    /// Whether it is a deploy that waits with no worker in hand: to be told to flip, for its flip, or while both versions
    /// serve side by side.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Hold | Stage::Flip | Stage::Bake | Stage::Linger)
    }

    /// Whether it is about to flip, or does so by itself, and has not been told that it has.
    #[must_use]
    pub fn is_flipping(&self) -> bool {
        matches!(self.stage, Stage::Flip)
    }

    /// Whether it was turned back, and both versions serve side by side still.
    #[must_use]
    pub fn is_turned_back(&self) -> bool {
        matches!(self.stage, Stage::Return | Stage::Linger)
    }

    /// Whether a pool is being retired, or nothing is left to do.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Retire(_) | Stage::Over(_))
    }

    /// What of it the fleet says, of a deploy.
    #[must_use]
    pub fn fleet(&self) -> Option<FleetPart> {
        self.plan.deploy.as_ref()?.fleet
    }

    /// Whether everybody may dial the new pool's lane though it has not flipped yet, as far as is written down.
    #[must_use]
    pub fn is_open_early(&self, now_ms: u64) -> bool {
        let waits = matches!(self.stage, Stage::Hold | Stage::Flip);
        self.fleet().is_some() && waits && !self.may_have_flipped(now_ms)
    }

    /// Whether it waits for somebody to say that it is to flip.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        matches!(self.stage, Stage::Hold)
    }

    /// When it has flipped, or will, in milliseconds since 1970; `None`: it is not armed.
    #[must_use]
    pub fn flip_at_ms(&self) -> Option<u64> {
        self.flip_at_ms
    }

    /// Workers of the new pool that have been started.
    #[must_use]
    pub fn started(&self) -> usize {
        if self.changed.is_empty() { self.surged.len() } else { self.changed.len() }
    }

    /// Which batch of the new pool is started, from 1, and of how many.
    #[must_use]
    pub fn surge_batch(&self) -> (usize, usize) {
        let batch = self.plan.deploy.as_ref().map_or(usize::MAX, |deploy| deploy.batch.max(1));
        (self.surged.len() / batch + 1, self.plan.surge.len().div_ceil(batch))
    }

    pub(super) fn after_surge(&self) -> Stage {
        if self.plan.deploy.is_some() { Stage::Gate } else { Stage::Forward(0) }
    }

    pub(super) fn stop_before_flip(&mut self) {
        let text = format!("{}; {}", self.why(), self.untouched());
        self.over(Exit::Stopped, text);
    }

    /// What came of the gate.
    pub fn gated(&mut self, result: Result<(), String>) {
        let Stage::Gate = self.stage else { return };
        match result {
            Ok(()) => self.stage = Stage::Hold,
            Err(why) => self.over(Exit::Failed, format!("the gate did not pass: {why}; {UNTOUCHED}")),
        }
        self.settle();
    }

    /// It is told to flip; at an instant in milliseconds since 1970, or as planned.
    pub fn released(&mut self, at_ms: Option<u64>) {
        if let (Stage::Hold, Some(deploy)) = (&self.stage, &mut self.plan.deploy) {
            deploy.at_ms = at_ms.or(deploy.at_ms);
            self.stage = Stage::Flip;
        }
    }

    /// The flip of a fleet's deploy was not armed, by a daemon that ended: it waits to be told once more, since the fleet may
    /// want something else by now.
    pub fn hold_again(&mut self) {
        if self.fleet().is_some() && matches!(self.stage, Stage::Flip) {
            self.flip_at_ms = None;
            self.stage = Stage::Hold;
            self.settle();
        }
    }

    /// The flip is about to be armed for an instant, or has just been turned back.
    pub fn arming(&mut self, at_ms: u64) {
        self.flip_at_ms = Some(at_ms);
    }

    /// What the new pool's counters stood at when its flip was armed: its crashes and failures count from there.
    #[must_use]
    pub fn figures(&self) -> Option<Figures> {
        self.figures
    }

    /// The new pool's crashes and failures count from here.
    pub fn count_from(&mut self, figures: Figures) {
        self.figures = Some(figures);
    }

    /// The new pool is not fit to take callers, now that it is to. A flip that was armed has been taken back.
    pub fn unfit(&mut self, why: &str) {
        if let Stage::Flip = self.stage {
            self.flip_at_ms = None;
            self.over(Exit::Failed, format!("{why}; {}", self.untouched()));
            self.settle();
        }
    }

    /// The flip will not happen: it was taken back before its instant.
    pub fn disarmed(&mut self) {
        self.flip_at_ms = None;
        self.settle();
    }

    /// The flip has happened.
    pub fn flipped(&mut self) {
        if let Stage::Flip = self.stage {
            self.stage = Stage::Bake;
            self.side_by_side = None;
        }
    }

    /// The bake is over.
    pub fn baked(&mut self, why: Baked) {
        let Some(deploy) = self.plan.deploy.as_ref().filter(|_| matches!(self.stage, Stage::Bake)) else { return };
        let workers = self.surged.len();
        let done = format!("{workers} workers of the new version serve, and those of the old one are retired");
        let text = match why {
            Baked::Bad(why) => {
                self.cause = why;
                self.stage = Stage::Return;
                return;
            }
            Baked::Done => done,
            Baked::Superseded(by) => format!("{done}; it was superseded ({by})"),
        };
        self.changed = std::mem::replace(&mut self.surged, deploy.old.clone());
        self.over(Exit::Done, text);
        self.settle();
    }

    /// The old pool is current again since an instant, milliseconds since 1970.
    pub fn returned(&mut self, at_ms: u64) {
        if let Stage::Return = self.stage {
            self.flip_at_ms = Some(at_ms);
            self.side_by_side = None;
            self.stage = Stage::Linger;
        }
    }

    /// The pages of the version that was turned back have had their time.
    pub fn lingered(&mut self) {
        if let Stage::Linger = self.stage {
            self.over(Exit::RolledBack, format!("{}; the old version serves again", self.cause));
            self.settle();
        }
    }

    /// Until when both pools stand side by side, as the time of day is expected to be then, milliseconds since 1970; `None`:
    /// until it is told. The boot clock decides: see [`Machine::side_by_side`].
    #[must_use]
    pub fn side_by_side_until(&self) -> Option<u64> {
        let (bake, fleet) = self.plan.deploy.as_ref().map_or((0, None), |deploy| (deploy.bake_ms, deploy.fleet));
        fleet.is_none().then(|| self.flip_at_ms.unwrap_or_default().saturating_add(bake))
    }

    /// When both pools have stood side by side for long enough; `None`: nothing has said so yet.
    #[must_use]
    pub fn side_by_side(&self) -> Option<&Lasting> {
        self.side_by_side.as_ref()
    }

    /// Both pools stand side by side until then.
    pub fn stand_side_by_side(&mut self, until: Lasting) {
        self.side_by_side = Some(until);
    }

    /// For how long both pools stand side by side after a flip.
    #[must_use]
    pub fn bake(&self) -> Duration {
        Duration::from_millis(self.plan.deploy.as_ref().map_or(0, |deploy| deploy.bake_ms))
    }

    /// How the text of an end goes on that comes before the flip. Pages of other hosts may have met a version of the fleet's.
    pub(super) fn untouched(&self) -> &'static str {
        if self.fleet().is_some() { "this host has not flipped, and the old version is untouched" } else { UNTOUCHED }
    }
}

/// The same where nobody can have met the new version.
pub(super) const UNTOUCHED: &str = "nobody has met the new version, and the old one is untouched";
