//! `enable`: a worker is put back into rotation by hand. The answer comes when the worker is up, or says what it waited for.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::word::State;
use tokio::time::{sleep, timeout};

use super::{Daemon, error::Refusal, lock, manual};
use crate::{
    api::{Done, EnableRequest, Phase},
    journal::WorkerState,
    roll::start,
    service::{Owner, Service, Worker, listeners, put_up, stopped},
    warm,
    workers::ProcessPhase,
};

/// Between two looks at a worker that is waited for.
const LOOK: Duration = Duration::from_millis(20);
/// Between two questions to its process manager.
const ASK: Duration = Duration::from_millis(500);
/// How long the manager may take for an answer.
const ASKED_WITHIN: Duration = Duration::from_secs(5);

impl Daemon {
    /// Puts a worker back: ends an operator's drain, starts and warms a worker that has failed or is stopped, and waits until
    /// it is up. The limit is that of its warm-up for its start, and once more for its warm-up, unless the request names one.
    pub(super) async fn enable(
        self: &Arc<Self>,
        name: &str,
        request: &EnableRequest,
        by: &str,
    ) -> Result<Done, Refusal> {
        let service = self.service(name)?;
        let worker = manual::worker(&service, request.port)?;
        let within = match request.within_ms {
            Some(ms) => Duration::from_millis(ms),
            None => 2 * service.config.warm.within,
        };
        let limit = Limit { until: Instant::now() + within, within };
        let end = worker.control().by_hand();
        if end.is_none() && worker.control().phase == Phase::Up {
            return Ok(Done { done: format!("{} was up already", worker.at) });
        }
        if let Some(end) = end {
            worker.control().ended_by(by);
            end.notify_one();
            // The task that holds the drain asks the worker whether it answers, and lets it go.
            while worker.control().by_hand().is_some() {
                if Instant::now() >= limit.until {
                    return Err(limit.missed(worker, "its answer to a request, which ends its drain", ""));
                }
                sleep(LOOK / 4).await;
            }
        }
        self.until_up(&service, worker, by, &limit).await
    }

    /// Waits until a worker is up. One that does not come up by itself is started.
    async fn until_up(
        self: &Arc<Self>,
        service: &Arc<Service>,
        worker: &Arc<Worker>,
        by: &str,
        limit: &Limit,
    ) -> Result<Done, Refusal> {
        let mut manager = Asked::default();
        loop {
            let (phase, reason) = {
                let control = worker.control();
                (control.phase, control.reason.clone())
            };
            if let Some(whose) = worker.in_other_hands() {
                return Err(Refusal::busy(format!(
                    "{whose}, which brings the worker up or says why not. Next: enable it when that is over"
                )));
            }
            let is_being_enabled = worker.control().is_being_enabled();
            match phase {
                Phase::Up => return Ok(Done { done: format!("{} is back in rotation", worker.at) }),
                Phase::Stranger => {
                    return Err(Refusal::failed(format!("{} cannot be enabled: {reason}", worker.at)));
                }
                Phase::Failed if !is_being_enabled => return self.start_again(service, worker, by, limit).await,
                Phase::Down if !is_being_enabled => {
                    manager.ask(service, worker).await;
                    if manager.is_stopped() {
                        return self.start_again(service, worker, by, limit).await;
                    }
                }
                _ => {}
            }
            if Instant::now() >= limit.until {
                return Err(limit.missed(worker, &waited_for(phase, &reason), &manager.words));
            }
            sleep(LOOK).await;
        }
    }

    /// In a task of its own, which comes to its end even if the client does not wait for it.
    async fn start_again(
        self: &Arc<Self>,
        service: &Arc<Service>,
        worker: &Arc<Worker>,
        by: &str,
        limit: &Limit,
    ) -> Result<Done, Refusal> {
        let (daemon, service, worker) = (Arc::clone(self), Arc::clone(service), Arc::clone(worker));
        let (by, until) = (by.to_owned(), limit.until.min(Instant::now() + service.config.warm.within));
        let revived = tokio::spawn(async move { daemon.revive(&service, &worker, by, until).await });
        revived.await.unwrap_or_else(|error| Err(Refusal::failed(error.to_string())))
    }

    async fn revive(
        &self,
        service: &Service,
        worker: &Arc<Worker>,
        by: String,
        until: Instant,
    ) -> Result<Done, Refusal> {
        let _claim = {
            let _gate = lock(&self.gate);
            let still = self.service(&service.config.name)?;
            if !still.members().any(|now| Arc::ptr_eq(now, worker)) {
                return Err(Refusal::busy("the configuration was read again just now; try again"));
            }
            worker.claim(Owner::Enabling(by)).map_err(Refusal::busy)?
        };
        let (was, why) = {
            let control = worker.control();
            (control.phase, control.reason.clone())
        };
        worker.enter(Phase::Warming, "enabled by hand");
        match self.warm_again(service, worker, until).await {
            Ok(serving) => {
                let (phase, listeners) = (Phase::Up, serving.clone());
                let known = WorkerState { phase, listeners, ..worker.control().known() };
                let written = self.journal.commit(|state| state.revived(&worker.service, worker.at, known));
                // At worst it is found failed, and out, by the next daemon.
                let _ = written.await;
                self.ledger.up(worker);
                put_up(&self.tables, worker, serving, "enabled by hand");
                Ok(Done { done: format!("{} is warm, and back in rotation", worker.at) })
            }
            Err(error) if was == Phase::Failed => {
                worker.enter(Phase::Failed, &why);
                Err(Refusal::failed(format!("{error}; it stays out")))
            }
            Err(error) => {
                // The watch warms what listens there from here on.
                worker.control().listeners.clear();
                self.tables.publish(worker.index, State::Down, 0);
                worker.enter(Phase::Down, &format!("was started by hand, and did not come up: {error}"));
                Err(Refusal::failed(format!("{error}; it stays out until it listens and is warm")))
            }
        }
    }

    /// Has a worker run, and warms it; its listeners, if they are still those of the process that was warmed.
    async fn warm_again(&self, service: &Service, worker: &Worker, until: Instant) -> Result<BTreeSet<u64>, String> {
        let told = |error: std::io::Error| format!("{}: sock_diag: {error}", worker.at);
        // Also one that listens: its manager may have been told to stop it, and would leave it down after a crash.
        let before = start::start(&*self.world, service, worker, until).await.map_err(start::NotUp::why)?;
        self.ledger.stopped(worker);
        let left = until.saturating_duration_since(Instant::now());
        let warmed = warm::warm(worker.at, &service.config.warm, left).await;
        warmed.map_err(|error| error.to_string())?;
        let now = listeners(worker.at).await.map_err(told)?;
        if now.is_disjoint(&before) {
            return Err(format!("{}: its process has ended, or begun, while it was being warmed", worker.at));
        }
        Ok(now)
    }
}

/// How long a client waits.
struct Limit {
    until: Instant,
    within: Duration,
}

impl Limit {
    /// The limit is over: `what` was waited for, and `manager` is what the process manager says, or empty.
    fn missed(&self, worker: &Worker, what: &str, manager: &str) -> Refusal {
        let seconds = self.within.as_secs_f64();
        let manager = if manager.is_empty() { String::new() } else { format!(" ({manager})") };
        Refusal::failed(format!(
            "{} is not back in rotation after {seconds} s: waited for {what}{manager}. It goes back by itself when it listens \
             and is warm. Next: see the log of its process, and deployer status",
            worker.at
        ))
    }
}

/// What a worker in this phase lacks.
fn waited_for(phase: Phase, reason: &str) -> String {
    let what = match phase {
        Phase::Down | Phase::Starting => "its process to listen",
        Phase::Listening | Phase::Warming => "its warm-up",
        _ => "it to be up",
    };
    // What to do is told at the end.
    let reason = reason.split_once(". Next: ").map_or(reason, |(reason, _)| reason);
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{what}; it is {phase}{reason}")
}

/// What the process manager says of a worker that is down.
#[derive(Default)]
struct Asked {
    last: Option<Instant>,
    /// So often in a row it has said that the worker does not come up by itself. A restart by hand passes through that.
    stopped: u32,
    words: String,
}

impl Asked {
    async fn ask(&mut self, service: &Service, worker: &Worker) {
        if self.last.is_some_and(|last| last.elapsed() < ASK) {
            return;
        }
        let name = service.manager.name(worker.at);
        let status = timeout(ASKED_WITHIN, service.manager.status(worker.at)).await;
        self.last = Some(Instant::now());
        self.words = match status {
            Ok(Ok(status)) => {
                let is_stopped = stopped::why(&name, worker, &status).is_some();
                self.stopped = if is_stopped { self.stopped + 1 } else { 0 };
                let pid = status.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
                let said = if status.detail.is_empty() { String::new() } else { format!(": {}", status.detail) };
                if status.phase == ProcessPhase::Running {
                    format!("its manager says that {name} is running{pid}{said}")
                } else {
                    format!("its manager says that {name} is {}{said}", status.phase)
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("its process manager has not answered within {} s", ASKED_WITHIN.as_secs()),
        };
    }

    fn is_stopped(&self) -> bool {
        self.stopped >= 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_says_what_was_waited_for() {
        let worker = Worker::new(0, "127.0.0.1:8000".parse().unwrap(), "web", 0);
        let limit = Limit { until: Instant::now(), within: Duration::from_millis(1500) };
        let what = waited_for(Phase::Down, "nothing listens: its process has ended");
        let refusal = limit.missed(&worker, &what, "its manager says that web:web_8000 is running, pid 7");
        let text = refusal.message();
        assert!(
            text.starts_with("127.0.0.1:8000 is not back in rotation after 1.5 s: waited for its process to listen")
        );
        assert!(text.contains("(its manager says that web:web_8000 is running, pid 7)"), "{text}");
        assert_eq!(waited_for(Phase::Warming, ""), "its warm-up; it is warming");
    }
}
