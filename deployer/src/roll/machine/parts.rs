//! What a roll is made of: its plan, its steps, and what comes of them.

use serde::{Deserialize, Serialize};

use super::Deploy;
use crate::{api::Exit, fleet::barrier::Wanted};

/// What is fixed before a roll begins. Workers are named by their place in the service, spares by theirs after them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The workers, batch by batch; no batch is empty.
    pub batches: Vec<Vec<usize>>,
    /// Failed workers at which it stops, at least 1.
    pub max_failures: usize,
    /// Whether a failure is rolled back.
    pub rollback: bool,
    /// Whether a command puts the new version in place.
    pub switch: bool,
    /// Whether a command puts the former version back.
    pub unswitch: bool,
    /// Spares that are started before the first batch and retired at the end; empty: capacity dips.
    #[serde(default)]
    pub surge: Vec<usize>,
    /// Spares that were left running, by a roll that was cut: retired before anything else.
    #[serde(default)]
    pub leftover: Vec<usize>,
    /// Workers at a time on the way back, which has no spares; 0: as on the way there.
    #[serde(default)]
    pub back: usize,
    /// It is a deploy: the spares are the other pool.
    #[serde(default)]
    pub deploy: Option<Deploy>,
    /// A roll that is the fleet's: the epoch that it is for. Of a deploy, see [`Deploy::fleet`].
    #[serde(default)]
    pub fleet: Option<u64>,
    /// What of others is waited for before the first batch, or the flip.
    #[serde(default)]
    pub barriers: Wanted,
}

impl Plan {
    /// The epoch of the fleet that it is for; `None`: it is this host's own.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        self.fleet.or_else(|| Some(self.deploy.as_ref()?.fleet?.epoch))
    }

    /// Cuts the first so many workers into batches.
    #[must_use]
    pub fn batches(workers: usize, batch: usize) -> Vec<Vec<usize>> {
        Self::batches_of(0..workers, batch)
    }

    /// Cuts these workers into batches.
    #[must_use]
    pub fn batches_of(workers: std::ops::Range<usize>, batch: usize) -> Vec<Vec<usize>> {
        let all: Vec<_> = workers.collect();
        all.chunks(batch.max(1)).map(<[usize]>::to_vec).collect()
    }
}

/// What came of one worker, or spare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Restarted, warm, and up; of a spare that was to be retired: stopped.
    Changed,
    /// Out of rotation, and why.
    Failed(String),
    /// Back in rotation as it was, and why; the roll stops.
    Kept(String),
    /// Not empty at its deadline, and what held it. Nothing of it was cut; the roll goes on without it, and comes back to it.
    Left(String),
}

impl Outcome {
    /// Why it is not as it was to be.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::Changed => None,
            Self::Failed(why) | Self::Kept(why) | Self::Left(why) => Some(why),
        }
    }
}

/// What to do next. The last six before the end are a deploy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put the new version in place.
    Switch,
    /// Start these spares, and warm them.
    Surge {
        /// All of them.
        spares: Vec<usize>,
    },
    /// Restart these; `nth` counts from 0.
    Batch {
        /// Which batch.
        nth: usize,
        /// Of how many.
        of: usize,
        /// Its workers.
        workers: Vec<usize>,
        /// Whether they are being rolled back.
        back: bool,
    },
    /// Take again those that were left: all others are through. Each is restarted as soon as it is empty.
    Again {
        /// All of them.
        workers: Vec<usize>,
        /// Whether they are being rolled back.
        back: bool,
    },
    /// Drain and stop these spares.
    Retire {
        /// All of them.
        spares: Vec<usize>,
    },
    /// Put the former version back.
    Unswitch,
    /// Ask whether the new pool may be flipped to.
    Gate,
    /// Wait until somebody says that it is to flip.
    Hold,
    /// Have the other pool current from an instant on.
    Flip {
        /// Milliseconds since 1970; `None`: as soon as it can be.
        at_ms: Option<u64>,
    },
    /// Look after the new pool while both are warm.
    Bake {
        /// Milliseconds since 1970; `None`: until it is told.
        until_ms: Option<u64>,
    },
    /// Have the old pool current again, at once.
    Return {
        /// For this reason.
        why: String,
    },
    /// Keep the pool that was turned back for the pages of its version.
    Linger {
        /// Milliseconds since 1970; `None`: until it is told.
        until_ms: Option<u64>,
    },
    /// It is over.
    Finish(End),
}

/// How a roll ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// In a code.
    pub result: Exit,
    /// In a sentence.
    pub text: String,
}
