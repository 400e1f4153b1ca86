//! Why a worker is down that does not come back by itself: its process manager has stopped it on request, or has given up.

use std::{sync::Arc, time::Duration};

use super::{Service, Worker};
use crate::{
    api::Phase,
    workers::{ProcessPhase, ProcessStatus},
};

/// How long a manager may take to answer.
const WITHIN: Duration = Duration::from_secs(2);

/// Tells it, once, of the workers of the current pools for whose being down no reason is known. Where a manager does not
/// answer, nothing is told.
pub async fn tell(services: Vec<Arc<Service>>) {
    for service in services {
        for worker in service.workers().iter().filter(|worker| is_unexplained(worker)) {
            let asked = tokio::time::timeout(WITHIN, service.manager.status(worker.at)).await;
            if let Ok(Ok(status)) = asked
                && let Some(why) = why(&service.manager.name(worker.at), worker, &status)
                && is_unexplained(worker)
            {
                worker.enter(Phase::Down, &why);
            }
        }
    }
}

fn is_unexplained(worker: &Worker) -> bool {
    let control = worker.control();
    control.phase == Phase::Down && control.is_watched() && control.reason.is_empty()
}

/// Why the worker, which its manager calls `name`, does not come back by itself, and what to do; `None`: it may.
#[must_use]
pub fn why(name: &str, worker: &Worker, status: &ProcessStatus) -> Option<String> {
    let (service, at) = (&worker.service, worker.at);
    let said = if status.detail.is_empty() { String::new() } else { format!(" ({})", status.detail) };
    match status.phase {
        ProcessPhase::Stopped => Some(format!(
            "its process manager says that {name} is stopped{said}, and does not start it by itself. Next: deployer enable \
             {service} {at}"
        )),
        ProcessPhase::Failed => Some(format!(
            "its process manager says that {name} has failed{said}. Next: see its log, then deployer enable {service} {at}"
        )),
        ProcessPhase::Starting | ProcessPhase::Running | ProcessPhase::Stopping => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_by_itself_needs_no_reason() {
        let worker = Worker::new(0, "127.0.0.1:8000".parse().unwrap(), "web", 0);
        let of = |phase| {
            let status = ProcessStatus { phase, pid: None, detail: "on request".to_owned() };
            why("web/8000", &worker, &status)
        };
        let stopped = of(ProcessPhase::Stopped).unwrap();
        assert!(stopped.contains("web/8000 is stopped (on request)"), "{stopped}");
        assert!(of(ProcessPhase::Failed).unwrap().ends_with("deployer enable web 127.0.0.1:8000"));
        for phase in [ProcessPhase::Starting, ProcessPhase::Running, ProcessPhase::Stopping] {
            assert_eq!(of(phase), None, "{phase}");
        }
    }
}
