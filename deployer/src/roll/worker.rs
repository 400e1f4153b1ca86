//! One worker's restart: drain, stop, start, warm, enable.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::word::State;

use super::{machine::Outcome, record::Record, start};
use crate::{
    api::{Phase, What},
    config::OnDeadline,
    kernel::{Tables, host},
    service::{
        Owner, Service, Worker,
        drain::{Drain, DrainError, Held},
        listeners, phase, put_up,
    },
};

/// How long a worker whose stop failed is watched before it is called unharmed.
const AFTERMATH: Duration = Duration::from_secs(1);

/// A restart with all it needs.
pub(super) struct Restart {
    pub(super) tables: Arc<Tables>,
    pub(super) service: Arc<Service>,
    pub(super) worker: Arc<Worker>,
    pub(super) record: Arc<Record>,
    pub(super) lease: Duration,
    /// The version it must say afterwards.
    pub(super) to: Option<String>,
}

impl Restart {
    /// Does it all.
    pub(super) async fn run(self) -> Outcome {
        let _claim = match self.worker.claim(Owner::Roll(self.record.id.clone())) {
            Ok(claim) => claim,
            Err(who) => return Outcome::Kept(who),
        };
        let serving = match listeners(self.worker.at).await {
            Ok(serving) => serving,
            Err(error) => return Outcome::Kept(format!("{}: sock_diag: {error}", self.worker.at)),
        };
        let (before, was) = {
            let control = self.worker.control();
            (control.phase, control.reason.clone())
        };
        if let Err(why) = self.empty(before).await {
            return self.put_back(before, &was, serving, &why).await;
        }
        self.enter(Phase::Stopping, "");
        if let Err(error) = self.service.manager.stop(self.worker.at).await {
            // A worker that is being stopped, or may be stopped yet, must not be given any requests.
            if error.may_come_yet() {
                return self.fail(format!("{}: {error}; it may yet be stopped, so it stays out", self.worker.at));
            }
            return self.not_stopped(before, &was, serving, &error.to_string()).await;
        }
        match self.bring_up().await {
            Ok(version) => {
                self.worker.control().version.clone_from(&version);
                self.enter(Phase::Up, version.as_deref().unwrap_or_default());
                Outcome::Changed
            }
            Err(why) => self.fail(why),
        }
    }

    /// Empties the worker, and makes that final.
    async fn empty(&self, before: Phase) -> Result<(), String> {
        let limits = self.service.config.drain;
        let deadline = Instant::now() + limits.deadline;
        let on_held = |held: &Held| self.held(held);
        let mut drain = Drain::new(&self.tables, &self.worker, self.lease, deadline, &on_held);
        let result = match before {
            // Nobody is sent there, or only for want of anybody else. A lease would make it up when it runs out.
            Phase::Failed | Phase::Down | Phase::Listening | Phase::Warming => drain.stopping_at_once().await,
            _ => self.drain(&mut drain).await,
        };
        match result {
            Ok(()) => Ok(()),
            Err(DrainError::Deadline(held)) if limits.on_deadline == OnDeadline::Kill || before == Phase::Failed => {
                self.tables.publish(self.worker.index, State::Stopping, 0);
                self.enter(Phase::Drained, &format!("at the deadline, with {held}"));
                Ok(())
            }
            Err(DrainError::Alone) if limits.on_deadline == OnDeadline::Kill => {
                self.tables.publish(self.worker.index, State::Stopping, 0);
                self.enter(Phase::Drained, "at the deadline, though no other worker is up");
                Ok(())
            }
            Err(DrainError::Deadline(held)) => {
                Err(format!("not empty after {} s: {held}", limits.deadline.as_secs_f32()))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn drain(&self, drain: &mut Drain<'_>) -> Result<(), DrainError> {
        drain.publish();
        self.enter(Phase::Draining, "");
        drain.empty().await?;
        drain.relieved(|| self.is_other_up()).await?;
        drain.stopping().await?;
        self.enter(Phase::Drained, "");
        Ok(())
    }

    /// Whether a sibling serves that this batch does not hold. A service of one worker is rolled only where the
    /// configuration says that it may be (`on_deadline = "kill"`).
    fn is_other_up(&self) -> bool {
        let (now, workers) = (host::now_ms(), &self.service.workers);
        workers.len() == 1
            || workers.iter().any(|other| {
                other.index != self.worker.index
                    && other.control().is_watched()
                    && self.tables.word(other.index).at(now) == State::Up
            })
    }

    /// Back to what it was: serving, if it is still the same process; failed, as it `was`; or left to the watch.
    async fn put_back(&self, before: Phase, was: &str, serving: BTreeSet<u64>, why: &str) -> Outcome {
        let at = self.worker.at;
        let now = listeners(at).await.unwrap_or_else(|_| serving.clone());
        match before {
            Phase::Failed => return self.fail(format!("{was}; and now: {why}")),
            _ if now.is_disjoint(&serving) => {
                self.tables.publish(self.worker.index, State::Down, 0);
                self.enter(Phase::Down, "its process has ended while it was drained");
            }
            Phase::Up | Phase::Draining => {
                let from = self.worker.control().phase;
                put_up(&self.tables, &self.worker, serving, why);
                self.tell(Phase::Up, from, why);
            }
            _ => {
                self.tables.publish(self.worker.index, State::Cold, 0);
                self.enter(Phase::Listening, why);
            }
        }
        Outcome::Kept(format!("{at}: {why}"))
    }

    /// The manager did not stop it. If it is still there after a while, it is put back; nothing is lost.
    async fn not_stopped(&self, before: Phase, was: &str, serving: BTreeSet<u64>, why: &str) -> Outcome {
        let begun = Instant::now();
        while begun.elapsed() < AFTERMATH {
            let now = listeners(self.worker.at).await.unwrap_or_default();
            if now.is_disjoint(&serving) {
                return self.fail(format!("{}: {why}; and its process is gone", self.worker.at));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.put_back(before, was, serving, why).await
    }

    /// Starts and warms it, and publishes it as up if it is still the process that was warmed.
    async fn bring_up(&self) -> Result<Option<String>, String> {
        let at = self.worker.at;
        start::nobody_listens(&self.worker).await?;
        let until = Instant::now() + self.service.config.warm.within;
        self.enter(Phase::Starting, "");
        let serving = start::start(&self.service, &self.worker, until).await?;
        self.tables.publish(self.worker.index, State::Cold, 0);
        self.enter(Phase::Listening, "");
        self.enter(Phase::Warming, "");
        let version = start::warm_up(&self.service, &self.worker, self.to.as_deref(), until).await?;
        let now = listeners(at).await.map_err(|error| format!("{at}: sock_diag: {error}"))?;
        if now.is_disjoint(&serving) {
            return Err(format!(
                "{at}: its process has ended, or was restarted, while it was being warmed; see its log"
            ));
        }
        self.worker.control().listeners = now;
        self.tables.publish(self.worker.index, State::Up, 0);
        Ok(version)
    }

    fn fail(&self, why: String) -> Outcome {
        self.tables.publish(self.worker.index, State::Failed, 0);
        self.enter(Phase::Failed, &why);
        Outcome::Failed(why)
    }

    fn enter(&self, phase: Phase, reason: &str) {
        let was = self.worker.enter(phase, reason);
        if was != phase {
            self.tell(phase, was, reason);
        }
    }

    fn tell(&self, phase: Phase, was: Phase, reason: &str) {
        if !phase::is_move(was, phase) {
            tracing::error!(worker = %self.worker.at, ?was, ?phase, "a move that the table of phases does not have");
        }
        self.record.add(What::Phase { worker: self.worker.at, phase, was, reason: reason.to_owned() });
    }

    fn held(&self, held: &Held) {
        let Held { open, tickets, by } = held.clone();
        self.record.add(What::Held { worker: self.worker.at, open, tickets, by });
    }
}
