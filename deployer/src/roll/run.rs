//! A roll, run: asks the machine what to do, does it, and tells it what came of it. Where it stands is in the journal
//! before each step, so that another daemon can go on.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    command::execute,
    machine::{End, Machine, Outcome, Step},
    record::{Record, unix_ms},
    worker::{Restart, Task},
    world::{Moment, World},
};
use crate::{
    api::{Phase, What},
    config,
    failpoint::{Point, reach},
    journal::{Hand, Journal, RollState},
    service::{Claim, Service},
};

/// How long a process manager that does not answer is waited for after a restart of the daemon.
const MANAGER_WITHIN: Duration = Duration::from_secs(60);
/// Between two questions to it.
const ASK: Duration = Duration::from_secs(1);

/// A roll with all it needs.
pub struct Roll {
    /// The kernel and the workers.
    pub world: Arc<dyn World>,
    /// Where it outlives the daemon. It holds this roll already.
    pub journal: Arc<Journal>,
    /// The service, as configured when the roll began.
    pub service: Arc<Service>,
    /// Where its events go.
    pub record: Arc<Record>,
    /// How long a drain outlives the daemon.
    pub lease: Duration,
    /// The version aimed at.
    pub to: Option<String>,
    /// What the workers said they run before it: what a roll back must restore.
    pub before: Option<String>,
    /// Where it stands.
    pub machine: Machine,
    /// Workers that a former daemon had in hand.
    pub hand: BTreeMap<usize, (Hand, Option<Claim>)>,
}

/// A roll that has not begun, for the journal.
#[must_use]
pub fn entry(record: &Record, service: &Service, to: Option<String>, machine: &Machine) -> RollState {
    RollState {
        id: record.id.clone(),
        service: record.service.clone(),
        by: record.by.clone(),
        to,
        before: version_before(service),
        workers: service.workers.iter().map(|worker| worker.at).collect(),
        spares: service.spares.iter().map(|spare| spare.at).collect(),
        machine: machine.clone(),
        hand: BTreeMap::new(),
    }
}

/// What the workers that are up last said they run.
#[must_use]
pub fn version_before(service: &Service) -> Option<String> {
    service.workers.iter().find_map(|worker| {
        let control = worker.control();
        if control.phase == Phase::Up { control.version.clone() } else { None }
    })
}

impl Roll {
    /// Runs it to its end, or until it is left to the next daemon.
    pub async fn run(mut self) {
        let begun = Instant::now();
        self.announce().await;
        let end = loop {
            if self.record.stop_asked() {
                self.machine.stop("stopped on request", !self.hand.is_empty());
            }
            if self.is_to_park().await {
                return self.record.park();
            }
            match self.machine.step() {
                Step::Switch => {
                    let command = self.service.config.roll.switch.clone();
                    let points = [Point::SwitchBefore, Point::SwitchJournaled, Point::SwitchDone];
                    self.command("switch", command.as_ref(), self.to.clone(), points).await;
                }
                Step::Unswitch => {
                    let command = self.service.config.roll.unswitch.clone();
                    let points = [Point::UnswitchBefore, Point::UnswitchJournaled, Point::UnswitchDone];
                    self.command("unswitch", command.as_ref(), self.before.clone(), points).await;
                }
                Step::Batch { nth, of, workers, back } => {
                    self.record.add(What::Batch { nth: nth + 1, of, workers: self.addresses(&workers), back });
                    let to = if back { self.before.clone() } else { self.to.clone() };
                    self.together(&workers, Task::Restart { to }).await;
                }
                Step::Surge { spares } => {
                    self.record.add(What::Surge { spares: self.addresses(&spares) });
                    let to = self.to.clone();
                    self.together(&spares, Task::Restart { to }).await;
                }
                Step::Retire { spares } => {
                    self.record.add(What::Retire { spares: self.addresses(&spares) });
                    self.together(&spares, Task::Retire).await;
                }
                Step::Finish(end) => break end,
            }
        };
        self.finish(end, begun).await;
    }

    /// Tells that it begins, or goes on.
    async fn announce(&mut self) {
        if self.record.is_empty() {
            self.world.mark(Moment::Begun(&self.service, &self.record.id));
            let batches = self.machine.plan().batches.iter().map(|batch| self.addresses(batch)).collect();
            let (service, by) = (self.record.service.clone(), self.record.by.clone());
            let spares = self.addresses(&self.machine.plan().surge);
            self.record.add(What::Begun { service, to: self.to.clone(), by, batches, spares });
            reach(Point::Begun, None).await;
        } else {
            let text = match self.hand.values().filter(|(hand, _)| hand.outcome.is_none()).count() {
                0 => "goes on after a restart of the daemon".to_owned(),
                some => format!("goes on after a restart of the daemon, with workers in hand: {some}"),
            };
            self.record.add(What::Resumed { text });
        }
        if !self.hand.is_empty() {
            self.wait_for_manager().await;
        }
    }

    /// A host that comes up starts its daemons in any order.
    async fn wait_for_manager(&mut self) {
        let until = Instant::now() + MANAGER_WITHIN;
        let in_hand = self.hand.keys().filter_map(|nth| self.service.member(*nth));
        let workers: Vec<_> = self.service.workers.iter().chain(in_hand).map(|worker| worker.at).collect();
        while let Err(error) = self.service.manager.check(&workers).await {
            if Instant::now() >= until {
                let why = format!("stopped: {} s after a restart of the daemon, {error}", MANAGER_WITHIN.as_secs());
                return self.machine.stop(&why, true);
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// Whether it is left to the next daemon here. What the journal does not hold would be lost.
    async fn is_to_park(&mut self) -> bool {
        let is_over = matches!(self.machine.step(), Step::Finish(_));
        if !self.record.is_suspended() || !self.hand.is_empty() || is_over {
            return false;
        }
        match self.save().await {
            Ok(()) => true,
            Err(why) => {
                self.machine.stop(&format!("stopped with the daemon, since no other can go on with it ({why})"), false);
                // A roll back goes on: there is no half of it.
                false
            }
        }
    }

    fn addresses(&self, workers: &[usize]) -> Vec<SocketAddr> {
        workers.iter().filter_map(|nth| self.service.member(*nth)).map(|worker| worker.at).collect()
    }

    /// Does it to all of these, and tells the machine.
    async fn together(&mut self, workers: &[usize], task: Task) {
        reach(Point::Batch, None).await;
        let outcomes = self.batch(workers, &task).await;
        reach(Point::BatchDone, None).await;
        self.machine.batch_done(outcomes);
        // Where this fails, so does the next worker's intent, and the roll ends there.
        let _ = self.save().await;
        reach(Point::BatchJournaled, None).await;
    }

    /// In the tables.
    fn places(&self, workers: &[usize]) -> Arc<[u32]> {
        workers.iter().filter_map(|nth| self.service.member(*nth)).map(|worker| worker.index).collect()
    }

    async fn batch(&mut self, workers: &[usize], task: &Task) -> Vec<(usize, Outcome)> {
        let mut restarts = JoinSet::new();
        let mut outcomes = Vec::with_capacity(workers.len());
        let mut known = std::mem::take(&mut self.hand);
        let batch = self.places(workers);
        for nth in workers.iter().copied() {
            let Some(worker) = self.service.member(nth) else { continue };
            let hand = match known.remove(&nth) {
                Some((Hand { outcome: Some(outcome), .. }, _)) => {
                    outcomes.push((nth, outcome));
                    continue;
                }
                Some((hand, Some(claim))) => Some((hand, claim)),
                _ => None,
            };
            let restart = Restart {
                world: Arc::clone(&self.world),
                journal: Arc::clone(&self.journal),
                service: Arc::clone(&self.service),
                worker: Arc::clone(worker),
                nth,
                batch: Arc::clone(&batch),
                record: Arc::clone(&self.record),
                lease: self.lease,
                task: task.clone(),
            };
            restarts.spawn(async move { (nth, restart.run(hand).await) });
        }
        while let Some(result) = restarts.join_next().await {
            match result {
                Ok(outcome) => outcomes.push(outcome),
                // A bug of ours: which worker it was is told by its absence.
                Err(error) => tracing::error!(%error, "a restart has panicked"),
            }
        }
        let missing: Vec<_> = workers.iter().filter(|nth| !outcomes.iter().any(|(done, _)| done == *nth)).collect();
        let lost = missing.into_iter().map(|nth| (*nth, Outcome::Kept("its restart was lost by a bug".to_owned())));
        let lost: Vec<_> = lost.collect();
        outcomes.extend(lost);
        outcomes
    }

    /// Runs a command, which is run once more where the daemon ends before it is written down that it was.
    async fn command(
        &mut self,
        which: &str,
        command: Option<&config::Command>,
        version: Option<String>,
        [before, journaled, done]: [Point; 3],
    ) {
        let Some(command) = command else { return self.machine.commanded(Ok(())) };
        reach(before, None).await;
        if let Err(why) = self.save().await {
            return self.machine.commanded(Err(format!("it was not run: {why}")));
        }
        reach(journaled, None).await;
        let replace = |word: &String| {
            word.replace("{version}", version.as_deref().unwrap_or_default())
                .replace("{service}", &self.service.config.name)
        };
        let argv: Vec<_> = command.argv.iter().map(replace).collect();
        let result = execute(&argv, self.service.config.roll.switch_within).await;
        self.record.add(What::Command { which: which.to_owned(), argv, error: result.clone().err() });
        reach(done, None).await;
        self.machine.commanded(result);
        let _ = self.save().await;
    }

    /// Writes down where it stands, with nobody in hand.
    async fn save(&self) -> Result<(), String> {
        let committed = self.journal.commit(|state| {
            if let Some(roll) = state.roll(&self.record.id) {
                roll.machine = self.machine.clone();
                roll.hand.clear();
            }
        });
        committed.await
    }

    async fn finish(&self, end: End, begun: Instant) {
        reach(Point::FinishBefore, None).await;
        self.world.mark(Moment::Ended(&self.service));
        let since = self.record.begun_ms().map(|ms| Duration::from_millis(unix_ms().saturating_sub(ms)));
        self.record.add(What::Finished {
            result: end.result,
            text: end.text,
            changed: self.machine.changed(),
            failed: self.addresses(&self.machine.failed().collect::<Vec<_>>()),
            seconds: since.unwrap_or_else(|| begun.elapsed()).as_secs_f64(),
        });
        reach(Point::Finished, None).await;
        // A roll that has told its end is not taken up again, whatever the journal says.
        self.journal.update(|state| state.rolls.retain(|roll| roll.id != self.record.id));
        reach(Point::Forgotten, None).await;
    }
}
