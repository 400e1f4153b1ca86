//! Tends a worker: starts it again when it ends unasked, and rotates its log. What is done while a roll has the worker in
//! hand is logged as the roll's.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Instrument as _, info, warn};

use super::{
    process::Process,
    worker::{State, Worker},
};
use crate::service::{blocking, listeners};

/// Between two looks at the size of a log.
const LOG: Duration = Duration::from_secs(5);

/// For as long as a manager names the worker.
pub(super) async fn tend(worker: Weak<Worker>) {
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

/// Its time has come.
async fn again(worker: &Worker) {
    let _turn = worker.turn.lock().await;
    let (state, failures) = {
        let view = worker.view();
        (view.state.clone(), view.failures)
    };
    if !matches!(state, State::Waiting(until) if until <= std::time::Instant::now()) {
        return;
    }
    // Not in its cgroup, or what is left there holds its port.
    if matches!(worker.place.is_populated(), Ok(false))
        && listeners(worker.at).await.is_ok_and(|found| !found.is_empty())
    {
        warn!(worker = worker.name(), at = %worker.at, "not started: somebody else listens at its address");
        worker.again(failures + 1, format!("a process of somebody else listens at {}", worker.at));
        return;
    }
    if let Err(trouble) = worker.launch().await {
        warn!(worker = worker.name(), %trouble, "cannot be started; trying again");
        worker.again(failures + 1, trouble.to_string());
    }
}
