//! What a configuration comes to in the tables: worked out, and checked, before anything is written.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU32},
};

use anyhow::{Context, Result, bail};
use deployer_common::{
    lanes::FlipWord,
    layout::{CallerRule, MAX_CALLERS},
    word::State,
};

use super::{
    Registry, Services,
    entries::{first_lane, has_room},
    places::{Places, take},
};
use crate::{
    api::Phase,
    config::{self, Config},
    kernel::{executables::Running, host},
    service::{Service, Worker, callers},
};

/// A configuration, ready to be written.
pub(super) struct Draft {
    /// The places as they will be taken.
    pub(super) places: Places,
    /// The services, in the order of their names.
    pub(super) entries: Vec<Entry>,
}

/// One service of it.
pub(super) enum Entry {
    /// It is configured as it was, and nothing of it is written.
    Same(Arc<Service>),
    /// It is new, or configured otherwise.
    Other(Box<Other>),
}

/// A service that is to be written.
pub(super) struct Other {
    pub(super) config: config::Service,
    pub(super) index: u32,
    /// No service had this index.
    pub(super) is_new: bool,
    /// The first pool, the spares, the second pool; and whether the worker's place was taken just now.
    pub(super) members: Vec<(Arc<Worker>, bool)>,
    pub(super) flip: FlipWord,
    pub(super) current: Arc<AtomicU32>,
}

impl Registry {
    /// Works out where everything goes. Nothing is written.
    ///
    /// # Errors
    /// When there is no room, or the service cannot become what is configured; names the service.
    pub(super) fn draft(&self, places: &Places, before: &Services, config: &Config) -> Result<Draft> {
        let (mut draft, inherited) = (places.clone(), places.inherited(config));
        let mut entries = Vec::with_capacity(config.services.len());
        let running = Running::look().context("look at what the host's processes run, in /proc")?;
        for (name, wanted) in &config.services {
            let former = Origin { before: before.get(name), inherited: inherited.get(name).copied() };
            let entry = match former.before.filter(|before| before.config == *wanted) {
                Some(same) => Ok(Entry::Same(Arc::clone(same))),
                None => self.draft_service(&mut draft, former, wanted, &running),
            };
            entries.push(entry.with_context(|| format!("service {name}"))?);
        }
        Ok(Draft { places: draft, entries })
    }

    fn draft_service(
        &self,
        places: &mut Places,
        former: Origin<'_>,
        wanted: &config::Service,
        running: &Running,
    ) -> Result<Entry> {
        let known = former.index();
        let flip = self.next_flip(places, known, wanted)?;
        let serving = self.serving(places, &former)?;
        stays_in_its_pool(wanted, flip.current(host::now_ms()) as usize & 1, &serving)?;
        let index = match known {
            Some(index) => index,
            None => take(&mut places.services).context("no room for another service; the most is 64")?,
        };
        let mut members = Vec::with_capacity(wanted.members().count());
        for at in wanted.members() {
            let known = former.before.and_then(|before| before.members().find(|worker| worker.at == at));
            if let Some(worker) = known {
                members.push((Arc::clone(worker), false));
                continue;
            }
            let found = places.inherited_worker(index, at);
            let place = found.or_else(|| take(&mut places.workers));
            let place = place.context("no room for another worker; the most is 1024")?;
            members.push((Arc::new(self.new_worker(place, at, &wanted.name, index)), found.is_none()));
        }
        let rules = self.next_rules(places, &former, index, wanted, running);
        has_room(&rules)?;
        places.rules.insert(index, rules);
        places.previewers.insert(index, self.previewers(wanted));
        let current = former.before.map_or_else(Arc::default, |before| Arc::clone(&before.current));
        let (config, is_new) = (wanted.clone(), known.is_none());
        Ok(Entry::Other(Box::new(Other { config, index, is_new, members, flip, current })))
    }

    fn next_rules(
        &self,
        places: &Places,
        former: &Origin<'_>,
        index: u32,
        wanted: &config::Service,
        running: &Running,
    ) -> Vec<CallerRule> {
        let now = self.caller_rules(running, index, wanted);
        match (former.before, places.rules.get(&index)) {
            (Some(before), Some(known)) if before.config.callers == wanted.callers => {
                callers::succeed(known, &now, MAX_CALLERS)
            }
            // What runs may be an executable that has been replaced since, and is still a caller.
            (None, Some(known)) if former.inherited.is_some() => callers::succeed(known, &now, MAX_CALLERS),
            _ => now,
        }
    }

    /// Which pool is current, and the lanes: as the kernel has it, else as was written down; else the first is.
    fn next_flip(&self, places: &Places, known: Option<u32>, wanted: &config::Service) -> Result<FlipWord> {
        let found = known.map_or_else(FlipWord::default, |index| self.tables.flip(index));
        if wanted.deploy.is_none() {
            if found.current(host::now_ms()) != 0 {
                bail!(
                    "its second pool is current; deploy once more, which makes the first current, before `deploy` is taken out"
                );
            }
            return Ok(FlipWord::default());
        }
        let first = FlipWord::new([first_lane(wanted), 0], [true, false], 0);
        let is_one = |word: &&FlipWord| **word != FlipWord::default();
        Ok(*[&found].into_iter().chain(places.remembered.get(&wanted.name)).find(is_one).unwrap_or(&first))
    }

    /// The workers of the current pool that are up, of a service that has two pools so far; else none.
    fn serving(&self, places: &Places, former: &Origin<'_>) -> Result<Vec<SocketAddr>> {
        match (former.before, former.inherited) {
            (Some(before), _) if before.config.deploy.is_some() => {
                let up = before.workers().iter().filter(|worker| worker.control().phase == Phase::Up);
                Ok(up.map(|worker| worker.at).collect())
            }
            (None, Some(index)) => {
                let [first, second] = self.tables.members(self.tables.service_word(index).slot())?;
                let now = host::now_ms();
                let current = match self.tables.flip(index).current(now) {
                    _ if second.is_empty() => return Ok(Vec::new()),
                    0 => first,
                    _ => second,
                };
                let is_up = |place: u32| self.tables.word(place).at(now) == State::Up;
                let up = places.found.workers.iter().filter(|it| current.contains(&it.index) && is_up(it.index));
                Ok(up.map(|worker| worker.at).collect())
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// What a service was before.
#[derive(Clone, Copy)]
struct Origin<'a> {
    /// In this daemon.
    before: Option<&'a Arc<Service>>,
    /// The index that an earlier daemon has left it.
    inherited: Option<u32>,
}

impl Origin<'_> {
    fn index(&self) -> Option<u32> {
        self.before.map(|before| before.index).or(self.inherited)
    }
}

/// Whether the workers that serve, of two pools, are of the same pool by a new configuration: pools are told apart by it.
fn stays_in_its_pool(wanted: &config::Service, current: usize, serving: &[SocketAddr]) -> Result<()> {
    if wanted.deploy.is_none() || serving.is_empty() {
        return Ok(());
    }
    let pools = [&wanted.workers[..], wanted.second()];
    if let Some(moved) = serving.iter().find(|at| pools[1 - current].contains(at)) {
        bail!(
            "{moved} serves, and would be of the pool that is not current; write the addresses of `deploy.second` out in \
             place of \"next\", or deploy once more before the change"
        );
    }
    if !serving.iter().any(|at| pools[current].contains(at)) {
        bail!("the change would leave it without a worker in its current pool; deploy once more before the change");
    }
    Ok(())
}
