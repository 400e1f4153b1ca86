//! Which service and worker has which place in the tables, and how a configuration gets there.
//!
//! Order is everything here, since programs read while we write: a worker's address is written before a slot names it, a
//! slot before a service's word names it, and what is given up is reused only after a grace period.

mod draft;
mod enter;
mod entries;
mod places;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use anyhow::{Context, Result};
use deployer_common::{
    lanes::FlipWord,
    layout::{CallerRule, Frontend, LANE_FRONTEND, MAX_CALLERS, MAX_SERVICES, MAX_WORKERS, NO_WORKER},
    word::{self, ServiceWord, State},
};

pub(crate) use self::entries::is_lane_of;
pub(super) use self::entries::lanes as lane_address;
use self::{
    entries::{lanes, limits, policy, slot},
    places::{Gone, Places},
};
use super::{Service, Worker, callers, identity::squatters::Squatters, moves::Moves};
use crate::{
    config::{self, Config},
    kernel::{Found, Tables, executables::Running, host},
};

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // None of these is left half changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The services by name.
pub type Services = BTreeMap<String, Arc<Service>>;

/// All services, and the places in the tables.
pub struct Registry {
    tables: Arc<Tables>,
    cgroup_root: PathBuf,
    services: RwLock<Services>,
    places: Mutex<Places>,
    /// By service: what it has gone through, also before a reload that left none of its workers.
    moves: Mutex<BTreeMap<String, Arc<Moves>>>,
    /// The processes that listen where nothing should.
    squatters: Mutex<Squatters>,
    /// What the last look at the callers could not make rules of, by service.
    caller_trouble: Mutex<BTreeMap<String, Vec<String>>>,
    /// The last rule of each caller.
    known_callers: Mutex<callers::Known>,
}

impl Registry {
    /// An empty registry over tables in which an earlier daemon may have left something.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn new(tables: Arc<Tables>, cgroup_root: PathBuf) -> Result<Self> {
        let found = tables.found().context("reading what an earlier daemon has left in the tables")?;
        let mut places = Places {
            workers: vec![false; MAX_WORKERS],
            services: vec![false; MAX_SERVICES],
            bypassed: BTreeSet::new(),
            rules: BTreeMap::new(),
            previewers: BTreeMap::new(),
            remembered: BTreeMap::new(),
            found,
        };
        for index in places.found.workers.iter().map(|worker| worker.index).chain(places.found.strays.clone()) {
            places.workers[index as usize] = true;
        }
        for index in places.found.services.clone() {
            places.services[index as usize] = true;
            let word = tables.service_word(index);
            if word.mode() == word::Mode::Bypass {
                places.bypassed.insert(index);
            }
            places.rules.insert(index, tables.callers(word.slot()).context("reading the callers' rules")?);
        }
        let (services, moves, squatters) = Default::default();
        let (caller_trouble, known_callers) = Default::default();
        let places = Mutex::new(places);
        Ok(Self { tables, cgroup_root, services, places, moves, squatters, caller_trouble, known_callers })
    }

    /// The services of a configuration that an earlier daemon has left in the tables, steering.
    #[must_use]
    pub fn inherited(&self, config: &Config) -> BTreeSet<String> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        // One that observes has only just been entered, by a daemon that then died: its workers' words mean nothing yet.
        let decides = |index: &u32| self.tables.service_word(*index).mode() != word::Mode::Observe;
        places.inherited(config).into_iter().filter(|(_, index)| decides(index)).map(|(name, _)| name).collect()
    }

    /// Forgets the caller rules that an earlier daemon has left, but of services whose callers are the `same` now.
    pub fn keep_callers(&self, config: &Config, same: impl Fn(&config::Service) -> bool) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, index) in places.inherited(config) {
            if !config.services.get(&name).is_some_and(&same) {
                places.rules.remove(&index);
            }
        }
    }

    /// Which pools were current, and their lanes, when they were last written down: for services of which the kernel knows
    /// nothing any more.
    pub fn remember(&self, flips: BTreeMap<String, FlipWord>) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remembered = flips;
    }

    /// The processes that listen where nothing should.
    pub fn squatters(&self) -> MutexGuard<'_, Squatters> {
        self.squatters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The services as they are now.
    #[must_use]
    pub fn services(&self) -> Services {
        self.services.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A service by name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Arc<Service>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Makes the tables what the configuration says. Services that are configured as they were are left alone. Workers that
    /// stay keep their state; new ones are entered as down, and the watch finds out.
    ///
    /// # Errors
    /// When there is no room, or a service cannot become what is configured: nothing is written then. When the kernel
    /// refuses a write: what was written is undone, unless an earlier daemon has left these tables, which the next one finds.
    pub fn apply(&self, config: &Config) -> Result<()> {
        let mut places = lock(&self.places);
        let before = self.services();
        let draft = self.draft(&places, &before, config)?;
        let former = (places.found == Found::default()).then(|| self.former(&places, &before, &draft));
        let Err(error) = self.enter(&mut places, &before, draft) else { return Ok(()) };
        let Some(former) = former else { return Err(error) };
        match self.undo(&mut places, former) {
            Ok(()) => Err(error.context("nothing is changed")),
            Err(why) => Err(error.context(format!("the former configuration could not be written again ({why:#})"))),
        }
    }

    fn set_services(&self, services: &Services) {
        self.services.write().unwrap_or_else(PoisonError::into_inner).clone_from(services);
    }

    fn previewers(&self, service: &config::Service) -> Vec<CallerRule> {
        let preview = service.deploy.as_ref().map_or(&[][..], |deploy| &deploy.preview);
        if preview.is_empty() {
            return Vec::new();
        }
        let running = Running::default();
        // Those who look at a version beforehand are few and near: the file that has the name is what they run.
        let host = callers::Host { root: &self.cgroup_root, running: &running, unsteered: &[] };
        callers::rules(preview, &host, &mut lock(&self.known_callers)).rules
    }

    /// The rules of a service's callers as of now. What is amiss with them is kept for the status.
    fn caller_rules(&self, running: &Running, index: u32, service: &config::Service) -> Vec<CallerRule> {
        let mut unsteered = self.tables.unsteered();
        unsteered.retain(|(key, _)| key.service == index);
        let host = callers::Host { root: &self.cgroup_root, running, unsteered: &unsteered };
        if service.callers.is_empty() {
            return Vec::new();
        }
        let found = callers::rules(&service.callers, &host, &mut lock(&self.known_callers));
        lock(&self.caller_trouble).insert(service.name.clone(), found.trouble);
        found.rules
    }

    /// What is amiss with the callers of services, each in a sentence.
    #[must_use]
    pub fn caller_trouble(&self) -> Vec<String> {
        let services = self.services();
        let trouble = lock(&self.caller_trouble);
        let of_services = trouble.iter().filter(|(name, _)| services.contains_key(*name));
        of_services.flat_map(|(name, all)| all.iter().map(move |what| format!("{name}: {what}"))).collect()
    }

    /// The caller rules of a service as they are published; none: every process in the callers' cgroup is steered.
    #[must_use]
    pub fn published_callers(&self, service: &Service) -> Vec<CallerRule> {
        if service.config.callers.is_empty() {
            return Vec::new();
        }
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.rules.get(&service.index).cloned().unwrap_or_default()
    }

    /// The root of the cgroup v2 hierarchy.
    #[must_use]
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// The workers' own addresses, the service's, and those of its lanes. Nobody dials a spare.
    fn insert_frontends(&self, service: &Service) -> Result<()> {
        let index = service.index as u16;
        for pool in 0..2 {
            for worker in service.pool(pool) {
                let frontend = Frontend { service: index, pool: pool as u16, worker: worker.index };
                self.tables.insert_frontend(worker.at, frontend)?;
            }
        }
        if let Some(address) = service.config.address {
            self.tables.insert_frontend(address, Frontend { service: index, pool: 0, worker: NO_WORKER })?;
        }
        if let Some(lanes) = lanes(service) {
            let frontend = Frontend { service: index, pool: LANE_FRONTEND as u16, worker: NO_WORKER };
            self.tables.insert_frontend(lanes, frontend)?;
        }
        Ok(())
    }

    fn new_worker(&self, index: u32, at: SocketAddr, name: &str, service: u32) -> Worker {
        let mut moves = self.moves.lock().unwrap_or_else(PoisonError::into_inner);
        let moves = Arc::clone(moves.entry(name.to_owned()).or_default());
        Worker { moves, ..Worker::new(index, at, name, service) }
    }

    /// Writes the service's unused slot, names it in the service's word, and waits until nobody reads the other.
    fn publish(&self, places: &Places, service: &Service) -> Result<()> {
        let first = (2 * service.index) as u16;
        let index = if self.tables.service_word(service.index).slot() == u32::from(first) { first + 1 } else { first };
        let rules = places.rules.get(&service.index).map_or(&[][..], Vec::as_slice);
        let previewers = places.previewers.get(&service.index).map_or(&[][..], Vec::as_slice);
        self.tables.write_slot(u32::from(index), &slot(service, rules, previewers)?)?;
        self.tables.set_limits(service.index, limits(service));
        self.tables.publish_service(service.index, ServiceWord::new(places.mode(service), policy(service), index));
        host::grace_period().context("waiting for an RCU grace period (membarrier)")
    }

    /// Bypasses one service, or no longer: one write.
    pub fn bypass(&self, service: &Service, on: bool) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if on {
            places.bypassed.insert(service.index);
        } else {
            places.bypassed.remove(&service.index);
        }
        let old = self.tables.service_word(service.index);
        let word = ServiceWord::new(places.mode(service), old.policy(), old.slot() as u16);
        self.tables.publish_service(service.index, word);
    }

    /// Looks again at what the caller rules stand for; publishes them where that has changed.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn refresh_callers(&self) -> Result<()> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let running = Running::look().context("look at what the host's processes run, in /proc")?;
        for service in self.services().values() {
            let now = self.caller_rules(&running, service.index, &service.config);
            let previewers = self.previewers(&service.config);
            if places.previewers.get(&service.index) != Some(&previewers) {
                places.previewers.insert(service.index, previewers);
                self.publish(&places, service)?;
            }
            let known = places.rules.get(&service.index).map_or(&[][..], Vec::as_slice);
            if now.iter().any(|rule| !known.contains(rule)) {
                let rules = callers::succeed(known, &now, MAX_CALLERS);
                tracing::info!(service = service.config.name, "callers have changed on this host; publishing them");
                places.rules.insert(service.index, rules);
                self.publish(&places, service)?;
                // Until now they reached what they dialled.
                self.tables.interrupted();
            }
        }
        Ok(())
    }

    /// Places of a service and two workers for the self-test, from the far end; `None`: there is no room.
    pub(super) fn lend(&self) -> Option<(u32, [u32; 2])> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let service = places.services.iter().rposition(|taken| !taken)?;
        let last = places.workers.iter().rposition(|taken| !taken)?;
        let before = places.workers[..last].iter().rposition(|taken| !taken)?;
        places.services[service] = true;
        places.workers[last] = true;
        places.workers[before] = true;
        Some((service as u32, [last as u32, before as u32]))
    }

    /// Takes back what was lent, of which nothing stands in the tables any more.
    pub(super) fn take_back(&self, (service, workers): (u32, [u32; 2])) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.services[service as usize] = false;
        workers.iter().for_each(|worker| places.workers[*worker as usize] = false);
    }

    /// Takes out what the new configuration no longer has.
    fn give_up(&self, places: &mut Places, after: &Services, gone: &Gone) -> Result<()> {
        for service in &gone.services {
            self.tables.publish_service(*service, ServiceWord(0));
            self.tables.publish_flip(*service, FlipWord::default());
        }
        let members: Vec<_> = after.values().flat_map(|new| new.members().map(|worker| worker.at)).collect();
        let workers = after.values().flat_map(|new| new.pools.iter().flatten().map(|worker| worker.at));
        let addresses = after.values().flat_map(|new| new.config.address.into_iter().chain(lanes(new)));
        let frontends: Vec<_> = workers.chain(addresses).collect();
        self.tables.retain(&frontends, &members)?;
        host::grace_period().context("waiting for an RCU grace period (membarrier)")?;
        for worker in &gone.workers {
            self.tables.publish(*worker, State::Absent, 0);
        }
        places.free(gone);
        Ok(())
    }
}
