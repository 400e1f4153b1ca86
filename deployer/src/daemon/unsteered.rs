//! Callers whose connections reach workers unsteered: watched, named, and in the way of a roll.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use deployer_common::layout::{Unsteered, UnsteeredKey};
use tracing::{error, info, warn};

use super::{Daemon, error::Refusal, lock};
use crate::{
    api::{CallerStatus, Phase, UnsteeredCaller},
    config::Caller,
    kernel::{
        address,
        executables::{self, Running},
        host, own_ports,
    },
    log::recurring,
    service::{
        Service, Worker, blocking,
        callers::{self, Fit},
        unsteered::{self, EVERY, Ends, Open, Peer, Recent, Ring, Sample},
    },
};

/// Callers that are named in a sentence.
const NAMED: usize = 4;
/// Before a process that no rule fits is believed to be left out: the daemon looks at the callers every second.
const AGAIN: Duration = Duration::from_millis(1500);

/// With looks at the callers that are connected.
static TROUBLE: recurring::Shared = recurring::Shared::new();

/// What is known of callers that are not steered.
#[derive(Default)]
pub(super) struct Watched {
    /// By place of the service in the tables.
    rings: Mutex<BTreeMap<u32, Ring>>,
    /// What a caller runs, as long as it could be asked.
    names: Mutex<HashMap<UnsteeredKey, PathBuf>>,
    /// By service.
    fits: Mutex<BTreeMap<String, Vec<CallerStatus>>>,
    /// What must not be overlooked.
    trouble: Mutex<Vec<String>>,
}

impl Daemon {
    /// Watches for ever.
    pub(super) async fn watch_callers(self: Arc<Self>) {
        loop {
            let daemon = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || daemon.look_at_callers()).await {
                error!(%error, "the look at callers that are not steered has panicked");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn look_at_callers(&self) {
        // Without the means for a look, what was seen last stays.
        let (services, Ok(running)) = (self.registry.services(), Running::look()) else { return };
        let all = self.tables.unsteered();
        self.name(&all, &running);
        let mut trouble = Vec::new();
        for service in services.values() {
            let fits = self.fits(service, &running);
            let mut rings = lock(&self.watched.rings);
            let ring = rings.entry(service.index).or_default();
            if self.decides(service) {
                ring.add(Instant::now(), self.sample(service, &all));
            } else {
                ring.clear();
            }
            drop(rings);
            trouble.extend(self.mostly_unsteered(service));
            trouble.extend(self.fits_nothing(service, &fits));
            self.told_fits(service, fits);
        }
        lock(&self.watched.rings).retain(|index, _| services.values().any(|service| service.index == *index));
        lock(&self.watched.fits).retain(|name, _| services.contains_key(name));
        *lock(&self.watched.trouble) = trouble;
    }

    /// Whether a service's connections are to be steered: else none of them says anything.
    fn decides(&self, service: &Service) -> bool {
        self.attached() && !self.tables.bypassed() && self.mode(service) == "enforce"
    }

    fn sample(&self, service: &Service, all: &[(UnsteeredKey, Unsteered)]) -> Sample {
        let workers = service.members().map(|worker| (worker.index, self.ends(worker))).collect();
        let callers = all.iter().filter(|(key, _)| key.service == service.index);
        Sample { workers, callers: callers.map(|(key, seen)| (*key, seen.count)).collect() }
    }

    fn ends(&self, worker: &Worker) -> Ends {
        let counts = self.tables.counts();
        // In this order: a caller's end is established first, and must not be missing.
        let established = counts.worker(worker.index).established.saturating_sub(own_ports::unheld(worker.at));
        Ends { established, steered: counts.end(worker.index).steered }
    }

    /// The workers that serve, most of whose connections in the last minutes were not steered.
    fn mostly(&self, service: &Service) -> Vec<(SocketAddr, Recent)> {
        let rings = lock(&self.watched.rings);
        let Some(ring) = rings.get(&service.index) else { return Vec::new() };
        let serves = |worker: &&Arc<Worker>| worker.control().phase == Phase::Up;
        let recent =
            service.members().filter(serves).map(|worker| (worker.at, ring.worker(worker.index, self.ends(worker))));
        recent.filter(|(_, recent)| recent.is_mostly_unsteered()).collect()
    }

    /// So many workers of a service get most of their connections from callers that are not steered.
    pub(super) fn workers_unsteered(&self, service: &Service) -> usize {
        self.mostly(service).len()
    }

    fn mostly_unsteered(&self, service: &Service) -> Option<String> {
        if self.mostly(service).is_empty() {
            return None;
        }
        let name = &service.config.name;
        // No numbers: it is told once, and not whenever one has changed.
        let mut names: Vec<_> = self.unsteered_callers(service).iter().take(NAMED).map(named).collect();
        names.sort();
        let who = if names.is_empty() { self.unnamed() } else { names.join(", ") };
        Some(format!(
            "{name}: workers get most of their connections from callers that are not steered: {who}. A roll would refuse \
             requests of theirs or send them to cold workers, and is refused without --force. Next: name the callers in \
             `callers` of {name}, and have them connect from this network namespace, below {}",
            self.attachment.callers.display()
        ))
    }

    fn unnamed(&self) -> String {
        format!("processes that run outside {}, where no hook sees them", self.attachment.callers.display())
    }

    /// An entry of `callers` that fits no process, while others call.
    fn fits_nothing(&self, service: &Service, fits: &[(CallerStatus, Fit)]) -> Vec<String> {
        let callers = self.unsteered_callers(service);
        if callers.is_empty() {
            return Vec::new();
        }
        let name = &service.config.name;
        let nothing = fits.iter().filter(|(_, fit)| fit.processes == 0);
        let told = nothing.map(|(status, _)| {
            format!(
                "{name}: `callers` names {}, and no process is one, while connections of others are not steered \
                 (deployer status names them). Next: correct `callers` if one of these is the load balancer",
                status.caller
            )
        });
        told.collect()
    }

    /// Keeps what each entry of `callers` fits, and tells what is new.
    fn told_fits(&self, service: &Service, fits: Vec<(CallerStatus, Fit)>) {
        let now: Vec<_> = fits.into_iter().map(|(status, _)| status).collect();
        let mut all = lock(&self.watched.fits);
        let before = all.insert(service.config.name.clone(), now.clone()).unwrap_or_default();
        for status in &now {
            let was = before.iter().find(|was| was.caller == status.caller).map(|was| was.processes > 0);
            let (caller, is) = (&status.caller, status.processes > 0);
            match (was, is) {
                (Some(true), false) => {
                    info!(service = service.config.name, caller, "no process is this caller any more")
                }
                (Some(false), true) => info!(service = service.config.name, caller, "a process is this caller now"),
                (None, false) => info!(service = service.config.name, caller, "no process is this caller yet"),
                _ => {}
            }
        }
    }

    fn fits(&self, service: &Service, running: &Running) -> Vec<(CallerStatus, Fit)> {
        let published = self.registry.published_callers(service);
        let of = |caller: &Caller| {
            let fit = callers::fit(caller, &published, self.registry.cgroup_root(), running);
            let left_out = fit.left_out.len();
            (CallerStatus { caller: caller.to_string(), processes: fit.processes, left_out }, fit)
        };
        service.config.callers.iter().map(of).collect()
    }

    /// What each entry of a service's `callers` fits, as of the last look.
    pub(super) fn caller_status(&self, service: &Service) -> Vec<CallerStatus> {
        lock(&self.watched.fits).get(&service.config.name).cloned().unwrap_or_default()
    }

    /// What must not be overlooked about callers.
    pub(super) fn caller_trouble(&self) -> Vec<String> {
        let rules = self.registry.caller_trouble().into_iter();
        rules.chain(lock(&self.watched.trouble).iter().cloned()).collect()
    }

    /// Asks callers what they run, while they live.
    fn name(&self, all: &[(UnsteeredKey, Unsteered)], running: &Running) {
        let mut names = lock(&self.watched.names);
        names.retain(|known, _| all.iter().any(|(key, _)| key == known));
        for (key, seen) in all.iter().filter(|(key, seen)| key.id != 0 && seen.pid != 0) {
            let is_it =
                || executables::rule_of(seen.pid).is_ok_and(|rule| (rule.place, rule.id) == (key.place, key.id));
            if let Some(link) = running.link(seen.pid)
                && names.get(key).is_none_or(|known| known != link)
                && is_it()
            {
                names.insert(*key, link.to_owned());
            }
        }
    }

    /// The callers of a service that were not steered in the last minutes, the one with most connections first.
    pub(super) fn unsteered_callers(&self, service: &Service) -> Vec<UnsteeredCaller> {
        let all = self.tables.unsteered();
        let missing = |(key, _): &(UnsteeredKey, Unsteered)| key.service == service.index;
        let all: Vec<_> = all.into_iter().filter(missing).collect();
        if all.is_empty() {
            return Vec::new();
        }
        if let Ok(running) = Running::look() {
            self.name(&all, &running);
        }
        let (now, rings, names) = (host::now_ms(), lock(&self.watched.rings), lock(&self.watched.names));
        let mut found = Vec::new();
        for (key, seen) in all {
            let age_ms = now.saturating_sub(seen.last_ms);
            let connections = rings.get(&service.index).map_or(0, |ring| ring.caller(&key, seen.count));
            if connections == 0 || u128::from(age_ms) > unsteered::SPAN.as_millis() {
                continue;
            }
            if let Some(caller) = unsteered_caller(&key, &seen, names.get(&key)) {
                found.push(UnsteeredCaller { connections, last_s: age_ms as f64 / 1000.0, ..caller });
            }
        }
        found.sort_by_key(|caller| std::cmp::Reverse(caller.connections));
        found
    }

    /// The same for the page of metrics: the first few, since each is a series of its own.
    pub(super) fn unsteered_names(&self, service: &Service) -> Vec<(String, u64)> {
        let mut names = BTreeMap::new();
        for caller in self.unsteered_callers(service).into_iter().take(2 * NAMED) {
            *names.entry(caller.caller).or_default() += caller.connections;
        }
        names.into_iter().collect()
    }

    /// Processes that a configured caller means and that no published rule fits, in a sentence; `None`: there are none.
    pub(super) async fn left_out(self: &Arc<Self>) -> Option<String> {
        let look = |daemon: Arc<Self>| {
            blocking(move || {
                let running = Running::look()?;
                let services = daemon.registry.services();
                let each = services.values().flat_map(|service| {
                    let fits = daemon.fits(service, &running).into_iter();
                    fits.flat_map(|(status, fit)| {
                        let name = service.config.name.clone();
                        fit.left_out.into_iter().map(move |pid| (name.clone(), status.caller.clone(), pid))
                    })
                });
                Ok(each.collect::<Vec<_>>())
            })
        };
        let first = look(Arc::clone(self)).await.unwrap_or_default();
        if first.is_empty() {
            return None;
        }
        // One that has just been started has its rule within a second.
        tokio::time::sleep(AGAIN).await;
        let second = look(Arc::clone(self)).await.unwrap_or_default();
        let (service, caller, pid) = second.into_iter().find(|it| first.contains(it))?;
        let command = crate::kernel::procs::process(pid);
        Some(format!(
            "{service}: {command} is {caller} of `callers`, and no published rule fits it: its connections are not \
             steered; deployer status and the daemon's log say why its rule is missing"
        ))
    }

    /// Refuses to roll workers most of whose connections come from callers that cannot be steered.
    ///
    /// # Errors
    /// Which callers these are, what would become of them, and what to do.
    pub(super) async fn peers_are_steered(&self, service: &Arc<Service>, verb: &str) -> Result<(), Refusal> {
        let recent = self.mostly(service);
        let open = self.open_unsteered(service).await;
        if recent.is_empty() && open.is_empty() {
            return Ok(());
        }
        let name = &service.config.name;
        let mut facts: Vec<_> = recent
            .iter()
            .take(1)
            .map(|(at, recent)| {
                format!("{} of {} connections to {at} in the last 5 minutes", recent.unsteered, recent.all)
            })
            .collect();
        facts.extend(open.iter().take(1).map(|(at, open)| {
            format!("{} of {} open connections at {at}", open.unsteered.values().sum::<usize>(), open.all)
        }));
        let mut at: Vec<_> = recent.iter().map(|(at, _)| *at).chain(open.iter().map(|(at, _)| *at)).collect();
        at.sort();
        at.dedup();
        let more = if at.len() > 1 { format!(" (and more at {} workers)", at.len()) } else { String::new() };
        warn!(service = name, facts = facts.join("; "), "most connections of workers are not steered");
        Err(Refusal::failed(format!(
            "most connections of workers of {name} come from callers that are not steered: {}{more}; from {}. A {verb} \
             would refuse requests of theirs, cut them, or send them to cold workers. No worker was touched. Next: have \
             these callers connect from this network namespace, below {}, and name them in `callers` of {name} (deployer \
             check says which entries fit); or accept the loss: deployer {verb} {name} --force",
            facts.join("; "),
            self.who(service, &open),
            self.attachment.callers.display()
        )))
    }

    /// The callers, for a sentence.
    fn who(&self, service: &Service, open: &[(SocketAddr, Open)]) -> String {
        let mut peers: BTreeMap<Peer, usize> = BTreeMap::new();
        for (peer, count) in open.iter().flat_map(|(_, open)| &open.unsteered) {
            *peers.entry(peer.clone()).or_default() += count;
        }
        let callers = self.unsteered_callers(service);
        let mut names: Vec<_> = callers.iter().map(named).collect();
        for peer in peers.keys() {
            let is_known = match peer {
                Peer::Elsewhere(ip) => callers.iter().any(|caller| caller.peer == Some(*ip)),
                Peer::Process { pid, .. } => callers.iter().any(|caller| caller.pid == Some(*pid)),
            };
            if !is_known {
                names.push(peer.to_string());
            }
        }
        let left = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        match (names.is_empty(), left) {
            (true, _) => self.unnamed(),
            (false, 0) => names.join(", "),
            (false, left) => format!("{} and {left} more", names.join(", ")),
        }
    }

    /// The workers most of whose open connections are of callers that are not steered.
    async fn open_unsteered(&self, service: &Arc<Service>) -> Vec<(SocketAddr, Open)> {
        let serves = |worker: &&Arc<Worker>| worker.control().phase == Phase::Up;
        let workers: Vec<_> = service.members().filter(serves).map(|worker| worker.at).collect();
        let published = self.registry.published_callers(service);
        let (root, attached) = (self.registry.cgroup_root().to_owned(), self.attachment.callers.clone());
        let looked = blocking(move || unsteered::look(&workers, &published, &root, &attached)).await;
        TROUBLE.note(&looked, "look at the callers that are connected to workers");
        let mostly = |open: &Open| unsteered::is_mostly_unsteered(open.unsteered.values().sum(), open.all);
        looked.unwrap_or_default().into_iter().filter(|(_, open)| mostly(open)).collect()
    }
}

/// What is shown of a caller; `None`: a peer that turns out to be of this host.
fn unsteered_caller(key: &UnsteeredKey, seen: &Unsteered, link: Option<&PathBuf>) -> Option<UnsteeredCaller> {
    if key.addr != [0; 4] {
        let ip = address(key.addr);
        let peer = Peer::Elsewhere(ip).to_string();
        return (!unsteered::is_of_this_host(ip)).then(|| caller(peer, None, None, Some(ip)));
    }
    let len = seen.comm.iter().position(|byte| *byte == 0).unwrap_or(seen.comm.len());
    let command = String::from_utf8_lossy(&seen.comm[..len]).into_owned();
    let name = match link {
        Some(link) => executables::shown(link),
        // It ended before it could be asked.
        None => format!("an executable called {command}"),
    };
    Some(caller(name, Some(command), Some(seen.pid), None))
}

fn caller(caller: String, process: Option<String>, pid: Option<u32>, peer: Option<IpAddr>) -> UnsteeredCaller {
    UnsteeredCaller { caller, process, pid, peer, connections: 0, last_s: 0.0 }
}

/// `/usr/local/bin/nginx (nginx, pid 4711)`
fn named(caller: &UnsteeredCaller) -> String {
    match (&caller.process, caller.pid) {
        (Some(process), Some(pid)) => format!("{} ({process}, last pid {pid})", caller.caller),
        _ => caller.caller.clone(),
    }
}
