//! Tends a worker: starts it again when it ends unasked, and rotates its log. What is done while a roll has the worker in
//! hand is logged as the roll's.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Instrument as _, error, info, warn};

use super::{
    process::Process,
    worker::{State, Worker},
};
use crate::{
    failpoint,
    kernel::{diag, procs},
    panics::panicked,
    service::{
        blocking,
        identity::{takers, who},
        listeners,
    },
};

/// Between two looks at the size of a log.
const LOG: Duration = Duration::from_secs(5);
/// Between two looks whether the address of a worker is free by now.
const PORT: Duration = Duration::from_millis(100);
/// Before a task that has panicked begins again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// For as long as a manager names the worker. A task that panics, which is a bug of the daemon, is told, and begins again:
/// a worker that no task tends would stay down when it ends.
pub(super) async fn tend(worker: Weak<Worker>) {
    while let Err(error) = tokio::spawn(tend_once(worker.clone())).await {
        let (Some(why), Some(worker)) = (panicked(error), worker.upgrade()) else { return };
        error!(worker = worker.name(), why, "the task that tends a worker has panicked; it begins again");
        tokio::time::sleep(AFTER_PANIC).await;
    }
}

async fn tend_once(worker: Weak<Worker>) {
    failpoint::task("tend").await;
    loop {
        // Not held while waiting.
        let Some((state, changed)) =
            worker.upgrade().map(|worker| (worker.view().state.clone(), Arc::clone(&worker.changed)))
        else {
            return;
        };
        match state {
            State::Running(process) => tokio::select! {
                () = process.fd.ended() => {
                    let Some(worker) = worker.upgrade() else { return };
                    ended(&worker, &process).instrument(worker.span()).await;
                }
                () = changed.notified() => {}
                () = tokio::time::sleep(LOG) => {
                    let Some(worker) = worker.upgrade() else { return };
                    rotate(&worker).instrument(worker.span()).await;
                }
            },
            State::Waiting(until) => tokio::select! {
                () = tokio::time::sleep_until(Instant::from_std(until)) => {
                    let Some(worker) = worker.upgrade() else { return };
                    again(&worker).instrument(worker.span()).await;
                }
                () = changed.notified() => {}
            },
            State::Blocked(_) => tokio::select! {
                () = tokio::time::sleep(PORT) => {
                    let Some(worker) = worker.upgrade() else { return };
                    again(&worker).instrument(worker.span()).await;
                }
                () = changed.notified() => {}
            },
            State::Unknown | State::Stopped | State::Failed => changed.notified().await,
        }
    }
}

/// Its process has ended.
async fn ended(worker: &Worker, process: &Arc<Process>) {
    let _turn = worker.turn.lock().await;
    let same = matches!(&worker.view().state, State::Running(now) if Arc::ptr_eq(now, process));
    match same {
        true if worker.place.is_marked() => worker.enter(State::Stopped),
        true => worker.crashed(process).await,
        false => {}
    }
}

async fn rotate(worker: &Worker) {
    let log = match worker.log() {
        Ok(log) => log,
        Err(trouble) => return warn!(worker = worker.name(), %trouble, "log not rotated"),
    };
    let path = log.path.display().to_string();
    match blocking(move || log.rotate()).await {
        Ok(true) => info!(worker = worker.name(), path, "log rotated"),
        Ok(false) => {}
        Err(error) => warn!(worker = worker.name(), path, %error, "log not rotated"),
    }
}

/// Its time has come, or its address may be free.
async fn again(worker: &Worker) {
    let _turn = worker.turn.lock().await;
    let (state, failures) = {
        let view = worker.view();
        (view.state.clone(), view.failures)
    };
    let is_due = match state {
        State::Waiting(until) => until <= std::time::Instant::now(),
        State::Blocked(_) => true,
        State::Unknown | State::Stopped | State::Running(_) | State::Failed => false,
    };
    if !is_due || blocked(worker).await {
        return;
    }
    if let Err(trouble) = worker.launch().await {
        warn!(worker = worker.name(), %trouble, "cannot be started; trying again");
        worker.again(failures + 1, trouble.to_string());
    }
}

/// Whether a process that is not in the worker's cgroup listens at its address: the former manager's, most likely. That is no
/// failed start: the worker is started as soon as the address is free.
async fn blocked(worker: &Worker) -> bool {
    // What is left in its own cgroup is ended by the start.
    if !matches!(worker.place.is_populated(), Ok(false))
        || listeners(worker.at).await.is_ok_and(|found| found.is_empty())
    {
        return false;
    }
    // /proc is read once for each process that is in the way.
    let known = worker.blocked_by();
    let at = worker.at;
    let Ok(by) = blocking(move || holder(at, known)).await else { return false };
    let Some(by) = by else { return false };
    let was = worker.blocked_by();
    if was.as_ref() != Some(&by) {
        warn!(worker = worker.name(), at = %worker.at, by, "not started yet: its address is not free; waiting for it");
    }
    worker.block(by);
    true
}

/// The process that listens at an address, in words; `None`: nothing does.
fn holder(at: SocketAddr, known: Option<String>) -> io::Result<Option<String>> {
    let found = diag::sockets(diag::states::LISTEN, Some(at.port()))?;
    let takers = takers(&found, at);
    let Some(first) = takers.first() else { return Ok(None) };
    // Its process ends first, and its socket is closed then: as long as the one is there, so is the other.
    if let Some(known) = known.filter(|known| pid_in(known).is_some_and(procs::exists)) {
        return Ok(Some(known));
    }
    Ok(Some(who(first, &procs::holding(&[first.inode].into()))))
}

/// From "python3 (pid 4711, user www-data)".
fn pid_in(words: &str) -> Option<u32> {
    words.split_once("(pid ")?.1.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number() {
        assert_eq!(pid_in("python3 (pid 4711, user www-data)"), Some(4711));
        assert_eq!(pid_in("a process that cannot be seen (user root)"), None);
    }

    #[test]
    fn the_process_that_listens_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let by = holder(at, None).unwrap().unwrap();
        assert_eq!(pid_in(&by), Some(std::process::id()), "{by}");
        assert_eq!(holder(at, Some("x (pid 4294967295, user y)".to_owned())).unwrap().unwrap(), by);
        drop(listener);
        assert_eq!(holder(at, None).unwrap(), None);
    }
}
