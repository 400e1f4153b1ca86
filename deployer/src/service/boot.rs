//! After a boot of the machine: the pool that is current is started, where the manager of its workers cannot know which
//! that is.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{Service, Worker};
use crate::{
    api::Phase,
    config::{Manager, Mode},
    workers::ProcessPhase,
};

/// So long the manager may take to be there itself.
const WITHIN: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Has those workers of the current pool started that their manager has not started by itself. It is asked again until it
/// has answered for each of them. Not of a service with one pool, of which the manager knows all; and the built-in manager
/// has been told before.
pub async fn raise(service: Arc<Service>) {
    let is_ours = service.config.deploy.is_some() && service.config.mode == Mode::Enforce;
    if !is_ours || matches!(service.config.manager, Manager::Builtin(_)) {
        return;
    }
    let until = Instant::now() + WITHIN;
    let mut open = service.workers().to_vec();
    loop {
        let mut why = None;
        let mut silent = Vec::new();
        for worker in open {
            if let Err(error) = raise_one(&service, &worker).await {
                why = Some(error);
                silent.push(worker);
            }
        }
        let Some(why) = why else { return };
        open = silent;
        if Instant::now() >= until {
            let (service, seconds) = (&service.config.name, WITHIN.as_secs());
            warn!(
                service,
                why, "workers of the current pool were not started within {seconds} s of the boot; start them"
            );
            return;
        }
        sleep(LOOK).await;
    }
}

/// Starts a worker that is stopped, unless a roll or an operator has it in hand, or its pool is not current any more.
async fn raise_one(service: &Service, worker: &Worker) -> Result<(), String> {
    let is_wanted = || {
        let control = worker.control();
        control.is_watched() && control.phase == Phase::Down && service.pool_of(worker) == service.current()
    };
    let is_stopped = |phase| phase == ProcessPhase::Stopped;
    if !is_wanted() || !is_stopped(service.manager.status(worker.at).await.map_err(|error| error.to_string())?.phase) {
        return Ok(());
    }
    if is_wanted() {
        info!(service = service.config.name, worker = %worker.at, "is of the current pool, and is started after the boot");
        service.manager.start(worker.at).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}
