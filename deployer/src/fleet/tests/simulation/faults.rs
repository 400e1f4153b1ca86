//! What operators want, and what breaks.

use std::sync::Arc;

use super::{DRIVERS, Driver, Event, Order, Phase, Simulation, driver};

impl Simulation {
    pub(super) fn operator(&mut self) {
        let again = self.chance.between(2000, 20_000);
        if self.deploys > 0 || self.tree.state.phase != Phase::Idle {
            self.agenda.add(again, Event::Operator);
        }
        if self.tree.is_down {
            return;
        }
        let state = Arc::clone(&self.tree.state);
        if state.phase != Phase::Idle {
            // Now and then somebody has had enough.
            if self.chance.one_in(14) {
                self.want();
            }
            return;
        }
        if self.deploys == 0 {
            return;
        }
        self.deploys -= 1;
        let order = Order {
            by: "somebody".to_owned(),
            to: Some(format!("v{}", state.epoch + 2).as_str().into()),
            quorum: 90,
            lead_ms: self.chance.between(500, 2500),
            bake_ms: self.chance.between(1000, 8000),
            ..Order::default()
        };
        let seen = self.seen(state.epoch, &state);
        if let Ok((next, _)) = driver::deploy(&state, order, None, 16, &seen, self.agenda.now) {
            self.change(next);
        }
    }

    pub(super) fn want(&mut self) {
        if !self.tree.is_down
            && let Ok(next) = driver::want(&self.tree.state, "somebody")
        {
            self.change(next);
        }
    }

    pub(super) fn fault(&mut self) {
        if self.faults == 0 {
            return;
        }
        self.faults -= 1;
        let most = 90_000 / u64::from(self.faults.clamp(10, 400));
        let again = self.chance.between(1, most.max(2));
        self.agenda.add(again, Event::Fault);
        let nth = self.chance.below(self.hosts.len() as u64) as usize;
        match self.chance.below(40) {
            0 => {
                self.tree.is_down = true;
                let after = self.chance.between(100, 20_000);
                self.agenda.add(after, Event::Back);
                // Some sessions do not outlive it.
                if after > 5000 {
                    let lost: Vec<_> = (0..self.hosts.len()).filter(|_| self.chance.one_in(2)).collect();
                    lost.into_iter().for_each(|nth| self.tree.expire(nth));
                }
            }
            1..5 => self.drivers[nth % DRIVERS] = Driver { offset: self.hosts[nth].offset, ..Driver::default() },
            5..20 => {
                self.hosts[nth].is_linked = false;
                let after = self.chance.between(100, 30_000);
                self.agenda.add(after, Event::Joined(nth));
                let session = self.hosts[nth].session;
                self.agenda.add(4000, Event::Expired(nth, session));
            }
            20..23 => self.hosts[nth].offset = self.chance.between(0, 600) as i64 - 300,
            _ => {
                self.hosts[nth].down();
                let after = self.chance.between(100, 20_000);
                self.agenda.add(after, Event::Up(nth));
                let session = self.hosts[nth].session;
                self.agenda.add(4000, Event::Expired(nth, session));
            }
        }
    }
}
