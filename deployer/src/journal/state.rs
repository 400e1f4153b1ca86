//! What is written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use deployer_common::lanes::FlipWord;
use serde::{Deserialize, Serialize};

use crate::{
    api::{Exit, Phase},
    config::Caller,
    kernel::Lasting,
    roll::machine::{End, Machine, Outcome},
    version::{self, Version},
};

/// Version of the format. A file of a later one is for a later deployer; fields that are not known here are ignored, so
/// whatever must not be overlooked raises this number.
pub const FORMAT: u32 = 1;

/// The longest name of a roll: a service's name and a time.
const ID_MAX: usize = 96;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`].
    pub format: u32,
    /// The deployer that has written it, "0.1.0".
    pub written_by: String,
    /// `/proc/sys/kernel/random/boot_id`: cookies and words of another boot mean nothing.
    pub boot: String,
    /// Every service is bypassed by an operator.
    pub bypassed: bool,
    /// By name.
    pub services: BTreeMap<String, ServiceState>,
    /// Rolls that have not ended.
    pub rolls: Vec<RollState>,
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Bypassed by an operator.
    pub bypassed: bool,
    /// Who was steered, as configured.
    #[serde(default)]
    pub callers: Option<Vec<Caller>>,
    /// By address.
    pub workers: BTreeMap<SocketAddr, WorkerState>,
    /// Of a service with two pools, which is current.
    #[serde(default)]
    pub lanes: Option<LaneState>,
    /// Of a service with two pools, what the pool ran that was retired last.
    #[serde(default, deserialize_with = "version::known")]
    pub former: Option<Version>,
    /// What it has done for its fleet.
    #[serde(default)]
    pub fleet: Option<FleetMemory>,
}

/// What a service has done for its fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetMemory {
    /// The highest epoch that was acted upon: lower ones are refused.
    pub epoch: u64,
    /// How the last order ended here.
    #[serde(default)]
    pub ended: Option<FleetEnd>,
}

/// How an order of the fleet ended on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetEnd {
    /// The epoch that it was for.
    pub epoch: u64,
    /// Why it failed, was stopped, or was turned back; `None`: it was done.
    pub error: Option<String>,
}

/// Which of two pools is current, for the time after the machine was started anew: until then the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    /// The lane of each pool; 0: none.
    pub lanes: [u8; 2],
    /// Whether everybody may dial it.
    pub open: [bool; 2],
    /// The pool that is current, 0 or 1.
    pub from: u32,
    /// The one that is after a flip.
    pub to: u32,
    /// When that is, milliseconds since 1970; 0: no flip is to come.
    pub at_ms: u64,
    /// The lane that was given last.
    pub last: u8,
}

impl LaneState {
    /// What the kernel is to be told of it.
    #[must_use]
    pub fn word(&self, now_unix_ms: u64) -> FlipWord {
        let current = if now_unix_ms >= self.at_ms { self.to } else { self.from };
        FlipWord::new(self.lanes, [0, 1].map(|pool| self.open[pool as usize] || pool == current), current)
    }
}

impl ServiceState {
    fn check(&self, name: &str) -> Result<(), String> {
        match &self.lanes {
            Some(LaneState { lanes: [a, b], .. }) if a == b && *a != 0 => {
                Err(format!("both pools of service {} have lane {a}", name.escape_debug()))
            }
            Some(LaneState { from, to, .. }) if *from > 1 || *to > 1 => {
                Err(format!("service {} has pools 0 and 1, and {} is named", name.escape_debug(), from.max(to)))
            }
            _ => Ok(()),
        }
    }
}

impl LaneState {
    /// The same after a restart of the machine: the pool that is current is started, and nobody serves the other, whose
    /// lane is retired. A flip that was to come has come, or never does.
    #[must_use]
    pub fn alone(&self, now_unix_ms: u64) -> Self {
        let current = self.word(now_unix_ms).current(0);
        let is_current = [current == 0, current == 1];
        let lanes = [0, 1].map(|pool: usize| if is_current[pool] { self.lanes[pool] } else { 0 });
        Self { lanes, open: is_current, from: current, to: current, at_ms: 0, last: self.last }
    }
}

/// A worker, as last known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerState {
    /// What it went through.
    pub phase: Phase,
    /// Why.
    pub reason: String,
    /// What it last said it runs.
    #[serde(default, deserialize_with = "version::known")]
    pub version: Option<Version>,
    /// Cookies of its listening sockets, of the process that `phase` is about.
    pub listeners: BTreeSet<u64>,
    /// Drained by an operator.
    #[serde(default)]
    pub drained: Option<ByHand>,
}

/// An operator's drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByHand {
    /// In words: "by uid 0 (pid 4711), for 600 s".
    pub reason: String,
    /// Its end, milliseconds since 1970; `None`: when it is enabled.
    pub until_ms: Option<u64>,
    /// Who asked for it: "uid 0 (pid 4711)". Empty: an older deployer has written this.
    #[serde(default)]
    pub by: String,
    /// What decides of its end; absent where it has none, or an older deployer has written this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Lasting>,
}

impl ByHand {
    /// What is left of it; `None`: it lasts until the worker is enabled. `unix_ms`: milliseconds since 1970, by which a drain
    /// is judged that an older deployer has written down.
    #[must_use]
    pub fn left(&self, unix_ms: u64) -> Option<Duration> {
        let by_date = || self.until_ms.map(|until| Duration::from_millis(until.saturating_sub(unix_ms)));
        self.lasts.as_ref().map(Lasting::left).or_else(by_date)
    }
}

/// A roll that has not ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollState {
    /// Names it.
    pub id: String,
    /// Its service.
    pub service: String,
    /// Who asked for it.
    pub by: String,
    /// The version aimed at.
    #[serde(default, deserialize_with = "version::known")]
    pub to: Option<Version>,
    /// What the workers said they run before it.
    #[serde(default, deserialize_with = "version::known")]
    pub before: Option<Version>,
    /// The workers that the machine's numbers stand for.
    pub workers: Vec<SocketAddr>,
    /// The spares, whose numbers come after those of the workers.
    #[serde(default)]
    pub spares: Vec<SocketAddr>,
    /// The workers of the second pool, whose numbers come after those.
    #[serde(default)]
    pub second: Vec<SocketAddr>,
    /// Where it stands.
    pub machine: Machine,
    /// The workers of the batch in hand that have been touched.
    pub hand: BTreeMap<usize, Hand>,
}

/// A worker in the hands of a roll.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hand {
    /// What was about to be done to it: draining, stopping, starting, warming.
    pub intent: Phase,
    /// What it went through when it was taken in hand.
    pub before: Phase,
    /// Why it did.
    pub was: String,
    /// Cookies of the sockets that listened then.
    pub serving: BTreeSet<u64>,
    /// What came of it.
    pub outcome: Option<Outcome>,
}

impl State {
    /// An empty one, of this deployer and boot.
    #[must_use]
    pub fn new(boot: &str) -> Self {
        Self { format: FORMAT, written_by: version(), boot: boot.to_owned(), ..Self::default() }
    }

    /// A worker's entry.
    pub fn worker(&mut self, service: &str, at: SocketAddr) -> Option<&mut WorkerState> {
        self.services.get_mut(service)?.workers.get_mut(&at)
    }

    /// A roll that has not ended.
    pub fn roll(&mut self, id: &str) -> Option<&mut RollState> {
        self.rolls.iter_mut().find(|roll| roll.id == id)
    }

    /// Drops a roll that is over. Of one that was the fleet's, the epoch that it was for is remembered, and how it ended.
    pub fn roll_over(&mut self, id: &str, service: &str, epoch: Option<u64>, end: &End) {
        self.rolls.retain(|roll| roll.id != id);
        let Some(epoch) = epoch else { return };
        let error = (end.result != Exit::Done).then(|| end.text.clone());
        let fleet = self.services.entry(service.to_owned()).or_default().fleet.get_or_insert_default();
        fleet.epoch = fleet.epoch.max(epoch);
        fleet.ended = Some(FleetEnd { epoch, error });
    }

    /// A worker that had failed is up again, by hand. A roll that has it in hand still must not find it failed.
    pub fn revived(&mut self, service: &str, at: SocketAddr, known: WorkerState) {
        self.services.entry(service.to_owned()).or_default().workers.insert(at, known);
        for roll in self.rolls.iter_mut().filter(|roll| roll.service == service) {
            let mut all = roll.workers.iter().chain(&roll.spares).chain(&roll.second);
            let Some(nth) = all.position(|worker| *worker == at) else { continue };
            if let Some(hand) = roll.hand.get_mut(&nth)
                && matches!(hand.outcome, Some(Outcome::Failed(_)))
            {
                hand.outcome = Some(Outcome::Changed);
            }
        }
    }

    /// Whether all of it makes sense, and not only its types.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        if self.boot.is_empty() {
            return Err("it does not say of which boot of the machine it is".to_owned());
        }
        self.services.iter().try_for_each(|(name, service)| service.check(name))?;
        self.rolls.iter().try_for_each(RollState::check)
    }
}

impl RollState {
    /// All that it may name, by number.
    pub fn members(&self) -> impl Iterator<Item = SocketAddr> {
        self.workers.iter().chain(&self.spares).chain(&self.second).copied()
    }

    fn check(&self) -> Result<(), String> {
        let Self { id, workers, spares, second, machine, hand, .. } = self;
        if !is_id(id) {
            return Err(format!("`{}` is no name of a roll", id.escape_debug()));
        }
        machine.check(workers.len(), spares.len(), second.len()).map_err(|why| format!("roll {id}: {why}"))?;
        let all = workers.len() + spares.len() + second.len();
        match hand.keys().find(|nth| **nth >= all) {
            Some(nth) => Err(format!("roll {id} has {all} workers, and number {nth} in hand")),
            None => Ok(()),
        }
    }
}

/// Names of rolls are names of files, too.
#[must_use]
pub fn is_id(id: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    !id.is_empty() && id.len() <= ID_MAX && id.bytes().all(legal)
}

/// This deployer.
#[must_use]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
