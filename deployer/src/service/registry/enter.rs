//! A configuration on its way into the tables, and out of them again where a write fails.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result};
use deployer_common::{
    lanes::FlipWord,
    word::{ServiceWord, State},
};

use super::{
    Registry, Services,
    draft::{Draft, Entry, Other},
    entries::tell_first,
    places::Places,
};
use crate::{
    failpoint,
    kernel::host,
    service::{Service, manager, watch},
};

/// How things stood before a configuration was written.
pub(super) struct Former {
    places: Places,
    services: Services,
    /// Those that the draft changes or takes out.
    changed: Vec<Changed>,
}

struct Changed {
    service: Arc<Service>,
    flip: FlipWord,
    /// By place.
    words: BTreeMap<u32, State>,
}

impl Registry {
    /// How things stand before a draft is written.
    pub(super) fn former(&self, places: &Places, services: &Services, draft: &Draft) -> Former {
        let is_same = |service: &Arc<Service>| {
            draft.entries.iter().any(|entry| matches!(entry, Entry::Same(same) if Arc::ptr_eq(same, service)))
        };
        let changed = services.values().filter(|service| !is_same(service)).map(|service| Changed {
            service: Arc::clone(service),
            flip: self.tables.flip(service.index),
            words: service.members().map(|worker| (worker.index, self.tables.word(worker.index).state())).collect(),
        });
        Former { places: places.clone(), services: services.clone(), changed: changed.collect() }
    }

    /// Writes a draft.
    ///
    /// # Errors
    /// When the kernel refuses a write. Some have been done then.
    pub(super) fn enter(&self, places: &mut Places, before: &Services, draft: Draft) -> Result<()> {
        *places = draft.places;
        let mut after = Services::new();
        for entry in draft.entries {
            let service = match entry {
                Entry::Same(service) => service,
                Entry::Other(other) => {
                    let name = other.config.name.clone();
                    let entered = self.enter_service(places, *other);
                    Arc::new(entered.with_context(|| format!("entering service {name} into the kernel's tables"))?)
                }
            };
            after.insert(service.config.name.clone(), service);
        }
        self.set_services(&after);
        let gone = places.gone(before, &after);
        self.give_up(places, &after, &gone)?;
        failpoint::tables()?;
        self.enter_listeners(&after)
    }

    fn enter_service(&self, places: &Places, other: Other) -> Result<Service> {
        let Other { config, index, is_new, members, flip, current } = other;
        if is_new {
            self.tables.counts().begin_service(index);
        }
        let mut workers = Vec::with_capacity(members.len());
        for (worker, is_new) in members {
            if is_new {
                self.tables.publish(worker.index, State::Down, 0);
                self.tables.set_seed(worker.index, 0);
                self.tables.counts().begin_worker(worker.index);
                self.tables.write_worker(worker.index, index, worker.at)?;
            }
            worker.control().patience = config.warm.within + watch::AGAIN;
            workers.push(worker);
        }
        let manager = manager(&config, &workers);
        let second = workers.split_off(config.workers.len() + config.spares.len());
        let spares = workers.split_off(config.workers.len());
        let service = Service { index, config, pools: [workers, second], current, spares, manager };
        service.set_current(flip.current(host::now_ms()));
        tell_first(&service, flip);
        self.publish(places, &service)?;
        self.tables.publish_flip(index, flip);
        self.insert_frontends(&service)?;
        Ok(service)
    }

    /// Makes the tables what they were before a draft was begun to be written.
    ///
    /// # Errors
    /// When the kernel refuses a write again.
    pub(super) fn undo(&self, places: &mut Places, former: Former) -> Result<()> {
        let Former { places: mut before, services, changed } = former;
        self.set_services(&services);
        for former in &changed {
            self.enter_again(&before, former)?;
        }
        let gone = before.taken_since(places);
        for service in &gone.services {
            self.tables.publish_service(*service, ServiceWord(0));
        }
        self.give_up(&mut before, &services, &gone)?;
        *places = before;
        self.enter_listeners(&services)
    }

    /// Enters a service as it was.
    fn enter_again(&self, places: &Places, Changed { service, flip, words }: &Changed) -> Result<()> {
        let members: Vec<_> = service.members().cloned().collect();
        for worker in &members {
            worker.control().patience = service.config.warm.within + watch::AGAIN;
            if self.tables.word(worker.index).state() == State::Absent {
                self.tables.write_worker(worker.index, service.index, worker.at)?;
                let was = words.get(&worker.index).copied();
                let state = was.filter(|state| matches!(state, State::Up | State::Failed)).unwrap_or(State::Down);
                self.tables.publish(worker.index, state, 0);
            }
        }
        // It takes charge of the workers again, by their former configuration.
        drop(manager(&service.config, &members));
        service.set_current(flip.current(host::now_ms()));
        self.publish(places, service)?;
        self.tables.publish_flip(service.index, *flip);
        self.insert_frontends(service)
    }

    /// Says for which workers listeners on wildcard addresses count, and counts all that listen.
    fn enter_listeners(&self, services: &Services) -> Result<()> {
        let members = services.values().flat_map(|service| service.members());
        let workers: Vec<_> = members.map(|worker| (worker.at, worker.index)).collect();
        self.tables.enter_wildcards(&workers)?;
        self.tables.count_listeners()
    }
}
