//! A thousand hosts, whose messages are late, lost and out of order, whose daemons die, whose clocks differ, with a ZooKeeper
//! that goes away and drivers that take each other's place. What a host and a driver do is the real code.

mod drivers;
mod faults;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    host::Host,
    world::{Agenda, Chance, Event, Tree},
};
use crate::fleet::{
    driver::{self, Said, Seen, Step},
    member::{self, Goal, Me},
    paths::Mark,
    state::{Ended, FleetState, Order, Phase, Release},
};

/// Drivers at a time, at most: one that is paused and does not know that it was replaced.
const DRIVERS: usize = 2;

#[derive(Default)]
struct Driver {
    offset: i64,
    read: Option<(Arc<FleetState>, i32)>,
    next: Option<FleetState>,
    quorum_since: Option<u64>,
}

/// A fault in the protocol itself, which the simulation must find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Careless {
    /// There is none.
    No,
    /// Who aborts does not wait for those who have confirmed.
    Abort,
    /// Who has confirmed flips when it should take its flip back.
    Fence,
}

struct Simulation {
    careless: Careless,
    chance: Chance,
    agenda: Agenda,
    tree: Tree,
    hosts: Vec<Host>,
    drivers: [Driver; DRIVERS],
    /// How many faults are still to come.
    faults: u32,
    /// How many deploys.
    deploys: u32,
    /// Epochs that ended as aborted.
    aborted: BTreeSet<u64>,
    /// Epochs that have been flipped by their driver.
    decided: BTreeSet<u64>,
    outcomes: BTreeMap<Ended, u32>,
    violation: Option<String>,
}

/// What a run came to.
#[derive(Debug, Default)]
struct Tally {
    flips: usize,
    outcomes: BTreeMap<Ended, u32>,
    events: u64,
}

impl Simulation {
    fn new(seed: u64, hosts: usize, faults: u32, careless: Careless) -> Self {
        let first = Release { version: "v1".into(), lane: 1 };
        let mut simulation = Self {
            careless,
            chance: Chance::new(seed),
            agenda: Agenda::default(),
            tree: Tree::default(),
            hosts: (0..hosts).map(|nth| Host::new(nth, first.clone())).collect(),
            drivers: Default::default(),
            faults,
            deploys: 3,
            aborted: BTreeSet::new(),
            decided: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            violation: None,
        };
        simulation.agenda.now = 1_000_000;
        simulation.tree.write(FleetState { active: Some(first), ..FleetState::default() });
        for nth in 0..hosts {
            simulation.tree.alive.insert(nth, ());
            simulation.hosts[nth].offset = simulation.chance.between(0, 400) as i64 - 200;
            let after = simulation.chance.between(0, 5000);
            simulation.agenda.add(after, Event::Poll(nth, 0));
        }
        for nth in 0..DRIVERS {
            simulation.drivers[nth].offset = simulation.chance.between(0, 400) as i64 - 200;
            simulation.agenda.add(10, Event::Drive(nth));
        }
        simulation.agenda.add(100, Event::Operator);
        simulation.agenda.add(500, Event::Fault);
        simulation
    }

    fn is_calm(&self) -> bool {
        self.faults == 0
    }

    /// Plays it to its end.
    fn play(mut self) -> Result<Tally, String> {
        let (mut events, end) = (0_u64, self.agenda.now + 4 * 3_600_000);
        while let Some(event) = self.agenda.pop() {
            events += 1;
            self.happens(event);
            if let Some(violation) = &self.violation {
                return Err(violation.clone());
            }
            if events.is_multiple_of(512) && self.is_over() {
                let flips = self.hosts.iter().map(|host| host.flips.len()).sum();
                return self.aborted_never_happened().map(|()| Tally { flips, outcomes: self.outcomes, events });
            }
            if self.agenda.now > end {
                break;
            }
        }
        let odd = self.hosts.iter().find(|host| host.local.current != self.tree.state.active);
        Err(format!("no end; {:?}; state {:?}", odd.map(|host| (&host.name, &host.local)), self.tree.state))
    }

    fn is_over(&self) -> bool {
        let state = &self.tree.state;
        let is_at_rest = |host: &Host| host.local.stage == member::Stage::Idle && host.local.current == state.active;
        self.is_calm() && self.deploys == 0 && state.phase == Phase::Idle && self.hosts.iter().all(is_at_rest)
    }

    /// No aborted flip that happened.
    fn aborted_never_happened(&self) -> Result<(), String> {
        for host in &self.hosts {
            if let Some((epoch, to)) = host.flips.iter().find(|(epoch, _)| self.aborted.contains(epoch)) {
                return Err(format!("{} flipped to {to:?} in epoch {epoch}, which was aborted", host.name));
            }
        }
        Ok(())
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Poll(nth, life) => {
                self.read(nth, life);
                let again = self.chance.between(3000, 15_000);
                if self.hosts[nth].life == life {
                    self.agenda.add(again, Event::Poll(nth, life));
                }
            }
            Event::Read(nth, life) => self.read(nth, life),
            Event::Act(nth, life) => self.act(nth, life),
            Event::Land(nth, life, mark, epoch, version, asked) => self.land(nth, life, mark, (epoch, version, asked)),
            Event::Heard(nth, asked, epoch, at) => self.heard(nth, asked, epoch, at),
            Event::Silence(nth, asked) => {
                if self.hosts[nth].asked == Some(asked) {
                    self.hosts[nth].asked = None;
                    let life = self.hosts[nth].life;
                    self.read(nth, life);
                }
            }
            Event::Done(nth, work) => {
                let is_calm = self.is_calm();
                self.hosts[nth].done(work, is_calm, &mut self.chance);
                self.soon(nth);
            }
            Event::Ordered(nth, work, at) => self.hosts[nth].ordered(work, at, &mut self.agenda),
            Event::Kernel(nth, armed) => self.kernel(nth, armed),
            Event::Drive(nth) => self.drive(nth),
            Event::Look(nth) => self.look(nth),
            Event::Swap(nth) => self.swap(nth),
            Event::Operator => self.operator(),
            Event::Want => self.want(),
            Event::Fault => self.fault(),
            Event::Up(nth) => {
                let host = &mut self.hosts[nth];
                if !host.is_up {
                    host.up(&mut self.agenda, &mut self.chance);
                    let life = host.life;
                    self.agenda.add(1, Event::Poll(nth, life));
                }
            }
            Event::Joined(nth) => self.hosts[nth].is_linked = true,
            Event::Expired(nth, session) => {
                let host = &mut self.hosts[nth];
                if host.session == session && !(host.is_linked && host.is_up) && !self.tree.is_down {
                    host.session += 1;
                    self.tree.expire(nth);
                }
            }
            Event::Back => self.tree.is_down = false,
        }
    }

    /// A host looks again soon.
    fn soon(&mut self, nth: usize) {
        let (life, after) = (self.hosts[nth].life, self.chance.between(1, 20));
        self.agenda.add(after, Event::Act(nth, life));
    }

    fn reaches(&self, nth: usize) -> bool {
        self.hosts[nth].is_up && self.hosts[nth].is_linked && !self.tree.is_down
    }

    fn read(&mut self, nth: usize, life: u32) {
        let host = &mut self.hosts[nth];
        if host.life != life || host.asked.is_some() {
            return;
        }
        if !self.reaches(nth) {
            return;
        }
        let host = &mut self.hosts[nth];
        if self.tree.alive.insert(nth, ()).is_none() {
            host.said_of = None;
        }
        host.view = Some((Arc::clone(&self.tree.state), self.tree.version));
        let epoch = self.tree.state.epoch;
        if host.said_of != Some(epoch) {
            let marks = Mark::ALL.into_iter().filter(|mark| self.tree.says(epoch, *mark, nth));
            host.said = marks.collect();
            host.said_of = Some(epoch);
        }
        let after = self.chance.latency();
        self.agenda.add(after, Event::Act(nth, life));
    }

    fn act(&mut self, nth: usize, life: u32) {
        let now = self.agenda.now;
        let host = &mut self.hosts[nth];
        if host.life != life || !host.is_up || host.asked.is_some() {
            return;
        }
        let Some((state, version)) = host.view.clone() else { return };
        if host.said_of != Some(state.epoch) {
            return;
        }
        let me = Me { host: &host.name, said: &host.said, now_ms: host.clock(now), unknown_ms: 0 };
        let mut goal = member::goal(&state, &me, &host.seen());
        if self.careless == Careless::Fence && goal == Goal::Disarm && state.phase == Phase::Cancel {
            goal = Goal::Say(Mark::Disarmed);
        }
        match goal {
            Goal::Say(mark) => self.write(nth, life, mark, state.epoch, version),
            Goal::Confirm(_) => self.write(nth, life, Mark::Confirmed, state.epoch, version),
            goal => host.act(goal, state.epoch, &mut self.agenda, &mut self.chance),
        }
    }

    fn write(&mut self, nth: usize, life: u32, mark: Mark, epoch: u64, version: i32) {
        // It waits for the answer before it does anything else.
        let host = &mut self.hosts[nth];
        host.said_of = None;
        host.questions += 1;
        let asked = host.questions;
        host.asked = Some(asked);
        let after = self.chance.latency();
        self.agenda.add(after, Event::Land(nth, life, mark, epoch, version, asked));
        self.agenda.add(2000, Event::Silence(nth, asked));
    }

    fn land(&mut self, nth: usize, life: u32, mark: Mark, (epoch, version, asked): (u64, i32, u32)) {
        // What was sent arrives also when its sender has died.
        let is_lost = !self.hosts[nth].is_linked || self.tree.is_down || !self.tree.alive.contains_key(&nth);
        let is_refused = mark == Mark::Confirmed && self.tree.version != version;
        if !is_lost && !is_refused {
            let said = Said { synchronised: Some(true), ..Said::default() };
            self.tree.marks.entry((epoch, mark)).or_default().insert(nth, (said, mark == Mark::Ready));
        }
        let host = &self.hosts[nth];
        if host.life != life || is_lost || self.chance.one_in(20) {
            return;
        }
        let flip_at = host.view.as_ref().and_then(|(state, _)| state.flip_at_ms);
        let at = flip_at.filter(|_| mark == Mark::Confirmed && !is_refused);
        let after = self.chance.latency();
        self.agenda.add(after, Event::Heard(nth, asked, epoch, at));
    }

    /// The answer. If it has confirmed it flips, without another look at the state.
    fn heard(&mut self, nth: usize, asked: u32, epoch: u64, at: Option<u64>) {
        let host = &mut self.hosts[nth];
        if host.asked != Some(asked) || !host.is_up {
            return;
        }
        host.asked = None;
        if let Some(at) = at {
            host.said.insert(Mark::Confirmed);
            host.said_of = Some(epoch);
            host.act(Goal::Flip(at), epoch, &mut self.agenda, &mut self.chance);
        }
        let life = host.life;
        self.read(nth, life);
    }

    fn kernel(&mut self, nth: usize, armed: u32) {
        let now = self.agenda.now;
        let Some((task, _)) = self.hosts[nth].kernel(armed, now) else { return };
        let state = Arc::clone(&self.tree.state);
        let is_confirmed = self.tree.says(task.epoch, Mark::Confirmed, nth);
        let is_decided = self.decided.contains(&task.epoch);
        if !is_confirmed && !is_decided && state.active.as_ref() != Some(&task.to) {
            self.violation = Some(format!("h{nth} flipped to {task:?} and had not confirmed; {state:?}"));
        }
        self.soon(nth);
        if state.phase != Phase::Go || state.epoch != task.epoch {
            return;
        }
        // Before anybody flips, everybody serves both.
        for host in self.hosts.iter().filter(|host| state.has_member(&host.name)) {
            let local = &host.local;
            let has = |release: &Option<Release>| local.current == *release || local.other == *release;
            let is_whole = has(&state.active) && has(&state.other);
            if !is_whole && !matches!(local.stage, member::Stage::Starting(_)) {
                self.violation = Some(format!("{} does not serve both when h{nth} flips: {local:?}", host.name));
            }
        }
    }
}

/// Plays so many runs; prints what they came to.
fn runs(seeds: std::ops::Range<u64>, hosts: usize, faults: u32) {
    let mut all = Tally::default();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        match Simulation::new(seed, hosts, faults, Careless::No).play() {
            Ok(tally) => {
                all.flips += tally.flips;
                all.events += tally.events;
                tally.outcomes.into_iter().for_each(|(how, times)| *all.outcomes.entry(how).or_default() += times);
            }
            Err(why) => panic!("seed {seed} of {hosts} hosts: {why}"),
        }
    }
    eprintln!("{count} runs of {hosts} hosts: {} flips, {:?}, {} events", all.flips, all.outcomes, all.events);
    assert!(all.outcomes.contains_key(&Ended::Done), "{:?}", all.outcomes);
}

/// How many runs: few, but in `--full`.
fn seeds(quick: u64, full: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("DEPLOYER_FULL").is_some() { full } else { quick }
}

#[test]
fn few_hosts_and_many_faults() {
    runs(seeds(200, 20_000), 5, 60);
}

#[test]
fn a_thousand_hosts() {
    runs(seeds(4, 2000), 1000, 400);
}

/// The twins: what would be wrong is found.
#[test]
fn it_finds_what_is_wrong() {
    for (careless, name) in [(Careless::Abort, "abort"), (Careless::Fence, "fence")] {
        let found = (0..3000).find_map(|seed| Some((seed, Simulation::new(seed, 5, 60, careless).play().err()?)));
        let (seed, why) = found.unwrap_or_else(|| panic!("nothing is found to be wrong with {name}"));
        eprintln!("{name}: found with seed {seed}: {why}");
    }
}
