//! The world of the simulation: time, chance, and a ZooKeeper that is away now and then.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    sync::Arc,
};

use crate::fleet::{driver::Said, paths::Mark, state::FleetState};

/// Chance, by splitmix64: the same seed, the same run.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, most: u64) -> u64 {
        self.next() % most.max(1)
    }

    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// One in so many.
    pub(super) fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// How long a message takes, milliseconds: short as a rule, and sometimes long.
    pub(super) fn latency(&mut self) -> u64 {
        match self.below(20) {
            0 => self.between(100, 3000),
            1..4 => self.between(20, 200),
            _ => self.between(1, 15),
        }
    }
}

/// What happens at its time; the numbers say of whom, and for which life of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A host reads the state, as it does every few seconds.
    Poll(usize, u32),
    /// A host reads the state.
    Read(usize, u32),
    /// What it read has come to it.
    Act(usize, u32),
    /// What it writes comes to ZooKeeper: a mark; for [`Mark::Confirmed`], if the state has this version.
    Land(usize, u32, Mark, u64, i32, u32),
    /// The answer comes to a host; and the instant to flip at, if it has confirmed.
    Heard(usize, u32, u64, Option<u64>),
    /// No answer has come to it.
    Silence(usize, u32),
    /// What is under way on a host is done.
    Done(usize, u32),
    /// An order to flip comes to its deploy.
    Ordered(usize, u32, u64),
    /// Its kernel flips.
    Kernel(usize, u32),
    /// A driver reads the state, and then the marks.
    Drive(usize),
    /// It reads the marks.
    Look(usize),
    /// Its write comes to ZooKeeper.
    Swap(usize),
    /// An operator wants something.
    Operator,
    /// An operator wants what is under way to be aborted.
    Want,
    /// Something breaks.
    Fault,
    /// A host's daemon starts.
    Up(usize),
    /// A host is connected again.
    Joined(usize),
    /// A session has ended, if it is still this one.
    Expired(usize, u32),
    /// ZooKeeper is back.
    Back,
}

/// Events in order of time.
#[derive(Default)]
pub(super) struct Agenda {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    pub(super) now: u64,
}

impl Agenda {
    pub(super) fn add(&mut self, after: u64, event: Event) {
        self.number += 1;
        self.heap.push(Reverse((self.now + after, self.number, event)));
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let Reverse((at, _, event)) = self.heap.pop()?;
        self.now = at;
        Some(event)
    }
}

/// What one host said, and whether it goes with its session.
type Marks = BTreeMap<usize, (Said, bool)>;

/// The coordinator.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) state: Arc<FleetState>,
    pub(super) version: i32,
    pub(super) marks: HashMap<(u64, Mark), Marks>,
    /// Hosts with a session.
    pub(super) alive: BTreeMap<usize, ()>,
    pub(super) is_down: bool,
}

impl Tree {
    pub(super) fn write(&mut self, state: FleetState) {
        self.state = Arc::new(state);
        self.version += 1;
    }

    pub(super) fn says(&self, epoch: u64, mark: Mark, host: usize) -> bool {
        self.marks.get(&(epoch, mark)).is_some_and(|all| all.contains_key(&host))
    }

    /// A session has ended.
    pub(super) fn expire(&mut self, host: usize) {
        self.alive.remove(&host);
        for marks in self.marks.values_mut() {
            if marks.get(&host).is_some_and(|(_, goes)| *goes) {
                marks.remove(&host);
            }
        }
    }
}
