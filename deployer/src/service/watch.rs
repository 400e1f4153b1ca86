//! The watch: workers that crash, restart or appear by themselves are noticed, warmed and put into rotation. It looks ten
//! times a second, and touches only workers that no roll and no operator holds.

mod found;
mod waits;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::word::{State, WorkerWord};
pub use found::{adopt, take_over};
use tokio::sync::Notify;
use tracing::warn;

use super::{
    Service, Worker,
    alive::Beat,
    blocking,
    identity::{self, Listening, seen::Listens},
    registry::Registry,
};
use crate::{
    api::Phase,
    kernel::{Tables, diag, host},
    log::recurring::Recurring,
    metrics::Ledger,
    warm::{self, WarmError},
};

const TICK: Duration = Duration::from_millis(100);
/// Between two tries to warm a worker that failed its warm-up outside a roll.
pub(super) const AGAIN: Duration = Duration::from_secs(5);
/// How long a socket may outlive the process that it was taken to be closed with.
const DOUBT: Duration = Duration::from_secs(5);
/// Between two looks at caller rules and seeds.
const SLOW: Duration = Duration::from_secs(1);
/// How long a worker may take to say what it runs.
const ASKED_WITHIN: Duration = Duration::from_secs(2);
/// The same while nobody is let in; after that it is asked once more.
const SOON: Duration = Duration::from_millis(200);
/// So long an address stays a stranger's after it was found to be, whatever comes and goes there.
const STRANGER: Duration = Duration::from_secs(5);
const BY_ITSELF: &str = "has started by itself";
const ANSWERS: &str = "answers again, and is warm";

/// Watches for ever; `news` has it look at once, and `beat` tells that it does.
pub async fn run(
    (registry, tables, ledger): (Arc<Registry>, Arc<Tables>, Arc<Ledger>),
    (news, beat): (Arc<Notify>, Arc<Beat>),
) {
    let mut slow = Instant::now();
    let [mut looks, mut counts, mut callers] = [const { Recurring::new() }; 3];
    loop {
        beat.beat();
        let _ = tokio::time::timeout(TICK, news.notified()).await;
        let looked = tick(&registry, &tables, &ledger, &news).await;
        looks.note(&looked, "look at the listening sockets");
        if slow.elapsed() >= SLOW {
            slow = Instant::now();
            let counted = reseed(&registry, &tables).await;
            counts.note(&counted, "count the connections older than the programs");
            let registry = Arc::clone(&registry);
            let refreshed = tokio::task::spawn_blocking(move || registry.refresh_callers()).await;
            if let Ok(refreshed) = refreshed {
                let refreshed = refreshed.map_err(|error| format!("{error:#}"));
                callers.note(&refreshed, "publish changed callers");
            }
        }
    }
}

/// Asks every worker that is up what it runs.
pub async fn ask_versions(registry: Arc<Registry>) {
    for service in registry.services().values() {
        for worker in service.members() {
            // Also whose version is written down: code may be exchanged behind the same sockets.
            if worker.control().phase == Phase::Up {
                ask_version(service, worker, ASKED_WITHIN).await;
            }
        }
    }
}

async fn ask_version(service: &Service, worker: &Worker, within: Duration) {
    let Some(ask) = &service.config.version else { return };
    match warm::version(worker.at, ask, within).await {
        Ok(version) => {
            let mut control = worker.control();
            (control.version, control.invalid_version) = (Some(version), None);
        }
        Err(error) => {
            warn!(%error, "the version stays unknown");
            if let WarmError::InvalidVersion { shown, .. } = error {
                note_invalid(worker, shown);
            }
        }
    }
}

/// Shows that a worker reports a version that is not valid, once.
fn note_invalid(worker: &Worker, shown: String) {
    let said = warm::reports_invalid(&shown);
    let (phase, reason) = {
        let mut control = worker.control();
        (control.version, control.invalid_version) = (None, Some(shown));
        (control.phase, control.reason.clone())
    };
    if phase == Phase::Up && !reason.ends_with(&said) {
        let before = if reason.is_empty() { reason } else { format!("{reason}; ") };
        worker.enter(phase, &format!("{before}{said}"));
    }
}

async fn tick(
    registry: &Registry,
    tables: &Arc<Tables>,
    ledger: &Arc<Ledger>,
    news: &Arc<Notify>,
) -> std::io::Result<()> {
    let words = words(registry, tables);
    let listening = Listening::look().await?;
    for service in registry.services().values() {
        let mut due = BTreeMap::new();
        for worker in service.members() {
            let found = listening.at(worker.at);
            let listens = {
                let mut seen = worker.seen();
                seen.retain(&found);
                seen.listens(&found, worker.at)
            };
            // A word that has changed since belongs to an owner that came after the look: not ours to judge by it.
            let Some(word) = words.get(&worker.index) else { continue };
            if let Some(cold) = judge(service, worker, tables, *word, listens) {
                let (service, worker) = (Arc::clone(service), Arc::clone(worker));
                tokio::spawn(warm_up(service, worker, Arc::clone(tables), Arc::clone(ledger), cold));
            }
            waits::tell(service, worker);
            if worker.seen().ask(&found) {
                due.insert(worker.index, found);
            }
        }
        if !due.is_empty() {
            identity::ask_apart(service, due, news);
        }
    }
    look_for_squatters(registry, listening).await
}

/// Who listens where nothing should is logged once, and stays in the daemon's trouble as long as it does.
async fn look_for_squatters(registry: &Registry, listening: Listening) -> std::io::Result<()> {
    let services = registry.services();
    let mut squatters = registry.squatters().clone();
    let looked = blocking(move || {
        let new = squatters.look(services.values().map(|service| &**service), &listening);
        Ok((squatters, new))
    });
    let (squatters, new) = looked.await?;
    *registry.squatters() = squatters;
    new.iter().for_each(|squatter| warn!("{squatter}"));
    Ok(())
}

/// The words of the workers that are ours to watch.
fn words(registry: &Registry, tables: &Tables) -> BTreeMap<u32, WorkerWord> {
    let services = registry.services();
    let workers = services.values().flat_map(|service| service.members());
    workers
        .filter(|worker| worker.control().is_watched())
        .map(|worker| (worker.index, tables.word(worker.index)))
        .collect()
}

/// A process that has started by itself: the word that it was given, and where it listens.
type Cold = (WorkerWord, BTreeSet<u64>);

/// What is to be warmed, if that has been found.
fn judge(service: &Service, worker: &Worker, tables: &Tables, word: WorkerWord, listens: Listens) -> Option<Cold> {
    let (phase, known, since) = {
        let control = worker.control();
        if !control.is_watched() {
            return None;
        }
        (control.phase, control.listeners.clone(), control.since)
    };
    let found = match listens {
        _ if phase == Phase::Failed => return None,
        Listens::Nothing => BTreeSet::new(),
        Listens::Worker(found) => found,
        // What comes after a stranger is kept out like one until it is known: that is a matter of milliseconds.
        Listens::Unknown(None) if phase == Phase::Stranger => return None,
        other => {
            keep_out(worker, tables, word, other);
            return None;
        }
    };
    let same = !found.is_empty() && !found.is_disjoint(&known);
    match phase {
        Phase::Up if same && word.state() == State::Down && !is_doubtful(worker, tables) => {}
        // Another socket of it may have come and gone between two looks; what was up all the while has been warm.
        Phase::Up if same && !matches!(word.state(), State::Cold | State::Down | State::Stranger) => {
            let mut control = worker.control();
            control.listeners = found;
            control.doubted = None;
        }
        _ if found.is_empty() => {
            worker.control().doubted = None;
            // One that comes and goes is told of once in a while.
            if phase == Phase::Stranger && since.elapsed() < STRANGER {
                return None;
            }
            let why = if phase == Phase::Stranger {
                "the stranger has gone"
            } else {
                "nothing listens: its process has ended"
            };
            if phase != Phase::Down && tables.swap(worker.index, word, State::Down, 0).is_ok() {
                worker.enter(Phase::Down, why);
            }
        }
        // A warm-up ends within its limit; longer, and its task has been lost.
        Phase::Warming if same && since.elapsed() < service.config.warm.within + AGAIN => {}
        Phase::Listening if same && since.elapsed() < AGAIN => {}
        _ => {
            // New listeners: a process that has started by itself. Cold first, whatever it was.
            let cold = tables.swap(worker.index, word, State::Cold, worker.quarantine(tables)).ok()?;
            let silent = {
                let mut control = worker.control();
                control.listeners.clone_from(&found);
                // Another process may answer.
                control.silent.take_if(|_| !same);
                control.silent.clone()
            };
            worker.enter(Phase::Listening, silent.as_deref().unwrap_or(BY_ITSELF));
            return Some((cold, found));
        }
    }
    None
}

/// Keeps callers from what is not the worker, or is not known to be.
///
/// - A stranger is sent nothing at all, nor is what the manager disowns just now.
/// - What the manager could not be asked about is in quarantine: the last resort. It does not run out while this daemon
///   lives.
fn keep_out(worker: &Worker, tables: &Tables, word: WorkerWord, listens: Listens) {
    let (state, phase, reason) = match listens {
        Listens::Stranger(who) => (State::Stranger, Phase::Stranger, who),
        Listens::Doubtful(who) => (State::Stranger, Phase::Listening, format!("not known as the worker yet: {who}")),
        Listens::Unknown(Some(why)) => (
            State::Cold,
            Phase::Listening,
            format!("stays cold until its manager says whether it is the worker: {why}"),
        ),
        Listens::Unknown(None) => (State::Cold, Phase::Listening, BY_ITSELF.to_owned()),
        Listens::Worker(_) | Listens::Nothing => return,
    };
    // The same address, the next stranger.
    let reason = match worker.control() {
        control if control.phase == phase && phase == Phase::Stranger && control.since.elapsed() < STRANGER => {
            control.reason.clone()
        }
        _ => reason,
    };
    let left = word.lease_ms().saturating_sub(host::now_ms());
    let lasts = state != State::Cold || left > worker.control().patience.as_millis() as u64 / 2;
    let is_so = word.state() == state && lasts;
    let lease = if state == State::Cold { worker.quarantine(tables) } else { 0 };
    if !is_so && tables.swap(worker.index, word, state, lease).is_err() {
        return;
    }
    {
        let mut control = worker.control();
        control.listeners.clear();
        control.doubted = None;
    }
    worker.enter(phase, &reason);
}

/// The kernel has seen a worker's process killed, or its last socket closed; sock_diag still sees the socket it served on.
/// That takes as long as its memory takes to be given back. If it lasts, the kernel may have been wrong: the worker is
/// warmed, which nobody passes who is dead.
fn is_doubtful(worker: &Worker, tables: &Tables) -> bool {
    let since = *worker.control().doubted.get_or_insert_with(Instant::now);
    if since.elapsed() < DOUBT {
        return false;
    }
    worker.control().doubted = None;
    warn!(worker = %worker.at, "was taken for dead, but its socket is still there; it is warmed again");
    tables.counts().forget_listeners(worker.index);
    true
}

/// Warms a worker that has started by itself, and puts it into rotation if it is still the same process and nobody has
/// laid hands on it.
async fn warm_up(
    service: Arc<Service>,
    worker: Arc<Worker>,
    tables: Arc<Tables>,
    ledger: Arc<Ledger>,
    (cold, listeners): Cold,
) {
    ledger.stopped(&worker);
    worker.enter(Phase::Warming, "");
    let result = warm::warm(worker.at, &service.config.warm, service.config.warm.within).await;
    let is_ours = || worker.control().is_watched() && tables.word(worker.index) == cold;
    if !is_ours() {
        return;
    }
    match result {
        Ok(_) => {
            // Before anybody is let in, so that it is known under which version that counts.
            worker.control().version = None;
            ask_version(&service, &worker, SOON).await;
            super::closes(&tables, &worker).await;
            if !is_ours() {
                return;
            }
            ledger.up(&worker);
            let now = identity::look(&service, &worker).await;
            if matches!(now, Ok(Listens::Worker(now)) if !now.is_disjoint(&listeners))
                && tables.swap(worker.index, cold, State::Up, 0).is_ok()
            {
                let was_silent = worker.control().silent.take().is_some();
                worker.enter(Phase::Up, if was_silent { ANSWERS } else { "warm after it had started by itself" });
                if worker.control().version.is_none() {
                    ask_version(&service, &worker, ASKED_WITHIN).await;
                }
            } else if worker.control().is_watched() && tables.word(worker.index) == cold {
                worker.enter(Phase::Listening, "could not be looked at after its warm-up; is warmed again in 5 s");
            }
        }
        Err(error) => {
            let silent = worker.control().silent.clone();
            let why = silent.unwrap_or_else(|| format!("stays cold, and is warmed again in 5 s: {error}"));
            worker.enter(Phase::Listening, &why);
        }
    }
}

/// Counts the connections that are older than the programs, or, later, those of them that are left: what sock_diag sees
/// at the worker's end beyond what the programs have counted. The two looks are not of one instant, so the number can be
/// one or two too low; it steers the choice of a worker and never proves one empty.
async fn seed(worker: &Worker, tables: &Tables, most: u64) -> std::io::Result<()> {
    let (at, index) = (worker.at, worker.index);
    let evidence = blocking(move || diag::Evidence::look(at, diag::listens_on_all(at)?, None)).await?;
    let states = diag::states::ESTABLISHED | diag::states::CLOSE_WAIT;
    // The programs count those whose caller is gone as well, until the worker closes them.
    let all = evidence.accepted(at).chain(evidence.left(at));
    let at_worker = all.filter(|socket| socket.is_in(states)).count() as u64;
    tables.set_seed(index, at_worker.saturating_sub(tables.counts().worker(index).open).min(most));
    Ok(())
}

/// Corrects the seeds of the workers that have any.
async fn reseed(registry: &Registry, tables: &Tables) -> std::io::Result<()> {
    for worker in registry.services().values().flat_map(|service| service.members()) {
        let known = tables.seed(worker.index);
        if known > 0 {
            seed(worker, tables, known).await?;
        }
    }
    Ok(())
}
