//! The daemon: attaches the programs, watches the workers, runs rolls, answers on its socket.

mod actions;
mod deploy;
mod emergency;
mod enable;
mod error;
mod fleet;
mod floor;
mod former;
mod history;
mod holds;
mod in_use;
mod keeper;
mod lives;
mod losses;
mod lost;
mod manual;
mod metrics;
mod plan;
mod protect;
mod reload;
mod report;
mod selftest;
mod server;
mod settle;
mod start;
mod status;
mod supervise;
mod tasks;
mod trace;
mod unsteered;
mod watchdog;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tracing::{info, warn};

use self::{former::Resumed, supervise::Health};
use crate::{
    api::SelfTest,
    command,
    config::Config,
    journal::{History, Journal, events::Shelf, history::By},
    keepalive::Keepalive,
    kernel::{Attachment, Decisions, Programs, Tables, descriptors},
    launch::THIS_PROGRAM,
    log,
    metrics::Ledger,
    panics::panicked,
    report::Meters,
    roll::{Record, barrier::Barriers, world::World},
    service::{answers, registry::Registry, stopped},
};

/// Rolls that are remembered.
const REMEMBERED: usize = 32;

/// How long clients may take to read what has been written for them when the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Everything the daemon holds.
pub(crate) struct Daemon {
    tables: Arc<Tables>,
    registry: Arc<Registry>,
    world: Arc<dyn World>,
    /// What connections went through, for the rolls' reports.
    meters: Arc<Meters>,
    /// The same by version, for the page of metrics.
    ledger: Arc<Ledger>,
    /// What closes kept-alive connections.
    keepalive: Arc<Keepalive>,
    journal: Arc<Journal>,
    /// With whom this host flips together.
    fleet: Arc<fleet::Fleet>,
    /// The id of this boot of the machine.
    boot: String,
    /// Where the rolls' events outlive the daemon.
    shelf: Shelf,
    /// What happened on this host.
    history: Arc<History>,
    /// What was found at the start and must not be overlooked.
    warnings: Vec<String>,
    attachment: Attachment,
    config: Mutex<Config>,
    /// `None`: detached.
    programs: Mutex<Option<Programs>>,
    /// What the programs tell of decisions; locked by who listens to it.
    decisions: Arc<tokio::sync::Mutex<Decisions>>,
    /// What the last look at links and pins found to be lost.
    lost: Mutex<BTreeSet<String>>,
    /// How many have been found lost in all.
    links_lost: AtomicU64,
    /// Why the page of metrics is not served that is asked for.
    unserved: Mutex<Option<String>>,
    /// What the kernel has refused to the programs.
    losses: Mutex<losses::Losses>,
    /// By service: the last refused `bind()` calls to its protected addresses, in words.
    refused_binds: Mutex<BTreeMap<String, String>>,
    /// When it was started, milliseconds since 1970.
    begun_ms: u64,
    /// What is known of callers that are not steered.
    watched: unsteered::Watched,
    /// The last self-test.
    self_test: Mutex<Option<SelfTest>>,
    /// What held the drains when it was asked last. No other lock is taken under it.
    holds: tokio::sync::Mutex<holds::Looked>,
    /// What waits to be applied.
    reloads: reload::Reloads,
    /// The youngest last.
    rolls: Mutex<Vec<Arc<Record>>>,
    /// Held while something is looked at and then changed (a roll begun, a worker claimed, the configuration read again,
    /// steering ended), so that none of these comes between the look and the change of another. Never over an await.
    gate: Mutex<()>,
    /// Held while trouble is looked for and told.
    told: Mutex<()>,
    /// The daemon was asked to stop, and begins nothing any more.
    closing: AtomicBool,
    /// How the daemon itself is.
    health: Health,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // None of these is left half changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration is wrong, the kernel refuses, or the socket cannot be made.
pub async fn run(path: &Path) -> Result<()> {
    log::to_stderr();
    command::launched_by(Path::new(THIS_PROGRAM));
    // First of all: until they are caught, a reload asked for ends the process.
    let mut signals = Signals::catch()?;
    descriptors::raise();
    let config = Config::load_safe(path)?;
    let path_of_socket = config.daemon.socket.clone();
    let (daemon, socket, events) = start::start(config).await?;
    daemon.reloads.file.get_or_init(|| path.to_owned());
    let page = daemon.bind_metrics().await;
    let end = Arc::new(Notify::new());
    let mut server = tokio::spawn(server::run(socket.publish()?, Arc::clone(&daemon), Arc::clone(&end)));
    // The watchdog asks the server.
    let mut tasks = daemon.tasks(events, page);
    // Outside systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let unserved = tokio::select! {
        () = signals.until_stopped(&daemon) => None,
        ended = &mut server => Some(ended.err().and_then(panicked).unwrap_or_else(|| "it has returned".to_owned())),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.wind_up().await;
    // Waited for: they tell what they still have to tell.
    let _ = tokio::time::timeout(LAST_WORDS, tasks.shutdown()).await;
    let _ = tokio::time::timeout(LAST_WORDS, daemon.fleet.leave_lines()).await;
    daemon.note();
    // What cannot be written has been told.
    let _ = daemon.journal.flush().await;
    daemon.close_ledger().await;
    daemon.tell_stopped().await;
    // Who follows a roll is to read its last words; who reads nothing is not waited for.
    end.notify_one();
    if unserved.is_none() {
        let _ = tokio::time::timeout(LAST_WORDS, server).await;
    }
    // Drains, and what clients have asked for, went on until here.
    daemon.keep_history().await;
    daemon.shelf.disk().flush(LAST_WORDS).await;
    let _ = std::fs::remove_file(path_of_socket);
    info!("stopped; the programs go on steering (deployer detach takes them out of the kernel)");
    unserved.map_or(Ok(()), |why| {
        Err(anyhow::anyhow!("the task that answers on the API's socket has ended: {why}; start the daemon again"))
    })
}

/// What an operator or init system asks of the daemon. What is asked before it is ready is done when it is.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("listening for SIGHUP")?,
        })
    }

    async fn until_stopped(&mut self, daemon: &Arc<Daemon>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                // What came of it is in the log.
                _ = self.hangup.recv() => drop(daemon.reload(By::Hangup).await),
            }
        }
    }
}

impl Daemon {
    fn rolls(&self) -> MutexGuard<'_, Vec<Arc<Record>>> {
        lock(&self.rolls)
    }

    /// The roll of a service that has not ended.
    fn running(&self, service: &str) -> Option<Arc<Record>> {
        let rolls = self.rolls();
        rolls.iter().rev().find(|roll| roll.service == service && roll.result().is_none()).cloned()
    }

    /// Drops the oldest rolls that have ended.
    fn forget(&self) {
        let mut rolls = self.rolls();
        while rolls.len() > REMEMBERED {
            let Some(ended) = rolls.iter().position(|roll| roll.result().is_some()) else { return };
            self.shelf.remove(&rolls.remove(ended).id);
        }
    }

    /// Goes on with what the daemon before has left.
    fn go_on(self: &Arc<Self>, resumed: Resumed) {
        self.count_on(&resumed);
        *self.rolls() = resumed.records;
        self.forget();
        for (worker, drained) in resumed.drains {
            self.hold_again(&worker, &drained);
        }
        self.tell_bypassed();
        self.tell_found(By::Daemon);
        for mut roll in resumed.rolls {
            roll.barriers = Barriers::of(self.coordinator());
            self.run_roll(roll);
        }
        self.note();
    }

    /// Has the journal know what is known of the workers.
    fn note(&self) {
        let services = self.registry.services();
        self.journal.refresh(|state| settle::note(state, &services));
    }

    /// Asks the workers that were found serving whether they answer, and says why others are down; but of services that were
    /// `known` before.
    async fn look_at_found(self: Arc<Self>, known: BTreeSet<String>) {
        let services = self.registry.services();
        let new = || services.values().filter(|service| !known.contains(&service.config.name)).cloned().collect();
        tokio::join!(answers::ask_found(new(), Arc::clone(&self.tables)), stopped::tell(new()));
    }

    fn attached(&self) -> bool {
        lock(&self.programs).is_some()
    }

    /// Before the daemon goes: the batches in hand are brought through, so that no worker is left out, and the rolls are
    /// left to the next daemon.
    async fn wind_up(&self) {
        let running: Vec<_> = {
            let rolls = self.rolls();
            self.closing.store(true, Ordering::SeqCst);
            rolls.iter().filter(|roll| roll.result().is_none()).cloned().collect()
        };
        for roll in &running {
            warn!(roll = roll.id, "the daemon was asked to stop; the roll is left to the next after the batch in hand");
            roll.suspend();
        }
        for roll in &running {
            roll.over().await;
        }
    }
}
