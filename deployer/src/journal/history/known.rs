//! What the lines add up to: how things stand. What is the same again is no change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{About, By};
use crate::{
    api::{Change, Configured, Entry, Phase, TestResult},
    journal::State,
};

/// Different ways in which a worker stays cold that are told until it has come to something else.
const COLD_WAYS: usize = 16;

/// How things stand, as told.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The version and process id of the daemon that told last, and whether it has said its last word.
    daemon: Option<(String, u32, bool)>,
    services: BTreeMap<String, Configured>,
    workers: BTreeMap<(String, SocketAddr), Life>,
    /// `None`: every service.
    bypassed: BTreeSet<Option<String>>,
    let_in: BTreeMap<SocketAddr, String>,
    trouble: BTreeSet<String>,
    self_test: Option<(TestResult, String)>,
    /// Begun and not ended.
    rolls: BTreeSet<String>,
    /// What was told last of the connection to the fleet.
    fleet_link: Option<Change>,
    /// What was told last of the fleet's orders, by service.
    fleet: BTreeMap<String, Change>,
    /// What was told last of its hosts, by their names.
    hosts: BTreeMap<String, String>,
}

/// A worker.
#[derive(Debug)]
struct Life {
    phase: Phase,
    reason: String,
    /// What has been told of it since it began to listen by itself: it is warmed again and again.
    cold: Vec<(Phase, String)>,
}

impl Known {
    /// Takes note of what is told.
    pub(super) fn apply(&mut self, entry: &Entry) {
        let Entry { service, worker, roll, change, .. } = entry;
        match change {
            Change::Started { version, pid, .. } => self.daemon = Some((version.clone(), *pid, false)),
            Change::Stopped { version, pid } => self.daemon = Some((version.clone(), *pid, true)),
            Change::Service { now, .. } => {
                let Some(name) = service else { return };
                self.configure(name, now.as_deref());
            }
            Change::Phase { phase, reason, .. } => {
                let (Some(name), Some(at)) = (service, worker) else { return };
                self.enter(name, *at, *phase, reason);
            }
            Change::Bypass { on: true, .. } => drop(self.bypassed.insert(service.clone())),
            Change::Bypass { on: false, .. } => drop(self.bypassed.remove(service)),
            Change::LetIn { now, .. } => {
                let Some(at) = worker else { return };
                match now {
                    Some(now) => drop(self.let_in.insert(*at, now.clone())),
                    None => drop(self.let_in.remove(at)),
                }
            }
            Change::Trouble { text, on: true } => drop(self.trouble.insert(text.clone())),
            Change::Trouble { text, on: false } => drop(self.trouble.remove(text)),
            Change::SelfTest { result, detail, .. } => self.self_test = Some((*result, detail.clone())),
            Change::RollBegun { .. } => self.rolls.extend(roll.clone()),
            Change::RollEnded { .. } => self.rolls.retain(|id| Some(id) != roll.as_ref()),
            Change::FleetConnected { .. } | Change::FleetLost { .. } => self.fleet_link = Some(change.clone()),
            Change::FleetPhase { .. } => {
                let Some(name) = service else { return };
                self.fleet.insert(name.clone(), change.clone());
            }
            Change::FleetHost { host, what } => drop(self.hosts.insert(host.clone(), what.clone())),
            Change::Reloaded { .. }
            | Change::ProcessEnded { .. }
            | Change::Detached
            | Change::RollCommand { .. }
            | Change::RollStopAsked
            | Change::Gate { .. }
            | Change::BarrierAwaited { .. }
            | Change::BarrierPassed
            | Change::FlipArmed { .. }
            | Change::FlipDisarmed
            | Change::Flipped { .. }
            | Change::FlippedBack { .. }
            | Change::DeployIll { .. }
            | Change::DeployAsked { .. }
            | Change::RollResumed { .. }
            | Change::Lost { .. } => {}
        }
    }

    fn configure(&mut self, name: &str, now: Option<&Configured>) {
        if let Some(now) = now {
            self.services.insert(name.to_owned(), now.clone());
            return;
        }
        self.services.remove(name);
        self.workers.retain(|(of, _), _| of != name);
        self.bypassed.remove(&Some(name.to_owned()));
    }

    fn enter(&mut self, service: &str, at: SocketAddr, phase: Phase, reason: &str) {
        let life = self.workers.entry((service.to_owned(), at)).or_insert_with(|| Life {
            phase,
            reason: String::new(),
            cold: Vec::new(),
        });
        (life.phase, life.reason) = (phase, reason.to_owned());
        if phase != Phase::Draining {
            self.let_in.remove(&at);
        }
        if !matches!(phase, Phase::Listening | Phase::Warming) {
            life.cold.clear();
        }
    }

    /// All of it, as it could have been told: whoever takes note of that knows the same. They bear the number of the next
    /// line.
    pub(super) fn lines(&self, seq: u64) -> Vec<Entry> {
        let mut lines = Vec::new();
        let mut add = |about: About<'_>, change| lines.push(entry(seq, about, change));
        if let Some((version, pid, is_done)) = &self.daemon {
            let (version, pid) = (version.clone(), *pid);
            let done = Change::Stopped { version: version.clone(), pid };
            add(About::default(), if *is_done { done } else { Change::Started { version, pid, was: None } });
        }
        for (name, now) in &self.services {
            add(About::service(name), Change::Service { now: Some(Box::new(now.clone())), was: None });
        }
        for ((name, at), Life { phase, reason, .. }) in &self.workers {
            let (phase, reason) = (*phase, reason.clone());
            add(About::worker(name, *at), Change::Phase { phase, was: None, reason, reason_was: None });
        }
        for service in &self.bypassed {
            let about = About { service: service.as_deref(), ..About::default() };
            add(about, Change::Bypass { on: true, was: false });
        }
        for (at, now) in &self.let_in {
            let about = About { worker: Some(*at), ..About::default() };
            add(about, Change::LetIn { now: Some(now.clone()), was: None });
        }
        for text in &self.trouble {
            add(About::default(), Change::Trouble { text: text.clone(), on: true });
        }
        if let Some((result, detail)) = &self.self_test {
            add(About::default(), Change::SelfTest { result: *result, was: None, detail: detail.clone() });
        }
        for id in &self.rolls {
            let about = About { roll: Some(id), ..About::default() };
            add(about, Change::RollBegun { to: None, was: None, workers: 0, batches: 0 });
        }
        if let Some(change) = &self.fleet_link {
            add(About::default(), change.clone());
        }
        for (name, change) in &self.fleet {
            add(About::service(name), change.clone());
        }
        for (host, what) in &self.hosts {
            add(About::default(), Change::FleetHost { host: host.clone(), what: what.clone() });
        }
        lines
    }

    /// That there is a connection to the fleet, or none any more. Why there is still none is no news.
    pub(super) fn fleet_link(&self, link: Result<&str, String>) -> Option<Change> {
        let now = match link {
            Ok(coordinator) => Change::FleetConnected { coordinator: coordinator.to_owned() },
            Err(why) => Change::FleetLost { why },
        };
        let is_known = match (&self.fleet_link, &now) {
            (Some(Change::FleetLost { .. }), Change::FleetLost { .. }) => true,
            (was, now) => was.as_ref() == Some(now),
        };
        (!is_known).then_some(now)
    }

    /// That the fleet's order for a service is elsewhere than was known.
    pub(super) fn fleet_phase(&self, service: &str, now: Change) -> Option<Change> {
        (self.fleet.get(service) != Some(&now)).then_some(now)
    }

    /// That a host of the fleet is something else than was known.
    pub(super) fn fleet_host(&self, host: &str, what: &str) -> Option<Change> {
        let is_known = self.hosts.get(host).is_some_and(|was| was == what);
        (!is_known).then(|| Change::FleetHost { host: host.to_owned(), what: what.to_owned() })
    }

    /// Whether a roll has begun, and not ended.
    pub(super) fn has_roll(&self, id: &str) -> bool {
        self.rolls.contains(id)
    }

    /// Forgets rolls that are none of these.
    pub(super) fn only_rolls(&mut self, ids: &BTreeSet<&str>) {
        self.rolls.retain(|id| ids.contains(id.as_str()));
    }

    /// Takes the journal's word for workers that are not known.
    pub(super) fn suppose(&mut self, state: &State) {
        for (name, service) in &state.services {
            for (at, worker) in &service.workers {
                if !self.workers.contains_key(&(name.clone(), *at)) {
                    self.enter(name, *at, worker.phase, &worker.reason);
                }
            }
        }
    }

    /// The daemon before, in words.
    pub(super) fn daemon(&self) -> Option<String> {
        let (version, pid, is_done) = self.daemon.as_ref()?;
        Some(format!("{version} (pid {pid}), {}", if *is_done { "stopped" } else { "which ended without a word" }))
    }

    /// That a worker is in another phase than was known. The reason is taken note of.
    pub(super) fn found(&mut self, about: About<'_>, phase: Phase, reason: &str) -> Option<Change> {
        let (service, at) = (about.service?, about.worker?);
        let was = self.workers.get(&(service.to_owned(), at)).map(|life| life.phase);
        if was == Some(phase) {
            self.enter(service, at, phase, reason);
            return None;
        }
        Some(Change::Phase { phase, was, reason: reason.to_owned(), reason_was: None })
    }

    /// That a worker comes into another phase, or has another reason.
    pub(super) fn phase(&mut self, by: By<'_>, about: About<'_>, phase: Phase, reason: &str) -> Option<Change> {
        let (service, at) = (about.service?, about.worker?);
        let life = self.workers.get_mut(&(service.to_owned(), at));
        let (was, before) = life.as_ref().map_or((None, None), |life| (Some(life.phase), Some(life.reason.clone())));
        let is_same = was == Some(phase);
        if is_same && before.as_deref() == Some(reason) {
            return None;
        }
        if let Some(life) = life
            && by == By::Watch
            && matches!(phase, Phase::Listening | Phase::Warming)
        {
            let way = (phase, reason.to_owned());
            if life.cold.contains(&way) || life.cold.len() >= COLD_WAYS {
                (life.phase, life.reason) = way;
                return None;
            }
            life.cold.push(way);
        }
        let reason_was = before.filter(|_| is_same);
        Some(Change::Phase { phase, was, reason: reason.to_owned(), reason_was })
    }

    /// Services that are no longer among these.
    pub(super) fn gone<'a>(&self, now: impl Iterator<Item = &'a str>) -> Vec<String> {
        let now: BTreeSet<_> = now.collect();
        self.services.keys().filter(|name| !now.contains(name.as_str())).cloned().collect()
    }

    /// Forgets workers that are none of these.
    pub(super) fn only(&mut self, workers: &BTreeSet<(&str, SocketAddr)>) {
        self.workers.retain(|(name, at), _| workers.contains(&(name.as_str(), *at)));
        self.let_in.retain(|at, _| workers.iter().any(|(_, other)| other == at));
    }

    /// That a service is configured otherwise.
    pub(super) fn configured(&self, name: &str, now: Option<&Configured>) -> Option<Change> {
        let was = self.services.get(name);
        (was != now).then(|| Change::Service { now: now.cloned().map(Box::new), was: was.cloned().map(Box::new) })
    }

    pub(super) fn bypass(&self, about: About<'_>, on: bool) -> Option<Change> {
        let was = self.bypassed.contains(&about.service.map(str::to_owned));
        (was != on).then_some(Change::Bypass { on, was })
    }

    /// Told when it begins, and when it is over.
    pub(super) fn let_in(&self, about: About<'_>, short: Option<&str>) -> Option<Change> {
        let was = self.let_in.get(&about.worker?).cloned();
        (was.is_some() != short.is_some()).then(|| Change::LetIn { now: short.map(str::to_owned), was })
    }

    pub(super) fn trouble(&self, all: &[String]) -> Vec<Change> {
        let gone = self.trouble.iter().filter(|text| !all.contains(text));
        let gone = gone.map(|text| Change::Trouble { text: text.clone(), on: false });
        let come: BTreeSet<_> = all.iter().filter(|text| !self.trouble.contains(*text)).collect();
        gone.chain(come.into_iter().map(|text| Change::Trouble { text: text.clone(), on: true })).collect()
    }

    pub(super) fn self_test(&self, result: TestResult, detail: &str) -> Option<Change> {
        let was = self.self_test.as_ref();
        if was.is_some_and(|(was, said)| *was == result && said == detail) {
            return None;
        }
        Some(Change::SelfTest { result, was: was.map(|(was, _)| *was), detail: detail.to_owned() })
    }
}

fn entry(seq: u64, about: About<'_>, change: Change) -> Entry {
    let (service, roll) = (about.service.map(str::to_owned), about.roll.map(str::to_owned));
    Entry { seq, time_ms: 0, by: By::Daemon.to_string(), service, worker: about.worker, roll, change }
}
