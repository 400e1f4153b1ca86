//! Whether a worker that listens also answers. A worker that hangs keeps its socket, and the kernel goes on accepting
//! connections for it: such a worker must not be given any.
//!
//! It is asked where it comes back without having been started: after a drain that did not end in a stop, and when a daemon
//! finds it serving. A worker that does not answer is cold; the watch warms it again every few seconds, and it is up when
//! that succeeds.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use deployer_common::word::State;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{Service, Worker, blocking, identity};
use crate::{
    api::Phase,
    kernel::{
        Tables,
        diag::{self, states},
        procs,
    },
    warm::{self, WarmError},
    workers::ProcessPhase,
};

/// The longest wait for an answer of a worker that has been warm before.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks whether a worker has accepted a connection.
const LOOK: Duration = Duration::from_millis(20);
/// Between two questions to a worker that was found serving and has refused the first.
const AGAIN: Duration = Duration::from_millis(250);
/// For at least so long a worker that was found serving must have failed to answer before it is taken out: one refusal may be
/// chance.
const FAILS_FOR: Duration = Duration::from_secs(1);
/// Workers of a service that are asked at the same time.
const AT_A_TIME: usize = 32;
/// How long the manager may take to say what it knows of a worker that does not answer.
const MANAGER_WITHIN: Duration = Duration::from_secs(2);

/// Sends a worker its first warm-up request; where none is configured, its version request; where neither is, connects and
/// waits until the worker has accepted that connection. The limit is 5 s, or `warm.within` where that is shorter.
///
/// # Errors
/// What it did instead: "it does not answer `GET /`: no answer within 5.0 s".
pub async fn answers(service: &Service, at: SocketAddr) -> Result<(), String> {
    let (config, within) = (&service.config, limit(service));
    let silent = |request: String, why: String| format!("it does not answer `{request}`: {why}");
    if let Some(request) = config.warm.requests.first() {
        return warm::ask(at, request, within).await.map_err(|why| silent(warm::label(request), why));
    }
    match &config.version {
        None => accepts(at, within).await.map_err(|why| format!("it does not answer: {why}")),
        Some(ask) => match warm::version(at, ask, within).await {
            Err(WarmError::NoVersion { request, why, .. }) => Err(silent(request, why)),
            _ => Ok(()),
        },
    }
}

fn limit(service: &Service) -> Duration {
    service.config.warm.within.min(LIMIT)
}

/// Connects, and waits until a process has the connection: as long as it is in the queue of the listener, sock_diag shows it
/// without an inode.
async fn accepts(at: SocketAddr, within: Duration) -> Result<(), String> {
    let until = Instant::now() + within;
    let stream = warm::connect(at, within).await?;
    let Ok(local) = stream.local_addr() else { return Ok(()) };
    loop {
        let found = blocking(move || diag::sockets(states::ESTABLISHED | states::CLOSE_WAIT, Some(local.port()))).await;
        // What the kernel does not show is not held against the worker.
        let Ok(found) = found else { return Ok(()) };
        let accepted = found.iter().find(|socket| socket.local == at && socket.peer == local);
        if accepted.is_none_or(|socket| socket.inode != 0) {
            return Ok(());
        }
        if Instant::now() >= until {
            let seconds = within.as_secs_f32();
            return Err(format!("it has not accepted a connection within {seconds:.1} s; its process hangs"));
        }
        sleep(LOOK).await;
    }
}

/// What is said of a worker that stays out because it does not answer: `why` as [`answers`] says it.
#[must_use]
pub fn stays_out(why: &str) -> String {
    format!(
        "{why}; it stays out, and is warmed again every few seconds. Next: see the log of its process, or restart it"
    )
}

/// Takes note that a worker listens at these sockets and does not answer: the watch warms it again. The caller publishes it
/// as cold.
pub fn keep_out(worker: &Worker, listeners: BTreeSet<u64>, why: &str) {
    let mut control = worker.control();
    control.listeners = listeners;
    control.doubted = None;
    control.silent = Some(why.to_owned());
}

/// Asks all workers that were found serving, of these services, once. They serve on while they are asked. A worker that does
/// not answer is taken out when another of its service has answered, or after the whole of `warm.within`: where all are slow,
/// the request is.
pub async fn ask_found(services: Vec<Arc<Service>>, tables: Arc<Tables>) {
    let mut asked = JoinSet::new();
    for service in services {
        let (others, room) = (Arc::new(AtomicBool::new(false)), Arc::new(Semaphore::new(AT_A_TIME)));
        let found: Vec<_> = service.members().filter(|worker| is_found(worker)).cloned().collect();
        for worker in found {
            let (service, tables) = (Arc::clone(&service), Arc::clone(&tables));
            let (others, room) = (Arc::clone(&others), Arc::clone(&room));
            asked.spawn(async move {
                let Ok(_room) = room.acquire().await else { return };
                match ask_one(&service, &worker, &others).await {
                    Ok(()) => tell_left_over(&service, &worker).await,
                    Err(why) => take_out(&service, &worker, &tables, &why).await,
                }
            });
        }
    }
    while asked.join_next().await.is_some() {}
}

fn is_found(worker: &Worker) -> bool {
    let control = worker.control();
    control.phase == Phase::Up && control.is_watched()
}

async fn ask_one(service: &Service, worker: &Worker, others: &AtomicBool) -> Result<(), String> {
    let (begun, patience) = (Instant::now(), service.config.warm.within);
    loop {
        let Err(why) = answers(service, worker.at).await else {
            others.store(true, Ordering::Relaxed);
            return Ok(());
        };
        if !is_found(worker) {
            return Ok(());
        }
        if is_hung(begun.elapsed(), patience, others.load(Ordering::Relaxed)) {
            return Err(why);
        }
        sleep(AGAIN).await;
    }
}

/// Whether a worker that was found serving, and has not answered for so long, is to be taken out.
fn is_hung(silent: Duration, patience: Duration, others_answer: bool) -> bool {
    silent >= patience || others_answer && silent >= FAILS_FOR
}

/// Takes a worker out that was found serving and does not answer, unless it is in other hands by now.
async fn take_out(service: &Service, worker: &Worker, tables: &Tables, why: &str) {
    let why = match left_over(service, worker).await {
        Some(whose) => format!("{why}; {whose}"),
        None => stays_out(why),
    };
    let word = tables.word(worker.index);
    if !is_found(worker) || word.state() != State::Up {
        return;
    }
    let listeners = worker.control().listeners.clone();
    if tables.swap(worker.index, word, State::Cold, worker.quarantine(tables)).is_ok() {
        keep_out(worker, listeners, &why);
        worker.enter(Phase::Listening, &format!("was found serving, but {why}"));
    }
}

/// A process that is left over, and answers, serves on: after a restart of the manager all of them may be such. It is told.
async fn tell_left_over(service: &Service, worker: &Worker) {
    let Some(whose) = left_over(service, worker).await else { return };
    if is_found(worker) {
        let reason = worker.control().reason.clone();
        worker.enter(Phase::Up, &format!("{reason}; {whose}"));
    }
}

/// What listens, where the manager says that the worker does not run: a process that is left over.
async fn left_over(service: &Service, worker: &Worker) -> Option<String> {
    let status = tokio::time::timeout(MANAGER_WITHIN, service.manager.status(worker.at)).await.ok()?.ok()?;
    if !matches!(status.phase, ProcessPhase::Stopped | ProcessPhase::Failed) {
        return None;
    }
    let said = if status.detail.is_empty() { String::new() } else { format!(" ({})", status.detail) };
    let (at, name, phase) = (worker.at, service.manager.name(worker.at), status.phase);
    let who = blocking(move || {
        let found = diag::sockets(states::LISTEN, Some(at.port()))?;
        let takers = identity::takers(&found, at);
        let holders = procs::holding(&takers.iter().map(|socket| socket.inode).collect());
        Ok(takers.first().map(|socket| identity::who(socket, &holders)))
    });
    let who = who.await.ok()??;
    Some(format!(
        "the process manager says that {name} is {phase}{said}, so what listens is a process that is left over: {who}. Next: \
         end that process, then start the worker: deployer enable {} {at}",
        worker.service
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn where_all_are_slow_the_request_is() {
        let (second, patience) = (Duration::from_secs(1), Duration::from_secs(20));
        assert!(is_hung(FAILS_FOR, patience, true));
        assert!(!is_hung(FAILS_FOR / 2, patience, true), "one refusal may be chance");
        assert!(!is_hung(10 * second, patience, false));
        assert!(is_hung(patience, patience, false));
    }

    proptest! {
        /// A worker that is hung now is hung later, and whatever others do.
        #[test]
        fn time_only_makes_it_worse(silent: u32, more: u32, patience: u32, others: bool) {
            let of = |ms: u64| Duration::from_millis(ms);
            let (silent, later) = (of(silent.into()), of(u64::from(silent) + u64::from(more)));
            if is_hung(silent, of(patience.into()), others) {
                prop_assert!(is_hung(later, of(patience.into()), others));
                prop_assert!(is_hung(silent, of(patience.into()), true));
            }
        }
    }
}
