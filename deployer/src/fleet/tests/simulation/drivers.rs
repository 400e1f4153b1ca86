//! The drivers: what they read, what they decide, and what becomes of their writes.

use std::{collections::BTreeMap, sync::Arc};

use super::{Careless, Ended, Event, FleetState, Mark, Phase, Seen, Simulation, Step, driver};

impl Simulation {
    pub(super) fn drive(&mut self, nth: usize) {
        let again = if self.hosts.len() < 100 { self.chance.between(20, 300) } else { self.chance.between(200, 1500) };
        self.agenda.add(again, Event::Drive(nth));
        if self.tree.is_down || self.drivers[nth].next.is_some() {
            return;
        }
        self.drivers[nth].read = Some((Arc::clone(&self.tree.state), self.tree.version));
        let after = self.chance.latency();
        self.agenda.add(after, Event::Look(nth));
    }

    pub(super) fn seen(&self, epoch: u64, state: &FleetState) -> Seen {
        let marks = Mark::ALL.into_iter().filter_map(|mark| {
            let all = self.tree.marks.get(&(epoch, mark))?;
            Some((mark, all.iter().map(|(nth, (said, _))| (self.hosts[*nth].name.clone(), said.clone())).collect()))
        });
        let roster = if state.phase == Phase::Idle {
            self.hosts.iter().map(|host| (host.name.clone(), true)).collect()
        } else {
            BTreeMap::new()
        };
        let alive = self.tree.alive.keys().map(|nth| self.hosts[*nth].name.clone()).collect();
        Seen { roster, alive, marks: marks.collect(), ..Seen::default() }
    }

    pub(super) fn look(&mut self, nth: usize) {
        let Some((state, _)) = self.drivers[nth].read.clone() else { return };
        if self.tree.is_down || state.phase == Phase::Idle {
            return;
        }
        let mut seen = self.seen(state.epoch, &state);
        let now = self.agenda.now;
        let driver = &mut self.drivers[nth];
        let has_quorum = seen.ready(&state).len() >= state.needed();
        driver.quorum_since = if has_quorum { driver.quorum_since.or(Some(now)) } else { None };
        seen.quorum_since_ms = driver.quorum_since;
        if self.careless == Careless::Abort && state.phase == Phase::Cancel {
            seen.marks.remove(&Mark::Confirmed);
            seen.marks.remove(&Mark::Flipped);
        }
        if let Step::Become { state, .. } = driver::drive(&state, &seen, now.saturating_add_signed(driver.offset)) {
            driver.next = Some(*state);
            let after = self.chance.latency();
            self.agenda.add(after, Event::Swap(nth));
        }
    }

    pub(super) fn swap(&mut self, nth: usize) {
        let driver = &mut self.drivers[nth];
        let (Some(next), Some((_, version))) = (driver.next.take(), driver.read.take()) else { return };
        if !self.tree.is_down && self.tree.version == version {
            self.change(next);
        }
    }

    pub(super) fn change(&mut self, next: FleetState) {
        let was = Arc::clone(&self.tree.state);
        if next.phase == Phase::Flipped {
            self.decided.insert(next.epoch);
        }
        if let (Phase::Idle, Some(outcome)) = (next.phase, &next.outcome)
            && was.phase != Phase::Idle
        {
            *self.outcomes.entry(outcome.result).or_default() += 1;
            if outcome.result == Ended::Aborted {
                self.aborted.insert(outcome.epoch);
            }
        }
        // Where it hurts most: hosts confirm just then.
        if next.phase == Phase::Go && self.chance.one_in(3) {
            let after = self.chance.between(0, next.order.lead_ms + 100);
            self.agenda.add(after, Event::Want);
        }
        self.tree.write(next);
        // The watch of each host, which may come late, or not at all.
        for nth in 0..self.hosts.len() {
            if !self.chance.one_in(6) {
                let (life, after) = (self.hosts[nth].life, self.chance.latency());
                self.agenda.add(after, Event::Read(nth, life));
            }
        }
    }
}
