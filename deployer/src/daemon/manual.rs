//! Drains by an operator's hand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::word::State;
use tokio::sync::Notify;

use super::{Daemon, error::Refusal, lock};
use crate::{
    api::{At, Done, DrainRequest, Phase},
    journal::{ByHand, WorkerState, history::About},
    kernel::{Lasting, host},
    roll::record::unix_ms,
    service::{
        Claim, Owner, Service, Worker, answers,
        drain::Drain,
        holds::Held,
        identity::{self, seen::Listens},
        listeners, put_up,
    },
};

/// A worker in an operator's hand: what is written down of it, what ends it, and how long it lasts.
type Taken = (Arc<Worker>, Claim, ByHand, Arc<Notify>, Duration);

/// Between two renewals of a lease while a worker is asked whether it answers.
const RENEW: Duration = Duration::from_millis(100);
/// The longest drain that renews itself when no end was given: a year.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600);

impl Daemon {
    /// Takes a worker out of rotation until the time is over or it is enabled.
    pub(super) async fn drain(self: &Arc<Self>, name: &str, request: &DrainRequest, by: &str) -> Result<Done, Refusal> {
        let (worker, claim, drained, end, time) = self.take(name, request, by)?;
        let done = format!("{} is out of rotation {}", worker.at, drained.reason);
        let written = self.journal.commit(|state| {
            let service = state.services.entry(worker.service.clone()).or_default();
            let known = WorkerState { drained: Some(drained.clone()), ..worker.control().known() };
            service.workers.insert(worker.at, known);
        });
        // An operator who wants a worker out gets that, with or without a journal.
        let lost = written.await.err().map(|why| format!(", until the daemon ends ({why})")).unwrap_or_default();
        worker.enter(Phase::Draining, &drained.reason);
        let lease = lock(&self.config).kernel.lease;
        self.tables.drain(worker.index, host::now_ms() + lease.as_millis() as u64);
        let daemon = Arc::clone(self);
        tokio::spawn(async move { daemon.hold(claim, &worker, lease, time, &end).await });
        Ok(Done { done: format!("{done}{lost}") })
    }

    /// Takes a worker in hand, if it may be.
    fn take(&self, name: &str, request: &DrainRequest, by: &str) -> Result<Taken, Refusal> {
        let _gate = lock(&self.gate);
        let service = self.service(name)?;
        self.must_steer(&service)?;
        let worker = Arc::clone(worker(&service, request.port)?);
        if let Some(roll) = self.running(&service.config.name)
            && !self.machine_of(&roll.id).is_some_and(|machine| machine.is_waiting())
        {
            return Err(Refusal::busy(format!(
                "{} of {} is under way, and takes workers out itself; wait for its end, or stop it first",
                self.shown(&roll),
                service.config.name
            )));
        }
        let (phase, held, reason) = {
            let control = worker.control();
            (control.phase, control.by_hand().is_some(), control.reason.clone())
        };
        if held {
            return Err(Refusal::busy(format!("{} is drained already, {reason}", worker.at)));
        }
        if phase != Phase::Up {
            return Err(Refusal::failed(format!("{} is {phase}, not up: there is nothing to drain", worker.at)));
        }
        if !request.force {
            self.may_drain(&service, &worker)?;
        }
        let time = match request.for_ms {
            Some(0) => return Err(Refusal::usage("a drain lasts at least a millisecond")),
            Some(ms) => Duration::from_millis(ms).min(FOR_GOOD),
            None => FOR_GOOD,
        };
        let reason = match request.for_ms {
            Some(_) => format!("by {by}, for {} s", time.as_secs_f64()),
            None => format!("by {by}, until it is enabled"),
        };
        let until_ms = request.for_ms.map(|_| unix_ms() + time.as_millis() as u64);
        let lasts = request.for_ms.map(|_| Lasting::new(time));
        let (end, by) = (Arc::new(Notify::new()), by.to_owned());
        let claim = worker.claim(Owner::Hand { by: by.clone(), end: Arc::clone(&end) }).map_err(Refusal::busy)?;
        Ok((worker, claim, ByHand { reason, until_ms, by, lasts }, end, time))
    }

    /// Goes on with a drain that was begun under a former daemon.
    pub(super) fn hold_again(self: &Arc<Self>, worker: &Arc<Worker>, drained: &ByHand) {
        let end = Arc::new(Notify::new());
        let by = if drained.by.is_empty() { drained.reason.clone() } else { drained.by.clone() };
        let Ok(claim) = worker.claim(Owner::Hand { by, end: Arc::clone(&end) }) else { return };
        let time = drained.left(unix_ms()).unwrap_or(FOR_GOOD).min(FOR_GOOD);
        let lease = lock(&self.config).kernel.lease;
        worker.enter(Phase::Draining, &drained.reason);
        let (daemon, worker) = (Arc::clone(self), Arc::clone(worker));
        tokio::spawn(async move { daemon.hold(claim, &worker, lease, time, &end).await });
    }

    /// Holds a drain. Its lease is renewed here and nowhere else: without the daemon the worker is back within a lease.
    async fn hold(&self, claim: Claim, worker: &Worker, lease: Duration, time: Duration, end: &Notify) {
        let silent = |_: &Held| {};
        let until = Instant::now() + time;
        let mut drain = Drain::new(&self.tables, worker, lease, until, &silent);
        let mut lives = same_process(worker).await;
        if lives {
            drain.publish();
        } else {
            self.ended(worker);
        }
        let service = self.service(&worker.service).ok();
        let mut begun = service.map(|service| self.keepalive.begun(worker, &service));
        let mut is_let_in = false;
        let tick = (lease / 4).min(Duration::from_millis(100));
        while Instant::now() < until {
            tokio::select! {
                () = end.notified() => break,
                () = tokio::time::sleep(tick.min(until.saturating_duration_since(Instant::now()))) => {}
            }
            drain.beat();
            if !lives {
                self.after_its_end(worker).await;
                continue;
            }
            lives = same_process(worker).await;
            if !lives {
                self.ended(worker);
            } else if !drain.keep() {
                drain.publish();
            }
            is_let_in = self.tell_of_floor(worker, is_let_in);
            // Who is let in would only have to dial anew.
            begun.iter_mut().for_each(|begun| begun.close(!is_let_in));
        }
        let answered = if lives { self.still_answers(worker, &mut drain).await } else { Ok(()) };
        drop(begun);
        self.history.let_in(About::worker(&worker.service, worker.at), None);
        self.let_go(worker, lives, answered).await;
        drop(claim);
    }

    /// The quarantine of one that has been started meanwhile does not run out while it is held. Of a stranger that has its
    /// address there is none.
    async fn after_its_end(&self, worker: &Worker) {
        let word = self.tables.word(worker.index);
        let Ok(service) = self.service(&worker.service) else { return };
        // Where the kernel does not say, what was known stays.
        let Ok(listens) = identity::look(&service, worker).await else { return };
        let state = match (word.state(), listens) {
            (_, Listens::Stranger(_) | Listens::Doubtful(_)) => State::Stranger,
            (State::Stranger, Listens::Nothing) => State::Down,
            (State::Stranger | State::Cold, _) => State::Cold,
            _ => return,
        };
        let lease = if state == State::Cold { worker.quarantine(&self.tables) } else { 0 };
        let _ = self.tables.swap(worker.index, word, state, lease);
    }

    /// Whether a worker answers, so that it may be given connections again. Its drain goes on while it is asked.
    async fn still_answers(&self, worker: &Worker, drain: &mut Drain<'_>) -> Result<(), String> {
        let Ok(service) = self.service(&worker.service) else { return Ok(()) };
        let mut asked = Box::pin(answers::answers(&service, worker.at));
        loop {
            tokio::select! {
                biased;
                answered = &mut asked => return answered,
                () = tokio::time::sleep(RENEW) => {
                    if !drain.keep() {
                        drain.publish();
                    }
                }
            }
        }
    }

    /// The end of a drain: it is written down, and the worker is back, if it `lives` and has `answered`.
    async fn let_go(&self, worker: &Worker, lives: bool, answered: Result<(), String>) {
        let written = self.journal.commit(|state| {
            if let Some(known) = state.worker(&worker.service, worker.at) {
                known.drained = None;
            }
        });
        // At worst the next daemon drains it once more, and can be told.
        let _ = written.await;
        let lives = lives && same_process(worker).await;
        if let (true, Err(silent)) = (lives, &answered) {
            let silent = answers::stays_out(silent);
            let serving = worker.control().listeners.clone();
            answers::keep_out(worker, serving, &silent);
            self.tables.publish(worker.index, State::Cold, worker.quarantine(&self.tables));
            worker.enter(Phase::Listening, &format!("its drain by hand is over, but {silent}"));
        } else if lives {
            let serving = worker.control().listeners.clone();
            put_up(&self.tables, worker, serving, "back in rotation");
        } else {
            // The watch has it from here on, and warms it if it listens again.
            self.tables.publish(worker.index, State::Down, 0);
            worker.enter(Phase::Down, "its process has ended while it was drained");
        }
    }

    /// The dead are nobody's fallback, and no lease brings them back. What listens later is not warm.
    fn ended(&self, worker: &Worker) {
        self.tables.publish(worker.index, State::Down, 0);
        self.history.let_in(About::worker(&worker.service, worker.at), None);
        worker.enter(Phase::Draining, "by hand; its process has ended meanwhile");
    }
}

/// Whether the process still listens that was serving when the drain began. Where the kernel does not say, it is taken
/// to: the watch looks again at once.
async fn same_process(worker: &Worker) -> bool {
    listeners(worker.at).await.map_or(true, |now| !now.is_disjoint(&worker.control().listeners))
}

pub(super) fn worker(service: &Service, at: At) -> Result<&Arc<Worker>, Refusal> {
    service.named(at).map_err(|error| Refusal::usage(error.to_string()))
}
