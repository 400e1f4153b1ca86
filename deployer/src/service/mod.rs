//! A service while the daemon runs: its workers, what each goes through, and who may change that.

pub mod alive;
pub mod answers;
pub mod boot;
pub mod callers;
pub mod drain;
pub mod floor;
mod hands;
pub mod holds;
pub mod identity;
pub mod moves;
pub mod named;
pub mod outsiders;
pub mod phase;
pub mod pools;
pub mod protect;
pub mod registry;
pub mod selftest;
pub mod stopped;
#[cfg(test)]
mod tests;
pub mod unsteered;
pub mod uses;
pub mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicU32},
    time::{Duration, Instant},
};

use deployer_common::word::{State, WorkerWord};
use tokio::sync::Notify;
use tracing::{Span, info};

use self::{identity::seen::Seen, moves::Moves};
use crate::{
    api::Phase,
    config,
    journal::{
        History, WorkerState,
        history::{About, By},
    },
    kernel::{Tables, diag},
    log,
    version::Version,
    workers::{self, Builtin, Exec, ProcessManager, Supervisord, Systemd},
};

/// A service as configured, with its place in the tables. Replaced whole when the configuration changes; the workers
/// that stay are the same objects, and which pool is current is one thing in all of them.
pub struct Service {
    /// Index in the tables.
    pub index: u32,
    /// As configured.
    pub config: config::Service,
    /// The workers of each pool in the order configured; the second has none, where there is one pool.
    pub pools: [Vec<Arc<Worker>>; 2],
    /// See [`Service::current`].
    pub current: Arc<AtomicU32>,
    /// Workers that stand in during a roll: members of the pool, without a frontend, and otherwise down.
    pub spares: Vec<Arc<Worker>>,
    /// What starts and stops them.
    pub manager: Box<dyn ProcessManager>,
}

impl Service {
    /// The first pool, the spares, the second pool. A roll numbers them in this order.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.pools[0].iter().chain(&self.spares).chain(&self.pools[1])
    }

    /// A member by number.
    #[must_use]
    pub fn member(&self, nth: usize) -> Option<&Arc<Worker>> {
        self.members().nth(nth)
    }

    /// What it has gone through.
    #[must_use]
    pub fn moves(&self) -> Option<&Moves> {
        // All of them have the same.
        self.pools[0].first().map(|worker| &*worker.moves)
    }

    /// Whether it is one of the spares.
    #[must_use]
    pub fn is_spare(&self, worker: &Worker) -> bool {
        self.spares.iter().any(|spare| spare.index == worker.index)
    }
}

/// Makes the process manager that a service names. One that lives in the daemon logs for the rolls that have these members
/// in hand.
#[must_use]
pub fn manager(service: &config::Service, members: &[Arc<Worker>]) -> Box<dyn ProcessManager> {
    let name = &service.name;
    match service.manager.clone() {
        config::Manager::Supervisord { socket, program, login, stop_within } => {
            Box::new(Supervisord::new(socket, program, login, stop_within))
        }
        config::Manager::Builtin(config) => {
            let known: BTreeMap<_, _> = members.iter().map(|worker| (worker.at, Arc::clone(worker))).collect();
            let span_of = move |at| known.get(&at).map_or_else(Span::none, |worker| worker.control().span());
            let builtin = Builtin::new(name, *config, workers::THIS_PROGRAM.into()).logging_in(span_of);
            Box::new(builtin.succeeding(&service.members().collect::<Vec<_>>()))
        }
        config::Manager::Exec(config) => Box::new(Exec::new(name, config)),
        config::Manager::Systemd { unit, bus, stop_within } => Box::new(Systemd::new(unit, bus, stop_within)),
    }
}

/// Who is not to be started, but looked after if it runs: spares, and the pool that is not current.
fn standby(service: &Service) -> Vec<Arc<Worker>> {
    service.spares.iter().chain(service.pool(1 - service.current())).cloned().collect()
}

/// Has every manager take charge of its workers. What fails is logged: the workers that run are steered all the same.
pub async fn adopt(services: &registry::Services) {
    for service in services.values() {
        let addresses = |all: &[Arc<Worker>]| all.iter().map(|worker| worker.at).collect::<Vec<_>>();
        let (workers, spares) = (addresses(service.workers()), addresses(&standby(service)));
        if let Err(error) = service.manager.adopt(&workers, &spares).await {
            tracing::error!(service = service.config.name, %error, "not all workers are in the manager's hands");
        }
    }
}

/// A worker, and who may change what becomes of it.
pub struct Worker {
    /// Index in the tables.
    pub index: u32,
    /// Where it listens.
    pub at: SocketAddr,
    /// Name of its service, for logs.
    pub service: String,
    /// Index of its service in the tables.
    pub pool: u32,
    control: Mutex<Control>,
    /// What has been found out of the sockets at its address.
    seen: Mutex<Seen>,
    /// Its service's.
    moves: Arc<Moves>,
    /// Where its phases are told.
    history: OnceLock<Arc<History>>,
}

/// What is known of a worker.
#[derive(Debug, Clone)]
pub struct Control {
    owner: Owner,
    /// What it goes through.
    pub phase: Phase,
    /// Why.
    pub reason: String,
    /// Since when, and for this reason.
    pub since: Instant,
    /// Since when, whatever the reason.
    pub entered: Instant,
    /// How often a roll has started it, since the daemon was.
    pub restarts: u64,
    /// For how long it has been draining in all, since the daemon was.
    pub drained: Duration,
    /// How long its warm-ups took that it has passed, in all, since the daemon was.
    pub warmed: Duration,
    /// What it last said it runs.
    pub version: Option<Version>,
    /// What it said instead of a valid version, for messages.
    pub invalid_version: Option<String>,
    /// Cookies of its listening sockets when it was last known to be warm (or was found at the start of the daemon).
    pub listeners: BTreeSet<u64>,
    /// Since when the kernel has it down although the socket is there on which it listened.
    pub doubted: Option<Instant>,
    /// It listens and has not answered when it was asked: how, in words.
    pub silent: Option<String>,
    /// How long a warm-up may take, or the time until it is tried again.
    pub patience: Duration,
}

/// Who may change a worker's word.
#[derive(Debug, Clone)]
pub enum Owner {
    /// The watch over crashes and restarts.
    Watch,
    /// A roll.
    Roll(String),
    /// An operator's drain.
    Hand {
        /// Who asked for it, or last for its end.
        by: String,
        /// Ends it.
        end: Arc<Notify>,
    },
    /// Somebody who has it enabled after a failure.
    Enabling(String),
}

impl Worker {
    /// A worker of which nothing is known yet.
    #[must_use]
    pub fn new(index: u32, at: SocketAddr, service: &str, pool: u32) -> Self {
        let control = Control {
            owner: Owner::Watch,
            phase: Phase::Down,
            reason: String::new(),
            since: Instant::now(),
            entered: Instant::now(),
            restarts: 0,
            drained: Duration::ZERO,
            warmed: Duration::ZERO,
            version: None,
            invalid_version: None,
            listeners: BTreeSet::new(),
            doubted: None,
            silent: None,
            patience: Duration::ZERO,
        };
        let (moves, history) = (Arc::default(), OnceLock::new());
        let (control, seen) = (Mutex::new(control), Mutex::default());
        Self { index, at, service: service.to_owned(), pool, control, seen, moves, history }
    }

    /// The end of a quarantine of it that begins now, in milliseconds of `CLOCK_MONOTONIC`: it does not run out while a
    /// daemon that lives is at its warm-up.
    #[must_use]
    pub fn quarantine(&self, tables: &Tables) -> u64 {
        tables.quarantine(self.pool) + self.control().patience.as_millis() as u64
    }

    /// What is known of it; hold it for a moment only.
    pub fn control(&self) -> MutexGuard<'_, Control> {
        // What a panicking holder left is still a valid record.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been found out of the sockets at its address; hold it for a moment only, and take no other lock under it.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an owner other than the watch.
    ///
    /// # Errors
    /// Who owns it already, in words.
    pub fn claim(self: &Arc<Self>, owner: Owner) -> Result<Claim, String> {
        let mut control = self.control();
        if let Some(owned) = self.owned(&control.owner) {
            return Err(owned);
        }
        control.owner = owner;
        Ok(Claim(Arc::clone(self)))
    }

    /// Notes a phase and logs it, once; returns the phase before.
    pub fn enter(&self, phase: Phase, reason: &str) -> Phase {
        let mut control = self.control();
        let was = control.phase;
        if was == phase && control.reason == reason {
            return was;
        }
        let now = Instant::now();
        if was != phase {
            let took = now - control.entered;
            self.moves.left(was, took, phase);
            match (was, phase) {
                (Phase::Draining, _) => control.drained += took,
                (Phase::Warming, Phase::Up) => control.warmed += took,
                _ => {}
            }
            control.restarts += u64::from(phase == Phase::Starting);
            control.entered = now;
        }
        control.phase = phase;
        reason.clone_into(&mut control.reason);
        control.since = now;
        let _in = control.span().entered();
        info!(service = self.service, worker = %self.at, ?phase, ?was, reason, "worker");
        if let Some(history) = self.history.get() {
            history.phase(control.by(), About::worker(&self.service, self.at), phase, reason);
        }
        was
    }

    /// Tells how it was found if that is news; from here on it tells its phases there.
    pub fn tell_in(&self, history: &Arc<History>) {
        // Held, so that no phase is entered between the two.
        let control = self.control();
        if self.history.set(Arc::clone(history)).is_ok() {
            let by = if control.is_watched() { By::Daemon } else { control.by() };
            history.found(by, About::worker(&self.service, self.at), control.phase, &control.reason);
        }
    }
}

impl Control {
    /// What of it outlives the daemon.
    #[must_use]
    pub fn known(&self) -> WorkerState {
        WorkerState {
            // Who listens is looked at anew; and a deployer that is older than this phase must be able to read it.
            phase: if self.phase == Phase::Stranger { Phase::Down } else { self.phase },
            reason: self.reason.clone(),
            version: self.version.clone(),
            listeners: self.listeners.clone(),
            drained: None,
        }
    }

    /// Of the roll that has it in hand, for the log.
    #[must_use]
    pub fn span(&self) -> Span {
        self.roll().map_or_else(Span::none, log::of_roll)
    }

    /// Whether the watch may act on the worker.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        matches!(self.owner, Owner::Watch)
    }

    /// The notice that ends an operator's drain.
    #[must_use]
    pub fn by_hand(&self) -> Option<Arc<Notify>> {
        match &self.owner {
            Owner::Hand { end, .. } => Some(Arc::clone(end)),
            _ => None,
        }
    }

    /// Takes note of who ends an operator's drain.
    pub fn ended_by(&mut self, who: &str) {
        if let Owner::Hand { by, .. } = &mut self.owner {
            who.clone_into(by);
        }
    }

    /// The roll that has it in hand.
    #[must_use]
    pub fn roll(&self) -> Option<&str> {
        if let Owner::Roll(id) = &self.owner { Some(id) } else { None }
    }

    /// Who moves it, for the history.
    fn by(&self) -> By<'_> {
        match &self.owner {
            Owner::Watch => By::Watch,
            Owner::Roll(id) => By::Roll(id),
            Owner::Hand { by, .. } | Owner::Enabling(by) => By::Somebody(by),
        }
    }
}

/// The right to change a worker; ends when dropped.
pub struct Claim(Arc<Worker>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.control().owner = Owner::Watch;
    }
}

/// Cookies of the sockets that listen where a worker should: at its address, or on a wildcard address.
///
/// # Errors
/// When sock_diag fails.
pub async fn listeners(at: SocketAddr) -> std::io::Result<BTreeSet<u64>> {
    let found = blocking(move || diag::sockets(diag::states::LISTEN, Some(at.port()))).await?;
    Ok(found.iter().filter(|socket| serves(socket.local, at)).map(|socket| socket.cookie).collect())
}

/// Whether a listener at `local` gets the connections to `at`.
#[must_use]
pub fn serves(local: SocketAddr, at: SocketAddr) -> bool {
    local.port() == at.port() && (local.ip() == at.ip() || local.ip().is_unspecified())
}

/// Waits until a worker has closed the daemon's own connections, the last of which is over when its answer has come; not for
/// long. What it closes after that counts for whoever comes next.
pub async fn closes(tables: &Tables, worker: &Worker) {
    let until = Instant::now() + Duration::from_millis(100);
    while tables.counts().worker(worker.index).open > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs what blocks (netlink, membarrier) away from the reactor.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// Puts a worker back into rotation from whatever state this owner has put it in, and takes note of its listeners.
pub fn put_up(tables: &Tables, worker: &Worker, listeners: BTreeSet<u64>, reason: &str) -> WorkerWord {
    {
        let mut control = worker.control();
        control.listeners = listeners;
        control.doubted = None;
        control.silent = None;
    }
    let word = tables.publish(worker.index, State::Up, 0);
    worker.enter(Phase::Up, reason);
    word
}
