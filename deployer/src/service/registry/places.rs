//! Who has which place in the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use deployer_common::{lanes::FlipWord, layout::CallerRule, word};

use super::{Service, Services};
use crate::{
    config::{self, Config},
    kernel::Found,
};

#[derive(Clone)]
pub(super) struct Places {
    pub(super) workers: Vec<bool>,
    pub(super) services: Vec<bool>,
    /// By service index: bypassed by an operator, which outlives a reload.
    pub(super) bypassed: BTreeSet<u32>,
    /// By service index: caller rules as last published.
    pub(super) rules: BTreeMap<u32, Vec<CallerRule>>,
    /// By service index: rules of who may preview, as last published.
    pub(super) previewers: BTreeMap<u32, Vec<CallerRule>>,
    /// By service's name: which pool was current when that was last written down, until the first configuration is applied.
    pub(super) remembered: BTreeMap<String, FlipWord>,
    /// What an earlier daemon has left in the tables, until the first configuration is applied.
    pub(super) found: Found,
}

/// Places that nobody needs any more.
pub(super) struct Gone {
    pub(super) services: BTreeSet<u32>,
    pub(super) workers: BTreeSet<u32>,
}

impl Places {
    /// The places of services that an earlier daemon has left: those of any of their addresses. Where two services of
    /// this configuration were one before, the first of them has its place.
    pub(super) fn inherited(&self, config: &Config) -> BTreeMap<String, u32> {
        let by_worker = |at| self.found.workers.iter().find(|worker| worker.at == at).map(|worker| worker.service);
        let mut free = self.found.services.clone();
        let mut inherited = BTreeMap::new();
        for (name, wanted) in &config.services {
            let by_address = wanted.address.and_then(|at| self.found.addresses.get(&at).copied());
            let mut all = by_address.into_iter().chain(wanted.members().filter_map(by_worker));
            if let Some(index) = all.find(|index| free.contains(index)) {
                free.retain(|other| *other != index);
                inherited.insert(name.clone(), index);
            }
        }
        inherited
    }

    /// The place of a worker that an earlier daemon has left in this service.
    pub(super) fn inherited_worker(&self, service: u32, at: SocketAddr) -> Option<u32> {
        let found = self.found.workers.iter().find(|worker| worker.at == at && worker.service == service);
        found.map(|worker| worker.index)
    }

    /// What was there, in this daemon's services or left by an earlier one, and is no longer.
    pub(super) fn gone(&self, before: &Services, after: &Services) -> Gone {
        let services = before.values().map(|service| service.index).chain(self.found.services.clone());
        let workers = before.values().flat_map(|service| service.members()).map(|worker| worker.index);
        let found = self.found.workers.iter().map(|worker| worker.index).chain(self.found.strays.clone());
        let mut gone = Gone { services: services.collect(), workers: workers.chain(found).collect() };
        for service in after.values() {
            gone.services.remove(&service.index);
            for worker in service.members() {
                gone.workers.remove(&worker.index);
            }
        }
        gone
    }

    /// The places that `after` has taken and these have not.
    pub(super) fn taken_since(&self, after: &Self) -> Gone {
        let taken = |before: &[bool], after: &[bool]| {
            let both = before.iter().zip(after).zip(0..);
            both.filter(|((before, after), _)| **after && !**before).map(|(_, place)| place).collect()
        };
        Gone { services: taken(&self.services, &after.services), workers: taken(&self.workers, &after.workers) }
    }

    pub(super) fn free(&mut self, gone: &Gone) {
        self.found = Found::default();
        // The tables have it since; what is entered later, or once more, begins anew.
        self.remembered.clear();
        for service in &gone.services {
            self.services[*service as usize] = false;
            self.bypassed.remove(service);
            self.rules.remove(service);
            self.previewers.remove(service);
        }
        for worker in &gone.workers {
            self.workers[*worker as usize] = false;
        }
    }
}

impl Places {
    pub(super) fn mode(&self, service: &Service) -> word::Mode {
        match service.config.mode {
            _ if self.bypassed.contains(&service.index) => word::Mode::Bypass,
            config::Mode::Observe => word::Mode::Observe,
            config::Mode::Enforce => word::Mode::Enforce,
        }
    }
}

pub(super) fn take(places: &mut [bool]) -> Option<u32> {
    let free = places.iter().position(|taken| !taken)?;
    places[free] = true;
    Some(free as u32)
}
