//! What a fleet agrees on for a service: the node that every host follows.

use serde::{Deserialize, Serialize};

use crate::version::Version;

/// Version of the format. One of a later format is left alone.
pub const FORMAT: u32 = 1;

/// A version, and the lane by which it is named on every host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Release {
    /// What the workers say they run.
    pub version: Version,
    /// 1-255.
    pub lane: u8,
}

/// How far the order in hand is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing is under way: every host is to serve `active`.
    #[default]
    Idle,
    /// Hosts start and warm `other`, and say that they are ready.
    Prepare,
    /// Hosts that are `members` confirm and flip at `flip_at_ms`.
    Go,
    /// It was to be aborted while hosts could confirm: who has, takes its flip back, or says that it is too late.
    Cancel,
    /// `active` is the new version now, `other` the old one; both stand side by side. Who has not flipped does.
    Flipped,
    /// `active` is the old version again, `other` the new one, whose pages go on. Who has flipped returns.
    Back,
    /// `active` is what everybody serves, and all other pools end.
    Retire,
    /// The hosts of `turn` restart their workers.
    Roll,
}

impl Phase {
    /// Its name, in a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Prepare => "prepare",
            Self::Go => "go",
            Self::Cancel => "cancel",
            Self::Flipped => "flipped",
            Self::Back => "back",
            Self::Retire => "retire",
            Self::Roll => "roll",
        }
    }
}

/// What an order is about, as its operator gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Who gave it: "uid 0 (pid 4711) on app17".
    pub by: String,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The version aimed at; `None`: a roll that restarts workers as they are.
    pub to: Option<Version>,
    /// Share of the hosts expected that must be ready, 1 to 100.
    pub quorum: u8,
    /// From GO to the flip, milliseconds.
    pub lead_ms: u64,
    /// How long both versions stand side by side, milliseconds.
    pub bake_ms: u64,
    /// Hosts whose clocks are not synchronised may flip, too.
    #[serde(default)]
    pub allow_unsynchronised: bool,
    /// Hosts at a time, of a roll.
    #[serde(default)]
    pub host_batch: u32,
    /// A roll goes on although most connections of workers are not steered.
    #[serde(default)]
    pub force: bool,
    /// A plain barrier of somebody else's that must be gone before GO, or before the first batch.
    #[serde(default)]
    pub barrier: Option<String>,
}

/// What an operator wants of the order in hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Who.
    pub by: String,
}

/// How the last order ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its epoch.
    pub epoch: u64,
    /// How.
    pub result: Ended,
    /// In words.
    pub text: String,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

/// How an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// Every host that was there did it.
    Done,
    /// Nobody has met the new version.
    Aborted,
    /// Some, or all, had flipped, and serve the old version again.
    TurnedBack,
    /// A roll that stopped in the middle.
    Stopped,
}

/// The node `state` of a service. Changed only by its driver, and by who wants something of it, each time by
/// compare-and-set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetState {
    /// [`FORMAT`].
    pub format: u32,
    /// Grows with each order, and when one is turned back.
    pub epoch: u64,
    /// How far it is.
    pub phase: Phase,
    /// What every host is to serve; `None`: nobody has ordered anything yet.
    pub active: Option<Release>,
    /// What stands, or is to stand, beside it.
    pub other: Option<Release>,
    /// The lane that was given last.
    #[serde(default)]
    pub last_lane: u8,
    /// The order in hand, or the last.
    pub order: Order,
    /// The hosts enabled in the roster when the order was given, in order.
    pub expected: Vec<String>,
    /// Those of them that are ready, from GO on, in order.
    pub members: Vec<String>,
    /// When they flip, or turned back; milliseconds since 1970.
    pub flip_at_ms: Option<u64>,
    /// When the phase began, milliseconds since 1970.
    pub since_ms: u64,
    /// An abort, or a rollback, is wanted.
    #[serde(default)]
    pub wanted: Option<Wanted>,
    /// Why it is being turned back or aborted.
    #[serde(default)]
    pub why: String,
    /// How often the hosts were told to flip in this epoch.
    #[serde(default)]
    pub tries: u32,
    /// What has changed last, in words.
    #[serde(default)]
    pub said: String,
    /// Of a roll: who is at it.
    #[serde(default)]
    pub turn: Vec<String>,
    /// Of a roll: who is through.
    #[serde(default)]
    pub done: Vec<String>,
    /// What the fleet served before `active`.
    #[serde(default)]
    pub former: Option<Release>,
    /// How the order before ended.
    #[serde(default)]
    pub outcome: Option<Outcome>,
}

impl FleetState {
    /// So many of the hosts expected must be able to flip: at least one.
    #[must_use]
    pub fn needed(&self) -> usize {
        (self.expected.len() * usize::from(self.order.quorum.min(100))).div_ceil(100).max(1)
    }

    /// Whether a host was in the roster when the order was given.
    #[must_use]
    pub fn expects(&self, host: &str) -> bool {
        contains(&self.expected, host)
    }

    /// Whether a host was ready at GO.
    #[must_use]
    pub fn has_member(&self, host: &str) -> bool {
        contains(&self.members, host)
    }
}

/// Whether a name is among these, which are in order: there may be a thousand, and each is asked for.
pub(super) fn contains(sorted: &[String], host: &str) -> bool {
    sorted.binary_search_by(|other| other.as_str().cmp(host)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_not_valid_is_an_error() {
        let state = FleetState {
            active: Some(Release { version: "v1".into(), lane: 1 }),
            order: Order { to: Some("v2".into()), ..Order::default() },
            ..FleetState::default()
        };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<FleetState>(&text).unwrap(), state);
        for version in ["\"v1\"", "\"v2\""] {
            let error = serde_json::from_str::<FleetState>(&text.replace(version, "\"../x\"")).unwrap_err().to_string();
            assert!(error.contains("\"../x\" is not a valid version"), "{error}");
        }
    }
}
