//! One service's figures: what was counted since the last look is put down to the version that each worker runs, and to
//! the part of the roll that is on.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    file::{Kept, Known},
    tally::Source,
};
use crate::{
    api::{Phase, Window},
    service::{Service, Worker},
};

/// How long `before` and `after` are.
pub const SPAN: Duration = Duration::from_secs(60);
/// A look that is this much too early for the end of `after` is the last all the same.
const NEARLY: f64 = 0.5;
/// A month, in seconds.
const AWAY_AT_MOST: f64 = 30.0 * 24.0 * 3600.0;
/// The daemon may have been away for so long at the end of a roll, and `after` goes on.
const AWAY: f64 = 5.0;

/// What a look at a worker is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Another second has passed.
    Tick,
    /// Whatever was counted so far is to be put down now.
    Whole,
    /// Its process is gone, and no other has been started.
    Stopped,
    /// It is warm, and nobody has been let in yet.
    Up,
}

/// The figures of a service.
#[derive(Debug)]
pub(super) struct Meter {
    /// By place in the tables.
    known: BTreeMap<u32, Known>,
    exhausted: Option<u64>,
    looked: Instant,
    /// What was counted since then.
    tick: Window,
    /// What was counted before, and until when.
    ring: VecDeque<(Instant, Window)>,
    /// The report that is being written.
    pub(super) open: Option<Kept>,
}

impl Meter {
    /// One that has seen nothing.
    pub(super) fn new(now: Instant) -> Self {
        let (known, ring) = (BTreeMap::new(), VecDeque::new());
        Self { known, exhausted: None, looked: now, tick: Window::default(), ring, open: None }
    }

    /// Goes on with a report that a former daemon has left, `away` seconds after it was written. What was counted
    /// meanwhile is put down at the next look.
    pub(super) fn resume(&mut self, mut kept: Kept, service: &Service, away: f64) {
        let is_here = |known: &Known| service.members().any(|it| it.index == known.index && it.at == known.at);
        let workers = std::mem::take(&mut kept.workers).into_iter();
        self.known = workers.filter(is_here).map(|known| (known.index, known)).collect();
        self.exhausted = kept.exhausted;
        kept.restarts = kept.restarts.saturating_add(1);
        // A clock that was set would make it longer than what is believed of a file.
        kept.part().seconds += away.min(AWAY_AT_MOST);
        self.open = Some(kept);
    }

    /// Whether what a former daemon has left is worth going on with, `away` seconds later.
    pub(super) fn is_live(kept: &Kept, away: f64) -> bool {
        kept.ended_ms.is_none() || (!kept.complete && kept.after.seconds + away < SPAN.as_secs_f64() + AWAY)
    }

    /// Another second has passed. Whether a report has become complete.
    pub(super) fn tick(&mut self, source: &dyn Source, service: &Service, now: Instant) -> bool {
        self.look(source, service, Look::Tick, now);
        let is_over = |kept: &Kept| kept.ended_ms.is_some() && kept.after.seconds + NEARLY >= SPAN.as_secs_f64();
        match &mut self.open {
            Some(kept) if is_over(kept) => {
                kept.complete = true;
                true
            }
            _ => false,
        }
    }

    /// A roll begins. Returned is the report of the one before, if that was not complete.
    pub(super) fn begin(
        &mut self,
        source: &dyn Source,
        service: &Service,
        now: Instant,
        (roll, from): (&str, Option<String>),
    ) -> Option<Kept> {
        self.look(source, service, Look::Whole, now);
        let mut kept = Kept::new(roll, from);
        self.ring.iter().for_each(|(_, window)| kept.before.add(window.clone()));
        let former = self.open.replace(kept);
        former.map(|former| Kept { complete: true, ..former })
    }

    /// It has ended.
    pub(super) fn end(&mut self, source: &dyn Source, service: &Service, now: Instant, unix_ms: u64) {
        self.look(source, service, Look::Whole, now);
        // What comes before the next roll is not this one.
        self.ring.clear();
        if let Some(kept) = &mut self.open {
            kept.ended_ms = Some(unix_ms);
        }
    }

    /// A worker's process is gone, and no other has been started.
    pub(super) fn stopped(&mut self, source: &dyn Source, worker: &Worker) {
        self.count(source, worker, Look::Stopped);
    }

    /// A worker is warm, and nobody has been let in yet.
    pub(super) fn up(&mut self, source: &dyn Source, worker: &Worker) {
        self.count(source, worker, Look::Up);
    }

    /// Connections established in the last so long, by the version that took them.
    pub(super) fn recent(&self, now: Instant, span: Duration) -> BTreeMap<Option<String>, u64> {
        let mut recent = BTreeMap::new();
        let ticks = self.ring.iter().rev().take_while(|(at, _)| now.saturating_duration_since(*at) < span);
        for tally in ticks.flat_map(|(_, window)| &window.versions) {
            *recent.entry(tally.version.clone()).or_default() += tally.connections;
        }
        recent
    }

    /// The report as it is to be kept.
    pub(super) fn kept(&self) -> Option<Kept> {
        self.open.clone().map(|kept| self.with_workers(kept))
    }

    fn with_workers(&self, kept: Kept) -> Kept {
        Kept { workers: self.known.values().cloned().collect(), exhausted: self.exhausted, ..kept }
    }

    fn look(&mut self, source: &dyn Source, service: &Service, look: Look, now: Instant) {
        let members: Vec<_> = service.members().collect();
        self.known.retain(|index, known| members.iter().any(|it| it.index == *index && it.at == known.at));
        members.iter().for_each(|worker| self.count(source, worker, look));
        let exhausted = source.exhausted(service.index);
        let before = self.exhausted.replace(exhausted).unwrap_or(exhausted);
        let seconds = now.saturating_duration_since(self.looked).as_secs_f64();
        let more = exhausted.checked_sub(before).unwrap_or(exhausted);
        self.add(Window { seconds, exhausted: more, versions: Vec::new() });
        self.looked = now;
        self.ring.push_back((now, std::mem::take(&mut self.tick)));
        let begun =
            |(at, window): &(Instant, Window)| now.saturating_duration_since(*at).as_secs_f64() + window.seconds;
        while self.ring.front().is_some_and(|tick| begun(tick) > SPAN.as_secs_f64()) {
            self.ring.pop_front();
        }
    }

    /// Puts down what was counted for a worker.
    fn count(&mut self, source: &dyn Source, worker: &Worker, look: Look) {
        let (version, is_up) = {
            let control = worker.control();
            (control.version.clone().map(String::from), control.phase == Phase::Up)
        };
        let now = source.worker(worker.index);
        let Some(known) = self.known.get_mut(&worker.index).filter(|known| known.at == worker.at) else {
            let (at, index, out) = (worker.at, worker.index, look == Look::Stopped);
            self.known.insert(index, Known { at, index, version, out, last: now });
            return;
        };
        // It is being warmed: what it will run is not known yet.
        if look == Look::Tick && known.out && !is_up {
            return;
        }
        if version.is_some() || look == Look::Up {
            known.version = version;
        }
        let mut more = now.since(&known.last);
        known.last = now;
        match look {
            Look::Stopped => known.out = true,
            Look::Up => known.out = false,
            // Others have warmed it: the watch, or an operator.
            Look::Tick => known.out = false,
            Look::Whole => {}
        }
        more.version.clone_from(&known.version);
        self.add(Window { versions: vec![more], ..Window::default() });
    }

    fn add(&mut self, more: Window) {
        let mut window = Window::default();
        window.add(more);
        if let Some(kept) = &mut self.open {
            kept.part().add(window.clone());
        }
        self.tick.add(window);
    }
}
